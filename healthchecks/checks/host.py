"""The host itself: its kernel, clock, CPU time and stuck processes."""

from __future__ import annotations

import os
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import topology
from supervisor.core.setting import About
from supervisor.host import procfs

_PARAMETERS = (  # of the kernel's command line, those that change speed or behaviour
    "iommu",
    "intel_iommu",
    "amd_iommu",
    "hugepages",
    "hugepagesz",
    "default_hugepagesz",
    "transparent_hugepage",
    "isolcpus",
    "nohz_full",
    "rcu_nocbs",
    "numa_balancing",
    "mitigations",
    "nosmt",
    "idle",
    "intel_idle.max_cstate",
    "processor.max_cstate",
    "intel_pstate",
    "pci",
    "pcie_aspm",
    "clocksource",
    "tsc",
    "cgroup_no_v1",
    "systemd.unified_cgroup_hierarchy",
)


@check("host.boot", tags={"preflight"}, cohort=Status.WARN)
def host_boot(ctx: Ctx) -> Result:
    """Kernel, boot parameters and huge pages are those of the other nodes.

    The facts are for the cohort: iommu, huge pages, C-states, mitigations and the like change how
    fast a node is without any error. Alone they are neither right nor wrong.
    """
    found = Findings()
    kernel = ctx.text("proc/sys/kernel/osrelease")
    found.fact("kernel", kernel)
    given = ctx.text("proc/cmdline").split()
    found.fact(
        "boot_parameters",
        " ".join(sorted(p for p in given if p.partition("=")[0] in _PARAMETERS)) or "none",
    )
    pages = ctx.maybe("sys/kernel/mm/transparent_hugepage/enabled") or ""
    found.fact("transparent_hugepage", pages.partition("[")[2].partition("]")[0] or "absent")
    for line in (ctx.maybe("etc/os-release") or "").splitlines():
        if line.startswith(("ID=", "VERSION_ID=")):
            found.fact(line.partition("=")[0].lower(), line.partition("=")[2].strip('"'))
    return found.result(f"Linux {kernel}")


@check("dstate", tags={"preflight", "running"})
def dstate(
    ctx: Ctx,
    *,
    after_s: Annotated[
        float, About(doc="How long a process may sleep uninterruptibly.", unit="s", ge=1)
    ] = 300.0,
    ignore: Annotated[tuple[str, ...], About(doc="Names of processes that may.")] = (),
) -> Result:
    """No process has been in uninterruptible sleep for minutes.

    300 s as facebookresearch/gcm check_process; a process counts from the first look that sees it,
    and again when it has run in between. It waits for a disk, a file server or a driver: the kernel
    function says which.
    """
    found = Findings()
    since: dict[str, float] = ctx.memory.get("since") or {}
    asleep: dict[str, float] = {}
    for pid, name, state, _, _, started in procfs.processes(os.fspath(ctx.path("proc"))):
        if state != "D" or name in ignore:
            continue
        key = f"{pid} {started} {_switches(ctx, pid)}"
        asleep[key] = since.get(key, ctx.now)
        lasted = ctx.now - asleep[key]
        if lasted >= after_s:
            where = ctx.maybe(f"proc/{pid}/wchan") or ""
            at = f" in {where}" if where not in ("", "0") else ""
            found.warn(
                f"process {pid} ({name}) has slept uninterruptibly for {lasted:.0f} s{at}",
                expected=f"less than {after_s:g} s",
                fix="look what it waits for (cat /proc/PID/stack; superv check nfs); "
                "where it can't be ended, reboot",
            )
    ctx.memory.put("since", asleep)
    found.metric("processes", len(asleep))
    return found.result(f"{len(asleep)} processes in uninterruptible sleep, none for long")


def _switches(ctx: Ctx, pid: int) -> str:
    """How often the process has given up its CPU: unchanged means that it never woke."""
    for line in (ctx.maybe(f"proc/{pid}/status") or "").split("\n"):
        if line.startswith("voluntary_ctxt_switches:"):
            return line.split()[1]
    return ""


