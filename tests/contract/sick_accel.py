"""Sick, in other words: accelerators of other makers than NVIDIA."""

from __future__ import annotations

from checks import Change, both, lost, nothing, wrote
from healthy import logged
from sick_rows import FAIL, WARN, rows

from tests.hardware import tree_amd
from tests.hardware.tree_amd import BDFS, PCI, at, mi300x


def sees(name: str, text: str, index: int = 3) -> Change:
    return wrote(f"{at(index)}/{name}", text)


def holds(pid: int, *gpus: int) -> Change:
    return lambda t: [tree_amd.process(t, pid, n, 64 << 30) for n in gpus]


def hot(sensor: int, millidegrees: int) -> Change:
    return both(mi300x, sees(f"hwmon/hwmon5/temp{sensor}_input", str(millidegrees)))


def said(text: str) -> Change:
    return both(mi300x, logged(text))


SECOND = [(60.0, mi300x)]

ACCEL = [
    *rows(
        "accel.on_bus",
        (
            FAIL,
            "has no driver",
            "amdgpu's probe failed: the function is there, nothing is bound to it",
            both(mi300x, lost(f"{at(2)}/driver")),
        ),
        (
            FAIL,
            "has no driver",
            "modprobe.blacklist=amdgpu: no accelerator has its driver",
            both(mi300x, *(lost(f"{at(n)}/driver") for n in range(8))),
        ),
        (
            FAIL,
            "has the driver radeon",
            "another driver took it",
            both(
                mi300x,
                lambda t: t.symlink(f"{at(0)}/driver", "../../../../bus/pci/drivers/radeon"),
            ),
        ),
    ),
    *rows(
        "accel.on_bus",
        (
            FAIL,
            "7 accelerators",
            "an OAM fell off the bus",
            lost(f"{PCI}/{BDFS[7]}"),
        ),
        earlier=[(60.0, mi300x)],
    ),
    *rows(
        "accel.versions",
        (
            WARN,
            "differ in vbios",
            "one OAM was replaced, and has another VBIOS",
            both(mi300x, sees("vbios_version", "113-M3000100-102")),
        ),
        (
            WARN,
            "113-D65201-066",
            "the VBIOS of another product",
            both(mi300x, sees("vbios_version", "113-D65201-066", 0)),
        ),
        (
            WARN,
            "gpu6, gpu7",
            "an update that stopped half-way",
            both(mi300x, *(sees("vbios_version", "113-M3000100-104", n) for n in (6, 7))),
        ),
    ),
    *rows(
        "accel.memory",
        (
            FAIL,
            "gpu3: 1 uncorrectable errors in umc",
            "Linux until 6.8: ue and ce",
            sees("ras/umc_err_count", "ue: 1\nce: 12"),
        ),
        (
            FAIL,
            "gpu3: 1 uncorrectable errors in gfx",
            "Linux since 6.9, a part that counts deferred errors too",
            sees("ras/gfx_err_count", "ue: 1\nce: 0\nde: 0"),
        ),
        (
            FAIL,
            "gpu3: 65536 uncorrectable errors in sdma",
            "an engine",
            sees("ras/sdma_err_count", "ue: 65536\nce: 0"),
        ),
        (
            WARN,
            "1 bad pages",
            "amdgpu_ras.c: a page that can't be reserved",
            sees("ras/gpu_vram_bad_pages", "0x000fe000 : 0x00001000 : F"),
        ),
        earlier=SECOND,
    ),
    *rows(
        "accel.heat",
        (FAIL, "junction at 101 °C", "the die", nothing),
        earlier=[(60.0, hot(1, 101_000))],
    ),
    *rows(
        "accel.heat",
        (FAIL, "mem at 106 °C", "the memory alone", nothing),
        earlier=[(60.0, hot(2, 106_000))],
    ),
    *rows(
        "accel.heat",
        (WARN, "edge at 99 °C", "an older part with three sensors", nothing),
        earlier=[
            (
                60.0,
                both(
                    mi300x,
                    sees("hwmon/hwmon5/temp3_label", "edge"),
                    sees("hwmon/hwmon5/temp3_input", "99000"),
                    sees("hwmon/hwmon5/temp3_crit", "100000"),
                ),
            )
        ],
    ),
    *rows(
        "accel.link",
        (FAIL, "gpu3: PCIe x8", "a riser", both(mi300x, sees("current_link_width", "8"))),
        (FAIL, "gpu3: PCIe x1", "one lane is left", both(mi300x, sees("current_link_width", "1"))),
        (
            WARN,
            "gpu3: PCIe at 2.5 GT/s",
            "Linux before 5.18: no `PCIe` after GT/s",
            both(mi300x, sees("current_link_speed", "2.5 GT/s"), sees("gpu_busy_percent", "100")),
        ),
    ),
    *rows(
        "accel.peers",
        (FAIL, "gpu3: linked to 0", "it joined no hive", lost(f"{at(3)}/xgmi_hive_info")),
        (
            FAIL,
            "gpu3: linked to 6",
            "a hive that lost one of its nodes",
            lost(f"{at(3)}/xgmi_hive_info/node8"),
        ),
        (
            FAIL,
            "gpu3: 1 uncorrectable errors in its links",
            "RAS of XGMI and WAFL",
            sees("ras/xgmi_wafl_err_count", "ue: 1\nce: 0"),
        ),
        earlier=SECOND,
    ),
    *rows(
        "accel.leftover",
        (FAIL, "gpu3: process 4242", "a rank that was not ended", both(mi300x, holds(4242, 3))),
        (FAIL, "gpu7: process 4242", "one on all devices", both(mi300x, holds(4242, *range(8)))),
        (
            FAIL,
            "not seen in /proc",
            "amdkfd keeps the entry of a process whose queues could not be stopped",
            both(mi300x, holds(4242, 0), lost("proc/4242")),
        ),
        options={"every_s": 0},
    ),
    *rows(
        "accel.kernel",
        (
            FAIL,
            "gpu3: uncorrectable errors",
            "Linux 5.15 (Ubuntu 22.04)",
            said(
                "amdgpu 0000:5c:00.0: amdgpu: 1 uncorrectable hardware errors detected in gfx block"
            ),
        ),
        (
            FAIL,
            "gpu3: uncorrectable errors",
            "Linux 6.6, with socket and die",
            said(
                "amdgpu 0000:5c:00.0: amdgpu: socket: 3, die: 1, 1 new uncorrectable hardware "
                "errors detected in umc block"
            ),
        ),
        (
            FAIL,
            "gpu3: uncorrectable errors",
            "amdgpu of ROCm 6.3 and Linux 6.11, with an event's number",
            said(
                "amdgpu 0000:5c:00.0: amdgpu: {12}socket: 3, die: 1, 1 uncorrectable hardware "
                "errors detected in total in umc block"
            ),
        ),
        (
            FAIL,
            "gpu3: uncorrectable errors",
            "the RAS manager of Linux 6.18",
            said(
                "amdgpu 0000:5c:00.0: {3} Uncorrectable hardware error"
                "(ERREVENT_ATHUB_INTERRUPT) detected!"
            ),
        ),
        (
            FAIL,
            "gpu3: it could not be reset",
            "Linux 6.15, with the error",
            said("amdgpu 0000:5c:00.0: amdgpu: GPU reset(19) failed with error -62"),
        ),
        (
            FAIL,
            "gpu3: more bad pages",
            "Linux 5.11: the driver gives the device up",
            said(
                "amdgpu 0000:5c:00.0: amdgpu: RAS records:270 exceed threshold:256, GPU will not "
                "be initialized. Replace this GPU or increase the threshold"
            ),
        ),
        (
            FAIL,
            "could not start the device",
            "Linux before 6.9, drivers/base/dd.c",
            said("amdgpu: probe of 0000:5c:00.0 failed with error -62"),
        ),
        (
            FAIL,
            "gpu3: it does not answer",
            "smu_cmn.c of Linux 5.18",
            said(
                "amdgpu 0000:5c:00.0: amdgpu: SMU: response:0xFFFFFFFF for message:"
                "TransferTableSmu2Dram?"
            ),
        ),
    ),
]
