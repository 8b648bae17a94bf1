"""Functions on the PCI bus, by vendor and class, as /sys shows them.

Class codes: PCI Code and ID Assignment Specification; the file shows them as 0x030200.
"""

from __future__ import annotations

from healthchecks.frame.context import Ctx

PCI = "sys/bus/pci/devices"
NVIDIA, MELLANOX = "0x10de", "0x15b3"
ETHERNET = "0x0200"
NETWORK = (ETHERNET, "0x0207")  # and InfiniBand
DISPLAY = ("0x0300", "0x0302")  # VGA, 3D controller
BRIDGES = ("0x0604",)  # PCI to PCI
OTHER_BRIDGES = ("0x0680",)  # an NVSwitch is one


def nvswitches(ctx: Ctx) -> list[str]:
    """PCI addresses of NVSwitches (HGX H100 and before). Raises OSError."""
    return functions(ctx, OTHER_BRIDGES, NVIDIA)


def functions(ctx: Ctx, classes: tuple[str, ...], vendor: str = "") -> list[str]:
    """PCI addresses, sorted, of functions of these classes; of any vendor where none is given.

    Raises OSError where the bus can't be read.
    """
    found = []
    for bdf in ctx.names(PCI):
        if vendor and ctx.text(f"{PCI}/{bdf}/vendor") != vendor:
            continue
        if ctx.text(f"{PCI}/{bdf}/class").startswith(classes):
            found.append(bdf)
    return found
