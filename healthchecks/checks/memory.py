"""The host's memory: all of it there, and none of it lost to errors."""

from __future__ import annotations

from typing import Annotated

from healthchecks.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.context import Ctx
from healthchecks.kernel_signs import Sign, watch
from supervisor.core.setting import About

_KIB = 1024
_GIB = 1 << 30


_MEMORY_FIX = "drain the node, find the module (BMC log, edac-util, mcelog) and have it replaced"
_MEMORY_SIGNS = (
    Sign(
        name="page_lost",
        needle="Memory failure: 0x",
        status=Status.FAIL,
        what="a page of memory was lost to an uncorrected error",
        fix=_MEMORY_FIX,
        lasts=True,
    ),
    Sign(
        name="uncorrected",
        needle="EDAC",
        pattern=r"EDAC (MC\d+): \d+ UE ",
        status=Status.FAIL,
        what="uncorrected memory error",
        fix=_MEMORY_FIX,
        lasts=True,
    ),
    Sign(
        name="apei",
        needle="[Hardware Error]:",
        pattern=r"event severity: (?:fatal|recoverable)",
        status=Status.FAIL,
        what="the firmware reported an uncorrected hardware error",
        fix=_MEMORY_FIX,
        lasts=True,
    ),
    Sign(
        name="machine_check",
        needle="[Hardware Error]:",
        pattern=r"Machine [Cc]heck(?::| events logged)",
        status=Status.WARN,
        what="machine check",
        fix="read it with mcelog or rasdaemon (ras-mc-ctl --errors); drain where it comes again",
    ),
)


@check("mem.poison", tags={"preflight", "running"})
def mem_poison(
    ctx: Ctx,
    *,
    corrected_per_h: Annotated[
        float, About(doc="Corrected errors of a memory controller to warn at.", unit="/h", least=0)
    ] = 100.0,
    window_h: Annotated[
        float, About(doc="How long what is over is shown.", unit="h", least=0)
    ] = 24.0,
) -> Result:
    """No memory of the host is lost to hardware errors.

    HardwareCorrupted of /proc/meminfo, uncorrected errors of EDAC (absent in most VMs) and machine
    checks in the kernel's log; any uncorrected error is FAIL. Corrected errors are judged by rate;
    the threshold is our own.
    """
    found = Findings()
    watch(ctx, _MEMORY_SIGNS, window_h * 3600, found)
    corrupted = None
    for line in ctx.text("proc/meminfo").splitlines():
        if line.startswith("HardwareCorrupted:"):
            corrupted = int(line.split()[1])
    controllers = [n for n in ctx.names("sys/devices/system/edac/mc") if n.startswith("mc")]
    if corrupted is None and not controllers and not found.metrics:
        raise Skip("this kernel counts no memory errors: no HardwareCorrupted, no EDAC")
    if corrupted is not None:
        found.metric("corrupted", corrupted * 1024, "B")
    if corrupted:
        found.fail(
            f"{corrupted} kB of memory are lost to hardware errors",
            expected="0 kB HardwareCorrupted in /proc/meminfo",
            fix=_MEMORY_FIX,
        )
    for mc in controllers:
        ue = ctx.number(f"sys/devices/system/edac/mc/{mc}/ue_count")
        ce = ctx.number(f"sys/devices/system/edac/mc/{mc}/ce_count")
        found.metric(f"{mc}_corrected", ce)
        if ue:
            found.fail(f"{ue} uncorrected errors", expected="none", fix=_MEMORY_FIX, device=mc)
        rise = ctx.memory.rise(mc, ce)
        if rise and rise.by >= corrected_per_h and rise.per_s * 3600 >= corrected_per_h:
            found.warn(
                f"{rise.by:.0f} corrected errors in {rise.over_s / 3600:.1f} h",
                expected=f"less than {corrected_per_h:g}/h",
                fix="find the module (edac-util -v) and have it replaced at the next service",
                device=mc,
            )
    return found.result("no memory lost to hardware errors")


