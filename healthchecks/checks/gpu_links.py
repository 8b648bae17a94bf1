"""NVLink: links and their errors, and which GPUs reach each other."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated

from healthchecks.frame.check import Findings, NotYet, Result, Skip, Status
from healthchecks.frame.context import Ctx
from healthchecks.sources.fabric import COMPLETED, FABRIC_FIX, fabric, in_fabric
from healthchecks.sources.nvml import (
    Gpu,
    Nvml,
    NvmlCallError,
    Unsupported,
    nvml_check,
    on_bus,
    open_nvml,
)
from healthchecks.sources.pci import nvswitches
from supervisor.core.setting import About

LINK_SPEED = 164  # NVML_FI_DEV_NVLINK_GET_SPEED, MB/s
MAX_LINKS = 18
NVLINK = 2  # nvmlGpuP2PCapsIndex_t
_KNOWN = {"B200": (18, 53125)}  # links and MB/s: NVLink 5 has 53.125 GB/s a link and direction
# What DCGM's health watch takes for errors (modules/health/DcgmHealthWatch.cpp): fields of NVML
# that count for each link. A driver or GPU has those of its generation.
_ERRORS = {
    **{161: "replays", 162: "link recoveries"},  # NVLink 4 (Hopper) and before
    **{206: "malformed packets", 207: "buffer overruns", 208: "receive errors"},  # NVLink 5
    **{209: "remote receive errors", 210: "general receive errors", 211: "link integrity errors"},
    **{214: "failed recoveries", 219: "effective errors", 221: "symbol errors"},
}
_RECOVERED = {213: "recoveries", 215: "recovery events"}  # that worked
_CRC = {163: "CRC errors"}  # corrected by a replay; DCGM fails at 100 a second
_MAX_CRC_PER_S = 100.0
_COUNTED = {**_ERRORS, **_RECOVERED, **_CRC}
_BERS = {220: "effective_ber", 222: "symbol_ber"}
_ZERO_BER = (15, 255)  # mantissa and exponent of no error at all
_MOST_EFFECTIVE = 1e-12  # DCGM's and the IBTA's limit after error correction
_SYMBOL_FLOOR = 238  # exponent: what a Blackwell GPU says of links without symbol errors


@nvml_check("nvlink.links", tags={"preflight", "running"}, cohort=Status.FAIL)
def nvlink_links(
    ctx: Ctx,
    *,
    links: Annotated[
        int,
        About(
            doc="Active links of a GPU.",
            ge=0,
            default="18 for B200; all it has where switches connect them, else as the others",
        ),
    ] = 0,
    mbps: Annotated[
        int,
        About(
            doc="Speed of a link.",
            unit="MB/s",
            ge=0,
            default="53125 for B200; else what most links have",
        ),
    ] = 0,
) -> Result:
    """All NVLinks of every GPU are up, at full speed.

    Without switches a GPU has as many as its bridges use: links that no GPU uses are not missed.
    """
    nvml, found = open_nvml(ctx), Findings()
    active: dict[str, list[int]] = {}
    down: dict[str, list[int]] = {}
    speeds: dict[str, dict[int, int]] = {}
    asked: dict[str, Gpu] = {}

    def judge(gpu: Gpu) -> None:
        states = _link_states(nvml, gpu)
        if not states:
            raise Unsupported
        asked[gpu.label] = gpu
        active[gpu.label] = [link for link, up in states.items() if up]
        down[gpu.label] = [link for link, up in states.items() if not up]
        found.metric(f"{gpu.label}.links", len(active[gpu.label]))
        for link in active[gpu.label]:
            speed = nvml.fields(gpu, [LINK_SPEED], link).get(LINK_SPEED)
            if speed is not None:
                speeds.setdefault(gpu.label, {})[link] = int(speed)

    result = nvml.for_each_gpu(found, judge, fine="", what="NVLink")
    unconnected = not any(active.values()) and len(asked) == nvml.count
    if unconnected and not any(in_fabric(nvml, gpu) for gpu in nvml.gpus):
        raise Skip("no NVLink is connected (PCIe cards without bridges)")
    most = max((len(up) for up in active.values()), default=0)
    switched = any(in_fabric(nvml, gpu) for gpu in nvml.gpus) or bool(nvswitches(ctx))
    every = [s for by_link in speeds.values() for s in by_link.values()]
    for label, gpu in asked.items():
        known = next((v for name, v in _KNOWN.items() if name in gpu.name), (0, 0))
        has = len(active[label]) + len(down[label])
        wanted = links or known[0] or (max(most, has) if switched else most)
        if len(active[label]) < wanted:
            which = f"; down: {', '.join(map(str, down[label]))}" if down[label] else ""
            found.fail(
                f"{len(active[label])} of {wanted} NVLinks are active{which} ({gpu.location})",
                expected=f"{wanted} active links",
                fix="reset all GPUs of the node; if they stay down, look for Xids 144-150 and "
                "replace GPU or baseboard",
                device=label,
            )
        speed = mbps or known[1] or max(every, key=every.count, default=0)
        slow = {n: s for n, s in speeds.get(label, {}).items() if s != speed}
        if slow:
            found.fail(
                f"NVLinks {', '.join(map(str, slow))} run at "
                f"{', '.join(str(s) for s in sorted(set(slow.values())))} MB/s ({gpu.location})",
                expected=f"{speed} MB/s",
                fix="reset all GPUs of the node; if it stays, replace GPU or baseboard",
                device=label,
            )
    if asked:
        found.fact("links", " ".join(str(n) for n in sorted({len(up) for up in active.values()})))
        found.fact("speed", " ".join(f"{s} MB/s" for s in sorted(set(every))))
    if result.status is not Status.OK:
        return found.result("")
    return found.result(f"{len(asked)} GPUs with {most} NVLinks at {max(every, default=0)} MB/s")


def _link_states(nvml: Nvml, gpu: Gpu) -> dict[int, bool]:
    """Of the links that the GPU has."""
    states = {}
    for link in range(MAX_LINKS):
        try:
            states[link] = bool(nvml.ask(gpu, "nvmlDeviceGetNvLinkState", link))
        except Unsupported:
            continue
        except NvmlCallError as error:
            if error.code != 2:  # INVALID_ARGUMENT: it has no such link
                raise
    return states


@nvml_check("nvlink.errors", tags={"preflight", "running"})
def nvlink_errors(
    ctx: Ctx,
    *,
    fail_looks: Annotated[
        int, About(doc="Looks with recovered links, of the last 30, to fail above.", ge=1)
    ] = 15,
) -> Result:
    """NVLink error counters stand still, and error rates are those of sound links.

    One error, or one failed recovery, fails, as does an effective bit error rate above 1e-12 and a
    symbol error rate above the GPU's floor (DCGM). Recoveries that worked and CRC errors warn, and
    fail in more than 15 of 30 looks (NVIDIA resiliency extension), CRC errors at 100 a second too.
    Of NVLink 4 (Hopper) replays, recoveries and CRC errors are counted.
    """
    nvml, found = open_nvml(ctx), Findings()

    def judge(gpu: Gpu) -> None:
        counts: dict[str, dict[str, int]] = {}
        bers: dict[int, tuple[int, int]] = {}  # the worst link's
        for link in range(MAX_LINKS):
            values = nvml.fields(gpu, [*_COUNTED, *_BERS], link)
            counts[str(link)] = {str(n): int(values[n]) for n in _COUNTED if n in values}
            for number in _BERS:
                if number in values:
                    ber = _ber(int(values[number]))
                    bers[number] = max(ber, bers.get(number, _ZERO_BER), key=_rate)
        if not any(counts.values()):
            raise Unsupported
        _rates(found, gpu, bers)
        earlier = ctx.memory.get(gpu.key)
        ctx.memory.put(gpu.key, [ctx.now, counts])
        if not isinstance(earlier, list):
            found.not_yet("first look: no rate yet")
            return
        _grown(ctx, found, gpu, earlier[1], counts, ctx.now - earlier[0], fail_looks)

    return nvml.for_each_gpu(
        found, judge, fine="no new NVLink errors", what="NVLink's error counters"
    )


def _rates(found: Findings, gpu: Gpu, bers: dict[int, tuple[int, int]]) -> None:
    """Bit error rates of the worst link, which NVML keeps since the links came up."""
    for number, ber in bers.items():
        found.metric(f"{gpu.label}.{_BERS[number]}", _rate(ber))
    effective, symbol = bers.get(220, _ZERO_BER), bers.get(222, _ZERO_BER)
    for what, ber, bad, most in (
        ("effective", effective, _rate(effective) > _MOST_EFFECTIVE * 1.0001, "1e-12"),
        ("symbol", symbol, symbol[0] > 0 and symbol[1] < _SYMBOL_FLOOR, f"15e-{_SYMBOL_FLOOR}"),
    ):
        if bad:
            found.fail(
                f"NVLink {what} error rate {_rate(ber):.0e} ({gpu.location})",
                expected=f"at most {most}",
                fix="end the job, reset all GPUs of the node; if it comes back, replace GPU or "
                "baseboard",
                device=gpu.label,
            )


def _grown(
    ctx: Ctx,
    found: Findings,
    gpu: Gpu,
    earlier: dict[str, dict[str, int]],
    counts: dict[str, dict[str, int]],
    over_s: float,
    fail_looks: int,
) -> None:
    """Compare two looks, by link; a count that fell was reset and says nothing."""
    recovered = False
    for number, text in _COUNTED.items():
        key = str(number)
        grown = {
            link: now[key] - earlier[link][key]
            for link, now in counts.items()
            if key in now and now[key] > earlier.get(link, {}).get(key, now[key])
        }
        found.metric(f"{gpu.label}.{text.replace(' ', '_')}", sum(grown.values()))
        if not grown:
            continue
        total = sum(grown.values())
        seen = f"{total} new {text} on NVLinks {', '.join(grown)} ({gpu.location})"
        flood = number in _CRC and total / max(over_s, 1.0) >= _MAX_CRC_PER_S
        if number in _ERRORS or flood:
            found.fail(
                seen,
                expected="no new errors",
                fix="end the job, reset all GPUs of the node; if it comes back, replace GPU or "
                "baseboard",
                device=gpu.label,
            )
        else:
            recovered = True
            found.warn(
                seen,
                expected="no new errors",
                fix="watch this node; NVLinks that recover again and again fail",
                device=gpu.label,
            )
    last = [*(ctx.memory.get(f"{gpu.key}.recovered") or []), recovered][-30:]
    ctx.memory.put(f"{gpu.key}.recovered", last)
    if sum(last) > fail_looks:
        found.fail(
            f"NVLinks recovered in {sum(last)} of {len(last)} looks ({gpu.location})",
            expected=f"in at most {fail_looks}",
            fix="take the node out; replace GPU or baseboard",
            device=gpu.label,
        )


def _ber(value: int) -> tuple[int, int]:
    """Mantissa and exponent of a bit error rate of NVML: bits 8-11 and 0-7 (NVML_NVLINK_BER_*)."""
    return value >> 8 & 0xF, value & 0xFF


def _rate(ber: tuple[int, int]) -> float:
    return 0.0 if ber == _ZERO_BER else float(ber[0] * 10.0 ** -ber[1])


@nvml_check("p2p", tags={"preflight"})
def p2p(ctx: Ctx) -> Result:
    """Every GPU reaches every other over NVLink. As in leptonai/gpud.

    Bridges connect pairs: there, those that were connected before.
    """
    nvml, found = open_nvml(ctx), Findings()
    if len(on_bus(ctx)) < 2:
        raise Skip("there is only one GPU")
    lost = [*nvml.missing]
    status: dict[tuple[Gpu, Gpu], int] = {}
    silent: set[int] = set()
    for one, other in combinations(nvml.gpus, 2):
        if one.index in silent:
            continue
        try:
            status[one, other] = nvml.ask(one, "nvmlDeviceGetP2PStatus", other.handle, NVLINK)
        except Unsupported:
            continue
        except NvmlCallError as error:
            nvml.report(found, one, error)
            silent.add(one.index)
    if not status and not silent:
        raise Skip("the driver does not say which GPUs are connected by NVLink")
    connected = any(code == 0 for code in status.values())
    switched = any(in_fabric(nvml, gpu) for gpu in nvml.gpus) or bool(nvswitches(ctx))
    if not connected and not silent and not switched:
        raise Skip("the GPUs are not connected by NVLink")
    if not connected and switched and _starting(nvml):
        raise NotYet("the NVLink fabric is not complete yet: see fabric.state")
    if switched or all(code == 0 for code in status.values()):
        ctx.memory.put("all", True, lasting=True)
    bridged = not switched and not ctx.memory.get("all")
    _unreached(nvml, found, _of_bridges(ctx, nvml, status) if bridged else status)
    for gone in lost:
        nvml.leave_out(found, gone)
    return found.result(f"{len(status)} pairs of GPUs reach each other over NVLink")


def _starting(nvml: Nvml) -> bool:
    """Whether the fabric of some GPU is still being brought up."""
    for gpu in nvml.gpus:
        try:
            if 0 < fabric(nvml, gpu).state < COMPLETED:
                return True
        except (NvmlCallError, Unsupported):
            continue
    return False


def _of_bridges(
    ctx: Ctx, nvml: Nvml, status: dict[tuple[Gpu, Gpu], int]
) -> dict[tuple[Gpu, Gpu], int]:
    """The pairs that bridges connect: those that are, or were when somebody looked."""
    names = {pair: " ".join(sorted(gpu.key for gpu in pair)) for pair in status}
    known = {*(ctx.memory.get("bridged") or [])}
    known |= {names[pair] for pair, code in status.items() if code == 0}
    ctx.memory.put("bridged", sorted(known), lasting=True)
    return {pair: code for pair, code in status.items() if names[pair] in known}


def _unreached(nvml: Nvml, found: Findings, status: dict[tuple[Gpu, Gpu], int]) -> None:
    """A GPU that reaches none is one finding; else each pair is one."""
    broken = {pair: s for pair, s in status.items() if s}
    for gpu in nvml.gpus:
        own = [pair for pair in status if gpu in pair]
        if own and all(pair in broken for pair in own):
            found.fail(
                f"reaches no other GPU over NVLink ({gpu.location})",
                expected="NVLink to every other GPU",
                fix=FABRIC_FIX,
                device=gpu.label,
            )
            broken = {pair: s for pair, s in broken.items() if gpu not in pair}
    for (one, other), code in broken.items():
        found.fail(
            f"{one.label} and {other.label}: no NVLink between them (status {code})",
            expected="NVLink to every other GPU",
            fix=FABRIC_FIX,
        )
