"""Healthy, but different: nodes of other makes than the one of tests/hardware/tree.py.

On none of them may a check FAIL or be UNKNOWN but for what it has not measured yet, or warn of
what an operator would only curse. A node is what is done to the healthy B200 node, and where its
shape is from. To add one: a row in NODES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from checks import Change, both, lost, wrote

from tests.hardware import tree_nics
from tests.hardware.nvml import SCRIPT
from tests.hardware.tree import GPU_BDFS, Tree
from tests.hardware.tree_amd import mi300x
from tests.hardware.tree_os import CPUS, TOTAL_KB

IB, PCI, NET = "sys/class/infiniband", "sys/bus/pci/devices", "sys/class/net"
UP_S = 864_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthyNode:
    """A node with which nothing is wrong."""

    name: str
    source: str  # where its shape is from, in words
    change: Change
    before: Change | None = None  # in the look before, where that differs
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as site.yaml has them
    worth: Mapping[str, str] = field(default_factory=dict)  # check → what it rightly warns of

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


# --- builders ---


def says(*lines: str) -> Change:
    """What NVML answers, see tests/hardware/nvml/libnvidia-ml.c."""

    def do(tree: Tree) -> None:
        earlier = [tree.read(SCRIPT)] if tree.path(SCRIPT).exists() else []
        tree.write(SCRIPT, "\n".join([*earlier, *lines]))

    return do


def logged(*lines: str, ago_s: float = 3600.0, level: int = 4) -> Change:
    """The kernel wrote these."""

    def do(tree: Tree) -> None:
        log = tree.read("dev/kmsg")
        number = log.count("\n") + 1
        at_us = int((float(tree.read("proc/uptime").split()[0]) - ago_s) * 1e6)
        rows = [f"{level},{number + i},{at_us + i},-;{line}" for i, line in enumerate(lines)]
        tree.write("dev/kmsg", "\n".join([log, *rows]))

    return do


def gpus(name: str, count: int = 8, *lines: str) -> Change:
    """That many GPUs of this name."""

    def do(tree: Tree) -> None:
        for index, bdf in enumerate(GPU_BDFS):
            if index >= count:
                tree.remove(f"{PCI}/{bdf}")
                tree.remove(f"proc/driver/nvidia/gpus/{bdf}")
                tree.remove(f"dev/nvidia{index}")
            else:
                tree.change(f"proc/driver/nvidia/gpus/{bdf}/information", "NVIDIA B200", name)
        script = [f"nvmlDeviceGetName * text {name}", f"nvmlDeviceGetCount_v2 * value {count}"]
        says(*script, *lines)(tree)

    return do


def no_nics(tree: Tree) -> None:
    for nic in tree_nics.nics():
        tree.remove(f"{IB}/{nic.device}")
        tree.remove(f"{PCI}/{nic.bdf}")
        tree.remove(f"{NET}/{nic.netdev}")
        tree.remove(f"sys/class/infiniband_verbs/uverbs{nic.device.removeprefix('mlx5_')}")


def no_lpf(tree: Tree) -> None:
    for nic in tree_nics.nics():
        if nic.role == "lpf":
            tree.remove(f"{IB}/{nic.device}")
            tree.remove(f"{PCI}/{nic.bdf}")
            tree.remove(f"{NET}/{nic.netdev}")


def port(
    device: str,
    bdf: str,
    netdev: str = "",
    *,
    layer: str = "Ethernet",
    rate: str = "400 Gb/sec (4X NDR)",
    board: str = "MT_0000000838",
    pci: tuple[str, str] = ("0x15b3", "0x1021"),
    state: str = "4: ACTIVE",
    physical: str = "5: LinkUp",
    address: str = "",
    numa: int = 0,
    numbers: Sequence[int] = (1,),
    counters: Sequence[str] = (*tree_nics.COUNTERS,),
    firmware: str = "28.43.2026",
    up: bool = True,
) -> Change:
    """A function of a NIC with its RDMA device and interface."""
    guid = f"9c05:9103:00dd:{bdf[5:7]}{bdf[-1]}1"

    def do(tree: Tree) -> None:
        kind = "0x020700" if layer == "InfiniBand" else "0x020000"
        for path, text in tree_nics.pci(bdf, *pci, kind, numa).items():
            tree.write(path, text)
        at = f"{PCI}/{bdf}/infiniband/{device}"
        texts = {"node_guid": guid, "fw_ver": firmware, "hca_type": "MT4129", "hw_rev": "0"}
        if board:
            texts["board_id"] = board
        for number in numbers:
            ib = layer == "InfiniBand"
            good = number == 1
            texts |= {
                f"ports/{number}/state": state if good else "1: DOWN",
                f"ports/{number}/phys_state": physical if good else "3: Disabled",
                f"ports/{number}/rate": rate if good else "10 Gb/sec (4X SDR)",
                f"ports/{number}/link_layer": layer,
                f"ports/{number}/lid": f"0x1{bdf[5:7]}" if ib and good else "0x0",
                f"ports/{number}/sm_lid": "0x1" if ib and good else "0x0",
                f"ports/{number}/pkeys/0": "0xffff",
                f"ports/{number}/hw_counters/lifespan": "10",
            }
            texts |= {f"ports/{number}/counters/{name}": "0" for name in counters}
            if pci[0] == "0x15b3" and counters:
                names = (*tree_nics.HW_COUNTERS, *(() if ib else tree_nics.ROCE_COUNTERS))
                texts |= {f"ports/{number}/hw_counters/{name}": "0" for name in names}
            local = f"fe80:0000:0000:0000:{guid}"
            texts |= {f"ports/{number}/gids/0": local, f"ports/{number}/gids/1": local}
            texts |= {
                f"ports/{number}/gid_attrs/types/0": "IB/RoCE v1",
                f"ports/{number}/gid_attrs/types/1": "RoCE v2",
            }
            if address:
                head, tail = (int(a) * 256 + int(b) for a, b in _halves(address))
                ip = f"0000:0000:0000:0000:0000:ffff:{head:04x}:{tail:04x}"
                texts |= {
                    f"ports/{number}/gids/2": ip,
                    f"ports/{number}/gids/3": ip,
                    f"ports/{number}/gid_attrs/types/2": "IB/RoCE v1",
                    f"ports/{number}/gid_attrs/types/3": "RoCE v2",
                }
            for index in range(4 if address else 2):
                texts[f"ports/{number}/gid_attrs/ndevs/{index}"] = netdev
        for path, text in texts.items():
            tree.write(f"{at}/{path}", text)
        tree.link(f"{IB}/{device}", at)
        tree.symlink(f"{at}/device", f"../../../{bdf}")
        index = len([*tree.path("sys/class/infiniband_verbs").iterdir()]) + 40
        tree.write(f"sys/class/infiniband_verbs/uverbs{index}/ibdev", device)
        tree.write(f"dev/infiniband/uverbs{index}", "")
        if netdev:
            interface(netdev, bdf, "up" if up else "down")(tree)

    return do


def _halves(address: str) -> list[tuple[str, str]]:
    a, b, c, d = address.split(".")
    return [(a, b), (c, d)]


def interface(netdev: str, bdf: str = "", operstate: str = "up", mtu: int = 9000) -> Change:
    """A network interface, of a PCI function where one is named."""

    def do(tree: Tree) -> None:
        at = f"{PCI}/{bdf}/net/{netdev}" if bdf else f"{NET}/{netdev}"
        tree.write(f"{at}/type", "1")
        tree.write(f"{at}/mtu", str(mtu))
        tree.write(f"{at}/operstate", operstate)
        if bdf:
            tree.link(f"{NET}/{netdev}", at)
            tree.symlink(f"{at}/device", f"../../../{bdf}")

    return do


def of_host(function: str, physical: str) -> Change:
    """A virtual function of a physical one."""
    return lambda tree: tree.link(f"{PCI}/{function}/physfn", f"{PCI}/{physical}")


def below(lower: str, upper: str, *, slave: bool = False) -> Change:
    """The kernel's links between an interface and the VLAN or bond above it."""

    def do(tree: Tree) -> None:
        tree.link(f"{NET}/{lower}/upper_{upper}", f"{NET}/{upper}")
        tree.link(f"{NET}/{upper}/lower_{lower}", f"{NET}/{lower}")
        if slave:
            tree.link(f"{NET}/{lower}/master", f"{NET}/{upper}")

    return do