@check("mem.size", tags={"preflight", "running"}, cohort=Status.FAIL)
def mem_size(
    ctx: Ctx,
    *,
    expected_gib: Annotated[
        float, About(doc="What the node should have; 0: only compared with its cohort.", unit="GiB")
    ] = 0.0,
    within_percent: Annotated[
        float, About(doc="Difference that is fine.", unit="%", least=0, most=50)
    ] = 3.0,
    shm_percent: Annotated[
        float, About(doc="Least size of /dev/shm, of all memory.", unit="%", least=0, most=100)
    ] = 10.0,
) -> Result:
    """All memory is there, evenly on its NUMA nodes, and /dev/shm has its share.

    MemTotal within 3 % as in Azure's node health checks; NUMA nodes with CPUs within 3 % of each
    other. NCCL and data loaders keep buffers in /dev/shm, whose default is half of the memory; less
    than 10 % is our own threshold. The cohort's fact is MemTotal, rounded to 1 or 2 %.
    """
    found = Findings()
    total = _meminfo(ctx.text("proc/meminfo"), "MemTotal:")
    found.metric("total", total, "B")
    step = 1 << (total // 100).bit_length()
    found.fact("memory", f"{round(total / step) * step / _GIB:g} GiB")
    if expected_gib and abs(total / _GIB / expected_gib - 1) * 100 > within_percent:
        found.fail(
            f"{total / _GIB:.0f} GiB of memory",
            expected=f"{expected_gib:g} GiB, {within_percent:g} % more or less",
            fix="drain the node and look for a module that is not seen (dmidecode -t memory, BMC)",
        )
    _even(ctx, found, within_percent)
    shm = _shm_size(ctx, total)
    if shm is None:
        found.fail(
            "no /dev/shm is mounted",
            expected="a tmpfs on /dev/shm",
            fix="mount -t tmpfs tmpfs /dev/shm, and look why the boot did not",
        )
    else:
        found.metric("shm", shm, "B")
        if shm < total * shm_percent / 100:
            found.fail(
                f"shared memory is limited to {shm / _GIB:.1f} GiB (/dev/shm)",
                expected=f"{total * shm_percent / 100 / _GIB:.0f} GiB or more",
                fix="mount -o remount,size=50% /dev/shm, and mend /etc/fstab or the container",
            )
    return found.result(f"{total / _GIB:.0f} GiB of memory")


def _meminfo(text: str, name: str) -> int:
    """A value of meminfo in bytes. Raises Unknown where it is not there."""
    for line in text.splitlines():
        head, found, rest = line.partition(name)
        if found and (not head or head.startswith("Node")):
            return int(rest.split()[0]) * _KIB
    raise Unknown(f"meminfo has no {name.rstrip(':')}")


def _even(ctx: Ctx, found: Findings, within_percent: float) -> None:
    """NUMA nodes with CPUs; those without are memory of devices."""
    base = "sys/devices/system/node"
    sizes = {
        name: _meminfo(ctx.text(f"{base}/{name}/meminfo"), "MemTotal:")
        for name in ctx.names(base)
        if name[4:].isdigit() and ctx.maybe(f"{base}/{name}/cpulist")
    }
    most = max(sizes.values(), default=0)
    for name, size in sizes.items():
        if (1 - size / most) * 100 > within_percent:
            found.fail(
                f"{size / _GIB:.0f} GiB, and {most / _GIB:.0f} on the largest",
                expected=f"NUMA nodes within {within_percent:g} % of each other",
                fix="drain the node and look for a module that is not seen (dmidecode -t memory); "
                "in a VM at how the host gives it its memory",
                device=name,
            )


def _shm_size(ctx: Ctx, total: int) -> int | None:
    """Limit of /dev/shm from its mount options, without touching it; None where there is none."""
    for line in ctx.text("proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] != "/dev/shm":  # noqa: S108 - a mount point, not a file of ours
            continue
        for option in right.split()[2].split(","):
            if option.startswith("size="):
                value = option.removeprefix("size=")
                unit = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(value[-1], 0)
                return int(value[:-1]) * unit if unit else int(value)
        return total // 2
    return None
