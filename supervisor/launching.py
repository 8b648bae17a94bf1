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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor import app, bookkeeping, control, runs, snapshot
from supervisor.checkpoints import Scan
from supervisor.config import Job, Site, load_job, load_site, parse_job
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.errors import TransientError, UserError
from supervisor.core.machine import step
from supervisor.core.people import objection
from supervisor.core.types import Checkpoint, Run
from supervisor.journal import Busy, Journal
from supervisor.snapshot import Snapshot
from supervisor.storage import Storage, ask_once

LOOK_S = 60.0  # for storage to answer
ENDING_S = 5.0  # an engine without work to do has gone within this
RELEASE_S = 60.0  # an ended run's nodes are given back well within this
REFUSED_S = 5.0  # a scheduler that refuses a job does so within this; else the run waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What came of `superv launch` or `superv resume`."""

    run: runs.RunDir
    attached: bool = False  # the run was there already
    engine_started: bool = False
    archived: Path | None = None  # where the run of that name before this one lies now
    notes: tuple[str, ...] = ()


# --- launch ------------------------------------------------------------------------------------


def launch(path: Path, env: Mapping[str, str], *, origin: str | None = None) -> Launch:
    """Start the run that a job file describes, or find it alive.

    `origin` is a checkpoint to begin from, or "scratch". Raises UserError, TransientError.
    """
    if "SLURM_ARRAY_TASK_ID" in env:
        raise UserError(
            f"this is task {env['SLURM_ARRAY_TASK_ID']} of a job array (SLURM_ARRAY_TASK_ID is "
            "set): each task would launch the run; launch it once, from a login node"
        )
    job, site = load_job(path), load_site(env)
    there = runs.RunDir(runs.runs_dir(site.state_dir) / job.name)
    before = there.load() if there.journal.exists() else None
    if before is not None and not before.ended:
        if origin is not None:
            raise UserError(
                f"run {job.name} is alive ({before.phase.value}): --from begins a new one; "
                f"`superv stop {job.name}` first"
            )
        notes = tuple(_differences(there, job, site))
        return Launch(
            run=there, attached=True, engine_started=app.ensure_engine(there), notes=notes
        )
    if before is not None and origin is None:
        raise UserError(
            f"run {job.name} has ended ({before.phase.value}: {before.reason}); "
            f"`superv resume {job.name}` goes on with it, --from CHECKPOINT or --from scratch "
            "begins anew"
        )
    if before is not None:
        _given_back(there)
    app.plan(job, site)  # raises where the launcher can't be asked for this
    app.suites(job, site)  # raises for health checks that do not exist
    first, seed = _beginnings(job, origin)
    notes = () if job.checkpoints else ("no checkpoints are configured: restarts begin at step 0",)
    with runs.new(site.state_dir, job.name) as made:
        code = _keep(made, job, site, path, env)
        runs.write_keys(made, runs.new_keys())
        run_id = secrets.token_hex(6)
        journal = Journal(made.journal)
        now = app.clock()
        event = ev.Launched(
            at=now,
            spec=app.run_spec(job, run_id, first),
            seed=seed,
            barred=bookkeeping.barred(site.fleet, now),
        )
        journal.append(event, step(None, event)[1], epoch=0)
        journal.close()
        with _in_place(made, there) as archived:
            started = app.ensure_engine(there)
    return Launch(
        run=there, engine_started=started, archived=archived, notes=(*notes, *_told(code))
    )


def _told(code: Snapshot | None) -> list[str]:
    return [f"snapshot: {line}" for line in code.left_out] if code else []


def _keep(
    made: runs.RunDir, job: Job, site: Site, path: Path, env: Mapping[str, str]
) -> Snapshot | None:
    """Write down what is launched: job file, environment, code. Raises OSError and take's."""
    runs.write(made, source=job.source, origin=path.absolute(), env=env)
    archive = made.path / "code.part"
    code = snapshot.take(app.code_question(job, site), archive) if job.trainer.snapshot else None
    runs.write_code(made, code, archive)
    return code


