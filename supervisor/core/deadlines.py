"""What happens when a phase's deadline passes and nothing else has happened."""

from __future__ import annotations

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.diagnose import has_trained, longest_pause
from supervisor.core.liveness import (
    SUSPECTS_FACTOR,
    confirm_lost,
    is_given_up,
    is_stopped,
)
from supervisor.core.node_life import (
    ask_again,
    awaited,
    in_doubt,
    keep_ranks_away,
    missing,
    silent_nodes,
    usable,
    waiting_for_shared,
)
from supervisor.core.nodeset import compress
from supervisor.core.placement import PREPARE_S, assign_slots, gathering_shortage
from supervisor.core.recovery import (
    FINAL_SCAN_S,
    STOP_SLACK_S,
    all_ranks_stopped,
    answering,
    decide,
    open_incident,
)
from supervisor.core.renewal import (
    await_the_first,
    excluded_here,
    give_back_and_ask,
    lost_here,
    may_ask_others,
    nobody_came,
    trade_back,
    unusable_here,
)
from supervisor.core.run_invariants import REFUSED_S
from supervisor.core.shutdown import LOGS_S, RELEASE_S, cancel, end, release
from supervisor.core.signs_of_life import UNREAD_FACTOR
from supervisor.core.transition import EXPIRIES, Transition, expires, handles, stands_still
from supervisor.core.types import Cause, Deadline, DeadlineKind, Evidence, NodeState, Phase

TELLER_S = 30.0  # an agent that is heard again tells of the step at once
_SAYS = {DeadlineKind.FIRST_STEP: "no first step", DeadlineKind.LAST_RANKS: "last ranks"}
STEPS_FACTOR = 3.0  # steps go on where the newest is so many of the longest usual ones ago
LINES_S = 150.0  # lines that come are told once a minute: two that are late


@handles(ev.DeadlineExpired)
def deadline_expired(t: Transition, event: ev.DeadlineExpired) -> None:
    if t.run.deadline is None or t.run.deadline.kind is not event.kind:
        return
    if stands_still(t.run, event.kind):
        return
    t.set(deadline=None)
    EXPIRIES[event.kind].handler(t, f"{t.at - t.run.since:.0f} s")


@expires(DeadlineKind.REGISTRATION, lambda policy: policy.registration_timeout_s, of_agents=True)
def too_few_registered(t: Transition, waited: str) -> None:
    have, need = len(usable(t.run)), t.run.spec.nodes
    shared, doubtful = waiting_for_shared(t.run), in_doubt(t.run)
    silent = silent_nodes(t.run)
    if have >= need:
        assign_slots(t)
    elif (
        have + len(shared) + len(doubtful) + len(silent) >= need
    ):  # the world's fault: no run is held for that
        reasons = []
        if shared:
            fault = shared[0].faults[0]
            what = f"waiting for what nodes share: {fault.check}: {fault.text}"
            reasons.append(f"{what} ({len(shared)} nodes)")
        if doubtful:
            reasons.append(awaited(doubtful))
        if silent:
            reasons.append(f"waiting for {compress(n.name for n in silent)} to be heard again")
        limit, since = t.run.spec.policy.registration_timeout_s, t.run.since
        same = t.run.reason == "; ".join(reasons)
        t.enter_phase(Phase.GATHERING, "; ".join(reasons), (limit, DeadlineKind.REGISTRATION))
        if same:
            t.set(since=since)  # it waits for what it has waited for
        for node in doubtful:
            ask_again(t, node)
    elif trade_back(t, need - have, excluded_here(t.run)):
        assign_slots(t)
    elif has_trained(t.run) and nobody_came(t.run):
        await_the_first(t)
    elif has_trained(t.run) or have + lost_here(t.run) >= need:
        why = f"{have} of {need} nodes are usable after {waited}"
        give_back_and_ask(t, why, missing(t.run), unusable_here(t.run))
    elif may_ask_others(t.run):
        t.set(asked_others=t.run.asked_others + 1)
        why = f"{have} of {need} nodes are usable after {waited}"
        give_back_and_ask(t, why, missing(t.run), unusable_here(t.run))
    else:
        why = f"{have} of {need} nodes are usable after {waited}"
        before = "" if gathering_shortage(t.run) else f"{t.run.reason}; "  # that says as much
        end(t, Phase.HELD, f"{before}{why}{missing(t.run)}")


@expires(DeadlineKind.SPARES, lambda policy: policy.spare_wait_s, of_agents=True)
def spares_missing(t: Transition, waited: str) -> None:
    assign_slots(t)


@expires(DeadlineKind.RETRY, longest_pause, of_agents=True)
def pause_over(t: Transition, waited: str) -> None:
    assign_slots(t)


@expires(DeadlineKind.PREPARE, lambda policy: PREPARE_S, of_agents=True)
def not_prepared(t: Transition, waited: str) -> None:
    attempt = t.run.attempt
    assert attempt is not None
    reason = f"did not confirm within {waited} that it is free of older ranks"
    _unconfirmed(t, set(attempt.slots) - set(attempt.prepared), attempt.number - 1, reason)
    assign_slots(t)