@check("cpu.steal", tags={"preflight", "running"})
def cpu_steal(
    ctx: Ctx,
    *,
    most_percent: Annotated[
        float, About(doc="CPU time that the host may take.", unit="%", ge=0, le=100)
    ] = 1.0,
) -> Result:
    """The host leaves this virtual machine its CPUs.

    Growth of steal in /proc/stat since the last look, of all CPU time; 1 % is our own threshold. At
    the first look it is the share since boot.
    """
    found = Findings()
    fields = ctx.text("proc/stat").splitlines()[0].split()
    if fields[0] != "cpu" or len(fields) < 9:
        raise Unknown("/proc/stat has no line of all CPUs with steal")
    ticks = [int(field) for field in fields[1:9]]  # guest time is part of user
    steal, every = ticks[7], sum(ticks)
    stolen, passed = (
        ctx.memory.counter_delta("steal", steal),
        ctx.memory.counter_delta("all", every),
    )
    since = "since the last look"
    if stolen is None or passed is None or passed.by <= 0:
        share, since = 100.0 * steal / max(1, every), "since boot"
    else:
        share = 100.0 * stolen.by / passed.by
    found.metric("steal", share, "%")
    if share > most_percent:
        found.warn(
            f"the host took {share:.1f} % of the CPU time {since}",
            expected=f"{most_percent:g} % or less",
            fix="ask the provider: vCPUs must be pinned to CPUs of their own",
        )
    return found.result(f"the host took {share:.2f} % of the CPU time {since}")


_STA_UNSYNC, _STA_NANO = 0x0040, 0x2000
_GOOD_SOURCES = (
    "tsc",
    "kvm-clock",
    "hyperv_clocksource_tsc_page",
    "xen",
    "arch_sys_counter",
)


@check("clock", tags={"preflight", "running"}, cohort=Status.WARN)
def clock(
    ctx: Ctx,
    *,
    warn_ms: Annotated[float, About(doc="Offset to warn at.", unit="ms", ge=0)] = 100.0,
    fail_ms: Annotated[float, About(doc="Offset to fail at.", unit="ms", ge=0)] = 1000.0,
) -> Result:
    """The clock is disciplined, near the right time, and cheap to read.

    The kernel's own view (adjtimex): STA_UNSYNC, offset and estimated error. 100 ms and 1 s are our
    own thresholds: logs of a run are put in order by time. Clock source as in facebookresearch/gcm:
    any but the TSC and paravirtual ones make each reading of the time slow.
    """
    found = Findings()
    source = ctx.text("sys/devices/system/clocksource/clocksource0/current_clocksource")
    found.fact("clocksource", source)
    if source not in _GOOD_SOURCES:
        found.warn(
            f"the clock source is {source}",
            expected="tsc or kvm-clock",
            fix="look why the kernel distrusts the TSC (dmesg | grep -i tsc); reboot",
        )
    offset_s, error_s, unsynced = _discipline()
    found.metric("offset", offset_s, "s")
    if unsynced:
        found.warn(
            "nothing disciplines the clock (STA_UNSYNC)",
            expected="chronyd or another time service that is in step",
            fix="chronyc tracking; systemctl restart chronyd; rtcsync belongs into its file",
        )
    else:
        found.metric("error", error_s, "s")
        off = max(abs(offset_s), error_s)
        if off * 1000 >= warn_ms:
            found.add(
                Status.FAIL if off * 1000 >= fail_ms else Status.WARN,
                f"the clock is {off * 1000:.0f} ms off",
                expected=f"less than {warn_ms:g} ms",
                fix="chronyc tracking; chronyc makestep",
            )
    return found.result(f"{source}, {offset_s * 1e6:.0f} µs off")


def _discipline() -> tuple[float, float, bool]:
    """Offset and estimated error (s), and whether nothing disciplines the clock: adjtimex(2)."""
    import ctypes

    class Timex(ctypes.Structure):
        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("rest", ctypes.c_char * 256),
        )

    answer = Timex(modes=0)  # 0: only reads
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.byref(answer)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "adjtimex")
    offset_s = answer.offset / (1e9 if answer.status & _STA_NANO else 1e6)
    return offset_s, answer.esterror / 1e6, bool(answer.status & _STA_UNSYNC)


@check("governor", tags={"preflight"}, cohort=Status.WARN)
def governor(
    ctx: Ctx,
    *,
    wanted: Annotated[str, About(doc="The governor that CPUs should have.")] = "performance",
) -> Result:
    """CPUs run at full speed and don't save power.

    scaling_governor of cpufreq, as in Oracle's and Meta's node checks. Virtual machines have none.
    """
    topology.hardware(ctx)  # a laptop may save power
    found = Findings()
    base = "sys/devices/system/cpu/cpufreq"
    policies = [name for name in ctx.names(base) if name.startswith("policy")]
    if not policies:
        raise Skip("no cpufreq, as in most virtual machines")
    counts: dict[str, int] = {}
    for policy in policies:
        now = ctx.text(f"{base}/{policy}/scaling_governor")
        counts[now] = counts.get(now, 0) + 1
    found.fact("governor", ",".join(sorted(counts)))
    others = {name: count for name, count in counts.items() if name != wanted}
    if others:
        found.warn(
            ", ".join(f"{count} CPUs have the governor {name}" for name, count in others.items()),
            expected=wanted,
            fix=f"cpupower frequency-set -g {wanted}",
        )
    return found.result(f"{len(policies)} CPUs have the governor {wanted}")
