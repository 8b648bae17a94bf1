"""Accelerators of other makers than NVIDIA: on the bus, and what AMD's driver tells of them."""

from __future__ import annotations

from pathlib import Path

from checks import Case, Change, both, each_of, garbled, lost, nothing, run, wrote
from healthy import logged

from healthchecks.accelerators.amd_wordings import AMD_PATTERNS
from healthchecks.frame.check import Status
from tests.hardware import tree_amd, tree_nics
from tests.hardware.tree import Tree
from tests.hardware.tree_amd import at, mi300x

OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL
UNKNOWN, SKIP = Status.UNKNOWN, Status.SKIP


def device(pci_id: str, kind: str, bdf: str = "0000:e1:00.0") -> Change:
    """Another device on the bus."""
    vendor, number = (f"0x{word}" for word in pci_id.split(":"))
    files = tree_nics.pci(bdf, vendor, number, kind, 0)
    return both(*(wrote(path, text) for path, text in files.items()))


def bound(index: int, driver: str) -> Change:
    return lambda tree: tree.symlink(f"{at(index)}/driver", f"../../../../bus/pci/drivers/{driver}")


def all_gone(tree: Tree) -> None:
    for bdf in tree_amd.BDFS:
        tree.remove(f"{tree_amd.PCI}/{bdf}")


# Accelerators that nothing here can judge: id, class and where that is from.
STRANGERS = {
    "Gaudi 2": ("1da3:1020", "0x120000", "Intel Gaudi (1da3:1020)"),
    "Gaudi 3": ("1da3:1060", "0x120000", "Intel Gaudi (1da3:1060)"),
    "Blackhole": ("1e52:b140", "0x120000", "Tenstorrent (1e52:b140)"),
    "RNGD": ("1ed2:0001", "0x120000", "FuriosaAI (1ed2:0001)"),
    "ATOM": ("1eff:1220", "0x120000", "Rebellions (1eff:1220)"),
    "TPU v6e": ("1ae0:006f", "0x088000", "Google TPU (1ae0:006f)"),
    "Trainium 2": ("1d0f:7364", "0x088000", "AWS Neuron (1d0f:7364)"),
    "Intel Max 1550": ("8086:0bd5", "0x038000", "Intel Data Center GPU Max (8086:0bd5)"),
    "Intel Flex 170": ("8086:56c0", "0x038000", "Intel Data Center GPU Flex (8086:56c0)"),
    "Ascend 910B": ("19e5:d802", "0x120000", "Huawei Ascend (19e5:d802)"),
    "Cloud AI 100": ("17cb:a100", "0x120000", "Qualcomm Cloud AI (17cb:a100)"),
    "Colossus": ("1d95:0003", "0x0b4000", "Graphcore (1d95:0003)"),
    "one of tomorrow": ("beef:0001", "0x120000", "of an unknown maker (beef:0001)"),
    "a 3D controller of tomorrow": ("beef:0002", "0x030200", "of an unknown maker (beef:0002)"),
}
# What is no accelerator of a job.
NONE = {
    "ASPEED": ("1a03:2000", "0x030000"),
    "Matrox": ("102b:0538", "0x030000"),
    "virtio": ("1af4:1050", "0x038000"),
    "HiSilicon's console": ("19e5:1711", "0x030000"),
    "UHD Graphics": ("8086:4c8a", "0x038000"),
    "Iris of a hybrid": ("8086:4905", "0x030200"),
    "Radeon of a processor": ("1002:164e", "0x030000"),
    "Radeon PRO W7900": ("1002:7448", "0x030000"),
    "NPU of Core Ultra": ("8086:7d1d", "0x120000"),
    "NPU of Ryzen": ("1022:1502", "0x118000"),
    "ZIP engine of Kunpeng": ("19e5:a250", "0x120000"),
    "Basic Render Driver": ("1414:008e", "0x030200"),
    "QuickAssist": ("8086:4940", "0x0b4000"),
    "Data Streaming Accelerator": ("8086:0b25", "0x088000"),
    "gVNIC": ("1ae0:0042", "0x020000"),
    "local disk of a TPU's host": ("1ae0:001f", "0x010802"),
    "EBS": ("1d0f:8061", "0x010802"),
}

