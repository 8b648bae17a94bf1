"""An attempt ended badly: stop what is left, look at checkpoints, decide what comes next."""

from __future__ import annotations

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.diagnose import diagnose, health_of, nothing_left, remedy
from supervisor.core.ending import end
from supervisor.core.lineage import retain, take_in
from supervisor.core.placement import back, place
from supervisor.core.turn import Turn
from supervisor.core.types import (
    Attempt,
    Checkpoint,
    Evidence,
    Exclusion,
    Incident,
    NodeState,
    Phase,
    Run,
)

STANDSTILLS = ("hang", "no-first-step")  # nothing died: where do the ranks stand?
LAST_LOOK_S = 30.0  # how long a run that ends looks for what its last attempt saved
STOP_SLACK_S = 10.0  # over the grace period: SIGKILL, reaping, the answer's way back


def open_incident(
    t: Turn,
    cause: str,
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
            *t.run.incidents,
            Incident(
                attempt=attempt.number if attempt else 0,
                cause=cause,
                evidence=evidence,
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


def answering(run: Run, attempt: Attempt) -> list[str]:
    """Nodes of the attempt that can be expected to confirm that their ranks are gone."""
    silent = (NodeState.LOST, NodeState.LEFT)
    return [n for n in attempt.slots if n in run.pool and run.pool[n].state not in silent]


def stop_ranks(t: Turn, reason: str, grace_s: float) -> None:
    attempt = t.run.attempt
    t.drop(lambda a: isinstance(a, do.Order) and not isinstance(a, do.Probe))
    t.phase(Phase.STOPPING, reason, (grace_s + STOP_SLACK_S, "stop"))
    if attempt is None:
        triage(t)
        return
    t.attempt(gone=())
    for node in answering(t.run, attempt):
        if t.run.goal is None:
            key = f"a{attempt.number}/collect/{node}"
            stuck = bool(t.run.incidents) and t.run.incidents[-1].cause in STANDSTILLS
            t.do(do.Collect(key=key, node=node, attempt=attempt.number, stacks=stuck))
        key = f"a{attempt.number}/stop{'-now' if grace_s == 0 else ''}/{node}"
        t.do(do.Stop(key=key, node=node, attempt=attempt.number, grace_s=grace_s))
    if not answering(t.run, attempt):
        all_clear(t)


def ranks_stopped(t: Turn, event: ev.RanksStopped) -> None:
    attempt = t.run.attempt
    node = t.run.pool.get(event.node)
    if node is not None and node.state is NodeState.UNFIT and not event.stuck and node.unconfirmed:
        back(t, event.node, unconfirmed=False)
    if attempt is None or event.attempt != attempt.number or t.run.phase is not Phase.STOPPING:
        return
    if event.stuck:
        pids = ", ".join(str(pid) for pid in event.stuck)
        reason = f"processes {pids} of an older attempt can't be killed"
        t.node(event.node, state=NodeState.UNFIT, since=t.at, reason=reason, unconfirmed=True)
    node_is_clear(t, event.node)


def node_is_clear(t: Turn, node: str) -> None:
    attempt = t.run.attempt
    assert attempt is not None
    if node not in attempt.gone:
        t.attempt(gone=(*attempt.gone, node))
    assert t.run.attempt is not None
    if set(t.run.attempt.gone) >= set(answering(t.run, t.run.attempt)):
        all_clear(t)


def clear(t: Turn, node: str) -> None:
    """A node is back that was given up: what it still runs belongs to nobody."""
    attempt = t.run.attempt
    if attempt is None:
        return
    if node in attempt.slots and t.run.phase in (Phase.CHECKING, Phase.STARTING, Phase.RUNNING):
        return  # it is being prepared, or its ranks are wanted
    key = f"a{attempt.number}/stop/{node}"
    t.do(do.Stop(key=key, node=node, attempt=attempt.number, grace_s=0.0))


def all_clear(t: Turn) -> None:
    if t.run.incidents and t.run.incidents[-1].stopped_at is None:
        t.incident(stopped_at=t.at)
    triage(t)


def collected(t: Turn, event: ev.Collected) -> None:
    if t.run.incidents and t.run.incidents[-1].attempt == event.attempt:
        before = t.run.incidents[-1].evidence
        known = {(e.node, e.source, e.text) for e in before}  # an order that was repeated
        new = [e for e in event.evidence if (e.node, e.source, e.text) not in known]
        t.incident(evidence=(*before, *new))


def triage(t: Turn) -> None:
    """Look which checkpoints are good before anything is decided."""
    attempt = t.run.attempt
    # A run that goes on waits for storage; one that ends does not keep its user waiting for it.
    t.phase(Phase.TRIAGE, t.run.reason, (LAST_LOOK_S, "last look") if t.run.goal else None)
    if attempt is None or attempt.save_dir is None:
        judge(t)
        return
    t.do(
        do.Scan(
            key=f"a{attempt.number}/scan/{t.at:.3f}",
            attempt=attempt.number,
            directory=attempt.save_dir,
            known=tuple((c.step, c.path, c.attempt) for c in t.run.lineage),
        )
    )


def scanned(t: Turn, event: ev.Scanned) -> None:
    """The lineage is what was good and still is, and what the attempt has added.

    A checkpoint of an older attempt that turns up later does not count, nor does one that was
    rejected. One that is looked at again stays as old as it is: only a new one is progress.
    """
    new = take_in(t, event)
    newest = max((c.step for c in new), default=0)
    if newest > t.run.best_step:
        t.set(best_step=newest, fruitless={})
    retain(t)
    asked = any(isinstance(a, do.Scan) for a in t.run.pending.values())
    if t.run.phase is Phase.TRIAGE and not asked:  # else this is a look from before the end
        judge(t)


def judge(t: Turn) -> None:
    """Decide what comes after the attempt."""
    newest: Checkpoint | None = t.run.lineage[-1] if t.run.lineage else None
    if t.run.goal is not None:
        if t.run.incidents and t.run.incidents[-1].verdict is None:
            last = t.run.incidents[-1]
            final = diagnose(t.run, last)
            t.incident(verdict=final, judged_at=t.at, remedy=f"the run is {t.run.goal.value}")
        end(t, t.run.goal, t.run.reason)
        return
    if not t.run.incidents or t.run.incidents[-1].verdict is not None:  # a person resumed the run
        if why := nothing_left(t.run):
            end(t, Phase.HELD, why)
        else:
            place(t)
        return
    incident = t.run.incidents[-1]
    verdict = diagnose(t.run, incident)
    tries = t.run.fruitless.get(verdict.cause, 0) + 1
    t.set(fruitless={**t.run.fruitless, verdict.cause: tries})
    choice = remedy(t.run, verdict, tries)
    t.incident(
        evidence=(*incident.evidence, *health_of(t.run, verdict, incident)),
        verdict=verdict,
        judged_at=t.at,
        remedy=choice.text,
        resumed_from=newest.step if newest is not None else 0,
    )
    if choice.kind == "hold":
        end(t, Phase.HELD, f"{choice.text} ({verdict.why})")
        return
    number = t.run.attempt.number if t.run.attempt else 0
    for name in choice.exclude:
        exclusion = Exclusion(
            node=name, reason=f"{verdict.cause}: {verdict.why}", since=t.at, attempt=number
        )
        t.set(excluded={**t.run.excluded, name: exclusion})
    if choice.delay_s > 0:
        reason = f"{choice.text} in {choice.delay_s:.0f} s ({verdict.cause})"
        t.phase(Phase.BACKOFF, reason, (choice.delay_s, "retry"))
    else:
        place(t)


def has_slot(run: Run, node: str) -> bool:
    """Whether ranks of the current attempt are meant to run on the node now."""
    return (
        run.phase in (Phase.STARTING, Phase.RUNNING)
        and run.attempt is not None
        and node in run.attempt.slots
    )
