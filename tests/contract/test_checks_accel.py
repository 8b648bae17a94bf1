"""Accelerators of other makers than NVIDIA: on the bus, and what AMD's driver tells of them."""

from __future__ import annotations

from pathlib import Path

from checks import Case, Change, both, each_of, garbled, lost, run, wrote

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

CASES = [*_ON_BUS]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)
