"""What an operator sees, and which checks look there: the second index of docs/checks.md.

A word is a check's whole name, or else the first word of several (`ecc` means all of `ecc.…`):
whatever is new in such a family is found by itself. Rows go from what stops a run to what only
slows it down.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

SYMPTOMS = {
    "A GPU is gone: fewer in `nvidia-smi`, `Unknown Error`, `GPU is lost`, an Xid": (
        *("gpu.count", "gpu.handle", "xid", "gpu.recovery_action", "inforom"),
    ),
    "An AMD Instinct, or an accelerator of another maker, is gone, slow or in trouble": ("accel",),
    "`nvidia-smi` or a CUDA call hangs": ("gpu.driver_hang", "dstate", "xid", "kernel"),
    "`CUDA error: uncorrectable ECC error`, remapped rows": (
        *("ecc", "sram", "remap", "repair", "pages", "deep.memory"),
    ),
    "Loss becomes NaN, or replicas disagree": ("deep.gemm", "deep.memory", "ecc", "mem.poison"),
    "CUDA out of memory on a node that ought to be empty": ("gpu.leftover", "mig"),
    "CUDA does not start: `system not yet initialized`, error 802": (
        *("fabric", "nvlink.links", "versions", "gpu.recovery_action"),
    ),
    "A library is missing, or not of the version that the driver wants": ("cuda.libs", "versions"),
    "`df`, `ls` or saving hangs; processes in state D": (
        *("nfs.alive", "nfs.gate", "storage.kmsg", "dstate"),
    ),
    "`Stale file handle`, `Permission denied`, an empty mount point": (
        *("nfs.mounted", "nfs.alive", "nfs.options"),
    ),
    "`No space left on device`, `Read-only file system`, I/O errors": (
        *("fs", "nvme", "nvme.smart", "md", "disk"),
    ),
    "NCCL times out, or the watchdog ends ranks": (
        *("ib.port", "ib.flap", "ib.counters", "nvlink", "fabric", "xid", "nic.kmsg"),
    ),
    "NCCL says `unhandled system error`, or can't register memory": (
        *("nccl.limits", "nccl.shm", "nccl.devices", "nccl.imex", "slurm.memlock", "gdr"),
    ),
    "Ranks don't find each other; `Connection refused`, no route": (
        *("nccl.interfaces", "nccl.conf", "host.name", "ib.sm", "ib.pkey", "roce.gid"),
    ),
    "Small messages pass, large ones hang": ("path.mtu", "ib.mtu", "ib.path_mtu", "roce.mtu"),
    "An InfiniBand link goes up and down, or is slower than its neighbours": (
        *("ib.port", "ib.flap", "ib.cable", "ib.counters", "ib.missing", "nic"),
    ),
    "A node rebooted by itself, or `dmesg` is full": (
        *("kernel", "kmsg", "ipmi", "mem.poison", "thermal", "pcie.errors", "pcie.kmsg"),
    ),
    "The OOM killer ends ranks or data loaders": ("kernel", "mem", "nccl.shm"),
    "Slurm drains a node, or its jobs don't start there": ("services", "slurm", "host.name"),
    "Log lines are out of order; munge or TLS reject a node": ("clock",),
    "One node holds up every step": (
        *("clock.events", "clock.max", "thermal", "power", "cpu", "governor", "numa", "p2p"),
        *("pcie.link", "persistence", "deep.gemm", "deep.bandwidth"),
    ),
    "All-reduce is slow on all nodes": (
        *("nccl.conf", "pci.acs", "gdr", "roce.qos", "roce.counters", "roce.discards", "p2p"),
    ),
    "Saving or loading checkpoints is slow": (
        *("storage", "nfs.passive", "nfs.options", "path.mtu", "roce.qos", "nvme"),
    ),
    "Trouble began after a reboot, repair or upgrade": (
        *("versions", "host.boot", "slurm.drift", "nic.fw", "ib.missing", "cpu.layout"),
        *("mem.size", "gpu.driver_uptime", "ecc.mode", "pcie.link"),
    ),
    "A new or repaired node is to be accepted": ("deep", "dcgm", "storage", "nvme.smart"),
}


def meant(words: Iterable[str], names: Collection[str]) -> list[str]:
    """The checks that words of the table mean."""
    found = []
    for word in words:
        family = [name for name in names if name.partition(".")[0] == word]
        found += [word] if word in names else family
    return list(dict.fromkeys(found))
