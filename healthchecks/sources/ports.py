"""The RDMA ports of this node as /sys shows them, and what each is for.

Roles: `fabric` carries the job between nodes, `storage` data, `management` the rest; `vf` is a
virtual function that this host gives away, `lpf` manages NVLink switches: four ConnectX-7 functions
of HGX B200 look like InfiniBand ports and carry no traffic; reading their counters floods the
kernel's log (prometheus/node_exporter#3434, leptonai/gpud#1164), so nothing here or elsewhere may
read those. They say SW_MNG in their vital product data (NVIDIA Fabric Manager user guide, "NVLink
Subnet Manager and the port GUID").

site.yaml says the role of a port (`ports`); else it is guessed, by what the port is (link layer,
board, rate), what it was (a port that went down stays what it is) and what it is used for (NFS, the
default route): never by its name. Ports are compared with those of their own board alone.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from healthchecks.frame.check import NoRight, Skip, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources.mounts import table
from healthchecks.sources.pci import MELLANOX, NETWORK, PCI, functions
from supervisor.core.setting import PORT_ROLES, About

SYS = "sys/class/infiniband"
NET = "sys/class/net"
ROLES = ("fabric", "storage")  # that carry data
DOWN, ACTIVE = 1, 4  # ports/N/state (Documentation/ABI/stable/sysfs-class-infiniband)
_SLOW_GBPS = 50.0  # with the default route on it: no storage of a GPU node is slower
_UPPERS = 8  # of an interface: bonds, VLANs and bridges above each other
Ignore = Annotated[
    tuple[str, ...],
    About(doc="RDMA devices not to look at: names as mlx5_9, or PCI addresses."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port of one RDMA device."""

    device: str  # as mlx5_3
    number: int
    bdf: str  # PCI address; empty where the device is not a PCI function
    guid: str  # of the device; the key of what is remembered of it
    board: str  # board_id of the device; empty where its driver has none
    layer: str  # InfiniBand, Ethernet; Unknown of what is neither (EFA)
    model: str = ""  # PCI vendor and device, as 0x15b3:0x1021
    role: str = "fabric"
    said: bool = False  # by site.yaml
    guess: str = ""  # of an LPF: why that is a guess

    @property
    def at(self) -> str:
        """Its folder, relative to the root."""
        return f"{SYS}/{self.device}/ports/{self.number}"

    @property
    def name(self) -> str:
        """As people call it: the device, and the port where that is not the first."""
        return self.device if self.number == 1 else f"{self.device}/{self.number}"

    @property
    def key(self) -> str:
        return f"{self.guid or self.bdf or self.device}/{self.number}"

    @property
    def kind(self) -> str:
        """What it is compared with: ports of the same board."""
        return self.board or self.model


def ports(ctx: Ctx, *, ignore: tuple[str, ...] = ()) -> list[Port]:
    """All RDMA ports in order of their devices' numbers, without the devices named in `ignore` (a
    name or a PCI address) and those that site.yaml has to be ignored.

    Raises Skip where the node has no RDMA device, Unknown where it has NICs without a driver or
    nothing tells fabric ports from LPF ports.
    """
    devices = ctx.names(SYS)
    if not devices:
        nics = nic_functions(ctx)
        if nics:
            raise Unknown(
                f"{len(nics)} ConnectX functions on PCI and none in /{SYS}: is mlx5_ib loaded?"
            )
        raise Skip("no RDMA device")
    found = []
    for device in sorted(devices, key=_by_number):
        at, bdf = f"{SYS}/{device}", _bdf(ctx, device)
        if device not in ignore and bdf not in ignore:
            words = [ctx.maybe(f"{at}/device/{name}") or "" for name in ("vendor", "device")]
            found += [
                Port(
                    device=device,
                    number=int(number),
                    bdf=bdf,
                    guid=ctx.maybe(f"{at}/node_guid") or "",
                    board=ctx.maybe(f"{at}/board_id") or "",
                    layer=ctx.maybe(f"{at}/ports/{number}/link_layer") or "InfiniBand",
                    model=":".join(words) if bdf else "",
                )
                for number in ctx.names(f"{at}/ports")
            ]
    return _with_roles(ctx, found)


def _with_roles(ctx: Ctx, every: list[Port]) -> list[Port]:
    """Raises Unknown where nothing tells fabric ports from LPF ports."""
    said: dict[Port, Port] = {}
    for port in every:
        if role := _said(ctx, port):
            said[port] = replace(port, role=role, said=True)
        elif port.bdf and ctx.path(f"{PCI}/{port.bdf}/physfn").exists():
            said[port] = replace(port, role="vf")
    rest = [port for port in every if port not in said]
    said |= _lpf_ports(ctx, [port for port in rest if port.layer == "InfiniBand"])
    rest = [port for port in rest if port not in said]
    fabric_is_said = any(p.said and p.role == "fabric" for p in said.values())
    roles = _guessed(ctx, rest, fabric_is_said=fabric_is_said)
    found = [said.get(port) or replace(port, role=roles[port]) for port in every]
    return [port for port in found if port.role != "ignore"]


