"""Which nodes take the slots, and how ranks get started on them."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.actions import Action
from supervisor.core.check_status import Status
from supervisor.core.diagnose import nothing_left
from supervisor.core.node_life import (
    awaited,
    in_doubt,
    keep_ranks_away,
    kept_out,
    mark_confirmed,
    mark_found,
    unchecked_count,
    usable,
    usable_count,
)
from supervisor.core.nodeset import compress, natural_sort_key
from supervisor.core.persistent import Names
from supervisor.core.renewal import (
    excluded_here,
    granted,
    granted_jobs,
    request_allocation,
    trade_back,
)
from supervisor.core.shutdown import end
from supervisor.core.transition import Transition, handles
from supervisor.core.types import (
    Attempt,
    DeadlineKind,
    NodeState,
    Phase,
    Run,
)

REASONS = 2  # of those that keep nodes out, the most frequent stand in the run's own
MOVES = 3  # of nodes that take slots, told with an incident
PREPARE_S = 60.0  # an agent clears its node of older ranks well within this


def confirmed(t: Transition, name: str, *, gone: int, ready: int = 0) -> None:
    """A node says what is left there of older ranks; where it is usable again, it may be waited
    for."""
    if mark_confirmed(t, name, gone=gone, ready=ready) and t.run.phase is Phase.GATHERING:
        try_assign_slots(t)


def drop_orders(t: Transition) -> None:
    """Forget what agents were ordered, but for probes and for stops of nodes in doubt: those are
    asked until they answer."""
    pool = t.run.pool

    def asks_again(a: Action) -> bool:
        return isinstance(a, act.Stop) and a.node in pool and pool[a.node].unconfirmed is not None

    t.drop(
        lambda a: (
            isinstance(a, act.AgentCommand) and not isinstance(a, act.Probe) and not asks_again(a)
        )
    )


def try_assign_slots(t: Transition) -> None:
    """Go on when everybody is here, or after a while when enough for every slot are."""
    spec = t.run.spec
    lacking = spec.nodes - usable_count(t.run)
    if lacking > 0 and any(t.run.slots) and not in_doubt(t.run):
        trade_back(t, lacking, excluded_here(t.run))
    can = usable_count(t.run)
    if can < spec.nodes:
        if shortage := gathering_shortage(t.run):
            t.set(reason=shortage)
        return
    coming = unchecked_count(t.run) or not all_came(t.run)
    if not coming or can >= spec.nodes + spec.spares:
        assign_slots(t)
    elif t.run.deadline is None or t.run.deadline.kind is not DeadlineKind.SPARES:
        t.enter_phase(
            Phase.GATHERING,
            "waiting for the spares",
            (spec.policy.spare_wait_s, DeadlineKind.SPARES),
        )


def all_came(run: Run) -> bool:
    """Whether every node that Slurm granted has had an agent."""
    jobs = granted_jobs(run)
    return all(run.pool.size(("job", job.job_id)) >= len(job.nodes) for job in jobs) and all(
        name in run.pool for job in jobs for name in job.nodes
    )


def to_come(run: Run) -> int:
    """How many of the granted nodes have had no agent yet; known without a look at each."""
    jobs = granted_jobs(run)
    return sum(max(0, len(job.nodes) - run.pool.size(("job", job.job_id))) for job in jobs)


def gathering_shortage(run: Run) -> str:
    """What keeps nodes out of a run that gathers, as soon as the others can't be enough.

    Empty where they can: those that are checked yet, and those whose agents are still to come.
    """
    if run.phase is not Phase.GATHERING or any(run.slots):
        return ""
    coming = to_come(run)
    if usable_count(run) + unchecked_count(run) + coming >= run.spec.nodes:
        return ""
    there = granted(run)
    if not there:
        return ""
    can = usable(run)
    nodes_of: dict[str, list[str]] = {}
    for name in there.difference(can).intersection(run.pool):
        nodes_of.setdefault(run.pool[name].reason or kept_out(run, name), []).append(name)
    most = sorted(nodes_of, key=lambda reason: (-len(nodes_of[reason]), reason))
    why = "; ".join(f"{reason} ({compress(nodes_of[reason])})" for reason in most[:REASONS])
    why += f"; and {len(most) - REASONS} more reasons" if len(most) > REASONS else ""
    came = f"{len(there) - coming} of" if coming else "all"
    usable_now = f"{len(can)} of {run.spec.nodes} nodes are usable"
    return f"{came} {len(there)} agents came, {usable_now}: {why}"


def assign_slots(t: Transition) -> None:
    """Put nodes into the slots and let every one of them confirm that it is free.

    A run whose checkpoints have all gone is HELD instead: it does not start over by itself.
    """
    if why := nothing_left(t.run):
        end(t, Phase.HELD, why)
        return
    drop_orders(t)
    if not t.run.live_jobs:
        _tell_remedy(t, "Slurm is asked for nodes")
        request_allocation(t)
        return
    for there in t.run.pool.values():
        if there.state is NodeState.READY and (there.problems or there.health is Status.FAIL):
            mark_found(t, there.name)  # while its ranks ran
    slots = _slots(t.run, usable(t.run))
    if "" in slots and not in_doubt(t.run) and trade_back(t, slots.count(""), excluded_here(t.run)):
        slots = _slots(t.run, usable(t.run))
    t.set(slots=slots)
    if "" in slots:
        missing = ", ".join(str(i) for i, name in enumerate(slots) if not name)
        reason = f"no node for slot {missing}: no spare is left"
        if doubtful := in_doubt(t.run):
            reason += f"; {awaited(doubtful)}"
        _tell_remedy(t, reason)
        t.enter_phase(
            Phase.GATHERING,
            reason,
            (t.run.spec.policy.registration_timeout_s, DeadlineKind.REGISTRATION),
        )
        return
    number = max(t.run.attempt.number + 1 if t.run.attempt else 1, t.run.spec.first_attempt)
    home = t.run.spec.checkpoint_dir
    _tell_remedy(t, _moves(t.run.attempt.slots if t.run.attempt else slots, slots))
    t.set(
        attempt=Attempt(
            number=number,
            slots=slots,
            resume=t.run.lineage[-1] if t.run.lineage else None,
            save_dir=f"{home}/{names.attempt(number)}" if home else None,
            slot0_first=t.run.attempt is not None and t.run.attempt.step is not None,
        )
    )
    t.enter_phase(
        Phase.CHECKING, f"attempt {number}: preparing the nodes", (PREPARE_S, DeadlineKind.PREPARE)
    )
    for node in slots:
        t.emit(act.Prepare(key=names.prepare_key(number, node), node=node, attempt=number))


def _tell_remedy(t: Transition, done: str) -> None:
    """Say of the newest incident what was done about it, as soon as that is known."""
    last = t.run.incidents[-1] if t.run.incidents else None
    if last is None or last.verdict is None or last.relaunched_at is not None or not last.remedy:
        return
    away = [name for name in last.verdict.culprits if name in t.run.excluded]
    t.update_incident(remedy=f"{', '.join(away)} excluded; {done}" if away else done)


def _moves(before: Names, now: Names) -> str:
    """Who takes which slot now, in words."""
    moved = [
        f"{new} takes slot {slot} of {old}" if old else f"{new} takes slot {slot}"
        for slot, (old, new) in enumerate(zip(before, now, strict=False))
        if old != new
    ]
    more = [f"so do {len(moved) - MOVES} more nodes"] if len(moved) > MOVES else []
    return ", ".join([*moved[:MOVES], *more]) or "the same nodes again"


def _slots(run: Run, ready: list[str]) -> Names:
    """Which node takes which slot; an empty name where none is left.

    Nodes stay in their slots, and go back into them: a slot that is empty is first of all for the
    node that had it in the last attempt.
    """
    old = run.slots or Names([""] * run.spec.nodes)
    last = run.attempt.slots if run.attempt and run.slots else old
    homes = [name or (was if was not in old else "") for name, was in zip(old, last, strict=True)]
    taken = {*homes}
    free = [name for name in ready if name not in taken]
    if not any(old):  # the healthiest take the slots, in the order of their names
        free[: len(old)] = sorted(free[: len(old)], key=natural_sort_key)
    here, next_free = {*ready}, iter(free)
    return Names(name if name in here else next(next_free, "") for name in homes)


@handles(ev.Prepared)
def prepared(t: Transition, event: ev.Prepared) -> None:
    """A node is free, or says why not. An agent that said why not says so when that is over."""
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or t.run.phase is not Phase.CHECKING:
        if not event.problems:
            confirmed(t, event.node, gone=event.attempt - 1, ready=event.attempt)
        return
    if event.problems:
        keep_ranks_away(
            t,
            event.node,
            "; ".join(event.problems),
            unconfirmed=event.attempt - 1 if event.stuck else None,
            unprepared=event.attempt if len(event.problems) > bool(event.stuck) else None,
        )
        assign_slots(t)
        return
    port = event.port if event.node == attempt.slots[0] else attempt.master_port
    attempt = replace(attempt, prepared=attempt.prepared.add(event.node), master_port=port)
    t.set(attempt=attempt)
    if len(attempt.prepared) >= len(attempt.slots) and attempt.prepared >= {*attempt.slots}:
        start_ranks(t, attempt)


def start_ranks(t: Transition, attempt: Attempt) -> None:
    """Order the starts: slot 0's first where the attempt before made a step, else all at once.

    A rank that dials torch's TCPStore before rank 0 listens sleeps 0.3 to 0.8 s before it tries
    again (measured with torch 2.13). Slot 0's agent answers as soon as its processes exist, so
    nobody waits for another node's imports: cold ranks import side by side, and so do starters.
    What did not work before is started everywhere at once, because then who fails first, and who
    does not, says where the fault is.
    """
    resume = attempt.resume
    origin = f"step {resume.step}" if resume else "the beginning"
    limit = t.run.spec.policy.first_step_timeout_s
    t.enter_phase(
        Phase.STARTING, f"attempt {attempt.number} from {origin}", (limit, DeadlineKind.FIRST_STEP)
    )
    t.update_attempt(started_at=t.at)
    order_starts(t, attempt, attempt.slots[:1] if attempt.slot0_first else attempt.slots)


def order_starts(t: Transition, attempt: Attempt, nodes: tuple[str, ...]) -> None:
    assert attempt.master_port is not None
    resume = attempt.resume
    ordered = {*nodes}
    for slot, node in enumerate(attempt.slots):
        if node not in ordered:
            continue
        t.emit(
            act.Start(
                key=names.start_key(attempt.number, node),
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


@handles(ev.RanksStarted)
def ranks_started(t: Transition, event: ev.RanksStarted) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or event.node in attempt.started:
        return
    t.update_attempt(started=attempt.started.add(event.node))
    # RUNNING: ranks that wait for nobody may have made a step before this was reported.
    wanted = t.run.phase in (Phase.STARTING, Phase.RUNNING)
    if attempt.slot0_first and event.node == attempt.slots[0] and wanted:
        others = tuple(node for node in attempt.slots[1:] if node not in attempt.started)
        order_starts(t, attempt, others)
    if not event.warm:
        t.update_attempt(cold=attempt.cold.add(f"{event.node}: {event.why_cold}"))
    everywhere = len(attempt.started) + 1 == len(attempt.slots)
    last = t.run.incidents[-1] if t.run.incidents else None
    if everywhere and last and last.relaunched_at is None and last.attempt < attempt.number:
        assert t.run.attempt is not None
        t.update_incident(relaunched_at=t.at, warm=not t.run.attempt.cold)
