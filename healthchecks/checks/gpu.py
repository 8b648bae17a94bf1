"""GPUs: all there, all answering, and what the driver itself asks to be done about them.

The first check of the lane opens NVML, so that a driver that hangs is found by a check of that
name; the others share its session.
"""

from __future__ import annotations

import pwd
import time
from typing import Annotated

from healthchecks.check import Blame, Findings, Result, Skip, Status, Unknown, check
from healthchecks.context import Ctx
from healthchecks.nvml import (
    CORRUPTED_INFOROM,
    VERSION_MISMATCH,
    Gpu,
    Trouble,
    Unsupported,
    Unusable,
    as_text,
    nvml_check,
    on_bus,
)
from supervisor.core.setting import About

MEMORY_V2 = 0x2000028  # nvmlMemory_v2: what is in use, without what the driver reserves
RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_ACTIONS = {
    1: ("a reset of the GPU", "end all processes on the GPU; nvidia-smi --gpu-reset -i {index}"),
    2: ("a reboot of the node", "drain the node and reboot it"),
    3: (
        "its peers to let go of it (drain P2P)",
        "end the job on all GPUs of the node; a new one may start afterwards",
    ),
    4: (
        "its peers to let go of it, and a reset",
        "end the job on all GPUs of the node; nvidia-smi --gpu-reset -i {index}",
    ),
    5: ("its IMEX domain to be recovered", "restart nvidia-imex on all nodes of the domain"),
    6: ("a reset of its PCIe bus", "page the host: reset the GPU's PCIe slot, or power-cycle"),
    7: ("a reboot of the system", "page the host: a guest's reboot is not enough"),
}
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib")


@nvml_check("gpu.driver_hang", tags={"preflight", "prolog", "running"}, call_deadline_s=None)
def gpu_driver_hang(ctx: Ctx) -> Result:
    """The NVIDIA driver answers: NVML starts and gives the GPUs' names.

    20 s are superv's proposal (OCI's scripts give nvidia-smi 10 s, NVSentinel 45 s; without
    persistence mode NVML has to start up each GPU first). Where the call that hung can't be killed,
    no second one is sent after it.
    """
    nvml = ctx.nvml()
    answered = len(nvml.gpus)
    result = Findings()
    result.metric("gpus", nvml.count)
    return result.result(f"NVML answered for {answered} GPUs")


@nvml_check("gpu.count", tags={"preflight", "prolog", "running"}, cohort=Status.FAIL)
def gpu_count(
    ctx: Ctx,
    *,
    expected: Annotated[
        tuple[int, ...], About(doc="How many GPUs a node may have.", least=0, nonempty=True)
    ] = (8,),
) -> Result:
    """Every GPU that the node should have is on the PCI bus and known to NVML.

    The bus and NVML are counted apart (as in leptonai/gpud): fewer in NVML is the driver's doing,
    fewer on the bus the host's. What the node had before counts too, so that one that lost all its
    GPUs is not taken for one without.
    """
    found, bus = Findings(), on_bus(ctx)
    most = int(ctx.memory.get("most") or 0)
    ctx.memory.put("most", max(most, len(bus)), lasting=True)
    found.metric("on_bus", len(bus))
    if not bus and not most:
        _no_gpu(ctx)
    wanted = " or ".join(str(n) for n in expected)
    found.fact("gpus", len(bus))
    if len(bus) not in expected or len(bus) < most:
        had = f" ({most} were here before)" if len(bus) < most else ""
        found.fail(
            f"{len(bus)} GPUs are on the PCI bus{had}",
            expected=f"{wanted} GPUs",
            fix="reboot the node; in a virtual machine let the host attach its GPUs again; where "
            "the node was changed: superv accept; where all such nodes have another number: "
            "checks.gpu.count.expected in site.yaml",
        )
    try:
        nvml = ctx.nvml()
    except Unusable as error:
        if bus:
            found.fail(
                f"NVML gives none of the {len(bus)} GPUs that are on the PCI bus: {error}",
                expected=f"NVML knows all {len(bus)}",
                fix=error.fix,
            )
    except Skip:
        pass
    else:
        found.metric("in_nvml", nvml.count)
        if nvml.count != len(bus):
            known = {gpu.bdf for gpu in nvml.gpus}
            absent = ", ".join(bdf for bdf in bus if bdf not in known)
            found.fail(
                f"NVML knows {nvml.count} of the {len(bus)} GPUs on the PCI bus; not {absent}",
                expected=f"{len(bus)} in NVML",
                fix="the driver has given them up: look for NVRM lines and Xids in the kernel log, "
                "then reboot the node",
            )
    return found.result(f"{len(bus)} GPUs on the PCI bus and in NVML")


