"""What makers other than NVIDIA tell of their accelerators: AMD through /sys, others when known."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any

from healthchecks.accelerators import bus
from healthchecks.accelerators.makers import WATCHED
from healthchecks.accelerators.port import Accelerator, ErrorCounts, NotTold, WatchedMaker
from healthchecks.frame.check import Blame, Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import growth
from healthchecks.sources.kernel_log import KernelLine
from healthchecks.sources.kernel_patterns import WindowH, report_matches
from healthchecks.sources.pci import PCI
from supervisor.core.setting import About

Judge = Callable[[WatchedMaker, Accelerator], None]
_BDF = re.compile(r"\b[\da-f]{4}:[\da-f]{2}:[\da-f]{2}\.[0-7]")
_HOUR_S = 3600.0
_SEATED = "reboot the node; if it stays, reseat the device or its board, then replace it"


def _accel_check(
    name: str, *, tags: Iterable[str], cohort: Status | None = None, **more: Any
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A check that asks devices through their driver: one lane for all, for a dead one may hang."""
    return check(
        name,
        tags=tags,
        resource="accel",
        deadline_s=20.0,
        call_deadline_s=10.0,
        on_timeout=Status.FAIL,
        timeout_fix="reboot the node: the driver of its accelerators does not answer; keep the "
        "kernel's log (dmesg | grep amdgpu) from before the reboot",
        cohort=cohort,
        untested="no AMD Instinct: built against Linux's amdgpu and its documentation",
        **more,
    )


def _of_each(ctx: Ctx, found: Findings, judge: Judge, *, fine: str, what: str) -> Result:
    """Judge every device; one that can't be read hinders no other's.

    Raises Skip where there is none, and where none tells `what`.
    """
    there = [(maker, one) for maker in WATCHED for one in maker.devices(ctx)]
    if not there:
        raise Skip("no accelerator of another maker than NVIDIA that is looked at here")
    told = 0
    for maker, one in there:
        ctx.announce(f"ask {one.label} for {what}")
        try:
            judge(maker, one)
        except NotTold:
            continue
        except (Unknown, OSError) as error:
            found.unknown(f"{error} ({one.location})", device=one.label)
        told += 1
    if not told:
        raise Skip(f"{what} is not told by {', '.join({one.model: None for _, one in there})}")
    some = f"{told} of {len(there)}" if told < len(there) else f"{told}"
    return found.result(f"{some} accelerators: {fine}")


@_accel_check("accel.versions", tags={"preflight"}, cohort=Status.WARN)
def accel_versions(ctx: Ctx) -> Result:
    """Driver and firmware of the accelerators are those of the other nodes, and all alike."""
    found = Findings()
    versions: dict[str, dict[str, list[str]]] = {}
    models: dict[str, None] = {}

    def judge(maker: WatchedMaker, one: Accelerator) -> None:
        models[one.model] = None
        for what, text in maker.versions(ctx, one).items():
            versions.setdefault(what, {}).setdefault(text, []).append(one.label)

    result = _of_each(ctx, found, judge, fine="", what="its version")
    found.fact("gpu", ", ".join(models))
    for what, by_version in versions.items():
        found.fact(what, ", ".join(sorted(by_version)))
        if len(by_version) > 1:
            each = "; ".join(f"{v}: {', '.join(who)}" for v, who in sorted(by_version.items()))
            found.warn(
                f"the accelerators differ in {what}: {each}",
                expected="one version",
                fix="bring the firmware of all of them to one version",
            )
    told = ", ".join(f"{what} {', '.join(sorted(each))}" for what, each in versions.items())
    return found.result(f"{result.seen}{', '.join(models)}, {told}")


@_accel_check("accel.memory", tags={"preflight", "running"})
def accel_memory(
    ctx: Ctx,
    *,
    warn_per_h: Annotated[
        float, About(doc="Corrected errors an hour to warn above.", unit="/h", ge=0)
    ] = 1000.0,
) -> Result:
    """No uncorrectable error in memory, caches and engines since the driver was loaded.

    Any fails, as ecc.unc_volatile does; the count begins again when the driver is loaded. Deferred
    errors (lost data that nobody has used yet) and bad pages that could not be put out of use warn.
    Of corrected ones amdgpu says that no user action is needed: what streams in warns, at 1000 an
    hour (superv's proposal).
    """
    found = Findings()

    def judge(maker: WatchedMaker, one: Accelerator) -> None:
        for part, counts in maker.memory_errors(ctx, one).items():
            _errors(ctx, found, one, part, counts, warn_per_h)
        try:
            pages = maker.unretired(ctx, one)
        except NotTold:
            return
        if pages:
            found.warn(
                f"{pages} bad pages of memory are still in use ({one.location})",
                expected="0",
                fix=f"at the next checkpoint {maker.reset(one)}",
                device=one.label,
            )

    return _of_each(ctx, found, judge, fine="no errors to speak of", what="its errors")


