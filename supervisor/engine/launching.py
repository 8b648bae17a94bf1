"""What a person's commands begin: a new run, an ended one again, a checkpoint's quarantine.

Everything that can be refused is refused before anything is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers import launcher_of
from supervisor.checkpoints.dcp import CheckpointReport, CheckpointState
from supervisor.checkpoints.storage import Storage, scan_once, verify_once
from supervisor.config import Job, Site, load_job, load_site
from supervisor.config.secret_file import read_secrets
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import TransientError, UserError
from supervisor.core.machine import step
from supervisor.core.operator_requests import objection
from supervisor.core.types import Checkpoint, Run
from supervisor.engine import control, fleet_recorder, marking
from supervisor.engine.clock import clock
from supervisor.engine.dry_run import plan
from supervisor.engine.hook_notes import hook_notes
from supervisor.engine.lost_run import active_jobs
from supervisor.engine.request import AdoptionRequest, Request
from supervisor.engine.spawn import EngineRefused, ensure_engine, lives
from supervisor.engine.wiring import code_question, run_spec, suites
from supervisor.fleet import claims
from supervisor.host import emptied
from supervisor.run import folder, snapshot
from supervisor.run.journal import Journal, LostJournalError, readable
from supervisor.run.snapshot import Snapshot

STORAGE_S = 60.0  # for storage to answer
RELEASE_S = 60.0  # an ended run's nodes are given back well within this
ADOPTION_S = 150.0  # agents, storage and Slurm have answered by then, or it was said who has not
REFUSED_S = 5.0  # a scheduler that refuses a job does so within this; else the run waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What came of `superv launch` or `superv resume`."""

    run: folder.RunDir
    attached: bool = False  # the run was there already
    engine_started: bool = False
    archived: Path | None = None  # where the run of that name before this one lies now
    notes: tuple[str, ...] = ()


Look = Callable[[Job], Sequence[str]]  # what a person hears of a job; raises UserError


def _look_at_nothing(_: Job) -> Sequence[str]:
    return ()


# --- launch ------------------------------------------------------------------------------------


def launch(
    path: Path, env: Mapping[str, str], *, origin: str | None = None, look: Look = _look_at_nothing
) -> Launch:
    """Start the run that a job file describes, or find it alive.

    `origin` is a checkpoint to begin from, or "scratch"; `look` says what is wrong with a job that
    is new, and refuses it by UserError. Raises UserError, TransientError.
    """
    if "SLURM_ARRAY_TASK_ID" in env:
        raise UserError(
            f"this is task {env['SLURM_ARRAY_TASK_ID']} of a job array (SLURM_ARRAY_TASK_ID is "
            "set): each task would launch the run; launch it once, from a login node"
        )
    job, site = load_job(path), load_site(env)
    there = folder.RunDir(folder.runs_dir(site.state_dir) / job.name)
    seen = there.identity()
    before = _before(there, job, site, origin)
    if before is not None and not before.ended:
        if origin is not None:
            raise UserError(
                f"run {job.name} is alive ({before.phase.value}): --from begins a new one; "
                f"`superv stop {job.name}` first"
            )
        notes = (*job.notes, *site.notes, *_differences(there, job, site))
        return Launch(run=there, attached=True, engine_started=ensure_engine(there), notes=notes)
    if before is not None and origin is None:
        raise UserError(
            f"run {job.name} has ended ({before.phase.value}: {before.reason}); "
            f"{_ways_on(there, job)}; --from CHECKPOINT or --from scratch begins again"
        )
    if before is not None:
        _given_back(there)
    _programs(job, site)
    looked = look(job)
    plan(job, site)  # raises where the launcher can't be asked for this
    suites(job, site)  # raises for health checks that do not exist
    first, seed = _beginnings(job, origin)
    notes = (*notes_of(job, site), *looked)
    if not job.checkpoints:
        notes += ("no checkpoints are configured: restarts begin at step 0",)
    with folder.new(site.state_dir, job.name) as made:
        code = _keep(made, job, site, path, env)
        run_id = secrets.token_hex(6)
        folder.write_keys(made, folder.new_keys(run_id))
        journal = Journal(made.journal)
        now = clock()
        event = ev.Launched(
            at=now,
            spec=run_spec(job, run_id, first),
            seed=seed,
            operator_excluded=fleet_recorder.operator_exclusions(site.fleet, now, site.claims_dir),
        )
        journal.append(event, step(None, event)[1], epoch=0)
        journal.close()
        with _in_place(made, there, seen, job, run_id) as archived:
            started = ensure_engine(there)
    return Launch(
        run=there, engine_started=started, archived=archived, notes=(*notes, *_snapshot_notes(code))
    )


