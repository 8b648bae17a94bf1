"""What a launch would do, as a value that can be printed. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launchers import launcher_of
from supervisor import hooks
from supervisor.channel import delivery, wire
from supervisor.config import Job, Site
from supervisor.config.secret_file import read_secrets
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.ports import LaunchSpec, Plan
from supervisor.core.secret import HIDDEN, looks_secret
from supervisor.engine.wiring import code_question, run_spec, setup_of, wire_job
from supervisor.run import snapshot
from supervisor.run.snapshot import Snapshot

NOBODY = "0" * 12  # stands for a run's id that is not made yet


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What `superv launch` would do, exactly."""

    plan: Plan
    spec: LaunchSpec
    job: wire.RankJob
    fields: Mapping[str, Mapping[str, object]]  # when → what the hook sets in its trainer's config
    env: Mapping[str, str]  # as it is shown: secrets are not
    code: Snapshot | None


def dry_run(job: Job, site: Site) -> DryRun:
    """Render everything; touches nothing. The run's id is random, here it is zeros."""
    code = snapshot.take(code_question(job, site), None) if job.trainer.snapshot else None
    secrets = read_secrets(job.trainer.secrets)  # raises what the launch would
    would, spec = plan(job, site)
    return DryRun(
        plan=would,
        spec=spec,
        job=wire_job(job, site, NOBODY, code, secrets),
        fields=_fields(job),
        env=_shown(job),
        code=code,
    )


def _fields(job: Job) -> dict[str, Mapping[str, object]]:
    if job.checkpoints is None or job.trainer.hook == "none":
        return {}
    fields = hooks.ADAPTERS[job.trainer.hook].fields
    fresh, resumed = fields("{save_dir}", ""), fields("{save_dir}", "{resume_path}")
    more = {name: value for name, value in resumed.items() if name not in fresh}
    return {"always": fresh, "and when it resumes": more}


def _shown(job: Job) -> dict[str, str]:
    """The variables that ranks get, without secrets."""
    trainer = job.trainer
    plain = {n: HIDDEN if looks_secret(n, v) else v for n, v in trainer.env.items()}
    if trainer.dump_dir is not None:
        plain["SUPERV_DUMP_DIR"] = str(trainer.dump_dir)
    return plain | {name: f"{HIDDEN} from {path}" for name, path in trainer.secrets.items()}


def plan(job: Job, site: Site) -> tuple[Plan, LaunchSpec]:
    """The first submission of a run, with zeros for what is random. Raises UserError."""
    first = ev.Launched(at=0.0, spec=run_spec(job, NOBODY))
    _, (submit, *_) = step(None, first)
    assert isinstance(submit, act.Submit)
    setup = setup_of(job, site, NOBODY, secret="")
    spec = LaunchSpec(
        job_name=submit.job_name,
        nodes=submit.nodes,
        slurm=setup.slurm,
        agent_argv=setup.agent_argv,
        folder=delivery.folder(site.node_dir, "0" * 20),
    )
    return launcher_of(job, site).plan(spec), spec