_ON_BUS = [
    Case(
        check="accel.on_bus",
        name="eight MI300X",
        change=mi300x,
        status=OK,
        seen="8 AMD Instinct (1002:74a1)",
    ),
    *(
        Case(
            check="accel.on_bus",
            name=name,
            change=device(pci_id, kind),
            status=UNKNOWN,
            seen=f"{seen} at 0000:e1:00.0",
        )
        for name, (pci_id, kind, seen) in STRANGERS.items()
    ),
    *(
        Case(check="accel.on_bus", name=name, change=device(*row), status=SKIP)
        for name, row in NONE.items()
    ),
    Case(
        check="accel.on_bus",
        name="no driver",
        change=both(mi300x, lost(f"{at(3)}/driver")),
        status=FAIL,
        seen="0000:5c:00.0 (1002:74a1) has no driver",
    ),
    Case(
        check="accel.on_bus",
        name="a driver of somebody else",
        change=both(mi300x, bound(3, "radeon")),
        status=FAIL,
        seen="has the driver radeon",
    ),
    Case(
        check="accel.on_bus",
        name="all without a driver",
        change=both(mi300x, *(lost(f"{at(n)}/driver") for n in range(8))),
        status=FAIL,
        seen="0000:df:00.0",
    ),
    Case(
        check="accel.on_bus",
        name="given to virtual machines",
        change=both(mi300x, *(bound(n, "vfio-pci") for n in range(8))),
        status=SKIP,
    ),
    Case(
        check="accel.on_bus",
        name="one is gone",
        earlier=[(60.0, mi300x)],
        change=lost(f"{tree_amd.PCI}/{tree_amd.BDFS[7]}"),
        status=FAIL,
        seen="7 accelerators are on the PCI bus (8 were here before)",
    ),
    Case(
        check="accel.on_bus",
        name="all are gone",
        earlier=[(60.0, mi300x)],
        change=all_gone,
        status=FAIL,
        seen="0 accelerators",
    ),
    Case(
        check="accel.on_bus",
        name="all are gone before the first look",
        change=both(mi300x, all_gone),
        status=UNKNOWN,
        seen="no accelerator of AMD is on the PCI bus",
    ),
    Case(
        check="accel.on_bus",
        name="nobody has to judge it",
        change=both(mi300x, device("1da3:1060", "0x120000")),
        options={"ignore": ["1da3:1060"]},
        status=OK,
        seen="8 AMD",
    ),
    Case(
        check="accel.on_bus",
        name="the bus can't be read",
        change=both(mi300x, garbled(f"{at(0)}/class")),
        status=UNKNOWN,
    ),
]


def virtual(tree: Tree) -> None:
    """Eight virtual functions: no RAS, no link of their own, no sensors."""
    mi300x(tree)
    for index in range(8):
        tree.write(f"{at(index)}/device", "0x74b5")
        for name in ("ras", "hwmon"):
            tree.remove(f"{at(index)}/{name}")
        tree.write(f"{at(index)}/current_link_width", "0")
        tree.write(f"{at(index)}/current_link_speed", "Unknown")


def driverless(tree: Tree) -> None:
    mi300x(tree)
    for index in range(8):
        tree.remove(f"{at(index)}/driver")


def no_links(tree: Tree) -> None:
    """PCIe cards: no XGMI."""
    mi300x(tree)
    for index in range(8):
        tree.remove(f"{at(index)}/xgmi_hive_info")
        tree.remove(f"{at(index)}/xgmi_device_id")


def sees(index: int, name: str, text: str) -> Change:
    return wrote(f"{at(index)}/{name}", text)


def holds(pid: int, gib: float, index: int = 3) -> Change:
    return lambda tree: tree_amd.process(tree, pid, index, int(gib * 2**30))


SIX = ("versions", "memory", "heat", "link", "peers", "leftover")
BEFORE = [(60.0, mi300x)]
DEAD = "amdgpu 0000:5c:00.0: amdgpu: device lost from bus!"

# What holds for each that asks devices.
_OF_ALL = [
    case
    for name in SIX
    for case in (
        Case(check=f"accel.{name}", name="a B200 node", status=SKIP),
        Case(
            check=f"accel.{name}",
            name="no driver",
            change=driverless,
            status=UNKNOWN,
            seen="none of 8 AMD Instinct has its driver: see accel.on_bus",
        ),
        Case(
            check=f"accel.{name}",
            name="healthy",
            earlier=BEFORE,
            change=nothing,
            status=OK,
        ),
        Case(
            check=f"accel.{name}",
            name="virtual functions",
            earlier=[(60.0, virtual)],
            change=nothing,
            status=SKIP if name in ("memory", "heat", "link") else OK,
        ),
    )
]