def _said(ctx: Ctx, port: Port) -> str:
    """The role that site.yaml gives a port, by device, PCI address or board; empty where none."""
    names = {port.device, port.name, port.bdf, port.board} - {""}
    for role, patterns in ctx.site.get(PORT_ROLES, {}).items():
        if any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
            return str(role)
    return ""


def _lpf_ports(ctx: Ctx, ib: list[Port]) -> dict[Port, Port]:
    """Those that manage switches. Where vital product data can't be read (only root may), they are
    guessed: they are of another board than most InfiniBand ports. Raises Unknown where that does
    not tell either."""
    lpf = {p: _is_lpf(ctx, p) for p in ib}
    unsure = [p for p, known in lpf.items() if known is None]
    boards = Counter(p.board for p, known in lpf.items() if not known)
    usual = [board for board, count in boards.items() if count == max(boards.values())]
    if unsure and len(usual) > 1:
        raise NoRight(
            "vital product data of PCI devices",
            f" (/{PCI}/{unsure[0].bdf}/vpd), so LPF ports can't be told apart",
        )
    found = {}
    for port, known in lpf.items():
        if known:
            found[port] = replace(port, role="lpf")
        elif known is None and port.board not in usual:
            guess = f"taken for an LPF port by its board {port.board}: its vpd can't be read"
            found[port] = replace(port, role="lpf", guess=guess)
    return found


def _guessed(ctx: Ctx, every: list[Port], *, fabric_is_said: bool) -> dict[Port, str]:
    """Roles by link layer, board, rate and use.

    The fabric is InfiniBand where there is some, else what most ports are, and the fastest of
    those. Boards of the same model and rate are one group, but for one that NFS goes through.
    """
    groups: dict[tuple[str, str], list[Port]] = {}
    for port in every:
        groups.setdefault((port.layer, port.kind), []).append(port)
    roles = dict.fromkeys(every, "storage")
    if len(groups) == 1 and not fabric_is_said:
        return dict.fromkeys(every, "fabric")
    routes = _routes(ctx)
    routed = {route.netdev for route in routes if not route.mask}
    stores = _towards_nfs(ctx, routes)
    size = {key: _size(ctx, group) for key, group in groups.items()}
    ib = [key for key in groups if key[0] == "InfiniBand"]
    main = max(ib or groups, key=lambda key: size[key], default=None)
    for key, group in groups.items():
        like = main is not None and _alike(groups[main], group) and size[key][1] == size[main][1]
        used = {name for p in group for n in netdevs(ctx, p) for name in uppers(ctx, n)}
        if not fabric_is_said and (key == main or (like and not stores & used)):
            roles |= dict.fromkeys(group, "fabric")
        elif routed & used and (size[key][1] < _SLOW_GBPS or len(groups) > 2):
            roles |= dict.fromkeys(group, "management")
    return roles


def _alike(main: Sequence[Port], group: Sequence[Port]) -> bool:
    return (main[0].layer, main[0].model) == (group[0].layer, group[0].model)


def _size(ctx: Ctx, group: Sequence[Port]) -> tuple[int, float]:
    """Ports of a group that are or were active, or all where none was, and their best rate, Gb/s.

    So a fabric whose cables are pulled stays the fabric, and a port without a cable counts nothing.
    """
    up = [port for port in group if _was_active(ctx, port)]
    return len(up or group), max((rate(ctx, port) or 0.0 for port in up), default=0.0)


def _was_active(ctx: Ctx, port: Port) -> bool:
    if state(ctx, port) == ACTIVE:
        ctx.memory.put(f"up:{port.key}", True, lasting=True)
    return bool(ctx.memory.get(f"up:{port.key}"))


def state(ctx: Ctx, port: Port) -> int | None:
    """1 DOWN, 2 INIT, 3 ARMED, 4 ACTIVE; None where it can't be told."""
    try:
        return int(ctx.text(f"{port.at}/state").partition(":")[0])
    except (OSError, ValueError):
        return None


