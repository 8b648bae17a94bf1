"""Sick, in other words: what NVML answers."""

from __future__ import annotations

from checks import Case, both, lost, nothing, wrote
from healthy import PCI, nvswitch, says
from sick_rows import (
    FAIL,
    MINUTE,
    WARN,
    lasts,
    nvml,
    rows,
)

from tests.hardware.tree import GPU_BDFS


def field(number: int, value: float, gpu: str = "3") -> str:
    return f"nvmlDeviceGetFieldValues/{number} {gpu} value {value:g}"


_COUNTED = "nvmlDeviceGetMemoryErrorCounter/{} 3 value {}".format
# An earlier look in which the fields of NVLink 4 count too.
NVLINK4 = says("\n".join(f"nvmlDeviceGetFieldValues/{n} * value 0" for n in (161, 162, 163)))

NVML = [
    *rows(
        "gpu.count",
        (
            FAIL,
            "7 GPUs are on the PCI bus",
            "a GPU of a board is gone from the bus",
            both(lost(f"{PCI}/{GPU_BDFS[7]}"), says("nvmlDeviceGetCount_v2 * value 7")),
        ),
        (FAIL, "NVML knows 7", "the driver gave one up", says("nvmlDeviceGetCount_v2 * value 7")),
        (FAIL, "NVML gives none", "the driver is not loaded", says("nvmlInitWithFlags * rc 9")),
        (FAIL, "NVML gives none", "library and driver differ", says("nvmlInitWithFlags * rc 18")),
    ),
    *nvml(
        "gpu.handle",
        (FAIL, "gpu5", "NVML 15: GPU is lost", "nvmlDeviceGetHandleByIndex_v2 5 rc 15"),
        (FAIL, "gpu5", "NVML 16: reset required", "nvmlDeviceGetHandleByIndex_v2 5 rc 16"),
        (FAIL, "gpu5", "NVML 999: Unknown Error", "nvmlDeviceGetHandleByIndex_v2 5 rc 999"),
        (FAIL, "gpu5", "lost later", "nvmlDeviceGetTemperatureV 5 rc 15"),
    ),
    *nvml(
        "gpu.recovery_action",
        *(
            (FAIL, "the driver asks for", f"NVML field 230, action {n}", field(230, n))
            for n in (1, 2, 4, 6, 7, 9)
        ),
    ),
    *nvml(
        "persistence",
        (
            WARN,
            "gpu3: persistence mode is off",
            "one GPU",
            "nvmlDeviceGetPersistenceMode 3 value 0",
        ),
        (WARN, "gpu0: persistence", "all GPUs", "nvmlDeviceGetPersistenceMode * value 0"),
        (FAIL, "gpu2", "a GPU is lost", "nvmlDeviceGetPersistenceMode 2 rc 15"),
    ),
    *nvml(
        "mig",
        (FAIL, "gpu3: MIG mode is on", "one GPU of eight", "nvmlDeviceGetMigMode 3 value 1 1"),
        (FAIL, "on after a reset", "pending on one", "nvmlDeviceGetMigMode 3 value 0 1"),
        (FAIL, "gpu3: MIG mode is on", "pending off on one", "nvmlDeviceGetMigMode 3 value 1 0"),
    ),
    *nvml(
        "inforom",
        (FAIL, "corrupt", "NVML 14", "nvmlDeviceValidateInforom 3 rc 14"),
        (FAIL, "gpu3", "NVML 15", "nvmlDeviceValidateInforom 3 rc 15"),
        (FAIL, "all 8 GPUs", "NVML 999", "nvmlDeviceValidateInforom * rc 999"),
    ),
    *rows(
        "versions",
        (FAIL, "another", "NVML 18: updated while loaded", says("nvmlInitWithFlags * rc 18")),
        (
            FAIL,
            "NVML speaks of",
            "the module is older",
            wrote("sys/module/nvidia/version", "570.1"),
        ),
        (
            WARN,
            "differ in vbios",
            "one board with another VBIOS",
            says("nvmlDeviceGetVbiosVersion 3 text 97.00.11.00.01"),
        ),
        (
            WARN,
            "differ in gsp",
            "one GSP firmware",
            says("nvmlDeviceGetGspFirmwareVersion 3 text 570.1"),
        ),
    ),
    *nvml(
        "gpu.leftover",
        (
            FAIL,
            "process 4242 computes",
            "a process of an earlier job",
            "nvmlDeviceGetComputeRunningProcesses_v3 3 value 4242 1000000",
        ),
        (
            FAIL,
            "process 1 computes",
            "in another PID namespace",
            "nvmlDeviceGetComputeRunningProcesses_v3 3 value 1 1000000",
        ),
        options={"tries": 1},
    ),
    Case(
        check="gpu.leftover",
        name="memory that nobody owns",
        options={"tries": 1},
        earlier=MINUTE,
        change=says("nvmlDeviceGetMemoryInfo_v2 3 value 9000000000"),
        status=FAIL,
        seen="gpu3: ",
    ),
    *nvml(
        "ecc.mode",
        (
            FAIL,
            "ECC is off",
            "NVML, off now and at the next boot",
            "nvmlDeviceGetEccMode 3 value 0 0",
        ),
        (
            FAIL,
            "off after the next reset",
            "off when it is reset",
            "nvmlDeviceGetEccMode 3 value 1 0",
        ),
        (FAIL, "ECC is off, and on", "on when it is reset", "nvmlDeviceGetEccMode 3 value 0 1"),
    ),
    *nvml(
        "ecc.unc_volatile",
        (FAIL, "1 uncorrectable DRAM", "NVML, DRAM", _COUNTED("1.0.2", 1)),
        (FAIL, "2 uncorrectable SRAM", "NVML, SRAM", _COUNTED("1.0.7", 2)),
        (FAIL, "gpu3", "NVML 15", "nvmlDeviceGetMemoryErrorCounter 3 rc 15"),
    ),
    *nvml(
        "ecc.unc_aggregate",
        (WARN, "1 uncorrectable SRAM", "NVML, few", _COUNTED("1.1.7", 1)),
        (WARN, "9 uncorrectable SRAM", "NVML, many", _COUNTED("1.1.7", 9)),
        (FAIL, "gpu3", "NVML 16", "nvmlDeviceGetMemoryErrorCounter 3 rc 16"),
    ),
    *nvml(
        "sram.threshold",
        (FAIL, "passed NVIDIA's limit", "parity", "nvmlDeviceGetSramEccErrorStatus 3 value 1 5 0"),
        (FAIL, "passed NVIDIA's limit", "SECDED", "nvmlDeviceGetSramEccErrorStatus 3 value 1 0 3"),
        (FAIL, "gpu3", "NVML 15", "nvmlDeviceGetSramEccErrorStatus 3 rc 15"),
    ),
    *(
        Case(
            check="ecc.corrected_rate",
            name=source,
            earlier=[(ago, says(_COUNTED(key, 0)))],
            change=says(_COUNTED(key, int(count))),
            status=WARN,
            seen=f"corrected {place} errors/s",
        )
        for source, ago, key, count, place in (
            ("DRAM, looks a minute apart", 60.0, "0.0.2", 60 * 500, "DRAM"),
            ("SRAM, looks a minute apart", 60.0, "0.0.7", 60 * 500, "SRAM"),
            ("DRAM, looks six hours apart", 21600.0, "0.0.2", 21600 * 500, "DRAM"),
        )
    ),
    *nvml(
        "remap.pending",
        (
            FAIL,
            "waits to be remapped",
            "NVML, pending and no failure",
            "nvmlDeviceGetRemappedRows 3 value 0 1 1 0",
        ),
        (FAIL, "gpu3", "NVML 15", "nvmlDeviceGetRemappedRows 3 rc 15"),
        (FAIL, "all 8", "NVML 999", "nvmlDeviceGetRemappedRows * rc 999"),
    ),
    *nvml(
        "remap.failed",
        (FAIL, "could not be remapped", "NVML", "nvmlDeviceGetRemappedRows 3 value 0 1 0 1"),
        (FAIL, "could not be remapped", "and pending", "nvmlDeviceGetRemappedRows 3 value 0 1 1 1"),
        (FAIL, "gpu3", "NVML 16", "nvmlDeviceGetRemappedRows 3 rc 16"),
    ),
    *nvml(
        "remap.unc",
        (FAIL, "512 rows", "all are used", "nvmlDeviceGetRemappedRows 3 value 0 512 0 0"),
        (
            WARN,
            "no spare row",
            "NVML's histogram",
            "nvmlDeviceGetRowRemapperHistogram 3 value 2000 0 0 0 3",
        ),
        (FAIL, "gpu3", "NVML 15", "nvmlDeviceGetRemappedRows 3 rc 15"),
    ),
    *rows(
        "remap.trend",
        (
            WARN,
            "2 more rows remapped for uncorrectable",
            "uncorrectable",
            says("nvmlDeviceGetRemappedRows 3 value 0 2 0 0"),
        ),
        (
            FAIL,
            "6 more rows remapped for uncorrectable",
            "many uncorrectable",
            says("nvmlDeviceGetRemappedRows 3 value 0 6 0 0"),
        ),
        (
            WARN,
            "40 more rows remapped for correctable",
            "correctable",
            says("nvmlDeviceGetRemappedRows 3 value 40 0 0 0"),
        ),
        earlier=[(86400.0, nothing)],
    ),
    *nvml(
        "repair.pending",
        (FAIL, "memory channel", "Blackwell", "nvmlDeviceGetRepairStatus 3 value 1 0"),
        (FAIL, "TPC", "Blackwell, a TPC", "nvmlDeviceGetRepairStatus 3 value 0 1"),
        (FAIL, "memory channel and TPC", "both", "nvmlDeviceGetRepairStatus 3 value 1 1"),
    ),
    *nvml(
        "pages.retired",
        (
            FAIL,
            "60 pages retired",
            "V100, corrected",
            "nvmlDeviceGetRetiredPages/0 3 value 60\nnvmlDeviceGetRetiredPages/1 3 value 0",
        ),
        (
            FAIL,
            "64 pages retired",
            "V100, both causes",
            "nvmlDeviceGetRetiredPages/0 3 value 32\nnvmlDeviceGetRetiredPages/1 3 value 32",
        ),
        (
            FAIL,
            "waits to be retired",
            "NVML, pages that wait for a reboot",
            "nvmlDeviceGetRetiredPages 3 value 1\nnvmlDeviceGetRetiredPagesPendingStatus 3 value 1",
        ),
    ),
    *nvml(
        "clock.events",
        (WARN, "hardware slowdown", "bit 3", "nvmlDeviceGetCurrentClocksEventReasons 3 value 8"),
        (WARN, "thermal slowdown", "bit 6", "nvmlDeviceGetCurrentClocksEventReasons 3 value 64"),
        (WARN, "power brake", "bit 7", "nvmlDeviceGetCurrentClocksEventReasons 3 value 128"),
    ),
    *rows(
        "clock.events",
        (WARN, "throttled", "the driver's nanoseconds", says(field(270, 30e9))),
        earlier=MINUTE,
    ),
    *nvml(
        "clock.max",
        (WARN, "at most 1410 MHz", "one GPU", "nvmlDeviceGetMaxClockInfo/1 3 value 1410"),
        (
            WARN,
            "application clocks",
            "clocks that somebody set",
            "nvmlDeviceGetClock/1.1 3 value 1200",
        ),
        (WARN, "memory", "memory clocks", "nvmlDeviceGetMaxClockInfo/2 3 value 2000"),
    ),
    *lasts(
        "thermal",
        (
            FAIL,
            "gpu3: 0 °C",
            "a margin of 0, without field 194",
            says("nvmlDeviceGetMarginTemperature 3 value 0"),
        ),
        (
            FAIL,
            "gpu3: 0 °C",
            "H100: slowdown is at -2",
            says("nvmlDeviceGetMarginTemperature 3 value -2", field(194, -2)),
        ),
        (
            FAIL,
            "gpu3: -3 °C",
            "a driver without margins",
            says("nvmlDeviceGetMarginTemperature * rc 3", "nvmlDeviceGetTemperatureV 3 value 90"),
        ),
    ),
    *nvml(
        "power.limit",
        (WARN, "held to 700 W", "one GPU", "nvmlDeviceGetEnforcedPowerLimit 3 value 700000"),
        (WARN, "held to 500 W", "all GPUs", "nvmlDeviceGetEnforcedPowerLimit * value 500000"),
        (WARN, "held to 980 W", "a little", "nvmlDeviceGetEnforcedPowerLimit 3 value 980000"),
    ),
    *nvml(
        "fabric.state",
        (
            FAIL,
            "degraded bandwidth",
            "NVML fabric, mask",
            "nvmlDeviceGetGpuFabricInfoV 3 value 3 0 1",
        ),
        (
            FAIL,
            "a route is unhealthy",
            "NVML fabric, mask, routes",
            f"nvmlDeviceGetGpuFabricInfoV 3 value 3 0 {1 << 4}",
        ),
        (
            FAIL,
            "fabric status 15",
            "its bring-up ended badly",
            "nvmlDeviceGetGpuFabricInfoV 3 value 3 15",
        ),
        (
            FAIL,
            "insufficient NVLinks",
            "NVML fabric, configuration",
            f"nvmlDeviceGetGpuFabricInfoV 3 value 3 0 {5 << 8}",
        ),
        (
            FAIL,
            "limited capacity",
            "NVML fabric of version 3, summary",
            f"nvmlDeviceGetGpuFabricInfoV 3 value 3 0 {2 | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8} 3",
        ),
        (
            WARN,
            "gpu3: fabric state 2",
            "one GPU alone is in progress",
            "nvmlDeviceGetGpuFabricInfoV 3 value 2",
        ),
    ),
    *lasts(
        "fabric.manager",
        (FAIL, "nvidia-fabricmanager does not run", "HGX B200: neither runs", nothing),
        (FAIL, "nvlsm", "HGX B200: NVLSM does not run", wrote("proc/2101/comm", "nv-fabricmanage")),
        (
            FAIL,
            "nvidia-fabricmanager does not run",
            "HGX H100: NVSwitches on the bus",
            both(nvswitch("0000:e0:00.0")),
        ),
    ),
    *nvml(
        "nvlink.links",
        (FAIL, "17 of 18", "one link down", "nvmlDeviceGetNvLinkState/4 3 value 0"),
        (FAIL, "17 of 18", "a link that NVML does not know", "nvmlDeviceGetNvLinkState/4 3 rc 2"),
        (FAIL, "0 of 18", "all down", "nvmlDeviceGetNvLinkState 3 value 0"),
        (FAIL, "26562 MB/s", "half the speed", "nvmlDeviceGetFieldValues/164.4 3 value 26562"),
    ),
    *rows(
        "nvlink.errors",
        *(
            (
                status,
                f"1 new {text}",
                f"NVML field {number}",
                says(f"nvmlDeviceGetFieldValues/{number}.7 3 value 1"),
            )
            for number, status, text in (
                (208, FAIL, "receive errors"),
                (211, FAIL, "link integrity errors"),
                (214, FAIL, "failed recoveries"),
                (213, WARN, "recoveries"),
                (206, FAIL, "malformed packets"),
                (207, FAIL, "buffer overruns"),
                (209, FAIL, "remote receive errors"),
                (210, FAIL, "general receive errors"),
                (219, FAIL, "effective errors"),
                (221, FAIL, "symbol errors"),
                (161, FAIL, "replays"),
                (162, FAIL, "link recoveries"),
                (163, WARN, "CRC errors"),
                (215, WARN, "recovery events"),
            )
        ),
        earlier=[(60.0, NVLINK4)],
    ),
    *nvml(
        "p2p",
        (
            FAIL,
            "gpu3: reaches no other GPU",
            "one GPU",
            "nvmlDeviceGetP2PStatus 3 value 1\n"
            + "\n".join(f"nvmlDeviceGetP2PStatus/3 {n} value 1" for n in range(3)),
        ),
        (FAIL, "gpu0 and gpu1", "NVML, status 3 of one pair", "nvmlDeviceGetP2PStatus/1 0 value 3"),
        (FAIL, "gpu4", "NVML 15", "nvmlDeviceGetP2PStatus 4 rc 15"),
    ),
    *nvml(
        "pcie.link",
        (FAIL, "PCIe x8", "half the lanes", "nvmlDeviceGetCurrPcieLinkWidth 3 value 8"),
        (FAIL, "PCIe x1", "one lane", "nvmlDeviceGetCurrPcieLinkWidth 3 value 1"),
        (
            WARN,
            "generation 3 while it works",
            "a slow link under load",
            "nvmlDeviceGetCurrPcieLinkGeneration 3 value 3\n"
            "nvmlDeviceGetCurrentClocksEventReasons 3 value 0",
        ),
    ),
    *rows(
        "pcie.errors",
        (FAIL, "1 fatal", "NVML field 180", says(field(180, 1))),
        (
            FAIL,
            "2 fatal",
            "the kernel's AER counters",
            wrote(f"{PCI}/{GPU_BDFS[3]}/aer_dev_fatal", "DLP 2\nTOTAL_ERR_FATAL 2"),
        ),
        (WARN, "new non-fatal", "NVML field 179", says(field(179, 4))),
        (
            WARN,
            "PCIe replays",
            "NVML's replay counter",
            says("nvmlDeviceGetPcieReplayCounter 3 value 90000"),
        ),
        earlier=MINUTE,
    ),
]
