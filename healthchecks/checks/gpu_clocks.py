"""What slows a GPU down: heat, power, and clocks that somebody set."""

from __future__ import annotations

from typing import Annotated

from healthchecks.frame.check import Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.sources.nvml import Gpu, Unsupported, nvml_check, open_nvml
from supervisor.core.setting import About

GRAPHICS, SM, MEMORY = 0, 1, 2  # nvmlClockType_t
TARGET, DEFAULT = 1, 2  # nvmlClockId_t of application clocks
MEMORY_TEMPERATURE = 82  # NVML_FI_DEV_MEMORY_TEMP
SLOWDOWN_MARGIN = 194  # NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: the margin at which it begins
_SLOWDOWNS = {  # bits of nvmlClocksEventReasons
    0x8: "hardware slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_THROTTLED_NS = {269: "software_thermal", 270: "thermal", 271: "power_brake"}
_JUDGED_NS = (270, 271)


@nvml_check("clock.events", tags={"preflight", "running"})
def clock_events(
    ctx: Ctx,
    *,
    fail_times: Annotated[int, About(doc="Looks with a slowdown to fail at.", ge=1)] = 6,
    within_s: Annotated[float, About(doc="Within how long.", unit="s", ge=1)] = 600.0,
    warn_percent: Annotated[
        float, About(doc="Time throttled since the last look to warn at.", unit="%", ge=0)
    ] = 1.0,
) -> Result:
    """No GPU is slowed down by heat or by the power supply's brake.

    One look with a slowdown warns, six within 10 minutes fail, as in leptonai/gpud. The driver's
    nanosecond counters tell what happened between two looks; 1 % of the time is superv's proposal.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        reasons = int(nvml.ask(gpu, "nvmlDeviceGetCurrentClocksEventReasons"))
        now = [text for bit, text in _SLOWDOWNS.items() if reasons & bit]
        samples = ctx.memory.recent(gpu.key, bool(now), within_s)
        times = sum(1 for _, slow in samples if slow)
        if now:
            found.add(
                Status.FAIL if times >= fail_times else Status.WARN,
                f"{', '.join(now)}; in {times} of {len(samples)} looks within "
                f"{within_s / 60:g} min ({gpu.location})",
                expected="no slowdown",
                fix="look at the node's cooling and power supplies (BMC); compare its temperatures "
                "with those of its neighbours in the rack",
                device=gpu.label,
            )
        for number, total in nvml.fields(gpu, [*_THROTTLED_NS]).items():
            delta = ctx.memory.counter_delta(f"{gpu.key}.{number}", total)
            if delta is None or delta.over_s <= 0:
                continue
            percent = min(100.0, delta.by / delta.over_s / 1e7)
            found.metric(f"{gpu.label}.{_THROTTLED_NS[number]}", percent, "%")
            if number in _JUDGED_NS and percent > warn_percent:
                found.warn(
                    f"throttled ({_THROTTLED_NS[number].replace('_', ' ')}) for {percent:.1f} % of "
                    f"the last {delta.over_s:.0f} s",
                    expected=f"at most {warn_percent:g} %",
                    fix="look at the node's cooling and power supplies (BMC)",
                    device=gpu.label,
                )

    return nvml.for_each_gpu(found, judge, fine="no slowdown", what="the reasons of clock changes")


@nvml_check("clock.max", tags={"preflight"}, cohort=Status.WARN)
def clock_max(ctx: Ctx) -> Result:
    """All GPUs, and those of other nodes of the kind, can reach the same clocks.

    What a clock should be is not looked up: GPUs are compared with each other.
    """
    nvml, found = open_nvml(ctx), Findings()
    reached: dict[str, dict[int, list[str]]] = {"sm": {}, "memory": {}}

    def judge(gpu: Gpu) -> None:
        for what, kind in (("sm", SM), ("memory", MEMORY)):
            mhz = int(nvml.ask(gpu, "nvmlDeviceGetMaxClockInfo", kind))
            reached[what].setdefault(mhz, []).append(gpu.label)
            found.metric(f"{gpu.label}.{what}_max", mhz * 1e6, "Hz")
        now = nvml.maybe(gpu, "nvmlDeviceGetClockInfo", SM)
        if now is not None:
            found.metric(f"{gpu.label}.sm", now * 1e6, "Hz")
        target = nvml.maybe(gpu, "nvmlDeviceGetClock", SM, TARGET)
        default = nvml.maybe(gpu, "nvmlDeviceGetClock", SM, DEFAULT)
        if target is not None and default is not None and target < default:
            found.warn(
                f"application clocks are set to {target} MHz; default {default} MHz",
                expected=f"{default} MHz",
                fix=f"nvidia-smi -i {gpu.index} -rac; and -rgc for locked clocks",
                device=gpu.label,
            )

    result = nvml.for_each_gpu(found, judge, fine="", what="the highest clock")
    for what, by_clock in reached.items():
        if by_clock:
            found.fact(what, " ".join(f"{mhz} MHz" for mhz in sorted(by_clock)))
        if len(by_clock) > 1:
            usual = max(by_clock, key=lambda mhz: (len(by_clock[mhz]), mhz))
            for mhz, who in by_clock.items():
                if mhz != usual:
                    found.warn(
                        f"{', '.join(who)}: at most {mhz} MHz ({what}); the others {usual} MHz",
                        expected=f"{usual} MHz",
                        fix="reset locked clocks: nvidia-smi -rgc -rmc; else compare the VBIOS",
                    )
    if result.status is not Status.OK:
        return found.result("")
    return found.result(
        f"up to {max(reached['sm'])} MHz, memory {max(reached['memory'])} MHz on all GPUs"
    )


@nvml_check("thermal", tags={"preflight", "running"})
def thermal(
    ctx: Ctx,
    *,
    warn_margin: Annotated[
        int, About(doc="Degrees below the slowdown temperature to warn at.", unit="°C", ge=-100)
    ] = 5,
    fail_margin: Annotated[
        int, About(doc="Degrees below the slowdown temperature to fail at.", unit="°C", ge=-100)
    ] = 0,
    lasts_s: Annotated[
        float, About(doc="For how long looks must find that before it fails.", unit="s", ge=0)
    ] = 60.0,
) -> Result:
    """Every GPU is well below the temperature at which it slows down.

    NVML gives the margin, so no temperature has to be known (Blackwell slows down near 87 °C, says
    leptonai/gpud). It is 0 at the highest operating temperature; slowdown begins below that, on
    H100 at -2 (field SLOWDOWN_TLIMIT; nvidia-smi -q, "GPU Slowdown T.Limit Temp"). 5 °C and 0 °C
    are superv's proposals; one look that finds no margin warns, and what lasts fails.
    """
    nvml, found = open_nvml(ctx), Findings()
    margins: list[int] = []

    def judge(gpu: Gpu) -> None:
        temperature = nvml.temperature(gpu)
        if temperature is not None:
            found.metric(f"{gpu.label}.temperature", temperature, "°C")
        memory = nvml.fields(gpu, [MEMORY_TEMPERATURE]).get(MEMORY_TEMPERATURE)
        if memory is not None:
            found.metric(f"{gpu.label}.memory", memory, "°C")
        margin = nvml.maybe(gpu, "nvmlDeviceGetMarginTemperature")
        if margin is not None:
            margin -= int(nvml.fields(gpu, [SLOWDOWN_MARGIN]).get(SLOWDOWN_MARGIN, 0))
        if margin is None and temperature is not None:
            slowdown = nvml.maybe(gpu, "nvmlDeviceGetTemperatureThreshold", 1)
            margin = None if slowdown is None else slowdown - temperature
        if margin is None:
            raise Unsupported
        margins.append(margin)
        found.metric(f"{gpu.label}.margin", margin, "°C")
        hot_s = ctx.memory.lasted_s(f"hot:{gpu.key}", margin <= fail_margin)
        if margin <= warn_margin:
            fails = margin <= fail_margin and hot_s >= lasts_s
            found.add(
                Status.FAIL if fails else Status.WARN,
                f"{margin} °C below its slowdown temperature ({gpu.location})",
                expected=f"more than {fail_margin if fails else warn_margin} °C",
                fix="look at the node's cooling: coolant flow, fans, inlet temperature (BMC)",
                device=gpu.label,
            )

    result = nvml.for_each_gpu(found, judge, fine="", what="the temperature margin")
    if result.status is not Status.OK:
        return result
    return found.result(f"{len(margins)} GPUs: at least {min(margins)} °C below slowdown")


@nvml_check("power.limit", tags={"preflight"}, cohort=Status.WARN)
def power_limit(
    ctx: Ctx,
    *,
    watts: Annotated[
        float,
        About(doc="What the limit should be.", unit="W", ge=0, default="the GPU's own default"),
    ] = 0.0,
    warn_percent: Annotated[float, About(doc="Of that, to warn below.", unit="%", ge=1)] = 99.0,
) -> Result:
    """No GPU is held below the power that it was made for, nor below that of other nodes."""
    nvml, found = open_nvml(ctx), Findings()
    limits: set[float] = set()

    def judge(gpu: Gpu) -> None:
        limit = nvml.ask(gpu, "nvmlDeviceGetEnforcedPowerLimit") / 1000
        default = nvml.maybe(gpu, "nvmlDeviceGetPowerManagementDefaultLimit")
        usage = nvml.maybe(gpu, "nvmlDeviceGetPowerUsage")
        limits.add(limit)
        found.metric(f"{gpu.label}.limit", limit, "W")
        if usage is not None:
            found.metric(f"{gpu.label}.power", usage / 1000, "W")
        wanted = watts or (0.0 if default is None else default / 1000)
        if limit < wanted * warn_percent / 100:
            found.warn(
                f"held to {limit:g} W",
                expected=f"{wanted:g} W",
                fix=f"nvidia-smi -i {gpu.index} -pl {wanted:g}; if it does not stay, the board or "
                "the BMC limits it",
                device=gpu.label,
            )

    result = nvml.for_each_gpu(found, judge, fine="", what="a power limit")
    shown = ", ".join(f"{limit:g} W" for limit in sorted(limits))
    if limits:
        found.fact("limit", shown)
    if result.status is not Status.OK:
        return found.result("")
    return found.result(f"power limit {shown} on {len(nvml.gpus)} GPUs")
