"""What a person should look at though nothing is stopped for it: no verdict, no action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from supervisor.core import actions as act
from supervisor.core.actions import Action
from supervisor.core.lineage import last_finite
from supervisor.core.node_life import drained
from supervisor.core.nodeset import compress
from supervisor.core.placement import gathering_shortage
from supervisor.core.renewal import granted
from supervisor.core.signs_of_life import Straggler
from supervisor.core.types import HAS_RANKS, Allocation, AllocationState, NodeState, Phase, Run

AGENTS_S = 60.0  # agents come within seconds of their keys
SUSPECT_S = 120.0  # silences that heal take seconds; one that lasts has nobody to confirm it
ENGINE_STARTS = 4  # engines so many within …
ENGINE_STARTS_S = 1800.0  # … this time end again and again
RANKS_S = 60.0  # ranks that end together end within seconds of each other
SAVES_FACTOR = 3.0  # a checkpoint is overdue at 3x the median time between verified ones …
SAVES_FLOOR_S = 600.0  # … and not before ten minutes: verification takes its time
FIRST_SAVE_S = 3600.0  # … or at an hour where that time is not known yet
# Why jobs wait in a queue that does its work (Slurm, JOB REASON CODES of squeue).
QUEUED = frozenset({"", "None", "Priority", "Resources", "Dependency", "BeginTime"})
STORAGE = (act.Scan, act.Discard, act.Quarantine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One line of "needs attention"."""

    what: str  # a tag, as docs/status.md lists them
    since: float | None  # seconds since the epoch
    text: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """The world has not answered an action since then."""

    since: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """What an engine knows beside the journal; a reader of the journal knows nothing of it."""

    stragglers: tuple[Straggler, ...] = ()
    waits: Mapping[str, Unanswered] = field(default_factory=dict)  # by key of the action
    journal_problem: str = ""  # what somebody did to the file
    pid: int = 0
    steps_per_s: float | None = None
    target_step: int | None = None  # that training ends with, where ranks say it


def attention(run: Run, now: float, seen: EngineView | None = None) -> tuple[Attention, ...]:
    """What needs attention now, the widest first; times are seconds since the epoch."""
    seen = seen or EngineView()
    waiting = _waits(run, seen.waits)
    if run.ended:
        return tuple(waiting)
    engine = (_engine(run, now), _isolated(run), _journal(run, seen))
    kinds = (*engine, waiting, _queue(run), _nodes(run, now), _drained(run), _suspects(run, now))
    steps = (_hook(run), _unread(run), _steps_below(run), _behind(seen))
    training = (_restarts(run), *steps, _ranks(run, now), _loss(run), _checkpoints(run, now))
    return tuple(one for kind in (*kinds, *training) for one in kind)


def _engine(run: Run, now: float) -> Iterator[Attention]:
    starts = run.engine_starts
    if len(starts) >= ENGINE_STARTS and now - starts[0] < ENGINE_STARTS_S:
        yield Attention(
            what="engine",
            since=starts[0],
            text=f"the engine was started {len(starts)} times: it ends again and again",
            fix="engine.log in the run's folder says why it ended; the ranks go on",
        )


def _isolated(run: Run) -> Iterator[Attention]:
    if run.isolated_since is not None:
        yield Attention(
            what="isolated",
            since=run.isolated_since,
            text="half of the agents or more are silent: nothing is concluded, deadlines wait",
            fix="look at this machine's network; ranks go on, and silence stops none of them",
        )


def _journal(run: Run, seen: EngineView) -> Iterator[Attention]:
    if seen.journal_problem:
        yield Attention(
            what="journal",
            since=None,
            text=f"{seen.journal_problem}; this engine goes on, the next one could not",
            fix=f"`kill {seen.pid}`, then `superv attach {run.spec.name} --adopt`: ranks go on",
        )


def _waits(run: Run, waits: Mapping[str, Unanswered]) -> Iterator[Attention]:
    """One line for all that waits for the same."""
    alike: dict[tuple[str, str], list[float]] = {}
    for key, wait in waits.items():
        if key in run.pending:
            alike.setdefault((_awaited(run.pending[key]), wait.why), []).append(wait.since)
    for (what, why), since in alike.items():
        yield Attention(
            what=what,
            since=min(since),
            text=f"waiting, and trying again: {why}",
            fix={
                "storage": "see to the file system of the checkpoints; the run then goes on",
                "slurm": "see whether `squeue` answers on this machine; the run then goes on",
            }[what],
        )


def _awaited(action: Action) -> str:
    return "storage" if isinstance(action, STORAGE) else "slurm"


