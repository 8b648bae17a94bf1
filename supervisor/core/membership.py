"""Allocations and agents: who is there to run ranks."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.ending import cancel, change_allocation, end, leave
from supervisor.core.placement import back, gathered, place
from supervisor.core.recovery import (
    all_clear,
    clear,
    has_slot,
    node_is_clear,
    open_incident,
)
from supervisor.core.silence import witnessed_lost
from supervisor.core.turn import Turn
from supervisor.core.types import Allocation, Evidence, Node, NodeState, Phase


def submitted(t: Turn, event: ev.Submitted) -> None:
    if event.job_id in t.run.allocations:
        return
    alloc = Allocation(job_id=event.job_id, job_name=event.job_name, state="asked")
    t.set(allocations={**t.run.allocations, event.job_id: alloc})
    if t.run.ended:
        cancel(t, event.job_id, "the run ended before its job was granted")


def submit_refused(t: Turn, event: ev.SubmitRefused) -> None:
    if not t.run.ended:
        end(t, Phase.HELD, event.why)


def allocation_seen(t: Turn, event: ev.AllocationSeen) -> None:
    before = t.run.allocations.get(event.job_id)
    if before is None or before.state == "ended":
        return
    change_allocation(t, event.job_id, raw=event.raw, reason=event.reason, down=event.down)
    if event.state == "running":
        change_allocation(t, event.job_id, state="granted", nodes=event.nodes)
        if before.state == "asked" and not t.run.ended:
            t.do(do.SendKeys(key=f"keys/{event.job_id}/e{t.run.epoch}", job_id=event.job_id))
            if t.run.phase is Phase.PENDING:
                reason = f"{len(event.nodes)} nodes granted; their agents are coming"
                t.phase(Phase.GATHERING, reason, (t.run.spec.policy.gather_limit_s, "gather"))
        for name in event.down:
            witnessed_lost(t, name, "slurm", f"Slurm reports {name} as down")
    elif event.state in ("cancelled", "ended"):
        allocation_ended(t, event, ours=before.cancelled)


def allocation_ended(t: Turn, event: ev.AllocationSeen, *, ours: bool) -> None:
    change_allocation(t, event.job_id, state="ended")
    t.drop(lambda a: getattr(a, "job_id", None) == event.job_id)
    for node in t.run.pool.values():
        if node.job_id == event.job_id and node.state is not NodeState.LOST:
            t.node(node.name, state=NodeState.LEFT, since=t.at, reason=f"job is {event.raw}")
    t.drop(lambda a: isinstance(a, do.Order))
    if t.run.ended:
        return
    if event.state == "cancelled" and not ours:
        end(t, Phase.STOPPED, f"job {event.job_id} was cancelled by a person ({event.raw})")
    elif t.run.goal is not None:
        end(t, t.run.goal, t.run.reason)
    elif not t.run.live_jobs:
        lost_all(t, event)


def lost_all(t: Turn, event: ev.AllocationSeen) -> None:
    seen = Evidence(
        node="",
        at=t.at,
        source="slurm",
        text=f"job {event.job_id} ended: {event.raw} {event.reason}".strip(),
    )
    if t.run.phase in (Phase.STOPPING, Phase.TRIAGE):
        t.incident(evidence=(*t.run.incidents[-1].evidence, seen))
        if t.run.phase is Phase.STOPPING:
            all_clear(t)
    else:
        open_incident(t, "allocation-ended", seen)


def agent_joined(t: Turn, event: ev.AgentJoined) -> None:
    job = t.run.allocations.get(event.job_id)
    if job is None or job.state == "ended":
        return  # a node that outlived its job is not this run's any more
    before = t.run.pool.get(event.node)
    node = Node(
        name=event.node,
        job_id=event.job_id,
        address=event.address,
        port=event.port,
        agent=event.agent,
        since=t.at,
        state=NodeState.UNFIT if event.problems else NodeState.READY,
        reason="; ".join(event.problems),
    )
    if before is not None and before.job_id == event.job_id:  # what was found is still true
        node = replace(
            node, health=before.health, faults=before.faults, checked_at=before.checked_at
        )
    t.set(pool={**t.run.pool, event.node: node})
    if node.state is NodeState.READY:
        back(t, event.node)
    t.drop(lambda a: isinstance(a, do.Probe) and a.target == event.node)
    if t.run.ended:
        leave(t, event.node)
        return
    attempt = t.run.attempt
    in_slot = attempt is not None and event.node in attempt.slots
    if attempt is not None and (
        (t.run.phase is Phase.STARTING and event.node in attempt.started)
        or (t.run.phase is Phase.RUNNING and in_slot)
    ):
        seen_ends = sum(1 for e in attempt.exits if e.node == event.node)
        expected = t.run.spec.ranks_per_node - seen_ends
        if event.attempt != attempt.number or event.ranks < expected:
            text = f"the agent on {event.node} came back without the ranks of attempt "
            seen = Evidence(
                node=event.node, at=t.at, source="agent", text=f"{text}{attempt.number}"
            )
            open_incident(t, "ranks-lost", seen)
    elif t.run.phase is Phase.CHECKING and in_slot and event.problems:
        place(t)
    elif event.ranks or (t.run.phase is Phase.STOPPING and in_slot):
        clear(t, event.node)
    if t.run.phase is Phase.GATHERING:
        gathered(t)


def agent_left(t: Turn, event: ev.AgentLeft) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent:
        return
    t.node(event.node, state=NodeState.LEFT, since=t.at, reason=event.reason)
    t.drop(lambda a: isinstance(a, do.Order) and a.node == event.node)
    if t.run.ended:
        return
    t.do(do.Poll(key=f"poll/{node.job_id}/{t.at:.3f}", job_id=node.job_id))
    if t.run.phase is Phase.STOPPING:
        node_is_clear(t, event.node)
    elif t.run.phase is Phase.CHECKING and event.node in t.run.slots:
        place(t)
    elif has_slot(t.run, event.node):
        text = f"the agent on {event.node} left: {event.reason}"
        open_incident(
            t, "agent-left", Evidence(node=event.node, at=t.at, source="agent", text=text)
        )
