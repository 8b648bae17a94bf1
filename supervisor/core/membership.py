"""Allocations and agents: who is there to run ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.liveness import help_back, second_witness
from supervisor.core.node_life import drained, gone_for_slurm, mark_ready, problems_changed
from supervisor.core.placement import assign_slots, try_assign_slots
from supervisor.core.ports import JobState
from supervisor.core.recovery import (
    all_ranks_stopped,
    has_slot,
    node_confirmed_stopped,
    open_incident,
    stop_stale_ranks,
)
from supervisor.core.renewal import give_back_and_ask, request_allocation, trade_back
from supervisor.core.shutdown import cancel, change_allocation, end, leave
from supervisor.core.transition import Transition, expires, handles
from supervisor.core.types import (
    Allocation,
    AllocationState,
    Cause,
    DeadlineKind,
    Evidence,
    Node,
    NodeState,
    Phase,
    Run,
)

ASK_AGAIN_S = 300.0  # what Slurm refused is asked for again after this …
MAX_REFUSALS = 12  # … and a person after an hour of definite refusals


@handles(ev.Submitted)
def submitted(t: Transition, event: ev.Submitted) -> None:
    if event.job_id in t.run.allocations:
        return
    alloc = Allocation(
        job_id=event.job_id,
        job_name=event.job_name,
        folder=event.folder,
        state=AllocationState.REQUESTED,
    )
    t.set(allocations={**t.run.allocations, event.job_id: alloc}, asked_by_person=False, refusals=0)
    if t.run.ended:
        cancel(t, event.job_id, "the run ended before its job was granted")


@handles(ev.SubmitRefused)
def submit_refused(t: Transition, event: ev.SubmitRefused) -> None:
    """The first time a person is told at once. Later nobody looks, and clusters change: it is
    asked again."""
    if t.run.ended:
        return
    if {*event.excluded} - {*t.run.excluded, *t.run.operator_excluded}:
        request_allocation(t)  # some were left out of this request alone
        return
    if t.run.asked_by_person or event.definite is None:
        end(t, Phase.HELD, event.why)
        return
    if trade_back(t, event.lacking, event.excluded):
        request_allocation(t)
        return
    t.set(refusals=t.run.refusals + event.definite)
    if t.run.refusals > MAX_REFUSALS:
        end(t, Phase.HELD, f"{event.why} (asked {t.run.refusals} times)")
        return
    again = f"it is asked again every {ASK_AGAIN_S:.0f} s"
    t.enter_phase(Phase.PENDING, f"{event.why}; {again}", (ASK_AGAIN_S, DeadlineKind.ASK_AGAIN))


@expires(DeadlineKind.ASK_AGAIN, lambda policy: ASK_AGAIN_S, of_agents=False)
def refused_before(t: Transition, waited: str) -> None:
    request_allocation(t)


@handles(ev.NodesLacking)
def nodes_lacking(t: Transition, event: ev.NodesLacking) -> None:
    """Slurm can't grant the job as things are: nodes of doubtful guilt are given it instead."""
    job = t.run.allocations.get(event.job_id)
    if job is None or job.state is not AllocationState.REQUESTED or job.cancelled or t.run.ended:
        return
    change_allocation(t, event.job_id, lacking=event.lacking)
    if t.run.phase is not Phase.PENDING or event.lacking == 0:
        return
    out = {*t.run.excluded, *t.run.operator_excluded}
    allowed = [name for name in event.excluded if name not in out]  # by a person, since it asked
    lacking = event.lacking - len(allowed)
    if lacking <= 0 or trade_back(t, lacking, event.excluded):
        give_back_and_ask(t, f"{t.run.spec.nodes} are not in service without those excluded")


@handles(ev.StrayJobSeen)
def stray_job_seen(t: Transition, event: ev.StrayJobSeen) -> None:
    """Nobody would give its agents keys: it holds nodes for nothing, or keeps our job waiting."""
    asked = any(
        isinstance(a, act.Submit) and a.job_name == event.job_name for a in t.run.pending.values()
    )
    if event.job_id not in t.run.live_jobs and not asked:
        key = names.cancel_key(event.job_id)
        t.emit(act.Cancel(key=key, job_id=event.job_id, why="a twin of a job of this run"))


