"""What the kernel's NFS client itself knows: counters, its log, its settings. Touches no mount."""

from __future__ import annotations

import re
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.kernel_log import KernelLine, new_lines
from healthchecks.sources.mounts import NFS, Mounted, nfs_servers, table
from healthchecks.sources.mountstats import Stats, parse
from supervisor.core.setting import About

# linux/net/sunrpc/clnt.c (call_timeout, rpc_check_timeout, call_decode) and xprt.c; lockd has its
# own name for the program. A hard mount tries again and says OK once it has an answer. A soft one
# gives up and never says OK: that is an event, and no state.
_SERVER = re.compile(
    r"(?:nfs|lockd|nlm|NFS): server (\S+) "
    r"(not responding, still trying|not responding, timed out|not responding|OK)(?=\Z|[\s,.])"
)
_GAVE_UP = "not responding, timed out"
_RECLAIM = "Lock reclaim failed"
_LOST = re.compile(rf"NFS: \w+: {_RECLAIM}!")
# linux/fs/nfs/nfs4state.c nfs4_state_manager: leases and sessions that can't be renewed.
_MANAGER = "NFS: state manager: "
_STATE = re.compile(rf"{_MANAGER}[\w ]+ failed on NFSv4 server (\S+) with error (\d+)")
_LATELY_S = 3600.0  # the first look sees the log since the boot
_MIN_CALLS = 100  # below that a share or a mean says little
# Options that differ between nodes though all is well, or follow from others.
_OF_THIS_NODE = ("addr", "clientaddr", "mountaddr", "user_id", "group_id", "fd", "rootmode", "name")
# What throughput hangs on; files of /proc/sys and /sys, compared between nodes.
_DRIVER = (
    *(
        f"proc/sys/sunrpc/{name}"
        for name in (
            "tcp_slot_table_entries",
            "tcp_max_slot_table_entries",
            "udp_slot_table_entries",
            "rdma_slot_table_entries",
            "rdma_max_inline_read",
            "rdma_max_inline_write",
        )
    ),
    "sys/module/nfs/parameters/max_session_slots",
    "sys/module/nfs/parameters/delay_retrans",
    "sys/module/nfs/parameters/nfs_access_max_cachesize",
    "sys/module/nfs/parameters/recover_lost_locks",
    "sys/module/nfsv4/parameters/delegation_watermark",
    "sys/module/sunrpc/parameters/tcp_slot_table_entries",
    "sys/module/sunrpc/parameters/tcp_max_slot_table_entries",
    "sys/module/nfs_layout_nfsv41_files/parameters/dataserver_retrans",
    "sys/module/nfs_layout_nfsv41_files/parameters/dataserver_timeo",
    "sys/module/nfs_layout_flexfiles/parameters/dataserver_retrans",
    "sys/module/nfs_layout_flexfiles/parameters/dataserver_timeo",
    "sys/module/nfs_layout_flexfiles/parameters/io_maxretrans",
)


def passive_targets(ctx: Ctx, **_options: object) -> list[str]:
    """The NFS servers of this node, by name."""
    targets = list(nfs_servers(table(ctx).network()))
    if not targets:
        raise Skip("no NFS is mounted")
    return targets


_UNTESTED = "no NFS mount: what it reads is text as fs/nfs and net/sunrpc of the kernel print it."


@check(
    "nfs.passive",
    tags={"preflight", "prolog", "running"},
    targets=passive_targets,
    untested=_UNTESTED,
)
def nfs_passive(
    ctx: Ctx,
    server: str,
    *,
    fail_after_s: Annotated[
        float, About(doc="How long a server may be silent before it fails.", unit="s")
    ] = 60.0,
    resent_percent: Annotated[float, About(doc="Messages sent again to warn at.", unit="%")] = 1.0,
    queue_percent: Annotated[
        float,
        About(doc="Share of a READ's or WRITE's time in this client's queue to warn at.", unit="%"),
    ] = 80.0,
    queue_ms: Annotated[
        float, About(doc="Time of a READ or WRITE below which its queue is no matter.", unit="ms")
    ] = 1000.0,
) -> Result:
    """The NFS client has no complaint: kernel log, timeouts, messages sent again, its own queue.

    "not responding" without a later "OK" and "Lock reclaim failed" as leptonai/gpud; the client's
    queue had 93.1 % of WRITE's latency on a cluster of 63 nodes (arXiv 2605.09370), seen nowhere
    else. Counters are those of the time since the last look. Other limits are superv's own.
    """
    mounts = nfs_servers(table(ctx).network())[server]
    stats = parse(ctx.text("proc/self/mountstats"))
    found = Findings()
    progress = False
    late: list[str] = []
    for mounted in mounts:
        now = stats.get(mounted.point)
        if now is None:
            found.unknown(f"{mounted.point}: /proc/self/mountstats says nothing of it")
            continue
        grown = now.since(ctx.memory.get(mounted.point))
        ctx.memory.put(mounted.point, now.document())
        if grown is None:
            found.not_yet("first look: no rates yet")
            continue
        total = grown.total()
        progress = progress or total.calls > 0
        if total.timeouts > 0:
            late.append(f"{total.timeouts} timeouts on {mounted.point} in {grown.age_s} s")
        _measure(found, mounted, grown, resent_percent, queue_percent, queue_ms)
    _time_out(ctx, found, server, late, fail_after_s)
    _log(ctx, found, server, mounts[0], progress and not late, fail_after_s)
    return found.result("no timeouts, nothing in the log")


