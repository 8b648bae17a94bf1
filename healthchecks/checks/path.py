"""The largest packet on the way to peers and servers: the one hop with a smaller MTU is found."""

from __future__ import annotations

import re
from typing import Annotated

from healthchecks.frame.check import Blame, Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.mounts import NFS, table
from healthchecks.sources.nfs_tcp import tcp_segment
from supervisor.core.setting import About

_HEADERS = 40  # of IPv4 and TCP without options
_PEERS = About(
    doc="Nodes and servers by address or name; empty: the NFS servers of this node's mounts."
)


def peers_of(ctx: Ctx, *, peers: tuple[str, ...] = (), **_options: object) -> list[str]:
    """What is probed. Raises Skip where there is nothing."""
    if peers:
        return list(peers)
    addresses = {mounted.value("addr") for mounted in table(ctx).mounts if mounted.fstype in NFS}
    servers = {address for address in addresses if re.fullmatch(r"[\d.]+", address)}
    if not servers:
        raise Skip("no peers are given and no NFS server is mounted")
    if not ctx.live:
        raise Skip("files below a root have no network")
    return sorted(servers)


@check(
    "path.mtu",
    tags={"preflight"},
    resource="path",
    targets=peers_of,
    deadline_s=8.0,
    blame=Blame.SHARED,
    cohort=Status.FAIL,
    drains=False,
)
def path_mtu(
    ctx: Ctx,
    peer: str,
    *,
    peers: Annotated[tuple[str, ...], _PEERS] = (),
    least: Annotated[
        int, About(doc="Packet that must pass; 0: the interface's MTU.", unit="B")
    ] = 0,
    timeout_s: Annotated[float, About(doc="How long to wait for echoes.", unit="s")] = 0.2,
) -> Result:
    """Packets as large as the interface's MTU reach peers and storage servers unfragmented.

    Echoes with the don't-fragment bit (ping -M do, tracepath; RFC 1191). A switch or router with a
    smaller MTU on a jumbo path loses large packets only: RoCE and NFS hang, small requests work.
    A router that says so is named by its address; one that does not is a black hole between two
    sizes. The way there is measured; for the way back run it at the peer. An NFS server over TCP
    that itself takes no more (its MSS, RFC 9293) works, and is a WARN.
    """
    from healthchecks.probes.path_probe import Silent, route, walk

    ctx.announce(f"look up {peer}")
    to = route(peer)
    ctx.announce(f"ICMP echoes to {to.peer}")
    try:
        path = walk(to, timeout_s)
    except Silent as silent:
        if peers:
            raise Unknown(str(silent)) from None
        raise Skip(f"{silent}; to insist on it, give it as a peer") from None
    found = Findings()
    found.fact("interface_mtu", to.mtu)
    found.metric("mtu", path.passes, "B")
    found.metric("rtt", path.rtt_s, "s")
    wanted = least or min(to.mtu, 65535)
    if path.passes < wanted and (segment := _fits(ctx, to.peer, path.passes)):
        found.warn(
            f"{path.passes} bytes pass to {to.peer}, {to.interface} has MTU {to.mtu}; NFS over TCP "
            f"keeps to that (segments of {segment})",
            expected=f"{wanted} bytes pass",
            fix=f"raise the MTU of {to.peer} and of the switches between; where it is meant so, "
            f"set `least: {path.passes}`",
            device=to.interface,
            shared=table(ctx).server_name(to.peer),
        )
    elif path.passes < wanted:
        at = [f"{hop} says fragmentation is needed: its MTU is {m}" for hop, m in path.hops.items()]
        why = (
            "; ".join(at) or f"a black hole: {path.passes + 1} bytes vanish and no router says why"
        )
        hops = ", ".join(path.hops)
        found.fail(
            f"{path.passes} bytes pass to {to.peer}, {to.interface} has MTU {to.mtu}; {why}",
            expected=f"{wanted} bytes pass",
            fix=f"raise the MTU at {hops or 'the switches between'} to {wanted} or more, or lower "
            f"{to.interface}'s to {path.passes} on all nodes",
            device=to.interface,
            shared=f"hop {hops}" if hops else f"path to {to.peer}",
        )
    return found.result(f"{path.passes} bytes pass to {to.peer} through {to.interface}")


def _fits(ctx: Ctx, peer: str, passes: int) -> int | None:
    """How large segments to an NFS server are, where all its mounts are over TCP and these pass."""
    mounts = [m for m in table(ctx).mounts if m.fstype in NFS and m.value("addr") == peer]
    servers = [m.server for m in mounts if m.server is not None]
    if not servers or not all(server.tcp for server in servers):
        return None
    ctx.announce(f"connect to {servers[0].endpoint}")
    segment = tcp_segment(peer, servers[0].port, 1.0)
    return segment if segment is not None and segment + _HEADERS <= passes else None
