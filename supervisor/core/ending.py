"""The end of a run: its nodes are given back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from supervisor.core import actions as do
from supervisor.core.turn import Turn
from supervisor.core.types import ENDS, NodeState, Phase

RELEASE_S = 15.0  # agents told to leave have ended their job by then; else it is cancelled


def change_allocation(t: Turn, job_id: str, **changes: Any) -> None:
    alloc = replace(t.run.allocations[job_id], **changes)
    t.set(allocations={**t.run.allocations, job_id: alloc})


def cancel(t: Turn, job_id: str, why: str) -> None:
    change_allocation(t, job_id, cancelled=True)
    t.do(do.Cancel(key=f"cancel/{job_id}", job_id=job_id, why=why))


def leave(t: Turn, node: str) -> None:
    number = t.run.attempt.number if t.run.attempt else 0
    t.do(do.Leave(key=f"leave/{node}/{t.run.pool[node].agent}", node=node, attempt=number))


def end(t: Turn, phase: Phase, reason: str) -> None:
    """The run has ended: give its nodes back."""
    assert phase in ENDS
    # A request for nodes that has no answer yet may be a job already: its answer is waited for.
    # Checkpoints that are on their way out go there all the same.
    kept = do.Cancel | do.Submit | do.Discard | do.Quarantine
    t.drop(lambda a: not isinstance(a, kept))
    t.set(goal=None)
    if not t.run.live_jobs:
        t.phase(phase, reason)
        return
    t.phase(phase, reason, (RELEASE_S, "release"))
    for node in t.run.pool.values():
        if node.state not in (NodeState.LOST, NodeState.LEFT):
            leave(t, node.name)
    for job in t.run.live_jobs:
        if t.run.allocations[job].state == "asked":
            cancel(t, job, "the run ended")
