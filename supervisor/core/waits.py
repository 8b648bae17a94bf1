"""What a run waits for, in words, and until when: what stands where a person looks first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from supervisor.core import actions as act
from supervisor.core.node_life import usable
from supervisor.core.nodeset import compress
from supervisor.core.transition import stands_still
from supervisor.core.types import (
    AllocationState,
    Attempt,
    DeadlineKind,
    NodeState,
    Phase,
    Run,
)

MOST_NAMES = 200  # characters of a list of nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitedThing:
    """What the run can't go on without at present."""

    what: str
    until: float | None  # then it does something else; None: it waits for as long as it takes
    then: str = ""  # what it does then


def waits_for(run: Run) -> AwaitedThing | None:
    """None where a run is over, trains, or works on something that needs no other."""
    if run.deadline is not None:
        what, then = _DEADLINES[run.deadline.kind]
        still = stands_still(run, run.deadline.kind)
        until = None if still else run.deadline.at
        paused = "; the deadline stands still while most agents are silent" if still else ""
        return AwaitedThing(what=f"{what(run)}{paused}", until=until, then=then)
    if run.ended:
        return None
    if run.phase is Phase.PENDING:
        return AwaitedThing(what=_slurm(run), until=None)
    if run.phase is Phase.TRIAGE:
        return AwaitedThing(what=_judgement(run), until=None)
    if run.phase is Phase.GATHERING:
        return AwaitedThing(what=_agents(run), until=None)
    return None


def _slurm(run: Run) -> str:
    asked = [a for a in run.allocations.values() if a.state is AllocationState.REQUESTED]
    if not asked:
        return "Slurm to take the request for nodes"
    named = {a.reason.strip("()"): a.means for a in asked if a.reason not in ("", "None")}
    reasons = {f"{reason}: {means}" if means else reason for reason, means in named.items()}
    why = f" ({', '.join(sorted(reasons))})" if reasons else ""
    jobs = ", ".join(a.job_id for a in asked)
    return f"nodes from Slurm: job {jobs} is {asked[-1].raw or 'submitted'}{why}"


def _agents(run: Run) -> str:
    return f"agents: {len(usable(run))} of {run.spec.nodes} nodes are usable"


def _spares(run: Run) -> str:
    more = max(0, len(usable(run)) - run.spec.nodes)
    return f"the spares' agents: {more} of {run.spec.spares} have come"


def _attempt(run: Run) -> Attempt:
    assert run.attempt is not None
    return run.attempt


def _prepared(run: Run) -> str:
    left = [node for node in _attempt(run).slots if node not in _attempt(run).prepared]
    return f"{_names(left)} to say that no older rank is left there"


def _first_step(run: Run) -> str:
    attempt = _attempt(run)
    left = [node for node in attempt.slots if node not in attempt.started]
    where = f"; no ranks yet on {_names(left)}" if left else ""
    return f"the first step of attempt {attempt.number}{where}"


def _stopped(run: Run) -> str:
    if run.attempt is None:
        return "the old ranks' end"
    gone = run.attempt.confirmed_stopped
    lost = {n.name for n in run.pool.values() if n.state is NodeState.LOST}
    left = [node for node in run.attempt.slots if node not in gone and node not in lost]
    return f"the old ranks' end on {_names(left)}" if left else "the old ranks' end"


def _last_ranks(run: Run) -> str:
    attempt = _attempt(run)
    total = len(attempt.slots) * run.spec.ranks_per_node
    return f"the other ranks' end: {len(attempt.exits)} of {total} have ended well"


def _left(run: Run) -> str:
    jobs = ", ".join(run.live_jobs)
    return f"agents to leave{f', and job {jobs} to end' if jobs else ''}"


def _judgement(run: Run) -> str:
    scans = any(isinstance(action, act.Scan) for action in run.pending.values())
    return "checkpoints to be verified" if scans else "evidence from the nodes"


def _names(nodes: list[str]) -> str:
    shown = compress(nodes)
    if len(shown) <= MOST_NAMES:
        return shown
    return f"{len(nodes)} nodes"


def _said(text: str) -> Callable[[Run], str]:
    return lambda run: text


# By kind of deadline: what is waited for, and what the run does when the time is up.
_DEADLINES: Mapping[DeadlineKind, tuple[Callable[[Run], str], str]] = {
    DeadlineKind.REGISTRATION: (_agents, "other nodes are asked for, or the run is held"),
    DeadlineKind.SPARES: (_spares, "it starts without them"),
    DeadlineKind.PREPARE: (_prepared, "other nodes take their slots"),
    DeadlineKind.FIRST_STEP: (_first_step, "the attempt is stopped"),
    DeadlineKind.STOP: (_stopped, "it goes on without those nodes"),
    DeadlineKind.LAST_RANKS: (_last_ranks, "the attempt is stopped"),
    DeadlineKind.FINAL_SCAN: (_said("storage, to say what was saved last"), "it ends all the same"),
    DeadlineKind.RETRY: (_said("the end of a pause"), "the next attempt begins"),
    DeadlineKind.ASK_AGAIN: (_said("the end of a pause"), "Slurm is asked for nodes again"),
    DeadlineKind.LOGS: (_said("the ranks' logs"), "agents leave without them"),
    DeadlineKind.RELEASE: (_left, "its jobs are cancelled"),
    DeadlineKind.REFUSED: (_said("an action that superv refused itself"), "the run is held"),
}
