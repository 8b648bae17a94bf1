"""A node's life in the run: what keeps ranks from it, and what brings it back."""

from __future__ import annotations

from collections.abc import Mapping, Set

from supervisor.core import actions as act
from supervisor.core import names
from supervisor.core.check_status import Status
from supervisor.core.nodeset import natural_sort_key
from supervisor.core.transition import Transition
from supervisor.core.types import HAS_RANKS, AllocationState, Node, NodeState, Run


def usable(run: Run) -> list[str]:
    """Nodes that may take a slot now, the healthiest first."""
    barred = _barred(run)
    ready = [n for n in run.pool.values() if fit(run, n) and n.name not in barred]
    return [
        n.name for n in sorted(ready, key=lambda n: (_RANK[n.health], natural_sort_key(n.name)))
    ]


_RANK = {None: 0, Status.OK: 0, Status.WARN: 1, Status.UNKNOWN: 2}


def usable_count(run: Run) -> int:
    """How many nodes are usable; known without a look at each."""
    pool = run.pool
    count = pool.size(NodeState.READY) - pool.size((NodeState.READY, Status.FAIL))
    shut = sum(1 for name in _barred(run) if name in pool and fit(run, pool[name]))
    return count - unchecked_count(run) - shut


def fit(run: Run, node: Node) -> bool:
    """Whether neither its agent nor its health checks keep ranks from it."""
    ready = node.state is NodeState.READY
    return ready and node.health is not Status.FAIL and not unchecked(run, node)


def _barred(run: Run) -> Set[str]:
    """Nodes that take no slot, however fit they are."""
    shut = gone_for_slurm(run).keys() | drained(run)
    return shut | run.excluded.keys() | run.operator_excluded.keys()


def unchecked_count(run: Run) -> int:
    """How many ready nodes' health checks have yet to say something."""
    return run.pool.size((NodeState.READY, None)) if run.spec.preflight else 0


def unchecked(run: Run, node: Node) -> bool:
    """Whether the node's health checks have yet to say something. Its agent sees to a deadline."""
    return run.spec.preflight and node.health is None


def gone_for_slurm(run: Run) -> Mapping[str, str]:
    """Nodes of the pool that Slurm reports down, or lists no more among their job's: in words."""
    gone: dict[str, str] = {}
    for job in run.allocations.values():
        gone |= {name: f"Slurm reports {name} as down" for name in job.down}
    for name in run.pool.group("unlisted"):
        gone[name] = f"Slurm runs job {run.pool[name].job_id} without {name}"
    return gone


def drained(run: Run) -> Set[str]:
    """Nodes that are drained in Slurm: their ranks go on, and no others begin."""
    return {name for job in run.allocations.values() for name in job.drained}


def spares(run: Run) -> tuple[str, ...]:
    """Nodes that could take a slot now, in the order in which they came."""
    free = {*usable(run)}.difference(run.slots)
    return tuple(name for name in run.pool if name in free)


def waiting_for_shared(run: Run) -> list[Node]:
    """Nodes that would be usable but for a fault that is not theirs: a server, a switch, a user."""
    return [
        node
        for node in run.pool.values()
        if node.state is NodeState.UNUSABLE
        and node.unhealthy
        and not node.node_faults
        and node.name not in run.excluded
        and node.name not in run.operator_excluded
    ]


def in_doubt(run: Run) -> list[Node]:
    """Nodes that would be usable but for older ranks that may still be there: a hung file system
    keeps those from dying, or the node's answer is late. They are asked again and come back."""
    gone = gone_for_slurm(run)
    return [
        node
        for node in run.pool.values()
        if node.state is NodeState.UNUSABLE
        and node.unconfirmed is not None
        and node.unprepared is None
        and not node.node_faults
        and node.name not in gone
        and node.name not in run.excluded
        and node.name not in run.operator_excluded
    ]


def awaited(nodes: list[Node]) -> str:
    """What nodes in doubt are waited for."""
    first = min(nodes, key=lambda node: natural_sort_key(node.name))
    others = f", and for {len(nodes) - 1} more" if nodes[1:] else ""
    return f"waiting for {first.name} to be free of older ranks ({first.reason}){others}"


def ask_again(t: Transition, node: Node) -> None:
    """Have the node end ranks that it has not confirmed to be gone, and say so."""
    attempt = node.unconfirmed
    if attempt is not None and not stop_pending(t.run, node.name):
        key = names.stop_again_key(attempt, node.name, t.at)
        t.emit(act.Stop(key=key, node=node.name, attempt=attempt, grace_s=0.0))


def stop_pending(run: Run, name: str) -> bool:
    """Whether the node was told to end ranks, and has not answered."""
    return any(isinstance(run.pending[key], act.Stop) for key in run.pending.group(("node", name)))


def silent_nodes(run: Run) -> list[Node]:
    """Nodes that may be heard again: for Slurm they are there."""
    gone = gone_for_slurm(run)
    return [
        node
        for node in run.pool.values()
        if node.state in (NodeState.SUSPECT, NodeState.LOST)
        and node.name not in gone
        and not node.node_faults
        and node.name not in run.excluded
        and node.name not in run.operator_excluded
    ]


def keep_ranks_away(
    t: Transition,
    name: str,
    why: str,
    *,
    unconfirmed: int | None = None,
    unprepared: int | None = None,
    unhealthy: bool = False,
) -> None:
    """Something was found that keeps ranks from the node; the flags say what ends it."""
    t.update_node(
        name,
        state=NodeState.UNUSABLE,
        since=t.at,
        reason=why,
        trouble=why,
        unconfirmed=unconfirmed,
        unprepared=unprepared,
        unhealthy=unhealthy or t.run.pool[name].unhealthy,
    )


