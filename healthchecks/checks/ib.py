"""InfiniBand ports: there, up, fast, error free, of one MTU, known to the subnet manager."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from healthchecks.check import Findings, Result, Status, check
from healthchecks.context import Ctx
from healthchecks.ports import Port, ports, traffic_ports
from supervisor.core.setting import About

_IGNORE = About(doc="RDMA devices not to look at: names as mlx5_9, or PCI addresses.")
_PHYSICAL = {
    2: "polling: no light from the other side; reseat or replace the cable, look at the switch",
    3: "disabled: enable it on the node or the switch",
    4: "training: a marginal cable or transceiver",
    6: "recovering from link errors: a marginal cable or transceiver",
}


@check("ib.port", tags={"preflight", "prolog", "running"}, cohort=Status.FAIL)
def ib_port(
    ctx: Ctx,
    *,
    ignore: Annotated[tuple[str, ...], _IGNORE] = (),
    fabric_gbps: Annotated[
        int, About(doc="Rate of a fabric port; 0: the best of this node's.", unit="Gb/s")
    ] = 0,
    storage_gbps: Annotated[
        int, About(doc="Rate of a storage port; 0: the best of this node's.", unit="Gb/s")
    ] = 0,
    init_s: Annotated[
        float, About(doc="How long a port may wait for the subnet manager.", unit="s")
    ] = 60.0,
) -> Result:
    """InfiniBand and RoCE ports are active, and as fast as the others of their role.

    States as in facebookresearch/gcm check_ibstat and leptonai/gpud: ACTIVE and LinkUp. INIT or
    ARMED is a port that waits for the subnet manager: WARN, and FAIL when it lasts. Rates are
    compared within the node, and with its cohort.
    """
    found = Findings()
    rates: dict[str, dict[Port, int]] = {"fabric": {}, "storage": {}}
    traffic = traffic_ports(ctx, but=ignore)
    for port in [*traffic, *(p for p in ports(ctx, but=ignore) if p.guess)]:
        try:
            _state(ctx, found, port, init_s)
            if port.role != "lpf":
                rates[port.role][port] = int(float(ctx.text(f"{port.at}/rate").split()[0]))
        except (OSError, ValueError, IndexError) as error:
            found.unknown(f"its state can't be read: {error}", device=port.name)
    for role, wanted in (("fabric", fabric_gbps), ("storage", storage_gbps)):
        if not rates[role]:
            continue
        best = wanted or max(rates[role].values())
        for port, rate in rates[role].items():
            if rate < best:
                found.fail(
                    f"{rate} Gb/s",
                    expected=f"{best} Gb/s",
                    fix="reseat or replace its cable or transceiver; then: mlxlink -d "
                    f"{port.bdf or port.device} -m -c",
                    device=port.name,
                )
        counts = Counter(rates[role].values())
        if len(rates[role]) == sum(p.role == role for p in traffic):
            found.fact(f"{role}_rates", ", ".join(f"{n} x {r}" for r, n in sorted(counts.items())))
        found.metric(f"{role}_ports", len(rates[role]))
    parts = [
        f"{len(of)} {role} ports active at {max(of.values())} Gb/s"
        for role, of in rates.items()
        if of
    ]
    return found.result(", ".join(parts))


def _state(ctx: Ctx, found: Findings, port: Port, init_s: float) -> None:
    """`state` and `phys_state` are "4: ACTIVE" and "5: LinkUp" (Documentation/ABI,
    sysfs-class-infiniband). Raises OSError, ValueError."""
    state, physical = ctx.text(f"{port.at}/state"), ctx.text(f"{port.at}/phys_state")
    number, physical_number = int(state.split(":")[0]), int(physical.split(":")[0])
    since = ctx.memory.get(f"waits:{port.key}")
    if number not in (2, 3):
        ctx.memory.put(f"waits:{port.key}", None)
    if number == 4 and physical_number == 5:
        return
    seen = f"{state.partition(': ')[2] or state}, {physical.partition(': ')[2] or physical}"
    if port.guess:
        found.unknown(f"{seen} ({port.guess})", device=port.name, fix="run the check as root once")
        return
    if number in (2, 3):
        since = ctx.now if since is None else since
        ctx.memory.put(f"waits:{port.key}", since)
        waited = ctx.now - since
        found.add(
            Status.FAIL if waited >= init_s else Status.WARN,
            f"{seen} for {waited:.0f} s: no subnet manager has configured it",
            expected="ACTIVE, LinkUp",
            fix="is the subnet manager running (sminfo)? else reset the port at the switch",
            device=port.name,
        )
        return
    found.fail(
        seen,
        expected="ACTIVE, LinkUp",
        fix=_PHYSICAL.get(physical_number, "reseat or replace its cable; reset the port"),
        device=port.name,
    )


@check("ib.sm", tags={"preflight", "running"}, cohort=Status.WARN)
def ib_sm(ctx: Ctx, *, ignore: Annotated[tuple[str, ...], _IGNORE] = ()) -> Result:
    """InfiniBand ports have an address from a subnet manager.

    A LID or SM LID of 0 is a port that none has configured (IBTA; Documentation/ABI,
    sysfs-class-infiniband).
    """
    found = Findings()
    managers: dict[int, list[str]] = {}
    lids: dict[int, list[str]] = {}
    for port in traffic_ports(ctx, layer="InfiniBand", but=ignore):
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
def ib_pkey(ctx: Ctx, *, ignore: Annotated[tuple[str, ...], _IGNORE] = ()) -> Result:
    """InfiniBand ports are full members of a partition.

    Limited members (bit 15 of the key not set) can't talk to one another (IBTA, partitioning): NCCL
    hangs or fails with a path that is there. As nebius/soperator and facebookresearch/gcm look.
    """
    found = Findings()
    tables: dict[str, str] = {}
    for port in traffic_ports(ctx, layer="InfiniBand", but=ignore):
        names = ctx.names(f"{port.at}/pkeys")
        keys = [ctx.number(f"{port.at}/pkeys/{n}") for n in sorted(names, key=int)]
        keys = [key for key in keys if key & 0x7FFF]
        tables[port.name] = " ".join(f"{key:#06x}" for key in keys) or "none"
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
