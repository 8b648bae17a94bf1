"""Network mounts: does each one answer?

What is imported here is imported before the first mount is touched: a probe's process must not load
a module from the very mount that hangs.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.probes import shared_files
from healthchecks.sources.elapsed import Elapsed
from healthchecks.sources.mounts import Mounted, NfsServer, table, tidy, within
from healthchecks.sources.nfs_tcp import can_connect, refusal, tcp_connect
from supervisor.core.setting import About

_AFRESH = "umount -l {0}, then mount {0}"
# What an error means on a network mount, and what to do: by errno, {0} is the mount point.
_FAULTS: dict[int, tuple[str, str]] = {
    errno.ESTALE: (
        "stale file handle (ESTALE 116): the server no longer knows what is mounted",
        f"{_AFRESH}; mount -o remount keeps the stale handle",
    ),
    errno.EIO: (
        "input/output error (EIO 5): the server answered with one, or a soft mount gave up",
        "look at the server's log and at nfs.gate; a soft mount should be hard (nfs.options)",
    ),
    errno.EACCES: (
        "permission denied (EACCES 13): the server refuses this node",
        "on the server: is this node's address in the export (exportfs -v)? with sec=krb5: is "
        "rpc-gssd running here, is the keytab good?",
    ),
    errno.EPERM: (
        "not permitted (EPERM 1): the server refuses this node",
        "on the server: is this node's address in the export, from a port below 1024?",
    ),
    errno.ETIMEDOUT: (
        "timed out (ETIMEDOUT 110): the server did not answer and the client gave up",
        "look at nfs.gate and the path to the server; a soft mount should be hard (nfs.options)",
    ),
    errno.ENOTCONN: (
        "not connected (ENOTCONN 107): the file system's own process has died",
        _AFRESH,
    ),
    errno.ECONNABORTED: (
        "connection aborted (ECONNABORTED 103): the file system's own process has died",
        _AFRESH,
    ),
    errno.ESHUTDOWN: (
        "shut down (ESHUTDOWN 108): the server has evicted this client",
        f"lfs check servers; where that does not reconnect: {_AFRESH}",
    ),
    errno.EROFS: (
        "read-only (EROFS 30), though it is mounted rw: the server exports it read-only",
        "on the server: exportfs -v",
    ),
    errno.ENOSPC: ("no space left (ENOSPC 28)", "free space on the server"),
    errno.EDQUOT: ("quota is used up (EDQUOT 122)", "free space, or raise the quota"),
}

_SWAPPED = "give the file or directory itself, on this mount and where only you can rename it"


def alive_targets(ctx: Ctx, *, paths: tuple[str, ...] = (), **_options: object) -> list[str]:
    """Mount points to touch."""
    targets = [tidy(path) for path in paths] or sorted(m.point for m in table(ctx).network())
    if not targets:
        raise Skip("no network file system is mounted")
    return targets


def alive_shared(ctx: Ctx, target: str, **_options: object) -> str:
    """Whom a mount that hangs waits for."""
    under = table(ctx).under(target)
    return under.shared if under is not None and under.network else ""


@check(
    "nfs.alive",
    tags={"preflight", "prolog", "running"},
    resource="mount",
    targets=alive_targets,
    deadline_s=5.0,
    on_timeout=Status.FAIL,
    timeout_shared=alive_shared,
    timeout_fix="look at nfs.gate and at the server; where only this node hangs: umount -f, then "
    "umount -l the mount, mount it afresh; a process in uninterruptible sleep goes when the server "
    "answers or the mount is aborted",
    untested="no NFS server: tried on FUSE mounts that hang, go stale, slow down, fail and "
    "recover.",
)
def nfs_alive(
    ctx: Ctx,
    mount: str,
    *,
    paths: Annotated[
        tuple[str, ...],
        About(doc="Mount points to probe. All network mounts where empty."),
    ] = (),
    canaries: Annotated[
        tuple[str, ...],
        About(
            doc="Files to read past the client's cache, by full path: put one on each mount, where "
            "only you can rename it."
        ),
    ] = (),
    write: Annotated[
        tuple[str, ...],
        About(
            doc="Directories in which to write, sync and remove a small file, by full path; where "
            "mounted rw. No links, and best where nobody else can rename them."
        ),
    ] = (),
    slow_ms: Annotated[float, About(doc="One request to warn at.", unit="ms")] = 1000.0,
    fail_ms: Annotated[
        float, About(doc="One request to fail at, where it lasts.", unit="ms")
    ] = 4000.0,
    lasts_s: Annotated[
        float, About(doc="For how long looks must find it so slow.", unit="s", ge=0)
    ] = 60.0,
) -> Result:
    """Each network mount answers: file system, directory, a file past the cache, a write.

    Probed in a process that may be lost, never twice at a time (prometheus/node_exporter's list of
    stuck mounts); ESTALE, EIO and a hang are told apart. Where a server over TCP takes no
    connection its mount is not touched: that would leave a process behind. One slow answer, as
    while many nodes save, is a WARN; slowness that lasts is FAIL. The limits are superv's own.
    """
    mounts = table(ctx)
    there = mounts.under(mount)
    if there is None or not (there.network or there.point == mount):
        raise Unknown(
            f"{mount}: no network file system is mounted there; nfs.mounted tells what should be"
        )
    server = there.server
    if server is not None and server.tcp and server.addr and can_connect(ctx, server.addr):
        _not_if_the_server_refuses(ctx, server)
    found = Findings()
    probe = _Probe(ctx, mount, there, found)
    if not probe.step("statfs", mount, lambda: os.statvfs(ctx.path(mount))):
        return found.result("")
    point = ctx.path(there.point)
    listed = probe.step("readdir", mount, lambda: _first_entry(ctx, mount), denied="listing")
    for canary in (c for c in map(tidy, canaries) if within(c, mount) and mounts.under(c) == there):
        if listed:
            listed = probe.step("canary", canary, partial(_canary, ctx.path(canary), point))
    for folder in (f for f in map(tidy, write) if within(f, mount) and mounts.under(f) == there):
        if listed and "rw" in there.in_force:
            listed = probe.step("write", folder, partial(_write, ctx.path(folder), point, ctx.node))
    ctx.announce("")
    slowest = max(probe.took, key=lambda step: probe.took[step])
    ms = probe.took[slowest] * 1000
    lasted_s = ctx.memory.lasted_s("slow", ms >= fail_ms)
    if ms >= slow_ms:
        found.add(
            Status.FAIL if ms >= fail_ms and lasted_s >= lasts_s else Status.WARN,
            f"{slowest} of {mount} took {ms:.0f} ms",
            expected=f"less than {slow_ms:g} ms",
            fix="look at nfs.passive: is it the server, the path, or this client's queue?",
            shared=there.shared,
        )
    notes = f"; {probe.note}" if probe.note else ""
    return found.result(f"answers, {slowest} in {ms:.1f} ms{notes}")


def _not_if_the_server_refuses(ctx: Ctx, server: NfsServer) -> None:
    ctx.announce(f"connect to {server.endpoint} ({server.name})")
    _, error = tcp_connect(server.addr, server.port, 2.0)
    if error:
        raise Unknown(
            f"not tried, so that nobody hangs: {server.name} takes no connection "
            f"({refusal(error, 2.0)}); nfs.gate says more"
        )


class _Probe:
    """Touches one mount step by step, and says which step it is at."""

    def __init__(self, ctx: Ctx, mount: str, there: Mounted, found: Findings) -> None:
        self._ctx, self._mount, self._there, self._found = ctx, mount, there, found
        self.took: dict[str, float] = {}
        self.note = ""

    def step(self, name: str, path: str, touch: Callable[[], object], denied: str = "") -> bool:
        """Whether it went well. `denied` is what user permissions alone may forbid."""
        self._ctx.announce(f"{name} {path} ({self._there.shared})")
        elapsed = Elapsed()
        try:
            touch()
        except Unknown as error:  # another user's doing: it says nothing about the node
            self._found.add(Status.UNKNOWN, f"{name}: {error}", fix=_SWAPPED)
            return True
        except OSError as error:
            if denied and error.errno == errno.EACCES:  # an answer: the server lives
                self.note = f"{denied} it is not for user {os.geteuid()} (root_squash?)"
            else:
                self._fault(name, path, error)
                return False
        took = elapsed.s()
        self.took[name] = max(took, self.took.get(name, 0.0))
        self._found.metric(name, self.took[name], "s")
        return True

    def _fault(self, name: str, path: str, error: OSError) -> None:
        code = error.errno or 0
        known = _FAULTS.get(code)
        if known is None and code == errno.ENOENT:
            known = (
                "it is not there (ENOENT 2): another export is mounted, or an empty one",
                f"is {self._there.source} the right export? else put the file or directory back",
            )
        word = errno.errorcode.get(code, "?")
        what, fix = known or (
            f"{error.strerror or error} ({word} {code})",
            "look at the kernel log and the server's",
        )
        self._found.fail(
            f"{name} {path}: {what}",
            expected="an answer without an error",
            fix=fix.format(self._mount),
            shared=self._there.shared,
        )


def _first_entry(ctx: Ctx, mount: str) -> None:
    with os.scandir(ctx.path(mount)) as entries:
        next(entries, None)


def _canary(path: Path, point: Path) -> None:
    """Read past the cache. Raises Unknown, and OSError, also for a file that gives no byte."""
    try:
        size = _read(path, point, os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what file systems without direct reads say
            raise
        size = _read(path, point, 0)
    if size == 0:
        raise OSError(errno.ENODATA, "the canary is empty; write a line into it")


def _read(path: Path, point: Path, direct: int) -> int:
    with shared_files.existing(path, point, direct) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.preadv(fd, [mmap.mmap(-1, mmap.PAGESIZE)], 0)


def _write(folder: Path, point: Path, node: str) -> None:
    """A name for each node and user, so that what a lost probe left is removed by the next one,
    and root's look and an agent's don't remove each other's."""
    with shared_files.entered(folder, point) as there:
        fd, name = shared_files.make(there, f".superv-alive-{node}-{os.geteuid()}")
        try:
            try:
                os.write(fd, b"superv nfs.alive\n")
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            with suppress(FileNotFoundError):  # another look of this user's has just removed it
                os.unlink(name, dir_fd=there)
