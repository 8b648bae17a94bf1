"""Nodes for the run: how many are asked for, and what is given up before the run is."""

from __future__ import annotations

from collections.abc import Collection

from supervisor.core import actions as act
from supervisor.core import names
from supervisor.core.node_life import drained, fit, gone_for_slurm, usable
from supervisor.core.nodeset import compress
from supervisor.core.shutdown import cancel
from supervisor.core.transition import Transition
from supervisor.core.types import (
    Allocation,
    AllocationState,
    Cause,
    Confidence,
    DeadlineKind,
    Exclusion,
    NodeState,
    Phase,
    Run,
    RunSpec,
)

MAX_ASKED_OTHERS = 2  # so often a run that never trained asks for other nodes, then a person


def wanted(spec: RunSpec) -> str:
    """How many nodes an allocation has, in words."""
    most = spec.nodes + spec.spares
    return f"{spec.nodes} to {most} nodes" if spec.spares else f"{most} nodes"


def request_allocation(t: Transition) -> None:
    """Ask Slurm for the base allocation: a missing spare holds no run up.

    What is to be avoided is left out of this request alone: where that leaves too few, the next
    one takes it.
    """
    spec, number, avoid = t.run.spec, t.run.allocations_requested + 1, t.run.avoid
    t.set(allocations_requested=number, slots=(), pool={}, avoid=())
    others = f", without {compress(avoid)}" if avoid else ""
    t.enter_phase(Phase.PENDING, f"waiting for {wanted(spec)}{others}")
    request = act.Submit(
        key=names.submit_key(number),
        job_name=names.allocation(spec.name, spec.run_id, number),
        nodes=spec.nodes + spec.spares,
        min_nodes=spec.nodes if spec.spares else 0,
        exclude=tuple(sorted({*t.run.excluded, *t.run.operator_excluded, *avoid})),
    )
    t.set(request=request)
    t.emit(request)


def give_back_and_ask(t: Transition, why: str, more: str = "", avoid: Collection[str] = ()) -> None:
    """Give the allocation back and ask for another, when Slurm says that it has ended; if it can
    be, without the nodes to `avoid`."""
    t.set(avoid=tuple(sorted(avoid)))
    for job in t.run.live_jobs:
        cancel(t, job, why)
    t.enter_phase(Phase.PENDING, f"asking for other nodes: {why}{more}")


# --- exclusions that are traded back --------------------------------------------------------------


def sureness(exclusion: Exclusion) -> int | None:
    """How sure it is that the node is at fault; None: so sure that it is never traded back."""
    if exclusion.confidence is Confidence.INFERRED:
        return 0
    if exclusion.cause is Cause.NODE_LOST:
        return 1  # a silence, which is over where the node can be used
    return None


def trade_back(t: Transition, lacking: int, there: Collection[str]) -> bool:
    """Use excluded nodes again because so many are missing, the least sure ones, oldest first.

    `there` are nodes that could be used but for that. Nothing is done where they are too few:
    then it would not help.
    """
    barred = t.run.operator_excluded
    found = [
        (sure, exclusion.since, name)
        for name, exclusion in t.run.excluded.items()
        if name in there and name not in barred and (sure := sureness(exclusion)) is not None
    ]
    if lacking <= 0 or len(found) < lacking:
        return False
    back = {name for *_, name in sorted(found)[:lacking]}
    t.set(excluded={name: x for name, x in t.run.excluded.items() if name not in back})
    return True


def excluded_here(run: Run) -> list[str]:
    """Nodes with an agent that nothing keeps from a slot but that this run excluded them."""
    gone = gone_for_slurm(run).keys() | drained(run)
    return [
        name
        for name in run.excluded
        if name in run.pool and name not in gone and fit(run, run.pool[name])
    ]


def granted_jobs(run: Run) -> list[Allocation]:
    return [a for a in run.allocations.values() if a.state is AllocationState.GRANTED]


def granted(run: Run) -> frozenset[str]:
    """The nodes of the run's allocations."""
    return frozenset(name for job in granted_jobs(run) for name in job.nodes)


def unusable_here(run: Run) -> list[str]:
    """Nodes of the run's allocations that can take no slot now."""
    return sorted(granted(run).difference(usable(run)))


def may_ask_others(run: Run) -> bool:
    """Whether a run that has not trained yet may try other nodes: most of these can be used, so it
    is not the job that is at fault. A person is told when that did not help either."""
    most = 2 * len(usable(run)) > run.spec.nodes
    return most and run.asked_others < MAX_ASKED_OTHERS


def lost_here(run: Run) -> int:
    """How many nodes of the pool went after their agents had come: others may do better."""
    gone = gone_for_slurm(run)
    lost = (NodeState.LOST, NodeState.LEFT)
    return sum(1 for node in run.pool.values() if node.state in lost or node.name in gone)


# --- agents that don't come -----------------------------------------------------------------------


def nobody_came(run: Run) -> bool:
    """Whether no agent of the granted nodes was ever heard: other nodes would be no better.

    The way to this engine is cut, or the keys did not arrive.
    """
    return bool(granted(run)) and not any(name in run.pool for name in granted(run))


def await_the_first(t: Transition) -> None:
    limit = t.run.spec.policy.registration_timeout_s
    nodes = compress(granted(t.run))
    t.enter_phase(
        Phase.GATHERING,
        f"no agent of {nodes} has been heard; their keys are sent again",
        (limit, DeadlineKind.REGISTRATION),
    )
    for job in granted_jobs(t.run):
        if any(isinstance(a, act.SendKeys) for a in t.run.pending.values()):
            continue  # they have not even been sent once
        key = names.send_keys_again_key(job.job_id, t.at)
        t.emit(act.SendKeys(key=key, job_id=job.job_id))
