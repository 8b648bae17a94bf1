"""GPU memory: ECC errors, remapped rows, pending repairs, and where they are heading.

Thresholds are NVIDIA's (GPU Memory Error Management; Dynamic Page Retirement) where they exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from healthchecks.check import Findings, Result, Status
from healthchecks.context import Ctx
from healthchecks.nvml import Gpu, Nvml, Unsupported, nvml_check
from supervisor.core.setting import About

CORRECTED, UNCORRECTED = 0, 1
VOLATILE, AGGREGATE = 0, 1  # since the driver was loaded; since the GPU was made
DRAM, SRAM = 2, 7
PLACES = {"DRAM": DRAM, "SRAM": SRAM}
DAY_S = 86400.0
RESET = "end all processes on the GPU and reset it: nvidia-smi --gpu-reset -i {}"
RMA = "take the node out and replace the GPU (RMA)"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaps:
    """Rows of DRAM that were replaced by spare ones, over the GPU's life."""

    corrected: int
    uncorrected: int
    pending: bool
    failed: bool


def _remaps(nvml: Nvml, gpu: Gpu) -> Remaps:
    corrected, uncorrected, pending, failed = nvml.ask(gpu, "nvmlDeviceGetRemappedRows")
    return Remaps(
        corrected=corrected, uncorrected=uncorrected, pending=bool(pending), failed=bool(failed)
    )


@nvml_check("ecc.mode", tags={"preflight", "running"})
def ecc_mode(ctx: Ctx) -> Result:
    """ECC is on, and no change of it waits for a reboot. As in DCGM's diagnostics."""
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        current, pending = nvml.ask(gpu, "nvmlDeviceGetEccMode")
        if not current or not pending:
            found.fail(
                f"ECC is {'on' if current else 'off'}, and {'on' if pending else 'off'} "
                "after the next reset",
                expected="ECC on, now and after a reset",
                fix=f"nvidia-smi -i {gpu.index} -e 1; then reset the GPU or reboot the node",
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="ECC is on", what="ECC")


@nvml_check("ecc.unc_volatile", tags={"preflight", "running"})
def ecc_unc_volatile(ctx: Ctx) -> Result:
    """No uncorrectable memory error since the driver was loaded.

    Any fails, as in facebookresearch/gcm, Azure/azurehpc-health-checks and OCI's scripts; a reset
    of the GPU remaps the row and clears the count.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        for place, count in _errors(nvml, gpu, UNCORRECTED, VOLATILE).items():
            found.metric(f"{gpu.label}.{place.lower()}", count)
            if count:
                found.fail(
                    f"{count} uncorrectable {place} errors since the driver was loaded "
                    f"({gpu.place})",
                    expected="0",
                    fix=f"{RESET.format(gpu.index)}; then look at remap.* again",
                    device=gpu.label,
                )

    return nvml.survey(found, look, fine="no uncorrectable errors since boot", what="ECC")


@nvml_check("ecc.unc_aggregate", tags={"preflight"})
def ecc_unc_aggregate(
    ctx: Ctx,
    *,
    sram_rma: Annotated[int, About(doc="SRAM errors to speak of replacement.", least=0)] = 4,
) -> Result:
    """Few uncorrectable SRAM errors over the GPU's life; DRAM's are history, and only counted.

    DRAM errors end in a remapped row, so a GPU with some may be sound (Azure and OCI fail on any).
    More than 4 of SRAM: stas00/ml-engineering asks for replacement; NVIDIA's own rule is
    sram.threshold.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        errors = _errors(nvml, gpu, UNCORRECTED, AGGREGATE)
        for place, count in errors.items():
            found.metric(f"{gpu.label}.{place.lower()}", count)
        sram = errors.get("SRAM", 0)
        if sram:
            found.warn(
                f"{sram} uncorrectable SRAM errors over its life ({gpu.place})",
                expected="0",
                fix="ask for its replacement"
                if sram > sram_rma
                else "watch it: run the deep checks before the next long job",
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="no uncorrectable SRAM errors ever", what="ECC")