def _ways_on(there: folder.RunDir, job: Job) -> str:
    """How `superv resume` goes on with a run, and with which job file."""
    resume = f"`superv resume {job.name}"
    if there.job_file.exists() and there.job_file.read_text() == job.source:
        return f"{resume}` goes on with it"
    return (
        f"{job.path} is not as it was launched: {resume}` goes on with the job file of then, "
        f"{resume} --config {job.path}` with this one"
    )


def _before(there: folder.RunDir, job: Job, site: Site, origin: str | None) -> Run | None:
    """The run that has the name already. One whose journal is lost makes way only when it is over
    and a person says what to begin from. Raises UserError, TransientError."""
    if not there.path.exists():
        return None
    try:
        return there.load()
    except LostJournalError as lost:
        again = "once it is over, --from CHECKPOINT or --from scratch begins again"
        if origin is None or lives(there):
            raise UserError(f"{lost}; {again}") from None
        jobs = asyncio.run(active_jobs(launcher_of(job, site), there))
        if jobs:
            raise UserError(f"{lost}; its job {jobs[0].job_id} is {jobs[0].raw}; {again}") from None
        return None


def _programs(job: Job, site: Site) -> None:
    """Raises UserError where this machine lacks what the launcher needs."""
    for name in launcher_of(job, site).programs:
        if shutil.which(name) is None:
            raise UserError(
                f"{name}: not in PATH, and launcher: {job.launcher} needs it; launch where the "
                "cluster's commands are, or say `launcher: local` to run on this machine alone"
            )


def notes_of(job: Job, site: Site) -> tuple[str, ...]:
    """What whoever launches this job should hear, a line each. Raises UserError."""
    from healthchecks.frame.switched_off import without_effect

    emptied = emptied_notes(job, site)
    return (*job.notes, *site.notes, *emptied, *hook_notes(job), *without_effect(job, site))


def emptied_notes(job: Job, site: Site) -> tuple[str, ...]:
    """Folders of the run that somebody empties, a line each."""
    checkpoints = job.checkpoints.dir if job.checkpoints else None
    return tuple(emptied.notes(site.state_dir, site.node_dir, checkpoints))


def _snapshot_notes(code: Snapshot | None) -> list[str]:
    return [f"snapshot: {line}" for line in code.left_out] if code else []


def _keep(
    made: folder.RunDir, job: Job, site: Site, path: Path, env: Mapping[str, str]
) -> Snapshot | None:
    """Write down what is launched. Raises OSError, UserError for a secret's file, and take's."""
    secrets = read_secrets(job.trainer.secrets)
    folder.write(made, source=job.source, origin=path.absolute(), env=env, secrets=secrets)
    archive = made.path / "code.part"
    code = snapshot.take(code_question(job, site), archive) if job.trainer.snapshot else None
    folder.write_code(made, code, archive)
    return code


