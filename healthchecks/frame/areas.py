"""Which checks look at the same part of a node: columns of the heat map, pages of docs/checks."""

from __future__ import annotations

from supervisor.host.terminal import one_line

# area → first words of its checks, or whole names; a check of nobody has its own first word
AREAS = {
    "node": ("node", "host", "services", "slurm", "ipmi"),
    "gpu": ("gpu", "persistence", "mig", "inforom", "dcgm"),
    "gpu memory": ("ecc", "sram", "remap", "repair", "pages"),
    "xid": ("xid",),
    "accelerators": ("accel",),
    "heat": ("thermal", "power", "clock.events", "clock.max"),
    "nvlink": ("nvlink", "fabric", "p2p", "nccl.imex"),
    "pcie": ("pcie", "pci", "gdr"),
    "infiniband": ("ib",),
    "roce": ("roce",),
    "network": ("nic", "path"),
    "nfs": ("nfs", "storage"),
    "disk": ("fs", "nvme", "md", "disk"),
    "cpu": ("cpu", "numa", "governor"),
    "memory": ("mem",),
    "kernel": ("kernel", "kmsg", "dstate", "clock"),
    "nccl": ("nccl", "cuda"),
    "versions": ("versions",),
    "deep": ("deep",),
    "site": ("site",),
}
_AREA_OF = {first: area for area, firsts in AREAS.items() for first in firsts}


def area_of(check: str) -> str:
    first = check.partition(".")[0]
    return _AREA_OF.get(check) or _AREA_OF.get(first) or one_line(first, 20)


def page_of(check: str) -> str:
    """Where a check of ours is described, with the anchor that forges make of its heading."""
    if check.startswith("site."):
        return "docs/own-checks.md"
    return f"docs/checks/{file_name(area_of(check))}#{check.lower().replace('.', '')}"


def file_name(area: str) -> str:
    """The page of an area, in docs/checks."""
    return f"{area.replace(' ', '-')}.md"


def in_order(areas: set[str]) -> tuple[str, ...]:
    """The known ones first, in the order of the table."""
    return (*(a for a in AREAS if a in areas), *sorted(areas - AREAS.keys()))