def _errors(
    ctx: Ctx, found: Findings, one: Accelerator, part: str, counts: ErrorCounts, most: float
) -> None:
    """Of one part of a device: its memory, an engine, its links to others."""
    name = f"{one.label}.{part}"
    found.metric(f"{name}.uncorrectable", counts.uncorrectable)
    found.metric(f"{name}.corrected", counts.corrected)
    if counts.uncorrectable:
        found.fail(
            f"{counts.uncorrectable} uncorrectable errors in {part} since the driver was loaded "
            f"({one.location})",
            expected="0",
            fix="drain the node and reboot it: bad pages are put out of use then; where errors "
            "come again, replace the device",
            device=one.label,
        )
    if counts.deferred:
        found.metric(f"{name}.deferred", counts.deferred)
        found.warn(
            f"{counts.deferred} deferred errors in {part}: lost data that nobody has used yet "
            f"({one.location})",
            expected="0",
            fix="reboot the node at the next checkpoint; where it comes again, replace the device",
            device=one.label,
        )
    grown = growth.counter_growth(ctx, f"{one.key}.{part}", counts.corrected, _HOUR_S)
    if grown is None:
        found.not_yet(f"no earlier look at {part}: no growth yet", device=one.label)
    elif grown.lately > most:
        found.warn(
            f"{grown.lately:.0f} corrected errors in {part} within an hour ({one.location})",
            expected=f"at most {most:g}",
            fix="take the node out at the next checkpoint and run the deep checks",
            device=one.label,
        )


@_accel_check("accel.heat", tags={"preflight", "running"})
def accel_heat(
    ctx: Ctx,
    *,
    warn_margin: Annotated[
        float, About(doc="Below the slowdown, to warn at.", unit="°C", ge=-100)
    ] = 5.0,
    lasts_s: Annotated[
        float, About(doc="How long at or above the slowdown is a failure.", unit="s", ge=0)
    ] = 30.0,
) -> Result:
    """No accelerator is as hot as where it slows itself down.

    Each sensor against its own limit (amdgpu's tempN_crit, "ASIC slowdown"; at tempN_emergency it
    shuts down). One look there warns, what lasts fails, as of thermal; 5 °C are superv's proposal.
    """
    found = Findings()

    def judge(maker: WatchedMaker, one: Accelerator) -> None:
        for sensor in maker.heat(ctx, one):
            margin = sensor.slowdown - sensor.now
            found.metric(f"{one.label}.{sensor.name}", sensor.now, "°C")
            hot_s = ctx.memory.lasted_s(f"{one.key}.{sensor.name}", margin <= 0)
            if margin <= warn_margin:
                found.add(
                    Status.FAIL if margin <= 0 and hot_s >= lasts_s else Status.WARN,
                    f"{sensor.name} at {sensor.now:.0f} °C; it slows down at "
                    f"{sensor.slowdown:.0f} °C ({one.location})",
                    expected=f"more than {warn_margin:g} °C below",
                    fix="look at the node's cooling (BMC); compare with its neighbours in the rack",
                    device=one.label,
                )

    return _of_each(ctx, found, judge, fine="cool enough", what="its temperature")


@_accel_check("accel.link", tags={"preflight", "running"}, cohort=Status.WARN)
def accel_link(ctx: Ctx) -> Result:
    """Every accelerator has all its PCIe lanes, and its speed while it works.

    An idle one may rest at a lower speed (pp_dpm_pcie). Virtual functions, and devices in the
    processors' package, have no link of their own.
    """
    found = Findings()
    best: set[str] = set()

    def judge(maker: WatchedMaker, one: Accelerator) -> None:
        link = maker.link(ctx, one)
        best.add(f"x{link.most_width} {link.most_speed:g} GT/s")
        found.metric(f"{one.label}.width", link.width)
        if link.width < link.most_width:
            found.fail(
                f"PCIe x{link.width} ({one.location})",
                expected=f"x{link.most_width}",
                fix=_SEATED,
                device=one.label,
            )
        if link.busy and link.speed < link.most_speed:
            found.warn(
                f"PCIe at {link.speed:g} GT/s while it works ({one.location})",
                expected=f"{link.most_speed:g} GT/s",
                fix=_SEATED,
                device=one.label,
            )

    result = _of_each(ctx, found, judge, fine="all PCIe lanes", what="the PCIe link")
    found.fact("link", ", ".join(sorted(best)))
    return found.result(result.seen)