@contextlib.contextmanager
def _in_place(
    made: folder.RunDir, there: folder.RunDir, seen: tuple[int, int] | None, job: Job, run_id: str
) -> Iterator[Path | None]:
    """Put a new run where its name says; an engine that refuses it undoes that.

    The run before it, `seen` when the launch began, keeps its folder under another name. Of several
    launches at one moment the first one wins.
    """
    archived: Path | None = None
    name = there.path.name
    with folder.alone(there.path.parent):
        if there.identity() != seen:
            origin = there.origin_file.read_text() if there.origin_file.exists() else "somewhere"
            raise UserError(
                f"run {name} was launched at this moment, from {origin}; `superv attach {name}` "
                "shows it; nothing was launched here"
            )
        marking.claim(job, there, run_id, replaced=seen is not None)
        if seen is not None:
            run, _ = readable(there.journal)
            mark = run.spec.run_id[:6] if run else secrets.token_hex(3)
            archived = there.path.rename(there.path.with_name(f"{name}~{mark}"))
        made.path.rename(there.path)
    try:
        yield archived
    except EngineRefused:
        _undo(there, archived)
        marking.release(job, run_id)
        raise


def _undo(there: folder.RunDir, archived: Path | None) -> None:
    """Take a run away that has not begun, and put back the one before it."""
    away = there.path.rename(there.path.with_name(f".{there.path.name}.{secrets.token_hex(4)}"))
    shutil.rmtree(away)
    if archived is not None:
        archived.rename(there.path)


def _differences(there: folder.RunDir, job: Job, site: Site) -> Iterator[str]:
    """What is not any more as the living run was launched; the run keeps what it has."""
    name, kept = there.path.name, "; the run keeps what it was launched with"
    if there.job_file.read_text() != job.source:
        yield f"config changed: {job.path} differs from run {name}'s{kept}"
    code = folder.read_code(there)
    if code is not None and job.trainer.snapshot:
        try:
            changed = code.changed(snapshot.take(code_question(job, site), None))
        except TransientError as error:
            changed, kept = "", f" (not compared: {error})"
        if changed:
            yield f"code changed: {changed} differs from run {name}'s{kept}"


def _ask_home(directory: str) -> tuple[str, int]:
    """Why nothing can be saved there, and the first attempt's number that is free there."""

    async def ask() -> tuple[str, int]:
        async with Storage() as storage:
            question = {"command": "home", "path": directory}
            problem, first = await storage.ask(question, deadline_s=STORAGE_S)
            return problem, first

    return asyncio.run(ask())


def _first_attempt(job: Job) -> int:
    """Raises UserError where nothing can be saved, TransientError where storage is silent."""
    if job.checkpoints is None:
        return 1
    problem, first = _ask_home(str(job.checkpoints.dir))
    if problem:
        raise UserError(f"checkpoints.dir: {problem}; nothing was launched")
    return first


def _beginnings(job: Job, origin: str | None) -> tuple[int, Checkpoint | None]:
    """The number of the first attempt, and the checkpoint to begin from."""
    if job.checkpoints is None:
        if origin not in (None, "scratch"):
            raise UserError("--from needs `checkpoints` in the job file")
        return 1, None
    required, directory = job.checkpoints.required, str(job.checkpoints.dir)
    first = _first_attempt(job)
    if origin is None:
        there = asyncio.run(scan_once(directory, deadline_s=STORAGE_S, required=required))
        if found := [one for one in there.found if one.state is not CheckpointState.FOREIGN]:
            raise UserError(
                f"{directory} already holds checkpoints (newest: {found[0].path}); say "
                "--from CHECKPOINT or --from scratch, or choose another checkpoints.dir"
            )
    if origin in (None, "scratch"):
        return first, None
    path = str(Path(origin or "").absolute())
    return first, _seed(asyncio.run(verify_once(path, deadline_s=STORAGE_S, required=required)))