def _no_gpu(ctx: Ctx) -> None:
    """Say what a node without a GPU on its bus is. Raises Skip or Unknown."""
    if ctx.maybe("sys/module/nvidia/version") is not None:
        raise Unknown(
            "the nvidia driver is loaded, but no GPU is on the PCI bus: the host gave none, or "
            "they all fell off"
        )
    for folder in _LIBRARIES:
        if ctx.path(f"{folder}/libnvidia-ml.so.1").exists():
            raise Unknown(
                f"no GPU is on the PCI bus, but /{folder}/libnvidia-ml.so.1 is installed: a node "
                "without GPUs, or one that lost them all"
            )
    raise Skip("no NVIDIA GPU is on the PCI bus")


@nvml_check("gpu.handle", tags={"preflight", "prolog", "running"})
def gpu_handle(ctx: Ctx) -> Result:
    """Every GPU gives a handle and a temperature: none is lost, none says "Unknown Error".

    "Unable to determine the device handle" and error 999 are failures here; facebookresearch/gcm
    has 999 as a warning.
    """
    found = Findings()
    try:
        nvml = ctx.nvml()
    except Unusable as error:
        bus = on_bus(ctx)
        if not bus:
            raise
        found.fail(
            f"none of {len(bus)} GPUs gives a handle: {error}",
            expected=f"{len(bus)} handles",
            fix=error.fix,
        )
        return found.result("")
    serials = dict(ctx.memory.get("serials") or {})
    for gpu in nvml.gpus:
        if gpu.serial:
            serials[gpu.bdf] = gpu.serial
    ctx.memory.put("serials", serials, lasting=True)
    for lost in nvml.missing:
        _lost(found, lost.index, lost.bdf, serials.get(lost.bdf, ""), lost.trouble)
    for gpu in nvml.gpus:
        try:
            temperature = nvml.temperature(gpu)
            if temperature is not None:
                found.metric(f"{gpu.label}.temperature", temperature, "°C")
        except Trouble as error:
            nvml.report(found, gpu, error)
    return found.result(f"{len(nvml.gpus)} GPUs answer")


def _lost(found: Findings, index: int, bdf: str, serial: str, trouble: Trouble) -> None:
    place = ", ".join(p for p in (bdf, f"serial {serial}" if serial else "") if p)
    found.add(
        Status.FAIL if trouble.fails else Status.UNKNOWN,
        f"{trouble}" + (f" ({place})" if place else ""),
        expected="a handle of every GPU",
        fix=trouble.fix or "look for NVRM lines in the kernel log; reboot the node",
        device=f"gpu{index}",
    )


