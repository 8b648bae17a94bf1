"""Silence of a node, and the second witness that it needs to count."""

from __future__ import annotations

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.ending import leave
from supervisor.core.placement import back, gathered, place
from supervisor.core.recovery import clear, has_slot, node_is_clear, open_incident
from supervisor.core.turn import Turn
from supervisor.core.types import Evidence, NodeState, Phase, Run

PROBES = 3  # peers that are asked whether they reach a silent node


def node_silent(t: Turn, event: ev.NodeSilent) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.state is not NodeState.READY or t.run.ended:
        return
    t.node(
        event.node,
        state=NodeState.SUSPECT,
        since=t.at,
        reason=f"no beat since {t.at - event.last_heard:.1f} s",
        unreachable=(),
        reachable=(),
    )
    job = t.run.allocations.get(node.job_id)
    if job is not None and event.node in job.down:
        witnessed_lost(t, event.node, "slurm", f"Slurm reports {event.node} as down")
        return
    t.do(do.Poll(key=f"poll/{node.job_id}/{t.at:.3f}", job_id=node.job_id))
    for peer in peers(t.run, event.node):
        t.do(
            do.Probe(
                key=f"probe/{event.node}/{t.at:.3f}/{peer}",
                node=peer,
                attempt=t.run.attempt.number if t.run.attempt else 0,
                target=event.node,
                address=node.address,
                port=node.port,
            )
        )
    weigh(t)


def peers(run: Run, name: str) -> list[str]:
    return [n.name for n in run.pool.values() if n.state is NodeState.READY and n.name != name][
        :PROBES
    ]


def node_heard(t: Turn, event: ev.NodeHeard) -> None:
    """It is there after all. Where it was given up, its ranks are nobody's any more."""
    node = t.run.pool.get(event.node)
    if node is None or node.state not in (NodeState.SUSPECT, NodeState.LOST):
        return
    back(t, event.node)
    t.drop(lambda a: isinstance(a, do.Probe) and a.target == event.node)
    if t.run.ended:
        leave(t, event.node)
        return
    if node.state is NodeState.LOST or not (t.run.attempt and event.node in t.run.attempt.slots):
        clear(t, event.node)
    if t.run.phase is Phase.GATHERING:
        gathered(t)


def probed(t: Turn, event: ev.Probed) -> None:
    node = t.run.pool.get(event.target)
    if node is None or node.state is not NodeState.SUSPECT or t.run.ended:
        return
    if event.outcome == "unreachable":
        t.node(event.target, unreachable=(*node.unreachable, event.node))
    else:
        t.node(event.target, reachable=(*node.reachable, event.node))
        if event.outcome == "refused" and not node.reachable:  # the host answers, not its agent
            t.do(
                do.StartAgent(
                    key=f"agent/{event.target}/{node.since:.3f}",
                    job_id=node.job_id,
                    node=event.target,
                )
            )
    weigh(t)


def weigh(t: Turn) -> None:
    """Judge every suspect whose probes are all answered, but for those of peers that are silent."""
    ready = {n.name for n in t.run.pool.values() if n.state is NodeState.READY}
    open_probes = (a for a in t.run.pending.values() if isinstance(a, do.Probe))
    asked = {a.target for a in open_probes if a.node in ready}
    for node in t.run.pool.values():
        if node.name not in asked and node.unreachable and not node.reachable:
            told = ", ".join(node.unreachable)
            witnessed_lost(t, node.name, "peers", f"{told} can't reach {node.name} either")


def step_overdue(t: Turn, event: ev.StepOverdue) -> None:
    text = (
        f"no step since step {event.last_step}, {t.at - event.last_at:.1f} s ago; "
        f"the job's own rhythm allows {event.limit_s:.1f} s"
    )
    silent = [n.name for n in t.run.pool.values() if n.state is NodeState.SUSPECT]
    confirm_lost(t, [name for name in silent if has_slot(t.run, name)], "overdue step", text)


def witnessed_lost(t: Turn, name: str, source: str, text: str) -> None:
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
        and attempt.step_at > node.since
    )
    if not steps_went_on:
        confirm_lost(t, [name], source, text)


def confirm_lost(t: Turn, names: list[str], source: str, text: str) -> None:
    """A second witness said that these silent nodes are lost."""
    evidence: list[Evidence] = []
    suspected = t.at
    for name in names:
        node = t.run.pool[name]
        suspected = min(suspected, node.since)
        said = f"{name}: {node.reason}"
        evidence.append(Evidence(node=name, at=node.since, source="silence", text=said))
        evidence.append(Evidence(node=name, at=t.at, source=source, text=text))
        t.node(name, state=NodeState.LOST, since=t.at, reason=text)
    t.drop(lambda a: isinstance(a, do.Order) and (a.node in names or probes(a, names)))
    if t.run.ended:
        return
    if any(has_slot(t.run, name) for name in names):
        open_incident(t, "node-lost", *evidence, suspected_at=suspected)
    elif t.run.phase is Phase.STOPPING:
        if t.run.goal is None:
            t.incident(evidence=(*t.run.incidents[-1].evidence, *evidence))
        for name in names:
            node_is_clear(t, name)
    elif t.run.phase is Phase.CHECKING and any(name in t.run.slots for name in names):
        place(t)


def probes(action: Action, names: list[str]) -> bool:
    return isinstance(action, do.Probe) and action.target in names