def _seed(report: CheckpointReport) -> Checkpoint:
    if not report.verified:
        raise UserError(f"--from {report.path}: can't be resumed from: {report.reason}")
    if report.step < 0:
        raise UserError(f"--from {report.path}: must be called step-N: N is the step it resumes at")
    return Checkpoint(
        step=report.step,
        path=report.path,
        attempt=0,
        verified_at=clock(),
        bytes=report.bytes,
    )


def refused(made: Launch) -> None:
    """Wait a moment for the scheduler's answer; a refusal undoes the launch and raises UserError.

    No answer is none: the run waits for it.
    """
    end = time.monotonic() + REFUSED_S
    while time.monotonic() < end:
        run = made.run.load()
        if run.allocations or not _asks(run):
            break
        time.sleep(0.05)
    if not run.ended or run.allocations or run.allocations_requested != 1 or run.attempt:
        return
    while made.run.socket.exists() and time.monotonic() < end + REFUSED_S:
        time.sleep(0.05)
    _undo(made.run, made.archived)
    raise UserError(run.reason)


def _asks(run: Run) -> bool:
    return not run.ended and any(isinstance(a, act.Submit) for a in run.pending.values())


# --- resume ------------------------------------------------------------------------------------


def resume(
    run_dir: folder.RunDir,
    env: Mapping[str, str],
    *,
    who: str,
    include: Collection[str] = (),
    forget_exclusions: bool = False,
    config: Path | None = None,
    look: Look = _look_at_nothing,
) -> Launch:
    """Take an ended run up again, as the same run, from its newest verified checkpoint.

    `config` replaces the job file and, with it, the code, which `look` looks at then. Raises
    UserError, TransientError.
    """
    name = run_dir.path.name
    run = _given_back(run_dir)
    if run_dir.replaced:
        raise UserError(
            f"{name} was replaced by a later launch of {run.spec.name}; "
            "`superv launch --from CHECKPOINT` begins a new run from one of its checkpoints"
        )
    if unknown := sorted(set(include) - run.excluded.keys()):
        there = ", ".join(sorted(run.excluded)) or "none"
        raise UserError(f"--include {unknown[0]}: run {name} excludes no such node; there: {there}")
    old = folder.read_job(run_dir)
    job = load_job(config) if config is not None else old
    _check_change(run, job)
    site = load_site(env)
    notes = [
        *notes_of(job, site),
        *(look(job) if config is not None else ()),
        *_changes(run_dir, old, site, config),
    ]
    first = _first_attempt(job)
    marking.claim(job, run_dir, run.spec.run_id)
    event = ev.ResumeRequested(
        at=clock(),
        who=who,
        spec=run_spec(job, run.spec.run_id, first),
        include=tuple(sorted(run.excluded if forget_exclusions else include)),
        note=f"with {config} as it is now" if config is not None else "",
    )
    if config is None:
        started = ensure_engine(run_dir, Request(event=event))
    else:
        with tempfile.TemporaryDirectory(dir=run_dir.path, prefix="launch-") as made:
            notes += _snapshot_notes(_keep(folder.RunDir(Path(made)), job, site, config, env))
            started = ensure_engine(run_dir, Request(event=event, launch=Path(made)))
    if event.include and site.claims_dir is not None:
        try:
            claims.take_back(site.claims_dir, event.include, name)
        except (UserError, TransientError) as error:  # others see them claimed for 28 days
            notes.append(f"this run's claims are not taken back: {error}")
    return Launch(run=run_dir, engine_started=started, notes=tuple(notes))


def _given_back(run_dir: folder.RunDir) -> Run:
    """The ended run, once its nodes are given back. Raises UserError where it is alive."""
    name, end = run_dir.path.name, time.monotonic() + RELEASE_S
    while True:
        run = run_dir.load()
        if not run.ended:
            raise UserError(
                f"run {name} is alive ({run.phase.value}); `superv attach {name}` shows it"
            )
        if not run.live_jobs and not run_dir.socket.exists():
            return run
        ensure_engine(run_dir)
        if time.monotonic() > end:
            jobs = ", ".join(run.live_jobs)
            raise TransientError(f"run {name} still gives back the nodes of job {jobs}; try again")
        time.sleep(0.2)


