"""Health checks of direct paths between GPUs, NICs and other nodes' GPUs."""

from __future__ import annotations

import re
import struct
from typing import Annotated

from healthchecks.frame.check import Findings, NoRight, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import pci, topology
from supervisor.core.setting import About


@check(
    "gdr",
    tags={"preflight"},
    cohort=Status.WARN,
    untested="no GPU: built against NVIDIA's GPUDirect RDMA documentation",
)
def gdr(ctx: Ctx) -> Result:
    """NICs can reach GPU memory: by dma-buf with the open driver, or by nvidia_peermem.

    With neither NCCL copies through host memory, some ten times slower (NVIDIA/nccl#1676). dma-buf
    needs Linux 5.12 and the open kernel module. Sources: NVIDIA GPUDirect RDMA, "Kernel modules".
    """
    gpus, rdma = topology.hardware(ctx)
    if not gpus or not rdma:
        raise Skip("GPUs and RDMA devices are not both here")
    driver = ctx.text("proc/driver/nvidia/version")
    release = ctx.text("proc/sys/kernel/osrelease")
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None:
        raise Unknown(f"the kernel's release {release!r} has no numbers")
    loaded = {line.split()[0] for line in ctx.text("proc/modules").splitlines() if line}
    peermem = bool(loaded & {"nvidia_peermem", "nv_peer_mem"})
    dmabuf = "Open Kernel Module" in driver and tuple(map(int, numbers.groups())) >= (5, 12)
    ways = [name for name, there in (("dma-buf", dmabuf), ("nvidia_peermem", peermem)) if there]
    found = Findings()
    found.fact("ways", " and ".join(ways) or "none")
    if not ways:
        found.fail(
            f"neither dma-buf (closed driver or Linux {release}) nor nvidia_peermem",
            expected="one of them",
            fix="modprobe nvidia_peermem, and name it in /etc/modules-load.d; or the open driver",
        )
    return found.result(f"by {' and '.join(ways)}")


@check(
    "nccl.imex",
    tags={"preflight"},
    untested="no NVL72: built against NVIDIA's IMEX documentation",
)
def nccl_imex(
    ctx: Ctx,
    *,
    wanted: Annotated[bool, About(doc="The job uses multi-node NVLink.")] = False,
) -> Result:
    """IMEX channels are there where NVLink spans nodes (GB200, GB300).

    Without /dev/nvidia-caps-imex-channels/channel0 memory can't be shared with other nodes, and
    NCCL leaves multi-node NVLink aside. Source: NVIDIA IMEX Service for NVLink Networks.
    """
    gpus, _ = topology.hardware(ctx)
    models = [ctx.maybe(f"proc/driver/nvidia/gpus/{bdf}/information") or "" for bdf in gpus]
    if not gpus or not (wanted or any(re.search(r"\bGB\d00\b", m) for m in models)):
        raise Skip("NVLink does not span nodes here")
    channels = ctx.names("dev/nvidia-caps-imex-channels")
    devices = ctx.text("proc/devices")
    found = Findings()
    if not channels:
        known = "nvidia-caps-imex-channels" in devices
        found.fail(
            "no IMEX channel" + ("" if known else ", and the driver knows none"),
            expected="/dev/nvidia-caps-imex-channels/channel0",
            fix="options nvidia NVreg_CreateImexChannel0=1 in /etc/modprobe.d, or "
            "nvidia-modprobe -c 0 --imex; see systemctl status nvidia-imex",
        )
    return found.result(f"{len(channels)} IMEX channels")


_ACS = 0x0D  # extended capability
_ACS_ON = 0x01 | 0x04 | 0x08 | 0x20  # source validation, P2P redirects, egress control


@check("pci.acs", tags={"preflight"})
def pci_acs(ctx: Ctx) -> Result:
    """PCI bridges let GPUs and NICs talk directly: no ACS redirection, no translating IOMMU.

    On bare metal either makes peer-to-peer traffic slow, and with some chipsets wrong or hung
    (NVIDIA/nccl#606, #2079; NCCL User Guide, Troubleshooting, "PCI Access Control Services"). In a
    virtual machine it is the host's business. Only root can read a bridge's ACS register.
    """
    gpus, _ = topology.hardware(ctx)
    if not gpus:
        raise Skip("no NVIDIA GPU is on the PCI bus")
    if "hypervisor" in topology.first_cpu(ctx).get("flags", "").split():
        raise Skip("a virtual machine: ACS and IOMMU are its host's")
    found = Findings()
    bridges = pci.functions(ctx, pci.BRIDGES)
    on = []
    for bdf in bridges:
        control = acs_control(ctx.path(f"{pci.PCI}/{bdf}/config").read_bytes())
        if control & _ACS_ON:
            on.append(bdf)
    if on:
        found.warn(
            f"ACS is on at {len(on)} of {len(bridges)} bridges, as {on[0]}",
            expected="off between GPUs and NICs",
            fix=f"off in the BIOS, or at each boot: setpci -s {on[0]} ECAP_ACS+6.w=0000",
        )
    translating = _translated(ctx, gpus)
    if translating:
        found.warn(
            f"the IOMMU translates for {len(translating)} GPUs ({ctx.text('proc/cmdline')[:60]})",
            expected="iommu=pt, or off",
            fix="iommu=pt on the kernel's command line, then reboot",
        )
    return found.result(f"ACS is off at all of {len(bridges)} bridges")


def acs_control(config: bytes) -> int:
    """The ACS control register in a function's configuration space; 0 where it has none.

    Raises NoRight where only the first 64 bytes could be read. Source: PCI Express Base
    Specification, extended capability 0x000D.
    """
    if len(config) < 0x104:
        raise NoRight("PCI configuration space")
    at, seen = 0x100, 0
    while 0x100 <= at <= len(config) - 8 and seen < 64:
        (head,) = struct.unpack_from("<I", config, at)
        if head & 0xFFFF == _ACS:
            return int(struct.unpack_from("<H", config, at + 6)[0])
        at, seen = head >> 20, seen + 1
    return 0


def _translated(ctx: Ctx, gpus: list[str]) -> list[str]:
    """GPUs whose IOMMU group translates addresses."""
    found = []
    for bdf in gpus:
        kind = ctx.maybe(f"{pci.PCI}/{bdf}/iommu_group/type")
        if kind is not None and kind.startswith("DMA"):
            found.append(bdf)
    return found