def rate(ctx: Ctx, port: Port) -> float | None:
    """Gb/s, as "2.5 Gb/sec (1X SDR)" has it; None where it can't be told."""
    try:
        return float(ctx.text(f"{port.at}/rate").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def linked(ctx: Ctx, found: Sequence[Port]) -> list[Port]:
    """Those that are not DOWN: ib.port judges the others. Raises Skip where none is left."""
    up = [port for port in found if state(ctx, port) != DOWN]
    if found and not up:
        raise Skip("all its ports are down: see ib.port")
    return up


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """An IPv4 route; `mask` is 0 of the default one. Numbers are as /proc writes them."""

    netdev: str
    target: int
    mask: int


def _routes(ctx: Ctx) -> list[_Route]:
    """Of the main table (fib_route_seq_show: hexadecimal, in the machine's order of bytes)."""
    found = []
    for line in (ctx.maybe("proc/net/route") or "").splitlines()[1:]:
        row = line.split()
        try:
            found.append(_Route(netdev=row[0], target=int(row[1], 16), mask=int(row[7], 16)))
        except (ValueError, IndexError):
            continue
    return found


def _towards_nfs(ctx: Ctx, routes: Sequence[_Route]) -> set[str]:
    """Interfaces on which NFS servers are reached, other than by the default route."""
    found = set()
    try:
        mounts = table(ctx).network()
    except (OSError, Unknown):
        return set()
    for mounted in mounts:
        addr = (mounted.server.addr or mounted.server.host) if mounted.server else ""
        try:
            server = int.from_bytes(socket.inet_aton(addr), sys.byteorder)
        except OSError:
            continue  # a name, or IPv6
        fit = [route for route in routes if route.mask and server & route.mask == route.target]
        if fit:
            found.add(max(fit, key=lambda route: route.mask.bit_count()).netdev)
    return found


def uppers(ctx: Ctx, netdev: str) -> list[str]:
    """An interface and all that are above it: bonds, VLANs on them, bridges."""
    found, new = [netdev], [netdev]
    while new and len(found) < _UPPERS:
        above = [n for name in new for n in ctx.names(f"{NET}/{name}") if n.startswith("upper_")]
        new = [n.removeprefix("upper_") for n in above if n.removeprefix("upper_") not in found]
        found += new
    return found


def traffic_ports(ctx: Ctx, *, layer: str = "", ignore: tuple[str, ...] = ()) -> list[Port]:
    """The ports that carry data, of one link layer where one is given.

    Raises Skip where there is none, else as `ports`.
    """
    found = [p for p in ports(ctx, ignore=ignore) if p.role in ROLES and layer in ("", p.layer)]
    if not found:
        raise Skip(f"no {layer or 'RDMA'} port that carries data")
    return found


def netdevs(ctx: Ctx, port: Port) -> list[str]:
    """Network interfaces of the port's PCI function, as ib3 or ens40np0."""
    return ctx.names(f"{SYS}/{port.device}/device/net")


def nic_functions(ctx: Ctx) -> dict[str, str]:
    """PCI addresses of ConnectX network functions, each with the RDMA device bound to it or ""."""
    nics = functions(ctx, NETWORK, MELLANOX)
    return {bdf: next(iter(ctx.names(f"{PCI}/{bdf}/infiniband")), "") for bdf in nics}


def _by_number(device: str) -> tuple[str, int]:
    name = device.rstrip("0123456789")
    return name, int(device[len(name) :] or 0)


def _bdf(ctx: Ctx, device: str) -> str:
    place = ctx.path(f"{SYS}/{device}/device")
    try:
        return Path(place.readlink()).name if place.is_symlink() else ""
    except OSError:
        return ""


def _is_lpf(ctx: Ctx, port: Port) -> bool | None:
    """Whether it manages NVLink switches; None where that can't be read.

    Vital product data is read through slow registers: once, then remembered. Virtual functions
    have none.
    """
    if not port.bdf:
        return False
    known = ctx.memory.get(f"lpf:{port.guid}")
    if known is not None:
        return bool(known)
    try:
        lpf = manages_switches(ctx, f"{PCI}/{port.bdf}")
    except OSError:
        return None
    ctx.memory.put(f"lpf:{port.guid}", lpf, lasting=True)
    return lpf


_vpds: dict[tuple[str, int, int], bool] = {}  # one reading serves all checks of one run's child


def manages_switches(ctx: Ctx, device: str) -> bool:
    """Whether the vital product data in a PCI device's folder say SW_MNG. Raises OSError."""
    path = ctx.path(f"{device}/vpd")
    ctx.announce(f"read /{device}/vpd")
    try:
        found = path.stat()
        key = (str(path), found.st_ino, found.st_mtime_ns)
        if key not in _vpds:
            _vpds[key] = b"SW_MNG" in path.read_bytes()
        return _vpds[key]
    except FileNotFoundError:
        return False
    finally:
        ctx.announce("")
