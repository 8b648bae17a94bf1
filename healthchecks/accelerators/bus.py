"""Accelerators on the PCI bus, whoever made them.

An accelerator is a function of class "processing accelerator", a 3D controller without a display,
or one of the devices below, whose class says less: an MI250 is a "display controller", a Trainium a
"system peripheral". Adapters for a console (ASPEED, Matrox, virtio), integrated graphics, the small
NPUs of processors and engines for compression are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from healthchecks.frame.context import Ctx
from healthchecks.sources.pci import DISPLAY, NVIDIA, PCI, functions

AMD, INTEL, HUAWEI, MICROSOFT = "0x1002", "0x8086", "0x19e5", "0x1414"
PROCESSING, THREE_D = "0x1200", "0x0302"
# Base classes that an accelerator may have at all: display, memory (some say so), system
# peripheral, processor, signal processing, processing accelerator, unassigned.
_BASES = ("0x03", "0x08", "0x0b", "0x11", "0x12", "0xff")


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorFamily:
    """Devices of one maker that are accelerators, whatever their class says."""

    maker: str
    vendor: str
    devices: tuple[str, ...] = ()  # beginnings of their ids; all of the vendor where empty
    classes: tuple[str, ...] = ()  # beginnings of their classes; any of _BASES where empty
    source: str = "PCI ID Repository (2026-08)"


FAMILIES = (
    AcceleratorFamily(
        maker="AMD Instinct",
        vendor=AMD,
        devices=("0x738", "0x739", "0x740", "0x741", "0x74a", "0x74b", "0x75a", "0x75b"),
        source="PCI ID Repository (2026-08); Linux, amdgpu_drv.c (Arcturus, Aldebaran)",
    ),
    AcceleratorFamily(
        maker="Intel Data Center GPU Max", vendor=INTEL, devices=("0x0bd", "0x0b69", "0x0b6e")
    ),
    AcceleratorFamily(maker="Intel Data Center GPU Flex", vendor=INTEL, devices=("0x56c",)),
    AcceleratorFamily(maker="Intel Gaudi", vendor="0x1da3"),
    AcceleratorFamily(maker="Tenstorrent", vendor="0x1e52"),
    AcceleratorFamily(maker="FuriosaAI", vendor="0x1ed2"),
    AcceleratorFamily(maker="Rebellions", vendor="0x1eff"),
    AcceleratorFamily(maker="SAPEON", vendor="0x1f56"),
    AcceleratorFamily(maker="Graphcore", vendor="0x1d95"),
    AcceleratorFamily(maker="Groq", vendor="0x1de0"),
    AcceleratorFamily(maker="SambaNova", vendor="0x1e0d"),
    AcceleratorFamily(maker="d-Matrix", vendor="0x1f82"),
    AcceleratorFamily(maker="Enflame", vendor="0x1e36"),
    AcceleratorFamily(maker="Iluvatar CoreX", vendor="0x1e3e"),
    AcceleratorFamily(maker="Moore Threads", vendor="0x1ed5"),
    AcceleratorFamily(maker="MetaX", vendor="0x9999"),
    AcceleratorFamily(maker="Cambricon", vendor="0xcabc"),
    AcceleratorFamily(maker="Baidu Kunlun", vendor="0x1d22", devices=("0x368",)),
    AcceleratorFamily(
        maker="Hygon DCU",
        vendor="0x1d94",
        classes=("0x03", "0x12"),
        source="Hygon's DTK documents and lspci: a display controller",
    ),
    AcceleratorFamily(
        maker="Huawei Ascend",
        vendor=HUAWEI,
        devices=("0xd1", "0xd5", "0xd8"),
        source="Huawei's Ascend documents, npu-smi and lspci",
    ),
    AcceleratorFamily(
        maker="Google TPU",
        vendor="0x1ae0",
        devices=(
            "0x0027",
            "0x0056",
            "0x005e",
            "0x0062",
            "0x0063",
            "0x006f",
            "0x0076",
            "0x007c",
            "0x0083",
        ),
        source="JAX, hardware_utils.py",
    ),
    AcceleratorFamily(
        maker="AWS Neuron",
        vendor="0x1d0f",
        devices=("0x7064", "0x7164", "0x7264", "0x7364", "0x7564", "0x7565"),
    ),
    AcceleratorFamily(
        maker="Qualcomm Cloud AI",
        vendor="0x17cb",
        devices=("0xa08", "0xa10", "0xa11"),
        source="Linux, drivers/accel/qaic",
    ),
)
# Of class 0x1200 or 0x0302, and no accelerator of a job: parts of processors, engines for
# compression, a paravirtual display.
_PARTS = {
    INTEL: ("0x7d1d", "0x643e", "0xad1d", "0xb03e", "0xfd3e"),  # NPUs of Core Ultra
    HUAWEI: ("0xa25",),  # ZIP, SEC and HPRE of Kunpeng
    MICROSOFT: ("",),  # Basic Render Driver of Hyper-V and WSL
}
GIVEN = ("vfio-pci", "gim", "pci-stub", "xen-pciback")  # drivers: to virtual machines
_NO_3D = (INTEL, AMD)  # a 3D controller of theirs is integrated or a workstation's


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBus:
    """An accelerator on the PCI bus."""

    bdf: str
    vendor: str  # as /sys has it: 0x1002
    device: str
    maker: str = ""  # empty where nobody here knows it
    driver: str = ""  # bound to it; empty where none is

    @property
    def pci_id(self) -> str:
        """As lspci says it: 1002:74a1."""
        return f"{self.vendor.removeprefix('0x')}:{self.device.removeprefix('0x')}"


def on_bus(ctx: Ctx) -> list[OnBus]:
    """Accelerators of all makers but NVIDIA (those are `sources.nvml`'s), by address.

    Raises OSError where the bus can't be read.
    """
    found = []
    for bdf in ctx.names(PCI):
        kind = ctx.text(f"{PCI}/{bdf}/class")
        if not kind.startswith(_BASES):
            continue
        vendor = ctx.text(f"{PCI}/{bdf}/vendor")
        if vendor == NVIDIA:
            continue
        device = ctx.text(f"{PCI}/{bdf}/device")
        maker = _maker(kind, vendor, device)
        if maker or _unnamed(kind, vendor, device):
            driver = driver_of(ctx, bdf)
            found.append(OnBus(bdf=bdf, vendor=vendor, device=device, maker=maker, driver=driver))
    return found


def of_all_makers(ctx: Ctx) -> list[str]:
    """PCI addresses of accelerators, NVIDIA's among them, without those given to virtual machines.

    Raises OSError where the bus can't be read.
    """
    others = [one.bdf for one in on_bus(ctx) if one.driver not in GIVEN]
    return sorted([*functions(ctx, DISPLAY, NVIDIA), *others])


def _maker(kind: str, vendor: str, device: str) -> str:
    for family in FAMILIES:
        like = device.startswith(family.devices or "") and kind.startswith(family.classes or "")
        if vendor == family.vendor and like:
            return family.maker
    return ""


def _unnamed(kind: str, vendor: str, device: str) -> bool:
    """Whether a device that no table names is an accelerator by its class."""
    if device.startswith(_PARTS.get(vendor, ("-",))):
        return False
    return kind.startswith(PROCESSING) or (kind.startswith(THREE_D) and vendor not in _NO_3D)


def driver_of(ctx: Ctx, bdf: str) -> str:
    """The kernel driver bound to a PCI function; empty where none is. Raises OSError."""
    place = ctx.path(f"{PCI}/{bdf}/driver")
    return place.readlink().name if place.is_symlink() else ""