_VERSIONS = [
    Case(
        check="accel.versions",
        name="one of another firmware",
        change=both(mi300x, sees(5, "vbios_version", "113-M3000100-102")),
        status=WARN,
        seen="113-M3000100-102: gpu5",
    ),
]

_MEMORY = [
    Case(
        check="accel.memory",
        name="uncorrectable",
        earlier=BEFORE,
        change=sees(3, "ras/umc_err_count", "ue: 2\nce: 0"),
        status=FAIL,
        seen="gpu3: 2 uncorrectable errors in umc",
    ),
    Case(
        check="accel.memory",
        name="uncorrectable at the first look",
        change=both(mi300x, sees(3, "ras/gfx_err_count", "ue: 1\nce: 0\nde: 0")),
        status=FAIL,
        seen="gpu3: 1 uncorrectable errors in gfx",
    ),
    Case(
        check="accel.memory",
        name="errors of links are not memory's",
        earlier=BEFORE,
        change=sees(3, "ras/xgmi_wafl_err_count", "ue: 1\nce: 0"),
        status=OK,
    ),
    Case(
        check="accel.memory",
        name="deferred",
        earlier=BEFORE,
        change=sees(3, "ras/umc_err_count", "ue: 0\nce: 0\nde: 3"),
        status=WARN,
        seen="gpu3: 3 deferred errors in umc",
    ),
    Case(
        check="accel.memory",
        name="corrected ones stream in",
        earlier=BEFORE,
        change=sees(3, "ras/umc_err_count", "ue: 0\nce: 1001"),
        status=WARN,
        seen="gpu3: 1001 corrected errors in umc within an hour",
    ),
    Case(
        check="accel.memory",
        name="as many corrected ones as may be",
        earlier=BEFORE,
        change=sees(3, "ras/umc_err_count", "ue: 0\nce: 1000"),
        status=OK,
    ),
    Case(
        check="accel.memory",
        name="as many over a day",
        earlier=[(86400.0, mi300x)],
        change=sees(3, "ras/umc_err_count", "ue: 0\nce: 23000"),
        status=OK,
    ),
    Case(
        check="accel.memory",
        name="many since long ago",
        earlier=[(60.0, both(mi300x, sees(3, "ras/umc_err_count", "ue: 0\nce: 900000")))],
        status=OK,
    ),
    Case(
        check="accel.memory",
        name="the first look",
        change=mi300x,
        status=UNKNOWN,
        seen="no earlier look",
    ),
    Case(
        check="accel.memory",
        name="in a reset",
        earlier=BEFORE,
        change=sees(3, "ras/umc_err_count", "Query currently inaccessible"),
        status=UNKNOWN,
        seen="gpu3: umc_err_count says 'Query currently inaccessible'",
    ),
    Case(
        check="accel.memory",
        name="it gives an error",
        earlier=BEFORE,
        change=garbled(f"{at(3)}/ras/sdma_err_count"),
        status=UNKNOWN,
        seen="gpu3: ",
    ),
    Case(
        check="accel.memory",
        name="retired pages",
        earlier=BEFORE,
        change=sees(3, "ras/gpu_vram_bad_pages", "0x00000001 : 0x00001000 : R "),
        status=OK,
    ),
    Case(
        check="accel.memory",
        name="a page waits to be retired",
        earlier=BEFORE,
        change=sees(
            3,
            "ras/gpu_vram_bad_pages",
            "0x00000001 : 0x00001000 : R\n0x00000002 : 0x00001000 : P",
        ),
        status=WARN,
        seen="gpu3: 1 bad pages",
    ),
    Case(
        check="accel.memory",
        name="no list of pages",
        earlier=BEFORE,
        change=lost(f"{at(3)}/ras/gpu_vram_bad_pages"),
        status=OK,
    ),
]

