"""The host's memory: all of it there, and none of it lost to errors."""

from __future__ import annotations

import re
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.kernel_log import KernelLine
from healthchecks.sources.kernel_patterns import (
    KernelLogPattern,
    WindowH,
    Wording,
    report_matches,
)
from healthchecks.sources.mounts import table
from supervisor.core.setting import About

_KIB = 1024
_GIB = 1 << 30


_MEMORY_FIX = "drain the node, find the module (BMC log, edac-util, mcelog) and have it replaced"
_MACHINE_CHECK_FIX = (
    "read it with mcelog or rasdaemon (ras-mc-ctl --errors); drain where it comes again"
)
_APEI = r"(?:\{\d+\})?\[Hardware Error\]: +event severity: (?:fatal|recoverable)"
_MEMORY_PATTERNS = (
    KernelLogPattern(
        name="page_lost",
        wordings=(
            Wording(
                source="Linux 4.1, mm/memory-failure.c action_result",
                substring="Memory failure: 0x",
                regex=r"Memory failure: 0x[\da-f]+: ",
                example="Memory failure: 0x1c0f2a3: recovery action for dirty LRU page: Recovered",
            ),
            Wording(
                source="Linux before 4.1, mm/memory-failure.c",
                substring="MCE 0x",
                regex=r"MCE 0x[\da-f]+: [\w ()-]{6,}: (?:Recovered|Ignored|Failed|Delayed)",
                example="MCE 0x1c0f2a3: dirty LRU page recovery: Recovered",
            ),
            Wording(
                source="Linux 5.12, arch/x86/kernel/cpu/mce/core.c kill_me_maybe",
                substring="Uncorrected hardware memory error",
                regex=r"(?:mce: )?Uncorrected hardware memory error in user-access at [\da-f]+",
                example="mce: Uncorrected hardware memory error in user-access at 1c0f2a3000",
            ),
            Wording(
                source="Linux 2.6 to 6.12, arch/x86/mm/fault.c do_sigbus",
                substring="MCE: Killing ",
                regex=r"MCE: Killing .{1,15}:\d+ due to hardware memory corruption fault at ",
                example="MCE: Killing python3:4242 due to hardware memory corruption fault at "
                "7f21c0de0000",
            ),
        ),
        status=Status.FAIL,
        what="a page of memory was lost to an uncorrected error",
        fix=_MEMORY_FIX,
        until_boot=True,
    ),
    KernelLogPattern(
        name="uncorrected",
        wordings=(
            Wording(
                # It says where it was, to the page; a name has room for `MC0: 1 UE `.
                source="Linux 3.x to 6.12, drivers/edac/edac_mc.c, of Intel, AMD and GHES",
                substring="EDAC",
                regex=r"EDAC (MC\d+): \d+ UE [^][():,]*on [^():,]*"
                r"\([^()]*page:0x[\da-f]+ offset:0x[\da-f]+ ",
                example="EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 "
                "(channel:1 "
                "slot:0 page:0x1c0f2a3 offset:0x0 grain:32 -  err_code:0x0101:0x0091)",
            ),
        ),
        status=Status.FAIL,
        what="uncorrected memory error",
        fix=_MEMORY_FIX,
        until_boot=True,
    ),
    KernelLogPattern(
        name="uncorrected_cache",
        wordings=(
            Wording(
                source="Linux 2.6 to 6.12, drivers/edac/edac_device.c (caches of arm64)",
                substring="EDAC DEVICE",
                regex=r"EDAC (DEVICE\d+): UE: \w+ instance: \S+ block: ",
                example="EDAC DEVICE0: UE: cpu_cache instance: cpu3 block: L2 count: 1 'L2'",
            ),
        ),
        status=Status.FAIL,
        what="uncorrected error in a cache",
        fix="drain the node; have the processor looked at where it comes again",
        until_boot=True,
    ),
    KernelLogPattern(
        name="soft_offline",
        wordings=(
            Wording(
                source="Linux 4.x to 5.17, mm/memory-failure.c soft_offline_page",
                substring="oft offline: 0x",
                regex=r"[Ss]oft offline: 0x[\da-f]+: ",
                example="soft offline: 0x1c0f2a3: migrated 1 pages",
            ),
            Wording(
                source="Linux, drivers/ras/cec.c do_work: the collector of corrected errors",
                substring="Soft-offlining pfn: 0x",
                regex=r"RAS: Soft-offlining pfn: 0x[\da-f]+",
                example="RAS: Soft-offlining pfn: 0x1c0f2a3",
            ),
            Wording(
                source="Linux 5.18, mm/memory-failure.c, soft_offline_in_use_page",
                substring="oft_offline",
                regex=r"(?:Memory failure: )?soft_offline[\w]*: 0x[\da-f]+: ",
                example="soft_offline: 0x1c0f2a3: page migration failed 1",
            ),
        ),
        status=Status.WARN,
        what="a page was taken out of use after corrected errors",
        fix="find the module (edac-util -v) and have it replaced at the next service",
        until_boot=True,
    ),
    KernelLogPattern(
        name="apei_pcie",
        wordings=(
            Wording(
                source="Linux, drivers/firmware/efi/cper.c cper_print_pcie (APEI)",
                substring="[Hardware Error]:",
                regex=_APEI + r"(?!.*memory error).*section[_ ]type: PCIe error"
                r"(?:.*device_id: ([\da-f:.]+))?",
                example="{1}[Hardware Error]: event severity: recoverable; section_type: PCIe "
                "error; "
                "device_id: 0000:17:00.0",
            ),
        ),
        status=Status.WARN,
        what="the firmware reported an uncorrected PCIe error",
        fix="look what is at this address (lspci -s); see pcie.errors, nic.kmsg and xid",
    ),
    KernelLogPattern(
        name="apei_memory",
        wordings=(
            Wording(
                source="Linux, drivers/firmware/efi/cper.c cper_print_mem (APEI)",
                substring="[Hardware Error]:",
                regex=_APEI + r".*section[_ ]type: memory error",
                example="{1}[Hardware Error]: event severity: recoverable; section_type: memory "
                "error",
            ),
        ),
        status=Status.FAIL,
        what="the firmware reported an uncorrected memory error",
        fix=_MEMORY_FIX,
        until_boot=True,
    ),
    KernelLogPattern(
        name="apei",
        wordings=(
            Wording(
                source="Linux, drivers/firmware/efi/cper.c cper_estatus_print (APEI)",
                substring="[Hardware Error]:",
                regex=_APEI,
                example="{1}[Hardware Error]: event severity: recoverable",
            ),
        ),
        status=Status.FAIL,
        what="the firmware reported an uncorrected hardware error",
        fix="drain the node and have the part replaced that the BMC's log names (superv check "
        "ipmi.sel; ras-mc-ctl --errors)",
        until_boot=True,
    ),
    KernelLogPattern(
        name="uncorrected_machine_check",
        wordings=(
            Wording(
                source="Linux, arch/x86/kernel/cpu/mce/core.c print_mce (Intel, AMD)",
                substring="Machine Check Exception",
                regex=r"(?:mce: )?\[Hardware Error\]: CPU \d+: Machine Check Exception: [\da-f]+ "
                r"Bank ",
                example="mce: [Hardware Error]: CPU 2: Machine Check Exception: 5 Bank 1: "
                "be00000000800400",
            ),
            Wording(
                source="Linux, drivers/edac/mce_amd.c amd_decode_mce",
                substring="[Hardware Error]: ",
                regex=r"(?:mce: )?\[Hardware Error\]: "
                r"(?:Uncorrected, software (?:restartable|containable) error|System Fatal error)",
                example="[Hardware Error]: Uncorrected, software restartable error.",
            ),
            Wording(
                source="Linux, arch/arm64/kernel/traps.c arm64_serror_panic",
                substring="SError Interrupt on CPU",
                regex=r"SError Interrupt on CPU\d+, code 0x[\da-f]+ -- ",
                example="SError Interrupt on CPU5, code 0x00000000be000011 -- SError",
            ),
            Wording(
                source="Linux before 5.15, arch/arm64/kernel/traps.c bad_mode",
                substring="Bad mode in Error handler",
                regex=r"Bad mode in Error handler detected on CPU\d+, code 0x[\da-f]+ -- SError",
                example="Bad mode in Error handler detected on CPU1, code 0xbf000002 -- SError",
            ),
            Wording(
                source="Linux 5.13 to 6.12, arch/x86/kernel/cpu/mce/core.c mce_timed_out",
                substring="CPUs not responding to MCE broadcast",
                regex=r"mce: CPUs not responding to MCE broadcast \(may include false positives\)",
                example="mce: CPUs not responding to MCE broadcast (may include false "
                "positives): 24-47,72-95",
            ),
        ),
        status=Status.FAIL,
        what="a machine check that was not corrected",
        fix=_MEMORY_FIX,
        until_boot=True,
    ),
    KernelLogPattern(
        name="machine_check",
        wordings=(
            Wording(
                source="Linux, arch/x86/kernel/cpu/mce/core.c",
                substring="[Hardware Error]:",
                regex=r"(?:mce: )?\[Hardware Error\]: "
                r"(?:Machine check events logged|CPU \d+: Machine Check: [\da-f]+ Bank \d)",
                example="mce: [Hardware Error]: Machine check events logged",
            ),
            Wording(
                source="Linux, drivers/edac/mce_amd.c amd_decode_mce: data is poisoned, nobody "
                "used it",
                substring="[Hardware Error]: ",
                regex=r"(?:mce: )?\[Hardware Error\]: Deferred error, no action required",
                example="[Hardware Error]: Deferred error, no action required.",
            ),
        ),
        status=Status.WARN,
        what="machine check",
        fix=_MACHINE_CHECK_FIX,
    ),
    KernelLogPattern(
        name="storm",
        wordings=(
            Wording(
                source="Linux 3.5 to 6.12, mce/intel.c, mce/threshold.c; since 6.9 by bank",
                substring="CMCI storm detected",
                regex=r"(?:mce: )?(?:CPU\d+ BANK\d+ )?CMCI storm() detected",
                example="mce: CMCI storm detected: switching to poll mode",
            ),
        ),
        status=Status.WARN,
        what="a storm of machine checks that were corrected",
        fix=_MACHINE_CHECK_FIX,
        cleared_by="CMCI storm subsided",
        cleared_regex=r"(?:mce: )?(?:CPU\d+ BANK\d+ )?CMCI storm() subsided",
    ),
)
_RECORD = re.compile(r"(\{\d+\})?\[Hardware Error\]: +(.*)", re.DOTALL)
_SAYS_WHERE = ("section_type: ", "section type: ", "device_id: ")


