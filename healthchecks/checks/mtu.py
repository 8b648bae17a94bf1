"""MTUs of this node's RDMA ports, against what they could be and their interfaces' own."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.ports import Ignore, Port, linked, netdevs, traffic_ports
from healthchecks.sources.verbs import LIBRARY, Mtu, Verbs
from supervisor.core.setting import About

_LIBRARY = About(doc="libibverbs: a name that the loader finds, or a path.")
_HEADERS = 96  # that RoCE leaves room for: iboe_get_mtu in linux/include/rdma/ib_addr.h
_UNTESTED = "the C library's interface is rdma-core's; tried against a stub of it, on no NIC."


def _measured(ctx: Ctx, found: Findings, ports: list[Port], library: str) -> dict[Port, Mtu]:
    """Ports that may be asked, each with its MTU. Raises Unknown without a library."""
    measured = {}
    with Verbs(library, ctx.announce) as verbs:
        for port in ports:
            try:
                measured[port] = verbs.mtu(port.device, port.number)
            except Unknown as why:
                found.unmeasured(why, device=port.name)
    return measured


@check(
    "ib.mtu",
    tags={"preflight"},
    resource="verbs",
    call_deadline_s=2.0,
    cohort=Status.FAIL,
    untested=_UNTESTED,
)
def ib_mtu(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    expected: Annotated[
        int, About(doc="Active MTU of InfiniBand ports; 0: the best of this node's.", unit="B")
    ] = 0,
    library: Annotated[str, _LIBRARY] = LIBRARY,
) -> Result:
    """InfiniBand ports have one active MTU, the largest that they can.

    The subnet manager sets it to the smaller of both ends of the first link. NCCL takes the
    smaller MTU of two peers on one side only, so a mismatch can hang it (NVIDIA/nccl#1957). IPoIB
    in datagram mode needs 4 bytes of it (RFC 4391).
    """
    found = Findings()
    ports = linked(ctx, traffic_ports(ctx, layer="InfiniBand", ignore=ignore))
    mtus = _measured(ctx, found, ports, library)
    best = expected or max((m.active for m in mtus.values()), default=0)
    ipoib: set[str] = set()
    for port, mtu in mtus.items():
        if mtu.active < best:
            found.fail(
                f"active MTU {mtu.active}, it can {mtu.most}",
                expected=f"{best}",
                fix="look at the switch port's MTU and the subnet manager's partitions.conf",
                device=port.name,
            )
        elif mtu.active < mtu.most and not expected:
            found.warn(
                f"active MTU {mtu.active}, it can {mtu.most}",
                expected=f"{mtu.most}, or the fabric's own as setting `expected`",
                fix="mtu=5 for the partition in the subnet manager's partitions.conf",
                device=port.name,
            )
        ipoib |= _ipoib(ctx, found, port, mtu)
    counts = Counter(m.active for m in mtus.values())
    shown = ", ".join(f"{n} x {mtu}" for mtu, n in sorted(counts.items()))
    if len(mtus) == len(ports):
        found.fact("active_mtus", shown)
        found.fact("ipoib", ", ".join(sorted(ipoib)) or "none is up")
    return found.result(f"active MTU {shown}")


def _ipoib(ctx: Ctx, found: Findings, port: Port, mtu: Mtu) -> set[str]:
    """Judge the port's IPoIB interfaces that are up; their modes and MTUs. Raises OSError."""
    seen = set()
    for name in netdevs(ctx, port):
        at = f"sys/class/net/{name}"
        if ctx.maybe(f"{at}/operstate") != "up":
            continue
        own, mode, most = ctx.number(f"{at}/mtu"), ctx.maybe(f"{at}/mode"), mtu.active - 4
        seen.add(f"{mode or 'no mode'} {own}")
        if mode == "datagram" and own > most:
            found.fail(
                f"{name} has MTU {own} on an active MTU of {mtu.active}",
                expected=f"at most {most}",
                fix=f"ip link set {name} mtu {most}",
                device=port.name,
            )
    return seen


@check(
    "roce.mtu",
    tags={"preflight"},
    resource="verbs",
    call_deadline_s=2.0,
    cohort=Status.FAIL,
    untested=_UNTESTED,
)
def roce_mtu(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    expected: Annotated[int, About(doc="Active MTU of RoCE ports.", unit="B")] = 4096,
    library: Annotated[str, _LIBRARY] = LIBRARY,
) -> Result:
    """RoCE ports have an active MTU of 4096, which takes an interface MTU of 4200 or more.

    The kernel takes the largest RDMA MTU that fits the interface's less 96 bytes of headers
    (iboe_get_mtu in linux/include/rdma/ib_addr.h): 1500 gives 1024.
    """
    found = Findings()
    ports = linked(ctx, traffic_ports(ctx, layer="Ethernet", ignore=ignore))
    mtus = _measured(ctx, found, ports, library)
    for port, mtu in mtus.items():
        interfaces = {name: ctx.number(f"sys/class/net/{name}/mtu") for name in netdevs(ctx, port)}
        words = ", ".join(f"{name} has MTU {own}" for name, own in interfaces.items())
        if mtu.active < expected:
            small = [n for n, own in interfaces.items() if own < expected + _HEADERS]
            found.fail(
                f"active MTU {mtu.active}; {words or 'no interface'}",
                expected=f"{expected}: an interface MTU of at least {expected + _HEADERS}",
                fix=f"ip link set {small[0]} mtu 9000, on its switch port too"
                if small
                else "take the interface down and up: the port keeps the MTU it came up with",
                device=port.name,
            )
        found.fact(f"{port.name}", f"active {mtu.active}, interface {list(interfaces.values())}")
    shown = Counter(m.active for m in mtus.values())
    return found.result("active MTU " + ", ".join(f"{n} x {m}" for m, n in sorted(shown.items())))