@handles(ev.AllocationSeen)
def allocation_seen(t: Transition, event: ev.AllocationSeen) -> None:
    before = t.run.allocations.get(event.job_id)
    if before is None or before.state is AllocationState.ENDED:
        return
    shut = {"down": event.down, "drained": event.drained}
    told = {"means": event.means, "do": event.do, "starts_at": event.starts_at}
    change_allocation(t, event.job_id, raw=event.raw, reason=event.reason, **shut, **told)
    match event.state:
        case JobState.RUNNING:
            _granted(t, event, before)
        case JobState.CANCELLED | JobState.ENDED | JobState.FORGOTTEN:
            allocation_ended(t, event, ours=before.cancelled)
        case JobState.PENDING | JobState.UNKNOWN:
            pass
        case _:
            assert_never(event.state)


def _granted(t: Transition, event: ev.AllocationSeen, before: Allocation) -> None:
    # Of a job that ends, or that can't be read, Slurm lists fewer nodes than it has.
    whole = event.nodes and event.raw != "COMPLETING"
    nodes = event.nodes if whole else before.nodes
    change_allocation(t, event.job_id, state=AllocationState.GRANTED, nodes=nodes)
    if nodes != before.nodes:
        for name in t.run.pool.group(("job", event.job_id)):
            t.update_node(name, listed=_listed(t.run, event.job_id, name))
    if before.state is AllocationState.REQUESTED and not t.run.ended and not before.cancelled:
        t.emit(
            act.SendKeys(key=names.send_keys_key(event.job_id, t.run.epoch), job_id=event.job_id)
        )
        if t.run.phase is Phase.PENDING:
            reason = f"{len(event.nodes)} nodes granted; their agents are coming"
            limit = t.run.spec.policy.registration_timeout_s
            t.enter_phase(Phase.GATHERING, reason, (limit, DeadlineKind.REGISTRATION))
    gone = gone_for_slurm(t.run)
    for name, why in gone.items():
        second_witness(t, name, "slurm", why)
    t.drop(lambda a: isinstance(a, act.StartAgent) and a.node in gone)  # nothing starts there
    help_back(t, [name for name in before.down if name not in event.down])
    if event.drained != before.drained and not t.run.ended:
        _drains_changed(t)


def _drains_changed(t: Transition) -> None:
    """Nothing begins on a drained node; where ranks run they go on."""
    if t.run.phase is Phase.GATHERING:
        try_assign_slots(t)
    elif t.run.phase is Phase.CHECKING and not drained(t.run).isdisjoint(t.run.slots):
        assign_slots(t)


def _listed(run: Run, job_id: str, name: str) -> bool:
    job = run.allocations[job_id]
    return not job.nodes or name in job.nodes


def allocation_ended(t: Transition, event: ev.AllocationSeen, *, ours: bool) -> None:
    # The next allocation may have the same nodes, well again.
    change_allocation(t, event.job_id, state=AllocationState.ENDED, down=(), drained=())
    t.drop(lambda a: getattr(a, "job_id", None) == event.job_id)
    for node in t.run.pool.values():
        if node.job_id == event.job_id and node.state is not NodeState.LOST:
            t.update_node(node.name, state=NodeState.LEFT, since=t.at, reason=f"job is {event.raw}")
    t.drop(lambda a: isinstance(a, act.AgentCommand))
    if t.run.ended:
        if not t.run.live_jobs:  # nobody is left who could leave, or bring logs
            t.drop(lambda a: isinstance(a, act.KeepLogs))
            t.set(deadline=None)
        return
    if event.state is JobState.CANCELLED and not ours:
        end(t, Phase.STOPPED, f"job {event.job_id} was cancelled by a person ({event.raw})")
    elif t.run.stopping_as is not None:
        end(t, t.run.stopping_as, t.run.reason)
    elif not t.run.live_jobs and ours:  # given back, to ask for other nodes
        request_allocation(t)
    elif not t.run.live_jobs:
        allocation_lost(t, event)


def allocation_lost(t: Transition, event: ev.AllocationSeen) -> None:
    seen = Evidence(
        node="",
        at=t.at,
        source="slurm",
        text=f"job {event.job_id} ended: {event.raw} {event.reason}".strip(),
    )
    if t.run.phase in (Phase.STOPPING, Phase.TRIAGE):
        t.update_incident(evidence=t.run.incidents[-1].evidence.plus([seen]))
        if t.run.phase is Phase.STOPPING:
            all_ranks_stopped(t)
    else:
        open_incident(t, Cause.ALLOCATION_ENDED, seen)


