"""Network mounts: is each one there, and does its server accept connections? Touches no mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.mounts import (
    NFS_PORT,
    ExpectedMount,
    Mounted,
    Table,
    endpoint_of,
    host_of,
    parse_fstab,
    table,
    tidy,
)
from healthchecks.sources.nfs_tcp import can_connect, refusal, resolved, tcp_connect
from supervisor.core.setting import About

_NO_MOUNT = "no network file system is mounted"


@check("nfs.mounted", tags={"preflight", "prolog", "running"})
def nfs_mounted(
    ctx: Ctx,
    *,
    mounts: Annotated[
        tuple[ExpectedMount, ...],
        About(
            doc="What must be mounted, as [{path: /shared, source: '10.0.0.5:/export', fstype: "
            "nfs4, options: [rw, hard]}]; only path is needed. The network mounts of /etc/fstab "
            "where empty.",
        ),
    ] = (),
) -> Result:
    """The network mounts are there: source, type, options, writable, not hidden by another.

    As mej/nhc check_fs_mount and facebookresearch/gcm check_mountpoint; read from
    /proc/self/mountinfo, so that a dead server can't hang it.
    """
    seen = table(ctx)
    wanted: Sequence[ExpectedMount] = mounts
    if not wanted:
        wanted = parse_fstab(ctx.maybe("etc/fstab") or "")
    if not wanted:
        raise Skip(f"no mounts are configured, and /etc/fstab has no network mount ({_NO_MOUNT})")
    found = Findings()
    on_demand = []
    for want in (replace(w, path=tidy(w.path)) for w in wanted):
        there = seen.at(want.path)
        if there is None or there.fstype == "autofs":
            if _waits_for_use(seen, want.path):
                on_demand.append(want.path)
            else:
                _absent(found, seen, want)
        else:
            _judge(found, seen, want, there)
    found.metric("mounts", len(wanted) - len(on_demand))
    later = f"; {', '.join(on_demand)}: mounted by autofs when used" if on_demand else ""
    return found.result(f"{len(wanted) - len(on_demand)} mounts as they should be{later}")


def _waits_for_use(seen: Table, path: str) -> bool:
    under = seen.under(path)
    return under is not None and under.fstype == "autofs"


def _absent(found: Findings, seen: Table, want: ExpectedMount) -> None:
    """Nothing that a path leads to is mounted there."""
    from_where = want.source or "a file system"
    hidden = [m for m in seen.stacked(want.path) if m.fstype != "autofs"]
    if hidden and (over := seen.under(want.path)) is not None:
        found.fail(
            f"{hidden[-1].source} is mounted but hidden: {over.source} ({over.fstype}) was mounted "
            f"over {over.point} later",
            expected=f"{from_where} seen on {want.path}",
            fix=f"umount {over.point}, if nobody needs what is mounted over it",
            device=want.path,
        )
        return
    found.fail(
        "not mounted",
        expected=f"{from_where} mounted there",
        fix=f"mount {want.path}; where that hangs or fails, look at nfs.gate, and at the server's "
        "exports (showmount -e)",
        device=want.path,
        shared=seen.shared(want),
    )


def _judge(found: Findings, seen: Table, want: ExpectedMount, there: Mounted) -> None:
    """What is mounted there against what should be."""

    def wrong(what: str, expected: str, fix: str = "") -> None:
        fix = fix or f"umount {want.path}, fix /etc/fstab or the automount map, mount {want.path}"
        found.fail(what, expected=expected, fix=fix, device=want.path)

    source = want.source.rstrip("/") or want.source
    below = [m for m in seen.stacked(want.path) if m is not there and m.fstype != "autofs"]
    if source and there.source.rstrip("/") != source:
        if any(m.source.rstrip("/") == source for m in below):
            wrong(
                f"{source} is mounted but hidden: {there.source} ({there.fstype}) was mounted over "
                "it later",
                f"{source} seen on {want.path}",
                f"umount {want.path} once, if nobody needs what is mounted over it",
            )
            return
        wrong(f"{there.source} is mounted", f"{source} mounted on {want.path}")
    types = ("nfs", "nfs4") if want.fstype == "nfs" else (want.fstype,)
    if want.fstype and there.fstype not in types:
        wrong(f"it is {there.fstype}", f"{want.fstype} on {want.path}")
    in_force = there.in_force
    options = [f"vers={o.partition('=')[2]}" if "nfsvers=" in o else o for o in want.options]
    lacking = [option for option in options if option not in in_force]
    if "rw" in lacking:
        lacking.remove("rw")
        wrong(
            "read-only",
            f"{want.path} writable",
            f"look why (export, kernel log), then mount -o remount,rw {want.path}",
        )
    if lacking:
        actual = ", ".join(_actual(there, option) for option in lacking)
        wrong(f"{actual}", f"{', '.join(lacking)} in force on {want.path}")
    if any(m.source == there.source for m in below):
        found.warn(
            f"mounted {len(below) + 1} times, one over the other",
            expected="mounted once",
            fix=f"umount {want.path} {len(below)} times, when nobody uses it",
            device=want.path,
        )


def _actual(there: Mounted, option: str) -> str:
    """What stands where an option should."""
    name, equals, _ = option.partition("=")
    if equals:
        return f"{name}={there.value(name)}" if there.value(name) else f"no {name}"
    opposite = {"hard": "soft", "ro": "rw", "soft": "hard"}.get(option, "")
    return opposite if opposite in there.in_force else f"no {option}"


def gate_targets(ctx: Ctx, *, servers: tuple[str, ...] = (), **_options: object) -> list[str]:
    """Where to connect to, as host:port: of mounts, of fstab's that are not mounted, configured."""
    seen = table(ctx)
    targets: dict[str, None] = {}
    for mounted in seen.network():
        server = mounted.server
        if server is not None and server.tcp and server.addr and can_connect(ctx, server.addr):
            targets[server.endpoint] = None
    for want in parse_fstab(ctx.maybe("etc/fstab") or ""):
        host = host_of(want.source) if want.fstype in ("nfs", "nfs4") else ""
        if host and not seen.stacked(want.path) and can_connect(ctx, host):
            targets[endpoint_of(host, NFS_PORT)] = None
    targets |= dict.fromkeys(endpoint_of(*_address(server)) for server in servers)
    if not targets:
        raise Skip("no NFS mount over TCP whose server's address is known (addr=)")
    return list(targets)


