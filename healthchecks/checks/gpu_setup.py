"""GPUs as a job finds them: set up for it, free, and of one version with the driver."""

from __future__ import annotations

import pwd
import time
from typing import Annotated

from healthchecks.frame.check import Blame, Findings, Result, Status, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources.nvml import (
    CORRUPTED_INFOROM,
    VERSION_MISMATCH,
    Gpu,
    NvmlCallError,
    NvmlUnavailable,
    Unsupported,
    as_text,
    nvml_check,
    open_nvml,
)
from supervisor.core.setting import About

MEMORY_V2 = 0x2000028  # nvmlMemory_v2: what is in use, without what the driver reserves


@nvml_check("persistence", tags={"preflight", "running"})
def persistence(ctx: Ctx) -> Result:
    """Persistence mode is on, so that GPUs need not be started up by every process.

    As in leptonai/gpud and Azure/azurehpc-health-checks.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        if not nvml.ask(gpu, "nvmlDeviceGetPersistenceMode"):
            found.warn(
                "persistence mode is off",
                expected="on",
                fix="systemctl enable --now nvidia-persistenced (or nvidia-smi -pm 1)",
                device=gpu.label,
            )

    return nvml.for_each_gpu(found, judge, fine="persistence mode is on", what="persistence mode")


@nvml_check("gpu.leftover", tags={"preflight"}, blame=Blame.USER, drains=False)
def gpu_leftover(
    ctx: Ctx,
    *,
    tries: Annotated[int, About(doc="Looks before it is said.", ge=1)] = 3,
    every_s: Annotated[float, About(doc="Between two looks.", unit="s", ge=0)] = 1.0,
    memory_mib: Annotated[
        int, About(doc="Memory in use beyond the least since boot.", unit="MiB", ge=1)
    ] = 512,
) -> Result:
    """No process of an earlier job computes on a GPU or holds its memory.

    Three looks, as in facebookresearch/gcm, because a process may be just ending. Memory is
    compared with the least that was seen since boot; 512 MiB are superv's proposal.
    """
    nvml, found = open_nvml(ctx), Findings()

    for _ in range(tries - 1):  # of all GPUs, not of each: the waits must not add up
        try:
            if not any(nvml.in_use(gpu) for gpu in nvml.gpus):
                break
        except NvmlCallError:
            break  # the look below meets it again, and says so
        ctx.announce("")
        time.sleep(every_s)

    def judge(gpu: Gpu) -> None:
        processes = nvml.ask(gpu, "nvmlDeviceGetComputeRunningProcesses")
        for pid in (p.pid for p in processes):
            found.fail(
                f"process {pid} computes on it ({_who(ctx, pid)})",
                expected="no process",
                fix=f"end it, if no job of this node owns it: kill {pid}",
                device=gpu.label,
            )
        memory = nvml.maybe(gpu, "nvmlDeviceGetMemoryInfo", MEMORY_V2)
        if not processes and memory is not None:
            _held(ctx, found, gpu, int(memory.used), memory_mib)

    return nvml.for_each_gpu(found, judge, fine="no process computes", what="the list of processes")


def _held(ctx: Ctx, found: Findings, gpu: Gpu, used: int, most_mib: int) -> None:
    """Memory that no process owns, against the least of this boot (bytes)."""
    found.metric(f"{gpu.label}.memory_used", used, "B")
    least = min(used, ctx.memory.get(gpu.key) or used)
    ctx.memory.put(gpu.key, least)
    if used - least >= most_mib * 2**20:
        found.fail(
            f"{(used - least) / 2**20:.0f} MiB more than after boot are in use, by no process "
            "that can be seen from here",
            expected=f"less than {most_mib} MiB",
            fix="look for processes in containers: fuser -v /dev/nvidia*; else reset the GPU",
            device=gpu.label,
        )


def _who(ctx: Ctx, pid: int) -> str:
    """Command and user of a process, as far as /proc tells."""
    try:
        name = ctx.text(f"proc/{pid}/comm")
        uid = ctx.path(f"proc/{pid}").stat().st_uid
    except OSError:
        return "not seen in /proc: in another PID namespace, or just ended"
    try:
        return f"{name} of {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"{name} of uid {uid}"


@nvml_check("mig", tags={"preflight"}, cohort=Status.FAIL)
def mig(ctx: Ctx) -> Result:
    """The GPUs are all whole, or all cut into MIG instances, and so they are on the other nodes.

    A GPU that will be cut after its next reset, or is while others are whole, is none for a job
    over whole GPUs.
    """
    nvml, found = open_nvml(ctx), Findings()
    modes: dict[str, tuple[int, int]] = {}

    def judge(gpu: Gpu) -> None:
        current, pending = nvml.ask(gpu, "nvmlDeviceGetMigMode")
        modes[gpu.label] = (current, pending)

    result = nvml.for_each_gpu(found, judge, fine="", what="MIG")
    if {*modes.values()} == {(1, 1)} and len(modes) == nvml.count:
        found.fact("mode", "on")
        return found.result("MIG is on, on all GPUs")
    for label, (current, pending) in modes.items():
        if current or pending:
            found.fail(
                f"MIG mode is {'on' if current else 'off, and on after a reset'}",
                expected="off",
                fix=f"nvidia-smi -i {label.removeprefix('gpu')} -mig 0, then reset the GPU",
                device=label,
            )
    if len(modes) == nvml.count:
        found.fact("mode", "on" if any(now for now, _ in modes.values()) else "off")
    return found.result(f"{result.seen}MIG is off")


@nvml_check("inforom", tags={"preflight"})
def inforom(ctx: Ctx) -> Result:
    """Every GPU's InfoROM, which keeps its ECC and remapping history, is intact.

    DCGM treats a corrupt InfoROM as a failure.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        try:
            nvml.ask(gpu, "nvmlDeviceValidateInforom")
        except NvmlCallError as error:
            if error.code != CORRUPTED_INFOROM:
                raise
            found.fail(
                f"its InfoROM is corrupt ({gpu.location})",
                expected="a valid checksum",
                fix="power-cycle the node; if it stays, replace the GPU (RMA)",
                device=gpu.label,
            )

    return nvml.for_each_gpu(
        found, judge, fine="the InfoROM is valid", what="the InfoROM's checksum"
    )


