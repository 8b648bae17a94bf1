"""Which nodes take the slots, and how ranks get started on them."""

from __future__ import annotations

import re
from typing import Any

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.turn import Turn
from supervisor.core.types import HAS_RANKS, Attempt, Node, NodeState, Phase, Run

PREPARE_S = 60.0  # an agent clears its node of older ranks well within this


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts n2 before n10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def usable(run: Run) -> list[str]:
    """Nodes that may take a slot now, the healthiest first."""
    ready = [
        node
        for node in run.pool.values()
        if node.state is NodeState.READY
        and node.name not in run.excluded
        and node.name not in run.barred
        and node.health != "FAIL"
        and not unchecked(run, node)
    ]
    return [n.name for n in sorted(ready, key=lambda n: (_RANK.get(n.health, 0), natural(n.name)))]


_RANK = {"OK": 0, "WARN": 1, "UNKNOWN": 2}


def unchecked(run: Run, node: Node) -> bool:
    """Whether the node's health checks have yet to say something. Its agent sees to a deadline."""
    return run.spec.preflight and not node.health


def waiting_for_shared(run: Run) -> list[Node]:
    """Nodes that would be usable but for a fault that is not theirs: a server, a switch, a user."""
    return [
        node
        for node in run.pool.values()
        if node.state is NodeState.UNFIT
        and node.ill
        and not node.own_faults
        and node.name not in run.excluded
        and node.name not in run.barred
    ]


def mark_ill(t: Turn, name: str) -> None:
    """Ranks don't run there until its health checks pass again."""
    why = "; ".join(f"{f.check}: {f.text}" for f in t.run.pool[name].faults if f.status == "FAIL")
    t.node(name, state=NodeState.UNFIT, since=t.at, reason=f"health: {why}", ill=True)


def back(t: Turn, name: str, **more: Any) -> None:
    """Nothing else keeps ranks from the node any more; what its health checks say still counts."""
    t.node(name, state=NodeState.READY, since=t.at, reason="", ill=False, **more)
    if t.run.pool[name].health == "FAIL" and not ranks_on(t.run, name):
        mark_ill(t, name)


def ranks_on(run: Run, name: str) -> bool:
    """Whether ranks may run there, wanted or about to end."""
    slots = run.attempt.slots if run.attempt else ()
    return name in slots and run.phase in HAS_RANKS


def ask(t: Turn) -> None:
    """Ask Slurm for the base allocation."""
    spec, number = t.run.spec, t.run.asked + 1
    t.set(asked=number, slots=(), pool={})
    nodes = spec.nodes + spec.spares
    t.phase(Phase.PENDING, f"waiting for {nodes} nodes")
    t.do(
        do.Submit(
            key=f"submit/{number}",
            job_name=f"superv-{spec.name}-{spec.run_id[:6]}-{number}",
            nodes=nodes,
            exclude=tuple(sorted({*t.run.excluded, *t.run.barred})),
        )
    )


def gathered(t: Turn) -> None:
    """Go on when everybody is here, or after a while when enough for every slot are."""
    spec = t.run.spec
    if len(usable(t.run)) < spec.nodes:
        return
    granted = {n for a in t.run.allocations.values() if a.state == "granted" for n in a.nodes}
    here = {n.name for n in t.run.pool.values()}
    coming = any(unchecked(t.run, n) for n in t.run.pool.values() if n.state is NodeState.READY)
    if (granted <= here and not coming) or len(usable(t.run)) >= spec.nodes + spec.spares:
        place(t)
    elif t.run.deadline is None or t.run.deadline.what != "spares":
        t.phase(Phase.GATHERING, "waiting for the spares", (spec.policy.gather_s, "spares"))


def place(t: Turn) -> None:
    """Put nodes into the slots and let every one of them confirm that it is free."""
    t.drop(lambda a: isinstance(a, do.Order) and not isinstance(a, do.Probe))
    if not t.run.live_jobs:
        ask(t)
        return
    for there in t.run.pool.values():
        if there.state is NodeState.READY and there.health == "FAIL":
            mark_ill(t, there.name)  # found while its ranks ran
    ready = usable(t.run)
    old = t.run.slots or ("",) * t.run.spec.nodes
    free = [name for name in ready if name not in old]
    if not any(old):  # the healthiest take the slots, in the order of their names
        free[: len(old)] = sorted(free[: len(old)], key=natural)
    slots = tuple(name if name in ready else (free.pop(0) if free else "") for name in old)
    t.set(slots=slots)
    if "" in slots:
        missing = ", ".join(str(i) for i, name in enumerate(slots) if not name)
        reason = f"no node for slot {missing}: no spare is left"
        t.phase(Phase.GATHERING, reason, (t.run.spec.policy.gather_limit_s, "gather"))
        return
    number = max(t.run.attempt.number + 1 if t.run.attempt else 1, t.run.spec.first_attempt)
    home = t.run.spec.checkpoint_dir
    t.set(
        attempt=Attempt(
            number=number,
            slots=slots,
            resume=t.run.lineage[-1] if t.run.lineage else None,
            save_dir=f"{home}/a{number:04d}" if home else None,
            slot0_first=t.run.attempt is not None and t.run.attempt.step is not None,
        )
    )
    t.phase(Phase.CHECKING, f"attempt {number}: preparing the nodes", (PREPARE_S, "prepare"))
    for node in slots:
        t.do(do.Prepare(key=f"a{number}/prepare/{node}", node=node, attempt=number))


