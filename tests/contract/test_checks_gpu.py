"""GPU checks, through the real loader, on the NVML of tests/hardware/nvml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checks import NOW, Case, Change, both, each_of, garbled, lost, nothing, run, wrote

from healthchecks.frame.check import Status
from healthchecks.frame.registry import registered
from tests.hardware.nvml import ROOT, SCRIPT, Worker, build, environment
from tests.hardware.tree import BOOT_ID, GPU_BDFS, LPF, Tree, borrowed

OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL
UNKNOWN, SKIP = Status.UNKNOWN, Status.SKIP
DAY, MINUTE = 86400.0, 60.0
HUNG_FUSE = ROOT / "tests" / "unit" / "hung_fuse.py"
UUID = "GPU-0b200000-0000-0000-0000-00000000000{}".format
SERIAL = "165302500000{}".format


def says(*lines: str) -> Change:
    """NVML answers as the lines say, see tests/hardware/nvml/libnvidia-ml.c."""
    return lambda tree: tree.write(SCRIPT, "\n".join(lines))


def no_gpu_on_bus(tree: Tree) -> None:
    for bdf in GPU_BDFS:
        tree.remove(f"sys/bus/pci/devices/{bdf}")


def no_gpu(tree: Tree) -> None:
    """A node without GPUs and without their driver."""
    no_gpu_on_bus(tree)
    tree.remove("sys/module/nvidia/version")


def one_gpu(tree: Tree) -> None:
    for bdf in GPU_BDFS[1:]:
        tree.remove(f"sys/bus/pci/devices/{bdf}")
    says("nvmlDeviceGetCount_v2 * value 1")(tree)


# What each check can't do without. A timeout of it is UNKNOWN, a GPU that does not have it is left
# out, a GPU that is lost at it is a FAIL that names it, whatever the other seven say.
CALLS = {
    "gpu.recovery_action": "nvmlDeviceGetFieldValues/230",
    "persistence": "nvmlDeviceGetPersistenceMode",
    "gpu.leftover": "nvmlDeviceGetComputeRunningProcesses_v3",
    "mig": "nvmlDeviceGetMigMode",
    "inforom": "nvmlDeviceValidateInforom",
    "ecc.mode": "nvmlDeviceGetEccMode",
    "ecc.unc_volatile": "nvmlDeviceGetMemoryErrorCounter",
    "ecc.unc_aggregate": "nvmlDeviceGetMemoryErrorCounter",
    "ecc.corrected_rate": "nvmlDeviceGetMemoryErrorCounter",
    "sram.threshold": "nvmlDeviceGetSramEccErrorStatus",
    "remap.pending": "nvmlDeviceGetRemappedRows",
    "remap.failed": "nvmlDeviceGetRemappedRows",
    "remap.unc": "nvmlDeviceGetRemappedRows",
    "remap.trend": "nvmlDeviceGetRemappedRows",
    "repair.pending": "nvmlDeviceGetRepairStatus",
    "pages.retired": "nvmlDeviceGetRetiredPages",
    "clock.events": "nvmlDeviceGetCurrentClocksEventReasons",
    "clock.max": "nvmlDeviceGetMaxClockInfo",
    "thermal": "nvmlDeviceGetTemperatureThreshold",
    "power.limit": "nvmlDeviceGetEnforcedPowerLimit",
    "fabric.state": "nvmlDeviceGetGpuFabricInfoV",
    "nvlink.links": "nvmlDeviceGetNvLinkState",
    "nvlink.errors": "nvmlDeviceGetFieldValues",
    "p2p": "nvmlDeviceGetP2PStatus",
}


# What comes before it in CALLS is not supported, so that the check gets there.
OLDER = {"thermal": "nvmlDeviceGetMarginTemperature * rc 3"}


def _of_calls() -> list[Case]:
    cases = []
    for check, call in CALLS.items():
        older = OLDER.get(check, "")
        cases += [
            Case(
                check=check,
                name="no answer in time",
                change=says(older, f"{call} * rc 10"),
                status=UNKNOWN,
                seen="Timeout (10)",
            ),
            Case(
                check=check, name="not supported", change=says(older, f"{call} * rc 3"), status=SKIP
            ),
            Case(
                check=check,
                name="one GPU is lost",
                change=says(older, f"{call} 3 rc 15"),
                status=FAIL,
                seen="gpu3: ",
            ),
        ]
    return cases


REMAPPED = "nvmlDeviceGetRemappedRows 3 value {} {} {} {}".format  # cor, unc, pending, failed
SLOW = says("nvmlDeviceGetCurrentClocksEventReasons 2 value 64")
COUNTED = "nvmlDeviceGetMemoryErrorCounter/{} 3 value {}".format
NVLINK = "nvmlDeviceGetFieldValues/{}.{} 3 value {}".format
PCIE = "nvmlDeviceGetFieldValues/{} 3 value {}".format
SECOND_VERSION = says(
    "nvmlDeviceGetGpuFabricInfoV/3 * rc 25", "nvmlDeviceGetGpuFabricInfoV/2 3 value 2"
)
UNMANAGED = [lost(f"sys/class/infiniband/{name}") for name in LPF]
MANAGED = both(
    wrote("proc/2101/comm", "nv-fabricmanage"),
    wrote("proc/2102/comm", "nvlsm"),
)


def _hidden_vpd(tree: Tree) -> None:
    """Vital product data that one may not read: a file that root may not read either."""
    for name in LPF:
        path = f"sys/class/infiniband/{name}/device/vpd"
        tree.remove(path)
        os.symlink("/proc/sys/vm/drop_caches", tree.path(path))


_GPU = [
    Case(check="gpu.driver_hang", name="healthy", status=OK, seen="8 GPUs"),
    Case(check="gpu.driver_hang", name="hangs", status=FAIL, none="what hangs: test_a_hung_driver"),
    Case(
        check="gpu.driver_hang",
        name="driver not loaded",
        change=says("nvmlInitWithFlags * rc 9"),
        status=UNKNOWN,
        seen="Driver Not Loaded (9)",
    ),
    Case(
        check="gpu.driver_hang",
        name="a library without NVML's calls",
        change=says("nvmlInitWithFlags * rc 13"),
        status=UNKNOWN,
        seen="no NVML library",
    ),
    Case(check="gpu.driver_hang", name="no GPU", change=no_gpu, status=SKIP),
    Case(check="gpu.count", name="healthy", status=OK, seen="8 GPUs"),
    Case(
        check="gpu.count",
        name="one less on the bus",
        change=both(
            lost(f"sys/bus/pci/devices/{GPU_BDFS[7]}"), says("nvmlDeviceGetCount_v2 * value 7")
        ),
        status=FAIL,
        seen="7 GPUs are on the PCI bus",
    ),
    Case(
        check="gpu.count",
        name="one less in NVML",
        change=says("nvmlDeviceGetCount_v2 * value 7"),
        status=FAIL,
        seen=f"NVML knows 7 of the 8 GPUs on the PCI bus; not {GPU_BDFS[7]}",
    ),
    Case(
        check="gpu.count",
        name="four are fine where four are expected",
        change=both(
            *(lost(f"sys/bus/pci/devices/{bdf}") for bdf in GPU_BDFS[4:]),
            says("nvmlDeviceGetCount_v2 * value 4"),
        ),
        options={"expected": [4, 8]},
        status=OK,
    ),
    Case(
        check="gpu.count",
        name="four where there were eight",
        change=both(
            *(lost(f"sys/bus/pci/devices/{bdf}") for bdf in GPU_BDFS[4:]),
            says("nvmlDeviceGetCount_v2 * value 4"),
        ),
        options={"expected": [4, 8]},
        memory={"lasting": {"most": 8}},
        status=FAIL,
        seen="8 were here before",
    ),
    Case(
        check="gpu.count",
        name="all are gone",
        change=no_gpu,
        memory={"lasting": {"most": 8}},
        status=FAIL,
        seen="0 GPUs are on the PCI bus (8 were here before)",
    ),
    Case(
        check="gpu.count",
        name="driver not loaded",
        change=says("nvmlInitWithFlags * rc 9"),
        status=FAIL,
        seen="Driver Not Loaded (9)",
    ),
    Case(
        check="gpu.count",
        name="bus can't be read",
        change=garbled(f"sys/bus/pci/devices/{GPU_BDFS[0]}/vendor"),
        status=UNKNOWN,
    ),
    Case(
        check="gpu.count",
        name="driver without GPUs",
        change=no_gpu_on_bus,
        status=UNKNOWN,
        seen="the nvidia driver is loaded",
    ),
    Case(
        check="gpu.count",
        name="library without GPUs",
        change=both(no_gpu, wrote("usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "")),
        status=UNKNOWN,
        seen="libnvidia-ml.so.1 is installed",
    ),
    Case(check="gpu.count", name="no GPU", change=no_gpu, status=SKIP),
    Case(check="gpu.handle", name="healthy", status=OK, seen="8 GPUs"),
    Case(
        check="gpu.handle",
        name="unknown error",
        change=says("nvmlDeviceGetHandleByIndex_v2 3 rc 999"),
        memory={"lasting": {"serials": {GPU_BDFS[3]: SERIAL(3)}}},
        status=FAIL,
        seen=f"gpu3: nvmlDeviceGetHandleByIndex: Unknown Error (999) ({GPU_BDFS[3]}, serial "
        f"{SERIAL(3)})",
    ),
    Case(
        check="gpu.handle",
        name="two are lost",
        change=says(
            "nvmlDeviceGetHandleByIndex_v2 2 rc 15", "nvmlDeviceGetHandleByIndex_v2 6 rc 15"
        ),
        status=FAIL,
        seen=f"gpu6: nvmlDeviceGetHandleByIndex: GPU is lost (15) ({GPU_BDFS[6]})",
    ),
    Case(
        check="gpu.handle",
        name="reset required at its temperature",
        change=says("nvmlDeviceGetTemperatureV 5 rc 16"),
        status=FAIL,
        seen="gpu5: nvmlDeviceGetTemperatureV: GPU requires restart (16)",
    ),
    Case(
        check="gpu.handle",
        name="lost at its name",
        change=says("nvmlDeviceGetName 1 rc 15"),
        status=FAIL,
        seen=f"GPU is lost (15) ({GPU_BDFS[1]}",
    ),
    Case(
        check="gpu.handle",
        name="version mismatch",
        change=says("nvmlInitWithFlags * rc 18"),
        status=FAIL,
        seen="version mismatch",
    ),
    Case(
        check="gpu.handle",
        name="no handle in time",
        change=says("nvmlDeviceGetHandleByIndex_v2 5 rc 10"),
        status=UNKNOWN,
        seen="gpu5: nvmlDeviceGetHandleByIndex: Timeout (10)",
    ),
    Case(
        check="gpu.handle",
        name="one does not answer in time",
        change=says("nvmlDeviceGetTemperatureV 5 rc 10"),
        status=UNKNOWN,
    ),
    Case(check="gpu.handle", name="no GPU", change=no_gpu, status=SKIP),
    Case(check="gpu.recovery_action", name="healthy", status=OK),
    Case(
        check="gpu.recovery_action",
        name="a field that the driver does not know",
        change=says("nvmlDeviceGetFieldValues/230 * rc 2"),
        status=SKIP,
    ),
    *(
        Case(
            check="gpu.recovery_action",
            name=f"action {action}",
            change=says(PCIE(230, action)),
            status=FAIL,
            seen=f"gpu3: the driver asks for {text}",
        )
        for action, text in ((1, "a reset"), (2, "a reboot of the node"), (9, "something new"))
    ),
    Case(check="gpu.driver_uptime", name="healthy", status=OK, seen="10.0 days"),
    Case(
        check="gpu.driver_uptime",
        name="61 days",
        change=wrote("proc/uptime", f"{61 * DAY} 1.0"),
        status=WARN,
        seen="61.0 days with driver 580.95.05",
    ),
    Case(check="gpu.driver_uptime", name="unreadable", change=lost("proc/uptime"), status=UNKNOWN),
    Case(check="gpu.driver_uptime", name="no GPU", change=no_gpu, status=SKIP),
    Case(check="persistence", name="healthy", status=OK),
    Case(
        check="persistence",
        name="off",
        change=says("nvmlDeviceGetPersistenceMode 3 value 0"),
        status=WARN,
        seen="gpu3",
    ),
    Case(check="gpu.leftover", name="healthy", status=OK),
    Case(
        check="gpu.leftover",
        name="a process",
        change=both(
            says("nvmlDeviceGetComputeRunningProcesses_v3 3 value 4242 1000000"),
            wrote("proc/4242/comm", "python3"),
        ),
        options={"tries": 2, "every_s": 0},
        status=FAIL,
        seen="gpu3: process 4242 computes on it (python3 of ",
    ),
    Case(
        check="gpu.leftover",
        name="a process of another namespace",
        change=says("nvmlDeviceGetComputeRunningProcesses_v3 3 value 4242 1000000"),
        options={"tries": 1},
        status=FAIL,
        seen="not seen in /proc",
    ),
    Case(
        check="gpu.leftover",
        name="memory",
        change=says("nvmlDeviceGetMemoryInfo_v2 3 value 9000000000"),
        memory={"boot": {UUID(3): 4194304}},
        status=FAIL,
        seen="gpu3: 8579 MiB more",
    ),
    Case(check="mig", name="healthy", status=OK),
    Case(
        check="mig",
        name="on after a reset",
        change=says("nvmlDeviceGetMigMode 3 value 0 1"),
        status=FAIL,
        seen="gpu3: MIG mode is off, and on after a reset",
    ),
    Case(check="inforom", name="healthy", status=OK),
    Case(
        check="inforom",
        name="corrupt",
        change=says("nvmlDeviceValidateInforom 3 rc 14"),
        status=FAIL,
        seen="gpu3: its InfoROM is corrupt",
    ),
    Case(check="versions", name="healthy", status=OK, seen="driver 580.95.05, CUDA 13.0"),
    Case(
        check="versions",
        name="library of another version",
        change=says("nvmlInitWithFlags * rc 18"),
        status=FAIL,
        seen="the loaded driver is 580.95.05, the library is another",
    ),
    Case(
        check="versions",
        name="module of another version",
        change=wrote("sys/module/nvidia/version", "570.133.20"),
        status=FAIL,
        seen="the kernel has driver 570.133.20, NVML speaks of 580.95.05",
    ),
    Case(
        check="versions",
        name="GPUs differ",
        change=says("nvmlDeviceGetVbiosVersion 3 text 97.00.11.00.01"),
        status=WARN,
        seen="differ in vbios: 97.00.11.00.01: gpu3",
    ),
    Case(
        check="versions",
        name="no answer",
        change=says("nvmlSystemGetDriverVersion * rc 10"),
        status=UNKNOWN,
    ),
    Case(check="versions", name="no GPU", change=no_gpu, status=SKIP),
]

_MEMORY = [
    *(
        Case(check=name, name="healthy", earlier=[(60.0, nothing)], status=OK, seen="8 GPUs")
        for name in CALLS
        if name.startswith(("ecc.", "sram.", "remap.", "repair."))
    ),
    Case(
        check="ecc.mode",
        name="off",
        change=says("nvmlDeviceGetEccMode 3 value 0 1"),
        status=FAIL,
        seen="gpu3: ECC is off, and on after the next reset",
    ),
    Case(
        check="ecc.unc_volatile",
        name="DRAM",
        change=says(COUNTED("1.0.2", 2)),
        status=FAIL,
        seen=f"gpu3: 2 uncorrectable DRAM errors since the driver was loaded ({GPU_BDFS[3]}, "
        f"serial {SERIAL(3)})",
    ),
    Case(
        check="ecc.unc_volatile",
        name="SRAM beside a lost GPU",
        change=says(COUNTED("1.0.7", 1), "nvmlDeviceGetHandleByIndex_v2 5 rc 15"),
        status=FAIL,
        seen="gpu3: 1 uncorrectable SRAM",
    ),
    Case(
        check="ecc.unc_volatile",
        name="a lost GPU",
        change=says("nvmlDeviceGetHandleByIndex_v2 5 rc 15"),
        status=UNKNOWN,
        seen=f"gpu5: not asked: nvmlDeviceGetHandleByIndex: GPU is lost (15) ({GPU_BDFS[5]})",
    ),
    Case(
        check="ecc.unc_volatile",
        name="unknown error",
        change=says("nvmlDeviceGetMemoryErrorCounter 3 rc 999"),
        status=FAIL,
        seen="gpu3: nvmlDeviceGetMemoryErrorCounter: Unknown Error (999)",
    ),
    Case(
        check="ecc.unc_aggregate",
        name="DRAM is history",
        change=says(COUNTED("1.1.2", 3)),
        status=OK,
    ),
    Case(
        check="ecc.unc_aggregate",
        name="SRAM",
        change=says(COUNTED("1.1.7", 1)),
        status=WARN,
        seen="gpu3: 1 uncorrectable SRAM",
    ),
    Case(
        check="sram.threshold",
        name="passed",
        change=says("nvmlDeviceGetSramEccErrorStatus 3 value 1 5 3"),
        status=FAIL,
        seen="gpu3: its SRAM errors passed NVIDIA's limit: 5 parity, 3 SECDED",
    ),
    Case(
        check="ecc.corrected_rate",
        name="a stream",
        earlier=((100.0, says(COUNTED("0.0.2", 1000))),),
        change=says(COUNTED("0.0.2", 1_771_000)),
        status=WARN,
        seen="gpu3: 17700 corrected DRAM errors/s over 100 s",
    ),
    Case(
        check="ecc.corrected_rate",
        name="a burst too short to judge",
        earlier=((5.0, says(COUNTED("0.0.2", 1000))),),
        change=says(COUNTED("0.0.2", 100_000)),
        status=UNKNOWN,
        seen="no rate yet",
    ),
    Case(
        check="ecc.corrected_rate",
        name="looks two hours apart",
        earlier=((7200.0, says(COUNTED("0.0.2", 0))),),
        change=says(COUNTED("0.0.2", 7_200_000)),
        status=WARN,
        seen="gpu3: 1000 corrected DRAM errors/s over 7200 s",
    ),
    Case(
        check="ecc.corrected_rate",
        name="many over a long life",
        earlier=((100.0, says(COUNTED("0.0.2", 50_000_000))),),
        change=says(COUNTED("0.0.2", 50_000_010)),
        status=OK,
        seen="at most 0.1 corrected errors/s",
    ),
    Case(
        check="remap.pending",
        name="idle",
        change=says(REMAPPED(0, 1, 1, 0)),
        status=FAIL,
        seen="gpu3: a row waits to be remapped",
    ),
    Case(
        check="remap.pending",
        name="in use",
        change=says(
            REMAPPED(0, 1, 1, 0), "nvmlDeviceGetComputeRunningProcesses_v3 3 value 4242 1000000"
        ),
        status=WARN,
        seen="gpu3",
    ),
    Case(
        check="remap.failed",
        name="failed",
        change=says(REMAPPED(0, 1, 0, 1)),
        status=FAIL,
        seen="gpu3: a row could not be remapped",
    ),
    Case(
        check="remap.unc",
        name="512",
        change=says(REMAPPED(0, 512, 0, 0)),
        status=FAIL,
        seen="gpu3: 512 rows",
    ),
    Case(
        check="remap.unc",
        name="a bank without spare rows",
        change=says("nvmlDeviceGetRowRemapperHistogram 3 value 2000 40 5 2 1"),
        status=WARN,
        seen="gpu3: 1 banks have no spare row left",
    ),
    Case(
        check="remap.trend",
        name="254 in 55 days",
        earlier=[(day * DAY, says(REMAPPED(254 - day * 254 // 55, 0, 0, 0))) for day in (55, 41)]
        + [(day * DAY, says(REMAPPED(254 - day * 254 // 55, 0, 0, 0))) for day in range(30, 0, -5)],
        change=says(REMAPPED(254, 0, 0, 0)),
        status=WARN,
        seen="more rows remapped for correctable errors in 30.0 days",
    ),
    Case(
        check="remap.trend",
        name="over a reboot",
        memory={"lasting": {UUID(3): [[NOW - 20 * DAY, 10, 0]]}},
        change=says(REMAPPED(30, 0, 0, 0)),
        status=WARN,
        seen="gpu3: 20 more rows remapped for correctable errors in 20.0 days",
    ),
    Case(
        check="remap.trend",
        name="many long ago",
        earlier=[(day * DAY, says(REMAPPED(200, 3, 0, 0))) for day in (90, 60, 29)],
        change=says(REMAPPED(201, 3, 0, 0)),
        status=OK,
        seen="no growth",
    ),
    Case(
        check="remap.trend",
        name="one uncorrectable",
        earlier=((3 * DAY, says(REMAPPED(0, 0, 0, 0))),),
        change=says(REMAPPED(0, 1, 0, 0)),
        status=WARN,
        seen="gpu3: 1 more rows remapped for uncorrectable errors in 3.0 days",
    ),
    Case(
        check="remap.trend",
        name="uncorrectable ones go on",
        earlier=[(day * DAY, says(REMAPPED(0, 5 - day, 0, 0))) for day in (5, 4, 3, 2)],
        change=says(REMAPPED(0, 5, 0, 0)),
        status=FAIL,
        seen="gpu3: 5 more rows",
    ),
    Case(
        check="remap.trend",
        name="cleared by a repair",
        earlier=((3 * DAY, says(REMAPPED(100, 9, 0, 0))),),
        change=says(REMAPPED(0, 0, 0, 0)),
        status=UNKNOWN,
    ),
    Case(
        check="repair.pending",
        name="channel",
        change=says("nvmlDeviceGetRepairStatus 3 value 1 0"),
        status=FAIL,
        seen="gpu3: a repair of a memory channel is pending",
    ),
    Case(
        check="repair.pending",
        name="TPC of a GPU in use",
        change=says(
            "nvmlDeviceGetRepairStatus 3 value 0 1",
            "nvmlDeviceGetComputeRunningProcesses_v3 3 value 4242 1000000",
        ),
        status=WARN,
        seen="TPC",
    ),
    Case(check="pages.retired", name="B200", status=SKIP, seen="not supported by NVIDIA B200"),
    Case(
        check="pages.retired",
        name="few",
        change=says("nvmlDeviceGetRetiredPages * value 2"),
        status=OK,
    ),
    Case(
        check="pages.retired",
        name="pending",
        change=says(
            "nvmlDeviceGetRetiredPages * value 2",
            "nvmlDeviceGetRetiredPagesPendingStatus 3 value 1",
        ),
        status=FAIL,
        seen="gpu3: a page waits",
    ),
    Case(
        check="pages.retired",
        name="60",
        change=says("nvmlDeviceGetRetiredPages * value 0", "nvmlDeviceGetRetiredPages 3 value 30"),
        status=FAIL,
        seen="gpu3: 60 pages",
    ),
]

_CLOCKS = [
    Case(check="clock.events", name="healthy", status=OK),
    Case(check="clock.events", name="one look", change=SLOW, status=WARN, seen="in 1 of 1 looks"),
    Case(
        check="clock.events",
        name="six looks",
        earlier=[(at * MINUTE, SLOW) for at in range(5, 0, -1)],
        change=SLOW,
        status=FAIL,
        seen="gpu2: hardware thermal slowdown; in 6 of 6 looks within 10 min",
    ),
    Case(
        check="clock.events",
        name="power brake between looks",
        earlier=((100.0, says(PCIE(271, 0))),),
        change=says(PCIE(271, 5_000_000_000)),
        status=WARN,
        seen="gpu3: throttled (power brake) for 5.0 % of the last 100 s",
    ),
    Case(
        check="clock.events",
        name="power cap is normal",
        change=says("nvmlDeviceGetCurrentClocksEventReasons * value 4"),
        status=OK,
    ),
    Case(check="clock.max", name="healthy", status=OK, seen="1965 MHz"),
    Case(
        check="clock.max",
        name="one differs",
        change=says("nvmlDeviceGetMaxClockInfo/1 3 value 1200"),
        status=WARN,
        seen="gpu3: at most 1200 MHz (sm); the others 1965 MHz",
    ),
    Case(
        check="clock.max",
        name="application clocks",
        change=says("nvmlDeviceGetClock/1.1 3 value 1410"),
        status=WARN,
        seen="gpu3: application clocks are set to 1410 MHz",
    ),
    Case(check="thermal", name="healthy", status=OK, seen="at least 52 °C below slowdown"),
    Case(
        check="thermal",
        name="a driver without margins",
        change=says("nvmlDeviceGetMarginTemperature * rc 3", "nvmlDeviceGetTemperatureV * rc 13"),
        status=OK,
        seen="at least 52 °C below slowdown",
    ),
    Case(
        check="thermal",
        name="warm",
        change=says("nvmlDeviceGetMarginTemperature 3 value 4"),
        status=WARN,
        seen="gpu3: 4 °C below",
    ),
    Case(
        check="thermal",
        name="hot",
        earlier=[(60.0, says("nvmlDeviceGetMarginTemperature 3 value 0"))],
        change=says("nvmlDeviceGetMarginTemperature 3 value -1"),
        status=FAIL,
        seen="gpu3: -1 °C",
    ),
    Case(
        check="thermal",
        name="hot in one look",
        change=says("nvmlDeviceGetMarginTemperature 3 value -1"),
        status=WARN,
        seen="gpu3: -1 °C",
    ),
    Case(
        check="thermal",
        name="at the highest operating temperature, slowdown is 2 degrees away",
        earlier=[(60.0, nothing)],
        change=says(
            "nvmlDeviceGetMarginTemperature 3 value 0", "nvmlDeviceGetFieldValues/194 * value -2"
        ),
        status=WARN,
        seen="gpu3: 2 °C",
    ),
    Case(check="power.limit", name="healthy", status=OK, seen="1000 W on 8 GPUs"),
    Case(
        check="power.limit",
        name="lowered",
        change=says("nvmlDeviceGetEnforcedPowerLimit 3 value 700000"),
        status=WARN,
        seen="gpu3: held to 700 W",
    ),
    Case(
        check="power.limit",
        name="below what the site wants",
        options={"watts": 1200},
        status=WARN,
        seen="gpu0: held to 1000 W",
    ),
]

_LINKS = [
    Case(check="fabric.state", name="healthy", status=OK, seen="8 GPUs: in the fabric"),
    *(
        Case(
            check="fabric.state",
            name=name,
            change=says(f"nvmlDeviceGetGpuFabricInfoV 3 value {values}"),
            status=FAIL,
            seen=f"gpu3: {text}",
        )
        for name, values, text in (
            ("status", "3 15", "fabric status 15"),
            ("degraded", "3 0 1", "degraded bandwidth"),
            ("insufficient NVLinks", f"3 0 {5 << 8}", "insufficient NVLinks"),
            (
                "limited capacity",
                f"3 0 {2 | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8} 3",
                "summary: limited capacity",
            ),
            ("not in it", "0", "is in no fabric"),
        )
    ),
    *(
        Case(
            check="fabric.state",
            name=f"{name}, {text}",
            earlier=earlier,
            change=says(f"nvmlDeviceGetGpuFabricInfoV {gpu} value {values}"),
            status=status,
            seen=f"gpu3: {text}",
        )
        for gpu, values, text in (
            ("3", "2", "fabric state 2 (in progress)"),
            ("3", "3 0 4", "a route is being recovered"),
            ("3", f"3 0 {1 << 6} 2", "recovering from an access timeout"),
        )
        for name, earlier, status in (
            ("once", (), WARN),
            ("a minute", [(60.0, says(f"nvmlDeviceGetGpuFabricInfoV 3 value {values}"))], FAIL),
        )
    ),
    Case(
        check="fabric.state",
        name="all start",
        change=says("nvmlDeviceGetGpuFabricInfoV * value 2"),
        status=UNKNOWN,
        seen="it may pass",
    ),
    Case(
        check="fabric.state",
        name="all have been starting for a minute",
        earlier=[(60.0, says("nvmlDeviceGetGpuFabricInfoV * value 2"))],
        status=FAIL,
        change=nothing,
        seen="gpu0: fabric state 2",
    ),
    Case(
        check="fabric.state",
        name="all have been starting for a minute, right after a boot",
        earlier=[
            (
                60.0,
                both(
                    says("nvmlDeviceGetGpuFabricInfoV * value 2"),
                    wrote("proc/uptime", "90.0 1.0"),
                ),
            )
        ],
        status=UNKNOWN,
        seen="it may pass",
    ),
    Case(
        check="fabric.state",
        name="a driver of the struct's second version",
        earlier=[(60.0, SECOND_VERSION)],
        status=FAIL,
        seen="gpu3: fabric state 2",
    ),
    Case(
        check="fabric.state",
        name="no GPU is in one",
        change=says("nvmlDeviceGetGpuFabricInfoV * value 0"),
        status=SKIP,
    ),
    Case(check="fabric.manager", name="runs", change=MANAGED, status=OK),
    Case(
        check="fabric.manager",
        name="does not run",
        earlier=[(60.0, nothing)],
        status=FAIL,
        seen="nvidia-fabricmanager does not run",
    ),
    Case(
        check="fabric.manager",
        name="does not run in one look",
        status=WARN,
        seen="nvidia-fabricmanager does not run",
    ),
    Case(
        check="fabric.manager",
        name="is not there yet after a boot",
        change=wrote("proc/uptime", "90.0 1.0"),
        status=UNKNOWN,
        seen="it may pass",
    ),
    Case(
        check="fabric.manager",
        name="NVSwitch without its manager",
        earlier=[
            (
                60.0,
                both(
                    *UNMANAGED,
                    wrote("sys/bus/pci/devices/0000:e0:00.0/vendor", "0x10de"),
                    wrote("sys/bus/pci/devices/0000:e0:00.0/class", "0x068000"),
                ),
            )
        ],
        status=FAIL,
        seen="nvidia-fabricmanager does not run",
    ),
    Case(
        check="fabric.manager",
        name="unreadable",
        change=garbled(f"sys/class/infiniband/{LPF[0]}/device/vpd"),
        status=UNKNOWN,
    ),
    Case(
        check="fabric.manager",
        name="not root and the fabric is complete",
        change=_hidden_vpd,
        status=OK,
        seen="the fabric is complete on all GPUs",
    ),
    Case(
        check="fabric.manager",
        name="not root and the fabric is not complete",
        change=both(_hidden_vpd, says("nvmlDeviceGetGpuFabricInfoV 3 value 2")),
        status=UNKNOWN,
        seen="only root can read",
    ),
    Case(check="fabric.manager", name="not ours", change=both(*UNMANAGED), status=SKIP),
    Case(
        check="nvlink.links",
        name="healthy",
        status=OK,
        seen="8 GPUs with 18 NVLinks at 53125 MB/s",
    ),
    Case(
        check="nvlink.links",
        name="two are down",
        change=says(
            "nvmlDeviceGetNvLinkState/7 3 value 0", "nvmlDeviceGetNvLinkState/11 3 value 0"
        ),
        status=FAIL,
        seen="gpu3: 16 of 18 NVLinks are active; down: 7, 11",
    ),
    Case(
        check="nvlink.links",
        name="all down in a fabric",
        change=says("nvmlDeviceGetNvLinkState * value 0"),
        status=FAIL,
        seen="gpu0: 0 of 18 NVLinks are active",
    ),
    Case(
        check="nvlink.links",
        name="slow",
        change=says("nvmlDeviceGetFieldValues/164.7 3 value 26562"),
        status=FAIL,
        seen="gpu3: NVLinks 7 run at 26562 MB/s",
    ),
    Case(
        check="nvlink.links",
        name="cards without bridges",
        change=says("nvmlDeviceGetNvLinkState * value 0", "nvmlDeviceGetGpuFabricInfoV * value 0"),
        status=SKIP,
        seen="no NVLink is connected",
    ),
    Case(
        check="nvlink.errors",
        name="first look",
        change=says(NVLINK(208, 7, 1000)),
        status=UNKNOWN,
        seen="first look: no rate yet",
    ),
    Case(check="nvlink.errors", name="still", earlier=[(60.0, nothing)], status=OK, seen="no new"),
    Case(
        check="nvlink.errors",
        name="a new one",
        earlier=((60.0, says(NVLINK(208, 7, 1000))),),
        change=says(NVLINK(208, 7, 1001)),
        status=FAIL,
        seen="gpu3: 1 new receive errors on NVLinks 7",
    ),
    Case(
        check="nvlink.errors",
        name="a recovery",
        earlier=((60.0, says(NVLINK(213, 7, 0))),),
        change=says(NVLINK(213, 7, 1)),
        status=WARN,
        seen="gpu3: 1 new recoveries on NVLinks 7",
    ),
    Case(
        check="nvlink.errors",
        name="recoveries in most looks",
        earlier=[(60.0 * (20 - i), says(NVLINK(213, 7, i))) for i in range(20)],
        change=says(NVLINK(213, 7, 20)),
        status=FAIL,
        seen="gpu3: NVLinks recovered in 20 of 20 looks",
    ),
    Case(check="p2p", name="healthy", status=OK, seen="28 pairs"),
    Case(
        check="p2p",
        name="one is cut off",
        change=says("nvmlDeviceGetP2PStatus 3 value 2", "nvmlDeviceGetP2PStatus/3 * value 2"),
        status=FAIL,
        seen="gpu3: reaches no other GPU over NVLink",
    ),
    Case(
        check="p2p",
        name="one pair",
        change=says("nvmlDeviceGetP2PStatus/5 3 value 2"),
        status=FAIL,
        seen="gpu3 and gpu5: no NVLink between them",
    ),
    Case(
        check="p2p",
        name="none in a fabric",
        change=says("nvmlDeviceGetP2PStatus * value 2"),
        status=FAIL,
        seen="gpu0: reaches no other GPU",
    ),
    Case(check="p2p", name="one GPU", change=one_gpu, status=SKIP),
]

_PCIE = [
    Case(check="pcie.link", name="healthy", status=OK, seen="8 GPUs: PCIe x16"),
    Case(
        check="pcie.link",
        name="x8",
        change=says("nvmlDeviceGetCurrPcieLinkWidth 3 value 8"),
        status=FAIL,
        seen=f"gpu3: PCIe x8 ({GPU_BDFS[3]}",
    ),
    Case(
        check="pcie.link",
        name="x8 where only /sys tells",
        change=both(
            says("nvmlDeviceGetCurrPcieLinkWidth * rc 3"),
            wrote(f"sys/bus/pci/devices/{GPU_BDFS[3]}/current_link_width", "8"),
        ),
        status=FAIL,
        seen="gpu3: PCIe x8",
    ),
    Case(
        check="pcie.link",
        name="generation 4 at work",
        change=says(
            "nvmlDeviceGetCurrPcieLinkGeneration 3 value 4",
            "nvmlDeviceGetCurrentClocksEventReasons 3 value 0",
        ),
        status=WARN,
        seen="gpu3: PCIe generation 4 while it works",
    ),
    Case(
        check="pcie.link",
        name="generation 1 at rest",
        change=says("nvmlDeviceGetCurrPcieLinkGeneration 3 value 1"),
        status=OK,
    ),
    Case(
        check="pcie.link",
        name="no answer",
        change=says("nvmlDeviceGetCurrPcieLinkWidth * rc 10"),
        status=UNKNOWN,
    ),
    Case(check="pcie.link", name="no GPU", change=no_gpu, status=SKIP),
    Case(check="pcie.errors", name="healthy", status=OK),
    Case(
        check="pcie.errors",
        name="fatal in NVML",
        change=says(PCIE(180, 1)),
        status=FAIL,
        seen="gpu3: 1 fatal PCIe errors since boot",
    ),
    Case(
        check="pcie.errors",
        name="fatal in the kernel",
        change=wrote(
            f"sys/bus/pci/devices/{GPU_BDFS[3]}/aer_dev_fatal", "DLP 1\nTOTAL_ERR_FATAL 1"
        ),
        status=FAIL,
        seen="gpu3: 1 fatal",
    ),
    Case(
        check="pcie.errors",
        name="a new non-fatal one",
        earlier=((60.0, says(PCIE(179, 4))),),
        change=says(PCIE(179, 5)),
        status=WARN,
        seen="gpu3: 1 new non-fatal PCIe errors in 60 s",
    ),
    Case(
        check="pcie.errors",
        name="replays",
        earlier=((60.0, says("nvmlDeviceGetPcieReplayCounter 3 value 1000")),),
        change=says("nvmlDeviceGetPcieReplayCounter 3 value 1100"),
        status=WARN,
        seen="gpu3: 100 PCIe replays a minute at generation 5",
    ),
    Case(
        check="pcie.errors",
        name="replays before the first look",
        change=says("nvmlDeviceGetPcieReplayCounter 3 value 1"),
        status=UNKNOWN,
        seen="first look",
    ),
    Case(
        check="pcie.errors",
        name="non-fatal ones before the first look",
        change=says(PCIE(179, 4)),
        status=UNKNOWN,
        seen="first look",
    ),
    Case(
        check="pcie.errors",
        name="a few replays",
        earlier=((600.0, says("nvmlDeviceGetPcieReplayCounter 3 value 1000")),),
        change=says("nvmlDeviceGetPcieReplayCounter 3 value 1100"),
        status=OK,
    ),
    Case(
        check="pcie.errors",
        name="a few replays within a second",
        earlier=((1.0, says("nvmlDeviceGetPcieReplayCounter 3 value 1000")),),
        change=says("nvmlDeviceGetPcieReplayCounter 3 value 1010"),
        status=OK,
    ),
    Case(
        check="pcie.errors",
        name="no answer",
        change=says("nvmlDeviceGetFieldValues/180 * rc 10"),
        status=UNKNOWN,
    ),
    Case(check="pcie.errors", name="no GPU", change=no_gpu, status=SKIP),
]

# In this process, whose loader finds no libnvidia-ml.so.1.
_WITHOUT_LIBRARY = [
    Case(
        check="gpu.count",
        name="library missing",
        status=FAIL,
        seen="NVML gives none of the 8 GPUs that are on the PCI bus: nvmlInit: NVML Shared Library "
        "Not Found (12)",
    ),
    Case(
        check="gpu.handle",
        name="library missing",
        status=FAIL,
        seen="none of 8 GPUs gives a handle",
    ),
    *(
        Case(check=name, name="library missing", status=UNKNOWN, seen="Not Found (12)")
        for name in ("gpu.driver_hang", "versions", "pcie.link", *CALLS)
    ),
]

_WITH_LIBRARY = [*_GPU, *_MEMORY, *_CLOCKS, *_LINKS, *_PCIE, *_of_calls()]
CASES = [*_WITH_LIBRARY, *_WITHOUT_LIBRARY]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def worker(library: Path) -> Iterator[Worker]:
    one = Worker(library, Path(__file__), library / "worker.log")
    yield one
    one.close()


@each_of(_WITH_LIBRARY)
def test_case(case: Case, worker: Worker, tmp_path: Path) -> None:
    said = worker.ask(str(case), tmp_path)
    assert "error" not in said, said["error"]


@each_of(_WITHOUT_LIBRARY)
def test_no_library(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def looked(
    library: Path, tmp_path: Path, script: str, *before: str, runs: int = 1, boot: str = BOOT_ID
) -> list[dict[str, Any]]:
    """All NVML checks through the runner, in a process of their own."""
    program = (sys.executable, "-m", "tests.hardware.nvml.hung")
    with borrowed() as tree:
        tree.write(SCRIPT, script)
        MANAGED(tree)
        tree.write("proc/sys/kernel/random/boot_id", boot)
        where = (os.fspath(tree.root), os.fspath(tmp_path / "state"))
        done = subprocess.run(
            [*before, *program, *where, "0.2", str(runs)],
            env=environment(library, tree.path(SCRIPT)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    if done.returncode == 77 and before:
        pytest.skip("this machine has no /dev/fuse, or does not let us mount")
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == runs, done.stderr
    return reports


def by_check(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in report["results"]}


def test_a_hung_driver(library: Path, tmp_path: Path) -> None:
    """The first check says so, and names the call; nobody else is sent after it."""
    [report] = looked(library, tmp_path, "nvmlInitWithFlags * hang")
    found = by_check(report)
    hung = found.pop("gpu.driver_hang")
    assert hung["status"] == "FAIL"
    assert "no answer within" in hung["seen"] and "at nvmlInit;" in hung["seen"]
    assert "reboot" in hung["fix"]
    assert len(found) > 25
    assert {row["status"] for row in found.values()} == {"UNKNOWN"}
    assert {row["seen"] for row in found.values()} == {"not tried: gpu.driver_hang got no answer"}
    assert report["children"] == []


def test_one_call_that_hangs(library: Path, tmp_path: Path) -> None:
    """What was judged before it stays judged; it is named with its GPU."""
    [report] = looked(library, tmp_path, "nvmlDeviceGetFieldValues/230 3 hang")
    found = by_check(report)
    names = list(found)
    at = names.index("gpu.recovery_action")
    assert {found[name]["status"] for name in names[:at]} == {"OK"}
    assert found["gpu.recovery_action"]["status"] == "FAIL"
    assert "at nvmlDeviceGetFieldValues gpu3;" in found["gpu.recovery_action"]["seen"]
    assert {found[name]["status"] for name in names[at + 1 :]} == {"UNKNOWN"}
    assert report["children"] == []


def test_a_hang_that_no_signal_ends(library: Path, tmp_path: Path) -> None:
    """One orphan, and no second probe while it is there."""
    mount = tmp_path / "mount"
    mount.mkdir()
    script = f"nvmlInitWithFlags * open {mount}/nvidiactl"
    before = (sys.executable, os.fspath(HUNG_FUSE), os.fspath(mount))
    first, second, third = looked(library, tmp_path, script, *before, runs=3)
    assert "no answer within" in by_check(first)["gpu.driver_hang"]["seen"]
    for report in (second, third):
        found = by_check(report)
        assert found["gpu.driver_hang"]["status"] == "FAIL"
        assert "stuck since" in found["gpu.driver_hang"]["seen"]
        assert "at nvmlInit;" in found["gpu.driver_hang"]["seen"]
        assert "not tried: gpu.driver_hang is stuck since" in found["ecc.mode"]["seen"]
    orphans = {pid for report in (first, second, third) for pid in report["children"]}
    assert len(orphans) == 1


def test_a_healthy_node(library: Path, tmp_path: Path) -> None:
    """Everything together, in one child, with one start of NVML."""
    [report] = looked(library, tmp_path, "")
    found = by_check(report)
    bad = {name: row for name, row in found.items() if row["status"] not in ("OK", "SKIP")}
    assert {row.get("gap") for row in bad.values()} == {"not yet"}
    assert {*bad} == {"ecc.corrected_rate", "nvlink.errors", "remap.trend"}
    assert [name for name, row in found.items() if row["status"] == "SKIP"] == ["pages.retired"]
    assert found["versions"]["facts"] == {
        "driver": "580.95.05",
        "cuda": "13.0",
        "gpu": "NVIDIA B200",
        "vbios": "97.00.88.00.0F",
        "gsp": "580.95.05",
    }
    assert found["thermal"]["metrics"]["gpu3.margin"] == {"value": 52, "unit": "°C"}


def test_what_outlives_a_boot(library: Path, tmp_path: Path) -> None:
    """How remaps grow, how many GPUs there were and their serial numbers; not a boot's counters."""
    looked(library, tmp_path, NVLINK(208, 7, 1))
    lines = (REMAPPED(20, 0, 0, 0), NVLINK(208, 7, 2), "nvmlDeviceGetHandleByIndex_v2 5 rc 15")
    [report] = looked(library, tmp_path, "\n".join(lines), boot="another")
    found = by_check(report)
    assert "gpu5: not asked" in found["remap.trend"]["seen"]
    assert found["remap.trend"]["metrics"]["gpu3.corrected_grown"]["value"] == 20
    assert SERIAL(5) in found["gpu.handle"]["seen"]
    assert "gpu3" not in found["nvlink.errors"]["seen"]
    kept = json.loads((tmp_path / "state" / "node-017.json").read_text())["memories"]
    assert kept["gpu.count"]["lasting"] == {"most": 8}


def test_the_driver_comes_first() -> None:
    """A driver that hangs is met by the check of that name."""
    nvml = [c.name for c in registered().values() if c.resource == "nvml"]
    assert nvml[0] == "gpu.driver_hang"
