"""An attempt ended badly: stop what is left, verify checkpoints, decide what comes next."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.diagnose import bad_ends, cause_first, diagnose, health_of, remedy
from supervisor.core.lineage import merge_scan, retain
from supervisor.core.node_life import keep_ranks_away, stop_pending
from supervisor.core.persistent import PersistentSet
from supervisor.core.placement import assign_slots, confirmed, drop_orders
from supervisor.core.shutdown import end, release
from supervisor.core.training import saved, worked
from supervisor.core.transition import Transition, handles
from supervisor.core.types import (
    Attempt,
    Cause,
    Checkpoint,
    Confidence,
    DeadlineKind,
    Evidence,
    EvidenceLog,
    Exclusion,
    Incident,
    NodeState,
    Phase,
    RemedyKind,
    Run,
    Verdict,
)

SILENT = (NodeState.LOST, NodeState.LEFT)
EVIDENCE_KEPT = 200  # lines of each older incident: with thousands of nodes there are more
STANDSTILLS = (Cause.HANG, Cause.NO_FIRST_STEP)  # nothing died: where do the ranks stand?
FIRST_ENDS = 4  # ranks that ended first, whose logs are kept as a whole
FINAL_SCAN_S = 30.0  # how long a run that ends waits for what its last attempt saved
_THERE = (NodeState.READY, NodeState.SUSPECT, NodeState.UNUSABLE)
STOP_SLACK_S = 10.0  # over the grace period: SIGKILL, reaping, the answer's way back


def open_incident(
    t: Transition,
    cause: Cause,
    *evidence: Evidence,
    suspected_at: float | None = None,
    fault_at: float | None = None,
) -> None:
    """The attempt ended badly: record why, and stop what is left of it."""
    attempt = t.run.attempt
    last_step = attempt.step if attempt and attempt.step is not None else None
    if last_step is None and attempt and attempt.resume:
        last_step = attempt.resume.step
    t.set(
        incidents=(
            *_with_less_evidence(t.run.incidents),
            Incident(
                attempt=attempt.number if attempt else 0,
                cause=cause,
                evidence=EvidenceLog(evidence),
                fault_at=fault_at,
                suspected_at=suspected_at if suspected_at is not None else t.at,
                confirmed_at=t.at,
                step=last_step,
            ),
        )
    )
    stop_ranks(
        t, f"{cause}: {evidence[-1].text if evidence else ''}", t.run.spec.policy.stop_grace_s
    )


def _with_less_evidence(incidents: tuple[Incident, ...]) -> tuple[Incident, ...]:
    """As the newest becomes an older one: what it rests on came first. The journal has the rest."""
    if not incidents or len(incidents[-1].evidence) <= EVIDENCE_KEPT:
        return incidents
    first = EvidenceLog(incidents[-1].evidence[:EVIDENCE_KEPT])
    return (*incidents[:-1], replace(incidents[-1], evidence=first))


def answering(run: Run, attempt: Attempt) -> list[str]:
    """Nodes of the attempt that can be expected to confirm that their ranks are gone."""
    return [n for n in attempt.slots if n in run.pool and run.pool[n].state not in SILENT]


def stop_ranks(t: Transition, reason: str, grace_s: float) -> None:
    attempt = t.run.attempt
    drop_orders(t)
    t.enter_phase(Phase.STOPPING, reason, (grace_s + STOP_SLACK_S, DeadlineKind.STOP))
    if attempt is None:
        triage(t)
        return
    t.update_attempt(confirmed_stopped=PersistentSet())
    for node in answering(t.run, attempt):
        if t.run.stopping_as is None:
            key = names.collect_key(attempt.number, node)
            stuck = bool(t.run.incidents) and t.run.incidents[-1].cause in STANDSTILLS
            t.emit(act.Collect(key=key, node=node, attempt=attempt.number, stacks=stuck))
        key = names.stop_key(attempt.number, node, now=grace_s == 0)
        t.emit(act.Stop(key=key, node=node, attempt=attempt.number, grace_s=grace_s))
    if not answering(t.run, attempt):
        all_ranks_stopped(t)


@handles(ev.RanksStopped)
def ranks_stopped(t: Transition, event: ev.RanksStopped) -> None:
    """A node's ranks are gone, but for some that can't be killed. When those end, it says so."""
    attempt = t.run.attempt
    if not event.stuck:
        confirmed(t, event.node, gone=event.attempt)
    elif _not_wanted(t.run, event.node):
        pids = ", ".join(str(pid) for pid in event.stuck)
        reason = f"processes {pids} of an older attempt can't be killed"
        keep_ranks_away(t, event.node, reason, unconfirmed=event.attempt)
    if attempt and event.attempt == attempt.number and t.run.phase is Phase.STOPPING:
        node_confirmed_stopped(t, event.node)


def _not_wanted(run: Run, name: str) -> bool:
    """Whether the node's ranks are all to be gone. One that is being prepared says so by that."""
    node = run.pool.get(name)
    in_slot = run.attempt is not None and name in run.attempt.slots
    used = in_slot and run.phase in (Phase.CHECKING, Phase.STARTING, Phase.RUNNING)
    return node is not None and node.state in _THERE and not used and not run.ended


