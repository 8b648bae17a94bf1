"""AMD Instinct, as the kernel's driver amdgpu shows it in /sys; no tool and no library is asked.

Files: Linux, Documentation/gpu/amdgpu (driver-misc, ras, thermal, xgmi) and drivers/gpu/drm/amd
(amdgpu_ras.c, amdgpu_pm.c, amdgpu_xgmi.c, amdkfd/kfd_topology.c, kfd_process.c) of 5.15 to 6.18.
`xgmi_error` is not read: reading it clears it.
"""

from __future__ import annotations

import re

from healthchecks.accelerators import bus
from healthchecks.accelerators.amd_wordings import AMD_PATTERNS
from healthchecks.accelerators.port import (
    Accelerator,
    BusLink,
    ComputeProcess,
    ErrorCounts,
    NotTold,
    Sensor,
)
from healthchecks.frame.check import Skip, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources.pci import PCI

_MODELS = {  # PCI ID Repository (2026-08)
    "0x738c": "MI100",
    "0x738e": "MI100",
    "0x7408": "MI250X",
    "0x740c": "MI250X/MI250",
    "0x740f": "MI210",
    "0x74a0": "MI300A",
    "0x74a1": "MI300X",
    "0x74a2": "MI308X",
    "0x74a5": "MI325X",
    "0x74a9": "MI300X HF",
    "0x74b5": "MI300X VF",
    "0x74b9": "MI325X VF",
    "0x74bd": "MI300X HF",
    "0x75a0": "MI350X",
    "0x75a3": "MI355X",
    "0x75a8": "MI350P",
}
_KFD = "sys/class/kfd/kfd"
_COUNT = re.compile(r"^(ue|ce|de): (\d+)$", re.MULTILINE)  # `de` since Linux 6.9
_LINKS = "xgmi_wafl"  # the RAS block of the links between devices; the others are a device's own
_BUSY_PERCENT = 50
_NO_WIDTH = (0, 255)  # of a virtual function, or of no link at all