def _apei_records(lines: list[KernelLine]) -> list[KernelLine]:
    """One line for each record that the firmware reports: severity, sections and devices.

    The kernel prints it in many lines with one number, or without one in older versions, of which
    the first has the severity.
    """
    found: list[KernelLine] = []
    heads: dict[str, KernelLine] = {}
    for line in sorted(lines, key=lambda line: line.seq):
        part = _RECORD.match(line.text)
        if part is None:
            found.append(line)
            continue
        number, text = part[1] or "", part[2].strip()
        if text.startswith("event severity: "):
            heads[number] = line
            found.append(line)
        elif text.startswith(_SAYS_WHERE) and number in heads:
            heads[number].text += f"; {text}"
        else:
            found.append(line)
    return found


@check("mem.poison", tags={"preflight", "running"})
def mem_poison(
    ctx: Ctx,
    *,
    corrected_per_h: Annotated[
        float, About(doc="Corrected errors of a memory controller to warn at.", unit="/h", ge=0)
    ] = 100.0,
    window_h: WindowH = 24.0,
) -> Result:
    """No memory of the host is lost to hardware errors.

    HardwareCorrupted of /proc/meminfo, uncorrected errors of EDAC (absent in most VMs) and machine
    checks in the kernel's log; any uncorrected error is FAIL. Corrected errors are judged by rate;
    the threshold is our own.
    """
    found = Findings()
    report_matches(ctx, _MEMORY_PATTERNS, window_h * 3600, found, joined=_apei_records)
    corrupted = None
    for line in ctx.text("proc/meminfo").splitlines():
        if line.startswith("HardwareCorrupted:"):
            corrupted = int(line.split()[1])
    controllers = [n for n in ctx.names("sys/devices/system/edac/mc") if n.startswith("mc")]
    if corrupted is None and not controllers and not found.metrics:
        raise Skip("this kernel counts no memory errors: no HardwareCorrupted, no EDAC")
    if corrupted is not None:
        found.metric("corrupted", corrupted * 1024, "B")
        corrupted = ctx.since_repair("corrupted", corrupted)
    if "soft_offline" in found.metrics:
        ctx.memory.put("soft_offline", True)
    uncorrected = {
        mc: ctx.since_repair(mc, ctx.number(f"sys/devices/system/edac/mc/{mc}/ue_count"))
        for mc in controllers
    }
    if corrupted:
        # Pages that the kernel moved away from corrected errors count there too, and lost nothing.
        moved = ctx.memory.get("soft_offline") or (controllers and not any(uncorrected.values()))
        found.add(
            Status.WARN if moved else Status.FAIL,
            f"{corrupted} kB of memory are out of use after corrected errors"
            if moved
            else f"{corrupted} kB of memory are lost to hardware errors",
            expected="0 kB HardwareCorrupted in /proc/meminfo",
            fix="find the module (edac-util -v) and have it replaced at the next service"
            if moved
            else _MEMORY_FIX,
        )
    for mc, ue in uncorrected.items():
        ce = ctx.number(f"sys/devices/system/edac/mc/{mc}/ce_count")
        found.metric(f"{mc}_corrected", ce)
        if ue:
            found.fail(f"{ue} uncorrected errors", expected="none", fix=_MEMORY_FIX, device=mc)
        delta = ctx.memory.counter_delta(mc, ce)
        if delta is None and ce:
            found.not_yet("first look: no rate of corrected errors yet")
        elif delta and delta.by >= corrected_per_h and delta.per_s * 3600 >= corrected_per_h:
            found.warn(
                f"{delta.by:.0f} corrected errors in {delta.over_s / 3600:.1f} h",
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
        float, About(doc="Difference that is tolerated.", unit="%", ge=0, le=50)
    ] = 3.0,
    shm_percent: Annotated[
        float, About(doc="Least size of /dev/shm, of all memory.", unit="%", ge=0, le=100)
    ] = 10.0,
    shm_gib: Annotated[
        float, About(doc="That much is enough, however little of all memory.", unit="GiB", ge=0)
    ] = 8.0,
) -> Result:
    """All memory is there, evenly on its NUMA nodes, and /dev/shm has its share.

    MemTotal within 3 % as in Azure's node health checks, of what site.yaml says and of the most
    that this node had (a module that is no longer seen; `superv accept` forgets it); NUMA nodes
    with CPUs within 3 % of each other. NCCL and data loaders keep buffers in /dev/shm, whose
    default is half of the memory; less than 10 % and than 8 GiB (nccl.shm) is our own threshold.
    The cohort's fact is MemTotal, rounded to 1 or 2 %.
    """
    found = Findings()
    total = _meminfo(ctx.text("proc/meminfo"), "MemTotal:")
    found.metric("total", total, "B")
    step = 1 << (total // 100).bit_length()
    found.fact("memory", f"{round(total / step) * step / _GIB:g} GiB")
    _as_before(ctx, found, total, within_percent)
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
        least = min(total * shm_percent / 100, shm_gib * _GIB)
        if shm < least:
            found.fail(
                f"shared memory is limited to {shm / _GIB:.1f} GiB (/dev/shm)",
                expected=f"{least / _GIB:.1f} GiB or more",
                fix="mount -o remount,size=50% /dev/shm, and fix /etc/fstab or the container",
            )
    return found.result(f"{total / _GIB:.0f} GiB of memory")


_BALLOONS = ("virtio", "hv", "vmw", "xen")  # their drivers, as kernel modules


def _as_before(ctx: Ctx, found: Findings, total: int, within_percent: float) -> None:
    """Against the node's own past. Memory of devices, which comes with a driver, does not count."""
    sizes = _sizes(ctx)
    size = sum(sizes.values()) or total
    most = max(size, int(ctx.memory.get("most") or 0))
    ctx.memory.put("most", most, lasting=True)
    if (1 - size / most) * 100 > within_percent:
        # Hosts of guests take memory away, and give it back, through a balloon.
        guest = any(f"{name}_balloon" in ctx.names("sys/module") for name in _BALLOONS)
        found.add(
            Status.WARN if guest else Status.FAIL,
            f"{size / _GIB:.0f} GiB of memory, and {most / _GIB:.0f} were here before",
            expected=f"{most / _GIB:.0f} GiB, {within_percent:g} % less at most",
            fix="drain the node and look for a module that is not seen (dmidecode -t memory, BMC); "
            + ("look at what the host gives this guest; " if guest else "")
            + "where it was taken out on purpose: superv nodes NODE --repaired NOTE",
        )


def _sizes(ctx: Ctx) -> dict[str, int]:
    """NUMA nodes with CPUs, in bytes; those without are memory of devices."""
    base = "sys/devices/system/node"
    return {
        name: _meminfo(ctx.text(f"{base}/{name}/meminfo"), "MemTotal:")
        for name in ctx.names(base)
        if name[4:].isdigit() and ctx.maybe(f"{base}/{name}/cpulist")
    }


def _meminfo(text: str, name: str) -> int:
    """A value of meminfo in bytes. Raises Unknown where it is not there."""
    for line in text.splitlines():
        head, found, rest = line.partition(name)
        if found and (not head or head.startswith("Node")):
            return int(rest.split()[0]) * _KIB
    raise Unknown(f"meminfo has no {name.rstrip(':')}")


def _even(ctx: Ctx, found: Findings, within_percent: float) -> None:
    sizes = _sizes(ctx)
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
    mounted = table(ctx).top("/dev/shm")  # noqa: S108 - a mount point, not a file of ours
    if mounted is None:
        return None
    size = mounted.value("size")
    if not size:
        return total // 2
    unit = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(size[-1], 0)
    return int(size[:-1]) * unit if unit else int(size)
