"""The NVLink fabric: every GPU is in it, and what manages its switches runs."""

from __future__ import annotations

from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import pci, ports
from healthchecks.sources.fabric import COMPLETED, FABRIC_FIX, STATES, fabric
from healthchecks.sources.nvml import Gpu, NvmlCallError, Unsupported, nvml_check, open_nvml
from supervisor.core.setting import About

BOOTING_S = 600.0  # Fabric Manager may take minutes to bring the fabric up


Lasts = Annotated[
    float,
    About(doc="How long it may start, or recover, before it fails.", unit="s", ge=0),
]


@nvml_check("fabric.state", tags={"preflight", "prolog", "running"})
def fabric_state(ctx: Ctx, *, lasts_s: Lasts = 60.0) -> Result:
    """Every GPU is registered with its NVLink fabric, and the fabric is healthy.

    State 2 that stays means that the fabric manager or NVLSM is down; CUDA then gives error 802.
    While Fabric Manager starts all GPUs pass through it together: that is not judged at the first
    look, nor within ten minutes of a boot. A route that is being recovered, or one GPU alone, is a
    WARN. What lasts fails.
    """
    nvml, found = open_nvml(ctx), Findings()
    absent: list[Gpu] = []
    starting: list[Gpu] = []
    late: list[tuple[Gpu, str, float]] = []  # what may pass, and how long it has lasted

    def judge(gpu: Gpu) -> None:
        at = fabric(nvml, gpu)
        if at.state == 0:
            absent.append(gpu)
            raise Unsupported
        wrong, passing = [*at.wrong], [*at.passing]
        if at.state != COMPLETED:
            starting.append(gpu)
            passing.append(f"fabric state {at.state} ({STATES.get(at.state, 'new')})")
        elif at.status:
            wrong.append(f"fabric status {at.status}")
        lasted_s = ctx.memory.lasted_s(f"passing:{gpu.key}", bool(passing))
        if wrong or passing:
            lasted_s = float("inf") if wrong else lasted_s
            late.append((gpu, f"{', '.join([*wrong, *passing])} ({gpu.location})", lasted_s))

    result = nvml.for_each_gpu(found, judge, fine="in the fabric", what="an NVLink fabric")
    together = len(starting) == nvml.count
    for gpu, seen, lasted_s in late:
        _may_pass(
            ctx,
            found,
            seen,
            lasted_s=lasted_s,
            fails=lasted_s >= lasts_s,
            quiet=together and not lasted_s,
            expected="fabric state 3 (completed), healthy",
            device=gpu.label,
        )
    for gpu in absent:
        found.fail(
            "is in no fabric; the other GPUs are",
            expected="fabric state 3 (completed)",
            fix=FABRIC_FIX,
            device=gpu.label,
        )
    return found.result(result.seen) if absent or late else result


def _may_pass(
    ctx: Ctx,
    found: Findings,
    seen: str,
    *,
    lasted_s: float,
    fails: bool,
    quiet: bool,
    expected: str,
    fix: str = FABRIC_FIX,
    device: str = "",
) -> None:
    """What is wrong where it lasts; in the first minutes of a boot, or `quiet`, not spoken of."""
    uptime = (ctx.maybe("proc/uptime") or "").split()
    booting = bool(uptime) and float(uptime[0]) < BOOTING_S and lasted_s < BOOTING_S
    if booting or (quiet and not fails):
        found.not_yet(f"{seen}: it may pass", expected=expected, fix=fix, device=device)
        return
    found.add(
        Status.FAIL if fails else Status.WARN, seen, expected=expected, fix=fix, device=device
    )


@check(
    "fabric.manager",
    tags={"preflight", "running"},
    resource="nvml",
    deadline_s=10.0,
    untested="no NVSwitch, no LPF: built against NVIDIA's Fabric Manager User Guide",
)
def fabric_manager(ctx: Ctx, *, lasts_s: Lasts = 60.0) -> Result:
    """Where this node owns its NVLink switches, their manager runs.

    It does where a ConnectX-7 management port (LPF) has SW_MNG in its vital product data (HGX B200;
    NVIDIA Fabric Manager User Guide), or an NVSwitch is on the bus (HGX H100 and before); else the
    host or another machine manages them, and fabric.state says whether that works. That CUDA starts
    (error 802) is the same fact, at more cost. One that is just being started fails once it lasts.
    """
    bridges, managing, hidden = _switches(ctx)
    if not bridges and not managing and not hidden:
        raise Skip("this node owns no NVLink switch: no NVSwitch, no management port (SW_MNG)")
    if not bridges and not managing:
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
    if managing:
        wanted["nvlsm"] = "nvlsm (of nvidia-fabricmanager)"
    for name, unit in wanted.items():
        absent = not any(process.startswith(name) for process in running)
        lasted_s = ctx.memory.lasted_s(name, absent)
        if absent:
            _may_pass(
                ctx,
                found,
                f"{unit} does not run",
                lasted_s=lasted_s,
                fails=lasted_s >= lasts_s,
                quiet=False,
                expected="running: this node owns its NVLink switches "
                f"({', '.join((managing or bridges)[:2])})",
                fix="systemctl restart nvidia-fabricmanager; it must be of the driver's version",
            )
    return found.result(f"{' and '.join(sorted(wanted.values()))} running")


def _switches(ctx: Ctx) -> tuple[list[str], list[str], list[str]]:
    """NVSwitches on the bus; management ports; ports whose role can't be read (without root)."""
    bridges = pci.nvswitches(ctx)
    managing, hidden = [], []
    for name in ctx.names(ports.SYS):
        try:
            if ports.manages_switches(ctx, f"{ports.SYS}/{name}/device"):
                managing.append(name)
        except PermissionError:
            hidden.append(name)
    return bridges, managing, hidden


def _complete(ctx: Ctx) -> bool:
    nvml = open_nvml(ctx)
    try:
        complete = [fabric(nvml, gpu).complete for gpu in nvml.gpus]
    except (NvmlCallError, Unsupported):
        return False
    return all(complete) and len(complete) == nvml.count


def _comm(ctx: Ctx, pid: str) -> str:
    try:
        return ctx.text(f"proc/{pid}/comm")
    except OSError:
        return ""  # it ended