def _address(target: str) -> tuple[str, int]:
    """Of host, host:port and [fd00::1]:port. Raises Unknown."""
    host, port = target, ""
    if target.startswith("["):
        host, _, port = target[1:].partition("]")
        port = port.removeprefix(":")
    elif target.count(":") == 1:
        host, _, port = target.partition(":")
    if port and not port.isdecimal():
        raise Unknown(f"{target} is no HOST, HOST:PORT or [ADDRESS]:PORT")
    return host, int(port or NFS_PORT)


@check(
    "nfs.gate",
    tags={"preflight", "prolog", "running"},
    resource="nfs server",
    targets=gate_targets,
)
def nfs_gate(
    ctx: Ctx,
    target: str,
    *,
    servers: Annotated[
        tuple[str, ...],
        About(doc="Servers to try besides those of the mounts, as 10.0.0.5 or 10.0.0.5:20049."),
    ] = (),
    timeout_s: Annotated[float, About(doc="To wait for a connection.", unit="s")] = 2.0,
    slow_ms: Annotated[float, About(doc="A connection to warn at.", unit="ms")] = 500.0,
) -> Result:
    """The NFS servers accept connections.

    Connects to addr= of each mount over TCP before anybody touches the mount (oshi/oshi#3410): a
    dead server is named without a process that hangs. RDMA has no such test. A lost first packet
    costs 1 s (RFC 6298), so that a connection of 0.5 s is no healthy path.
    """
    host, port = _address(target)
    name = table(ctx).server_name(host)
    found = Findings()
    ctx.announce(f"connect to {target} ({name})")
    address = resolved(host)
    if address is None:
        raise Unknown(f"{host} has no address; look at DNS and /etc/hosts")
    took, error = tcp_connect(address, port, timeout_s)
    if error in (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL):
        found.fail(
            f"{target}: no way from this node ({os.strerror(error)})",
            expected="a route to the NFS server",
            fix=f"ip route get {address}; is the storage network's interface up?",
        )
    elif error:
        found.fail(
            f"{target}: {refusal(error, timeout_s)}",
            expected=f"a connection within {timeout_s:g} s",
            fix=f"is {host} up, its NFS service running, port {port} open in firewalls?",
            shared=name,
        )
    else:
        found.metric("connect", took, "s")
        if took * 1000 >= slow_ms:
            found.warn(
                f"{target}: connected after {took * 1000:.0f} ms",
                expected=f"less than {slow_ms:g} ms",
                fix=f"packets are lost on the way, or {host} is overloaded: ping it, look at links",
                shared=name,
            )
    return found.result(f"{target} accepts connections, in {took * 1000:.1f} ms")