@contextlib.contextmanager
def _in_place(made: runs.RunDir, there: runs.RunDir) -> Iterator[Path | None]:
    """Put a new run where its name says; an engine that refuses it undoes that.

    The run before it keeps its folder under another name.
    """
    archived: Path | None = None
    if there.path.exists():
        run = there.load()
        name = run.spec.run_id[:6] if run else secrets.token_hex(3)
        archived = there.path.rename(there.path.with_name(f"{there.path.name}~{name}"))
    try:
        made.path.rename(there.path)
    except OSError:
        raise UserError(
            f"run {there.path.name} was launched by somebody else at this moment; launch again"
        ) from None
    try:
        yield archived
    except app.EngineRefused:
        _undo(there, archived)
        raise


def _undo(there: runs.RunDir, archived: Path | None) -> None:
    """Take a run away that has not begun, and put back the one before it."""
    away = there.path.rename(there.path.with_name(f".{there.path.name}.{secrets.token_hex(4)}"))
    shutil.rmtree(away)
    if archived is not None:
        archived.rename(there.path)


def _differences(there: runs.RunDir, job: Job, site: Site) -> Iterator[str]:
    """What is not any more as the living run was launched; the run keeps what it has."""
    name, kept = there.path.name, "; the run keeps what it was launched with"
    if there.job_file.read_text() != job.source:
        yield f"config changed: {job.path} differs from run {name}'s{kept}"
    code = runs.read_code(there)
    if code is not None and job.trainer.snapshot:
        try:
            changed = code.changed(snapshot.take(app.code_question(job, site), None))
        except TransientError as error:
            changed, kept = "", f" (not compared: {error})"
        if changed:
            yield f"code changed: {changed} differs from run {name}'s{kept}"


def _ask_home(directory: str) -> tuple[str, int]:
    """Why nothing can be saved there, and the first attempt's number that is free there."""

    async def ask() -> tuple[str, int]:
        async with Storage() as storage:
            question = {"command": "home", "path": directory}
            problem, first = await storage.ask(question, deadline_s=LOOK_S)
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
        there = asyncio.run(ask_once("scan", directory, deadline_s=LOOK_S, required=required))
        if there.found:
            raise UserError(
                f"{directory} already holds checkpoints (newest: {there.found[0].path}); say "
                "--from CHECKPOINT or --from scratch, or choose another checkpoints.dir"
            )
    if origin in (None, "scratch"):
        return first, None
    path = str(Path(origin or "").absolute())
    return first, _seed(asyncio.run(ask_once("verify", path, deadline_s=LOOK_S, required=required)))


def _seed(scan: Scan) -> Checkpoint:
    report = scan.found[0]
    if not report.verified:
        raise UserError(f"--from {report.path}: can't be resumed from: {report.reason}")
    if report.step < 0:
        raise UserError(f"--from {report.path}: must be called step-N: N is the step it resumes at")
    return Checkpoint(
        step=report.step,
        path=report.path,
        attempt=0,
        verified_at=app.clock(),
        bytes=report.bytes,
    )


def refused(made: Launch) -> None:
    """Wait a moment for the scheduler's answer; a refusal undoes the launch and raises UserError.

    No answer is none: the run waits for it.
    """
    end = time.monotonic() + REFUSED_S
    while time.monotonic() < end:
        run = made.run.load()
        if run is None or run.allocations or not _asks(run):
            break
        time.sleep(0.05)
    if run is None or not run.ended or run.allocations or run.asked != 1 or run.attempt:
        return
    while made.run.socket.exists() and time.monotonic() < end + REFUSED_S:
        time.sleep(0.05)
    _undo(made.run, made.archived)
    raise UserError(run.reason)


def _asks(run: Run) -> bool:
    return not run.ended and any(isinstance(a, do.Submit) for a in run.pending.values())


# --- resume ------------------------------------------------------------------------------------


