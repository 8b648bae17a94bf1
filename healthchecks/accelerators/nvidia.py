"""NVIDIA: its checks (gpu.*, ecc.*, …) ask NVML themselves; this is for who asks every maker."""

from __future__ import annotations

from healthchecks.accelerators.port import ComputeProcess
from healthchecks.frame.check import Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources.nvml import NvmlCallError, open_nvml


class Nvidia:
    name = "NVIDIA"
    loaded = "proc/driver/nvidia/version"

    def processes(self, ctx: Ctx) -> list[ComputeProcess]:
        nvml = open_nvml(ctx)
        try:
            return [
                ComputeProcess(index=gpu.index, pid=one.pid, held=one.usedGpuMemory or 0)
                for gpu in nvml.gpus
                for one in nvml.maybe(gpu, "nvmlDeviceGetComputeRunningProcesses") or ()
            ]
        except NvmlCallError as error:
            raise Unknown(str(error)) from error
