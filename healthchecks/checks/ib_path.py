"""The MTU of every link on the way to an InfiniBand peer, as the subnet knows it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import Annotated

from healthchecks.frame.check import Blame, Findings, Result, Skip, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.ports import Port, traffic_ports
from supervisor.core.setting import About

_TOOLS = ("saquery", "ibtracert", "smpquery")
_PEERS = About(doc="LIDs of peers' ports, as 261 or 0x105; mlx5_3:0x105 goes out of that device.")
_MTU = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}  # IBTA, PathRecord:MTU, below a 2 bit selector
_FROM = re.compile(r'^From \S+ \{\S+\} portnum (\d+) lid (\d+)-\d+(?: "(.*)")?')
_HOP = re.compile(r'^\[(\d+)\] -> \S+ port \{\S+\}\[(\d+)\] lid (\d+)-\d+(?: "(.*)")?')


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A port at one end of a link."""

    node: str
    lid: int
    port: int

    def __str__(self) -> str:
        return f"{self.node} port {self.port}"


def peers_of(ctx: Ctx, *, peers: tuple[str, ...] = (), **_options: object) -> list[str]:
    if not peers:
        raise Skip("no peers are given")
    return list(peers)


@check(
    "ib.path_mtu",
    tags={"deep"},
    resource="subnet",
    targets=peers_of,
    deadline_s=30.0,
    blame=Blame.SHARED,
    drains=False,
    untested="written against the texts of infiniband-diags (its source); no fabric was available.",
)
def ib_path_mtu(
    ctx: Ctx,
    peer: str,
    *,
    peers: Annotated[tuple[str, ...], _PEERS] = (),
    expected: Annotated[int, About(doc="MTU of every link; 0: the best on the way.", unit="B")] = 0,
) -> Result:
    """Every link on the way to an InfiniBand peer has the same MTU; the smaller one is named.

    The route is ibtracert's, each link's MTU the NeighborMTU of both its ends (smpquery portinfo),
    and what applications are given the subnet manager's PathRecord (saquery). NCCL connects with
    the smaller of two ports' MTUs, and knows nothing of the links between (NVIDIA/nccl#1524).
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise Skip(f"{', '.join(missing)} (infiniband-diags) not installed")
    port, lid = _ends(ctx, peer)
    own = ctx.number(f"{port.at}/lid")
    links = trace(_run(ctx, port, "ibtracert", str(own), str(lid)))
    mtus = [min(_neighbour_mtu(ctx, port, end) for end in link) for link in links]
    given = path_record_mtu(_run(ctx, port, "saquery", "--src-to-dst", f"{own}:{lid}"))
    best = expected or max([given, *mtus])
    found = Findings()
    found.metric("mtu", min([given, *mtus]), "B")
    found.metric("links", len(links))
    for (left, right), mtu in zip(links, mtus, strict=True):
        if mtu < best:
            found.fail(
                f"link from {left} to {right} has MTU {mtu}, on the way from {port.name} to LID "
                f"{lid}",
                expected=f"{best} on every link",
                fix="set that switch port's MTU; let the subnet manager sweep again",
                device=port.name,
                shared=f"link {left} - {right}",
            )
    if given < best and given < min(mtus):
        found.fail(
            f"the subnet manager gives paths to LID {lid} an MTU of {given}, every link has "
            f"{min(mtus)} or more",
            expected=f"{best}",
            fix="set mtu=5 for the partition in the subnet manager's partitions.conf",
            device=port.name,
            shared="subnet manager",
        )
    return found.result(f"MTU {best} over {len(links)} links from {port.name} to LID {lid}")


def _ends(ctx: Ctx, peer: str) -> tuple[Port, int]:
    """This node's port and the peer's LID. Raises Skip, Unknown."""
    device, _, text = peer.rpartition(":")
    ports = traffic_ports(ctx, layer="InfiniBand")
    port = next((p for p in ports if device in ("", p.device)), None)
    if port is None:
        raise Unknown(f"peer {peer}: this node has no InfiniBand device {device}")
    try:
        return port, int(text, 0)
    except ValueError:
        raise Unknown(f"peer {peer}: {text!r} is no LID such as 261 or 0x105") from None


def _run(ctx: Ctx, port: Port, tool: str, *words: str) -> str:
    """What it prints. Raises Unknown where it fails."""
    done = ctx.command(tool, "-C", port.device, "-P", str(port.number), *words, deadline_s=10.0)
    if done.rc:
        raise Unknown(done.why())
    return done.out


def _neighbour_mtu(ctx: Ctx, port: Port, end: End) -> int:
    text = _run(ctx, port, "smpquery", "portinfo", str(end.lid), str(end.port))
    found = re.search(r"^NeighborMTU:\.*(\d+)\s*$", text, re.MULTILINE)
    if found is None:
        raise Unknown(f"smpquery portinfo {end.lid} {end.port} shows no NeighborMTU")
    return int(found[1])


def trace(text: str) -> list[tuple[End, End]]:
    """The links of ibtracert's text, in order. Raises Unknown for a text without a route."""
    links: list[tuple[End, End]] = []
    node, lid, complete = "", 0, False
    for line in text.splitlines():
        if start := _FROM.match(line):
            lid, node = int(start[2]), start[3] or f"LID {start[2]}"
        elif node and (hop := _HOP.match(line)):
            name = hop[4] or f"LID {hop[3]}"
            left = End(node=node, lid=lid, port=int(hop[1]))
            links.append((left, End(node=name, lid=int(hop[3]), port=int(hop[2]))))
            node, lid = name, int(hop[3])
        elif line.startswith("To "):
            complete = True
    if not links or not complete:
        raise Unknown(f"ibtracert shows no route: {(text.strip().splitlines() or ['no text'])[-1]}")
    return links


def path_record_mtu(text: str) -> int:
    """The smallest MTU of saquery's path records. Raises Unknown where it shows none."""
    codes = [int(code, 16) & 0x3F for code in re.findall(r"^\s*mtu\.+(0x[0-9A-Fa-f]+)", text, re.M)]
    if not codes or any(code not in _MTU for code in codes):
        raise Unknown(f"saquery shows no path: {(text.strip().splitlines() or ['no text'])[-1]}")
    return min(_MTU[code] for code in codes)
