"""The RDMA ports of this node as /sys shows them, and what each is for.

Roles: `fabric` (InfiniBand, or RoCE where there is no InfiniBand), `storage` (RoCE beside an
InfiniBand fabric), and `lpf`: on HGX B200 four ConnectX-7 functions manage the NVLink switches.
They look like InfiniBand ports and carry no traffic; reading their counters floods the kernel's log
(prometheus/node_exporter#3434, leptonai/gpud#1164), so nothing here or elsewhere may read those.
They say SW_MNG in their vital product data (NVIDIA Fabric Manager user guide, "NVLink Subnet
Manager and the port GUID").
"""

from __future__ import annotations

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
    layer: str  # InfiniBand or Ethernet
    role: str  # fabric, storage or lpf
    doubt: str = ""  # why it might be an LPF all the same; empty where that is known

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

    Raises Skip where the node has no RDMA device, Unknown where it has NICs without a driver.
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
        bdf = _bdf(ctx, device)
        if device in but or bdf in but:
            continue
        guid = ctx.maybe(f"{SYS}/{device}/node_guid") or ""
        for number in ctx.names(f"{SYS}/{device}/ports"):
            layer = ctx.maybe(f"{SYS}/{device}/ports/{number}/link_layer") or "InfiniBand"
            lpf, doubt = (False, "") if layer == "Ethernet" else _is_lpf(ctx, bdf, guid)
            found.append(
                Port(
                    device=device,
                    number=int(number),
                    bdf=bdf,
                    guid=guid,
                    layer=layer,
                    role="lpf" if lpf else "fabric",
                    doubt=doubt,
                )
            )
    if any(p.role == "fabric" and p.layer != "Ethernet" for p in found):
        return [replace(p, role="storage") if p.layer == "Ethernet" else p for p in found]
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


def _is_lpf(ctx: Ctx, bdf: str, guid: str) -> tuple[bool, str]:
    """Whether it manages NVLink switches, and why that could not be told.

    Vital product data is read through slow registers: once, then remembered. Virtual functions
    have none.
    """
    if not bdf:
        return False, ""
    known = ctx.memory.get(f"lpf:{guid}") if guid else None
    if known is not None:
        return bool(known), ""
    ctx.doing(f"read /{PCI}/{bdf}/vpd")
    try:
        lpf = b"SW_MNG" in ctx.path(f"{PCI}/{bdf}/vpd").read_bytes()
    except FileNotFoundError:
        return False, ""
    except OSError as error:
        why = f"/{PCI}/{bdf}/vpd can't be read ({error.strerror}), so it may be an LPF port"
        return False, why
    finally:
        ctx.doing("")
    if guid:
        ctx.memory.put(f"lpf:{guid}", lpf, lasting=True)
    return lpf, ""