class Amd:
    name = "AMD"
    vendor = bus.AMD
    driver = "amdgpu"
    loaded = f"{_KFD}/proc"
    signs = AMD_PATTERNS

    def devices(self, ctx: Ctx) -> list[Accelerator]:
        there = [a for a in bus.on_bus(ctx) if a.vendor == self.vendor and a.maker]
        there = [a for a in there if a.driver not in bus.GIVEN]
        found = [
            Accelerator(
                index=index,
                bdf=one.bdf,
                model=f"AMD Instinct {_MODELS.get(one.device, one.pci_id)}",
                serial=ctx.maybe(f"{PCI}/{one.bdf}/unique_id") or "",
            )
            for index, one in enumerate(there)
            if one.driver == self.driver
        ]
        if there and not found:
            raise Unknown(f"none of {len(there)} AMD Instinct has its driver: see accel.on_bus")
        return found

    def versions(self, ctx: Ctx, one: Accelerator) -> dict[str, str]:
        texts = {
            "driver": ctx.maybe("sys/module/amdgpu/version") or "the kernel's own",
            "vbios": ctx.maybe(f"{PCI}/{one.bdf}/vbios_version") or "",
        }
        return {name: text for name, text in texts.items() if text}

    def memory_errors(self, ctx: Ctx, one: Accelerator) -> dict[str, ErrorCounts]:
        files = [n for n in ctx.names(f"{PCI}/{one.bdf}/ras") if n.endswith("_err_count")]
        blocks = [n.removesuffix("_err_count") for n in files]
        found = {block: _counts(ctx, one, block) for block in blocks if block != _LINKS}
        if not found:
            raise NotTold  # a virtual function, or RAS is off (amdgpu.ras_enable=0)
        return found

    def unretired(self, ctx: Ctx, one: Accelerator) -> int:
        text = ctx.maybe(f"{PCI}/{one.bdf}/ras/gpu_vram_bad_pages")
        if text is None:
            raise NotTold
        return sum(row.rstrip().endswith((": P", ": F")) for row in text.splitlines())

    def heat(self, ctx: Ctx, one: Accelerator) -> list[Sensor]:
        found = []
        for name in ctx.names(f"{PCI}/{one.bdf}/hwmon"):
            at = f"{PCI}/{one.bdf}/hwmon/{name}"
            for file in ctx.names(at):
                if not file.endswith("_crit") or not file.startswith("temp"):
                    continue
                sensor = file.removesuffix("_crit")
                slowdown = ctx.number(f"{at}/{file}")
                if slowdown > 0:
                    label = ctx.maybe(f"{at}/{sensor}_label") or sensor
                    now = ctx.number(f"{at}/{sensor}_input")
                    found.append(Sensor(name=label, now=now / 1000, slowdown=slowdown / 1000))
        if not found:
            raise NotTold
        return found

    def link(self, ctx: Ctx, one: Accelerator) -> BusLink:
        at = f"{PCI}/{one.bdf}"
        widths = [ctx.maybe(f"{at}/{name}_link_width") or "" for name in ("current", "max")]
        speeds = [ctx.maybe(f"{at}/{name}_link_speed") or "" for name in ("current", "max")]
        try:
            width, most_width = (int(text) for text in widths)
            speed, most_speed = (float(text.split()[0]) for text in speeds)
        except (ValueError, IndexError):
            raise NotTold from None  # "Unknown", or no link: a device of the processor's package
        if width in _NO_WIDTH or most_width in _NO_WIDTH:
            raise NotTold
        busy = ctx.maybe(f"{at}/gpu_busy_percent") or ""
        return BusLink(
            width=width,
            most_width=most_width,
            speed=speed,
            most_speed=most_speed,
            busy=busy.isdigit() and int(busy) >= _BUSY_PERCENT,
        )

    def peers(self, ctx: Ctx, one: Accelerator) -> int:
        at = f"{PCI}/{one.bdf}"
        if ctx.maybe(f"{at}/xgmi_device_id") is None:
            return 0
        nodes = [n for n in ctx.names(f"{at}/xgmi_hive_info") if n.startswith("node")]
        return max(0, len(nodes) - 1)  # it is one of them

    def peer_errors(self, ctx: Ctx, one: Accelerator) -> ErrorCounts:
        if f"{_LINKS}_err_count" not in ctx.names(f"{PCI}/{one.bdf}/ras"):
            raise NotTold
        return _counts(ctx, one, _LINKS)

    def processes(self, ctx: Ctx) -> list[ComputeProcess]:
        devices = self.devices(ctx)
        if not devices:
            raise Skip("no AMD Instinct is on the PCI bus")
        index = {one.bdf.rpartition(".")[0]: one.index for one in devices}
        by_id = {number: index[at] for number, at in _nodes(ctx).items() if at in index}
        found: dict[tuple[int, int], int] = {}
        for pid in ctx.names(f"{_KFD}/proc"):
            for file in ctx.names(f"{_KFD}/proc/{pid}"):
                number = file.removeprefix("vram_")
                if pid.isdigit() and file.startswith("vram_") and number in by_id:
                    text = ctx.maybe(f"{_KFD}/proc/{pid}/{file}") or "0"  # it may just have ended
                    held = int(text) if text.isdigit() else 0
                    place = (by_id[number], int(pid))
                    found[place] = found.get(place, 0) + held
        return [
            ComputeProcess(index=at, pid=pid, held=held)
            for (at, pid), held in sorted(found.items())
            if held
        ]

    def reset(self, one: Accelerator) -> str:
        return (
            f"end all processes on it and reset it: amd-smi reset -G -g {one.index} (of a hive all "
            "its devices are reset); else reboot the node"
        )


def _counts(ctx: Ctx, one: Accelerator, block: str) -> ErrorCounts:
    """Raises Unknown where the driver may not ask the device now, as in a reset."""
    text = ctx.text(f"{PCI}/{one.bdf}/ras/{block}_err_count")
    counts = {name: int(number) for name, number in _COUNT.findall(text)}
    if not {"ue", "ce"} <= counts.keys():
        raise Unknown(f"{block}_err_count says {text[:40]!r}")
    return ErrorCounts(
        uncorrectable=counts["ue"], corrected=counts["ce"], deferred=counts.get("de", 0)
    )


def _nodes(ctx: Ctx) -> dict[str, str]:
    """Ids of KFD → PCI addresses, without the function: a device that is cut into partitions has
    several, told apart there (Linux before 6.10: in the highest bits)."""
    found = {}
    for node in ctx.names(f"{_KFD}/topology/nodes"):
        at = f"{_KFD}/topology/nodes/{node}"
        number = ctx.maybe(f"{at}/gpu_id") or "0"
        rows = dict(
            row.rsplit(" ", 1)
            for row in (ctx.maybe(f"{at}/properties") or "").splitlines()
            if " " in row
        )
        place, domain = rows.get("location_id", ""), rows.get("domain", "0")
        if number != "0" and place.isdigit() and domain.isdigit():
            bits = int(place) & 0xFFFF
            found[number] = f"{int(domain):04x}:{bits >> 8:02x}:{bits >> 3 & 31:02x}"
    return found