def node_confirmed_stopped(t: Transition, node: str) -> None:
    attempt = t.run.attempt
    assert attempt is not None
    attempt = replace(attempt, confirmed_stopped=attempt.confirmed_stopped.add(node))
    t.set(attempt=attempt)
    first = t.run.pending.first(act.Stop)  # one that is awaited says enough: mostly it is this one
    asked = getattr(t.run.pending[first], "node", "") if first else ""
    if not _awaited(t.run, attempt, asked) and not any(
        _awaited(t.run, attempt, name) for name in attempt.slots
    ):
        all_ranks_stopped(t)


def _awaited(run: Run, attempt: Attempt, name: str) -> bool:
    """Whether the node is expected to confirm that its ranks are gone, and has not."""
    return (
        name in attempt.slots
        and name not in attempt.confirmed_stopped
        and name in run.pool
        and run.pool[name].state not in SILENT
    )


def stop_stale_ranks(t: Transition, node: str) -> None:
    """A node is back that was given up: what it still runs belongs to nobody."""
    attempt = t.run.attempt
    if attempt is None:
        return
    if node in attempt.slots and t.run.phase in (Phase.CHECKING, Phase.STARTING, Phase.RUNNING):
        return  # it is being prepared, or its ranks are wanted
    if stop_pending(t.run, node):
        return  # it has the grace that it was given
    key = names.stop_key(attempt.number, node, now=True)
    t.emit(act.Stop(key=key, node=node, attempt=attempt.number, grace_s=0.0))


def all_ranks_stopped(t: Transition) -> None:
    if t.run.incidents and t.run.incidents[-1].stopped_at is None:
        t.update_incident(stopped_at=t.at)
    triage(t)


@handles(ev.Collected)
def collected(t: Transition, event: ev.Collected) -> None:
    if t.run.incidents and t.run.incidents[-1].attempt == event.attempt:
        seen = t.run.incidents[-1].evidence
        t.update_incident(evidence=seen.plus_new(event.evidence))  # an order may be repeated


def triage(t: Transition) -> None:
    """Have checkpoints verified before anything is decided."""
    attempt = t.run.attempt
    # A run that goes on waits for storage; one that ends does not keep its user waiting for it.
    ends = t.run.stopping_as is not None and not _in_question(t.run)
    t.enter_phase(
        Phase.TRIAGE,
        t.run.reason,
        (FINAL_SCAN_S, DeadlineKind.FINAL_SCAN) if ends else None,
    )
    if attempt is not None:
        _keep_logs(t, attempt)
    if attempt is None or attempt.save_dir is None:
        decide(t)
        return
    t.emit(
        act.Scan(
            key=names.scan_key(attempt.number, t.at),
            attempt=attempt.number,
            directory=attempt.save_dir,
            known=tuple((c.step, c.path, c.attempt) for c in t.run.lineage),
        )
    )


def _keep_logs(t: Transition, attempt: Attempt) -> None:
    """Have what the ranks wrote brought here: their nodes may be gone when somebody reads it."""
    if attempt.started_at is None or not t.run.pool:  # resumed: its nodes were given back
        return
    t.drop(lambda a: isinstance(a, act.KeepLogs))  # it goes on, and nothing waits for it
    ends = bad_ends(t.run)[:FIRST_ENDS]
    first = [act.BadEnd(rank=e.rank, how=e.text(), tail=e.tail) for e in ends]
    t.emit(
        act.KeepLogs(
            key=names.keep_logs_key(attempt.number, t.at),
            attempt=attempt.number,
            slots=attempt.slots,
            first=tuple(first),
        )
    )


@handles(ev.LogsKept)
def logs_kept(t: Transition, event: ev.LogsKept) -> None:
    """A run that has ended waits for nothing else before it gives its nodes back."""
    waits = t.run.deadline is not None and t.run.deadline.kind is DeadlineKind.LOGS
    if waits and not t.run.pending.size(act.KeepLogs):
        release(t)


@handles(ev.Scanned)
def scanned(t: Transition, event: ev.Scanned) -> None:
    """The lineage is what was good and still is, and what the attempt has added.

    A checkpoint of an older attempt that turns up later does not count, nor does one that was
    rejected. One that is verified again stays as old as it is: only a new one is progress.
    """
    new = merge_scan(t, event)
    newest = max((c.step for c in new), default=0)
    if newest > t.run.best_step:
        t.set(best_step=newest, restarts_without_progress={})
    number = t.run.attempt.number if t.run.attempt else 0
    if own := [c.step for c in new if c.attempt == number]:
        saved(t, max(own))
    retain(t)
    unanswered = any(isinstance(a, act.Scan) for a in t.run.pending.values())
    if t.run.phase is Phase.TRIAGE and not unanswered:  # else this scan is from before the end
        decide(t)


