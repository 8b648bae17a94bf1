"""GPU memory that is being replaced: remapped rows, pending repairs, retired pages, and the trend.

Thresholds are NVIDIA's (GPU Memory Error Management; Dynamic Page Retirement) where they exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.sources.nvml import Gpu, Nvml, nvml_check, open_nvml
from healthchecks.sources.recovery_actions import RESET, RMA
from supervisor.core.setting import About

DAY_S = 86400.0


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


@nvml_check("remap.pending", tags={"preflight", "running"})
def remap_pending(ctx: Ctx) -> Result:
    """No row of memory waits for a reset to be replaced.

    A failure on a GPU that is idle, where a reset costs nothing; a warning while processes compute
    on it, which may go on (NVIDIA GPU Memory Error Management).
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        if not _remaps(nvml, gpu).pending:
            return
        found.add(
            Status.WARN if nvml.in_use(gpu) else Status.FAIL,
            f"a row waits to be remapped ({gpu.location})",
            expected="none pending",
            fix=RESET.format(gpu.index),
            device=gpu.label,
        )

    return nvml.for_each_gpu(found, judge, fine="no row waits to be remapped", what="row remapping")


@nvml_check("remap.failed", tags={"preflight", "running"})
def remap_failed(ctx: Ctx) -> Result:
    """No row failed to be replaced: such a GPU is due for replacement (NVIDIA RMA policy)."""
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        if _remaps(nvml, gpu).failed:
            found.fail(
                f"a row could not be remapped ({gpu.location})",
                expected="no failure",
                fix=RMA,
                device=gpu.label,
            )

    return nvml.for_each_gpu(found, judge, fine="no remapping failed", what="row remapping")


@nvml_check("remap.unc", tags={"preflight"})
def remap_unc(
    ctx: Ctx,
    *,
    fail_rows: Annotated[int, About(doc="Rows remapped for uncorrectable errors.", ge=1)] = 512,
) -> Result:
    """Spare rows are left in every bank of memory.

    512 rows are all that a GPU can remap (OCI ends the node there, DCGM warns); a bank without a
    spare row is a warning (superv's proposal), as its next error can't be repaired.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        remaps = _remaps(nvml, gpu)
        found.metric(f"{gpu.label}.corrected", remaps.corrected)
        found.metric(f"{gpu.label}.uncorrected", remaps.uncorrected)
        if remaps.uncorrected >= fail_rows:
            found.fail(
                f"{remaps.uncorrected} rows remapped for uncorrectable errors ({gpu.location})",
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
                f"{banks.none} banks have no spare row left ({gpu.location})",
                expected="a spare row in every bank",
                fix="plan its replacement: the next error in such a bank can't be repaired",
                device=gpu.label,
            )

    return nvml.for_each_gpu(found, judge, fine="spare rows in every bank", what="row remapping")


@nvml_check("remap.trend", tags={"preflight", "running"})
def remap_trend(
    ctx: Ctx,
    *,
    days: Annotated[float, About(doc="How far back growth is counted.", unit="d", ge=1)] = 28.0,
    warn_corrected: Annotated[int, About(doc="Corrected remaps to warn at.", ge=1)] = 16,
    warn_uncorrected: Annotated[int, About(doc="Uncorrected remaps to warn at.", ge=1)] = 1,
    fail_uncorrected: Annotated[int, About(doc="Uncorrected remaps to fail at.", ge=1)] = 4,
) -> Result:
    """Remapped rows do not keep growing over weeks.

    A node of a 63-node B200 cluster had 254 remaps for correctable errors in 55 days and not one
    Xid before it vanished; another's uncorrectable ones rose until it died (arXiv 2605.09370). All
    thresholds are superv's proposals: 16 corrected in 28 days is an eighth of that node's pace.
    Kept over reboots, by the GPU's UUID; `superv accept` begins again.
    """
    nvml, found = open_nvml(ctx), Findings()
    since: list[float] = []

    def judge(gpu: Gpu) -> None:
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
                f"({gpu.location})",
                expected=f"less than {fail_uncorrected if fails else warn_uncorrected}",
                fix="take the node out, run the deep checks, and replace the GPU if it goes on",
                device=gpu.label,
            )
        if corrected >= warn_corrected:
            found.warn(
                f"{corrected} more rows remapped for correctable errors in {age:.1f} days "
                f"({gpu.location})",
                expected=f"less than {warn_corrected} in {days:g} days",
                fix="have a spare ready and run the deep checks on this node: GPUs have died of "
                "this without an Xid",
                device=gpu.label,
            )

        if age <= 0:
            found.not_yet("first look: no trend yet")

    result = nvml.for_each_gpu(found, judge, fine="", what="row remapping")
    if result.status is not Status.OK:
        return result
    return found.result(f"{len(since)} GPUs: no growth to speak of in {max(since):.1f} days")


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
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        channel, tpc = nvml.ask(gpu, "nvmlDeviceGetRepairStatus")
        what = " and ".join(n for n, on in (("memory channel", channel), ("TPC", tpc)) if on)
        if what:
            found.add(
                Status.WARN if nvml.in_use(gpu) else Status.FAIL,
                f"a repair of a {what} is pending ({gpu.location})",
                expected="none pending",
                fix=RESET.format(gpu.index),
                device=gpu.label,
            )

    return nvml.for_each_gpu(found, judge, fine="no repair is pending", what="repair (Blackwell)")


@nvml_check("pages.retired", tags={"preflight"})
def pages_retired(
    ctx: Ctx,
    *,
    fail_pages: Annotated[int, About(doc="Retired pages to fail at.", ge=1)] = 60,
) -> Result:
    """GPUs before Ampere: no page waits to be retired, and fewer than 60 were.

    60 is NVIDIA's limit for replacement (Dynamic Page Retirement); newer GPUs remap rows instead.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        # causes: 0 several corrected errors, 1 an uncorrectable one
        pages = sum(len(nvml.ask(gpu, "nvmlDeviceGetRetiredPages", cause)) for cause in (0, 1))
        found.metric(f"{gpu.label}.retired", pages)
        if nvml.maybe(gpu, "nvmlDeviceGetRetiredPagesPendingStatus"):
            found.fail(
                f"a page waits to be retired ({gpu.location})",
                expected="none pending",
                fix=RESET.format(gpu.index),
                device=gpu.label,
            )
        if pages >= fail_pages:
            found.fail(
                f"{pages} pages retired ({gpu.location})",
                expected=f"less than {fail_pages}",
                fix=RMA,
                device=gpu.label,
            )

    return nvml.for_each_gpu(
        found, judge, fine="no page waits to be retired", what="page retirement"
    )