@_accel_check("accel.peers", tags={"preflight", "running"}, cohort=Status.FAIL)
def accel_peers(
    ctx: Ctx,
    *,
    warn_per_h: Annotated[
        float, About(doc="Corrected errors an hour to warn above.", unit="/h", ge=0)
    ] = 1000.0,
) -> Result:
    """Links between accelerators (XGMI) hold all of them together, without uncorrectable errors.

    All devices of a node are in hives of one size: one that is left out trains over PCIe, and holds
    up every step. How large hives are is compared with the other nodes.
    """
    found = Findings()
    reached: dict[str, int] = {}

    def judge(maker: WatchedMaker, one: Accelerator) -> None:
        reached[one.label] = maker.peers(ctx, one)
        try:
            counts = maker.peer_errors(ctx, one)
        except NotTold:
            return
        if reached[one.label]:
            _errors(ctx, found, one, "its links", counts, warn_per_h)

    result = _of_each(ctx, found, judge, fine="all linked", what="links to others")
    most = max(reached.values(), default=0)
    if not most:
        raise Skip("no links between its accelerators")
    for label, number in reached.items():
        if number < most:
            found.fail(
                f"linked to {number} others",
                expected=f"{most}, as others of this node",
                fix=_SEATED,
                device=label,
            )
    found.fact("linked", most)
    return found.result(f"{result.seen}, each to {most} others")


@_accel_check("accel.leftover", tags={"preflight"}, blame=Blame.USER, drains=False)
def accel_leftover(
    ctx: Ctx,
    *,
    tries: Annotated[int, About(doc="Looks before it is said.", ge=1)] = 3,
    every_s: Annotated[float, About(doc="Between two looks.", unit="s", ge=0)] = 1.0,
) -> Result:
    """No process of an earlier job holds memory of an accelerator.

    Three looks, as of gpu.leftover, because a process may be just ending.
    """
    found, looked = Findings(), 0
    for maker in WATCHED:
        for left in range(tries - 1, -1, -1):
            try:
                holders = maker.processes(ctx)
            except Skip:
                break
            looked += 1
            if not holders or not left:
                for one in holders:
                    name = ctx.maybe(f"proc/{one.pid}/comm") or "not seen in /proc"
                    found.fail(
                        f"process {one.pid} ({name}) holds {one.held / 2**30:.1f} GiB",
                        expected="no process",
                        fix=f"end it, if no job of this node owns it: kill {one.pid}",
                        device=f"gpu{one.index}",
                    )
                break
            ctx.announce("")
            time.sleep(every_s)
    if not looked:
        raise Skip("no accelerator of another maker than NVIDIA that is looked at here")
    return found.result("no process holds memory of an accelerator")


@check(
    "accel.kernel",
    tags={"preflight", "running"},
    witness="accel",
    untested="no AMD Instinct: built against the sources of Linux's amdgpu",
)
def accel_kernel(ctx: Ctx, *, window_h: WindowH = 24.0) -> Result:
    """No driver reported an accelerator lost, worn, not started, or one that no reset cures.

    Wordings of several kernels stand beside the rules. Resets, hung rings and a slow SMU warn: a
    program's fault brings them about, too. What the driver has cured (a reset that succeeded, a
    start) is over. Page faults are programs' own, and not looked for.
    """
    vendors = {maker.vendor for maker in WATCHED}
    there = {one.bdf for one in bus.on_bus(ctx) if one.vendor in vendors}
    if not there:
        raise Skip("no accelerator of another maker than NVIDIA that is looked at here")
    labels: dict[str, str] = {}
    for maker in WATCHED:
        with suppress(Unknown):  # on the bus without a driver: why may stand in the log
            labels |= {one.bdf: one.label for one in maker.devices(ctx)}

    def of_them(lines: list[KernelLine]) -> list[KernelLine]:
        """Without those of other cards with the same driver, as a console's."""
        others = {bdf for bdf in ctx.names(PCI) if bdf not in there}
        return [line for line in lines if not others & {*_BDF.findall(line.text)}]

    found = Findings()
    signs = [sign for maker in WATCHED for sign in maker.signs]
    named = functools.partial(_named, labels)
    report_matches(ctx, signs, window_h * 3600, found, named, of_them)
    return found.result(f"nothing about {len(there)} accelerators in the kernel's log")


def _named(labels: Mapping[str, str], bdf: str) -> str:
    return labels.get(bdf, bdf)