def _check_change(run: Run, job: Job) -> None:
    """Raises UserError for what can't change within a run."""
    spec, trainer = run.spec, job.trainer
    if job.name != spec.name:
        raise UserError(f"{job.path}: name: {job.name} is another run; this one is {spec.name}")
    ranks = (spec.nodes * spec.ranks_per_node, job.nodes * trainer.ranks_per_node)
    if ranks[0] != ranks[1]:
        raise UserError(
            f"{job.path}: nodes x trainer.ranks_per_node: the run has {ranks[0]} ranks, this says "
            f"{ranks[1]}; a run keeps its number: launch a new one with --from CHECKPOINT"
        )
    if run.lineage and job.checkpoints is None:
        raise UserError(f"{job.path}: checkpoints: missing, and the run has some to resume from")


def _changes(run_dir: folder.RunDir, old: Job, site: Site, config: Path | None) -> Iterator[str]:
    """What differs from the launch, and whether it is taken."""
    if config is not None:
        yield f"{config} and the trainer's code are taken as they are now"
        return
    kept = f"; the run keeps what it was launched with, --config {old.path} takes it"
    with contextlib.suppress(UserError):
        if load_job(old.path).source != old.source:
            yield f"config changed: {old.path}{kept}"
    code = folder.read_code(run_dir)
    if code is not None:
        with contextlib.suppress(UserError, TransientError):
            if changed := code.changed(snapshot.take(code_question(old, site), None)):
                yield f"code changed: {changed}{kept}"


# --- a lost journal ------------------------------------------------------------------------------


def adopt(run_dir: folder.RunDir, *, who: str) -> None:
    """Start an engine that takes the run up as its agents know it. Raises UserError."""
    name = run_dir.path.name
    if run_dir.replaced:
        run_dir.load()
    if lives(run_dir):
        pid = control.engine_pid(run_dir.socket)
        raise UserError(
            f"run {name} has an engine; if its journal is lost, `kill {pid}` first: the ranks "
            "notice nothing"
        )
    ensure_engine(run_dir, AdoptionRequest(who=who), within_s=ADOPTION_S)


# --- nodes used again ---------------------------------------------------------------------------


def include(run_dir: folder.RunDir, nodes: Collection[str], *, who: str) -> None:
    """Have a run use nodes again that it has excluded, alive or ended.

    Raises UserError, TransientError.
    """
    if run_dir.load().ended:
        event = ev.IncludeRequested(at=clock(), who=who, nodes=tuple(nodes))
        ensure_engine(run_dir, Request(event=event))  # it notes that, and ends
        return
    ensure_engine(run_dir)
    for _ in control.ask(run_dir.socket, {"do": "include", "who": who, "nodes": [*nodes]}):
        pass


# --- quarantine --------------------------------------------------------------------------------


def quarantine(
    run_dir: folder.RunDir, at_step: int, *, who: str, reason: str, and_later: bool | None
) -> list[str]:
    """Put a checkpoint of a run into quarantine, alive or ended; returns where what is moved.

    Raises UserError, TransientError.
    """
    run = run_dir.load()
    if why := objection(run, at_step, and_later=and_later):
        raise UserError(why)
    if run.ended:
        event = ev.QuarantineRequested(
            at=clock(), who=who, step=at_step, reason=reason, and_later=bool(and_later)
        )
        ensure_engine(run_dir, Request(event=event))  # it moves the files, and ends
    else:
        ensure_engine(run_dir)
        request = {"do": "quarantine", "who": who, "step": at_step, "reason": reason}
        for _ in control.ask(run_dir.socket, {**request, "and_later": and_later}):
            pass
    after = run_dir.load()
    return [r.path for r in after.retired.values() if r.path not in run.retired]
