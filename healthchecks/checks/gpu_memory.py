"""GPU memory: ECC, and the errors that it counted.

Thresholds are NVIDIA's (GPU Memory Error Management) where they exist.
"""

from __future__ import annotations

from typing import Annotated

from healthchecks.frame.check import Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.sources.nvml import Gpu, Nvml, Unsupported, nvml_check, open_nvml
from healthchecks.sources.recovery_actions import RESET, RMA
from supervisor.core.setting import About

CORRECTED, UNCORRECTED = 0, 1
VOLATILE, AGGREGATE = 0, 1  # since the driver was loaded; since the GPU was made
DRAM, SRAM = 2, 7
PLACES = {"DRAM": DRAM, "SRAM": SRAM}


def _errors(nvml: Nvml, gpu: Gpu, kind: int, counter: int) -> dict[str, int]:
    """By place, those that the GPU counts. Raises Unsupported where it counts none."""
    found = {}
    for place, number in PLACES.items():
        value = nvml.maybe(gpu, "nvmlDeviceGetMemoryErrorCounter", kind, counter, number)
        if value is not None:
            found[place] = int(value)
    if not found:
        raise Unsupported
    return found


@nvml_check("ecc.mode", tags={"preflight", "running"})
def ecc_mode(ctx: Ctx) -> Result:
    """ECC is on, and no change of it waits for a reboot. As in DCGM's diagnostics."""
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        current, pending = nvml.ask(gpu, "nvmlDeviceGetEccMode")
        if not current or not pending:
            found.fail(
                f"ECC is {'on' if current else 'off'}, and {'on' if pending else 'off'} "
                "after the next reset",
                expected="ECC on, now and after a reset",
                fix=f"nvidia-smi -i {gpu.index} -e 1; then reset the GPU or reboot the node",
                device=gpu.label,
            )

    return nvml.for_each_gpu(found, judge, fine="ECC is on", what="ECC")


@nvml_check("ecc.unc_volatile", tags={"preflight", "running"})
def ecc_unc_volatile(ctx: Ctx) -> Result:
    """No uncorrectable memory error since the driver was loaded.

    Any fails, as in facebookresearch/gcm, Azure/azurehpc-health-checks and OCI's scripts; a reset
    of the GPU remaps the row and clears the count. While processes compute, one of DRAM is a WARN:
    it was contained, and whom it hit is gone (NVIDIA GPU Memory Error Management; remap.pending).
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        for place, count in _errors(nvml, gpu, UNCORRECTED, VOLATILE).items():
            found.metric(f"{gpu.label}.{place.lower()}", count)
            if count:
                contained = place == "DRAM" and nvml.in_use(gpu)
                found.add(
                    Status.WARN if contained else Status.FAIL,
                    f"{count} uncorrectable {place} errors since the driver was loaded "
                    f"({gpu.location})",
                    expected="0",
                    fix=f"{RESET.format(gpu.index)}; then look at remap.* again",
                    device=gpu.label,
                )

    return nvml.for_each_gpu(found, judge, fine="no uncorrectable errors since boot", what="ECC")


@nvml_check("ecc.unc_aggregate", tags={"preflight"})
def ecc_unc_aggregate(
    ctx: Ctx,
    *,
    sram_rma: Annotated[int, About(doc="SRAM errors to speak of replacement.", ge=0)] = 4,
) -> Result:
    """Few uncorrectable SRAM errors over the GPU's life; DRAM's are history, and only counted.

    DRAM errors end in a remapped row, so a GPU with some may be sound (Azure and OCI fail on any).
    More than 4 of SRAM: stas00/ml-engineering asks for replacement; NVIDIA's own rule is
    sram.threshold.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        errors = _errors(nvml, gpu, UNCORRECTED, AGGREGATE)
        for place, count in errors.items():
            found.metric(f"{gpu.label}.{place.lower()}", count)
        sram = errors.get("SRAM", 0)
        if sram:
            found.warn(
                f"{sram} uncorrectable SRAM errors over its life ({gpu.location})",
                expected="0",
                fix="ask for its replacement"
                if sram > sram_rma
                else "watch it: run the deep checks before the next long job",
                device=gpu.label,
            )

    return nvml.for_each_gpu(found, judge, fine="no uncorrectable SRAM errors ever", what="ECC")


@nvml_check("sram.threshold", tags={"preflight", "running"})
def sram_threshold(ctx: Ctx) -> Result:
    """No GPU has passed NVIDIA's limit of SRAM errors, at which it is replaced.

    The GPU judges by itself: more than 4 distinct uncorrectable parity errors or more than 2 SECDED
    ones in a bank (NVIDIA GPU Memory Error Management; DCGM).
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        import pynvml  # type: ignore[import-untyped]

        status = nvml.fill(
            gpu, "nvmlDeviceGetSramEccErrorStatus", pynvml.c_nvmlEccSramErrorStatus_v1_t()
        )
        found.metric(f"{gpu.label}.parity", status.aggregateUncParity)
        found.metric(f"{gpu.label}.secded", status.aggregateUncSecDed)
        if status.bThresholdExceeded:
            found.fail(
                f"its SRAM errors passed NVIDIA's limit: {status.aggregateUncParity} parity, "
                f"{status.aggregateUncSecDed} SECDED ({gpu.location})",
                expected="below the limit",
                fix=RMA,
                device=gpu.label,
            )

    return nvml.for_each_gpu(
        found, judge, fine="SRAM errors below the limit", what="the SRAM limit"
    )


@nvml_check("ecc.corrected_rate", tags={"preflight", "running"})
def ecc_corrected_rate(
    ctx: Ctx,
    *,
    warn_per_s: Annotated[float, About(doc="Rate to warn at.", unit="/s", ge=0)] = 100.0,
    over_s: Annotated[
        float, About(doc="For how long at least it is measured.", unit="s", ge=1)
    ] = 60.0,
) -> Result:
    """Corrected memory errors do not stream in.

    A GPU with 17,700 a second under load counted as healthy (NVIDIA/NVSentinel#1748). 100/s over
    60 s are superv's proposal; others have absolute limits (gcm 50 million).
    """
    nvml, found = open_nvml(ctx), Findings()
    rates: list[float] = []

    def judge(gpu: Gpu) -> None:
        for place, count in _errors(nvml, gpu, CORRECTED, VOLATILE).items():
            found.metric(f"{gpu.label}.{place.lower()}", count)
            old = ctx.memory.recent(f"{gpu.key}.{place}", count, over_s, and_before=True)[0]
            if ctx.now - old[0] < over_s or count < old[1]:
                found.not_yet(f"no earlier look of {over_s:g} s ago: no rate yet")
                continue
            rate = (count - old[1]) / (ctx.now - old[0])
            rates.append(rate)
            found.metric(f"{gpu.label}.{place.lower()}_rate", rate, "/s")
            if rate > warn_per_s:
                found.warn(
                    f"{rate:.0f} corrected {place} errors/s over {ctx.now - old[0]:.0f} s "
                    f"({gpu.location})",
                    expected=f"at most {warn_per_s:g}/s",
                    fix="take the node out at the next checkpoint and run the deep checks",
                    device=gpu.label,
                )

    fine = "corrected errors counted"
    result = nvml.for_each_gpu(found, judge, fine=fine, what="ECC")
    if result.status is not Status.OK or not rates:
        return result
    seen = f"at most {max(rates):.1f} corrected errors/s"
    return found.result(f"{len(nvml.gpus)} GPUs: {seen}")