@nvml_check("gpu.recovery_action", tags={"preflight", "prolog", "running"})
def gpu_recovery_action(ctx: Ctx) -> Result:
    """No GPU asks for a reset, a reboot or a drain.

    NVML's field GET_GPU_RECOVERY_ACTION is the authority on what an Xid asks for (NVIDIA GPU Memory
    Error Management, "Error Recovery and Response Flags"); Xids explain it.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        values = nvml.fields(gpu, [RECOVERY_ACTION])
        if RECOVERY_ACTION not in values:
            raise Unsupported
        action = int(values[RECOVERY_ACTION])
        found.metric(f"{gpu.label}.recovery_action", action)
        if action:
            what, fix = _ACTIONS.get(
                action, (f"something new (action {action})", "see nvidia-smi -q, Recovery Action")
            )
            found.fail(
                f"the driver asks for {what} ({gpu.place})",
                expected="no recovery action",
                fix=fix.format(index=gpu.index),
                device=gpu.label,
            )

    return nvml.survey(
        found, look, fine="no recovery action", what="the recovery action (driver 570 or newer)"
    )


@check("gpu.driver_uptime", tags={"preflight", "running"})
def gpu_driver_uptime(
    ctx: Ctx,
    *,
    warn_days: Annotated[float, About(doc="Uptime to warn at.", unit="d", least=1)] = 60.0,
) -> Result:
    """The node was booted less than two months ago.

    nvidia-smi hangs after about 66 days 12 hours on B200 with the open drivers 570.133 and 580.105
    (NVIDIA/open-gpu-kernel-modules#971). 60 days are superv's proposal.
    """
    driver = ctx.maybe("sys/module/nvidia/version")
    if driver is None:
        raise Skip("no nvidia driver is loaded")
    try:
        days = float(ctx.text("proc/uptime").split()[0]) / 86400
    except (ValueError, IndexError):
        raise Unknown("/proc/uptime holds no number") from None
    found = Findings()
    found.metric("uptime", days * 86400, "s")
    if days >= warn_days:
        found.warn(
            f"up for {days:.1f} days with driver {driver}",
            expected=f"less than {warn_days:g} days",
            fix="plan a reboot: NVML may stop answering at 66 days (open-gpu-kernel-modules#971)",
        )
    return found.result(f"up for {days:.1f} days, driver {driver}")


@nvml_check("persistence", tags={"preflight", "running"})
def persistence(ctx: Ctx) -> Result:
    """Persistence mode is on, so that GPUs need not be started up by every process.

    As in leptonai/gpud and Azure/azurehpc-health-checks.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        if not nvml.ask(gpu, "nvmlDeviceGetPersistenceMode"):
            found.warn(
                "persistence mode is off",
                expected="on",
                fix="systemctl enable --now nvidia-persistenced (or nvidia-smi -pm 1)",
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="persistence mode is on", what="persistence mode")


@nvml_check("gpu.leftover", tags={"preflight"}, blame=Blame.USER, drains=False)
def gpu_leftover(
    ctx: Ctx,
    *,
    tries: Annotated[int, About(doc="Looks before it is said.", least=1)] = 3,
    every_s: Annotated[float, About(doc="Between two looks.", unit="s", least=0)] = 1.0,
    memory_mib: Annotated[
        int, About(doc="Memory in use beyond the least since boot.", unit="MiB", least=1)
    ] = 512,
) -> Result:
    """No process of an earlier job computes on a GPU or holds its memory.

    Three looks, as in facebookresearch/gcm, because a process may be just ending. Memory is
    compared with the least that was seen since boot; 512 MiB are superv's proposal.
    """
    nvml, found = ctx.nvml(), Findings()

    for _ in range(tries - 1):  # of all GPUs, not of each: the waits must not add up
        try:
            if not any(nvml.in_use(gpu) for gpu in nvml.gpus):
                break
        except Trouble:
            break  # the look below meets it again, and says so
        ctx.doing("")
        time.sleep(every_s)

    def look(gpu: Gpu) -> None:
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

    return nvml.survey(found, look, fine="no process computes", what="the list of processes")


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


@nvml_check("mig", tags={"preflight"})
def mig(ctx: Ctx) -> Result:
    """No GPU is cut into MIG instances, or will be after its next reset."""
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        current, pending = nvml.ask(gpu, "nvmlDeviceGetMigMode")
        if current or pending:
            found.fail(
                f"MIG mode is {'on' if current else 'off, and on after a reset'}",
                expected="off",
                fix=f"nvidia-smi -i {gpu.index} -mig 0, then reset the GPU",
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="MIG is off", what="MIG")


@nvml_check("inforom", tags={"preflight"})
def inforom(ctx: Ctx) -> Result:
    """Every GPU's InfoROM, which keeps its ECC and remapping history, is intact.

    DCGM treats a corrupt InfoROM as a failure.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        try:
            nvml.ask(gpu, "nvmlDeviceValidateInforom")
        except Trouble as error:
            if error.code != CORRUPTED_INFOROM:
                raise
            found.fail(
                f"its InfoROM is corrupt ({gpu.place})",
                expected="a valid checksum",
                fix="power-cycle the node; if it stays, replace the GPU (RMA)",
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="the InfoROM is valid", what="the InfoROM's checksum")


@nvml_check("versions", tags={"preflight"}, cohort=Status.WARN)
def versions(ctx: Ctx) -> Result:
    """Kernel module, NVML library and firmware fit together, and are those of the other nodes.

    Error 18 (LIB_RM_VERSION_MISMATCH) is a failure: no CUDA program starts.
    """
    found = Findings()
    module = ctx.maybe("sys/module/nvidia/version")
    try:
        nvml = ctx.nvml()
    except Unusable as error:
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
    except (Trouble, Unsupported) as error:
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

    def look(gpu: Gpu) -> None:
        for what, call in (("vbios", "VbiosVersion"), ("gsp", "GspFirmwareVersion")):
            text = nvml.maybe(gpu, f"nvmlDeviceGet{call}")
            if text is not None:
                firmware[what].setdefault(as_text(text), []).append(gpu.label)
        found.fact("gpu", nvml.names())

    result = nvml.survey(found, look, fine="", what="its firmware's version")
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
