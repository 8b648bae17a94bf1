"""The RDMA ports of this node as /sys shows them, and what each is for.

Roles: `fabric` (InfiniBand, or RoCE where there is no InfiniBand), `storage` (RoCE beside an
InfiniBand fabric), and `lpf`: on HGX B200 four ConnectX-7 functions manage the NVLink switches.
They look like InfiniBand ports and carry no traffic; reading their counters floods the kernel's log
(prometheus/node_exporter#3434, leptonai/gpud#1164), so nothing here or elsewhere may read those.
They say SW_MNG in their vital product data (NVIDIA Fabric Manager user guide, "NVLink Subnet
Manager and the port GUID").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from healthchecks.check import Skip, Unknown
from healthchecks.context import Ctx

SYS = "sys/class/infiniband"
PCI = "sys/bus/pci/devices"
_MELLANOX = "0x15b3"
_NETWORK = ("0x0200", "0x0207")  # PCI classes Ethernet and InfiniBand


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port of one RDMA device."""

    device: str  # as mlx5_3
    number: int
    bdf: str  # PCI address; empty where the device is not a PCI function
    guid: str  # of the device; the key of what is remembered of it
    board: str  # board_id of the device
    layer: str  # InfiniBand or Ethernet
    role: str = "fabric"  # fabric, storage or lpf
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


def ports(ctx: Ctx, *, but: tuple[str, ...] = ()) -> list[Port]:
    """All RDMA ports in order of their devices' numbers, without the devices named in `but` (a
    name or a PCI address).

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
        if device not in but and bdf not in but:
            found += [
                Port(
                    device=device,
                    number=int(number),
                    bdf=bdf,
                    guid=ctx.maybe(f"{at}/node_guid") or "",
                    board=ctx.maybe(f"{at}/board_id") or "",
                    layer=ctx.maybe(f"{at}/ports/{number}/link_layer") or "InfiniBand",
                )
                for number in ctx.names(f"{at}/ports")
            ]
    return _with_roles(ctx, found)


def _with_roles(ctx: Ctx, every: list[Port]) -> list[Port]:
    """Where vital product data can't be read (only root may), LPF ports are guessed: they are of
    another board than most InfiniBand ports. Raises Unknown where that does not tell either."""
    lpf = {p: _is_lpf(ctx, p) for p in every if p.layer != "Ethernet"}
    unsure = [p for p, known in lpf.items() if known is None]
    boards = Counter(p.board for p, known in lpf.items() if not known)
    usual = [board for board, count in boards.items() if count == max(boards.values())]
    if unsure and len(usual) > 1:
        raise Unknown(f"/{PCI}/{unsure[0].bdf}/vpd can't be read, so LPF ports can't be told apart")
    found = []
    for port in every:
        if port.layer == "Ethernet":
            fabric = not any(known is False or p.board in usual for p, known in lpf.items())
            found.append(replace(port, role="fabric" if fabric else "storage"))
        elif lpf[port]:
            found.append(replace(port, role="lpf"))
        elif lpf[port] is None and port.board not in usual:
            guess = f"taken for an LPF port by its board {port.board}: its vpd can't be read"
            found.append(replace(port, role="lpf", guess=guess))
        else:
            found.append(port)
    return found


def traffic_ports(ctx: Ctx, *, layer: str = "", but: tuple[str, ...] = ()) -> list[Port]:
    """The ports that carry data: all but LPF, of one link layer where one is given.

    Raises Skip where there is none, else as `ports`.
    """
    found = [p for p in ports(ctx, but=but) if p.role != "lpf" and layer in ("", p.layer)]
    if not found:
        raise Skip(f"no {layer or 'RDMA'} port that carries data")
    return found


def netdevs(ctx: Ctx, port: Port) -> list[str]:
    """Network interfaces of the port's PCI function, as ib3 or ens40np0."""
    return ctx.names(f"{SYS}/{port.device}/device/net")


def nic_functions(ctx: Ctx) -> dict[str, str]:
    """PCI addresses of ConnectX network functions, each with the RDMA device bound to it or ""."""
    found = {}
    for bdf in ctx.names(PCI):
        if ctx.maybe(f"{PCI}/{bdf}/vendor") != _MELLANOX:
            continue
        if (ctx.maybe(f"{PCI}/{bdf}/class") or "").startswith(_NETWORK):
            found[bdf] = next(iter(ctx.names(f"{PCI}/{bdf}/infiniband")), "")
    return found


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
    ctx.doing(f"read /{PCI}/{port.bdf}/vpd")
    try:
        lpf = b"SW_MNG" in ctx.path(f"{PCI}/{port.bdf}/vpd").read_bytes()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    finally:
        ctx.doing("")
    ctx.memory.put(f"lpf:{port.guid}", lpf, lasting=True)
    return lpf
