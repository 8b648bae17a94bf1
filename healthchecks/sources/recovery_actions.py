"""What the NVIDIA driver asks for after an error: NVML's field 230, and Xid 154 in the kernel log.

Numbers and what to do: NVIDIA GPU Memory Error Management, "Error Recovery and Response Flags", and
the Xid catalog (154).
"""

from __future__ import annotations

RESET = "end all processes on the GPU and reset it: nvidia-smi --gpu-reset -i {}"
RMA = "take the node out and replace the GPU (RMA)"

NONE = 0
IMEX = 5  # of a domain of nodes, and not fatal for the GPU (NVIDIA's k8s-dra-driver-gpu)
CURED_BY_DRIVER_START = (1, 4)  # a reset, which the driver's start is too

_ACTIONS = {  # what is asked for, and how it is done; {gpu} is the GPU's index
    1: (
        "a reset of the GPU",
        "drain the node, end all processes on the GPU, then reset the GPU: nvidia-smi --gpu-reset "
        "-i {gpu}",
    ),
    2: ("a reboot of the node", "drain the node and reboot it"),
    3: (
        "its peers to let go of it (drain P2P)",
        "no new work for this GPU's peers: end the job on all GPUs of the node, then follow the "
        "next action",
    ),
    4: (
        "its peers to let go of it, and a reset",
        "drain the node, end the job on all its GPUs, then reset the GPU: nvidia-smi --gpu-reset "
        "-i {gpu}",
    ),
    IMEX: (
        "its IMEX domain to be recovered",
        "restart nvidia-imex on all nodes of the domain",
    ),
    6: (
        "a reset of its PCIe bus",
        "drain the node; page the host to reset the GPU's PCIe slot, or to power-cycle",
    ),
    7: (
        "a reboot of the system",
        "drain the node; page the host: a guest's reboot is not enough",
    ),
}


def asked_for(action: int) -> str:
    """In words, after "the driver asks for"."""
    return _ACTIONS[action][0] if action in _ACTIONS else f"something new (action {action})"


def fix(action: int, gpu: int | str = "N") -> str:
    """What to do; empty where nothing is asked for."""
    if action == NONE:
        return ""
    if action not in _ACTIONS:
        return f"see nvidia-smi -q, Recovery Action; ask NVIDIA what action {action:#x} means"
    return _ACTIONS[action][1].format(gpu=gpu)
