"""Storage at full width: what a checkpoint's save and load get when all nodes go at once."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.probes.shards import PAGE, Shards, Side
from healthchecks.sources.mounts import table
from healthchecks.sources.mountstats import Stats, parse
from supervisor.core.setting import About

_ROOM_FOR = 128  # nodes' shards must fit into what is free: nobody may fill the file system
_MAX_WAIT_S = 120.0


def width_shared(ctx: Ctx, _target: str, *, dir: str = "", **_options: object) -> str:
    """Whom a directory that hangs waits for."""
    under = table(ctx).under(dir)
    return under.shared if under is not None and under.network else ""


def _mount_of(ctx: Ctx, dir: str) -> Path:
    under = table(ctx).under(dir)
    if under is None:
        raise Unknown(f"{dir}: no mount is known that it is on")
    return ctx.path(under.point)


@check(
    "storage.width",
    tags={"deep"},
    resource="storage",
    deadline_s=420.0,
    on_timeout=Status.FAIL,
    timeout_shared=width_shared,
    timeout_fix="look at nfs.gate, nfs.alive and nfs.passive of this node, and at the server",
)
def storage_width(
    ctx: Ctx,
    *,
    dir: Annotated[
        str,
        About(
            doc="The directory to write in, as the run's on shared storage; no link. None where "
            "empty."
        ),
    ] = "",
    size: Annotated[
        int, About(doc="To write and read on this node, over all writers.", unit="B", ge=1)
    ] = 8 << 30,
    writers: Annotated[int, About(doc="Files at once, one a rank.", ge=1, le=64)] = 8,
    block: Annotated[
        int, About(doc="One write or read; a multiple of 4096.", unit="B", ge=PAGE)
    ] = 8 << 20,
    start_at: Annotated[
        float, About(doc="When to begin, so that all nodes go at once; 0: now.", unit="s (epoch)")
    ] = 0.0,
    limit_s: Annotated[
        float,
        About(
            doc="For the write, and as much for the read, which begins so long after start_at.",
            unit="s",
        ),
    ] = 30.0,
    least_write: Annotated[
        float, About(doc="A node's write throughput below which it fails; 0: none.", unit="B/s")
    ] = 0.0,
    least_read: Annotated[
        float, About(doc="A node's read throughput below which it fails; 0: none.", unit="B/s")
    ] = 0.0,
) -> Result:
    """Writing and reading checkpoint-sized shards, all nodes at once.

    A bottleneck of a cluster of 63 nodes showed at 60 and never at 4, and the time went into the
    client's own queue (arXiv 2605.09370). One node's figures say little by themselves:
    healthchecks.many.storage_width compares those of all.
    """
    if not dir:
        raise Skip("no directory is configured (storage.width.dir)")
    if block % PAGE or size < block:
        raise Unknown(f"block must be a multiple of {PAGE} and not more than size")
    shared = width_shared(ctx, "", dir=dir)
    folder = ctx.path(dir)
    ctx.announce(f"statvfs {dir} ({shared or 'local'})")
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < _ROOM_FOR * size:
        raise Unknown(
            f"{dir} has {free.f_bavail * free.f_frsize / 1e9:.1f} GB free; for {_ROOM_FOR} nodes "
            f"not to fill it, {_ROOM_FOR} x {size / 1e9:.1f} GB must be free: lower size"
        )
    late_s = _wait(ctx, start_at)
    found = Findings()
    ctx.announce(f"open shards in {dir} ({shared or 'local'})")
    files = max(1, min(writers, size // block))
    try:
        shards = Shards(folder, _mount_of(ctx, dir), ctx.node, files)
        try:
            task = _Task(ctx=ctx, shards=shards, where=f"{dir} ({shared or 'local'})", dir=dir)
            sides = _both_ways(task, found, size // files, block, start_at, limit_s)
        finally:
            shards.close()
    except OSError as error:
        found.fail(
            f"{dir}: {error.strerror or error} ({error.errno})",
            expected="shards written, synced and read",
            fix="look at nfs.alive and nfs.mounted; quota and space on the server",
            shared=shared,
        )
        return found.result("")
    found.metric("start_late", late_s, "s")
    for name, side, least in (
        ("write", sides[0], least_write),
        ("read", sides[1], least_read),
    ):
        _tell(found, name, side)
        if side.rate < least:
            found.fail(
                f"{name}s {side.rate / 1e9:.2f} GB/s",
                expected=f"at least {least / 1e9:.2f} GB/s",
                fix="compare nodes: one that is slow by itself, or all? then nfs.options and the "
                "server",
            )
    how = "past the cache" if shards.direct else "through the cache, dropped before reading"
    return found.result(
        f"{dir}: {files} files {how}: write {sides[0].rate / 1e9:.2f} GB/s, read "
        f"{sides[1].rate / 1e9:.2f} GB/s"
    )


def _wait(ctx: Ctx, start_at: float) -> float:
    """Until the common start; returns seconds that this node was late."""
    if not start_at:
        return 0.0
    left = start_at - time.time()
    if left > _MAX_WAIT_S:
        raise Unknown(
            f"start_at is {left:.0f} s away, at most {_MAX_WAIT_S:.0f} are waited for; "
            "is this node's clock right?"
        )
    ctx.announce(f"wait for the common start in {max(0.0, left):.1f} s")
    while (left := start_at - time.time()) > 0:
        time.sleep(min(left, 0.5))
    return max(0.0, time.time() - start_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    ctx: Ctx
    shards: Shards
    dir: str
    where: str  # for people


def _both_ways(
    task: _Task, found: Findings, each: int, block: int, start_at: float, limit_s: float
) -> tuple[Side, Side]:
    """Write and sync, then read; with what the NFS client counted meanwhile."""
    before = _stats(task)
    task.ctx.announce(f"write shards in {task.where}")
    written = task.shards.write(each, block, time.monotonic() + limit_s)
    between = _stats(task)
    if start_at:  # a node that was done early must not read while others write
        _wait(task.ctx, start_at + limit_s)
    task.ctx.announce(f"read shards in {task.where}")
    read = task.shards.read(block, time.monotonic() + limit_s)
    task.ctx.announce("")
    _client(found, "WRITE", before, between)
    _client(found, "READ", between, _stats(task))
    return written, read


def _client(found: Findings, name: str, then: Stats | None, now: Stats | None) -> None:
    """Where a call's time went, as far as the client counts it."""
    grown = now.since(then.document()) if now is not None and then is not None else None
    op = grown.ops.get(name) if grown is not None else None
    if op is None:
        return
    if op.queue_share is not None:
        found.metric(f"{name.lower()}_queue_share", op.queue_share, "%")
    rtt = op.mean_s(op.rtt_ms)
    if rtt is not None:
        found.metric(f"{name.lower()}_rtt", rtt, "s")


def _stats(task: _Task) -> Stats | None:
    """The client's counters of the mount that holds the directory; None where it is not NFS."""
    under = table(task.ctx).under(task.dir)
    if under is None or under.server is None:
        return None
    return parse(task.ctx.text("proc/self/mountstats")).get(under.point)


def _tell(found: Findings, name: str, side: Side) -> None:
    found.metric(f"{name}_throughput", side.rate, "B/s")
    found.metric(f"{name}_bytes", side.moved, "B")
    found.metric(f"{name}_began", side.began, "s")
    found.metric(f"{name}_took", side.took_s, "s")
    for share in (0.5, 0.99):
        found.metric(f"{name}_p{share * 100:.0f}", side.percentile(share), "s")
    found.metric(f"{name}_slowest", max(side.blocks, default=0.0), "s")
