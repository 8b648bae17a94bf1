"""InfiniBand ports: there, up, fast, error free, of one MTU, known to the subnet manager."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Annotated

from healthchecks.accelerators import bus
from healthchecks.frame.check import (
    AS_ROOT,
    RIGHTS,
    Findings,
    Gap,
    Result,
    Status,
    Unknown,
    check,
)
from healthchecks.frame.context import Ctx
from healthchecks.sources.ports import (
    ACTIVE,
    DOWN,
    Ignore,
    Port,
    linked,
    ports,
    state,
    traffic_ports,
)
from supervisor.core.setting import About

_PHYSICAL = {
    2: "polling: no light from the other side; reseat or replace the cable, look at the switch",
    3: "disabled: enable it on the node or the switch",
    4: "training: a marginal cable or transceiver",
    6: "recovering from link errors: a marginal cable or transceiver",
}
_PASSING = (4, 6)  # physical states that a good link passes through


@check("ib.port", tags={"preflight", "prolog", "running"}, cohort=Status.FAIL)
def ib_port(
    ctx: Ctx,
    *,
    ignore: Ignore = (),
    fabric_gbps: Annotated[
        int, About(doc="Rate of a fabric port; 0: the best of its board here.", unit="Gb/s")
    ] = 0,
    storage_gbps: Annotated[
        int, About(doc="Rate of a storage port; 0: the best of its board here.", unit="Gb/s")
    ] = 0,
    init_s: Annotated[
        float,
        About(doc="How long a port may train, or wait for the subnet manager.", unit="s"),
    ] = 60.0,
) -> Result:
    """InfiniBand and RoCE ports are active, and as fast as the others of their board.

    States as in facebookresearch/gcm check_ibstat and leptonai/gpud: ACTIVE and LinkUp. A port that
    trains, or waits for the subnet manager (INIT, ARMED), is WARN, and FAIL when it lasts. One that
    was never seen active, and that site.yaml does not name (`ports`), has no cable: it fails
    nothing, and is a WARN where a GPU lacks it. Where no port of a board sees light, the switch is
    named and no node. Rates are compared within the node, among ports of
    one board, and with its cohort.
    """
    found = Findings()
    traffic = traffic_ports(ctx, ignore=ignore)
    active: dict[str, dict[Port, int]] = {"fabric": {}, "storage": {}}
    idle: list[tuple[Port, str]] = []
    dark = _dark(ctx, traffic)
    for port in [*traffic, *(p for p in ports(ctx, ignore=ignore) if p.guess)]:
        try:
            unused = _state(ctx, found, port, init_s, dark)
            if unused:
                idle.append((port, unused))
            elif port.role != "lpf" and state(ctx, port) != DOWN:
                active[port.role][port] = int(float(ctx.text(f"{port.at}/rate").split()[0]))
        except (OSError, ValueError, IndexError) as error:
            found.unknown(f"its state can't be read: {error}", device=port.name)
    for role, wanted in (("fabric", fabric_gbps), ("storage", storage_gbps)):
        _rates(found, active[role], wanted)
        of_role = [p for p in traffic if p.role == role]
        lacking = [p for p in of_role if p not in active[role] and p not in dict(idle)]
        if active[role] and not lacking:
            counts = Counter(active[role].values())
            shown = ", ".join(f"{n} x {r}" for r, n in sorted(counts.items()))
            found.fact(f"{role}_rates", shown)
        if active[role]:
            found.metric(f"{role}_ports", len(active[role]))
    _uncabled(ctx, found, idle, active["fabric"])
    parts = [
        f"{len(of)} {role} ports active at {max(of.values())} Gb/s"
        for role, of in active.items()
        if of
    ]
    if idle:
        parts.append(f"{', '.join(p.name for p, _ in idle)} never seen active")
    if not any(active.values()) and found.result("").status is Status.OK:
        shown = "; ".join(f"{p.name} {seen}" for p, seen in idle)
        raise Unknown(f"no port is active, and none was: {shown}")
    return found.result(", ".join(parts))


def _rates(found: Findings, rates: dict[Port, int], wanted: int) -> None:
    """Each board by itself: cards of another kind may be slower."""
    for board in dict.fromkeys(port.kind for port in rates):
        group = {port: rate for port, rate in rates.items() if port.kind == board}
        best = wanted or max(group.values())
        for port, rate in group.items():
            if rate < best:
                found.fail(
                    f"{rate} Gb/s",
                    expected=f"{best} Gb/s",
                    fix="reseat or replace its cable or transceiver; then: mlxlink -d "
                    f"{port.bdf or port.device} -m -c",
                    device=port.name,
                )


def _uncabled(
    ctx: Ctx, found: Findings, idle: list[tuple[Port, str]], fabric: dict[Port, int]
) -> None:
    """Of ports that were never active: the odd ones out, where a GPU lacks them."""
    gpus = len(bus.of_all_makers(ctx))
    up, down = Counter(p.kind for p in fabric), Counter(p.kind for p, _ in idle)
    for port, seen in idle:
        few = up[port.kind] >= 3 * down[port.kind]
        if port.role == "fabric" and few and len(fabric) < gpus:
            found.warn(
                f"{seen}, and was never seen active",
                expected=f"a fabric port for each of {gpus} GPUs",
                fix="cable it; where that is meant, say so in site.yaml: "
                f"ports: {{ignore: [{port.device}]}}",
                device=port.name,
            )


def _dark(ctx: Ctx, traffic: list[Port]) -> set[str]:
    """Boards of which no port sees light: what all are cabled to is away, and not each of them."""
    states: dict[str, list[str]] = {}
    for port in traffic:
        shown = ""
        with suppress(OSError):
            shown = f"{state(ctx, port)} {ctx.text(f'{port.at}/phys_state').partition(':')[0]}"
        states.setdefault(port.kind, []).append(shown)
    return {kind for kind, of in states.items() if len(of) > 1 and set(of) == {f"{DOWN} 2"}}


def _state(ctx: Ctx, found: Findings, port: Port, init_s: float, dark: set[str]) -> str:
    """Judge one port; its state in words where it is DOWN and was never seen active.

    `state` and `phys_state` are "4: ACTIVE" and "5: LinkUp" (Documentation/ABI,
    sysfs-class-infiniband). Raises OSError, ValueError.
    """
    text, physical = ctx.text(f"{port.at}/state"), ctx.text(f"{port.at}/phys_state")
    number, physical_number = int(text.split(":")[0]), int(physical.split(":")[0])
    trains = number == DOWN and physical_number in _PASSING
    waited = ctx.memory.lasted_s(f"waits:{port.key}", number in (2, 3) or trains)
    if number == ACTIVE:
        ctx.memory.put(f"active:{port.key}", True, lasting=True)
        if physical_number == 5:
            return ""
    seen = f"{text.partition(': ')[2] or text}, {physical.partition(': ')[2] or physical}"
    if port.guess:
        found.unknown(
            f"{seen} ({port.guess})",
            device=port.name,
            gap=Gap.RIGHTS,
            fix=f"{AS_ROOT}, once: {RIGHTS['vital product data of PCI devices']}",
        )
        return ""
    if number in (2, 3) or trains:
        why = "its link trains" if trains else "no subnet manager has configured it"
        found.add(
            Status.FAIL if waited >= init_s else Status.WARN,
            f"{seen} for {waited:.0f} s: {why}",
            expected="ACTIVE, LinkUp",
            fix=_PHYSICAL[physical_number]
            if trains
            else "is the subnet manager running (sminfo)? else reset the port at the switch",
            device=port.name,
        )
        return ""
    if number == DOWN and not port.said and not ctx.memory.get(f"active:{port.key}"):
        return seen
    found.fail(
        seen,
        expected="ACTIVE, LinkUp",
        fix=_PHYSICAL.get(physical_number, "reseat or replace its cable; reset the port"),
        device=port.name,
        shared=f"switch of {port.role} ports" if port.kind in dark else "",
    )
    return ""


@check("ib.sm", tags={"preflight", "running"}, cohort=Status.WARN)
def ib_sm(ctx: Ctx, *, ignore: Ignore = ()) -> Result:
    """InfiniBand ports have an address from a subnet manager.

    A LID or SM LID of 0 is a port that none has configured (IBTA; Documentation/ABI,
    sysfs-class-infiniband); one without a link has none either, and is ib.port's.
    """
    found = Findings()
    managers: dict[int, list[str]] = {}
    lids: dict[int, list[str]] = {}
    for port in linked(ctx, traffic_ports(ctx, layer="InfiniBand", ignore=ignore)):
        lid, manager = ctx.number(f"{port.at}/lid"), ctx.number(f"{port.at}/sm_lid")
        managers.setdefault(manager, []).append(port.name)
        lids.setdefault(lid, []).append(port.name)
        if lid in (0, 0xFFFF) or manager in (0, 0xFFFF):
            found.fail(
                f"LID {lid:#x}, subnet manager's LID {manager:#x}",
                expected="both known",
                fix="is a subnet manager running (sminfo) and the cable in the right fabric?",
                device=port.name,
                shared="subnet manager",
            )
    shown = ", ".join(f"{m:#x}" for m in sorted(managers))
    found.fact("managers", shown)
    found.metric("ports", sum(map(len, lids.values())))
    return found.result(f"{sum(map(len, lids.values()))} ports with a LID; subnet manager {shown}")


@check("ib.pkey", tags={"preflight", "running"}, cohort=Status.FAIL)
def ib_pkey(ctx: Ctx, *, ignore: Ignore = ()) -> Result:
    """InfiniBand ports are full members of a partition.

    Limited members (bit 15 of the key not set) can't talk to one another (IBTA, partitioning): NCCL
    hangs or fails with a path that is there. As nebius/soperator and facebookresearch/gcm look.
    """
    found = Findings()
    tables: dict[str, str] = {}
    every = traffic_ports(ctx, layer="InfiniBand", ignore=ignore)
    up = linked(ctx, every)
    for port in every:
        names = ctx.names(f"{port.at}/pkeys")
        keys = [ctx.number(f"{port.at}/pkeys/{n}") for n in sorted(names, key=int)]
        keys = [key for key in keys if key & 0x7FFF]
        tables[port.name] = " ".join(f"{key:#06x}" for key in keys) or "none"
        if port not in up:
            continue
        if not names:
            found.unknown("shows no partition keys", device=port.name)
        elif not any(key & 0x8000 for key in keys):
            found.fail(
                f"partition keys {tables[port.name]}: "
                + ("limited member only" if keys else "no partition"),
                expected="full member (0x8000 set) of a partition",
                fix="correct the port's membership in the subnet manager's partitions.conf",
                device=port.name,
            )
    counts = Counter(tables.values())
    found.fact("keys", ", ".join(f"{count} x {keys}" for keys, count in sorted(counts.items())))
    return found.result(f"{len(tables)} ports, keys {', '.join(sorted(set(tables.values())))}")