_HEAT = [
    Case(
        check="accel.heat",
        name="hot for one look",
        earlier=BEFORE,
        change=sees(3, "hwmon/hwmon5/temp1_input", "100000"),
        status=WARN,
        seen="gpu3: junction at 100 °C; it slows down at 100 °C",
    ),
    Case(
        check="accel.heat",
        name="hot for a minute",
        earlier=[(60.0, both(mi300x, sees(3, "hwmon/hwmon5/temp1_input", "100000")))],
        status=FAIL,
        seen="gpu3: junction at 100 °C",
    ),
    Case(
        check="accel.heat",
        name="memory is nearly too hot",
        change=both(mi300x, sees(3, "hwmon/hwmon5/temp2_input", "91000")),
        status=WARN,
        seen="gpu3: mem at 91 °C; it slows down at 95 °C",
    ),
    Case(
        check="accel.heat",
        name="warm",
        change=both(mi300x, sees(3, "hwmon/hwmon5/temp1_input", "94000")),
        status=OK,
    ),
    Case(
        check="accel.heat",
        name="a sensor without a limit",
        change=both(mi300x, sees(3, "hwmon/hwmon5/temp2_crit", "0")),
        status=OK,
    ),
    Case(
        check="accel.heat",
        name="a sensor that can't be read",
        change=both(mi300x, garbled(f"{at(3)}/hwmon/hwmon5/temp1_input")),
        status=UNKNOWN,
        seen="gpu3: ",
    ),
]

_LINK = [
    Case(
        check="accel.link",
        name="eight lanes",
        change=both(mi300x, sees(3, "current_link_width", "8")),
        status=FAIL,
        seen="gpu3: PCIe x8",
    ),
    Case(
        check="accel.link",
        name="slow at work",
        change=both(
            mi300x,
            sees(3, "current_link_speed", "16.0 GT/s PCIe"),
            sees(3, "gpu_busy_percent", "97"),
        ),
        status=WARN,
        seen="gpu3: PCIe at 16 GT/s while it works",
    ),
    Case(
        check="accel.link",
        name="slow at rest",
        change=both(mi300x, sees(3, "current_link_speed", "2.5 GT/s PCIe")),
        status=OK,
    ),
    Case(
        check="accel.link",
        name="of a device in the package",
        change=both(mi300x, sees(3, "current_link_speed", "Unknown")),
        status=OK,
        seen="7 of 8",
    ),
]

_PEERS = [
    Case(
        check="accel.peers",
        name="one is left out",
        earlier=BEFORE,
        change=lost(f"{at(3)}/xgmi_hive_info"),
        status=FAIL,
        seen="gpu3: linked to 0 others",
    ),
    Case(
        check="accel.peers",
        name="one without XGMI at all",
        earlier=BEFORE,
        change=lost(f"{at(3)}/xgmi_device_id"),
        status=FAIL,
        seen="gpu3: linked to 0 others",
    ),
    Case(
        check="accel.peers",
        name="a link loses data",
        earlier=BEFORE,
        change=sees(3, "ras/xgmi_wafl_err_count", "ue: 4\nce: 0"),
        status=FAIL,
        seen="gpu3: 4 uncorrectable errors in its links",
    ),
    Case(
        check="accel.peers",
        name="a link corrects much",
        earlier=BEFORE,
        change=sees(3, "ras/xgmi_wafl_err_count", "ue: 0\nce: 4000"),
        status=WARN,
        seen="gpu3: 4000 corrected errors in its links",
    ),
    Case(check="accel.peers", name="PCIe cards", change=no_links, status=SKIP, seen="no links"),
]

_LEFTOVER = [
    Case(
        check="accel.leftover",
        name="one holds memory",
        change=both(mi300x, holds(4242, 12.5)),
        options={"every_s": 0},
        status=FAIL,
        seen="gpu3: process 4242 (python3) holds 12.5 GiB",
    ),
    Case(
        check="accel.leftover",
        name="of one that is gone",
        change=both(mi300x, holds(4242, 1.0), lost("proc/4242")),
        options={"every_s": 0},
        status=FAIL,
        seen="process 4242 (not seen in /proc)",
    ),
    Case(
        check="accel.leftover",
        name="one that only looks",
        change=both(mi300x, holds(4242, 0.0)),
        options={"every_s": 0},
        status=OK,
    ),
    Case(
        check="accel.leftover",
        name="of a partition",
        change=both(
            mi300x,
            wrote(f"{tree_amd.KFD}/topology/nodes/9/gpu_id", "777"),
            wrote(
                f"{tree_amd.KFD}/topology/nodes/9/properties",
                f"location_id {(int(tree_amd.BUSES[3], 16) << 8) + 5}\ndomain 0",
            ),
            wrote(f"{tree_amd.KFD}/proc/4242/vram_777", str(2**30)),
        ),
        options={"every_s": 0},
        status=FAIL,
        seen="gpu3: process 4242",
    ),
]