@expires(DeadlineKind.FIRST_STEP, lambda policy: policy.first_step_timeout_s, of_agents=True)
def no_first_step(t: Transition, waited: str) -> None:
    attempt, limit = t.run.attempt, t.run.spec.policy.first_step_timeout_s
    unread = attempt.unread if attempt else None
    if unread and t.at - unread.at <= LINES_S and t.at - t.run.since < UNREAD_FACTOR * limit:
        # They may train, and nobody can tell: lines are the only sign of life that there is.
        t.set(deadline=Deadline(at=t.at + limit, kind=DeadlineKind.FIRST_STEP))
        return
    text = f"no step within {waited} of the start"
    if attempt and _silence_decides(t, DeadlineKind.FIRST_STEP, t.run.since, limit, text):
        return
    open_incident(t, Cause.NO_FIRST_STEP, Evidence(node="", at=t.at, source="progress", text=text))


@expires(DeadlineKind.LAST_RANKS, lambda policy: policy.last_ranks_timeout_s, of_agents=True)
def some_ranks_go_on(t: Transition, waited: str) -> None:
    attempt, limit = t.run.attempt, t.run.spec.policy.last_ranks_timeout_s
    assert attempt is not None and attempt.first_end_at is not None
    since, first = attempt.first_end_at, min(attempt.exits.values(), key=lambda one: one.at)
    total = len(attempt.slots) * t.run.spec.ranks_per_node
    text = (
        f"{len(attempt.exits)} of {total} ranks ended with code 0, rank {first.rank} on "
        f"{first.node} first, and of the others no end is known"
    )
    kind = DeadlineKind.LAST_RANKS
    if _steps_go_on(t, since) and t.at < since + SUSPECTS_FACTOR * limit:
        _come_again(t, kind, since, limit)
        return
    if _silence_decides(t, kind, since, limit, text):
        return
    seen = Evidence(node=first.node, at=first.at, source="agent", text=text)
    open_incident(t, Cause.ENDED_EARLY, seen)


def _steps_go_on(t: Transition, since: float) -> bool:
    """Whether ranks have made steps since then, and one recently."""
    assert t.run.attempt is not None
    at, known = t.run.attempt.step_at, t.run.rhythm
    recent = max(TELLER_S, STEPS_FACTOR * (known.slow or known.step or 0.0))
    return at is not None and at > since and t.at - at <= recent


def _silence_decides(
    t: Transition, kind: DeadlineKind, since: float, limit: float, text: str
) -> bool:
    """Whether slots on silent nodes decide what comes of a deadline that has passed.

    A silent agent may be the one that would tell, so the deadline comes again, in all up to
    SUSPECTS_FACTOR times its length `limit` since `since`. Who is stopped is given up before.
    """
    assert t.run.attempt is not None
    suspects = t.run.pool.group(NodeState.SUSPECT)
    silent = [name for name in t.run.attempt.slots if name in suspects]
    over = t.at >= since + SUSPECTS_FACTOR * limit
    lost = [n for n in silent if (is_stopped(t.run, n) if over else is_given_up(t.run, n, t.at))]
    if lost:
        confirm_lost(t, lost, _SAYS[kind], text)
    elif silent and not over:
        _come_again(t, kind, since, limit)
    return bool(lost) or (bool(silent) and not over)


def _come_again(t: Transition, kind: DeadlineKind, since: float, limit: float) -> None:
    """The deadline comes once more: soon, and not beyond SUSPECTS_FACTOR times its length."""
    at = min(t.at + min(limit, TELLER_S), since + SUSPECTS_FACTOR * limit)
    t.set(deadline=Deadline(at=at, kind=kind))


@expires(DeadlineKind.STOP, lambda policy: policy.stop_grace_s + STOP_SLACK_S, of_agents=True)
def not_stopped(t: Transition, waited: str) -> None:
    attempt = t.run.attempt
    assert attempt is not None
    reason = f"did not confirm within {waited} that its ranks are gone"
    silent = set(answering(t.run, attempt)) - set(attempt.confirmed_stopped)
    _unconfirmed(t, silent, attempt.number, reason)
    all_ranks_stopped(t)


@expires(DeadlineKind.FINAL_SCAN, lambda policy: FINAL_SCAN_S, of_agents=False)
def last_look_unanswered(t: Transition, waited: str) -> None:
    decide(t)


@expires(DeadlineKind.LOGS, lambda policy: LOGS_S, of_agents=False)
def logs_take_too_long(t: Transition, waited: str) -> None:
    t.drop(lambda a: isinstance(a, act.KeepLogs))
    release(t)


@expires(DeadlineKind.RELEASE, lambda policy: RELEASE_S, of_agents=False)
def job_outlives_its_agents(t: Transition, waited: str) -> None:
    for job in t.run.live_jobs:
        cancel(t, job, "the run ended and its agents did not end the job by themselves")


@expires(DeadlineKind.REFUSED, lambda policy: REFUSED_S, of_agents=False)
def action_refused(t: Transition, waited: str) -> None:
    why = f"{t.run.reason}; its next action was refused: {t.run.violations[-1].text}"
    end(t, Phase.HELD, why)


def _unconfirmed(t: Transition, names: set[str], attempt: int, reason: str) -> None:
    """Ranks don't run there until it says that none up to the attempt is left; it is asked until
    it does. A silent node stays suspect: it may be heard again."""
    for name in sorted(names):
        if t.run.pool[name].state is NodeState.READY:
            keep_ranks_away(t, name, reason, unconfirmed=attempt)
            ask_again(t, t.run.pool[name])
