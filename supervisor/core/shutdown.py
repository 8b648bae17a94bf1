"""The end of a run: its nodes are given back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.transition import Transition, handles
from supervisor.core.types import ENDED, AllocationState, Deadline, DeadlineKind, NodeState, Phase

LOGS_S = 20.0  # how long nodes are kept for what the last attempt's ranks wrote
RELEASE_S = 15.0  # agents told to leave have ended their job by then; else it is cancelled


def change_allocation(t: Transition, job_id: str, **changes: Any) -> None:
    alloc = replace(t.run.allocations[job_id], **changes)
    t.set(allocations={**t.run.allocations, job_id: alloc})


def cancel(t: Transition, job_id: str, why: str) -> None:
    change_allocation(t, job_id, cancelled=True)
    if names.cancel_key(job_id) in t.run.pending:
        return
    t.emit(act.Cancel(key=names.cancel_key(job_id), job_id=job_id, why=why))


def leave(t: Transition, node: str) -> None:
    number = t.run.attempt.number if t.run.attempt else 0
    t.emit(act.Leave(key=names.leave_key(node, t.run.pool[node].agent), node=node, attempt=number))


def end(t: Transition, phase: Phase, reason: str) -> None:
    """The run has ended: give its nodes back."""
    assert phase in ENDED
    # A request for nodes that has no answer yet may be a job already: its answer is waited for.
    # Checkpoints that are on their way out go there all the same, and logs are still fetched.
    kept = act.Cancel | act.Submit | act.Discard | act.Quarantine | act.KeepLogs
    t.drop(lambda a: not isinstance(a, kept))
    t.set(stopping_as=None, isolated_since=None)
    if not t.run.live_jobs:
        t.enter_phase(phase, reason)
        return
    t.enter_phase(phase, reason)
    for job in t.run.live_jobs:
        if t.run.allocations[job].state is AllocationState.REQUESTED:
            cancel(t, job, "the run ended")
    if t.run.pending.size(act.KeepLogs):  # the nodes have them
        t.set(deadline=Deadline(at=t.at + LOGS_S, kind=DeadlineKind.LOGS))
    else:
        release(t)


@handles(ev.RunEnded)
def run_ended(t: Transition, event: ev.RunEnded) -> None:
    """Nothing where the run has ended: so it is unless the code that decides has changed since."""
    if not t.run.ended:
        end(t, event.phase, event.reason)


def release(t: Transition) -> None:
    """Give the nodes of a run that has ended back."""
    if not t.run.live_jobs:
        t.set(deadline=None)
        return
    t.set(deadline=Deadline(at=t.at + RELEASE_S, kind=DeadlineKind.RELEASE))
    for node in t.run.pool.values():
        if node.state not in (NodeState.LOST, NodeState.LEFT):
            leave(t, node.name)