_KERNEL = [
    Case(check="accel.kernel", name="a B200 node", status=SKIP),
    Case(check="accel.kernel", name="healthy", change=mi300x, status=OK),
    *(
        Case(
            check="accel.kernel",
            name=f"{sign.name} {number}",
            change=both(mi300x, logged(wording.example)),
            status=sign.status,
            seen=sign.what,
        )
        for sign in AMD_PATTERNS
        for number, wording in enumerate(sign.wordings)
    ),
    Case(
        check="accel.kernel",
        name="it names the device",
        change=both(mi300x, logged(DEAD)),
        status=FAIL,
        seen="gpu3: it does not answer on the bus any more",
    ),
    Case(
        check="accel.kernel",
        name="none has its driver",
        change=both(driverless, logged("amdgpu 0000:5c:00.0: amdgpu: Fatal error during GPU init")),
        status=FAIL,
        seen="0000:5c:00.0: the driver could not start",
    ),
    Case(
        check="accel.kernel",
        name="the driver was loaded again",
        change=both(
            mi300x,
            logged(
                "amdgpu 0000:5c:00.0: 1 uncorrectable hardware errors detected in umc block",
                DEAD,
                "[drm] Initialized amdgpu 3.57.0 20150101 for 0000:5c:00.0 on minor 4",
            ),
        ),
        status=OK,
    ),
    Case(
        check="accel.kernel",
        name="another device was started",
        change=both(
            mi300x,
            logged(DEAD, "[drm] Initialized amdgpu 3.64.0 for 0000:9f:00.0 on minor 5"),
        ),
        status=FAIL,
        seen="gpu3",
    ),
    Case(
        check="accel.kernel",
        name="a reset that succeeded in the end",
        change=both(
            mi300x,
            logged(
                "amdgpu 0000:5c:00.0: amdgpu: GPU reset(2) failed",
                "amdgpu 0000:5c:00.0: amdgpu: GPU reset(3) succeeded!",
            ),
        ),
        status=OK,
    ),
    Case(
        check="accel.kernel",
        name="a console's Radeon",
        change=both(
            mi300x,
            device("1002:7448", "0x030000", "0000:e2:00.0"),
            logged("amdgpu 0000:e2:00.0: amdgpu: device lost from bus!"),
        ),
        status=OK,
    ),
    Case(
        check="accel.kernel",
        name="what programs do, and what is corrected",
        change=both(
            mi300x,
            logged(
                "amdgpu 0000:5c:00.0: amdgpu: [gfxhub0] no-retry page fault (src_id:0 ring:24 "
                "vmid:8 pasid:32770, for process python3 pid 4242 thread python3 pid 4242)",
                "amdgpu 0000:5c:00.0: amdgpu:   in page starting at address 0x00007f0000000000",
                "amdgpu 0000:5c:00.0: amdgpu: 3 correctable hardware errors detected in umc block, "
                "no user action is needed.",
                "amdgpu 0000:5c:00.0: amdgpu: socket: 3, die: 0, 0 uncorrectable hardware errors "
                "detected in total in umc block",
                "amdgpu 0000:5c:00.0: amdgpu: {7} RAS poison is created, no user action is needed.",
                "amdgpu 0000:5c:00.0: amdgpu: RAS poison consumption, unmap queue flow succeeded: "
                "client id 18",
                "amdgpu 0000:5c:00.0: amdgpu: GPU reset end with ret = -11",
                "amdgpu 0000:5c:00.0: amdgpu: SRAM ECC is active.",
                "[drm] Initialized amdgpu 3.57.0 20150101 for 0000:5c:00.0 on minor 4",
            ),
        ),
        status=OK,
    ),
    Case(
        check="accel.kernel",
        name="the log can't be read",
        change=both(mi300x, garbled("dev/kmsg")),
        status=UNKNOWN,
    ),
]

CASES = [
    *_ON_BUS,
    *_OF_ALL,
    *_VERSIONS,
    *_MEMORY,
    *_HEAT,
    *_LINK,
    *_PEERS,
    *_LEFTOVER,
    *_KERNEL,
]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)
