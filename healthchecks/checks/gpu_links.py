"""NVLink: the fabric and its manager, links and their errors, and which GPUs reach each other."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated

from healthchecks.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.context import Ctx
from healthchecks.nvml import Gpu, Nvml, Trouble, Unsupported, nvml_check, on_bus
from supervisor.core.setting import About

COMPLETED = 3  # nvmlGpuFabricState_t
_STATES = {0: "not supported", 1: "not started", 2: "in progress", 3: "completed"}
_SUMMARIES = {2: "unhealthy", 3: "limited capacity"}
# Health mask (nvmlGpuFabricInfo_v3): shift, width, what is wrong by value
_MASK = {
    (0, 0x3): {1: "degraded bandwidth"},
    (2, 0x3): {1: "a route is being recovered"},
    (4, 0x3): {1: "a route is unhealthy"},
    (6, 0x3): {1: "recovering from an access timeout"},
    (8, 0xF): {
        2: "wrong system GUID",
        3: "wrong chassis serial number",
        4: "no partition",
        5: "insufficient NVLinks",
        6: "incompatible GPU firmware",
        7: "invalid location",
        8: "invalid GPU state",
    },
}
LINK_SPEED = 164  # NVML_FI_DEV_NVLINK_GET_SPEED, MB/s
MOST_LINKS = 18
NVLINK = 2  # nvmlGpuP2PCapsIndex_t
_KNOWN = {"B200": (18, 53125)}  # links and MB/s: NVLink 5 has 53.125 GB/s a link and direction
_ERRORS = {
    208: "receive errors",
    211: "link integrity errors",
    214: "failed recoveries",
    213: "recoveries",
    215: "recovery events",
}
_RECOVERED = (213, 215)
_BERS = {220: "effective_ber", 222: "symbol_ber"}
FABRIC_FIX = (
    "look at the fabric manager and NVLSM (journalctl -u nvidia-fabricmanager) where this node "
    "runs them, else ask the host's; then reset all GPUs of the node, or reboot it"
)


@nvml_check("fabric.state", tags={"preflight", "prolog", "running"})
def fabric_state(ctx: Ctx) -> Result:
    """Every GPU is registered with its NVLink fabric, and the fabric is healthy.

    State 2 that stays means that the fabric manager or NVLSM is down; CUDA then gives error 802.
    """
    nvml, found = ctx.nvml(), Findings()
    absent: list[Gpu] = []

    def look(gpu: Gpu) -> None:
        state, status, wrong = _fabric(nvml, gpu)
        if state == 0:
            absent.append(gpu)
            raise Unsupported
        if state != COMPLETED:
            wrong.insert(0, f"fabric state {state} ({_STATES.get(state, 'new')})")
        if status:
            wrong.append(f"fabric status {status}")
        if wrong:
            found.fail(
                f"{', '.join(wrong)} ({gpu.place})",
                expected="fabric state 3 (completed), healthy",
                fix=FABRIC_FIX,
                device=gpu.label,
            )

    result = nvml.survey(found, look, fine="in the fabric", what="an NVLink fabric")
    for gpu in absent:
        found.fail(
            "is in no fabric; the other GPUs are",
            expected="fabric state 3 (completed)",
            fix=FABRIC_FIX,
            device=gpu.label,
        )
    return found.result(result.seen) if absent else result


def _fabric(nvml: Nvml, gpu: Gpu) -> tuple[int, int, list[str]]:
    """State, status, and what the health mask and summary complain of."""
    import pynvml  # type: ignore[import-untyped]

    for name in ("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfoV_t"):
        make = getattr(pynvml, name, None)
        if make is None:
            continue
        try:
            info = nvml.fill(gpu, "nvmlDeviceGetGpuFabricInfoV", make())
        except Unsupported:
            continue  # a driver older than this version of the struct
        wrong = []
        for (shift, width), texts in _MASK.items():
            bad = texts.get(info.healthMask >> shift & width)
            if bad:
                wrong.append(bad)
        summary = _SUMMARIES.get(getattr(info, "healthSummary", 0))
        if summary:
            wrong.append(f"summary: {summary}")
        return int(info.state), int(info.status), wrong
    raise Unsupported


@check(
    "fabric.manager",
    tags={"preflight", "running"},
    resource="nvml",
    deadline_s=10.0,
    untried="no NVSwitch, no LPF: built against NVIDIA's Fabric Manager User Guide",
)
def fabric_manager(ctx: Ctx) -> Result:
    """Where this node owns its NVLink switches, their manager runs.

    It does where a ConnectX-7 management port (LPF) has SW_MNG in its vital product data (HGX B200;
    NVIDIA Fabric Manager User Guide), or an NVSwitch is on the bus (HGX H100 and before); else the
    host or another machine manages them, and fabric.state says whether that works. That CUDA starts
    (error 802) is the same fact, at more cost.
    """
    bridges, ports, hidden = _switches(ctx)
    if not bridges and not ports and not hidden:
        raise Skip("this node owns no NVLink switch: no NVSwitch, no management port (SW_MNG)")
    if not bridges and not ports:
        if _complete(ctx):
            return Findings().result(
                "the fabric is complete on all GPUs; who manages it only root can read "
                f"(/sys/class/infiniband/{hidden[0]}/device/vpd)"
            )
        raise Unknown(
            f"only root can read /sys/class/infiniband/{hidden[0]}/device/vpd, which tells whether "
            "this node owns NVLink switches; the fabric is not complete"
        )
    running = {
        name
        for pid in ctx.names("proc")
        if pid.isdigit()
        for name in [_comm(ctx, pid)]
        if name.startswith(("nv-fabricmanage", "nvlsm"))  # comm has 15 characters
    }
    found = Findings()
    wanted = {"nv-fabricmanage": "nvidia-fabricmanager"}
    if ports:
        wanted["nvlsm"] = "nvlsm (of nvidia-fabricmanager)"
    for name, unit in wanted.items():
        if not any(process.startswith(name) for process in running):
            found.fail(
                f"{unit} does not run",
                expected="running: this node owns its NVLink switches "
                f"({', '.join((ports or bridges)[:2])})",
                fix="systemctl restart nvidia-fabricmanager; it must be of the driver's version",
            )
    return found.result(f"{' and '.join(sorted(wanted.values()))} running")


def _switches(ctx: Ctx) -> tuple[list[str], list[str], list[str]]:
    """NVSwitches on the bus; management ports; ports whose role can't be read (without root)."""
    bridges = []
    for bdf in ctx.names("sys/bus/pci/devices"):
        at = f"sys/bus/pci/devices/{bdf}"
        if ctx.text(f"{at}/vendor") == "0x10de" and ctx.text(f"{at}/class")[:6] == "0x0680":
            bridges.append(bdf)
    ports, hidden = [], []
    for name in ctx.names("sys/class/infiniband"):
        path = ctx.path(f"sys/class/infiniband/{name}/device/vpd")
        ctx.doing(f"read {path}")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except PermissionError:
            hidden.append(name)
            continue
        if b"SW_MNG" in data:
            ports.append(name)
    return bridges, ports, hidden


