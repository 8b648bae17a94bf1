"""From job.yaml and site.yaml to what the engine's parts and the agents need. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import structs

from supervisor import hooks
from supervisor.channel import delivery, wire
from supervisor.config import Job, Site
from supervisor.config.groups import NodeGroup, narrowed
from supervisor.config.site import NODE_DIR
from supervisor.core.container import RUNTIMES, Container, Mount
from supervisor.core.setting import FOR_ALL_CHECKS, GROUPS, OWN_CHECKS, PORT_ROLES, REPAIRS
from supervisor.core.types import RunSpec
from supervisor.engine.effects import Setup
from supervisor.run.snapshot import Snapshot


def agent_argv() -> tuple[str, ...]:
    """The command of every node: this very interpreter, isolated from the user's settings."""
    return (sys.executable, "-I", "-m", "supervisor.agent")


def paths_of_0_1(job: Job, site: Site, run_id: str) -> tuple[str, str]:
    """Key file and agent's directory in allocations that a superv without private folders made."""
    place = site.node_dir
    if place == NODE_DIR:  # its default then
        place = Path("/tmp")  # noqa: S108 - where agents of 0.1 look
    base = f"{place}/superv-{os.getuid()}-{run_id}"
    return f"{base}.key", f"{base}.{{node}}" if job.on_this_machine else base


