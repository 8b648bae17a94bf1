"""GPU errors that the driver wrote to the kernel's log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.xid_memory import STRIKES_S, TOGETHER_S, Trace, Traces, lasts
from supervisor.core.setting import About
from supervisor.host.terminal import date_time

_MAX_GPUS = 64
_NVIDIA = "0x10de"  # PCI vendor
# Whose the error is, or whose work it ended: the process is named. In others it is a bystander.
_OF_PROGRAMS = ("restart the application", "restart the application, once", "ignore unless alone")


@check("xid", tags={"preflight", "running"}, witness="nvml")
def xid(
    ctx: Ctx,
    *,
    window_h: Annotated[
        float, About(doc="How long an error of an application is shown.", unit="h", ge=0)
    ] = 24.0,
    repeats: Annotated[
        int,
        About(doc="Incidents on one GPU, and on no other, that are said to be so.", ge=2),
    ] = 3,
    ignore: Annotated[tuple[int, ...], About(doc="Codes that are not looked at.")] = (),
) -> Result:
    """No GPU or NVSwitch has an error in the kernel's log that is not cured.

    Actions from NVIDIA's Xid catalog; Xid 154 (the driver's recovery action) overrides them. An
    error that asks for a reset, a reboot or support stays FAIL in this boot, until the driver
    starts again, says that nothing is left to do (Xid 154, NVML's field 230), or another board is
    there: errors are kept by the GPU's UUID. Errors of applications (13, 31, 32, 69 …) are WARN
    however often they come: the catalog's word is RESTART_APP, and a program's fault follows its
    rank to the next node. A contained memory error (94) is WARN once; FAIL where it comes again
    within 28 days, or rows were remapped (63) more than once: arXiv 2605.09370 lost a node that
    way. 43 and 45 count only where nothing else is near. Errors of applications name the program,
    its number and, while it lives, its Slurm job.
    A line alone drains no node: NVML's checks see the fault too, or the GPU has left the PCI bus. A
    GPU that this boot never had is a WARN.
    """
    traces = Traces(ctx, window_h * 3600)
    found = Findings()
    since = ""
    try:
        look = traces.read()
    except Unknown as why:
        found.unmeasured(why, expected="a kernel log that can be read")
    else:
        since = f", which begins {date_time(look.begins)}" if look.begins is not None else ""
        if look.lost:
            found.warn(
                f"{look.lost} lines of the kernel's log were overwritten before they were read",
                expected="the log is read before it goes round",
                fix="look what floods the log (dmesg), or boot with a larger log_buf_len",
            )
    for trace in [*traces.all.values()]:
        if trace.code in ignore:
            del traces.all[trace.key]
    traces.settle()
    traces.keep()
    gpus = ctx.names("proc/driver/nvidia/gpus")
    if not gpus and not traces.all:
        raise Skip("no NVIDIA GPU has a driver here")
    names = {bdf.lower().rpartition(".")[0]: f"gpu{index}" for index, bdf in enumerate(gpus)}
    seen = _Seen(ctx, names)
    there = traces.present()
    if any(map(traces.unplaced, traces.all.values())):
        found.not_yet("errors of earlier boots: where these GPUs are now is not known yet")
    for trace in there:
        name = f"xid_{trace.code}"
        earlier = found.metrics[name].value if name in found.metrics else 0
        found.metric(name, earlier + trace.count)
        _judge(ctx, traces, trace, names.get(trace.device, trace.device), repeats, found, seen)
    count = sum(trace.count for trace in there)
    return found.result(
        f"{count} Xids, none of which needs anything now"
        if count
        else f"no Xid in the kernel's log{since}"
    )


class _Seen:
    """What else this boot has shown of the GPUs that the log names."""

    def __init__(self, ctx: Ctx, gpus: Iterable[str]) -> None:
        """`gpus`: the driver's, as 0000:3b:00."""
        self._ctx = ctx
        self._had = {*gpus, *(ctx.memory.get("gpus") or [])}
        ctx.memory.put("gpus", sorted(self._had)[:_MAX_GPUS])

    def had(self, device: str) -> bool:
        """Whether there is, or was in this boot, such a GPU; for a switch, and all: any GPU."""
        from healthchecks.sources.xid import DRIVER

        if device.startswith("nvswitch") or device == DRIVER:
            return bool(self._had)
        return device in self._had or self._on_bus(device)

    def left_the_bus(self, device: str) -> bool:
        """Whether a GPU that was there in this boot is on the PCI bus no more."""
        bus = self._ctx.path("sys/bus/pci/devices")
        return device in self._had and bus.is_dir() and not self._on_bus(device)

    def _on_bus(self, device: str) -> bool:
        vendor = self._ctx.maybe(f"sys/bus/pci/devices/{device}.0/vendor")
        return vendor == _NVIDIA


def _judge(
    ctx: Ctx,
    traces: Traces,
    trace: Trace,
    device: str,
    repeats: int,
    found: Findings,
    seen: _Seen,
) -> None:
    """What one trace means, together with the others."""
    from healthchecks.sources.xid import RULES, Act

    act = Act(trace.act)
    status = RULES[act].status
    if status is Status.OK or traces.cured(trace):
        return
    if act is Act.SOLO and not traces.alone(trace):
        return
    fix, more = trace.fix, ""
    if act is Act.APP and _suspect(traces.episodes(act), trace.device, repeats):
        # No failure: a program's fault follows its rank, and would condemn one node after another.
        more = ", again and again on this GPU and not on the others"
        fix = (
            "see whether it follows the rank to another GPU (the program's fault) or stays with "
            "this one: then superv exclude the node, and run dcgmi diag -r 3 on this GPU"
        )
    elif act is Act.CONTAINED:
        status, more, fix = _contained(ctx, traces, trace)
    if status is Status.FAIL and lasts(trace):
        word = traces.recovery(trace.device)
        if word is not None and word.recovery and word.last > trace.first - TOGETHER_S:
            fix = word.fix
        strikes = _strikes(ctx, trace)
        if strikes > 2:
            fix += f"; {strikes} boots in 28 days did not cure it: have the hardware replaced"
    if status is Status.FAIL and not seen.had(trace.device):
        status = Status.WARN
        more += ", not corroborated: this node had no such GPU in this boot"
    if status is not Status.OK:
        found.add(
            status,
            f"{trace.name} {trace.meaning} ({_where(trace, device)}){more}",
            expected="no such error" if status is Status.FAIL else "no Xid",
            fix=fix,
            device=device,
            corroborated=status is Status.FAIL and seen.left_the_bus(trace.device),
        )


def _contained(ctx: Ctx, traces: Traces, trace: Trace) -> tuple[Status, str, str]:
    """Xid 94: once is the application's; again, or with rows remapped again, is the GPU's."""
    from healthchecks.sources.xid import Act

    times = len(traces.episodes(Act.CONTAINED)[trace.device])
    remaps = len(traces.episodes(Act.REMAP).get(trace.device, []))
    if times < 2 and remaps < 2:
        old = trace.last < ctx.now - 86400.0
        return Status.OK if old else Status.WARN, "", trace.fix
    more = f", {times} incidents and {remaps} row remappings in 28 days"
    fix = (
        "drain the node, reset the GPU, and burn it in before it returns (superv accept); "
        "replace it where it comes again"
    )
    return Status.FAIL, more, fix


def _suspect(episodes: dict[str, list[float]], device: str, repeats: int) -> bool:
    """Whether one GPU has many incidents and every other one less than half of them."""
    mine = len(episodes[device])
    others = max((len(found) for gpu, found in episodes.items() if gpu != device), default=0)
    return mine >= repeats and 2 * others < mine


def _strikes(ctx: Ctx, trace: Trace) -> int:
    """In how many boots of the last 28 days the GPU had this code."""
    key = f"boots:{trace.board or trace.device} {trace.code}"
    boots = {
        boot: at for boot, at in (ctx.memory.get(key) or {}).items() if at > ctx.now - STRIKES_S
    }
    boots[ctx.boot_id] = trace.last
    ctx.memory.put(key, boots, lasting=True)
    return len(boots)


def _where(trace: Trace, device: str) -> str:
    address = f"{trace.device}, " if trace.device != device else ""
    times = f"{trace.count} times, last " if trace.count > 1 else ""
    who = f", by {trace.who}" if trace.who and trace.act in _OF_PROGRAMS else ""
    return f"{address}{times}{date_time(trace.last)}{who}"
