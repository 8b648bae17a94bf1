"""GPUs: all there, all answering, and what the driver itself asks to be done about them.

The first check of the lane opens NVML, so that a driver that hangs is found by a check of that
name; the others share its session.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import recovery_actions
from healthchecks.sources.nvml import (
    Gpu,
    NvmlCallError,
    NvmlUnavailable,
    Unsupported,
    nvml_check,
    on_bus,
    open_nvml,
)
from supervisor.core.setting import About

RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_OF_BOARDS = (1, 2, 4, 8, 16)
_MODEL = re.compile(r"^Model:\s*(.+)$", re.MULTILINE)
# Names of NVML and /proc/driver/nvidia: "NVIDIA H100 80GB HBM3" is SXM, "NVIDIA H100 PCIe" and
# "NVIDIA H100 NVL" are cards.
_ON_BOARD = re.compile(r"SXM|\bGB\d00\b|\bB[123]00\b|\bH[12]00(?! PCIe| NVL)\b|\bH800(?! PCIe)\b")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib")


@nvml_check("gpu.driver_hang", tags={"preflight", "prolog", "running"}, call_deadline_s=None)
def gpu_driver_hang(ctx: Ctx) -> Result:
    """The NVIDIA driver answers: NVML starts and gives the GPUs' names.

    20 s are superv's proposal (OCI's scripts give nvidia-smi 10 s, NVSentinel 45 s; without
    persistence mode NVML has to start up each GPU first). Where the call that hung can't be killed,
    no second one is sent after it.
    """
    nvml = open_nvml(ctx)
    answered = len(nvml.gpus)
    result = Findings()
    result.metric("gpus", nvml.count)
    return result.result(f"NVML answered for {answered} GPUs")


@nvml_check("gpu.count", tags={"preflight", "prolog", "running"}, cohort=Status.FAIL)
def gpu_count(
    ctx: Ctx,
    *,
    expected: Annotated[
        tuple[int, ...],
        About(
            doc="How many GPUs a node may have.",
            ge=0,
            default="what its boards have (8 or 4), and what it and its cohort had before",
        ),
    ] = (),
) -> Result:
    """Every GPU that the node should have is on the PCI bus and known to NVML.

    The bus and NVML are counted apart (as in leptonai/gpud): fewer in NVML is the driver's doing,
    fewer on the bus the host's. What the node had before counts too, so that one that lost all its
    GPUs is not taken for one without. GPUs that are soldered to boards (SXM, GB200) come in fours
    and eights, or in ones and twos to virtual machines; of others any number may be right.
    """
    found, bus = Findings(), on_bus(ctx)
    most = int(ctx.memory.get("most") or 0)
    ctx.memory.put("most", max(most, len(bus)), lasting=True)
    found.metric("on_bus", len(bus))
    if not bus and not most:
        _no_gpu(ctx)
    right = expected or (_OF_BOARDS if _on_boards(ctx, bus) else (len(bus),))
    wanted = " or ".join(str(n) for n in right)
    found.fact("gpus", len(bus))
    if len(bus) not in right or len(bus) < most:
        had = f" ({most} were here before)" if len(bus) < most else ""
        found.fail(
            f"{len(bus)} GPUs are on the PCI bus{had}",
            expected=f"{max(most, len(bus)) if len(bus) in right else wanted} GPUs",
            fix="reboot the node; in a virtual machine let the host attach its GPUs again; where "
            "the node was changed: superv accept; where all such nodes have another number: "
            "checks.gpu.count.expected in site.yaml",
        )
    try:
        nvml = open_nvml(ctx)
    except NvmlUnavailable as error:
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


def _on_boards(ctx: Ctx, bus: Sequence[str]) -> bool:
    """Whether the GPUs are soldered to a board, as far as the driver tells their model."""
    texts = (ctx.maybe(f"proc/driver/nvidia/gpus/{bdf}/information") or "" for bdf in bus)
    models = [found[1] for text in texts if (found := _MODEL.search(text))]
    return any(_ON_BOARD.search(model) for model in models)


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
        nvml = open_nvml(ctx)
    except NvmlUnavailable as error:
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
    ctx.memory.put("boards", {g.bdf: g.uuid or g.serial for g in nvml.gpus})  # for xid
    ctx.memory.put("boards_at", ctx.now)
    ctx.memory.put("names", {g.label: [g.serial, g.uuid, g.bdf] for g in nvml.gpus}, lasting=True)
    for lost in nvml.missing:
        _lost(found, lost.index, lost.bdf, serials.get(lost.bdf, ""), lost.error)
    for gpu in nvml.gpus:
        try:
            temperature = nvml.temperature(gpu)
            if temperature is not None:
                found.metric(f"{gpu.label}.temperature", temperature, "°C")
        except NvmlCallError as error:
            nvml.report(found, gpu, error)
    return found.result(f"{len(nvml.gpus)} GPUs answer")


def _lost(found: Findings, index: int, bdf: str, serial: str, error: NvmlCallError) -> None:
    place = ", ".join(p for p in (bdf, f"serial {serial}" if serial else "") if p)
    found.add(
        Status.FAIL if error.fails else Status.UNKNOWN,
        f"{error}" + (f" ({place})" if place else ""),
        expected="a handle of every GPU",
        fix=error.fix or "look for NVRM lines in the kernel log; reboot the node",
        device=f"gpu{index}",
    )


@nvml_check("gpu.recovery_action", tags={"preflight", "prolog", "running"})
def gpu_recovery_action(ctx: Ctx) -> Result:
    """No GPU asks for a reset, a reboot or a drain.

    NVML's field GET_GPU_RECOVERY_ACTION is the authority on what an Xid asks for (NVIDIA GPU Memory
    Error Management, "Error Recovery and Response Flags"); Xids explain it. What its IMEX domain
    asks for is of several nodes, and a WARN.
    """
    nvml, found = open_nvml(ctx), Findings()
    asked: dict[str, list[float]] = dict(ctx.memory.get("asked") or {})  # for xid: action, when

    def judge(gpu: Gpu) -> None:
        values = nvml.fields(gpu, [RECOVERY_ACTION])
        if RECOVERY_ACTION not in values:
            raise Unsupported
        action = int(values[RECOVERY_ACTION])
        asked[gpu.bdf] = [action, ctx.now]
        found.metric(f"{gpu.label}.recovery_action", action)
        if action:
            of_domain = action == recovery_actions.IMEX
            found.add(
                Status.WARN if of_domain else Status.FAIL,
                f"the driver asks for {recovery_actions.asked_for(action)} ({gpu.location})",
                expected="no recovery action",
                fix=recovery_actions.fix(action, gpu.index),
                device=gpu.label,
                shared="IMEX domain" if of_domain else "",
            )

    result = nvml.for_each_gpu(
        found, judge, fine="no recovery action", what="the recovery action (driver 570 or newer)"
    )
    ctx.memory.put("asked", asked)
    return result


@check("gpu.driver_uptime", tags={"preflight", "running"})
def gpu_driver_uptime(
    ctx: Ctx,
    *,
    warn_days: Annotated[float, About(doc="Uptime to warn at.", unit="d", ge=1)] = 60.0,
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
