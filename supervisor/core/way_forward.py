"""What a person should type now: one command, whatever a run stands at.

Each is complete as it stands here: names are quoted for a shell, and every page that it names is
in docs/runbooks/.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from supervisor.core.attention import Attention, EngineView, attention
from supervisor.core.diagnose import nothing_left
from supervisor.core.node_life import usable
from supervisor.core.nodeset import compress
from supervisor.core.types import AllocationState, Cause, NodeState, Phase, Run

# Causes that a person fixes in the trainer, its data or the job file; the world's go by themselves.
OF_THE_TRAINER = frozenset(
    {Cause.RANK_EXIT, Cause.START_FAILED, Cause.ENDED_EARLY, Cause.WRONG_STEP, Cause.NO_FIRST_STEP}
)
# Pages of docs/runbooks/ about what holds a run up though no attempt has ended.
STATES = (
    "no-spare-left",
    "restarts-without-progress",
    "partition-too-small",
    "storage-away",
    "engine-gone",
    "journal-damaged",
    "isolated",
)
ASK_S = 10  # seconds that a command of another program gets


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """A command to type, and what it is for."""

    command: str
    why: str
    runbook: str = ""  # a page of docs/runbooks, without its suffix


def way_forward(
    run: Run, now: float, seen: EngineView | None = None, job_file: str = ""
) -> NextStep | None:
    """None where nothing is to be done.

    `job_file`: where the job's file lies; empty where that is not known.
    """
    if run.ended:
        return _ended(run, job_file)
    seen = seen or EngineView()
    for one in attention(run, now, seen):
        if (found := _NEXT[one.what](run, one, seen)) is not None:
            return found
    if run.phase is Phase.PENDING and (job := _asked(run)):
        why = "when Slurm expects to start it; nothing else is to be done"
        return NextStep(command=f"squeue --start -j {job}", why=why)
    return None


def engine_gone(name: str) -> NextStep:
    return NextStep(
        command=f"superv attach {shlex.quote(name)}",
        why="no engine runs on this machine; this starts it, and the ranks notice nothing",
        runbook="engine-gone",
    )


def engine_mute(name: str, pid: int | None) -> NextStep:
    """An engine that is there and does not answer."""
    if pid is None:
        return engine_gone(name)
    return NextStep(
        command=f"kill -9 {pid}",
        why=f"the engine does not answer; then `superv attach {shlex.quote(name)}`",
        runbook="engine-gone",
    )


def journal_lost(name: str) -> NextStep:
    return NextStep(
        command=f"superv attach {shlex.quote(name)} --adopt",
        why="the journal is lost; this takes the run up as its agents know it",
        runbook="journal-damaged",
    )


# --- ended ----------------------------------------------------------------------------------------


def _ended(run: Run, job_file: str) -> NextStep:
    name = _name(run)
    if run.phase is Phase.DONE:
        if run.spec.checkpoint_dir:
            return NextStep(command=f"superv checkpoints list {name}", why="what it has saved")
        return NextStep(command=f"superv logs {name}", why="what rank 0 wrote last")
    newest = run.lineage[-1] if run.lineage else None
    where = f"from step {newest.step}" if newest else "from step 0"
    if run.phase is Phase.STOPPED:
        return NextStep(command=f"superv resume {name}", why=f"goes on {where}")
    return _held(run, job_file, where)


def _held(run: Run, job_file: str, where: str) -> NextStep:
    name = _name(run)
    again = f"superv resume {name}"
    changed = f"{again} --config {shlex.quote(job_file)}" if job_file else again
    last = run.incidents[-1] if run.incidents else None
    if nothing_left(run):
        why = "what is there; then `superv launch JOB.YAML --from CHECKPOINT` or `--from scratch`"
        page = last.verdict.cause if last is not None and last.verdict else ""
        return NextStep(command=f"superv checkpoints list {name}", why=why, runbook=page)
    if last is None or last.verdict is None or last.judged_at != run.since:
        if run.refusals or not any(
            job.state is not AllocationState.REQUESTED for job in run.allocations.values()
        ):
            why = "once the job file asks for what Slurm has"
            return NextStep(command=changed, why=why, runbook="partition-too-small")
        why = f"once so many nodes are well: `superv nodes` shows them; goes on {where}"
        return NextStep(command=again, why=why, runbook="partition-too-small")
    cause = last.verdict.cause
    if cause in OF_THE_TRAINER:
        why = f"once that is fixed; `superv logs {name}` has all that the rank wrote"
        return NextStep(command=changed, why=why, runbook=cause)
    why = f"once the nodes are well: `superv nodes` shows them; goes on {where}"
    return NextStep(command=again, why=why, runbook=cause)


# --- alive, and something needs attention ---------------------------------------------------------


def _name(run: Run) -> str:
    return shlex.quote(run.spec.name)


def _asked(run: Run) -> str:
    """The job that waits in Slurm's queue; empty where there is none of Slurm's."""
    jobs = (a for a in run.allocations.values() if a.state is AllocationState.REQUESTED)
    return next((job.job_id for job in jobs if job.job_id.isdigit()), "")


def _nothing(run: Run, one: Attention, seen: EngineView) -> None:
    return None


def _engine(run: Run, one: Attention, seen: EngineView) -> NextStep:
    why = "says why the engine ends again and again; the ranks go on"
    return NextStep(command=f"superv attach {_name(run)}", why=why, runbook="engine-gone")


def _isolated(run: Run, one: Attention, seen: EngineView) -> NextStep:
    why = "looks at this machine and its way to the nodes; ranks go on"
    return NextStep(command="superv doctor", why=why, runbook="isolated")


def _journal(run: Run, one: Attention, seen: EngineView) -> NextStep:
    why = f"then `superv attach {_name(run)} --adopt`: the ranks notice nothing"
    return NextStep(command=f"kill {seen.pid}", why=why, runbook="journal-damaged")


def _storage(run: Run, one: Attention, seen: EngineView) -> NextStep | None:
    if not run.spec.checkpoint_dir:
        return None
    folder = shlex.quote(run.spec.checkpoint_dir)
    why = "ends with 124 while storage is away; the run goes on by itself when it is back"
    return NextStep(command=f"timeout {ASK_S} ls -d {folder}", why=why, runbook="storage-away")


def _slurm(run: Run, one: Attention, seen: EngineView) -> NextStep:
    why = "whether Slurm answers; the run goes on by itself when it does"
    return NextStep(command=f"timeout {ASK_S} squeue --me", why=why)


def _queue(run: Run, one: Attention, seen: EngineView) -> NextStep:
    job = _asked(run)
    lacking = any(a.lacking for a in run.allocations.values())
    if lacking or not job:
        why = "what Slurm keeps out of service, and why"
        return NextStep(command="sinfo -R", why=why, runbook="partition-too-small")
    why = "what Slurm waits for"
    return NextStep(command=f"scontrol show job {job}", why=why, runbook="partition-too-small")


def _nodes(run: Run, one: Attention, seen: EngineView) -> NextStep:
    """Nodes that the run itself excludes come first: they may be well again."""
    here = [name for name in run.excluded if name in run.pool]
    if here:
        why = "lets them back in, or says what keeps them out"
        nodes = shlex.quote(compress(here))
        command = f"superv include {_name(run)} {nodes}"
        return NextStep(command=command, why=why, runbook="no-spare-left")
    able = {*usable(run), *run.slots}
    bad = [n for n in run.pool if n not in able and run.pool[n].state is not NodeState.LEFT]
    if bad:
        nodes = shlex.quote(compress(bad))
        why = "what is wrong with them; they are taken as soon as they are well"
        return NextStep(command=f"superv preflight {nodes}", why=why, runbook="no-spare-left")
    return NextStep(command="sinfo -R", why="what Slurm keeps out", runbook="no-spare-left")


def _suspect(run: Run, one: Attention, seen: EngineView) -> NextStep | None:
    silent = run.pool.group(NodeState.SUSPECT)
    if not silent:
        return None
    nodes = shlex.quote(compress(silent))
    why = "whether the node answers; its ranks may go on"
    return NextStep(command=f"superv preflight {nodes}", why=why, runbook=Cause.NODE_LOST)


def _ranks(run: Run, one: Attention, seen: EngineView) -> NextStep:
    rank = min(run.attempt.exits, default=0) if run.attempt else 0
    why = "what the rank wrote before it ended"
    command = f"superv logs {_name(run)} --rank {rank}"
    return NextStep(command=command, why=why, runbook=Cause.ENDED_EARLY)


def _restarts(run: Run, one: Attention, seen: EngineView) -> NextStep:
    why = "what the ranks that ended said, over the attempts"
    command = f"superv logs {_name(run)} --grep Error"
    return NextStep(command=command, why=why, runbook="restarts-without-progress")


def _lines(run: Run, one: Attention, seen: EngineView) -> NextStep:
    return NextStep(command=f"superv logs {_name(run)} -n 4000", why="what rank 0 writes")


def _behind(run: Run, one: Attention, seen: EngineView) -> NextStep:
    worst = max(seen.stragglers, key=lambda straggler: straggler.factor)
    why = "looks at the node; its ranks go on"
    return NextStep(command=f"superv preflight {shlex.quote(worst.node)}", why=why)


def _loss(run: Run, one: Attention, seen: EngineView) -> NextStep:
    why = "which checkpoints are from before it"
    return NextStep(command=f"superv checkpoints list {_name(run)}", why=why)


# By tag of `attention` (docs/status.md).
_NEXT: Mapping[str, Callable[[Run, Attention, EngineView], NextStep | None]] = {
    "engine": _engine,
    "isolated": _isolated,
    "journal": _journal,
    "storage": _storage,
    "slurm": _slurm,
    "queue": _queue,
    "nodes": _nodes,
    "drained": _nothing,  # ranks go on, and another node takes the slot then
    "suspect": _suspect,
    "ranks": _ranks,
    "restarts": _restarts,
    "steps": _lines,
    "hook": _lines,
    "behind": _behind,
    "loss": _loss,
    "checkpoints": _lines,
}