def many(of: Callable[[int], Change], numbers: Sequence[int]) -> Change:
    return both(*(of(n) for n in numbers))


def route(netdev: str) -> Change:
    head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    return wrote(
        "proc/net/route",
        f"{head}\n{netdev}\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0",
    )


def _roce_400(n: int) -> Change:
    return port(
        f"mlx5_{n}", f"0000:{0x20 + n:02x}:00.0", f"ens{n}np0", address=f"10.1.{n}.17", numa=n // 4
    )


MANAGER = wrote("proc/2101/comm", "nv-fabricmanage")
BOTH_MANAGERS = both(MANAGER, wrote("proc/2102/comm", "nvlsm"))
UNFABRIC = "nvmlDeviceGetGpuFabricInfoV * rc 3"
NVLINK5 = (206, 207, 208, 209, 210, 211, 213, 214, 215, 219, 220, 221, 222)
HOPPER_FIELDS = [f"nvmlDeviceGetFieldValues/{n} * rc 3" for n in NVLINK5]


def nvswitch(bdf: str) -> Change:
    return both(
        *(
            wrote(path, text)
            for path, text in tree_nics.pci(bdf, "0x10de", "0x22a3", "0x068000", 0).items()
        )
    )


def mounts(*rows: str) -> Change:
    """Lines of mountinfo, beside those of the healthy node."""

    def do(tree: Tree) -> None:
        tree.write("proc/self/mountinfo", "\n".join([tree.read("proc/self/mountinfo"), *rows]))

    return do


def mount(
    number: int, device: str, point: str, kind: str, source: str, inner: str = "rw"
) -> Change:
    def do(tree: Tree) -> None:
        mounts(f"{number} 29 {device} / {point} rw,relatime shared:9 - {kind} {source} {inner}")(
            tree
        )
        tree.path(point).mkdir(parents=True, exist_ok=True)

    return do


def numa(value: str) -> Change:
    def do(tree: Tree) -> None:
        for folder in tree.path(PCI).iterdir():
            tree.write(f"{PCI}/{folder.name}/numa_node", value)

    return do