def _in_question(run: Run) -> bool:
    """Whether all ranks ended well and have shown nothing of the work that they would show."""
    return run.stopping_as is Phase.DONE and run.spec.shows_work and not worked(run)


def _ended_without_work(t: Transition) -> None:
    number = t.run.attempt.number if t.run.attempt else 0
    text = (
        "all ranks ended with code 0, without a step, a new verified checkpoint, a resume or a "
        "word that training is complete"
    )
    seen = Evidence(node="", at=t.at, source="agent", text=text)
    one = Incident(
        attempt=number,
        cause=Cause.ENDED_EARLY,
        evidence=EvidenceLog((seen,)),
        suspected_at=t.run.since,
        confirmed_at=t.at,
        stopped_at=t.run.since,
        step=t.run.attempt.resume.step if t.run.attempt and t.run.attempt.resume else None,
    )
    t.set(stopping_as=None, incidents=(*t.run.incidents, one))


def decide(t: Transition) -> None:
    """Decide what comes after the attempt; while this engine is cut off, when that is over."""
    if t.run.isolated_since is not None and t.run.stopping_as is None:
        return
    newest: Checkpoint | None = t.run.lineage[-1] if t.run.lineage else None
    if _in_question(t.run):
        _ended_without_work(t)
    if t.run.stopping_as is not None:
        if t.run.incidents and t.run.incidents[-1].verdict is None:
            last = t.run.incidents[-1]
            final = diagnose(t.run, last)
            t.update_incident(
                verdict=final, judged_at=t.at, remedy=f"the run is {t.run.stopping_as.value}"
            )
        unknown = t.run.stopping_as is Phase.DONE and not worked(t.run)
        note = "; no step was understood, and nothing else tells whether they trained"
        end(t, t.run.stopping_as, t.run.reason + (note if unknown else ""))
        return
    if not t.run.incidents or t.run.incidents[-1].verdict is not None:  # a person resumed the run
        assign_slots(t)
        return
    incident = t.run.incidents[-1]
    verdict = diagnose(t.run, incident)
    tries = t.run.restarts_without_progress.get(verdict.cause, 0) + 1
    t.set(restarts_without_progress={**t.run.restarts_without_progress, verdict.cause: tries})
    choice = remedy(t.run, verdict, tries)
    t.update_incident(
        evidence=EvidenceLog(
            cause_first([*incident.evidence, *health_of(t.run, verdict, incident)])
        ),
        verdict=verdict,
        judged_at=t.at,
        remedy=choice.text,
        resumed_from=newest.step if newest is not None else 0,
    )
    match choice.kind:
        case RemedyKind.HOLD:
            _clear(t, verdict)
            end(t, Phase.HELD, f"{verdict.why}; {choice.text}")
        case RemedyKind.SWAP | RemedyKind.RETRY:
            _clear(t, verdict)
            _exclude(t, choice.exclude, verdict)
            if choice.delay_s > 0:
                reason = f"{choice.text} in {choice.delay_s:.0f} s ({verdict.cause})"
                t.enter_phase(Phase.BACKOFF, reason, (choice.delay_s, DeadlineKind.RETRY))
            else:
                assign_slots(t)
        case _:
            assert_never(choice.kind)


def _clear(t: Transition, verdict: Verdict) -> None:
    """Nodes that were excluded by inference, and that the verdict clears, may be used again."""
    kept = {
        name: exclusion
        for name, exclusion in t.run.excluded.items()
        if name not in verdict.cleared or exclusion.confidence is not Confidence.INFERRED
    }
    if len(kept) < len(t.run.excluded):
        t.set(excluded=kept)


def _exclude(t: Transition, nodes: tuple[str, ...], verdict: Verdict) -> None:
    """This run does not use the nodes again, while there are others."""
    number = t.run.attempt.number if t.run.attempt else 0
    new = {
        node: Exclusion(
            node=node,
            reason=f"{verdict.cause}: {verdict.why}",
            since=t.at,
            attempt=number,
            cause=verdict.cause,
            confidence=verdict.confidence,
        )
        for node in nodes
    }
    t.set(excluded={**t.run.excluded, **new})


def has_slot(run: Run, node: str) -> bool:
    """Whether ranks of the current attempt are meant to run on the node now."""
    return (
        run.phase in (Phase.STARTING, Phase.RUNNING)
        and run.attempt is not None
        and node in run.attempt.slots
    )