def _queue(run: Run) -> Iterator[Attention]:
    for job in run.allocations.values():
        if job.state is AllocationState.REQUESTED and job.lacking:
            yield Attention(
                what="queue",
                since=run.since,
                text=f"job {job.job_id} needs {run.spec.nodes} nodes: {job.lacking} more than "
                "are in service and not excluded",
                fix="`sinfo -R` shows what is drained or down; it starts as soon as there are so "
                "many, and nodes that may be innocent are used again by themselves",
            )
        elif job.state is AllocationState.REQUESTED and not _only_queued(job):
            means = f": {job.means}" if job.means else ""
            yield Attention(
                what="queue",
                since=run.since,
                text=f"job {job.job_id} is {job.raw}: {job.reason}{means}",
                fix=job.do or f"`scontrol show job {job.job_id}` tells what Slurm waits for",
            )


def _only_queued(job: Allocation) -> bool:
    """Whether it waits as jobs do. Who did not say what the reason means, is of superv 0.1."""
    if job.means or job.do:
        return not job.do
    return job.reason.strip("()") in QUEUED


def _nodes(run: Run, now: float) -> Iterator[Attention]:
    absent = granted(run).difference(run.pool) if run.phase is Phase.GATHERING else ()
    if len(run.pool) < run.spec.nodes and absent and now - run.since > AGENTS_S:
        yield Attention(
            what="nodes",
            since=run.since,
            text=f"{compress(absent)}: no agent has come",
            fix="see whether these nodes reach this machine; allocation.log on a node tells more",
        )
    slot_waits = run.phase is Phase.GATHERING and "" in run.slots
    shortage = gathering_shortage(run) or (run.reason if slot_waits else "")
    if shortage:
        yield Attention(
            what="nodes",
            since=run.since,
            text=shortage,
            fix=_way_back(run),
        )


def _way_back(run: Run) -> str:
    if not run.excluded:
        return "repair what is said of them below; they are taken as soon as they are usable"
    back = f"`superv include {run.spec.name} {compress(run.excluded)}`"
    return f"repair them; {back} lets back in what the run excluded"


def _drained(run: Run) -> Iterator[Attention]:
    active = sorted(drained(run) & {*run.slots})
    if active and run.phase in HAS_RANKS:
        yield Attention(
            what="drained",
            since=None,
            text=f"{compress(active)}: drained in Slurm; the ranks go on until the next incident",
            fix="then another node takes the slot; `scontrol update State=RESUME` keeps it",
        )


def _suspects(run: Run, now: float) -> Iterator[Attention]:
    nodes = [
        n for n in run.pool.values() if n.state is NodeState.SUSPECT and now - n.since > SUSPECT_S
    ]
    if nodes:
        yield Attention(
            what="suspect",
            since=min(n.since for n in nodes),
            text=f"{compress(n.name for n in nodes)}: no heartbeat, and no second witness",
            fix="look at the node and superv's agent on it; its ranks may go on",
        )


def _ranks(run: Run, now: float) -> Iterator[Attention]:
    """Ranks that ended well though others did not, and ranks that were never started."""
    attempt = run.attempt
    if attempt is None or run.phase is not Phase.RUNNING:
        return
    total = len(attempt.slots) * run.spec.ranks_per_node
    exits, first = tuple(attempt.exits.values()), attempt.first_end_at
    if exits and first is not None and now - first > RANKS_S:
        which = compress({e.node for e in exits})
        yield Attention(
            what="ranks",
            since=first,
            text=f"{len(exits)} of {total} ranks ended with code 0 on {which}; of the others no "
            "end is known",
            fix=f"`superv logs {run.spec.name} --rank {exits[0].rank}` shows its end",
        )
    absent = [node for node in attempt.slots if node not in attempt.started]
    if absent and now - (since := attempt.started_at or run.since) > RANKS_S:
        yield Attention(
            what="ranks",
            since=since,
            text=f"{compress(absent)} has not confirmed that its ranks are started",
            fix="look at superv's agent.log on the node",
        )


def _restarts(run: Run) -> Iterator[Attention]:
    """What would have held the run were it not the world's doing."""
    limit = run.spec.policy.restarts_without_progress
    for cause, tries in run.restarts_without_progress.items():
        if tries > limit:
            yield Attention(
                what="restarts",
                since=run.incidents[-1].confirmed_at if run.incidents else None,
                text=f"{tries} restarts for {cause} without a new verified checkpoint",
                fix=f"docs/runbooks/{cause}.md; the run goes on after longer and longer pauses",
            )