@handles(ev.AgentJoined)
def agent_joined(t: Transition, event: ev.AgentJoined) -> None:
    job = t.run.allocations.get(event.job_id)
    if job is None or job.state is AllocationState.ENDED:
        return  # a node that outlived its job is not this run's any more
    if job.cancelled and not t.run.ended:
        return  # it was given back, and another one asked for
    before = t.run.pool.get(event.node)
    node = Node(
        name=event.node,
        job_id=event.job_id,
        address=event.address,
        port=event.port,
        agent=event.agent,
        key=event.key,
        since=t.at,
        listed=_listed(t.run, event.job_id, event.node),
        state=NodeState.UNUSABLE if event.problems else NodeState.READY,
        reason="; ".join(event.problems),
        trouble="; ".join(event.problems),
        problems=event.problems,
    )
    if before is not None and before.job_id == event.job_id:  # what was found is still true
        node = replace(
            node, health=before.health, faults=before.faults, checked_at=before.checked_at
        )
    t.set(pool=t.run.pool.put(event.node, node))
    if node.state is NodeState.READY:
        mark_ready(t, event.node)
    t.drop(lambda a: isinstance(a, act.Probe), among=("target", event.node))
    t.drop(lambda a: getattr(a, "node", "") == event.node, among=act.StartAgent)  # it came
    if t.run.ended:
        leave(t, event.node)
        return
    attempt = t.run.attempt
    in_slot = attempt is not None and event.node in attempt.slots
    if attempt is not None and (
        (t.run.phase is Phase.STARTING and event.node in attempt.started)
        or (t.run.phase is Phase.RUNNING and in_slot)
    ):
        expected = t.run.spec.ranks_per_node - attempt.exits.size(event.node)
        if event.attempt != attempt.number or event.ranks < expected:
            text = f"the agent on {event.node} came back without the ranks of attempt "
            seen = Evidence(
                node=event.node, at=t.at, source="agent", text=f"{text}{attempt.number}"
            )
            open_incident(t, Cause.RANKS_LOST, seen)
    elif t.run.phase is Phase.STARTING and in_slot and event.problems:  # no rank of it runs there
        text = f"{event.node} registered again and is unusable: {node.reason}"
        seen = Evidence(node=event.node, at=t.at, source="start", text=text)
        open_incident(t, Cause.START_FAILED, seen)
    elif t.run.phase is Phase.CHECKING and in_slot and event.problems:
        assign_slots(t)
    elif event.ranks or (t.run.phase is Phase.STOPPING and in_slot):
        stop_stale_ranks(t, event.node)
    if t.run.phase is Phase.GATHERING:
        try_assign_slots(t)


@handles(ev.ProblemsSeen)
def problems_seen(t: Transition, event: ev.ProblemsSeen) -> None:
    """What an agent found when it registered is over, or is new; ranks that run are left alone."""
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent or node.problems == event.problems:
        return
    problems_changed(t, event.node, event.problems)
    unusable = t.run.pool[event.node].state is NodeState.UNUSABLE
    if t.run.phase is Phase.CHECKING and event.node in t.run.slots and unusable:
        assign_slots(t)
    elif t.run.phase is Phase.GATHERING:
        try_assign_slots(t)


@handles(ev.AgentLeft)
def agent_left(t: Transition, event: ev.AgentLeft) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent:
        return
    t.update_node(event.node, state=NodeState.LEFT, since=t.at, reason=event.reason)
    t.drop(lambda a: isinstance(a, act.AgentCommand), among=("node", event.node))
    if t.run.ended:
        return
    t.emit(act.Poll(key=names.poll_key(node.job_id, t.at), job_id=node.job_id))
    if t.run.phase is Phase.STOPPING:
        node_confirmed_stopped(t, event.node)
    elif t.run.phase is Phase.CHECKING and event.node in t.run.slots:
        assign_slots(t)
    elif has_slot(t.run, event.node):
        text = f"the agent on {event.node} left: {event.reason}"
        open_incident(
            t, Cause.AGENT_LEFT, Evidence(node=event.node, at=t.at, source="agent", text=text)
        )
