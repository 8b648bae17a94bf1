"""What a person's launch looks at before a queue is waited for: what ranks need, in seconds.

Nothing is imported and nothing changed. Storage and the trainer's interpreter are asked by children
with a deadline; who does not answer stops nobody. A failure (FAIL) is sure to fail on the nodes
too: what is missing here lies on storage that they share, or the run's nodes are this machine.
"""

from __future__ import annotations

from healthchecks.frame.check import Status
from healthchecks.frame.report import Finding
from launchers.slurm import Slurm
from launchers.slurm_answers import AWAY, AwayError
from supervisor.config import Job
from supervisor.core.container import RUNTIMES
from supervisor.core.errors import SeveralError, TransientError, UserError
from supervisor.doctor import arguments, modules, nccl_variables, notify_programs, rank_zero
from supervisor.doctor.files import SeenFiles, ask, hangs, judge, why
from supervisor.doctor.finding import fail

LOOK_S = 10.0
SLURM_S = 5.0


async def look(job: Job, *, deadline_s: float = LOOK_S) -> list[Finding]:
    """What is wrong, or could not be looked at; empty where nothing is."""
    trainer = job.trainer
    wanted = [str(trainer.workdir), *(str(path) for _, path, _ in arguments.named_files(job))]
    if trainer.script:
        wanted.append(str(trainer.script))
    program = program_of(job)
    if "/" in program:
        wanted.append(program)
    wanted += _in_container(job) + notify_programs.paths(job)
    seen = await ask({"paths": wanted, "script": str(trainer.script or "")}, deadline_s)
    found = [hangs(seen.hangs, deadline_s)] if seen.hangs else []
    found += _workdir(job, seen) + _program(job, program, seen) + _script(job, seen)
    found += _container(job, seen)
    found += arguments.named(job, seen) + arguments.options(job, seen)
    found += nccl_variables.look(job) + notify_programs.look(job, seen)
    here = seen.path(str(trainer.workdir))
    inside = job.container is not None  # nothing of the image can be imported here
    if (
        not inside
        and not trainer.command
        and not seen.hangs
        and not any(f.check == "trainer" for f in found)
    ):
        cwd = str(trainer.workdir) if here and here["enter"] else "/"
        found += await modules.look(job, cwd, deadline_s)
    return found


async def slurm_is_here(job: Job) -> list[Finding]:
    """Whether this machine belongs to a Slurm cluster. One that does not answer is waited for."""
    if not job.on_slurm:
        return []
    try:
        await Slurm(deadline_s=SLURM_S).run("scontrol", "show", "config")
    except AwayError as error:
        if error.cause is AWAY[0]:
            text = f"launcher: {job.launcher}: {error}"
            return [fail("slurm", text, "launcher: local runs on this machine alone")]
    except (TransientError, UserError):
        pass  # the launch tells what is not there, and waits for what does not answer
    return []


def program_of(job: Job) -> str:
    """The trainer's interpreter, or its command, as ranks start it; or what starts containers."""
    if job.container is not None:
        return RUNTIMES[job.container.runtime].program
    first = job.trainer.command[0] if job.trainer.command else job.trainer.python
    if "/" in first and not first.startswith("/"):
        return str(job.trainer.workdir / first)
    return first


def _workdir(job: Job, seen: SeenFiles) -> list[Finding]:
    path = str(job.trainer.workdir)
    there = seen.path(path)
    fix = "make it, or set trainer.workdir in the job file"
    if there is None:
        return []
    text = ""
    if there["kind"] == "missing":
        text = f"{path}: {why(path, there)}"
    elif there["kind"] != "dir":
        text = f"{path} is not a directory"
    elif not (there["read"] and there["enter"]):
        text, fix = f"{path} can't be read by you", f"fix its mode, or {fix.partition(', or ')[2]}"
    near = there.get("near", path)
    return [judge(job, near, "workdir", f"trainer.workdir: {text}", fix)] if text else []


def _program(job: Job, program: str, seen: SeenFiles) -> list[Finding]:
    key = "trainer.command" if job.trainer.command else "trainer.python"
    key = key if job.container is None else "container.runtime"
    fix = f"fix {key} in the job file"
    if "{" in program:
        return []
    if "/" not in program:
        if rank_zero.which(job, program) is None:
            return [judge(job, "/", "trainer", f"{key}: {program}: not in PATH", fix)]
        return []
    there = seen.path(program)
    if there is None:
        return []
    if there["kind"] == "missing":
        near = there.get("near", program)
        text = f"{key}: {program}: {why(program, there)}"
        return [judge(job, near, "trainer", text, fix)]
    if there["kind"] != "file" or not there["enter"]:
        what = "is a directory" if there["kind"] == "dir" else "is not to be run"
        return [judge(job, program, "trainer", f"{key}: {program} {what}", fix)]
    return []


def _script(job: Job, seen: SeenFiles) -> list[Finding]:
    path = str(job.trainer.script or "")
    there, fix = seen.path(path), "fix trainer.script in the job file"
    if there is None or (there["kind"] == "file" and there["read"]) or there.get("main"):
        return []
    if there["kind"] == "missing":
        text = f"trainer.script: {path}: {why(path, there)}"
    else:
        what = {"file": "can't be read by you", "dir": "is a directory"}
        text = f"trainer.script: {path} {what.get(there['kind'], 'is no file')}"
    return [judge(job, there.get("near", path), "trainer", text, fix)]


def _in_container(job: Job) -> list[str]:
    """The paths that `container` names on the nodes."""
    if job.container is None:
        return []
    image = [job.container.image] if job.container.image.startswith("/") else []
    return image + [mount.path for mount in job.container.mounts]


def _container(job: Job, seen: SeenFiles) -> list[Finding]:
    found = []
    for path in _in_container(job):
        there = seen.path(path)
        if there is not None and there["kind"] == "missing":
            assert job.container is not None
            key = "image" if path == job.container.image else "mounts"
            text = f"container.{key}: {path}: {why(path, there)}"
            fix = f"fix container.{key} in the job file"
            found.append(judge(job, there.get("near", path), "container", text, fix))
    return found


def notes(found: list[Finding], job: Job) -> list[str]:
    """What a person hears at a launch, a line each. Raises UserError for what is sure to fail."""
    texts = ((one.result.seen, one.result.fix) for one in found)
    lines = [f"{seen}{' else ' if seen.endswith('?') else '; '}{fix}" for seen, fix in texts]
    wrong = [UserError(line) for one, line in zip(found, lines, strict=True) if _fails(one)]
    if wrong:
        error = SeveralError(wrong, f"superv doctor {job.path}")
        raise UserError(f"{error}; nothing was launched")
    return lines


def _fails(finding: Finding) -> bool:
    return finding.status is Status.FAIL