def wire_job(
    job: Job,
    site: Site,
    run_id: str,
    code: Snapshot | None,
    secrets: Mapping[str, str],
    repairs: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> wire.RankJob:
    """How agents start ranks. `secrets` are the values of the variables that come from files;
    `repairs` is what the fleet record knows of them.
    """
    trainer = job.trainer
    entry, env = trainer.entry(), dict(trainer.env)
    if code is not None:
        entry = tuple(code.word(word) for word in entry)
        env = {k: code.word(v) if k == "PYTHONPATH" else v for k, v in env.items()}
    if trainer.dump_dir is not None:
        env["SUPERV_DUMP_DIR"] = str(trainer.dump_dir)
    fresh = resumed = entry
    if job.checkpoints is not None and trainer.hook != "none":
        fields = hooks.ADAPTERS[trainer.hook].fields
        fresh = entry + _flags(fields("{save_dir}", ""))
        resumed = entry + _flags(fields("{save_dir}", "{resume_path}"))
    return wire.RankJob(
        run_id=run_id,
        name=job.name,
        python="" if trainer.command else trainer.python,
        fresh=fresh,
        resumed=resumed,
        entry=entry,
        preload=trainer.preload if _can_fork(job) else (),
        hook="" if trainer.hook == "none" else trainer.hook,
        workdir=str(trainer.workdir),
        env={**env, **secrets},
        secret=tuple(sorted(secrets)),
        ranks_per_node=trainer.ranks_per_node,
        step_pattern=job.progress.step,
        resumed_pattern=job.progress.resumed or "",
        rank_ports=(site.rank_ports.first, site.rank_ports.last),
        log_cap=site.log_cap_mb * 1_000_000,
        engine_lost_timeout_s=job.policy.engine_lost_timeout_s,
        code=code.digest if code is not None else "",
        path=code.path if code is not None else "",
        container=_container(job),
        health=_health(job, site, repairs),
        newer_than_0_1=True,
    )


def _can_fork(job: Job) -> bool:
    """Whether ranks can be forked where they are to run."""
    return job.container is None or RUNTIMES[job.container.runtime].keeps_descriptors


def _container(job: Job) -> Container | None:
    """What ranks run in, with the paths that superv hands to them."""
    wanted = job.container
    if wanted is None:
        return None
    own = [job.trainer.workdir, *([job.trainer.script.parent] if job.trainer.script else [])]
    own += [job.checkpoints.dir] if job.checkpoints is not None else []
    mounts = {mount.to: mount for mount in (Mount(path=str(p), to=str(p)) for p in own)}
    mounts |= {mount.to: mount for mount in wanted.mounts}  # who names one knows better
    return Container(
        runtime=wanted.runtime,
        image=wanted.image,
        mounts=tuple(mounts.values()),
        workdir=wanted.workdir or str(job.trainer.workdir),
    )


def _flags(fields: Mapping[str, object]) -> tuple[str, ...]:
    """What hooks of agents want that a superv before this one started: theirs set no fields."""
    found: list[str] = []
    for name, value in fields.items():
        if isinstance(value, bool):
            found.append(f"--checkpoint.{'' if value else 'no_'}{name}")
        else:
            found += [f"--checkpoint.{name}", str(value)]
    return tuple(found)


def _health(
    job: Job, site: Site, repairs: Mapping[str, Mapping[str, float]] = MappingProxyType({})
) -> wire.Health | None:
    """Which health checks agents run. A job's settings come before the site's."""
    plan = job.preflight
    if not plan.tags and not plan.running_s:
        return None
    sources = (_settings_from_trainer(job), site.checks, plan.checks)
    names = {name for source in sources for name in source}
    settings = {n: {k: v for s in sources for k, v in s.get(n, {}).items()} for n in names}
    for name, ours in plan.checks.items():
        settings[name] |= narrowed(site.checks.get(name, {}), ours)
    if roles := site.ports.patterns():
        settings[PORT_ROLES] = roles
    if site.groups:
        settings[GROUPS] = {"groups": [_group(group, plan.checks) for group in site.groups]}
    if repairs:
        settings[REPAIRS] = dict(repairs)
    if site.own_checks:
        from healthchecks.frame import own

        settings[OWN_CHECKS] = own.documents(site.own_checks)
    return wire.Health(
        tags=plan.tags, running_s=plan.running_s, deadline_s=plan.deadline_s, settings=settings
    )


def with_repairs(job: wire.RankJob, repairs: Mapping[str, Mapping[str, float]]) -> wire.RankJob:
    """The same, with checks that know of these repairs (by node, and by check)."""
    if job.health is None or _repairs_of(job) == repairs:
        return job
    settings = {**job.health.settings, REPAIRS: {node: dict(of) for node, of in repairs.items()}}
    return structs.replace(job, health=structs.replace(job.health, settings=settings))


def repaired_since(before: wire.RankJob, after: wire.RankJob) -> set[str]:
    """The nodes of which the checks know another repair."""
    old, new = _repairs_of(before), _repairs_of(after)
    return {node for node in old.keys() | new.keys() if old.get(node) != new.get(node)}


def _repairs_of(job: wire.RankJob) -> Mapping[str, Any]:
    return job.health.settings.get(REPAIRS, {}) if job.health is not None else {}


def _group(group: NodeGroup, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A group of nodes as it is sent: the job's settings come before its own, too, and what
    either leaves out is left out there.
    """
    found = asdict(group)
    for name, values in found["checks"].items():
        ours = {key: value for key, value in own.get(name, {}).items() if key in values}
        found["checks"][name] = {**values, **ours, **narrowed(values, ours)}
    return found


def suites(job: Job, site: Site) -> dict[str, tuple[str, ...]]:
    """The names of the checks that agents run before ranks and beside them.

    Raises UserError for a suite, a check or a setting of one that does not exist.
    """
    from healthchecks.frame import own
    from healthchecks.frame.registry import named, select, settings_for
    from healthchecks.frame.settings import checked, of_site

    plan = _health(job, site)
    if plan is None:
        return {}
    own.register(plan.settings.get(OWN_CHECKS, {}))
    of_site(site)
    checked(job.preflight.checks, "preflight.checks")
    for name in plan.settings.keys() - FOR_ALL_CHECKS:
        settings_for(named(name, "checks of the job or the site"), plan.settings[name])
    found = {}
    if plan.tags:
        found["before"] = tuple(c.name for c in select(tags=plan.tags))
    if plan.running_s:
        found["beside"] = tuple(c.name for c in select(tags=("running",)))
    return found


def _settings_from_trainer(job: Job) -> dict[str, dict[str, Any]]:
    """What checks can know from the rest of job.yaml: whose NCCL, how many ranks, which network."""
    trainer = job.trainer
    found: dict[str, dict[str, Any]] = {
        "cpu.binding": {"ranks_per_node": trainer.ranks_per_node},
    }
    if trainer.python.startswith("/") and not trainer.command and job.container is None:
        found["cuda.libs"] = {"python": trainer.python}
    if interfaces := trainer.env.get("NCCL_SOCKET_IFNAME"):
        found["nccl.interfaces"] = {"socket_ifname": interfaces}
    return found


def run_spec(job: Job, run_id: str, first_attempt: int = 1) -> RunSpec:
    return RunSpec(
        name=job.name,
        run_id=run_id,
        nodes=job.nodes,
        spares=job.spares,
        ranks_per_node=job.trainer.ranks_per_node,
        checkpoint_dir=str(job.checkpoints.dir) if job.checkpoints else None,
        policy=job.policy,
        first_attempt=first_attempt,
        keep=job.checkpoints.keep if job.checkpoints else 0,
        keep_every=job.checkpoints.keep_every if job.checkpoints else 0,
        preflight=bool(job.preflight.tags),
        shows_work=job.trainer.hook != "none" or job.checkpoints is not None,
    )


def code_question(job: Job, site: Site) -> dict[str, Any]:
    """What supervisor.run.snapshot needs to know to find the trainer's code."""
    trainer = job.trainer
    data = [site.state_dir, site.node_dir, *([job.checkpoints.dir] if job.checkpoints else [])]
    return {
        "entry": trainer.entry(),
        "script": str(trainer.script or ""),
        "module": trainer.module is not None,
        "workdir": str(trainer.workdir),
        "pythonpath": trainer.env.get("PYTHONPATH", ""),
        "leave": [str(path) for path in data],
    }


def setup_of(
    job: Job, site: Site, run_id: str, secret: str, code: tuple[Path, Snapshot] | None = None
) -> Setup:
    return Setup(
        code=(code[0], code[1].digest) if code else None,
        slurm=dict(job.slurm),
        agent_argv=agent_argv(),
        folder=lambda job_name: delivery.folder(site.node_dir, delivery.nonce(secret, job_name)),
        paths_of_0_1=paths_of_0_1(job, site, run_id),
        required=job.checkpoints.required if job.checkpoints else (),
    )