def _measure(
    found: Findings,
    mounted: Mounted,
    grown: Stats,
    resent_percent: float,
    queue_percent: float,
    queue_ms: float,
) -> None:
    """Figures of one mount since the last look."""
    point = mounted.point
    total = grown.total()
    found.metric(f"{point} calls", total.calls / grown.age_s, "/s")
    if grown.sends:
        found.metric(f"{point} backlog", grown.backlog / grown.sends)
    if total.calls >= _MIN_CALLS:
        resent = 100.0 * total.again / total.calls
        found.metric(f"{point} sent again", resent, "%")
        if resent >= resent_percent:
            found.warn(
                f"{point}: {resent:.1f} % of its messages were sent again",
                expected=f"less than {resent_percent:g} %",
                fix="packets are lost or the server is overloaded: look at roce.*, ib.* and the "
                "server",
                shared=mounted.shared,
            )
    for name in ("READ", "WRITE"):
        op = grown.ops.get(name)
        if op is None or op.calls <= 0:
            continue
        for what, spent in (("rtt", op.rtt_ms), ("time", op.execute_ms)):
            if (mean := op.mean_s(spent)) is not None:
                found.metric(f"{point} {name} {what}", mean, "s")
        share, mean = op.queue_share, op.mean_s(op.execute_ms)
        if share is None or mean is None:
            continue
        found.metric(f"{point} {name} queue share", share, "%")
        if op.calls >= _MIN_CALLS and share >= queue_percent and mean * 1000 >= queue_ms:
            found.warn(
                f"{point}: a {name} takes {mean * 1000:.0f} ms, {share:.1f} % of it in this "
                "client's own queue",
                expected=f"less than {queue_percent:g} % of it before the server sees the call",
                fix="the client has too few slots or connections: compare nfs.options between "
                "nodes; nconnect, tcp_max_slot_table_entries, max_session_slots, read-ahead",
                shared=mounted.shared,
            )


def _time_out(ctx: Ctx, found: Findings, server: str, late: list[str], fail_after_s: float) -> None:
    """Timeouts that go on from look to look."""
    since = ctx.memory.get("late_since")
    if not late:
        ctx.memory.put("late_since", None)
        return
    if since is None:
        since = ctx.now
        ctx.memory.put("late_since", since)
    for_s = ctx.now - since
    found.add(
        Status.FAIL if for_s >= fail_after_s else Status.WARN,
        ", ".join(late) + (f", for {for_s:.0f} s" if for_s else ""),
        expected="no call unanswered for the whole of timeo and retrans",
        fix=f"look at {server}, at nfs.gate and at the path to it",
        shared=server,
    )


def _log(
    ctx: Ctx,
    found: Findings,
    server: str,
    mounted: Mounted,
    answers: bool,
    fail_after_s: float,
) -> None:
    """The kernel's log. `answers`: calls ended since the last look, so no silence lasts."""
    try:
        lines = new_lines(ctx, ": server ", _RECLAIM, _MANAGER)
    except Unknown as why:
        found.unmeasured(why)
        return
    host = mounted.server.host if mounted.server else ""
    known = ctx.memory.get("silent_since")
    silent = _silent_since(lines, host, known)
    if known is None and silent is not None and silent < ctx.now - _LATELY_S:
        # Each call that waits says so again: a single old line is over, though its OK was lost.
        newest = max(x.last for x in lines if _of_server(x, host))
        silent = silent if newest > ctx.now - _LATELY_S else None
    if answers and not any(host in line.text for line in lines):
        silent = None  # the line that said OK was lost
    ctx.memory.put("silent_since", silent)
    if silent is not None:
        for_s = max(0.0, ctx.now - silent)
        found.add(
            Status.FAIL if for_s >= fail_after_s else Status.WARN,
            f"kernel: nfs: server {host} not responding, for {for_s:.0f} s",
            expected="an answer, and `OK` in the kernel's log",
            fix=f"look at {server}, at nfs.gate and at the path to it",
            shared=server,
        )
    gave_up = [x for x in lines if _of_server(x, host) == _GAVE_UP and x.last > ctx.now - _LATELY_S]
    if gave_up and silent is None:
        found.warn(
            f"kernel: nfs: server {host} {_GAVE_UP}, {sum(x.count for x in gave_up)} times within "
            "an hour: calls of a soft mount failed",
            expected="an answer to every call",
            fix=f"look at {server}, at nfs.gate and at the path to it; mount it hard (nfs.options)",
            shared=server,
        )
    _no_lease(ctx, found, server, host, lines)
    lately = [x for x in lines if _LOST.match(x.text) and x.last > ctx.now - _LATELY_S]
    lost = sum(line.count for line in lately)
    if lost:
        found.warn(
            f"kernel: {_RECLAIM}, {lost} times: files were locked here that no longer are",
            expected="locks kept over a restart of the server",
            fix="restart what locks files on this mount (a training job's dataset cache, a "
            "package manager)",
            shared=server,
        )