def prepared(t: Turn, event: ev.Prepared) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or t.run.phase is not Phase.CHECKING:
        return
    if event.problems:
        reason = "; ".join(event.problems)
        t.node(event.node, state=NodeState.UNFIT, since=t.at, reason=reason)
        place(t)
        return
    t.attempt(prepared=(*attempt.prepared, event.node))
    if event.node == attempt.slots[0]:
        t.attempt(master_port=event.port)
    attempt = t.run.attempt
    assert attempt is not None
    if set(attempt.prepared) >= set(attempt.slots):
        start_ranks(t, attempt)


def start_ranks(t: Turn, attempt: Attempt) -> None:
    """Order the starts: slot 0's first where the attempt before made a step, else all at once.

    A rank that dials torch's TCPStore before rank 0 listens sleeps 0.3 to 0.8 s before it tries
    again (measured with torch 2.13). Slot 0's agent answers as soon as its processes exist, so
    nobody waits for another node's imports: cold ranks import side by side, and so do starters.
    What did not work before is started everywhere at once, because then who fails first, and who
    does not, says where the fault is.
    """
    resume = attempt.resume
    origin = f"step {resume.step}" if resume else "the beginning"
    limit = t.run.spec.policy.start_limit_s
    t.phase(Phase.STARTING, f"attempt {attempt.number} from {origin}", (limit, "start"))
    t.attempt(started_at=t.at)
    order_starts(t, attempt, attempt.slots[:1] if attempt.slot0_first else attempt.slots)


def order_starts(t: Turn, attempt: Attempt, nodes: tuple[str, ...]) -> None:
    assert attempt.master_port is not None
    resume = attempt.resume
    for slot, node in enumerate(attempt.slots):
        if node not in nodes:
            continue
        t.do(
            do.Start(
                key=f"a{attempt.number}/start/{node}",
                node=node,
                attempt=attempt.number,
                slot=slot,
                nnodes=len(attempt.slots),
                master_addr=t.run.pool[attempt.slots[0]].address,
                master_port=attempt.master_port,
                save_dir=attempt.save_dir,
                resume_path=resume.path if resume else None,
                resume_step=resume.step if resume else None,
            )
        )


def ranks_started(t: Turn, event: ev.RanksStarted) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or event.node in attempt.started:
        return
    t.attempt(started=(*attempt.started, event.node))
    # RUNNING: ranks that wait for nobody may have made a step before this was told.
    wanted = t.run.phase in (Phase.STARTING, Phase.RUNNING)
    if attempt.slot0_first and event.node == attempt.slots[0] and wanted:
        others = tuple(node for node in attempt.slots[1:] if node not in attempt.started)
        order_starts(t, attempt, others)
    if not event.warm:
        t.attempt(cold=(*attempt.cold, f"{event.node}: {event.why_cold}"))
    everywhere = len(attempt.started) + 1 == len(attempt.slots)
    last = t.run.incidents[-1] if t.run.incidents else None
    if everywhere and last and last.relaunched_at is None and last.attempt < attempt.number:
        assert t.run.attempt is not None
        t.incident(relaunched_at=t.at, warm=not t.run.attempt.cold)


def missing(run: Run) -> str:
    """Which nodes of the allocation can't be used, and why."""
    granted = [n for a in run.allocations.values() if a.state == "granted" for n in a.nodes]
    absent = [f"{name}: no agent came" for name in granted if name not in run.pool]
    unfit = [f"{n.name}: {n.reason}" for n in run.pool.values() if n.state is not NodeState.READY]
    gone = [f"{x.node}: excluded ({x.reason})" for x in run.excluded.values()]
    gone += [f"{n}: excluded by people ({why})" for n, why in run.barred.items() if n in run.pool]
    waited = [
        f"{n.name}: its health checks have not answered"
        for n in run.pool.values()
        if n.state is NodeState.READY and unchecked(run, n)
    ]
    told = [*absent, *unfit, *gone, *waited]
    return f" ({'; '.join(told)})" if told else ""
