"""What health checks say of nodes: who may run ranks, and who is named when something broke.

A failed check keeps a node from being used; it does not stop ranks whose steps advance. "Unknown"
is neither: it takes no node away, and gives none back that failed.
"""

from __future__ import annotations

from supervisor.core import events as ev
from supervisor.core.diagnose import failure
from supervisor.core.placement import back, gathered, mark_ill, place, ranks_on
from supervisor.core.recovery import open_incident
from supervisor.core.turn import Turn
from supervisor.core.types import NodeState, Phase, Run

PASSES = ("OK", "WARN")


def health_seen(t: Turn, event: ev.HealthSeen) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent:
        return
    t.node(event.node, health=event.status, faults=event.faults, checked_at=t.at)
    if t.run.ended:
        return
    failed = event.status == "FAIL"
    if failed and t.run.pool[event.node].own_faults and _not_begun(t.run, event.node):
        open_incident(t, "unhealthy-node", failure(t.run.pool[event.node]))
    elif failed and node.state is NodeState.READY and not ranks_on(t.run, event.node):
        mark_ill(t, event.node)
        if t.run.phase is Phase.CHECKING and event.node in t.run.slots:
            place(t)
    elif event.status in PASSES and node.state is NodeState.UNFIT and node.ill:
        back(t, event.node)
    if t.run.phase is Phase.GATHERING:
        gathered(t)


def _not_begun(run: Run, name: str) -> bool:
    """Whether its ranks are about to start and have made no step yet: a swap loses nothing."""
    attempt = run.attempt
    return (
        run.phase in (Phase.CHECKING, Phase.STARTING)
        and attempt is not None
        and attempt.step is None
        and name in attempt.slots
    )


def barred_seen(t: Turn, event: ev.BarredSeen) -> None:
    """People exclude nodes from new runs; this one takes them for no slot any more either."""
    if t.run.ended:
        return
    t.set(barred=dict(event.barred))
    if t.run.phase is Phase.GATHERING:
        gathered(t)
    elif t.run.phase is Phase.CHECKING and any(name in event.barred for name in t.run.slots):
        place(t)  # nothing runs there yet
