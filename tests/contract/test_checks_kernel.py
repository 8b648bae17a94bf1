"""Health checks that read the kernel's log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from checks import NOW, Case, Change, both, each_of, garbled, looks, lost, nothing, run, wrote

from healthchecks.frame.check import Status
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import CheckCall, run_probe
from healthchecks.frame.registry import registered
from healthchecks.sources.xid import XIDS, Act
from tests.hardware.tree import GPU_BDFS, Tree

UP_S = 864_000.0  # of the healthy node
DAY_S = 86_400.0


def logged(*lines: str, ago_s: float = 60.0) -> Change:
    """The kernel wrote these some time before NOW."""

    def do(tree: Tree) -> None:
        log = tree.read("dev/kmsg")
        number = log.count("\n") + 1
        at_us = int((UP_S - ago_s) * 1e6)
        rows = [f"4,{number + i},{at_us + i},-;{line}" for i, line in enumerate(lines)]
        tree.write("dev/kmsg", "\n".join([log, *rows]))

    return do


def at_uptime(ago_s: float) -> Change:
    """The node as it was so many seconds before NOW."""
    return wrote("proc/uptime", f"{UP_S - ago_s} 1.0")


def xid(code: int, gpu: int = 3, text: str = "pid=4242, name=python3, Ch 00000008") -> str:
    return f"NVRM: Xid (PCI:{GPU_BDFS[gpu].rpartition('.')[0]}): {code}, {text}"


def recovery(was: str, now: str, gpu: int = 3) -> str:
    return xid(154, gpu, f"GPU recovery action changed from {was} to {now}")


_NONE, _RESET, _REBOOT = "0x0 (None)", "0x1 (GPU Reset Required)", "0x2 (Node Reboot Required)"
_LINK_DOWN = "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 0x0 0x0)"
_FOLLOW = "RLW_SRC_TRACK Nonfatal XC1 i0 Link 12 (0x040988e2 0x00000008 0x0 0x0)"


def at_times(code: int, gpus: Sequence[int], *ago_s: float) -> Change:
    return both(*(logged(*(xid(code, gpu) for gpu in gpus), ago_s=ago) for ago in ago_s))


XID = [
    Case(check="xid", name="healthy", status=Status.OK, seen="no Xid in the kernel's log, which"),
    Case(
        check="xid",
        name="off the bus",
        change=logged(xid(79, text="GPU has fallen off the bus.")),
        status=Status.FAIL,
        seen="gpu3: Xid 79 GPU has fallen off the bus (0000:4e:00, 20",
    ),
    Case(
        check="xid",
        name="gsp timeout long ago in this boot",
        change=logged(xid(119), ago_s=9 * DAY_S),
        status=Status.FAIL,
        seen="Xid 119",
    ),
    Case(
        check="xid",
        name="stays when there is nothing new",
        earlier=[(3 * DAY_S, both(at_uptime(3 * DAY_S), logged(xid(95), ago_s=3 * DAY_S + 9)))],
        change=both(at_uptime(0), wrote("dev/kmsg", "6,900,863000000000,-;all the old is gone")),
        status=Status.FAIL,
        seen="Xid 95",
    ),
    Case(
        check="xid",
        name="stays when the log can't be read any more",
        earlier=[(60, logged(xid(95)))],
        change=lost("dev/kmsg"),
        status=Status.FAIL,
        seen="Xid 95",
    ),
    Case(
        check="xid",
        name="cured as the driver says",
        change=both(
            logged(xid(119), recovery(_NONE, _RESET), ago_s=900),
            logged(recovery(_RESET, _NONE), ago_s=300),
        ),
        status=Status.OK,
        seen="3 Xids, none of which needs anything now",
    ),
    Case(
        check="xid",
        name="cured by a new start of the driver",
        change=both(
            logged(xid(119), recovery(_NONE, _RESET), ago_s=900),
            logged("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580", ago_s=300),
        ),
        status=Status.OK,
    ),
    Case(
        check="xid",
        name="a new start of the driver does not cure a lost GPU",
        change=both(
            logged(xid(79), ago_s=900),
            logged("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580", ago_s=300),
        ),
        status=Status.FAIL,
    ),
    Case(
        check="xid",
        name="another GPU's cure is not this one's",
        change=both(logged(xid(119), ago_s=900), logged(recovery(_RESET, _NONE, gpu=4), ago_s=300)),
        status=Status.FAIL,
        seen="gpu3: Xid 119",
    ),
    Case(
        check="xid",
        name="a program that runs on, and its job",
        change=both(
            wrote("proc/4242/comm", "python3"),
            wrote(
                "proc/4242/cgroup", "0::/system.slice/slurmstepd.scope/job_77/step_0/user/task_3"
            ),
            logged(xid(31)),
        ),
        status=Status.WARN,
        seen=", by python3, pid 4242 of Slurm job 77)",
    ),
    Case(
        check="xid",
        name="a program of cgroup v1, and its job",
        change=both(
            wrote("proc/4242/comm", "python3"),
            wrote(
                "proc/4242/cgroup", "4:memory:/slurm_n1/uid_1000/job_78/step_0\n1:name=systemd:/"
            ),
            logged(xid(43)),
        ),
        status=Status.WARN,
        seen=", by python3, pid 4242 of Slurm job 78)",
    ),
    Case(
        check="xid",
        name="a program that another one with its number came after",
        change=both(
            wrote("proc/4242/comm", "bash"),
            wrote("proc/4242/cgroup", "0::/system.slice/slurmstepd.scope/job_79/step_0"),
            logged(xid(13)),
        ),
        status=Status.WARN,
        seen=", by python3, pid 4242)",
    ),
    Case(
        check="xid",
        name="a program that ended long ago",
        earlier=[(600.0, both(at_uptime(600), logged(xid(45), ago_s=700)))],
        change=both(at_uptime(0), lost("dev/kmsg"), wrote("dev/kmsg", "6,1,1,-;empty")),
        status=Status.WARN,
        seen=", by python3, pid 4242)",
    ),
    Case(
        check="xid",
        name="a program without a name, before driver 510",
        change=logged(xid(31, text="pid=11461, Ch 00000053, intr 10000000. MMU Fault: ENGINE")),
        status=Status.WARN,
        seen=", by pid 11461)",
    ),
    Case(
        check="xid",
        name="a program whose name steers a terminal",
        change=logged(xid(31, text="pid=7, name=\\x1b[31m a, b, Ch 1, intr 1. MMU Fault: ENGINE")),
        status=Status.WARN,
        seen="[31m a, pid 7)",
    ),
    Case(
        check="xid",
        name="no program, and a GPU's own error",
        change=logged(xid(119)),
        status=Status.FAIL,
        seen="(0000:4e:00, 2025-11-24 15:59:00)",
    ),
    Case(
        check="xid",
        name="recovery action alone",
        change=logged(recovery(_NONE, _RESET)),
        status=Status.FAIL,
        seen="recovery action is now GPU Reset Required",
    ),
    Case(
        check="xid",
        name="nvlink 5 link down",
        change=logged(xid(149, text=_LINK_DOWN)),
        status=Status.FAIL,
        seen="Xid 149 NETIR_LINK_EVT.4 NVLink error, link 08",
    ),
    Case(
        check="xid",
        name="nvlink 5 asks for the recovery action",
        change=logged(xid(145, text=_FOLLOW)),
        status=Status.WARN,
        seen="Xid 145 RLW_SRC_TRACK.0",
    ),
    Case(
        check="xid",
        name="nvlink 5 of a reset is not outdone by one to ignore",
        change=logged(
            xid(145, text="RLW_REMAP Fatal XC0 i0 Link 00 (0x00000004 0x00000040 0x0)"),
            xid(145, text="RLW_REMAP Nonfatal XC0 i0 Link 00 (0x00000004 0x00000100 0x0)"),
        ),
        status=Status.FAIL,
    ),
    Case(
        check="xid",
        name="application once",
        change=logged(xid(31)),
        status=Status.WARN,
        seen="Xid 31 GPU memory page fault",
    ),
    Case(
        check="xid",
        name="application yesterday",
        change=logged(xid(31), ago_s=DAY_S + 60),
        status=Status.OK,
    ),
    Case(
        check="xid",
        name="application within a longer window",
        change=logged(xid(31), ago_s=DAY_S + 60),
        options={"window_h": 48},
        status=Status.WARN,
    ),
    Case(
        check="xid",
        name="application again and again on one GPU",
        change=at_times(13, [3], 9000, 6000, 3000),
        status=Status.WARN,  # it follows a program's rank from node to node
        seen="again and again on this GPU",
    ),
    *(
        Case(
            check="xid",
            name=f"application {code} a hundred times",
            change=at_times(code, [3], *range(80_000, 0, -800)),
            status=Status.WARN,
        )
        for code in sorted(code for code, one in XIDS.items() if one.act is Act.APP)
    ),
    Case(
        check="xid",
        name="application again and again in one minute is once",
        change=at_times(13, [3], 160, 130, 110, 70),
        status=Status.WARN,
    ),
    Case(
        check="xid",
        name="application again and again on all GPUs is the application",
        change=at_times(31, range(8), 9000, 6000, 3000),
        status=Status.WARN,
    ),
    Case(
        check="xid",
        name="torn down alone",
        change=logged(xid(45)),
        status=Status.WARN,
        seen="Xid 45 channel torn down",
    ),
    Case(
        check="xid",
        name="torn down after another error",
        change=logged(xid(31, gpu=5), xid(45), xid(43)),
        status=Status.WARN,
        seen="gpu5: Xid 31",
    ),
    Case(
        check="xid",
        name="contained once",
        change=logged(xid(94), xid(63, text="Row Remapper: New row marked for remapping")),
        status=Status.WARN,
        seen="Xid 94 contained memory error",
    ),
    Case(
        check="xid",
        name="contained twice",
        change=both(logged(xid(94), ago_s=5 * DAY_S), logged(xid(94))),
        status=Status.FAIL,
        seen="2 incidents and 0 row remappings in 28 days",
    ),
    Case(
        check="xid",
        name="contained once in each of two boots",
        memory={
            "lasting": {
                "recurring": [
                    {
                        "device": "0000:4e:00",
                        "code": 94,
                        "name": "Xid 94",
                        "act": "restart the application, once",
                        "meaning": "contained memory error",
                        "fix": "…",
                        "first": NOW - 12 * DAY_S,
                        "last": NOW - 12 * DAY_S,
                        "count": 1,
                        "recovery": None,
                        "episodes": [NOW - 12 * DAY_S],
                    }
                ]
            }
        },
        change=logged(xid(94)),
        status=Status.FAIL,
        seen="2 incidents",
    ),
    Case(
        check="xid",
        name="contained and rows remapped again",
        change=both(logged(xid(63), ago_s=5 * DAY_S), logged(xid(63), xid(94))),
        status=Status.FAIL,
        seen="1 incidents and 2 row remappings",
    ),
    Case(check="xid", name="remapped", change=logged(xid(63)), status=Status.OK, seen="1 Xids"),
    Case(
        check="xid",
        name="unknown code",
        change=logged(xid(999)),
        status=Status.WARN,
        seen="Xid 999 not in the catalog",
    ),
    Case(
        check="xid",
        name="unknown code that the site knows",
        change=logged(xid(999)),
        options={"ignore": [999]},
        status=Status.OK,
    ),
    Case(
        check="xid",
        name="switch fatal",
        change=logged(
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
        ),
        status=Status.FAIL,
        seen="nvswitch0: SXid 20034 NVSwitch fatal error",
    ),
    Case(
        check="xid",
        name="switch not fatal",
        change=logged(
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress error"
        ),
        status=Status.WARN,
        seen="nvswitch3: SXid 12028",
    ),
    Case(
        check="xid",
        name="lines lost",
        earlier=[(60, logged("seen"))],
        change=wrote("dev/kmsg", "6,900,863999000000,-;much later"),
        status=Status.WARN,
        seen="894 lines of the kernel's log were overwritten",
    ),
    Case(check="xid", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(check="xid", name="garbled log", change=garbled("dev/kmsg"), status=Status.UNKNOWN),
    Case(
        check="xid",
        name="no driver",
        change=lost("proc/driver/nvidia/gpus"),
        status=Status.SKIP,
    ),
    Case(
        check="xid",
        name="no driver any more but an error",
        change=both(lost("proc/driver/nvidia/gpus"), logged(xid(79))),
        status=Status.FAIL,
        seen="0000:4e:00: Xid 79",
    ),
]


def _mlx5(text: str, bus: str = "9a") -> str:
    return f"mlx5_core 0000:{bus}:00.0{text}"


_DOWN, _UP = _mlx5(" ib4: Link down"), _mlx5(" ib4: Link up")
_IB4 = "sys/class/infiniband/mlx5_4/ports/1"


def downs(*ago_s: float) -> Change:
    """The port of mlx5_4 loses its link for two seconds, several times."""
    return both(*(both(logged(_DOWN, ago_s=a), logged(_UP, ago_s=a - 2)) for a in ago_s))


def counted(by: int) -> Change:
    return lambda tree: tree.add(f"{_IB4}/counters/link_downed", by)


FLAP = [
    Case(check="ib.flap", name="healthy", status=Status.OK, seen="10 ports without repeated"),
    Case(
        check="ib.flap",
        name="three in twelve hours",
        change=downs(9000, 6000, 3000),
        status=Status.WARN,
        seen="mlx5_4: lost its link 3 times in 24 h",
    ),
    Case(check="ib.flap", name="two", change=downs(9000, 6000), status=Status.OK),
    Case(check="ib.flap", name="three in a day", change=downs(80000, 70000, 60), status=Status.OK),
    Case(
        check="ib.flap",
        name="six in a day",
        change=downs(80000, 70000, 60000, 50000, 40000, 30000),
        status=Status.FAIL,
        seen="mlx5_4: lost its link 6 times",
    ),
    Case(
        check="ib.flap",
        name="once for a minute",
        change=both(logged(_DOWN, ago_s=200), logged(_UP, ago_s=140)),
        status=Status.WARN,
        seen="once for 60 s",
    ),
    Case(check="ib.flap", name="while booting", change=downs(*([UP_S - 60] * 9)), status=Status.OK),
    Case(
        check="ib.flap",
        name="by the counter",
        earlier=[(9000, counted(7)), (6000, counted(4))],
        change=counted(2),
        status=Status.FAIL,
        seen="mlx5_4: lost its link 6 times",
    ),
    Case(
        check="ib.flap",
        name="counter and log are the same losses",
        earlier=[(9000, nothing)],
        change=both(counted(3), downs(900, 600, 300)),
        status=Status.WARN,
        seen="lost its link 3 times",
    ),
    Case(
        check="ib.flap",
        name="remembered",
        earlier=[(3600, both(at_uptime(3600), downs(9000, 6000, 4000)))],
        change=at_uptime(0),
        status=Status.WARN,
        seen="lost its link 3 times",
    ),
    Case(
        check="ib.flap",
        name="counters alone",
        earlier=[(60, lost("dev/kmsg"))],
        status=Status.OK,
        seen="by their counters alone",
    ),
    Case(check="ib.flap", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(
        check="ib.flap",
        name="no counter",
        change=garbled(f"{_IB4}/counters/link_downed"),
        status=Status.UNKNOWN,
    ),
    Case(check="ib.flap", name="no ports", empty=True, status=Status.SKIP),
]

NIC = [
    Case(check="nic.kmsg", name="healthy", status=Status.OK, seen="nothing about 14 NICs"),
    Case(
        check="nic.kmsg",
        name="health",
        change=logged(
            _mlx5(": poll_health:801:(pid 0): device's health compromised - reached miss count")
        ),
        status=Status.FAIL,
        seen="mlx5_4: the NIC's firmware does not answer",
    ),
    Case(
        check="nic.kmsg",
        name="command",
        change=logged(
            _mlx5(
                ": wait_func:1195:(pid 1967): ENABLE_HCA(0x104) timeout. Will cause a leak of a "
                "command resource"
            ),
            ago_s=9 * DAY_S,
        ),
        status=Status.FAIL,
        seen="mlx5_4: a command to the NIC's firmware got no answer",
    ),
    Case(
        check="nic.kmsg",
        name="started again",
        change=logged(
            _mlx5(": poll_health:801:(pid 0): device's health compromised - reached miss count"),
            _mlx5(": firmware version: 28.43.2026"),
        ),
        status=Status.OK,
    ),
    Case(
        check="nic.kmsg",
        name="another was started again",
        change=logged(
            _mlx5(": poll_health:801:(pid 0): device's health compromised - reached miss count"),
            _mlx5(": firmware version: 28.43.2026", bus="ab"),
        ),
        status=Status.FAIL,
    ),
    Case(
        check="nic.kmsg",
        name="power",
        change=logged(
            _mlx5(
                ": mlx5_pcie_event:301:(pid 2): Detected insufficient power on the PCIe slot (27W)."
            ),
            ago_s=3 * DAY_S,
        ),
        status=Status.WARN,
        seen="too little power",
    ),
    Case(
        check="nic.kmsg",
        name="temperature",
        change=logged(_mlx5(": Port module event[error]: module 0, Cable error, High Temperature")),
        status=Status.WARN,
        seen="mlx5_4: a transceiver is too hot",
    ),
    Case(
        check="nic.kmsg",
        name="temperature of yesterday",
        change=logged(
            _mlx5(": Port module event[error]: module 0, Cable error, High Temperature"),
            ago_s=DAY_S + 60,
        ),
        status=Status.OK,
    ),
    Case(
        check="nic.kmsg",
        name="module",
        change=logged(_mlx5(": Port module event[error]: module 0, Cable error, Bus stuck")),
        status=Status.WARN,
        seen="a transceiver or cable has an error",
    ),
    Case(check="nic.kmsg", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(
        check="nic.kmsg",
        name="no driver",
        change=both(lost("sys/class/infiniband"), lost("sys/module/mlx5_core")),
        status=Status.SKIP,
    ),
]


def edac(ue: int, ce: int) -> Change:
    mc = "sys/devices/system/edac/mc/mc0"
    return both(wrote(f"{mc}/ue_count", str(ue)), wrote(f"{mc}/ce_count", str(ce)))


_CORRUPTED = "HardwareCorrupted:        0 kB"

POISON = [
    Case(check="mem.poison", name="healthy", status=Status.OK, seen="no memory lost"),
    Case(
        check="mem.poison",
        name="corrupted",
        change=lambda tree: tree.change("proc/meminfo", _CORRUPTED, "HardwareCorrupted: 8 kB"),
        status=Status.FAIL,
        seen="8 kB of memory are lost",
    ),
    Case(
        check="mem.poison",
        name="uncorrected",
        change=edac(1, 0),
        status=Status.FAIL,
        seen="mc0: 1 uncorrected errors",
    ),
    Case(
        check="mem.poison",
        name="corrected before the first look",
        change=edac(0, 10**6),
        status=Status.UNKNOWN,
        seen="first look: no rate of corrected errors yet",
    ),
    Case(
        check="mem.poison",
        name="corrected before",
        earlier=[(3600, edac(0, 10**6))],
        status=Status.OK,
    ),
    Case(
        check="mem.poison",
        name="corrected now",
        earlier=[(3600, edac(0, 10**6))],
        change=edac(0, 10**6 + 500),
        status=Status.WARN,
        seen="mc0: 500 corrected errors in 1.0 h",
    ),
    *(
        Case(check="mem.poison", name=name, change=logged(line), status=status, seen=seen)
        for name, line, status, seen in (
            (
                "page",
                "Memory failure: 0x1c0f2a3: recovery action for dirty LRU page: Recovered",
                Status.FAIL,
                "a page of memory was lost",
            ),
            (
                "edac line",
                "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0 (channel:1 "
                "slot:0 page:0x1c0f2a3 offset:0x0 grain:32)",
                Status.FAIL,
                "MC0: uncorrected memory error",
            ),
            (
                "edac line of a corrected error",
                "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_MC#0_Chan#1_DIMM#0",
                Status.OK,
                "",
            ),
            (
                "firmware",
                "{1}[Hardware Error]: event severity: recoverable",
                Status.FAIL,
                "the firmware reported",
            ),
            (
                "firmware corrected",
                "{1}[Hardware Error]: event severity: corrected",
                Status.OK,
                "",
            ),
            (
                "machine check",
                "mce: [Hardware Error]: Machine check events logged",
                Status.WARN,
                "machine check",
            ),
        )
    ),
    Case(check="mem.poison", name="no meminfo", change=lost("proc/meminfo"), status=Status.UNKNOWN),
    Case(check="mem.poison", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(
        check="mem.poison",
        name="not counted",
        change=lambda tree: tree.change("proc/meminfo", _CORRUPTED, ""),
        status=Status.SKIP,
    ),
]

KERNEL = [
    Case(check="kernel", name="healthy", status=Status.OK, seen="no lockup, stall, oops"),
    *(
        Case(check="kernel", name=name, change=logged(line), status=status, seen=seen)
        for name, line, status, seen in (
            (
                "soft lockup",
                "watchdog: BUG: soft lockup - CPU#15 stuck for 48s! [jfsz:2290]",
                Status.FAIL,
                "a CPU was stuck",
            ),
            (
                "hard lockup",
                "NMI watchdog: Watchdog detected hard LOCKUP on cpu 31",
                Status.FAIL,
                "interrupts off",
            ),
            (
                "hung task",
                "INFO: task python3:16371 blocked for more than 120 seconds.",
                Status.WARN,
                "a process was stuck",
            ),
            (
                "rcu",
                "rcu: INFO: rcu_preempt self-detected stall on CPU",
                Status.WARN,
                "a CPU did not answer",
            ),
            (
                "rcu others",
                "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
                Status.WARN,
                "a CPU did not answer",
            ),
            ("oops", "Oops: 0000 [#1] PREEMPT SMP NOPTI", Status.WARN, "kernel oops"),
            ("bug at", "kernel BUG at mm/slub.c:4023!", Status.WARN, "kernel bug"),
            (
                "null pointer",
                "BUG: kernel NULL pointer dereference, address: 0000000000000010",
                Status.WARN,
                "kernel bug",
            ),
            (
                "general protection",
                "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] "
                "PREEMPT SMP",
                Status.WARN,
                "may not",
            ),
            (
                "a user's fault",
                "traps: python3[4242] general protection fault ip:7f1 sp:7ff error:0 in libc.so.6",
                Status.OK,
                "",
            ),
        )
    ),
    Case(
        check="kernel",
        name="long ago",
        change=logged("watchdog: BUG: soft lockup - CPU#15 stuck for 48s! [a:1]", ago_s=DAY_S + 9),
        status=Status.OK,
    ),
    Case(
        check="kernel",
        name="killed",
        earlier=[(60, nothing)],
        change=lambda tree: tree.change("proc/vmstat", "oom_kill 0", "oom_kill 3"),
        status=Status.WARN,
        seen="3 processes were killed for want of memory",
    ),
    Case(
        check="kernel",
        name="killed before",
        change=lambda tree: tree.change("proc/vmstat", "oom_kill 0", "oom_kill 26"),
        status=Status.OK,
    ),
    Case(check="kernel", name="no vmstat", change=lost("proc/vmstat"), status=Status.UNKNOWN),
    Case(check="kernel", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(check="kernel", name="", status=Status.SKIP, none="every node has a kernel"),
]

NOVELTY = [
    Case(
        check="kmsg.novelty", name="first look", status=Status.UNKNOWN, seen="first look: 0 kinds"
    ),
    Case(
        check="kmsg.novelty",
        name="new",
        earlier=[(60, logged("Bluetooth: hci0: command 0x0c03 tx timeout"))],
        change=logged("Bluetooth: hci0: command 0x0c05 tx timeout", "fuse: bad argument 7"),
        status=Status.OK,
        seen="1 new kinds of warnings: fuse: bad argument 7",
    ),
    Case(
        check="kmsg.novelty",
        name="nothing new",
        earlier=[(60, logged("a line of 5 words"))],
        change=logged("a line of 7 words"),
        status=Status.OK,
        seen="no new kind",
    ),
    Case(
        check="kmsg.novelty",
        name="expected by the site",
        earlier=[(60, nothing)],
        change=logged("sitefs: 5 stripes are away"),
        options={"expected": ["sitefs:"]},
        status=Status.OK,
        seen="no new kind",
    ),
    Case(check="kmsg.novelty", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(check="kmsg.novelty", name="bad", status=Status.WARN, none="it informs and never warns"),
    Case(check="kmsg.novelty", name="", status=Status.SKIP, none="every node has a kernel"),
]

_LUSTRE = "42 29 0:60 / /lustre rw,relatime shared:9 - lustre 10.0.0.9@o2ib:/fs1 rw,flock"


def lustre(tree: Tree) -> None:
    table = tree.read("proc/self/mountinfo")
    tree.write("proc/self/mountinfo", f"{table}\n{_LUSTRE}")


DEVICES = [
    *(
        Case(check=check, name="healthy", status=Status.OK, seen="nothing about")
        for check in ("pcie.kmsg", "disk.kmsg")
    ),
    *(
        Case(check=check, name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN)
        for check in ("pcie.kmsg", "disk.kmsg")
    ),
    *(
        Case(check=check, name="no kernel", status=Status.SKIP, none="every node has a kernel")
        for check in ("pcie.kmsg", "disk.kmsg")
    ),
    Case(
        check="pcie.kmsg",
        name="a card that was taken out and put in again",
        change=both(
            logged("pcieport 0000:17:01.0: pciehp: Slot(3): Card not present", ago_s=60),
            logged("pcieport 0000:17:01.0: pciehp: Slot(3): Card present", ago_s=30),
        ),
        status=Status.OK,
    ),
    Case(
        check="pcie.kmsg",
        name="a card that was put into another slot",
        change=both(
            logged("pcieport 0000:17:01.0: pciehp: Slot(3): Card not present", ago_s=60),
            logged("pcieport 0000:97:01.0: pciehp: Slot(4): Card present", ago_s=30),
        ),
        status=Status.WARN,
        seen="0000:17:01.0: a card or its link was lost",
    ),
    Case(
        check="disk.kmsg",
        name="a file system shut down long ago in this boot",
        change=logged("XFS (dm-3): log I/O error -5", ago_s=9 * DAY_S),
        status=Status.FAIL,
        seen="dm-3: the file system was shut down",
    ),
    Case(check="storage.kmsg", name="NFS alone", status=Status.SKIP, seen="no shared file system"),
    Case(check="storage.kmsg", name="quiet", change=lustre, status=Status.OK),
    Case(
        check="storage.kmsg",
        name="no log",
        change=both(lustre, lost("dev/kmsg")),
        status=Status.UNKNOWN,
    ),
    Case(
        check="storage.kmsg",
        name="a server that many nodes miss",
        change=logged(
            "Lustre: fs1-OST0001-osc-ffff9d6153c91000: Connection to fs1-OST0001 (at "
            "10.0.0.1@tcp) was lost; in progress operations using this service will wait"
        ),
        status=Status.WARN,
        shared="lustre target fs1-OST0001",
    ),
]

CASES: list[Case] = [*XID, *FLAP, *NIC, *POISON, *KERNEL, *NOVELTY, *DEVICES]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def _fix(*lines: str, tmp_path: Path) -> str:
    case = Case(check="xid", name="", status=Status.FAIL, change=logged(*lines))
    return looks(case, tmp_path)[-1].fix


def test_the_recovery_action_overrides_the_table(tmp_path: Path) -> None:
    assert "reset the GPU" in _fix(xid(119), tmp_path=tmp_path)
    assert _fix(xid(119), recovery(_NONE, _REBOOT), tmp_path=tmp_path) == (
        "drain the node and reboot it"
    )


def test_what_two_reboots_did_not_cure_asks_for_hardware(tmp_path: Path) -> None:
    memory: dict[str, object] = {}
    fixes = []
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc/driver/nvidia/gpus/0000:4e:00.0").mkdir(parents=True)
    (tmp_path / "proc/uptime").write_text("1000.0 1.0")
    (tmp_path / "dev/kmsg").write_text("4,7,900000000,-;NVRM: Xid (PCI:0000:4e:00): 119, Timeout\n")
    for boot in range(3):
        kept = Memory(memory, NOW)
        now = NOW + boot * DAY_S
        ctx = Ctx(root=tmp_path, node="n", now=now, boot_id=f"boot{boot}", memory=kept)
        result = run_probe(CheckCall(check=registered()["xid"], on="", options={}), ctx)
        assert result.status is Status.FAIL
        assert result.devices == ("gpu0",)
        fixes.append(result.fix)
        memory = {"lasting": kept.data["lasting"]}
    assert "replaced" not in fixes[1]
    assert "3 boots in 28 days did not cure it" in fixes[2]


@pytest.mark.parametrize("again", [False, True])
def test_memory_stays_small_whatever_the_log_holds(tmp_path: Path, again: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/uptime").write_text("100000.0 1.0")
    (tmp_path / "dev/kmsg").write_text(
        "".join(
            f"4,{n},{n * 400_000},-;NVRM: Xid (PCI:0000:{n % 200:02x}:00): {n % 200}, pid={n}\n"
            for n in range(40_000)
        )
    )
    memory = Memory({}, NOW)
    for _ in range(2 if again else 1):
        ctx = Ctx(root=tmp_path, node="n", now=NOW, boot_id="b", memory=memory)
        result = run_probe(CheckCall(check=registered()["xid"], on="", options={}), ctx)
        assert result.status is Status.WARN and "not corroborated" in result.seen
    assert len(str(memory.data)) < 400_000