def cpus(count: int) -> Change:
    """A machine of one socket with that many CPUs, a thread a core."""

    def do(tree: Tree) -> None:
        every = f"0-{count - 1}"
        for name in ("online", "present", "possible"):
            tree.write(f"sys/devices/system/cpu/{name}", every)
        for cpu in range(count):
            at = f"sys/devices/system/cpu/cpu{cpu}/topology"
            tree.write(f"{at}/thread_siblings_list", str(cpu))
            tree.write(f"{at}/physical_package_id", "0")
        tree.write("sys/devices/system/node/online", "0")
        tree.remove("sys/devices/system/node/node1")
        tree.write("sys/devices/system/node/node0/cpulist", every)
        tree.change("sys/devices/system/node/node0/meminfo", str(TOTAL_KB // 2), str(TOTAL_KB))
        tree.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD Ryzen 3\nflags\t\t: fpu")

    return do


def no_gpus(tree: Tree) -> None:
    for index, bdf in enumerate(GPU_BDFS):
        tree.remove(f"{PCI}/{bdf}")
        tree.remove(f"dev/nvidia{index}")
    tree.remove("proc/driver/nvidia")
    tree.remove("sys/module/nvidia")
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"):
        tree.remove(f"dev/{name}")


def full(*devices: str, value: dict[str, str]) -> Change:
    return both(
        *(
            wrote(f"{IB}/{d}/ports/1/counters/{name}", text)
            for d in devices
            for name, text in value.items()
        )
    )


def unprivileged(path: str) -> Change:
    """A file that root may not read either, so that a test may run as root."""

    def do(tree: Tree) -> None:
        import os

        tree.remove(path)
        os.symlink("/proc/sys/vm/drop_caches", tree.path(path))

    return do


def rootless(tree: Tree) -> None:
    """As an ordinary user where kernel.dmesg_restrict is 1."""
    unprivileged("dev/kmsg")(tree)
    for nic in tree_nics.nics():
        unprivileged(f"{PCI}/{nic.bdf}/vpd")(tree)


def slurmstepd(pid: int, *argv: str) -> Change:
    return both(
        wrote(f"proc/{pid}/comm", "slurmstepd"), wrote(f"proc/{pid}/cmdline", "\0".join(argv))
    )


DOWN = {"state": "1: DOWN", "physical": "3: Disabled", "rate": "10 Gb/sec (4X SDR)"}
STARTING = both(
    wrote("proc/uptime", "95.00 10000.00"),
    wrote(
        "dev/kmsg",
        "5,0,0,-;Linux version 6.8.0\n6,1,4100000,-;mlx5_core 0000:18:00.0: firmware version: "
        "28.43.2026\n6,2,9000000,-;mlx5_core 0000:18:00.0 ib0: Link down\n6,3,21000000,-;mlx5_core "
        "0000:18:00.0 ib0: Link up\n4,4,9500000,-;mlx5_core 0000:18:00.0: mlx5_pcie_event:301:"
        "(pid 2): Detected insufficient power on the PCIe slot (27W).",
    ),
    says(
        "nvmlDeviceGetGpuFabricInfoV * value 2",
        "nvmlDeviceGetP2PStatus * value 1",
    ),
)

NODES = [
    HealthyNode(
        name="HGX B200 with LPF ports",
        source="the node of tests/hardware/tree.py; NVIDIA Fabric Manager User Guide (SW_MNG)",
        change=BOTH_MANAGERS,
    ),
    HealthyNode(
        name="DGX H100",
        source="DGX H100 User Guide: four NVSwitches on PCI, eight single-port ConnectX-7 and two "
        "dual-port ones for storage, of which one port is not cabled; NVLink4 has 26.562 GB/s",
        change=both(
            no_lpf,
            MANAGER,
            gpus(
                "NVIDIA H100 80GB HBM3",
                8,
                *HOPPER_FIELDS,
                "nvmlDeviceGetFieldValues/164 * value 26562",
                *(f"nvmlDeviceGetFieldValues/{n} * value 0" for n in (161, 162, 163)),
                "nvmlDeviceGetRepairStatus * rc 3",
            ),
            *(nvswitch(f"0000:{bus}:00.0") for bus in ("07", "08", "09", "0a")),
            port("mlx5_20", "0000:42:00.0", "ens52f0np0", board="MT_0000000834", **DOWN, up=False),
        ),
    ),
    HealthyNode(
        name="a microVM with one H100",
        source="seen on such a machine (docs/hardware-seen.md): Firecracker, driver 580.159.04; no "
        "NVSwitch, no NIC; NVML says of fabric and NVLink that they are not supported; the driver "
        "writes these lines whenever it is loaded",
        change=both(
            no_nics,
            gpus(
                "NVIDIA H100 80GB HBM3",
                1,
                UNFABRIC,
                *HOPPER_FIELDS,
                "nvmlDeviceGetNvLinkState * rc 3",
                "nvmlDeviceGetP2PStatus * rc 3",
                "nvmlDeviceGetRepairStatus * rc 3",
                *(f"nvmlDeviceGetFieldValues/{n} * rc 3" for n in (148, 149, 150, 160, 161, 162)),
            ),
            cpus(16),
            logged(
                "nvidia: loading out-of-tree module taints kernel.",
                "NVRM: gpuClearFbhubPoisonIntrForBug2924523_GA100: FBHUB Interrupt detected. "
                "Clearing it.",
                "NVRM: Persistence mode is deprecated and will be removed in a future release. "
                "Please use nvidia-persistenced instead.",
            ),
        ),
    ),
    HealthyNode(
        name="bonded ConnectX",
        source="Linux drivers/infiniband/hw/mlx5 (LAG): one RDMA device for the bond, on the first "
        "function; its GIDs are of the bond and of the VLAN above it",
        change=both(
            no_nics,
            gpus("NVIDIA L40S", 8, UNFABRIC, "nvmlDeviceGetNvLinkState * rc 3"),
            says("nvmlDeviceGetP2PStatus * rc 3", *HOPPER_FIELDS),
            port("mlx5_bond_0", "0000:41:00.0", "ens4f0np0", address="10.2.0.17"),
            *(
                wrote(path, text)
                for path, text in tree_nics.pci(
                    "0000:41:00.1", "0x15b3", "0x1021", "0x020000", 0
                ).items()
            ),
            interface("ens4f1np1", "0000:41:00.1"),
            interface("bond0"),
            interface("bond0.100"),
            below("ens4f0np0", "bond0", slave=True),
            below("ens4f1np1", "bond0", slave=True),
            below("bond0", "bond0.100"),
            wrote(f"{IB}/mlx5_bond_0/ports/1/gid_attrs/ndevs/2", "bond0.100"),
            wrote(f"{IB}/mlx5_bond_0/ports/1/gid_attrs/ndevs/3", "bond0.100"),
            wrote(f"{IB}/mlx5_bond_0/ports/1/gid_attrs/ndevs/0", "bond0"),
            wrote(f"{IB}/mlx5_bond_0/ports/1/gid_attrs/ndevs/1", "bond0"),
        ),
    ),
    HealthyNode(
        name="RoCE fabric 400G and storage 200G",
        source="rail-optimised RoCE clusters (NVIDIA Spectrum-X reference architecture)",
        change=both(
            no_nics,
            MANAGER,
            nvswitch("0000:07:00.0"),
            many(_roce_400, range(8)),
            *(
                port(
                    f"mlx5_{8 + n}",
                    f"0000:3{n}:00.0",
                    f"ens2{n}np0",
                    rate="200 Gb/sec (4X HDR)",
                    board="MT_0000000834",
                    address=f"10.9.{n}.17",
                    numa=n,
                )
                for n in range(2)
            ),
        ),
    ),
    HealthyNode(
        name="a 25G management port",
        source="ConnectX-4 Lx (MT27710) as in-band management beside InfiniBand: no address on its "
        "own interface where that is bridged; the default route",
        change=both(
            BOTH_MANAGERS,
            port(
                "mlx5_14",
                "0000:31:00.0",
                "eno1np0",
                rate="25 Gb/sec (1X EDR)",
                board="MT_2420110034",
                pci=("0x15b3", "0x1015"),
                firmware="14.32.1010",
                address="192.168.2.17",
            ),
            route("eno1np0"),
        ),
    ),
    HealthyNode(
        name="an uncabled port",
        source="a dual-port card of which one port is used: state DOWN, phys_state Polling",
        change=both(
            BOTH_MANAGERS,
            port(
                "mlx5_14",
                "0000:18:00.1",
                "ib8",
                layer="InfiniBand",
                state="1: DOWN",
                physical="2: Polling",
                rate="10 Gb/sec (4X SDR)",
                up=False,
            ),
            wrote(f"{IB}/mlx5_14/ports/1/lid", "0xffff"),
            wrote(f"{IB}/mlx5_14/ports/1/sm_lid", "0x0"),
        ),
    ),
    HealthyNode(
        name="virtual functions of a host",
        source="Linux Documentation/PCI/pci-iov-howto: physfn; VFs given away, or driverless",
        change=both(
            BOTH_MANAGERS,
            *(
                both(
                    port(
                        f"mlx5_{20 + n}",
                        f"0000:41:00.{2 + n}",
                        f"ens40v{n}",
                        state="1: DOWN",
                        physical="3: Disabled",
                        rate="200 Gb/sec (4X HDR)",
                        board="MT_0000000834",
                        pci=("0x15b3", "0x101e"),
                        counters=(),
                        up=False,
                    ),
                    of_host(f"0000:41:00.{2 + n}", "0000:41:00.0"),
                )
                for n in range(2)
            ),
            *(
                wrote(path, text)
                for path, text in tree_nics.pci(
                    "0000:41:01.0", "0x15b3", "0x101e", "0x020000", 0
                ).items()
            ),
            of_host("0000:41:01.0", "0000:41:00.0"),
        ),
    ),
    HealthyNode(
        name="mixed vendors and rates",
        source="prometheus/procfs fixtures (mlx4_0 at 40 Gb/s beside others); Broadcom bnxt_re and "
        "Intel irdma show neither board nor PMA counters",
        change=both(
            no_nics,
            gpus("NVIDIA A100-PCIE-40GB", 4, UNFABRIC, "nvmlDeviceGetNvLinkState * rc 3"),
            says("nvmlDeviceGetP2PStatus * rc 3", *HOPPER_FIELDS),
            port(
                "mlx4_0",
                "0000:21:00.0",
                "ib0",
                layer="InfiniBand",
                rate="40 Gb/sec (4X QDR)",
                board="SM_1141000001000",
                pci=("0x15b3", "0x1003"),
                firmware="2.31.5050",
                numbers=(1, 2),
            ),
            *(
                port(
                    f"bnxt_re{n}",
                    f"0000:5{n}:00.0",
                    f"enp8{n}f0np0",
                    rate="100 Gb/sec (2X NDR)",
                    board="",
                    pci=("0x14e4", "0x1750"),
                    firmware="229.2.52.0",
                    address=f"10.5.{n}.17",
                    counters=(),
                )
                for n in range(2)
            ),
            port(
                "irdma0",
                "0000:61:00.0",
                "eno9",
                rate="25 Gb/sec (1X EDR)",
                board="",
                pci=("0x8086", "0x1592"),
                firmware="1.71",
                address="192.168.2.17",
                counters=(),
            ),
            route("eno9"),
        ),
    ),
    HealthyNode(
        name="EFA of AWS",
        source="Linux drivers/infiniband/hw/efa: link_layer Unknown, no LIDs, no PMA counters, no "
        "interface on its function",
        change=both(
            no_nics,
            MANAGER,
            nvswitch("0000:07:00.0"),
            *(
                both(
                    port(
                        f"rdmap{0x50 + n}s0",
                        f"0000:{0x50 + n:02x}:00.0",
                        layer="Unknown",
                        rate="100 Gb/sec (4X EDR)",
                        board="",
                        pci=("0x1d0f", "0xefa2"),
                        firmware="0.0.0.0",
                        counters=(),
                        numa=n // 4,
                    ),
                    lost(f"{IB}/rdmap{0x50 + n}s0/ports/1/pkeys"),
                )
                for n in range(8)
            ),
        ),
    ),
    HealthyNode(
        name="accelerated networking of Azure",
        source="hv_netvsc with a Mellanox VF: the VF's interface is enslaved to eth0 and has no "
        "address of its own (Linux Documentation/networking/device_drivers/ethernet/microsoft)",
        change=both(
            BOTH_MANAGERS,
            port(
                "mlx5_an0",
                "0000:32:02.0",
                "enP12s1",
                rate="40 Gb/sec (4X QDR)",
                board="MSF0010110035",
                pci=("0x15b3", "0x1016"),
                firmware="14.25.8362",
                counters=(),
            ),
            below("enP12s1", "eth0", slave=True),
            route("eth0"),
        ),
    ),
    HealthyNode(
        name="VM with NUMA -1 everywhere",
        source="QEMU without pxb-pcie, and most clouds: Linux says -1 where the firmware has no "
        "proximity (Documentation/ABI/testing/sysfs-bus-pci)",
        change=both(BOTH_MANAGERS, numa("-1")),
    ),
    HealthyNode(
        name="H100 NVL with bridges",
        source="NVIDIA H100 NVL product brief: pairs of cards share bridges; nvidia-smi nvlink -s "
        "shows the links that no bridge uses as inactive",
        change=both(
            no_lpf,
            gpus(
                "NVIDIA H100 NVL",
                8,
                UNFABRIC,
                *HOPPER_FIELDS,
                "nvmlDeviceGetRepairStatus * rc 3",
                "nvmlDeviceGetFieldValues/164 * value 26562",
                *(f"nvmlDeviceGetNvLinkState/{n} * value 0" for n in range(12, 18)),
                "nvmlDeviceGetP2PStatus * value 3",
                *(f"nvmlDeviceGetP2PStatus/{n + 1} {n} value 0" for n in (0, 2, 4, 6)),
            ),
        ),
    ),
    HealthyNode(
        name="four GPUs",
        source="HGX A100 4-GPU: no NVSwitch, four links between each two",
        change=both(
            no_lpf,
            gpus(
                "NVIDIA A100-SXM4-80GB",
                4,
                UNFABRIC,
                *HOPPER_FIELDS,
                "nvmlDeviceGetRepairStatus * rc 3",
                *(f"nvmlDeviceGetNvLinkState/{n} * rc 2" for n in range(12, 18)),
                "nvmlDeviceGetFieldValues/164 * value 25781",
                "nvmlDeviceGetMaxPcieLinkGeneration * value 4",
                "nvmlDeviceGetCurrPcieLinkGeneration * value 4",
            ),
        ),
    ),
    HealthyNode(
        name="GB200",
        source="NVIDIA GB200 NVL72: four GPUs, Grace CPUs (arm64), BlueField-3 for storage; "
        "switches are in trays of their own; Linux arch/arm64 cpuinfo",
        change=both(
            no_nics,
            gpus("NVIDIA GB200", 4),
            *(wrote(f"{PCI}/{GPU_BDFS[n]}/numa_node", "1") for n in (2, 3)),
            wrote("dev/nvidia-caps-imex-channels/channel0", ""),
            wrote("proc/devices", "Character devices:\n234 nvidia-caps-imex-channels"),
            wrote("proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd sve2"),
            wrote(
                "sys/devices/system/clocksource/clocksource0/current_clocksource",
                "arch_sys_counter",
            ),
            *(
                port(
                    f"mlx5_{n}",
                    f"000{n}:01:00.0",
                    f"ib{n}",
                    layer="InfiniBand",
                    numa=n // 2,
                )
                for n in range(4)
            ),
            *(
                port(
                    f"mlx5_{4 + n}",
                    f"0006:01:00.{n}",
                    f"enP6p1s0f{n}np{n}",
                    rate="200 Gb/sec (4X HDR)",
                    board="MT_0000001011",
                    pci=("0x15b3", "0xa2dc"),
                    firmware="32.42.1000",
                    address=f"10.9.{n}.17",
                )
                for n in range(2)
            ),
        ),
    ),
    HealthyNode(
        name="Intel VROC container",
        source="prometheus/procfs fixtures, proc/mdstat: an external container is always inactive",
        change=both(
            BOTH_MANAGERS,
            wrote(
                "proc/mdstat",
                "Personalities : [raid0] [raid1]\n"
                "md126 : active raid1 sdb[1] sdc[0]\n"
                "      3906886656 blocks super external:/md127/0 [2/2] [UU]\n      \n"
                "md127 : inactive sdb[1](S) sdc[0](S)\n      7932 blocks super external:imsm\n"
                "       \nunused devices: <none>",
            ),
        ),
    ),
    HealthyNode(
        name="software RAID of other kinds",
        source="Linux drivers/md/md.c md_seq_show: auto-read-only until the first write, a check "
        "or resync that goes on, a spare, bitmaps",
        change=both(
            BOTH_MANAGERS,
            wrote(
                "proc/mdstat",
                "Personalities : [raid1] [raid0] [raid10] [linear]\n"
                "md0 : active raid1 nvme0n1p2[0] nvme1n1p2[1]\n"
                "      524224 blocks super 1.2 [2/2] [UU]\n"
                "      [==>..................]  check = 12.6% (66304/524224) finish=0.1min\n"
                "      bitmap: 0/4 pages [0KB], 65536KB chunk\n\n"
                "md1 : active (auto-read-only) raid1 nvme0n1p3[0] nvme1n1p3[1]\n"
                "      8379392 blocks super 1.2 [2/2] [UU]\n      \n"
                "md2 : active raid10 sdd[3] sdc[2] sdb[1] sda[0] sde[4](S)\n"
                "      976508928 blocks 64K chunks 2 near-copies [4/4] [UUUU]\n      \n"
                "unused devices: <none>",
            ),
        ),
    ),
    HealthyNode(
        name="MIG",
        source="NVIDIA MIG User Guide: whole GPUs cut alike; processes are the instances' own",
        change=both(
            BOTH_MANAGERS,
            says(
                "nvmlDeviceGetMigMode * value 1 1",
                "nvmlDeviceGetComputeRunningProcesses_v3 * rc 3",
                "nvmlDeviceGetP2PStatus * rc 3",
            ),
        ),
    ),
    HealthyNode(
        name="Ubuntu, rootless, dmesg_restrict",
        source="Ubuntu's default kernel.dmesg_restrict=1 (kernel/printk/printk.c, "
        "check_syslog_permissions): EPERM without CAP_SYSLOG; vpd is 0600",
        change=both(BOTH_MANAGERS, rootless),
    ),
    HealthyNode(
        name="slurmstepd infinity",
        source="Slurm's cgroup/v2 plugin: slurmd starts `slurmstepd infinity`, always",
        change=both(BOTH_MANAGERS, slurmstepd(901, "/usr/sbin/slurmstepd", "infinity")),
    ),
    HealthyNode(
        name="a fresh boot while Fabric Manager starts",
        source="NVML API (nvmlGpuFabricState_t): in progress until Fabric Manager has configured "
        "it; links come up while drivers load",
        change=STARTING,
    ),
    HealthyNode(
        name="64 GiB of shared memory on 2 TiB",
        source="a container or site that limits /dev/shm by size",
        change=both(
            BOTH_MANAGERS,
            lambda t: t.change("proc/self/mountinfo", "size=1056730624k", "size=67108864k"),
        ),
    ),
    HealthyNode(
        name="a full /boot and a full scratch disk",
        source="kernels in a /boot of 1 GiB; a dataset cache that fills its disk by design",
        change=both(
            BOTH_MANAGERS,
            mount(40, "252:15", "/boot", "ext4", "/dev/vda15"),
            mount(41, "252:16", "/boot/efi", "vfat", "/dev/vda16"),
            mount(42, "259:1", "/scratch", "xfs", "/dev/nvme0n1"),
            mount(43, "259:2", "/mnt/data", "xfs", "/dev/nvme1n1"),
        ),
        options={"fs.local": {"warn_percent": 0, "fail_percent": 0, "needed": []}},
    ),
    HealthyNode(
        name="file systems that nobody could ever write to",
        source="snaps and images; an overlay without an upper layer; mount(8) leaves `rw` on them",
        change=both(
            BOTH_MANAGERS,
            mount(40, "0:60", "/opt/usr", "overlay", "overlay", "ro,lowerdir=/srv/usr:/usr"),
            mount(41, "7:1", "/opt/cuda", "squashfs", "/dev/loop1", "ro,errors=continue"),
            mount(42, "7:2", "/mnt/cd", "iso9660", "/dev/loop2", "ro"),
            mount(43, "7:3", "/opt/env", "erofs", "/dev/loop3", "ro"),
        ),
    ),
    HealthyNode(
        name="idle PCIe generation 1",
        source="NVML: an idle GPU rests at a lower generation (nvidia-smi -q, Link Gen Current)",
        change=both(
            BOTH_MANAGERS,
            says("nvmlDeviceGetCurrPcieLinkGeneration * value 1"),
        ),
    ),
    HealthyNode(
        name="before the first CUDA process",
        source="NVIDIA driver README, Device Nodes: nvidia-modprobe loads nvidia_uvm and makes its "
        "files when CUDA first needs them",
        change=both(
            BOTH_MANAGERS,
            lost("dev/nvidia-uvm"),
            lost("dev/nvidia-uvm-tools"),
            lost("sys/module/nvidia_uvm"),
            lambda t: t.change(
                "proc/modules", "nvidia_uvm 100000 0 - Live 0x0000000000000000\n", ""
            ),
            wrote("usr/bin/nvidia-modprobe", ""),
        ),
    ),
    HealthyNode(
        name="saturated counters of 4 bits",
        source="leptonai/gpud's H100 tree: excessive_buffer_overrun_errors 15 on all ports (IBTA, "
        "PortCounters: 4 bits that stick)",
        change=both(
            BOTH_MANAGERS,
            full(
                *tree_nics.FABRIC,
                value={
                    "excessive_buffer_overrun_errors": "15",
                    "local_link_integrity_errors": "15",
                },
            ),
        ),
    ),
    HealthyNode(
        name="counters without a PMA",
        source="prometheus/procfs fixtures: `N/A (no PMA)` (Linux drivers/infiniband/core/sysfs.c)",
        change=both(
            BOTH_MANAGERS,
            full(
                *tree_nics.FABRIC,
                value=dict.fromkeys(tree_nics.COUNTERS, "N/A (no PMA)"),
            ),
        ),
    ),
    HealthyNode(
        name="mounts of Kubernetes",
        source="kubelet and containerd: a tmpfs for each secret, 64 MiB of shm for each sandbox, "
        "an overlay for each container",
        change=both(
            BOTH_MANAGERS,
            *(
                mount(
                    100 + 3 * n,
                    f"0:{200 + 3 * n}",
                    f"/var/lib/kubelet/pods/0f3a{n}/volumes/kubernetes.io~projected/token",
                    "tmpfs",
                    "tmpfs",
                    "rw,size=1056730624k",
                )
                for n in range(20)
            ),
            *(
                mount(
                    101 + 3 * n,
                    f"0:{201 + 3 * n}",
                    f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0f3a{n}/shm",
                    "tmpfs",
                    "shm",
                    "rw,size=65536k",
                )
                for n in range(20)
            ),
            *(
                mount(
                    102 + 3 * n,
                    f"0:{202 + 3 * n}",
                    f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/0f3a{n}/rootfs",
                    "overlay",
                    "overlay",
                )
                for n in range(20)
            ),
        ),
        options={"fs.local": {"warn_percent": 0, "fail_percent": 0, "needed": []}},
    ),
    HealthyNode(
        name="a laptop with two cores",
        source="a trial at home: no GPU, no RDMA, 8 GiB, a governor that saves power",
        change=both(
            no_nics,
            no_gpus,
            cpus(2),
            lambda t: t.change("proc/meminfo", str(TOTAL_KB), "8000000"),
            lambda t: t.change("sys/devices/system/node/node0/meminfo", str(TOTAL_KB), "8000000"),
            lambda t: t.change("proc/self/mountinfo", "size=1056730624k", "size=4000000k"),
            wrote("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave"),
            wrote("proc/self/status", "Cpus_allowed_list:\t0-1\nMems_allowed_list:\t0"),
            wrote("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 node-017"),
        ),
    ),
    HealthyNode(
        name="a soft mount that was slow once",
        source="Linux net/sunrpc/clnt.c: a soft mount logs `not responding, timed out`, never OK",
        change=both(
            BOTH_MANAGERS,
            logged("nfs: server 10.0.0.5 not responding, timed out", ago_s=200_000),
        ),
    ),
    HealthyNode(
        name="a hard mount whose OK was lost",
        source="the ring lost the line that said OK; calls end all the same",
        change=both(
            BOTH_MANAGERS,
            logged("nfs: server 10.0.0.5 not responding, still trying", ago_s=200_000),
        ),
    ),
    HealthyNode(
        name="other shared file systems",
        source="mountinfo of Lustre, WEKA, GPFS, BeeGFS and CephFS clients",
        change=both(
            BOTH_MANAGERS,
            mount(50, "0:60", "/lustre", "lustre", "10.0.0.9@o2ib:/fs1", "rw,flock"),
            mount(51, "0:61", "/weka", "wekafs", "backend/fs", "rw"),
            mount(52, "0:62", "/gpfs", "gpfs", "fs1", "rw"),
            mount(53, "0:63", "/beegfs", "beegfs", "beegfs_nodev", "rw"),
            mount(54, "0:64", "/ceph", "ceph", "10.0.0.8:6789:/", "rw,name=client"),
        ),
    ),
    HealthyNode(
        name="EPYC with NPS4",
        source="AMD EPYC tuning guides: four NUMA nodes a socket, two of them without a device",
        change=both(
            BOTH_MANAGERS,
            wrote("sys/devices/system/node/online", "0-7"),
            lambda t: t.change("proc/self/status", "\t0-1", "\t0-7"),
            lambda t: [
                (
                    t.write(f"sys/devices/system/node/node{n}/cpulist", f"{15 * n}-{15 * n + 14}"),
                    t.write(
                        f"sys/devices/system/node/node{n}/meminfo",
                        f"Node {n} MemTotal:       {TOTAL_KB // 8} kB",
                    ),
                )
                for n in range(8)
            ],
            lambda t: [
                t.write(
                    f"sys/devices/system/cpu/cpu{c}/topology/thread_siblings_list",
                    str(c),
                )
                for c in range(CPUS)
            ],
        ),
    ),
    HealthyNode(
        name="a log full of what means nothing",
        source="Linux 5.15 to 6.12, mlx5, nvme, mce, EDAC, APEI: what healthy machines write",
        change=both(
            BOTH_MANAGERS,
            logged(
                "mlx5_core 0000:18:00.0: Port module event: module 0, Cable plugged",
                "mlx5_core 0000:18:00.0: Rate limit: 127 rates are supported, range: 0Mbps to 9",
                "mlx5_core 0000:18:00.0: E-Switch: Total vports 2, per vport: max uc(128)",
                "nvme nvme0: 120/0/0 default/read/poll queues",
                "nvme nvme0: missing or invalid SUBNQN field.",
                "nvme nvme0: Shutdown timeout set to 10 seconds",
                "EDAC MC0: Giving out device to module i10nm_edac controller Intel_10nm Socket#0",
                "EDAC i10nm: v0.0.6",
                "mce: CPU0: Thermal monitoring enabled (TM1)",
                "mce: [Hardware Error]: TSC 0 ADDR 1 MISC 2",
                "{1}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 4",
                "{1}[Hardware Error]: It has been corrected by h/w and requires no further action",
                "{1}[Hardware Error]: event severity: corrected",
                "{1}[Hardware Error]:  Error 0, type: corrected",
                "RAS: Correctable Errors collector initialized.",
                "ERST: Error Record Serialization Table (ERST) support is initialized.",
                "GHES: APEI firmware first mode is enabled by APEI bit and WHEA _OSC.",
                "pcieport 0000:17:01.0: AER: enabled with IRQ 29",
                "NVRM: GPU at PCI:0000:1b:00: GPU-0b200000-0000-0000-0000-000000000000",
                "nvidia-nvlink: Nvlink Core is being initialized, major device number 510",
                "nvidia-nvswitch0: open (major=509)",
                "NFS: Registering the id_resolver key type",
                "Memory failure: Injecting memory failure for pfn 0x1234 at process virtual",
                "perf: interrupt took too long (2501 > 2500), lowering rate to 79750",
                "clocksource: Switched to clocksource tsc",
                "systemd-journald[512]: Received client request to flush runtime journal.",
            ),
        ),
    ),
    HealthyNode(
        name="soft-offlined pages",
        source="Linux mm/memory-failure.c soft_offline_page and the corrected-errors collector "
        "(drivers/ras/cec.c): pages are moved, HardwareCorrupted counts them, nothing was lost",
        change=both(
            BOTH_MANAGERS,
            lambda t: t.write(
                "proc/meminfo",
                "\n".join(
                    "HardwareCorrupted:       8 kB" if row.startswith("HardwareC") else row
                    for row in t.read("proc/meminfo").splitlines()
                ),
            ),
            logged("soft offline: 0x1c0f2a3: migrated 1 pages", level=6),
        ),
        worth={"mem.poison": "8 kB"},
    ),
    HealthyNode(
        name="eight MI300X",
        source="AMD Instinct MI300X platform; Linux, drivers/gpu/drm/amd and amdkfd",
        change=both(no_lpf, mi300x),
    ),
    HealthyNode(
        name="consoles, integrated graphics and an NPU",
        source="PCI ID Repository: ASPEED of a BMC, graphics and NPU of Core Ultra, Hyper-V's "
        "Basic Render Driver, Kunpeng's ZIP engine",
        change=both(
            BOTH_MANAGERS,
            *(
                wrote(path, text)
                for n, (vendor, device, kind) in enumerate(
                    (
                        ("0x1a03", "0x2000", "0x030000"),
                        ("0x8086", "0x7d55", "0x030000"),
                        ("0x8086", "0x7d1d", "0x120000"),
                        ("0x1414", "0x008e", "0x030200"),
                        ("0x19e5", "0xa250", "0x120000"),
                    )
                )
                for path, text in tree_nics.pci(f"0001:0{n}:00.0", vendor, device, kind, 0).items()
            ),
        ),
    ),
    HealthyNode(
        name="no NFS, no Slurm, no RDMA",
        source="a single workstation with GPUs",
        change=both(
            no_nics,
            gpus("NVIDIA RTX A6000", 2, UNFABRIC, *HOPPER_FIELDS),
            says(
                "nvmlDeviceGetNvLinkState * rc 3",
                "nvmlDeviceGetP2PStatus * rc 3",
                "nvmlDeviceGetRepairStatus * rc 3",
                "nvmlDeviceGetEccMode * rc 3",
                "nvmlDeviceGetFieldValues/164 * rc 3",
            ),
            lost("proc/812"),
            lambda t: t.write(
                "proc/self/mountinfo",
                "\n".join(r for r in t.read("proc/self/mountinfo").splitlines() if "nfs4" not in r),
            ),
            wrote("etc/fstab", "/dev/vda1 / ext4 defaults 0 1"),
        ),
    ),
]
