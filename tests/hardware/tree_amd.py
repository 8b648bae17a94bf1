"""A healthy node with eight AMD Instinct MI300X, as files: what Linux 6.8's amdgpu shows.

Files and their texts are those of the driver's documentation and source (amdgpu_ras.c,
amdgpu_pm.c, amdgpu_xgmi.c, kfd_topology.c, kfd_process.c); nothing was copied from a machine.
"""

from __future__ import annotations

from tests.hardware import tree_nics
from tests.hardware.tree import GPU_BDFS, Tree

BUSES = ("0c", "22", "38", "5c", "9f", "af", "bf", "df")
BDFS = tuple(f"0000:{bus}:00.0" for bus in BUSES)
PCI, KFD = "sys/bus/pci/devices", "sys/class/kfd/kfd"
BLOCKS = ("umc", "sdma", "gfx", "mmhub", "pcie_bif", "xgmi_wafl")
SENSORS = {1: ("junction", 100_000, 105_000), 2: ("mem", 95_000, 110_000)}


def at(index: int) -> str:
    return f"{PCI}/{BDFS[index]}"


def gpu_id(index: int) -> str:
    return str(40_000 + index)


def mi300x(tree: Tree) -> None:
    """AMD's GPUs in place of NVIDIA's."""
    for index, bdf in enumerate(GPU_BDFS):
        tree.remove(f"{PCI}/{bdf}")
        tree.remove(f"dev/nvidia{index}")
    for path in ("proc/driver/nvidia", "sys/module/nvidia", "dev/nvidiactl", "dev/nvidia-uvm"):
        tree.remove(path)
    tree.remove("dev/nvidia-uvm-tools")
    tree.write("proc/modules", "amdgpu 19900000 17 - Live 0x0000000000000000")
    tree.write("sys/module/amdgpu/version", "6.12.12")
    tree.write(f"{KFD}/topology/nodes/0/gpu_id", "0")  # the processors
    tree.path(f"{KFD}/proc").mkdir()
    for index in range(len(BDFS)):
        one(tree, index)


def one(tree: Tree, index: int, device: str = "0x74a1", kind: str = "0x120000") -> None:
    bdf = BDFS[index]
    files = tree_nics.pci(bdf, "0x1002", device, kind, index // 4)
    more = {
        "unique_id": f"b1a2c3d4e5f6070{index}",
        "serial_number": f"69244700010{index}",
        "product_name": "AMD Instinct MI300X OAM",
        "mem_info_vram_total": str(192 << 30),
        "mem_info_vram_used": str(290 << 20),
        "gpu_busy_percent": "0",
        "xgmi_device_id": str(0xA0 + index),
        "ras/features": "feature mask: 0x3fff7",
        "ras/gpu_vram_bad_pages": "",
        "hwmon/hwmon5/name": "amdgpu",
        "vbios_version": "113-M3000100-103",
        "xgmi_hive_info/xgmi_hive_id": "6442450944",
    }
    more |= {f"xgmi_hive_info/node{n + 1}/xgmi_device_id": str(0xA0 + n) for n in range(len(BDFS))}
    more |= {f"ras/{block}_err_count": "ue: 0\nce: 0\nde: 0" for block in BLOCKS}
    for number, (label, crit, emergency) in SENSORS.items():
        more[f"hwmon/hwmon5/temp{number}_label"] = label
        more[f"hwmon/hwmon5/temp{number}_input"] = "41000"
        more[f"hwmon/hwmon5/temp{number}_crit"] = str(crit)
        more[f"hwmon/hwmon5/temp{number}_emergency"] = str(emergency)
    files |= {f"{PCI}/{bdf}/{name}": text for name, text in more.items()}
    node = f"{KFD}/topology/nodes/{index + 1}"
    files[f"{node}/gpu_id"] = gpu_id(index)
    files[f"{node}/properties"] = (
        f"simd_count 1216\nlocation_id {int(BUSES[index], 16) << 8}\ndomain 0"
    )
    for path, text in files.items():
        tree.write(path, text)
    tree.symlink(f"{PCI}/{bdf}/driver", "../../../../bus/pci/drivers/amdgpu")
    tree.write(f"sys/class/drm/renderD{128 + index}/dev", f"226:{128 + index}")
    tree.write(f"dev/dri/renderD{128 + index}", "")


def process(tree: Tree, pid: int, index: int, vram: int) -> None:
    """A process that holds memory of a GPU."""
    tree.write(f"{KFD}/proc/{pid}/vram_{gpu_id(index)}", str(vram))
    tree.write(f"proc/{pid}/comm", "python3")


def card(bdf: str, vendor: str, device: str, kind: str, driver: str = "") -> dict[str, str]:
    """Files of any other PCI device."""
    return tree_nics.pci(bdf, vendor, device, kind, 0)
