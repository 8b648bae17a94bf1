"""The NCCL variables of a job: what is wrong with them before any node has been seen."""

from __future__ import annotations

from healthchecks.frame.report import Finding
from ncclconf.catalogue import version
from ncclconf.environment import Environment, of_mapping
from ncclconf.facts import Facts
from ncclconf.lint import LintFinding, Severity, lint
from supervisor.config import Job
from supervisor.doctor.finding import fail, ok, warn

CHECK = "nccl"
_GPU_OPTIONS = ("gres", "gpus-per-node")


def look(job: Job, *, unset: bool = False) -> list[Finding]:
    """Findings about what trainer.env sets; with `unset`, also about what it leaves out, where the
    job asks for GPUs."""
    if job.nccl.lint == "off":
        return []
    env = Environment.of(of_mapping(job.trainer.env, str(job.path)))
    on_gpus = any("gpu" in f"{key} {job.slurm[key]}" for key in _GPU_OPTIONS if key in job.slurm)
    facts = Facts(
        nccl=version(job.nccl.release), nodes=job.nodes, gpus="a GPU" if on_gpus else None
    )
    found = []
    for one in lint(env, facts):
        is_set = any(name in env.settings for name in one.hit.names)
        if is_set or not one.hit.names or (unset and on_gpus and one.severity is Severity.WARNING):
            found.append(_finding(one, refuses=job.nccl.lint == "refuse"))
    if not found and unset and env.settings:
        return [ok(CHECK, f"{len(env.settings)} variables of NCCL and its like, none of them odd")]
    return found


def _finding(one: LintFinding, *, refuses: bool) -> Finding:
    seen = f"trainer.env: {one.hit.seen}: {one.rule.why}"
    if one.severity is not Severity.ERROR or not refuses:
        return warn(CHECK, seen, one.fix)
    return fail(CHECK, seen, f"{one.fix}; nccl: {{lint: tell}} launches all the same")
