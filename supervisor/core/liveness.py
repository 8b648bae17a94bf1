"""Silence of a node, and the second witness that it needs to count."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import assert_never

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.actions import Action
from supervisor.core.node_life import gone_for_slurm, mark_heard
from supervisor.core.nodeset import natural_sort_key
from supervisor.core.placement import assign_slots, try_assign_slots
from supervisor.core.recovery import (
    has_slot,
    node_confirmed_stopped,
    open_incident,
    stop_stale_ranks,
)
from supervisor.core.shutdown import leave
from supervisor.core.transition import Transition, handles
from supervisor.core.types import (
    AllocationState,
    Cause,
    Evidence,
    Node,
    NodeState,
    Phase,
    ProbeOutcome,
    Run,
)

PROBES = 3  # peers that are asked whether they reach a silent node
AGENT_S = 10.0  # the shell around an agent starts the next one within seconds; ranks go on
STUCK_S = 60.0  # an agent whose port answers, and that says nothing for so long, is helped
STOPPED_S = 120.0  # one that keeps peers waiting, and was helped, is given up after this
SUSPECTS_FACTOR = 3  # what silent nodes hold up is decided after so many times its limit
HELPED = 3  # agents that are started in one round while this engine is cut off
REACHED_S = 5.0  # a peer that reached it so long ago is asked again


@handles(ev.HeartbeatLost)
def heartbeat_lost(t: Transition, event: ev.HeartbeatLost) -> None:
    """A node is silent, or is so still: whoever may know more is asked, again and again."""
    node = t.run.pool.get(event.node)
    if node is None or t.run.ended or t.run.isolated_since is not None:
        return
    fresh = node.looked_at is not None and t.at - node.looked_at < REACHED_S
    if node.state in (NodeState.READY, NodeState.UNUSABLE):
        silent = f"no heartbeat since {t.at - event.last_heard:.1f} s"
        looked_at = node.looked_at if fresh else t.at
        t.update_node(
            event.node, state=NodeState.SUSPECT, since=t.at, looked_at=looked_at, reason=silent
        )
    elif node.state is not NodeState.SUSPECT:
        return
    if why := gone_for_slurm(t.run).get(event.node):
        second_witness(t, event.node, "slurm", why)
    if t.run.pool[event.node].state is NodeState.SUSPECT:
        if not fresh:
            look(t, event.node)
        evaluate_suspects(t)


def look(t: Transition, name: str, silent: Collection[str] = ()) -> None:
    """Ask Slurm, and peers that are not silent, where a silent node is."""
    node = t.run.pool[name]
    t.drop(is_probe, among=("target", name))
    t.update_node(name, looked_at=t.at, unreachable=(), reachable=(), answering=(), mute=())
    polls = (t.run.pending[key] for key in t.run.pending.group(act.Poll))
    if not any(isinstance(a, act.Poll) and a.job_id == node.job_id for a in polls):
        t.emit(act.Poll(key=names.poll_key(node.job_id, t.at), job_id=node.job_id))
    asked = peers(t.run, name, silent)
    alone = not asked and t.run.isolated_since is None
    long = node.state is NodeState.SUSPECT and t.at - node.since > STUCK_S
    starting = any(isinstance(a, act.StartAgent) for a in _pending_of(t.run, name))
    if (alone or long) and not starting:
        # Nobody can say whether the host answers, or it does for long, and nothing comes of that:
        # its agent may want to be started, or to have the keys that it lost.
        start_agent(t, name, t.at)
    for peer in asked:
        t.emit(
            act.Probe(
                key=names.probe_key(name, t.at, peer),
                node=peer,
                attempt=t.run.attempt.number if t.run.attempt else 0,
                target=name,
                address=node.address,
                port=node.port,
            )
        )


def start_agent(t: Transition, name: str, looked_at: float) -> None:
    """Have an agent started beside the agent step; where one lives it has the keys again."""
    t.update_node(name, helped_at=t.at)
    key = names.start_agent_key(name, looked_at)
    t.emit(act.StartAgent(key=key, job_id=t.run.pool[name].job_id, node=name))


def help_back(t: Transition, lost: Collection[str]) -> None:
    """Have agents started on nodes that were given up and that Slurm has in their job, and up.

    A node that was booted again has lost its agent and the keys, and asks for neither.
    """
    gone = gone_for_slurm(t.run)
    for name in lost:
        node = t.run.pool.get(name)
        job = t.run.allocations.get(node.job_id) if node is not None else None
        given_up = node is not None and node.state is NodeState.LOST and name not in gone
        granted = job is not None and job.state is AllocationState.GRANTED and not job.cancelled
        asked = any(isinstance(a, act.StartAgent) for a in _pending_of(t.run, name))
        if given_up and granted and not asked and not t.run.ended:
            start_agent(t, name, t.at)


def help_some(t: Transition, silent: Collection[str]) -> None:
    """While this engine is cut off for long it may be its agents that can't find it.

    A few of them are started, those first that were helped longest ago: where that was it, one that
    is heard again ends the isolation, and where it was not, little was done for a wrong belief.
    """
    t.drop(lambda a: getattr(a, "node", "") in silent, among=act.StartAgent)  # others' turn
    gone = gone_for_slurm(t.run)
    able = [t.run.pool[name] for name in silent if name in t.run.pool and name not in gone]
    able.sort(key=lambda node: (node.helped_at or 0.0, natural_sort_key(node.name)))
    for node in able[:HELPED]:
        start_agent(t, node.name, t.at)


def _pending_of(run: Run, name: str) -> list[Action]:
    return [run.pending[key] for key in run.pending.group(("node", name))]


def peers(run: Run, name: str, silent: Collection[str] = ()) -> list[str]:
    heard = (
        n.name
        for n in run.pool.values()
        if n.state is NodeState.READY and n.name != name and n.name not in silent
    )
    return list(islice(heard, PROBES))


@handles(ev.HeartbeatRegained)
def heartbeat_regained(t: Transition, event: ev.HeartbeatRegained) -> None:
    """It is there after all. Where it was given up, its ranks are nobody's any more."""
    node = t.run.pool.get(event.node)
    if node is None or node.state not in (NodeState.SUSPECT, NodeState.LOST):
        return
    mark_heard(t, event.node)
    t.drop(is_probe, among=("target", event.node))
    t.drop(lambda a: isinstance(a, act.StartAgent) and a.node == event.node)
    if t.run.ended:
        leave(t, event.node)
        return
    if node.state is NodeState.LOST or not (t.run.attempt and event.node in t.run.attempt.slots):
        stop_stale_ranks(t, event.node)
    if t.run.phase is Phase.GATHERING:
        try_assign_slots(t)


