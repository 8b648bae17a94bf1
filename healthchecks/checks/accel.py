"""Accelerators of other makers than NVIDIA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from healthchecks.accelerators.bus import GIVEN, OnBus, on_bus
from healthchecks.accelerators.makers import WATCHED
from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.pci import PCI
from supervisor.core.setting import About

_DRIVERS = {maker.vendor: maker.driver for maker in WATCHED}
UNTRIED = "no such accelerator: built against the PCI ID Repository and Linux's amdgpu"


@check(
    "accel.on_bus", tags={"preflight", "prolog", "running"}, cohort=Status.FAIL, untested=UNTRIED
)
def accel_on_bus(
    ctx: Ctx,
    *,
    ignore: Annotated[
        tuple[str, ...],
        About(doc="Accelerators that nobody has to judge here, as 1da3:1060 or a PCI address."),
    ] = (),
) -> Result:
    """Every accelerator on the PCI bus has its driver, and is one that is looked at here.

    Of AMD Instinct all that were here before are on the bus, with amdgpu bound. One that nothing
    here knows how to judge is UNKNOWN, by name: none may read healthy because nobody looked.
    NVIDIA's GPUs are gpu.count's. Consoles, integrated graphics and processors' NPUs don't count.
    """
    found = Findings()
    there = [a for a in on_bus(ctx) if a.driver not in GIVEN]
    there = [a for a in there if not {a.pci_id, a.bdf} & {*ignore}]
    ours = [a for a in there if a.vendor in _DRIVERS and a.maker]
    others = [a for a in there if a not in ours]
    most = int(ctx.memory.get("most") or 0)
    ctx.memory.put("most", max(most, len(ours)), lasting=True)
    if not there and not most:
        _none(ctx)
    found.metric("on_bus", len(there))
    found.fact("accelerators", ", ".join(_counted(there)) or "none")
    if len(ours) < most:
        found.fail(
            f"{len(ours)} accelerators are on the PCI bus ({most} were here before)",
            expected=f"{most}",
            fix="reboot the node; in a virtual machine let the host attach them again; where the "
            "node was changed: superv accept",
        )
    for one in ours:
        wanted = _DRIVERS[one.vendor]
        if one.driver != wanted:
            found.fail(
                f"{one.maker} {one.bdf} ({one.pci_id}) has "
                + (f"the driver {one.driver}" if one.driver else "no driver"),
                expected=wanted,
                fix=f"look in the kernel's log for {wanted} (dmesg | grep {wanted}); load it "
                f"(modprobe {wanted}), else reboot the node",
                device=one.bdf,
            )
    for name, some in _by_kind(others).items():
        found.unknown(
            f"{name} at {', '.join(a.bdf for a in some)}: nothing here can tell its health",
            expected="an accelerator that is looked at",
            fix="judge it by its maker's tool, as a check of your own; and say so in site.yaml: "
            f"checks.accel.on_bus.ignore: [{some[0].pci_id}]",
        )
    return found.result(f"{', '.join(_counted(there))} on the PCI bus, with their driver")


def _by_kind(some: Sequence[OnBus]) -> dict[str, list[OnBus]]:
    kinds: dict[str, list[OnBus]] = {}
    for one in some:
        name = f"{one.maker or 'an accelerator of an unknown maker'} ({one.pci_id})"
        kinds.setdefault(name, []).append(one)
    return kinds


def _counted(some: Sequence[OnBus]) -> list[str]:
    return [f"{len(few)} {name}" for name, few in _by_kind(some).items()]


def _none(ctx: Ctx) -> None:
    """Say what a node without one is. Raises Skip or Unknown."""
    vendors = {ctx.text(f"{PCI}/{bdf}/vendor") for bdf in ctx.names(PCI)}
    for maker in WATCHED:
        if maker.vendor not in vendors and ctx.path(maker.loaded).is_dir():
            raise Unknown(
                f"the driver {maker.driver} is loaded, but no accelerator of {maker.name} is on "
                "the PCI bus: the host gave none, or they all fell off"
            )
    raise Skip("no accelerator of another maker than NVIDIA is on the PCI bus")
