"""Which NICs and interfaces NCCL takes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclconf.facts import ETHERNET, IB, Hca, Interface
from ncclconf.lint import Hit, Severity, Subject, example, rule

LISTS = ("NCCL_SOCKET_IFNAME", "NCCL_IB_HCA", "NCCL_OOB_NET_IFNAME", "NCCL_ALGO", "NCCL_PROTO")
MAX_HCAS = 32  # MAX_IB_DEVS of NVIDIA/nccl src/transport/net_ib
RAILS = tuple(Hca(device=f"mlx5_{n}") for n in range(4))
TWENTY = tuple(Hca(device=f"mlx5_{n}") for n in range(20))
MIXED = (*RAILS, Hca(device="mlx5_8", link_layer=ETHERNET, role="storage", rate_gb=200))
ROCE = tuple(Hca(device=f"mlx5_{n}", link_layer=ETHERNET, gids=(3,)) for n in range(4))
DOWN = (*RAILS[:3], Hca(device="mlx5_3", active=False))
ETH = (Interface(name="eno1"), Interface(name="docker0", routed=False), Interface(name="ib0"))


def matching(text: str, names: list[str]) -> list[list[str]]:
    """For each entry of such a list the names that it takes, however the list is marked."""
    body = text.lstrip("^")
    exact = body.startswith("=")
    found = []
    for entry in body.removeprefix("=").split(","):
        wanted = entry.split(":")[0]
        found.append([n for n in names if (n == wanted if exact else n.startswith(wanted))])
    return found


@rule(
    "mark-not-first",
    Severity.ERROR,
    why="^ and = are marks at the beginning of a list only (^= in this order); elsewhere they are "
    "part of a name that no device has",
    fix="move it to the front of the whole list",
    source="NVIDIA/nccl src/misc/utils.cc: parseStringList",
    wrong=[
        example(NCCL_SOCKET_IFNAME="eth0,^docker0"),
        example(NCCL_IB_HCA="mlx5_0,=mlx5_1"),
        example(NCCL_IB_HCA="=^mlx5_0"),
    ],
    right=[
        example(NCCL_SOCKET_IFNAME="^docker0,lo"),
        example(NCCL_IB_HCA="^=mlx5_8"),
        example(NCCL_IB_HCA="=mlx5_0,mlx5_1"),
    ],
)
def mark_not_first(s: Subject) -> Iterator[Hit]:
    for name in LISTS[:3]:
        text = s.text(name) or ""
        if re.search(r"[\^=]", re.sub(r"^\^?=?", "", text)):
            yield Hit(names=(name,), seen=f"{name}={text}")


@rule(
    "hca-prefix",
    Severity.WARNING,
    why="without = an entry is the beginning of a name: mlx5_1 also takes mlx5_10 to mlx5_19",
    fix="write = before the list: NCCL_IB_HCA==mlx5_0,mlx5_1",
    source="NCCL user guide, NCCL_IB_HCA",
    wrong=[example({"hcas": TWENTY}, NCCL_IB_HCA="mlx5_0,mlx5_1")],
    right=[
        example({"hcas": TWENTY}, NCCL_IB_HCA="=mlx5_0,mlx5_1"),
        example({"hcas": TWENTY}, NCCL_IB_HCA="mlx5"),
        example({"hcas": RAILS}, NCCL_IB_HCA="mlx5_0,mlx5_1"),
    ],
)
def hca_prefix(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_IB_HCA") or ""
    devices = [h.device for h in s.facts.hcas or ()]
    for entry, taken in zip(
        text.lstrip("^").removeprefix("=").split(","), matching(text, devices), strict=True
    ):
        name = entry.split(":")[0]
        if name in taken and len(taken) > 1:
            more = ", ".join(t for t in taken if t != name)
            yield Hit(names=("NCCL_IB_HCA",), seen=f"{name} also takes {more}")


@rule(
    "hca-lost",
    Severity.ERROR,
    why="what a list names and the node has not is left out without a word: the node runs with "
    "fewer NICs, or over TCP",
    fix="name the node's active fabric devices; `superv nccl detect` lists them",
    source="NVIDIA/nccl src/transport/net_ib",
    wrong=[
        example({"hcas": RAILS}, NCCL_IB_HCA="=mlx5_0,mlx5_9"),
        example({"hcas": DOWN}, NCCL_IB_HCA="=mlx5_0,mlx5_3"),
        example({"hcas": RAILS}, NCCL_IB_HCA="=mlx5_0:"),
        example({"hcas": RAILS}, NCCL_IB_HCA="=mlx5_0:2"),
        example(NCCL_IB_HCA=",".join(f"mlx5_{n}" for n in range(40))),
    ],
    right=[
        example({"hcas": RAILS}, NCCL_IB_HCA="=mlx5_0,mlx5_3:1"),
        example({"hcas": RAILS}, NCCL_IB_HCA="mlx5"),
        example({"hcas": RAILS}, NCCL_IB_HCA="^mlx5_8"),
        example(NCCL_IB_HCA="=mlx5_0,mlx5_9"),
    ],
)
def hca_lost(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_IB_HCA") or ""
    if not text or text.startswith("^"):
        return
    entries = text.removeprefix("=").split(",")
    if len(entries) > MAX_HCAS:
        seen = f"{len(entries)} devices, and NCCL takes {MAX_HCAS}"
        yield Hit(names=("NCCL_IB_HCA",), seen=seen)
    if s.facts.hcas is None:
        return
    exact = text.startswith("=")
    for entry in entries:
        name, colon, port = entry.partition(":")
        wanted = port.split(":")[0]
        if colon and not wanted:
            yield Hit(names=("NCCL_IB_HCA",), seen=f"{entry!r} ends with a colon and names no port")
            continue
        there = [
            h
            for h in s.facts.hcas
            if (h.device == name if exact else h.device.startswith(name))
            and (not wanted.isdigit() or h.port == int(wanted))
        ]
        if not there:
            yield Hit(names=("NCCL_IB_HCA",), seen=f"the node has no {entry}")
        elif not any(h.active for h in there):
            yield Hit(names=("NCCL_IB_HCA",), seen=f"{entry} is not active")


@rule(
    "hca-rail-fields",
    Severity.ERROR,
    why="rail and plane behind a port came with 2.30.5: before, such an entry names nothing",
    fix="leave them out, or use 2.30.5",
    source="NVIDIA/nccl src/transport/net_ib; NCCL user guide, NCCL_IB_HCA",
    wrong=[example({"nccl": (2, 28, 3)}, NCCL_IB_HCA="=mlx5_0:1:0:0")],
    right=[
        example({"nccl": (2, 30, 7)}, NCCL_IB_HCA="=mlx5_0:1:0:0"),
        example({"nccl": (2, 28, 3)}, NCCL_IB_HCA="=mlx5_0:1"),
    ],
)
def hca_rail_fields(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_IB_HCA") or ""
    if s.before((2, 30, 5)) and any(entry.count(":") > 1 for entry in text.split(",")):
        yield Hit(names=("NCCL_IB_HCA",), seen=f"NCCL_IB_HCA={text}")


@rule(
    "interface-lost",
    Severity.ERROR,
    why="ranks that find no interface fail as they meet, on this node only and in obscure words",
    fix="name an interface that every node has; `superv nccl detect` lists them",
    source="NVIDIA/nccl#1837, #286; src/misc/socket.cc (names of 2 to 16 characters)",
    wrong=[
        example({"interfaces": ETH}, NCCL_SOCKET_IFNAME="=ens5"),
        example({"interfaces": ETH}, NCCL_SOCKET_IFNAME="bond"),
        example({"interfaces": (Interface(name="eno1", up=False),)}, NCCL_SOCKET_IFNAME="eno1"),
        example(NCCL_SOCKET_IFNAME="e"),
        example(NCCL_SOCKET_IFNAME="=averyverylongname0"),
        example({"interfaces": ETH}, GLOO_SOCKET_IFNAME="en"),
    ],
    right=[
        example({"interfaces": ETH}, NCCL_SOCKET_IFNAME="=eno1"),
        example({"interfaces": ETH}, NCCL_SOCKET_IFNAME="en,bond"),
        example({"interfaces": ETH}, NCCL_SOCKET_IFNAME="^docker,lo"),
        example({"interfaces": ETH}, GLOO_SOCKET_IFNAME="eno1"),
    ],
)
def interface_lost(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        text = s.text(name) or ""
        if not text or text.startswith("^"):
            continue
        if name != "NCCL_SOCKET_IFNAME" and not text.startswith("="):
            text = f"={text}"  # they take whole names
        entries = [entry.split(":")[0] for entry in text.removeprefix("=").split(",")]
        odd = [e for e in entries if not 2 <= len(e) <= 16]
        if odd:
            yield Hit(names=(name,), seen=f"{odd[0]!r} is no name of 2 to 16 characters")
            continue
        if s.facts.interfaces is None:
            continue
        taken = {n for group in matching(text, [i.name for i in s.facts.interfaces]) for n in group}
        there = [i for i in s.facts.interfaces if i.name in taken]
        shown = text if name == "NCCL_SOCKET_IFNAME" else text[1:]
        if not there:
            yield Hit(names=(name,), seen=f"the node has no interface {shown}")
        elif not any(i.up for i in there):
            yield Hit(names=(name,), seen=f"{', '.join(i.name for i in there)} is down")


@rule(
    "interface-not-routed",
    Severity.ERROR,
    why="other nodes can't reach it: ranks wait for each other, then time out",
    fix="name the management interface: NCCL_SOCKET_IFNAME==eno1",
    source="NVIDIA/nccl#913",
    wrong=[example({"interfaces": ETH, "nodes": 2}, NCCL_SOCKET_IFNAME="docker0")],
    right=[
        example({"interfaces": ETH, "nodes": 2}, NCCL_SOCKET_IFNAME="eno1"),
        example({"interfaces": ETH, "nodes": 1}, NCCL_SOCKET_IFNAME="docker0"),
    ],
)
def interface_not_routed(s: Subject) -> Iterator[Hit]:
    text = s.text("NCCL_SOCKET_IFNAME") or ""
    if not text or text.startswith("^") or s.facts.nodes == 1:
        return
    taken = {n for g in matching(text, [i.name for i in s.facts.interfaces or ()]) for n in g}
    there = [i for i in s.facts.interfaces or () if i.name in taken]
    if there and not any(i.routed for i in there):
        seen = f"{', '.join(i.name for i in there)} has no address that leaves the node"
        yield Hit(names=("NCCL_SOCKET_IFNAME",), seen=seen)


@rule(
    "interface-unset",
    Severity.WARNING,
    why="NCCL takes the first interface it finds; a bridge of containers may come first",
    fix="name the management interface: NCCL_SOCKET_IFNAME==eno1",
    source="NVIDIA/nccl#913; src/misc/socket.cc",
    wrong=[example({"interfaces": ETH, "nodes": 2})],
    right=[
        example({"interfaces": ETH, "nodes": 2}, NCCL_SOCKET_IFNAME="=eno1"),
        example({"interfaces": ETH, "nodes": 1}),
        example({"interfaces": (Interface(name="eno1"), Interface(name="ib0")), "nodes": 2}),
        example({"nodes": 2}),
    ],
)
def interface_unset(s: Subject) -> Iterator[Hit]:
    if s.setting("NCCL_SOCKET_IFNAME") or (s.facts.nodes or 1) < 2:
        return
    odd = [i.name for i in s.facts.interfaces or () if i.up and not i.routed]
    if odd:
        seen = f"NCCL_SOCKET_IFNAME is not set, and {', '.join(odd)} leads nowhere"
        yield Hit(names=("NCCL_SOCKET_IFNAME",), seen=seen)


@rule(
    "fabrics-mixed",
    Severity.ERROR,
    why="NCCL takes InfiniBand and Ethernet ports alike: peers then meet with devices that can't "
    "talk, or the job crawls over the storage network",
    fix="name the fabric's devices: NCCL_IB_HCA==mlx5_0,mlx5_1,…",
    source="NVIDIA/nccl src/transport/net_ib; NVIDIA/nccl#1412, #1591, #366",
    wrong=[
        example({"hcas": MIXED, "nodes": 2}),
        example({"hcas": MIXED, "nodes": 2}, NCCL_IB_HCA="mlx5"),
    ],
    right=[
        example({"hcas": MIXED, "nodes": 2}, NCCL_IB_HCA="=mlx5_0,mlx5_1,mlx5_2,mlx5_3"),
        example({"hcas": MIXED, "nodes": 2}, NCCL_IB_HCA="^mlx5_8"),
        example({"hcas": RAILS, "nodes": 2}),
        example({"hcas": MIXED, "nodes": 1}),
        example({"hcas": MIXED, "nodes": 2}, NCCL_IB_DISABLE="1"),
    ],
)
def fabrics_mixed(s: Subject) -> Iterator[Hit]:
    if (s.facts.nodes or 1) < 2 or s.number("NCCL_IB_DISABLE") == 1 or not s.facts.hcas:
        return
    active = [h for h in s.facts.hcas if h.active and h.role != "lpf"]
    text = s.text("NCCL_IB_HCA") or ""
    taken = {n for g in matching(text, [h.device for h in active]) for n in g} if text else set()
    if text.startswith("^"):
        used = [h for h in active if h.device not in taken]
    else:
        used = [h for h in active if not text or h.device in taken]
    if len({h.link_layer for h in used}) > 1:
        ethernet = ", ".join(h.device for h in used if h.link_layer != IB)
        seen = (
            f"{ethernet} is Ethernet beside {len(used) - ethernet.count(',') - 1} InfiniBand ports"
        )
        yield Hit(names=("NCCL_IB_HCA",), seen=seen)


@rule(
    "network-contradiction",
    Severity.ERROR,
    why="these settings cannot both be meant",
    fix="keep the one that is meant",
    source="NVIDIA/nccl src/plugin/net.cc, src/transport/net_ib",
    wrong=[
        example(NCCL_NET="IB", NCCL_IB_DISABLE="1"),
        example(NCCL_IB_HCA="=mlx5_0", NCCL_IB_DISABLE="1"),
        example(NCCL_NET="Socket", NCCL_IB_HCA="=mlx5_0"),
    ],
    right=[
        example(NCCL_NET="IB", NCCL_IB_DISABLE="0", NCCL_IB_HCA="=mlx5_0"),
        example(NCCL_NET="Socket"),
    ],
)
def network_contradiction(s: Subject) -> Iterator[Hit]:
    net = (s.text("NCCL_NET") or "").lower()
    off = s.number("NCCL_IB_DISABLE") == 1
    if net == "ib" and off:
        yield Hit(names=("NCCL_NET", "NCCL_IB_DISABLE"), seen="NCCL_NET=IB and NCCL_IB_DISABLE=1")
    elif s.setting("NCCL_IB_HCA") and (off or net == "socket"):
        other = "NCCL_IB_DISABLE" if off else "NCCL_NET"
        seen = f"NCCL_IB_HCA names devices, {other}={s.text(other)} uses none"
        yield Hit(names=(other, "NCCL_IB_HCA"), seen=seen)


@rule(
    "fabric-unused",
    Severity.WARNING,
    why="the job goes over TCP though the node has a fabric: ten times slower and more",
    fix="remove it; NCCL_NET=IB makes a missing fabric an error",
    source="NVIDIA/nccl src/transport/net_ib",
    wrong=[
        example({"hcas": RAILS, "nodes": 2}, NCCL_IB_DISABLE="1"),
        example({"hcas": RAILS, "nodes": 2}, NCCL_NET="Socket"),
    ],
    right=[
        example({"hcas": (), "nodes": 2}, NCCL_NET="Socket"),
        example({"hcas": RAILS, "nodes": 1}, NCCL_IB_DISABLE="1"),
        example({"hcas": RAILS, "nodes": 2}, NCCL_NET="IB"),
    ],
)
def fabric_unused(s: Subject) -> Iterator[Hit]:
    if (s.facts.nodes or 1) < 2 or not s.facts.fabric():
        return
    if s.number("NCCL_IB_DISABLE") == 1:
        yield Hit(names=("NCCL_IB_DISABLE",), seen="NCCL_IB_DISABLE=1")
    elif (s.text("NCCL_NET") or "").lower() == "socket":
        yield Hit(names=("NCCL_NET",), seen=f"NCCL_NET={s.text('NCCL_NET')}")


@rule(
    "gid-index",
    Severity.WARNING,
    why="NCCL finds the GID itself since 2.21; a number that is right on one node is another GID "
    "on the next, and on InfiniBand it has no effect",
    fix="leave NCCL_IB_GID_INDEX unset",
    source="NCCL user guide, NCCL_IB_GID_INDEX; NVIDIA/nccl#769, #426",
    wrong=[
        example({"nccl": (2, 28, 3), "hcas": ROCE}, NCCL_IB_GID_INDEX="3"),
        example({"hcas": ROCE}, NCCL_IB_GID_INDEX="0"),
        example({"hcas": RAILS}, NCCL_IB_GID_INDEX="3"),
    ],
    right=[
        example({"nccl": (2, 20, 5), "hcas": ROCE}, NCCL_IB_GID_INDEX="3"),
        example({"hcas": ROCE}, NCCL_IB_GID_INDEX="-1"),
    ],
)
def gid_index(s: Subject) -> Iterator[Hit]:
    index = s.number("NCCL_IB_GID_INDEX")
    if index is None or index < 0:
        return
    name, seen = ("NCCL_IB_GID_INDEX",), f"NCCL_IB_GID_INDEX={index}"
    without = [h.device for h in s.facts.fabric() if h.gids is not None and index not in h.gids]
    if s.facts.only_infiniband:
        yield Hit(names=name, seen=f"{seen} has no effect on InfiniBand", severity=Severity.ADVICE)
    elif without:
        more = f"{seen} is no RoCE v2 GID with an address on {', '.join(without)}"
        yield Hit(names=name, seen=more, severity=Severity.ERROR)
    elif s.since((2, 21)):
        yield Hit(names=name, seen=seen)


@rule(
    "traffic-class-on-infiniband",
    Severity.WARNING,
    why="traffic classes count on Ethernet only",
    fix="NCCL_IB_SL is InfiniBand's; which one is the fabric's to say",
    source="NVIDIA/nccl src/transport/net_ib/connect.cc",
    wrong=[example({"hcas": RAILS}, NCCL_IB_TC="106")],
    right=[example({"hcas": ROCE}, NCCL_IB_TC="106"), example({"hcas": RAILS}, NCCL_IB_SL="1")],
)
def traffic_class_on_infiniband(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_IB_TC", "NCCL_IB_FIFO_TC"):
        if (s.number(name) or 0) > 0 and s.facts.only_infiniband:
            yield Hit(names=(name,), seen=f"{name}={s.text(name)} on InfiniBand")


@rule(
    "mtu-differs",
    Severity.ERROR,
    why="from 2.20 to 2.28 the receiver takes the sender's MTU as it is: connections fail with "
    "EINVAL or hang where two ports differ",
    fix="give all ports one active MTU, or use 2.29",
    source="NVIDIA/nccl#1524 and its pull request 2135",
    wrong=[
        example(
            {"nccl": (2, 28, 3), "hcas": (Hca(device="a", mtu=4096), Hca(device="b", mtu=2048))}
        )
    ],
    right=[
        example(
            {"nccl": (2, 29, 7), "hcas": (Hca(device="a", mtu=4096), Hca(device="b", mtu=2048))}
        ),
        example(
            {"nccl": (2, 28, 3), "hcas": (Hca(device="a", mtu=4096), Hca(device="b", mtu=4096))}
        ),
    ],
)
def mtu_differs(s: Subject) -> Iterator[Hit]:
    mtus = {h.mtu: h.device for h in s.facts.fabric() if h.mtu}
    if len(mtus) > 1 and s.between((2, 20), (2, 29)):
        shown = ", ".join(f"{device} {mtu}" for mtu, device in sorted(mtus.items()))
        yield Hit(names=(), seen=f"active MTUs differ: {shown}")


@rule(
    "roce-one-queue-pair",
    Severity.ADVICE,
    why="all packets of a connection take one path of the fabric where there is one queue pair",
    fix="try 2 to 8; NCCL_IB_SPLIT_DATA_ON_QPS says how they share",
    source="NCCL user guide, NCCL_IB_QPS_PER_CONNECTION; NVIDIA/nccl#1015",
    wrong=[
        example({"hcas": ROCE, "nodes": 8}),
        example({"hcas": ROCE, "nodes": 8}, NCCL_IB_QPS_PER_CONNECTION="1"),
    ],
    right=[
        example({"hcas": ROCE, "nodes": 8}, NCCL_IB_QPS_PER_CONNECTION="4"),
        example({"hcas": RAILS, "nodes": 8}),
        example({"hcas": ROCE, "nodes": 8}, NCCL_IB_ADAPTIVE_ROUTING="1"),
    ],
)
def roce_one_queue_pair(s: Subject) -> Iterator[Hit]:
    pairs = s.number("NCCL_IB_QPS_PER_CONNECTION") or 1
    routed = s.number("NCCL_IB_ADAPTIVE_ROUTING") == 1
    if s.facts.only_roce and (s.facts.nodes or 1) > 1 and pairs == 1 and not routed:
        yield Hit(names=("NCCL_IB_QPS_PER_CONNECTION",), seen="one queue pair a connection on RoCE")


@rule(
    "too-many-queue-pairs",
    Severity.ERROR,
    why="queue pairs times merged ports above 128 overrun a table that nothing checks",
    fix="128 at most, 64 with dual-port NICs that are merged",
    source="NVIDIA/nccl src/transport/net_ib: NCCL_IB_MAX_QPS",
    wrong=[
        example(NCCL_IB_QPS_PER_CONNECTION="256"),
        example(NCCL_IB_QPS_PER_CONNECTION="128", NCCL_IB_MERGE_NICS="1"),
    ],
    right=[
        example(NCCL_IB_QPS_PER_CONNECTION="4"),
        example(NCCL_IB_QPS_PER_CONNECTION="128", NCCL_IB_MERGE_NICS="0"),
    ],
)
def too_many_queue_pairs(s: Subject) -> Iterator[Hit]:
    pairs = s.number("NCCL_IB_QPS_PER_CONNECTION") or 1
    merged = 1 if s.number("NCCL_IB_MERGE_NICS") == 0 else 2  # two ports of a NIC are merged
    if pairs * merged > 128:
        seen = f"{pairs} queue pairs, on {merged} ports that may be merged"
        yield Hit(names=("NCCL_IB_QPS_PER_CONNECTION",), seen=seen)


@rule(
    "retry-for-ever",
    Severity.ERROR,
    why="0 and 32 upwards are no limit for a NIC: a dead peer is never reported",
    fix="20 to 23",
    source="InfiniBand specification, local ACK timeout (5 bits, 0 is infinite)",
    wrong=[example(NCCL_IB_TIMEOUT="0"), example(NCCL_IB_TIMEOUT="32")],
    right=[example(NCCL_IB_TIMEOUT="22")],
)
def retry_for_ever(s: Subject) -> Iterator[Hit]:
    timeout = s.number("NCCL_IB_TIMEOUT")
    if timeout is not None and (timeout <= 0 or timeout >= 32):
        yield Hit(names=("NCCL_IB_TIMEOUT",), seen=f"NCCL_IB_TIMEOUT={timeout}")


@rule(
    "retry-outlasts-timeout",
    Severity.WARNING,
    why="the NIC goes on trying until the process group has timed out: NCCL's own words on who is "
    "dead are never written",
    fix="4.096 µs x 2^NCCL_IB_TIMEOUT x NCCL_IB_RETRY_CNT well below the timeout of the process "
    "group (torch: 600 s)",
    source="InfiniBand specification, local ACK timeout; torch.distributed's default timeout",
    wrong=[
        example(NCCL_IB_TIMEOUT="25", NCCL_IB_RETRY_CNT="7"),
        example({"collective_timeout_s": 60.0}, NCCL_IB_TIMEOUT="22"),
    ],
    right=[
        example(NCCL_IB_TIMEOUT="22", NCCL_IB_RETRY_CNT="7"),
        example({"collective_timeout_s": 60.0}),
        example({"collective_timeout_s": 7200.0}, NCCL_IB_TIMEOUT="25"),
    ],
)
def retry_outlasts_timeout(s: Subject) -> Iterator[Hit]:
    exponent, times = s.number("NCCL_IB_TIMEOUT") or 20, s.number("NCCL_IB_RETRY_CNT")
    limit = s.facts.collective_timeout_s or 600.0
    if 0 < exponent < 32:
        lasts = 4.096e-6 * 2**exponent * (7 if times is None else times)
        if lasts >= limit:
            names = ("NCCL_IB_TIMEOUT", "NCCL_IB_RETRY_CNT")
            yield Hit(
                names=names, seen=f"about {lasts:.0f} s of retries, the limit is {limit:.0f} s"
            )


@rule(
    "cross-rail",
    Severity.ADVICE,
    why="where rails are not connected with one another, crossing them fails with errno 110",
    fix="NCCL_CROSS_NIC=0 on a rail-only fabric; elsewhere it may cost or win speed",
    source="NVIDIA/nccl#2013, #2193",
    wrong=[example({"hcas": ROCE, "nodes": 4}, NCCL_CROSS_NIC="1")],
    right=[example({"hcas": ROCE, "nodes": 4}, NCCL_CROSS_NIC="0"), example(NCCL_CROSS_NIC="1")],
)
def cross_rail(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_CROSS_NIC") == 1 and len(s.facts.fabric()) > 1 and (s.facts.nodes or 1) > 1:
        yield Hit(names=("NCCL_CROSS_NIC",), seen="NCCL_CROSS_NIC=1 with several rails")


@rule(
    "adaptive-routing-on-roce",
    Severity.WARNING,
    why="a RoCE fabric that was not made for it drops what arrives out of order",
    fix="only with the fabric people's word",
    source="NCCL user guide, NCCL_IB_ADAPTIVE_ROUTING",
    wrong=[example({"hcas": ROCE}, NCCL_IB_ADAPTIVE_ROUTING="1")],
    right=[example({"hcas": RAILS}, NCCL_IB_ADAPTIVE_ROUTING="1"), example({"hcas": ROCE})],
)
def adaptive_routing_on_roce(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_IB_ADAPTIVE_ROUTING") == 1 and s.facts.only_roce:
        yield Hit(names=("NCCL_IB_ADAPTIVE_ROUTING",), seen="NCCL_IB_ADAPTIVE_ROUTING=1 on RoCE")


@rule(
    "gloo-marks",
    Severity.ERROR,
    why="gloo takes whole names and knows no ^ and no =",
    fix="write the interface's whole name",
    source="torch ProcessGroupGloo: GLOO_SOCKET_IFNAME",
    wrong=[example(GLOO_SOCKET_IFNAME="^docker0"), example(GLOO_SOCKET_IFNAME="=eth0")],
    right=[example(GLOO_SOCKET_IFNAME="eth0"), example(GLOO_SOCKET_IFNAME="eth0,eth1")],
)
def gloo_marks(s: Subject) -> Iterator[Hit]:
    text = s.text("GLOO_SOCKET_IFNAME") or ""
    if text[:1] in ("^", "="):
        yield Hit(names=("GLOO_SOCKET_IFNAME",), seen=f"GLOO_SOCKET_IFNAME={text}")
