"""What health checks say of nodes: who may run ranks, and who is named when something broke.

A failed check keeps a node from being used; it does not stop ranks whose steps advance.
"""

from __future__ import annotations

from supervisor.core import events as ev
from supervisor.core.placement import gathered, mark_ill, place
from supervisor.core.recovery import open_incident
from supervisor.core.turn import Turn
from supervisor.core.types import Evidence, Node, NodeState, Phase, Run


def health_seen(t: Turn, event: ev.HealthSeen) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent:
        return
    t.node(event.node, health=event.status, faults=event.faults, checked_at=t.at)
    if t.run.ended:
        return
    failed = event.status == "FAIL"
    if failed and node.state is NodeState.READY and not _has_ranks(t.run, event.node):
        mark_ill(t, event.node)
        if t.run.phase is Phase.CHECKING and event.node in t.run.slots:
            place(t)
    elif failed and t.run.pool[event.node].own_faults and _not_begun(t.run, event.node):
        open_incident(t, "unhealthy-node", evidence(t.run.pool[event.node]))
    elif not failed and node.state is NodeState.UNFIT and node.ill:
        t.node(event.node, state=NodeState.READY, since=t.at, reason="", ill=False)
    if t.run.phase is Phase.GATHERING:
        gathered(t)


def evidence(node: Node) -> Evidence:
    worst = node.own_faults[0]
    return Evidence(
        node=node.name,
        at=node.checked_at or 0.0,
        source="health",
        text=f"{node.name} failed {worst.check}: {worst.text}",
    )


def _has_ranks(run: Run, name: str) -> bool:
    slots = run.attempt.slots if run.attempt else ()
    return name in slots and run.phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING)


def _not_begun(run: Run, name: str) -> bool:
    """Whether its ranks have made no step yet: a swap loses nothing."""
    attempt = run.attempt
    return (
        run.phase is Phase.STARTING
        and attempt is not None
        and attempt.step is None
        and name in attempt.slots
    )


def barred_seen(t: Turn, event: ev.BarredSeen) -> None:
    """People exclude nodes from new runs; this one takes them for no slot any more either."""
    t.set(barred=dict(event.barred))
    if t.run.phase is Phase.GATHERING:
        gathered(t)