def mark_heard(t: Transition, name: str) -> None:
    """A silent node is there after all, with whatever kept ranks from it before."""
    node = t.run.pool[name]
    if not node.trouble:
        mark_ready(t, name)
        return
    t.update_node(name, state=NodeState.UNUSABLE, since=t.at, reason=node.trouble)
    if not t.run.ended:
        ask_again(t, t.run.pool[name])


def mark_confirmed(t: Transition, name: str, *, gone: int, ready: int = 0) -> bool:
    """A node says that no rank up to an attempt is left, and perhaps that it is ready for one.

    Returns whether that was all that kept ranks from it.
    """
    node = t.run.pool.get(name)
    if node is None or node.state is NodeState.LEFT:
        return False
    unconfirmed, unprepared = node.unconfirmed, node.unprepared
    if unconfirmed is not None and gone >= unconfirmed:
        unconfirmed = None
        t.drop(lambda a: isinstance(a, act.Stop) and a.attempt <= gone, among=("node", name))
    if unprepared is not None and ready >= unprepared:
        unprepared = None
    if (unconfirmed, unprepared) == (node.unconfirmed, node.unprepared):
        return False
    if unconfirmed is not None or unprepared is not None:
        t.update_node(name, unconfirmed=unconfirmed, unprepared=unprepared)
        return False
    if node.state is not NodeState.UNUSABLE:  # silent: it is usable once it is heard
        t.update_node(name, unconfirmed=None, unprepared=None, trouble="")
        return False
    mark_ready(t, name)
    return True


def mark_unhealthy(t: Transition, name: str) -> None:
    """Ranks don't run there until its health checks pass again."""
    why = "; ".join(
        f"{f.check}: {f.text}" for f in t.run.pool[name].faults if f.status is Status.FAIL
    )
    keep_ranks_away(t, name, f"health: {why}", unhealthy=True)


def mark_ready(t: Transition, name: str) -> None:
    """Nothing else keeps ranks from the node any more; what its health checks say still counts."""
    t.update_node(
        name,
        state=NodeState.READY,
        since=t.at,
        reason="",
        trouble="",
        unhealthy=False,
        unconfirmed=None,
        unprepared=None,
        looked_at=None,
        unreachable=(),
        reachable=(),
        answering=(),
        mute=(),
    )
    mark_found(t, name)


def mark_found(t: Transition, name: str) -> None:
    """What was found of a ready node, perhaps while ranks ran, keeps the next ones from it."""
    node = t.run.pool[name]
    if node.state is not NodeState.READY or ranks_on(t.run, name):
        return
    if node.problems:
        keep_ranks_away(t, name, "; ".join(node.problems))
    elif node.health is Status.FAIL:
        mark_unhealthy(t, name)


def problems_changed(t: Transition, name: str, problems: tuple[str, ...]) -> None:
    """Its agent looked again at what it found when it registered."""
    before = t.run.pool[name]
    t.update_node(name, problems=problems)
    mark_found(t, name)
    others = before.unhealthy or before.unconfirmed is not None or before.unprepared is not None
    if not before.problems or others:
        return
    why = "; ".join(problems)
    if before.state is NodeState.UNUSABLE and not problems:
        mark_ready(t, name)
    elif before.state is NodeState.UNUSABLE:
        t.update_node(name, reason=why, trouble=why)
    else:  # silent: this counts when it is heard
        t.update_node(name, trouble=why)


def ranks_on(run: Run, name: str) -> bool:
    """Whether ranks may run there, wanted or about to end."""
    slots = run.attempt.slots if run.attempt else ()
    return name in slots and run.phase in HAS_RANKS


def kept_out(run: Run, name: str) -> str:
    """Why a ready node takes no slot."""
    if name in run.excluded or name in run.operator_excluded:
        return "excluded"
    if name in drained(run):
        return "drained in Slurm"
    return "its health checks have not answered"


def missing(run: Run) -> str:
    """Which nodes of the allocation can't be used, and why."""
    granted = [
        n for a in run.allocations.values() if a.state is AllocationState.GRANTED for n in a.nodes
    ]
    out = {*run.excluded, *(n for n in run.operator_excluded if n in run.pool)}
    absent = [
        f"{name}: no agent came" for name in granted if name not in run.pool and name not in out
    ]
    unusable = [
        f"{n.name}: {n.reason}"
        for n in run.pool.values()
        if n.state is not NodeState.READY and n.name not in out
    ]
    gone = [f"{x.node}: excluded ({x.reason})" for x in run.excluded.values()]
    gone += [
        f"{n}: excluded by people ({why})"
        for n, why in run.operator_excluded.items()
        if n in run.pool and n not in run.excluded
    ]
    gone += [
        why
        for name, why in gone_for_slurm(run).items()
        if name in run.pool and run.pool[name].state is NodeState.READY and name not in out
    ]
    gone += [f"{name}: drained in Slurm" for name in sorted(drained(run)) if name in run.pool]
    waited = [
        f"{n.name}: its health checks have not answered"
        for n in run.pool.values()
        if n.state is NodeState.READY and unchecked(run, n) and n.name not in out
    ]
    reasons = [*absent, *unusable, *gone, *waited]
    return f" ({'; '.join(reasons)})" if reasons else ""
