"""The NVLink fabric as NVML tells of it for each GPU: its state, and what its health mask says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from healthchecks.sources.nvml import Gpu, Nvml, NvmlCallError, Unsupported

COMPLETED = 3  # nvmlGpuFabricState_t
STATES = {0: "not supported", 1: "not started", 2: "in progress", 3: "completed"}
_SUMMARIES = {2: "unhealthy", 3: "limited capacity"}
# Health mask (nvmlGpuFabricInfo_v3): shift, width, what is wrong by value
_PASSING = {
    (2, 0x3): {1: "a route is being recovered"},
    (6, 0x3): {1: "recovering from an access timeout"},
}
_MASK = {
    (0, 0x3): {1: "degraded bandwidth"},
    (4, 0x3): {1: "a route is unhealthy"},
    (8, 0xF): {
        2: "wrong system GUID",
        3: "wrong chassis serial number",
        4: "no partition",
        5: "insufficient NVLinks",
        6: "incompatible GPU firmware",
        7: "invalid location",
        8: "invalid GPU state",
    },
}
FABRIC_FIX = (
    "look at the fabric manager and NVLSM (journalctl -u nvidia-fabricmanager) where this node "
    "runs them, else ask the host's; then reset all GPUs of the node, or reboot it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFabric:
    """How a GPU stands in its fabric."""

    state: int  # nvmlGpuFabricState_t
    status: int  # how its bring-up ended: an nvmlReturn_t
    wrong: tuple[str, ...]  # what the health mask and summary complain of
    passing: tuple[str, ...]  # what they say is being recovered

    @property
    def complete(self) -> bool:
        return self.state == COMPLETED and not (self.wrong or self.passing)


def fabric(nvml: Nvml, gpu: Gpu) -> GpuFabric:
    """Raises Unsupported, NvmlCallError."""
    import pynvml  # type: ignore[import-untyped]

    for name in ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfoV_t"):
        make = getattr(pynvml, name, None)
        if make is None:
            continue
        try:
            info = nvml.fill(gpu, "nvmlDeviceGetGpuFabricInfoV", make())
        except Unsupported:
            continue  # a driver older than this version of the struct
        wrong, passing = _complaints(_MASK, info), _complaints(_PASSING, info)
        summary = _SUMMARIES.get(getattr(info, "healthSummary", 0))
        if summary and (wrong or not passing):
            wrong.append(f"summary: {summary}")
        return GpuFabric(
            state=int(info.state),
            status=int(info.status),
            wrong=tuple(wrong),
            passing=tuple(passing),
        )
    raise Unsupported


def _complaints(mask: Mapping[tuple[int, int], Mapping[int, str]], info: Any) -> list[str]:
    found = (texts.get(info.healthMask >> at & width) for (at, width), texts in mask.items())
    return [text for text in found if text]


def in_fabric(nvml: Nvml, gpu: Gpu) -> bool:
    try:
        return fabric(nvml, gpu).state != 0
    except (NvmlCallError, Unsupported):
        return False
