"""Services of the node, and what Slurm believes of it."""

from __future__ import annotations

import re
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources.slurmd import SLICES, limit, slurmd_pid
from supervisor.core.limits import MEMLOCK_FIX, memlock_problem
from supervisor.core.setting import About

_CONFIG = ("show", "config")
# slurm_conf.c of 20.11 to 26.05, where no file is there, and no server gives one.
_NO_CLUSTER = "Could not establish a configuration source"
_PASSING = ("activating", "reloading", "deactivating", "refreshing", "maintenance")  # systemctl(1)


@check("services", tags={"preflight", "running"}, resource="command")
def services(
    ctx: Ctx,
    *,
    units: Annotated[
        tuple[str, ...], About(doc="systemd units that must be active, as slurmd.service.")
    ] = (),
    lasts_s: Annotated[
        float, About(doc="How long a unit may start, stop or reload.", unit="s", ge=0)
    ] = 60.0,
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
            lasted_s = ctx.memory.lasted_s(name, state in _PASSING)
            if state != "active":
                found.add(
                    Status.WARN if state in _PASSING and lasted_s < lasts_s else Status.FAIL,
                    f"{name} is {state}",
                    expected="active",
                    fix=f"systemctl status {name}; systemctl restart {name}",
                    device=name,
                )
    return found.result(f"{len(names)} units are active")


def _has_processes(ctx: Ctx, unit: str) -> bool:
    for folder in SLICES:
        for name in ("cgroup.events", "cgroup.procs"):
            text = ctx.maybe(f"{folder}/{unit}/{name}")
            if text is not None:
                return "populated 1" in text if name == "cgroup.events" else bool(text)
    return False


@check("slurm.memlock", tags={"preflight"})
def slurm_memlock(ctx: Ctx) -> Result:
    """slurmd may lock memory without limit, so that jobs may register it for RDMA.

    The hard limit of slurmd is the largest that a job can have (slurm.conf,
    PropagateResourceLimits); NCCL over InfiniBand fails with less. /proc/PID/limits. What a step
    really got is judged by nccl.limits.
    """
    if not ctx.names("sys/class/infiniband"):
        raise Skip("no RDMA device, so nothing needs locked memory")
    pid = slurmd_pid(ctx)
    if pid is None:
        raise Skip("slurmd does not run here")
    most = limit(ctx.text(f"proc/{pid}/limits"), "Max locked memory", hard=True)
    if most is None:
        raise Unknown(f"/proc/{pid}/limits has no line of locked memory")
    found = Findings()
    if problem := memlock_problem("slurmd", most, rdma=True):
        found.fail(problem, expected="unlimited", fix=MEMLOCK_FIX)
    return found.result("slurmd may lock memory without limit")


@check("slurm.drift", tags={"preflight"}, resource="command", deadline_s=10.0)
def slurm_drift(
    ctx: Ctx,
    *,
    memory_percent: Annotated[
        float,
        About(doc="Memory that slurm.conf may leave out.", unit="%", ge=0, le=100),
    ] = 10.0,
) -> Result:
    """slurm.conf describes the node as it is.

    `slurmd -C` (what slurmd finds) against `scontrol show node` (what slurm.conf says): sockets,
    cores, threads, memory; and the GPUs of Gres against those of the driver. A node that has less
    is drained by Slurm, one with more is not used whole. Does not apply where there is no
    slurm.conf at all, nor where it overrides what nodes have (SlurmdParameters=config_overrides).
    """
    import shutil

    if shutil.which("slurmd") is None or shutil.which("scontrol") is None:
        raise Skip("slurmd and scontrol are not installed here")
    if slurmd_pid(ctx) is None:
        raise Skip("slurmd does not run here")
    real = _fields(_out(ctx, "slurmd", "-C"))
    configured = _fields(_out(ctx, "scontrol", "show", "node", ctx.node, "--oneliner"))
    found = Findings()
    fix = f"fix the line of {ctx.node} in slurm.conf or the node; scontrol reconfigure"
    try:
        ours = {
            "Sockets": int(real["Boards"]) * int(real["SocketsPerBoard"]),
            "CoresPerSocket": int(real["CoresPerSocket"]),
            "ThreadsPerCore": int(real["ThreadsPerCore"]),
        }
        theirs = {name: int(configured[name]) for name in ours}
        differ = [name for name in ours if theirs[name] != ours[name]]
        cores = [d["Sockets"] * d["CoresPerSocket"] for d in (ours, theirs)]
        if "Sockets" in differ and len({*cores}) == 1 and _sockets_are_others(ctx):
            differ = [name for name in differ if name == "ThreadsPerCore"]
        for name in differ:
            found.fail(
                f"{name} is {theirs[name]} in slurm.conf and {ours[name]} here",
                expected="the same",
                fix=fix,
            )
        have, use = int(real["RealMemory"]), int(configured["RealMemory"])
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
    _gpus(ctx, configured, found, fix)
    result = found.result(f"as slurm.conf: {use} MiB, Gres {configured.get('Gres', 'none')}")
    if result.status is not Status.OK and "config_overrides" in _out(ctx, "scontrol", *_CONFIG):
        raise Skip("slurm.conf overrides what its nodes have (config_overrides)")
    return result


def _sockets_are_others(ctx: Ctx) -> bool:
    """Whether slurm.conf takes caches or NUMA nodes for sockets (SlurmdParameters)."""
    config = _out(ctx, "scontrol", *_CONFIG)
    return "l3cache_as_socket" in config or "numa_node_as_socket" in config


def _gpus(ctx: Ctx, configured: dict[str, str], found: Findings, fix: str) -> None:
    driver = len(ctx.names("proc/driver/nvidia/gpus"))
    gres = re.sub(r"\([^)]*\)", "", configured.get("Gres", ""))
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
    if done.rc != 0 and _NO_CLUSTER in done.err:
        raise Skip("there is no slurm.conf here: this machine belongs to no cluster")
    if done.rc != 0:
        raise Unknown(done.why())
    return done.out


# Slurm prints these last, and people write anything into them (src/api/node_info.c).
_FREE_TEXT = re.compile(r"\s(?:Reason|Comment|Extra)=")


def _fields(text: str) -> dict[str, str]:
    """`Key=value` of Slurm's one-line forms, without what people wrote."""
    found: dict[str, str] = {}
    for name, value in re.findall(r"(?:^|\s)([A-Za-z]\w*)=(\S*)", _FREE_TEXT.split(text)[0]):
        found.setdefault(name, value)
    return found