@handles(ev.Probed)
def probed(t: Transition, event: ev.Probed) -> None:
    node = t.run.pool.get(event.target)
    silent = (NodeState.SUSPECT, NodeState.READY, NodeState.UNUSABLE)  # asked while it is cut off
    if node is None or node.state not in silent or node.looked_at is None or t.run.ended:
        return
    if event.key != names.probe_key(event.target, node.looked_at, event.node):
        return  # of an earlier look
    match event.outcome:
        case ProbeOutcome.UNREACHABLE:
            t.update_node(event.target, unreachable=(*node.unreachable, event.node))
        case ProbeOutcome.REACHED | ProbeOutcome.REFUSED | ProbeOutcome.MUTE:
            t.update_node(event.target, reachable=(*node.reachable, event.node))
            if event.outcome is ProbeOutcome.REACHED:
                t.update_node(event.target, answering=(*node.answering, event.node))
            elif event.outcome is ProbeOutcome.MUTE:
                t.update_node(event.target, mute=(*node.mute, event.node))
            elif not node.reachable and node.state is NodeState.SUSPECT:
                # the host answers, not its agent
                start_agent(t, event.target, node.looked_at)
        case _:
            assert_never(event.outcome)
    evaluate_suspects(t)


def evaluate_suspects(t: Transition) -> None:
    """Judge every suspect whose probes are all answered, but for those of peers that are silent."""
    if t.run.isolated_since is not None:
        return
    for name in t.run.pool.group(NodeState.SUSPECT):
        node = t.run.pool[name]
        if node.unreachable and not node.reachable and not asked(t.run, name):
            witnesses = ", ".join(node.unreachable)
            second_witness(t, node.name, "peers", f"{witnesses} can't reach {node.name} either")
        elif not has_slot(t.run, name) and is_given_up(t.run, name, t.at):
            # Where it has a slot its ranks may go on: a step that does not come says more.
            text = f"{', '.join(node.mute)} reach {name}, and nobody answers there"
            second_witness(t, name, "peers", text)