def _complete(ctx: Ctx) -> bool:
    nvml = ctx.nvml()
    try:
        states = [_fabric(nvml, gpu) for gpu in nvml.gpus]
    except (Trouble, Unsupported):
        return False
    complete = all(state == COMPLETED and not bad for state, _, bad in states)
    return complete and len(states) == nvml.count


def _comm(ctx: Ctx, pid: str) -> str:
    try:
        return ctx.text(f"proc/{pid}/comm")
    except OSError:
        return ""  # it ended


@nvml_check("nvlink.links", tags={"preflight", "running"}, cohort=Status.FAIL)
def nvlink_links(
    ctx: Ctx,
    *,
    links: Annotated[
        int, About(doc="Active links of a GPU.", least=0, default="18 for B200; else all it has")
    ] = 0,
    mbps: Annotated[
        int,
        About(
            doc="Speed of a link.",
            unit="MB/s",
            least=0,
            default="53125 for B200; else what most links have",
        ),
    ] = 0,
) -> Result:
    """All NVLinks of every GPU are up, at full speed."""
    nvml, found = ctx.nvml(), Findings()
    active: dict[str, list[int]] = {}
    down: dict[str, list[int]] = {}
    speeds: dict[str, dict[int, int]] = {}
    asked: dict[str, Gpu] = {}

    def look(gpu: Gpu) -> None:
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

    result = nvml.survey(found, look, fine="", what="NVLink")
    unconnected = not any(active.values()) and len(asked) == nvml.count
    if unconnected and not any(_in_fabric(nvml, gpu) for gpu in nvml.gpus):
        raise Skip("no NVLink is connected (PCIe cards without bridges)")
    most = max((len(up) for up in active.values()), default=0)
    every = [s for by_link in speeds.values() for s in by_link.values()]
    for label, gpu in asked.items():
        known = next((v for name, v in _KNOWN.items() if name in gpu.name), (0, 0))
        wanted = links or known[0] or max(most, len(active[label]) + len(down[label]))
        if len(active[label]) < wanted:
            which = f"; down: {', '.join(map(str, down[label]))}" if down[label] else ""
            found.fail(
                f"{len(active[label])} of {wanted} NVLinks are active{which} ({gpu.place})",
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
                f"{', '.join(str(s) for s in sorted(set(slow.values())))} MB/s ({gpu.place})",
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
    for link in range(MOST_LINKS):
        try:
            states[link] = bool(nvml.ask(gpu, "nvmlDeviceGetNvLinkState", link))
        except Unsupported:
            continue
        except Trouble as error:
            if error.code != 2:  # INVALID_ARGUMENT: it has no such link
                raise
    return states


def _in_fabric(nvml: Nvml, gpu: Gpu) -> bool:
    try:
        return _fabric(nvml, gpu)[0] != 0
    except (Trouble, Unsupported):
        return False


@nvml_check("nvlink.errors", tags={"preflight", "running"})
def nvlink_errors(
    ctx: Ctx,
    *,
    fail_looks: Annotated[
        int, About(doc="Looks with recovered links, of the last 30, to fail above.", least=1)
    ] = 15,
) -> Result:
    """NVLink error counters stand still.

    One receive or integrity error, or one failed recovery, fails (DCGM). Recoveries that worked
    warn, and fail in more than 15 of 30 looks (NVIDIA resiliency extension). Bit error rates are
    measured, not judged.
    """
    nvml, found = ctx.nvml(), Findings()
    first: list[str] = []

    def look(gpu: Gpu) -> None:
        counts: dict[str, list[int]] = {}
        worst_ber: dict[int, float] = {}
        for link in range(MOST_LINKS):
            values = nvml.fields(gpu, [*_ERRORS, *_BERS], link)
            counts[str(link)] = [int(values.get(n, -1)) for n in _ERRORS]
            for number in _BERS:
                if number in values:
                    rate = _ber(int(values[number]))
                    worst_ber[number] = max(rate, worst_ber.get(number, 0.0))
        if all(value < 0 for link in counts.values() for value in link):
            raise Unsupported
        for number, rate in worst_ber.items():
            found.metric(f"{gpu.label}.{_BERS[number]}", rate)
        earlier = ctx.memory.get(gpu.key)
        ctx.memory.put(gpu.key, counts)
        if earlier is None:
            first.append(gpu.label)
            return
        _grown(ctx, found, gpu, earlier, counts, fail_looks)

    result = nvml.survey(found, look, fine="no new NVLink errors", what="NVLink's error counters")
    if result.status is Status.OK and first:
        return found.result(f"{len(nvml.gpus)} GPUs: first look: no rate yet")
    return result


def _grown(
    ctx: Ctx,
    found: Findings,
    gpu: Gpu,
    earlier: dict[str, list[int]],
    counts: dict[str, list[int]],
    fail_looks: int,
) -> None:
    """Compare two looks, by link; a count that fell was reset and says nothing."""
    recovered = False
    for position, (number, text) in enumerate(_ERRORS.items()):
        grown = {
            link: now[position] - earlier.get(link, now)[position]
            for link, now in counts.items()
            if now[position] > earlier.get(link, now)[position] >= 0
        }
        found.metric(f"{gpu.label}.{text.replace(' ', '_')}", sum(grown.values()))
        if not grown:
            continue
        seen = f"{sum(grown.values())} new {text} on NVLinks {', '.join(grown)} ({gpu.place})"
        if number in _RECOVERED:
            recovered = True
            found.warn(
                seen,
                expected="no new errors",
                fix="watch this node; NVLinks that recover again and again fail",
                device=gpu.label,
            )
        else:
            found.fail(
                seen,
                expected="no new errors",
                fix="end the job, reset all GPUs of the node; if it comes back, replace GPU or "
                "baseboard",
                device=gpu.label,
            )
    last = [*(ctx.memory.get(f"{gpu.key}.recovered") or []), recovered][-30:]
    ctx.memory.put(f"{gpu.key}.recovered", last)
    if sum(last) > fail_looks:
        found.fail(
            f"NVLinks recovered in {sum(last)} of {len(last)} looks ({gpu.place})",
            expected=f"in at most {fail_looks}",
            fix="take the node out; replace GPU or baseboard",
            device=gpu.label,
        )


def _ber(value: int) -> float:
    """A bit error rate of NVML: exponent in bits 0-7, mantissa in bits 8-11 (NVML_NVLINK_BER_*)."""
    return float((value >> 8 & 0xF) * 10.0 ** -(value & 0xFF))


@nvml_check("p2p", tags={"preflight"})
def p2p(ctx: Ctx) -> Result:
    """Every GPU reaches every other over NVLink. As in leptonai/gpud."""
    nvml, found = ctx.nvml(), Findings()
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
        except Trouble as error:
            nvml.report(found, one, error)
            silent.add(one.index)
    if not status and not silent:
        raise Skip("the driver does not say which GPUs are connected by NVLink")
    connected = any(code == 0 for code in status.values())
    if not connected and not silent and not any(_in_fabric(nvml, gpu) for gpu in nvml.gpus):
        raise Skip("the GPUs are not connected by NVLink")
    _unreached(nvml, found, status)
    for gone in lost:
        nvml.leave_out(found, gone)
    return found.result(f"{len(status)} pairs of GPUs reach each other over NVLink")


def _unreached(nvml: Nvml, found: Findings, status: dict[tuple[Gpu, Gpu], int]) -> None:
    """A GPU that reaches none is one finding; else each pair is one."""
    broken = {pair: s for pair, s in status.items() if s}
    for gpu in nvml.gpus:
        own = [pair for pair in status if gpu in pair]
        if own and all(pair in broken for pair in own):
            found.fail(
                f"reaches no other GPU over NVLink ({gpu.place})",
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
