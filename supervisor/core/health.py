"""What health checks say of nodes: who may run ranks, and who is named when something broke.

A failed check keeps a node from being used; it does not stop ranks whose steps advance. "Unknown"
is neither: it takes no node away, and gives none back that failed.
"""

from __future__ import annotations

from supervisor.core import events as ev
from supervisor.core.check_status import PASSES, Status
from supervisor.core.diagnose import failure
from supervisor.core.node_life import mark_ready, mark_unhealthy, ranks_on
from supervisor.core.placement import assign_slots, try_assign_slots
from supervisor.core.recovery import open_incident
from supervisor.core.transition import Transition, handles
from supervisor.core.types import Cause, NodeState, Phase, Run


@handles(ev.HealthSeen)
def health_seen(t: Transition, event: ev.HealthSeen) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent:
        return
    t.update_node(event.node, health=event.status, faults=event.faults, checked_at=t.at)
    if t.run.ended:
        return
    failed = event.status is Status.FAIL
    if failed and t.run.pool[event.node].node_faults and _not_begun(t.run, event.node):
        open_incident(t, Cause.UNHEALTHY_NODE, failure(t.run.pool[event.node]))
    elif failed and node.state is NodeState.READY and not ranks_on(t.run, event.node):
        mark_unhealthy(t, event.node)
        if t.run.phase is Phase.CHECKING and event.node in t.run.slots:
            assign_slots(t)
    elif event.status in PASSES and node.state is NodeState.UNUSABLE and node.unhealthy:
        mark_ready(t, event.node)
    if t.run.phase is Phase.GATHERING:
        try_assign_slots(t)


def _not_begun(run: Run, name: str) -> bool:
    """Whether its ranks are about to start and have made no step yet: a swap loses nothing."""
    attempt = run.attempt
    return (
        run.phase in (Phase.CHECKING, Phase.STARTING)
        and attempt is not None
        and attempt.step is None
        and name in attempt.slots
    )


@handles(ev.OperatorExclusionsChanged)
def operator_exclusions_changed(t: Transition, event: ev.OperatorExclusionsChanged) -> None:
    """People exclude nodes from new runs; this one takes them for no slot any more either."""
    if t.run.ended:
        return
    t.set(operator_excluded=dict(event.operator_excluded))
    if t.run.phase is Phase.GATHERING:
        try_assign_slots(t)
    elif t.run.phase is Phase.CHECKING and any(
        name in event.operator_excluded for name in t.run.slots
    ):
        assign_slots(t)  # nothing runs there yet
