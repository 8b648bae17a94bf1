"""The GPUs' PCIe links: width, generation, errors."""

from __future__ import annotations

from typing import Annotated

from healthchecks.frame.check import Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.sources.nvml import Gpu, Nvml, Unsupported, nvml_check, open_nvml
from healthchecks.sources.pci import PCI
from supervisor.core.setting import About

_COUNTERS = {  # NVML_FI_DEV_PCIE_COUNT_*
    173: "correctable",
    174: "naks_received",
    175: "receiver_errors",
    176: "bad_tlp",
    177: "naks_sent",
    178: "bad_dllp",
    179: "non_fatal",
    180: "fatal",
    181: "unsupported_requests",
    182: "lcrc_errors",
    183: "lane_errors",
}
NON_FATAL, FATAL = 179, 180
_GIGABITS = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}  # a lane, a second
_IDLE = 0x1  # bit of nvmlClocksEventReasons
_AER = ("fatal", "nonfatal", "correctable")
_FIRST = "first look: no rate of PCIe errors yet"
_FIX = (
    "reseat the GPU or its riser at the next maintenance; a reboot may bring the link back up; in "
    "a virtual machine ask the host to look at the physical slot"
)


@nvml_check("pcie.link", tags={"preflight", "running"}, cohort=Status.WARN)
def pcie_link(
    ctx: Ctx,
    *,
    width: Annotated[int, About(doc="Lanes of a GPU.", ge=1)] = 16,
) -> Result:
    """Every GPU has all its PCIe lanes, and its generation while it works.

    NVML is asked first, because a guest's /sys shows what its virtual root port says. An idle GPU
    may rest at a lower generation; its highest one is compared with other nodes.
    """
    nvml, found = open_nvml(ctx), Findings()
    best: set[int] = set()

    def judge(gpu: Gpu) -> None:
        lanes = nvml.maybe(gpu, "nvmlDeviceGetCurrPcieLinkWidth")
        if lanes is None:
            text = ctx.maybe(f"{PCI}/{gpu.bdf}/current_link_width")
            if text is None or not text.isdigit():
                raise Unsupported
            lanes = int(text)
        found.metric(f"{gpu.label}.width", lanes)
        if lanes < width:
            found.fail(
                f"PCIe x{lanes} ({gpu.location})",
                expected=f"x{width}",
                fix=_FIX,
                device=gpu.label,
            )
        now = nvml.maybe(gpu, "nvmlDeviceGetCurrPcieLinkGeneration")
        most = nvml.maybe(gpu, "nvmlDeviceGetMaxPcieLinkGeneration")
        if now is None or most is None:
            return
        best.add(most)
        found.metric(f"{gpu.label}.generation", now)
        reasons = nvml.maybe(gpu, "nvmlDeviceGetCurrentClocksEventReasons")
        if now < most and reasons is not None and not reasons & _IDLE:
            found.warn(
                f"PCIe generation {now} while it works ({gpu.location})",
                expected=f"generation {most}",
                fix=_FIX,
                device=gpu.label,
            )

    result = nvml.for_each_gpu(found, judge, fine=f"PCIe x{width}", what="the PCIe link")
    if best:
        found.fact("generation", " ".join(str(g) for g in sorted(best)))
    return found.result(result.seen)


@nvml_check("pcie.errors", tags={"preflight", "running"})
def pcie_errors(
    ctx: Ctx,
    *,
    replays: Annotated[
        float,
        About(
            doc="Replays a minute to warn above.",
            unit="/min",
            ge=0,
            default="what a bit error rate of 1e-12 gives: 31 for generation 5 x16",
        ),
    ] = 0.0,
) -> Result:
    """No fatal PCIe error, and replays as rare as PCIe allows.

    A fatal error since boot fails (kernel AER counters, NVML fields 173-183); new non-fatal ones
    warn. DCGM judges replays by the link's generation too; the limit here is PCIe's own bit error
    rate of 1e-12.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        values = nvml.fields(gpu, [*_COUNTERS])
        replay = nvml.maybe(gpu, "nvmlDeviceGetPcieReplayCounter")
        aer = _aer(ctx, gpu)
        if not values and replay is None and not aer:
            raise Unsupported
        for number, total in values.items():
            found.metric(f"{gpu.label}.{_COUNTERS[number]}", total)
        for name, total in aer.items():
            found.metric(f"{gpu.label}.aer_{name}", total)
        fatal = max(int(values.get(FATAL, 0)), aer.get("fatal", 0))
        fatal = ctx.since_repair(f"{gpu.key}.fatal", fatal)
        if fatal:
            found.fail(
                f"{fatal} fatal PCIe errors since boot ({gpu.location})",
                expected="0",
                fix=f"reboot the node; then {_FIX}",
                device=gpu.label,
            )
        for name, count in (("NVML", values.get(NON_FATAL)), ("AER", aer.get("nonfatal"))):
            if count is None:
                continue
            delta = ctx.memory.counter_delta(f"{gpu.key}.{name}", count)
            if delta is None and count:
                found.not_yet(_FIRST)
            elif delta is not None and delta.by:
                found.warn(
                    f"{delta.by:.0f} new non-fatal PCIe errors in {delta.over_s:.0f} s "
                    f"({gpu.location})",
                    expected="none",
                    fix=_FIX,
                    device=gpu.label,
                )
        if replay is not None:
            _replays(ctx, nvml, found, gpu, int(replay), replays)

    return nvml.for_each_gpu(
        found, judge, fine="no PCIe errors to speak of", what="PCIe error counters"
    )


def _replays(ctx: Ctx, nvml: Nvml, found: Findings, gpu: Gpu, count: int, limit: float) -> None:
    found.metric(f"{gpu.label}.replays", count)
    delta = ctx.memory.counter_delta(f"{gpu.key}.replays", count)
    if delta is None:
        if count:
            found.not_yet(_FIRST)
        return
    generation = nvml.maybe(gpu, "nvmlDeviceGetCurrPcieLinkGeneration") or 5
    most = limit or _GIGABITS.get(generation, 64.0) * 16 * 60 * 1e-3
    rate = delta.per_s * 60
    found.metric(f"{gpu.label}.replay_rate", delta.per_s, "/s")
    if rate > most and delta.by > most:  # not on a few replays within a second
        found.warn(
            f"{rate:.0f} PCIe replays a minute at generation {generation} ({gpu.location})",
            expected=f"at most {most:.0f} a minute",
            fix=_FIX,
            device=gpu.label,
        )


def _aer(ctx: Ctx, gpu: Gpu) -> dict[str, int]:
    """The kernel's totals of the GPU's PCIe errors, where it has them (not in most guests)."""
    totals = {}
    for name in _AER:
        text = ctx.maybe(f"{PCI}/{gpu.bdf}/aer_dev_{name}")
        if text is None:
            continue
        for line in text.splitlines():
            word, _, number = line.rpartition(" ")
            if word.startswith("TOTAL_ERR") and number.isdigit():
                totals[name] = int(number)
    return totals
