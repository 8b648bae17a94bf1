"""Sick, in other words: accelerators of other makers than NVIDIA."""

from __future__ import annotations

from checks import both, lost
from sick_rows import FAIL, rows

from tests.hardware.tree_amd import BDFS, PCI, at, mi300x

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
]