@nvml_check("versions", tags={"preflight"}, cohort=Status.WARN)
def versions(ctx: Ctx) -> Result:
    """Kernel module, NVML library and firmware fit together, and are those of the other nodes.

    Error 18 (LIB_RM_VERSION_MISMATCH) is a failure: no CUDA program starts.
    """
    found = Findings()
    module = ctx.maybe("sys/module/nvidia/version")
    try:
        nvml = open_nvml(ctx)
    except NvmlUnavailable as error:
        if error.code != VERSION_MISMATCH:
            raise
        found.fail(
            f"the loaded driver is {module}, the library is another: {error}",
            expected="one version",
            fix=error.fix,
        )
        return found.result("")
    try:
        library = as_text(nvml.system("nvmlSystemGetDriverVersion"))
        cuda = int(nvml.system("nvmlSystemGetCudaDriverVersion_v2"))
    except (NvmlCallError, Unsupported) as error:
        raise Unknown(str(error)) from error
    found.fact("driver", library)
    found.fact("cuda", f"{cuda // 1000}.{cuda % 1000 // 10}")
    if module is not None and module != library:
        found.fail(
            f"the kernel has driver {module}, NVML speaks of {library}",
            expected="one version",
            fix="reboot the node: its driver was updated while it was loaded",
        )
    firmware: dict[str, dict[str, list[str]]] = {"vbios": {}, "gsp": {}}

    def judge(gpu: Gpu) -> None:
        for what, call in (("vbios", "VbiosVersion"), ("gsp", "GspFirmwareVersion")):
            text = nvml.maybe(gpu, f"nvmlDeviceGet{call}")
            if text is not None:
                firmware[what].setdefault(as_text(text), []).append(gpu.label)
        found.fact("gpu", nvml.names())

    result = nvml.for_each_gpu(found, judge, fine="", what="its firmware's version")
    for what, by_version in firmware.items():
        if by_version:
            found.fact(what, ", ".join(sorted(by_version)))
        if len(by_version) > 1:
            each = "; ".join(f"{v}: {', '.join(who)}" for v, who in sorted(by_version.items()))
            found.warn(
                f"the GPUs differ in {what}: {each}",
                expected="one version",
                fix="bring the firmware of all GPUs to one version",
            )
    if result.status is not Status.OK:
        return found.result("")
    return found.result(
        f"driver {library}, CUDA {cuda // 1000}.{cuda % 1000 // 10}, "
        f"VBIOS {', '.join(sorted(firmware['vbios'])) or 'not known'}"
    )