def _unread(run: Run) -> Iterator[Attention]:
    """Ranks write lines and no step is understood: what stands in one, and what would fit it."""
    attempt = run.attempt
    if attempt is None or attempt.unread is None or run.phase not in HAS_RANKS:
        return
    unread = attempt.unread
    known = "; a verified checkpoint says that it trains" if attempt.by_checkpoint else ""
    pattern = f"progress: {{step: '{unread.pattern}'}}"
    yield Attention(
        what="steps",
        since=unread.since,
        text=f"no step is understood in the lines of the ranks{known}; rank {unread.rank} on "
        f"{unread.node} writes: {unread.line}",
        fix=f"in job.yaml, for the next launch: {pattern}"
        if unread.pattern
        else "say in job.yaml how a step is written, for the next launch: progress.step "
        "(docs/configuration.md)",
    )


def _hook(run: Run) -> Iterator[Attention]:
    """The hook can't do what superv relies on: another version of the trainer, or another use."""
    attempt = run.attempt
    if attempt is None or attempt.hook_trouble is None or run.phase not in HAS_RANKS:
        return
    one = attempt.hook_trouble
    yield Attention(
        what="hook",
        since=one.since,
        text=f"{one.text} (rank {one.rank} on {one.node})",
        fix="docs/torchtitan.md says which versions and what of them the hook needs",
    )


def _steps_below(run: Run) -> Iterator[Attention]:
    """Lines count below the step that was resumed, though a rank said that it was resumed."""
    attempt = run.attempt
    if attempt is None or attempt.resume is None or run.phase is not Phase.RUNNING:
        return
    if attempt.step is not None and attempt.step < attempt.resume.step:
        yield Attention(
            what="steps",
            since=attempt.first_step_at,
            text=f"the ranks' lines count {attempt.step} steps, and step {attempt.resume.step} was "
            "resumed",
            fix="fine where they begin again with each epoch; else see whether the trainer resumes",
        )


def _behind(seen: EngineView) -> Iterator[Attention]:
    if not seen.stragglers:
        return
    worst = max(seen.stragglers, key=lambda one: one.factor)
    more = len(seen.stragglers) - 1
    others = f"; so are ranks on {more} more nodes" if more else ""
    yield Attention(
        what="behind",
        since=None,
        text=f"rank {worst.rank} on {worst.node} is at step {worst.step} where the run is at "
        f"{worst.run_step}: {worst.factor:.0f}x slower{others}",
        fix=f"`superv preflight --nodes {worst.node}` looks at the node; its ranks go on",
    )


def _loss(run: Run) -> Iterator[Attention]:
    attempt = run.attempt
    if attempt is None or attempt.loss_not_finite_since is None or run.phase is not Phase.RUNNING:
        return
    finite = attempt.loss
    last = "none was finite" if finite is None else f"the last finite one was {finite:g}"
    yield Attention(
        what="loss",
        since=attempt.loss_not_finite_since,
        text=f"the loss is NaN or infinite; {last}; saves after step "
        f"{last_finite(run)} don't count",
        fix=f"if it diverged: `superv checkpoints quarantine {run.spec.name} STEP` (--help)",
    )


def _checkpoints(run: Run, now: float) -> Iterator[Attention]:
    """Saves that never complete: no new verified checkpoint though the job trains."""
    attempt = run.attempt
    if (
        attempt is None
        or attempt.save_dir is None
        or attempt.first_step_at is None
        or run.phase is not Phase.RUNNING
    ):
        return
    newest = run.lineage[-1] if run.lineage else None
    since = max(attempt.first_step_at, newest.verified_at if newest else 0.0)
    if now - since <= save_limit(run):
        return
    good = f"the last good one is of step {newest.step}" if newest else "there is none yet"
    bad = [r for r in run.rejected if r.path.startswith(f"{attempt.save_dir}/")]
    why = f"; step {bad[-1].step}: {bad[-1].why}" if bad else ""
    yield Attention(
        what="checkpoints",
        since=since,
        text=f"no checkpoint was verified for {(now - since) / 60:.0f} min; {good}{why}",
        fix=f"see whether ranks save: `superv logs {run.spec.name}`, and {attempt.save_dir}",
    )


def save_limit(run: Run) -> float:
    """Seconds without a new verified checkpoint after which one is overdue."""
    times = sorted(c.verified_at for c in run.lineage if c.attempt)
    gaps = [later - before for before, later in pairwise(times) if later > before]
    return max(SAVES_FLOOR_S, SAVES_FACTOR * median(gaps)) if gaps else FIRST_SAVE_S
