"""Services of the node, and what Slurm believes of it."""

from __future__ import annotations

import re
from typing import Annotated

from healthchecks.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.context import Ctx
from supervisor.core.setting import About

_CONFIG = ("show", "config")
_SLICES = ("sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice")


@check("services", tags={"preflight", "running"}, resource="command")
def services(
    ctx: Ctx,
    *,
    units: Annotated[
        tuple[str, ...], About(doc="systemd units that must be active, as slurmd.service.")
    ] = (),
) -> Result:
    """The services that the site requires are active.

    A unit whose control group has processes is active; of others systemd is asked. As NHC's
    check_ps_service and Meta's check_service.
    """
    if not units:
        raise Skip("no unit is required: name some (checks: {services: {units: [slurmd.service]}})")
    if not ctx.path("run/systemd/system").is_dir():
        raise Skip("systemd does not run here")
    names = [unit if "." in unit else f"{unit}.service" for unit in units]
    quiet = [name for name in names if not _has_processes(ctx, name)]
    found = Findings()
    if quiet:
        done = ctx.command("systemctl", "is-active", "--", *quiet, deadline_s=4.0)
        states = done.out.split()
        if len(states) != len(quiet):
            raise Unknown(done.why())
        for name, state in zip(quiet, states, strict=True):
            if state != "active":
                found.fail(
                    f"{name} is {state}",
                    expected="active",
                    fix=f"systemctl status {name}; systemctl restart {name}",
                    device=name,
                )
    return found.result(f"{len(names)} units are active")


def _has_processes(ctx: Ctx, unit: str) -> bool:
    for folder in _SLICES:
        for name in ("cgroup.events", "cgroup.procs"):
            text = ctx.maybe(f"{folder}/{unit}/{name}")
            if text is not None:
                return "populated 1" in text if name == "cgroup.events" else bool(text)
    return False


@check("slurm.memlock", tags={"preflight"})
def slurm_memlock(ctx: Ctx) -> Result:
    """slurmd may lock memory without limit, so that jobs may register it for RDMA.

    The hard limit of slurmd is the largest that a job can have (slurm.conf,
    PropagateResourceLimits); NCCL over InfiniBand fails with less. /proc/PID/limits.
    """
    if not ctx.names("sys/class/infiniband"):
        raise Skip("no RDMA device, so nothing needs locked memory")
    pid = _slurmd(ctx)
    if pid is None:
        raise Skip("slurmd does not run here")
    match = re.search(r"Max locked memory\s+(\S+)\s+(\S+)", ctx.text(f"proc/{pid}/limits"))
    if match is None:
        raise Unknown(f"/proc/{pid}/limits has no line of locked memory")
    found = Findings()
    if match[2] != "unlimited":
        found.fail(
            f"slurmd may lock {int(match[2]) / 2**10:.0f} KiB of memory",
            expected="unlimited",
            fix="LimitMEMLOCK=infinity in slurmd.service (systemctl edit slurmd), then restart it",
        )
    return found.result("slurmd may lock memory without limit")


def _slurmd(ctx: Ctx) -> str | None:
    """Its process id, from where that is cheap to tell; None where it does not run here."""
    import shutil

    kept = [ctx.maybe(place) for place in ("run/slurmd.pid", "run/slurm/slurmd.pid")]
    kept += [ctx.maybe(f"{folder}/slurmd.service/cgroup.procs") for folder in _SLICES]
    for pid in " ".join(text or "" for text in kept).split():
        if _comm(ctx, pid) == "slurmd":
            return pid
    if shutil.which("slurmd") is None:
        return None
    return next((p for p in ctx.names("proc") if p.isdigit() and _comm(ctx, p) == "slurmd"), None)


def _comm(ctx: Ctx, pid: str) -> str | None:
    try:
        return ctx.maybe(f"proc/{pid}/comm")
    except ProcessLookupError:
        return None  # it has just ended


@check("slurm.drift", tags={"preflight"}, resource="command", deadline_s=10.0)
def slurm_drift(
    ctx: Ctx,
    *,
    memory_percent: Annotated[
        float,
        About(doc="Memory that slurm.conf may leave out.", unit="%", least=0, most=100),
    ] = 10.0,
) -> Result:
    """What Slurm is told of the node is what the node has.

    `slurmd -C` (what slurmd finds) against `scontrol show node` (what slurm.conf says): sockets,
    cores, threads, memory; and the GPUs of Gres against those of the driver. A node that has less
    is drained by Slurm, one with more is not used whole. Does not apply where slurm.conf overrides
    what nodes have (SlurmdParameters=config_overrides).
    """
    import shutil

    if shutil.which("slurmd") is None or shutil.which("scontrol") is None:
        raise Skip("slurmd and scontrol are not installed here")
    if _slurmd(ctx) is None:
        raise Skip("slurmd does not run here")
    real = _fields(_out(ctx, "slurmd", "-C"))
    told = _fields(_out(ctx, "scontrol", "show", "node", ctx.node, "--oneliner"))
    found = Findings()
    fix = f"mend the line of {ctx.node} in slurm.conf or the node; scontrol reconfigure"
    try:
        for name, ours in (
            ("Sockets", int(real["Boards"]) * int(real["SocketsPerBoard"])),
            ("CoresPerSocket", int(real["CoresPerSocket"])),
            ("ThreadsPerCore", int(real["ThreadsPerCore"])),
        ):
            if int(told[name]) != ours:
                found.fail(
                    f"{name} is {told[name]} in slurm.conf and {ours} here",
                    expected="the same",
                    fix=fix,
                )
        have, use = int(real["RealMemory"]), int(told["RealMemory"])
    except (KeyError, ValueError) as error:
        raise Unknown(f"slurmd -C or scontrol show node printed something else: {error}") from None
    if use > have:
        found.fail(
            f"slurm.conf has {use} MiB of memory for this node, which has {have}",
            expected=f"RealMemory={have} or less",
            fix=fix,
        )
    elif use < have * (1 - memory_percent / 100):
        found.warn(
            f"slurm.conf has {use} MiB of memory for this node, which has {have}",
            expected=f"{have * (1 - memory_percent / 100):.0f} MiB or more",
            fix=fix,
        )
    _gpus(ctx, told, found, fix)
    result = found.result(f"as slurm.conf: {use} MiB, Gres {told.get('Gres', 'none')}")
    if result.status is not Status.OK and "config_overrides" in _out(ctx, "scontrol", *_CONFIG):
        raise Skip("slurm.conf overrides what its nodes have (config_overrides)")
    return result


def _gpus(ctx: Ctx, told: dict[str, str], found: Findings, fix: str) -> None:
    driver = len(ctx.names("proc/driver/nvidia/gpus"))
    gres = re.sub(r"\([^)]*\)", "", told.get("Gres", ""))
    counts = [g.rpartition(":")[2] for g in gres.split(",") if g.partition(":")[0] == "gpu"]
    slurm = sum(int(count) if count.isdigit() else 1 for count in counts)
    if slurm != driver:
        found.add(
            Status.FAIL if driver < slurm else Status.WARN,
            f"Gres has {slurm} GPUs and the driver {driver}",
            expected="the same",
            fix=f"superv check gpu.count; else {fix}",
        )


def _out(ctx: Ctx, *argv: str) -> str:
    done = ctx.command(*argv, deadline_s=4.0)
    if done.rc != 0:
        raise Unknown(done.why())
    return done.out


def _fields(text: str) -> dict[str, str]:
    """`Key=value` of Slurm's one-line forms."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z]\w*)=(\S*)", text))