def is_stopped(run: Run, name: str) -> bool:
    """Whether all who were asked say that a silent node takes connections and answers nothing."""
    node = run.pool[name]
    mute = bool(node.mute) and len(node.mute) == len(node.reachable)
    return node.state is NodeState.SUSPECT and mute and not asked(run, name)


def is_given_up(run: Run, name: str, at: float) -> bool:
    """Whether it is stopped for so long that starting its agent once more was of no use either."""
    return is_stopped(run, name) and at - run.pool[name].since > STOPPED_S


def asked(run: Run, name: str) -> bool:
    """Whether a peer that is not silent itself has yet to say whether it reaches the node."""
    probes = (run.pending[key] for key in run.pending.group(("target", name)))
    peers = (run.pool.get(a.node) for a in probes if isinstance(a, act.Probe))
    return any(peer is not None and peer.state is NodeState.READY for peer in peers)


@handles(ev.StepOverdue)
def step_overdue(t: Transition, event: ev.StepOverdue) -> None:
    if t.run.isolated_since is not None:
        return
    text = (
        f"no step since step {event.last_step}, {t.at - event.last_at:.1f} s ago; "
        f"the job's own rhythm allows {event.limit_s:.1f} s"
    )
    suspects = t.run.pool.group(NodeState.SUSPECT)
    silent = [t.run.pool[name] for name in suspects if has_slot(t.run, name)]
    if event.suspects:  # whom peers have just reached is not lost; where it is may have changed
        for node in silent:
            if node.answering and t.at - (node.looked_at or node.since) > REACHED_S:
                look(t, node.name)
        silent = [n for n in silent if n.name in event.suspects and not n.answering]
        silent = [n for n in silent if not _restarts(n, t.at)]
        silent = [n for n in silent if not (_again(n) and asked(t.run, n.name))]
    if silent:
        confirm_lost(t, [n.name for n in silent], "overdue step", text)


def _restarts(node: Node, at: float) -> bool:
    """Whether its host says that it has no agent, and the next has had no time yet to begin."""
    return len(node.reachable) > len(node.mute) and at - node.since < AGENT_S


def _again(node: Node) -> bool:
    """Whether peers are asked once more: they may have reached it the last time."""
    return node.looked_at is not None and node.looked_at > node.since


def second_witness(t: Transition, name: str, source: str, text: str) -> None:
    """Somebody else says so too: the node is lost, unless the job's steps went on since.

    Progress is the strongest sign of life. When the steps end later, the overdue one confirms.
    """
    node, attempt = t.run.pool.get(name), t.run.attempt
    if node is None or node.state is not NodeState.SUSPECT:
        return
    steps_went_on = (
        has_slot(t.run, name)
        and attempt is not None
        and attempt.step_at is not None
        and attempt.step_at > (node.looked_at or node.since)
    )
    if not steps_went_on:
        confirm_lost(t, [name], source, text)


def confirm_lost(t: Transition, names: list[str], source: str, text: str) -> None:
    """A second witness said that these silent nodes are lost."""
    evidence: list[Evidence] = []
    suspected = t.at
    for name in names:
        node = t.run.pool[name]
        suspected = min(suspected, node.since)
        said = f"{name}: {node.reason}"
        evidence.append(Evidence(node=name, at=node.since, source="silence", text=said))
        evidence.append(Evidence(node=name, at=t.at, source=source, text=text))
        t.update_node(name, state=NodeState.LOST, since=t.at, reason=text)
    for name in names:
        t.drop(lambda a: isinstance(a, act.AgentCommand), among=("node", name))
        t.drop(is_probe, among=("target", name))
    if t.run.ended:
        return
    if any(has_slot(t.run, name) for name in names):
        open_incident(t, Cause.NODE_LOST, *evidence, suspected_at=suspected)
    elif t.run.phase is Phase.STOPPING:
        if t.run.stopping_as is None:
            t.update_incident(evidence=t.run.incidents[-1].evidence.plus(evidence))
        for name in names:
            node_confirmed_stopped(t, name)
    elif t.run.phase is Phase.CHECKING and any(name in t.run.slots for name in names):
        assign_slots(t)


def is_probe(action: Action) -> bool:
    return isinstance(action, act.Probe)