def resume(
    run_dir: runs.RunDir,
    env: Mapping[str, str],
    *,
    who: str,
    include: Collection[str] = (),
    forget_exclusions: bool = False,
    config: Path | None = None,
) -> Launch:
    """Take an ended run up again, as the same run, from its newest verified checkpoint.

    `config` replaces the job file and, with it, the code. Raises UserError, TransientError.
    """
    name = run_dir.path.name
    run = _given_back(run_dir)
    if "~" in name:
        raise UserError(
            f"{name} was replaced by a later launch of {run.spec.name}; "
            "`superv launch --from CHECKPOINT` begins a new run from one of its checkpoints"
        )
    if unknown := sorted(set(include) - run.excluded.keys()):
        there = ", ".join(sorted(run.excluded)) or "none"
        raise UserError(f"--include {unknown[0]}: run {name} excludes no such node; there: {there}")
    old = parse_job(run_dir.job_file.read_text(), Path(run_dir.origin_file.read_text()))
    job = load_job(config) if config is not None else old
    _check_change(run, job)
    site = load_site(env)
    notes = list(_changes(run_dir, old, site, config))
    first = _first_attempt(job)
    journal = _open(run_dir)
    try:
        assert journal.run is not None
        if config is not None:
            with tempfile.TemporaryDirectory(dir=run_dir.path) as scratch:
                made = runs.RunDir(Path(scratch))
                code = _keep(made, job, site, config, env)
                runs.replace_launch(run_dir, made)
                notes += _told(code)
        event = ev.ResumeAsked(
            at=app.clock(),
            who=who,
            spec=app.run_spec(job, run.spec.run_id, first),
            include=tuple(sorted(run.excluded if forget_exclusions else include)),
            note=f"with {config} as it is now" if config is not None else "",
        )
        journal.append(event, step(journal.run, event)[1], epoch=journal.epoch)
    finally:
        journal.close()
    return Launch(run=run_dir, engine_started=app.ensure_engine(run_dir), notes=tuple(notes))


def _given_back(run_dir: runs.RunDir) -> Run:
    """The ended run, once its nodes are given back. Raises UserError where it is alive."""
    name, end = run_dir.path.name, time.monotonic() + RELEASE_S
    while True:
        run = run_dir.load()
        if run is None:
            raise UserError(f"{run_dir.journal}: empty; launch the run again")
        if not run.ended:
            raise UserError(
                f"run {name} is alive ({run.phase.value}); `superv attach {name}` shows it"
            )
        if not run.live_jobs and not run_dir.socket.exists():
            return run
        app.ensure_engine(run_dir)
        if time.monotonic() > end:
            jobs = ", ".join(run.live_jobs)
            raise TransientError(f"run {name} still gives back the nodes of job {jobs}; try again")
        time.sleep(0.2)


def _open(run_dir: runs.RunDir) -> Journal:
    """The journal of a run without an engine; one that is just ending lets go of it."""
    end = time.monotonic() + ENDING_S
    while True:
        try:
            return Journal(run_dir.journal)
        except Busy:
            if time.monotonic() > end:
                name = run_dir.path.name
                raise UserError(f"run {name} is alive; `superv attach {name}` shows it") from None
        time.sleep(0.05)


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


def _changes(run_dir: runs.RunDir, old: Job, site: Site, config: Path | None) -> Iterator[str]:
    """What differs from the launch, and whether it is taken."""
    if config is not None:
        yield f"{config} and the trainer's code are taken as they are now"
        return
    kept = f"; the run keeps what it was launched with, --config {old.path} takes it"
    with contextlib.suppress(UserError):
        if load_job(old.path).source != old.source:
            yield f"config changed: {old.path}{kept}"
    code = runs.read_code(run_dir)
    if code is not None:
        with contextlib.suppress(UserError, TransientError):
            if changed := code.changed(snapshot.take(app.code_question(old, site), None)):
                yield f"code changed: {changed}{kept}"


# --- quarantine --------------------------------------------------------------------------------


def quarantine(
    run_dir: runs.RunDir, at_step: int, *, who: str, reason: str, and_later: bool | None
) -> list[str]:
    """Put a checkpoint of a run into quarantine, alive or ended; returns where what is moved.

    Raises UserError, TransientError.
    """
    run = run_dir.load()
    if run is None:
        raise UserError(f"{run_dir.journal}: empty")
    if why := objection(run, at_step, and_later=and_later):
        raise UserError(why)
    if run.ended:
        journal = _open(run_dir)
        event = ev.QuarantineAsked(
            at=app.clock(), who=who, step=at_step, reason=reason, and_later=bool(and_later)
        )
        assert journal.run is not None
        journal.append(event, step(journal.run, event)[1], epoch=journal.epoch)
        journal.close()
        app.ensure_engine(run_dir)  # it moves the files, and ends
    else:
        app.ensure_engine(run_dir)
        request = {"do": "quarantine", "who": who, "step": at_step, "reason": reason}
        for _ in control.ask(run_dir.socket, {**request, "and_later": and_later}):
            pass
    after = run_dir.load()
    assert after is not None
    return [r.path for r in after.retired.values() if r.path not in run.retired]