def _no_lease(ctx: Ctx, found: Findings, server: str, host: str, lines: list[KernelLine]) -> None:
    for line in lines:
        match = _STATE.match(line.text)
        if match is not None and match[1] == host and line.last > ctx.now - _LATELY_S:
            found.warn(
                f"kernel: {line.text[len(_MANAGER) - len('state manager: ') :][:100]}",
                expected="a lease that the server renews",
                fix=f"look at {server}: exports, Kerberos tickets, another client of this name "
                "(nfs4_unique_id)",
                shared=server,
            )
            return


def _of_server(line: KernelLine, host: str) -> str:
    """What the line says of this server; empty where it is about none, or another."""
    match = _SERVER.match(line.text)
    return match[2] if match is not None and match[1].rstrip(",:") == host else ""


def _silent_since(lines: list[KernelLine], host: str, known: float | None) -> float | None:
    """Since when the server has been silent; None where it answered last."""
    silent: list[float] = []
    answered = 0.0
    for line in lines:
        said = _of_server(line, host)
        if said == "OK":
            answered = max(answered, line.last)
        elif said and said != _GAVE_UP:
            silent += [*line.times, line.last]
    after = [at for at in silent if at > answered]
    if answered:
        known = None
    if known is not None:
        return known
    return min(after, default=None)


@check("nfs.options", tags={"preflight", "running"}, cohort=Status.WARN, untested=_UNTESTED)
def nfs_options(ctx: Ctx) -> Result:
    """Mount options and the client's settings are sound, and the same on all nodes.

    Soft mounts turn a slow server into errors in the middle of a file, nfs(5) warns; UDP loses data
    over fast links, nfs(5) too. One driver setting cost nine tenths of the throughput of a cluster
    (arXiv 2605.09370), so all of them are compared: the read-ahead of a mount is one that kernels
    since 5.4 set to 128 KiB, whatever rsize is.
    """
    network = table(ctx).network()
    if not network:
        raise Skip("no network file system is mounted")
    found = Findings()
    for mounted in network:
        _options(ctx, found, mounted)
    if any(m.fstype in NFS for m in network):
        for path in _DRIVER:
            if (value := ctx.maybe(path)) is not None:
                found.fact(_short(path), value)
    return found.result("; ".join(f"{m.point}: {m.fstype} {_summary(m)}".rstrip() for m in network))


def _options(ctx: Ctx, found: Findings, mounted: Mounted) -> None:
    point = mounted.point
    found.fact(f"{point} type", mounted.fstype)
    flags = set(mounted.options)
    for option in mounted.inner:
        name, equals, value = option.partition("=")
        if not equals:
            flags.add(option)
        elif name not in _OF_THIS_NODE:
            found.fact(f"{point} {name}", value)
    found.fact(f"{point} flags", ",".join(sorted(flags)))
    ahead = ctx.maybe(f"sys/class/bdi/{mounted.device}/read_ahead_kb")
    if ahead is not None:
        found.fact(f"{point} read_ahead_kb", ahead)
    if mounted.fstype not in NFS:
        return
    if {"soft", "softerr"} & set(mounted.inner):
        found.warn(
            f"{point} is a soft mount",
            expected="hard: a server that is slow or restarts delays a save, and does not break it",
            fix=f"mount {point} with hard, in /etc/fstab or the automount map",
        )
    if mounted.value("proto").startswith("udp"):
        found.warn(
            f"{point} is mounted over UDP",
            expected="proto=tcp or rdma: UDP corrupts data where packets are many (nfs(5))",
            fix=f"mount {point} with proto=tcp",
        )


def _short(path: str) -> str:
    return path.removeprefix("proc/sys/").removeprefix("sys/module/").replace("/parameters/", ".")


def _summary(mounted: Mounted) -> str:
    names = ("vers", "proto", "nconnect", "rsize", "wsize")
    values = [f"{n}={mounted.value(n)}" for n in names if mounted.value(n)]
    return ",".join([*values, *(o for o in ("hard", "soft") if o in mounted.inner)])