@nvml_check("sram.threshold", tags={"preflight", "running"})
def sram_threshold(ctx: Ctx) -> Result:
    """No GPU has passed NVIDIA's limit of SRAM errors, at which it is replaced.

    The GPU judges by itself: more than 4 distinct uncorrectable parity errors or more than 2 SECDED
    ones in a bank (NVIDIA GPU Memory Error Management; DCGM).
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        import pynvml  # type: ignore[import-untyped]

        status = nvml.fill(
            gpu, "nvmlDeviceGetSramEccErrorStatus", pynvml.c_nvmlEccSramErrorStatus_v1_t()
        )
        found.metric(f"{gpu.label}.parity", status.aggregateUncParity)
        found.metric(f"{gpu.label}.secded", status.aggregateUncSecDed)
        if status.bThresholdExceeded:
            found.fail(
                f"its SRAM errors passed NVIDIA's limit: {status.aggregateUncParity} parity, "
                f"{status.aggregateUncSecDed} SECDED ({gpu.place})",
                expected="below the limit",
                fix=RMA,
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="SRAM errors below the limit", what="the SRAM limit")


@nvml_check("ecc.corrected_rate", tags={"preflight", "running"})
def ecc_corrected_rate(
    ctx: Ctx,
    *,
    warn_per_s: Annotated[float, About(doc="Rate to warn at.", unit="/s", least=0)] = 100.0,
    over_s: Annotated[
        float, About(doc="For how long at least it is measured.", unit="s", least=1)
    ] = 60.0,
) -> Result:
    """Corrected memory errors do not stream in.

    A GPU with 17,700 a second under load counted as healthy (NVIDIA/NVSentinel#1748). 100/s over
    60 s are superv's proposal; others have absolute limits (gcm 50 million).
    """
    nvml, found = ctx.nvml(), Findings()
    rates: list[float] = []

    def look(gpu: Gpu) -> None:
        for place, count in _errors(nvml, gpu, CORRECTED, VOLATILE).items():
            found.metric(f"{gpu.label}.{place.lower()}", count)
            samples = ctx.memory.recent(f"{gpu.key}.{place}", count, 3600.0)
            old = [s for s in samples if ctx.now - s[0] >= over_s]
            if not old or count < old[-1][1]:
                continue
            rate = (count - old[-1][1]) / (ctx.now - old[-1][0])
            rates.append(rate)
            found.metric(f"{gpu.label}.{place.lower()}_rate", rate, "/s")
            if rate > warn_per_s:
                found.warn(
                    f"{rate:.0f} corrected {place} errors/s over {ctx.now - old[-1][0]:.0f} s "
                    f"({gpu.place})",
                    expected=f"at most {warn_per_s:g}/s",
                    fix="take the node out at the next checkpoint and run the deep checks",
                    device=gpu.label,
                )

    fine = "corrected errors counted"
    result = nvml.survey(found, look, fine=fine, what="ECC")
    if result.status is not Status.OK:
        return result
    seen = f"at most {max(rates):.1f} corrected errors/s" if rates else "first look: no rate yet"
    return found.result(f"{len(nvml.gpus)} GPUs: {seen}")


@nvml_check("remap.pending", tags={"preflight", "running"})
def remap_pending(ctx: Ctx) -> Result:
    """No row of memory waits for a reset to be replaced.

    A failure on a GPU that is idle, where a reset costs nothing; a warning while processes compute
    on it, which may go on (NVIDIA GPU Memory Error Management).
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        if not _remaps(nvml, gpu).pending:
            return
        found.add(
            Status.WARN if nvml.in_use(gpu) else Status.FAIL,
            f"a row waits to be remapped ({gpu.place})",
            expected="none pending",
            fix=RESET.format(gpu.index),
            device=gpu.label,
        )

    return nvml.survey(found, look, fine="no row waits to be remapped", what="row remapping")


@nvml_check("remap.failed", tags={"preflight", "running"})
def remap_failed(ctx: Ctx) -> Result:
    """No row failed to be replaced: such a GPU is due for replacement (NVIDIA RMA policy)."""
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        if _remaps(nvml, gpu).failed:
            found.fail(
                f"a row could not be remapped ({gpu.place})",
                expected="no failure",
                fix=RMA,
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="no remapping failed", what="row remapping")


@nvml_check("remap.unc", tags={"preflight"})
def remap_unc(
    ctx: Ctx,
    *,
    fail_rows: Annotated[int, About(doc="Rows remapped for uncorrectable errors.", least=1)] = 512,
) -> Result:
    """Spare rows are left in every bank of memory.

    512 rows are all that a GPU can remap (OCI ends the node there, DCGM warns); a bank without a
    spare row is a warning (superv's proposal), as its next error can't be repaired.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        remaps = _remaps(nvml, gpu)
        found.metric(f"{gpu.label}.corrected", remaps.corrected)
        found.metric(f"{gpu.label}.uncorrected", remaps.uncorrected)
        if remaps.uncorrected >= fail_rows:
            found.fail(
                f"{remaps.uncorrected} rows remapped for uncorrectable errors ({gpu.place})",
                expected=f"less than {fail_rows}",
                fix=RMA,
                device=gpu.label,
            )
        banks = nvml.maybe(gpu, "nvmlDeviceGetRowRemapperHistogram")
        if banks is None:
            return
        found.metric(f"{gpu.label}.banks_low", banks.low)
        found.metric(f"{gpu.label}.banks_none", banks.none)
        if banks.none:
            found.warn(
                f"{banks.none} banks have no spare row left ({gpu.place})",
                expected="a spare row in every bank",
                fix="plan its replacement: the next error in such a bank can't be repaired",
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="spare rows in every bank", what="row remapping")


@nvml_check("remap.trend", tags={"preflight", "running"})
def remap_trend(
    ctx: Ctx,
    *,
    days: Annotated[float, About(doc="How far back growth is counted.", unit="d", least=1)] = 28.0,
    warn_corrected: Annotated[int, About(doc="Corrected remaps to warn at.", least=1)] = 16,
    warn_uncorrected: Annotated[int, About(doc="Uncorrected remaps to warn at.", least=1)] = 1,
    fail_uncorrected: Annotated[int, About(doc="Uncorrected remaps to fail at.", least=1)] = 4,
) -> Result:
    """Remapped rows do not keep growing over weeks.

    A node of a 63-node B200 cluster had 254 remaps for correctable errors in 55 days and not one
    Xid before it vanished; another's uncorrectable ones rose until it died (arXiv 2605.09370). All
    thresholds are superv's proposals: 16 corrected in 28 days is an eighth of that node's pace.
    Kept over reboots, by the GPU's UUID; `superv accept` begins anew.
    """
    nvml, found = ctx.nvml(), Findings()
    since: list[float] = []

    def look(gpu: Gpu) -> None:
        remaps = _remaps(nvml, gpu)
        first = _baseline(ctx, gpu, remaps, days)
        age = max(0.0, ctx.now - first[0]) / DAY_S
        since.append(age)
        corrected = remaps.corrected - int(first[1])
        uncorrected = remaps.uncorrected - int(first[2])
        found.metric(f"{gpu.label}.corrected_grown", corrected)
        found.metric(f"{gpu.label}.uncorrected_grown", uncorrected)
        if uncorrected >= warn_uncorrected:
            fails = uncorrected >= fail_uncorrected
            found.add(
                Status.FAIL if fails else Status.WARN,
                f"{uncorrected} more rows remapped for uncorrectable errors in {age:.1f} days "
                f"({gpu.place})",
                expected=f"less than {fail_uncorrected if fails else warn_uncorrected}",
                fix="take the node out, run the deep checks, and replace the GPU if it goes on",
                device=gpu.label,
            )
        if corrected >= warn_corrected:
            found.warn(
                f"{corrected} more rows remapped for correctable errors in {age:.1f} days "
                f"({gpu.place})",
                expected=f"less than {warn_corrected} in {days:g} days",
                fix="have a spare ready and run the deep checks on this node: GPUs have died of "
                "this without an Xid",
                device=gpu.label,
            )

    result = nvml.survey(found, look, fine="", what="row remapping")
    if result.status is not Status.OK:
        return result
    return found.result(
        f"{len(since)} GPUs: no growth to speak of in {max(since):.1f} days"
        if max(since) > 0
        else f"{len(since)} GPUs: first look: no trend yet"
    )


def _baseline(ctx: Ctx, gpu: Gpu, now: Remaps, days: float) -> list[float]:
    """The oldest sample that counts: [at, corrected, uncorrected]. Adds the present one.

    A sample in half a day is enough; counts that went down are another GPU's or were cleared.
    """
    begins = ctx.now - days * DAY_S
    kept = [[float(x) for x in sample] for sample in ctx.memory.get(gpu.key) or []]
    if kept and (now.corrected < kept[-1][1] or now.uncorrected < kept[-1][2]):
        kept = []
    older = [sample for sample in kept if sample[0] < begins]
    kept = [*older[-1:], *(s for s in kept if s[0] >= begins)]  # one from before the window
    if not kept or ctx.now - kept[-1][0] >= DAY_S / 2:
        kept.append([ctx.now, float(now.corrected), float(now.uncorrected)])
    ctx.memory.put(gpu.key, kept, lasting=True)
    return kept[0]


@nvml_check("repair.pending", tags={"preflight", "running"})
def repair_pending(ctx: Ctx) -> Result:
    """No memory channel or TPC waits for a reset to be repaired (Blackwell and newer).

    That it fails on an idle GPU, and warns on one that is in use, is superv's proposal.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        channel, tpc = nvml.ask(gpu, "nvmlDeviceGetRepairStatus")
        what = " and ".join(n for n, on in (("memory channel", channel), ("TPC", tpc)) if on)
        if what:
            found.add(
                Status.WARN if nvml.in_use(gpu) else Status.FAIL,
                f"a repair of a {what} is pending ({gpu.place})",
                expected="none pending",
                fix=RESET.format(gpu.index),
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="no repair is pending", what="repair (Blackwell)")


@nvml_check("pages.retired", tags={"preflight"})
def pages_retired(
    ctx: Ctx,
    *,
    fail_pages: Annotated[int, About(doc="Retired pages to fail at.", least=1)] = 60,
) -> Result:
    """GPUs before Ampere: no page waits to be retired, and fewer than 60 were.

    60 is NVIDIA's limit for replacement (Dynamic Page Retirement); newer GPUs remap rows instead.
    """
    nvml, found = ctx.nvml(), Findings()

    def look(gpu: Gpu) -> None:
        # causes: 0 several corrected errors, 1 an uncorrectable one
        pages = sum(len(nvml.ask(gpu, "nvmlDeviceGetRetiredPages", cause)) for cause in (0, 1))
        found.metric(f"{gpu.label}.retired", pages)
        if nvml.maybe(gpu, "nvmlDeviceGetRetiredPagesPendingStatus"):
            found.fail(
                f"a page waits to be retired ({gpu.place})",
                expected="none pending",
                fix=RESET.format(gpu.index),
                device=gpu.label,
            )
        if pages >= fail_pages:
            found.fail(
                f"{pages} pages retired ({gpu.place})",
                expected=f"less than {fail_pages}",
                fix=RMA,
                device=gpu.label,
            )

    return nvml.survey(found, look, fine="no page waits to be retired", what="page retirement")
