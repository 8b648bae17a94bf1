"""`step(run, event) -> (run, actions)`: every decision about a Run, as one pure function.

Time arrives in events. Results of actions come back as events. The engine, a rebuild from the
journal and every test go through this function and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.ending import cancel, end
from supervisor.core.health import barred_seen, health_seen
from supervisor.core.lineage import put_away
from supervisor.core.membership import (
    agent_joined,
    agent_left,
    allocation_seen,
    submit_refused,
    submitted,
)
from supervisor.core.people import quarantine_asked, resume_asked
from supervisor.core.placement import (
    ask,
    missing,
    place,
    prepared,
    ranks_started,
    usable,
    waiting_for_shared,
)
from supervisor.core.recovery import (
    all_clear,
    answering,
    collected,
    judge,
    open_incident,
    ranks_stopped,
    scanned,
    stop_ranks,
)
from supervisor.core.running import marks, progress, rank_exited, resumed, stalled, start_failed
from supervisor.core.silence import node_heard, node_silent, probed, step_overdue
from supervisor.core.turn import Turn
from supervisor.core.types import Evidence, NodeState, Phase, Run

ENGINE_SLACK_S = 30.0  # after an engine's start agents get this long before a deadline counts


def step(run: Run | None, event: ev.Event) -> tuple[Run, tuple[Action, ...]]:
    """Fold one event into the run; the first event of a run is Launched."""
    if run is None:
        assert isinstance(event, ev.Launched), "a journal begins with Launched"
        run = Run(spec=event.spec, lineage=(event.seed,) if event.seed else ())
    turn = Turn(run, event.at)
    key = getattr(event, "key", None)
    if key is not None and not isinstance(event, ev.Waiting):
        turn.set(pending={k: a for k, a in turn.run.pending.items() if k != key})
    _ON[type(event)](turn, event)
    # What was ordered and dropped within the same step is not wanted any more.
    return turn.run, tuple(a for a in turn.actions if a.key in turn.run.pending)


def launched(t: Turn, event: ev.Launched) -> None:
    if event.seed:
        t.set(best_step=event.seed.step)
    t.set(barred=dict(event.barred))
    ask(t)


def engine_started(t: Turn, event: ev.EngineStarted) -> None:
    moved = bool(t.run.endpoint) and t.run.endpoint != event.endpoint
    t.set(epoch=event.epoch, endpoint=event.endpoint)
    if t.run.deadline is not None:
        later = max(t.run.deadline.at, t.at + ENGINE_SLACK_S)
        t.set(deadline=replace(t.run.deadline, at=later))
    t.actions.extend(t.run.pending.values())
    if moved:
        for alloc in t.run.allocations.values():
            if alloc.state == "granted":
                t.do(do.SendKeys(key=f"keys/{alloc.job_id}/e{event.epoch}", job_id=alloc.job_id))


def keys_sent(t: Turn, event: ev.KeysSent) -> None:
    """The agents of the job can register now; nothing to decide."""


def stop_asked(t: Turn, event: ev.StopAsked) -> None:
    if t.run.ended:
        return
    t.set(goal=Phase.STOPPED, reason=f"stopped by {event.who}")
    if t.run.phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING):
        grace = 0.0 if event.now else t.run.spec.policy.stop_grace_s
        stop_ranks(t, t.run.reason, grace)
    else:
        end(t, Phase.STOPPED, t.run.reason)


def due(t: Turn, event: ev.Due) -> None:
    if t.run.deadline is None or t.run.deadline.what != event.what:
        return
    t.set(deadline=None)
    waited = f"{t.at - t.run.since:.0f} s"
    if event.what == "gather":
        have, need = len(usable(t.run)), t.run.spec.nodes
        shared = waiting_for_shared(t.run)
        if have >= need:
            place(t)
        elif have + len(shared) >= need:  # the world's fault: no run is held for that
            fault = shared[0].faults[0]
            reason = f"waiting for what nodes share: {fault.check}: {fault.text}"
            t.phase(
                Phase.GATHERING,
                f"{reason} ({len(shared)} nodes)",
                (t.run.spec.policy.gather_limit_s, "gather"),
            )
        else:
            why = f"{have} of {need} nodes are usable after {waited}"
            end(t, Phase.HELD, f"{t.run.reason}; {why}{missing(t.run)}")
    elif event.what in ("spares", "retry"):
        place(t)
    elif event.what == "prepare":
        assert t.run.attempt is not None
        reason = f"did not confirm within {waited} that it is free of older ranks"
        unconfirmed(t, set(t.run.attempt.slots) - set(t.run.attempt.prepared), reason)
        place(t)
    elif event.what == "start":
        text = f"no step within {waited} of the start"
        open_incident(t, "no-first-step", Evidence(node="", at=t.at, source="progress", text=text))
    elif event.what == "stop":
        assert t.run.attempt is not None
        reason = f"did not confirm within {waited} that its ranks are gone"
        unconfirmed(t, set(answering(t.run, t.run.attempt)) - set(t.run.attempt.gone), reason)
        all_clear(t)
    elif event.what == "last look":
        judge(t)
    elif event.what == "release":
        for job in t.run.live_jobs:
            cancel(t, job, "the run ended and its agents did not end the job by themselves")


def unconfirmed(t: Turn, names: set[str], reason: str) -> None:
    """Ranks don't run there now. A silent node stays suspect: it may be heard again."""
    for name in names:
        if t.run.pool[name].state is NodeState.READY:
            t.node(name, state=NodeState.UNFIT, since=t.at, reason=reason, unconfirmed=True)


def noted(t: Turn, event: ev.Event) -> None:
    """Kept for the record; decides nothing."""


_ON: dict[type[ev.Event], Callable[[Turn, Any], None]] = {
    ev.Launched: launched,
    ev.EngineStarted: engine_started,
    ev.Submitted: submitted,
    ev.SubmitRefused: submit_refused,
    ev.Waiting: noted,
    ev.AllocationSeen: allocation_seen,
    ev.KeysSent: keys_sent,
    ev.AgentJoined: agent_joined,
    ev.AgentLeft: agent_left,
    ev.NodeSilent: node_silent,
    ev.NodeHeard: node_heard,
    ev.Probed: probed,
    ev.StepOverdue: step_overdue,
    ev.Stalled: stalled,
    ev.Prepared: prepared,
    ev.RanksStarted: ranks_started,
    ev.StartFailed: start_failed,
    ev.RankExited: rank_exited,
    ev.RanksStopped: ranks_stopped,
    ev.Resumed: resumed,
    ev.Marks: marks,
    ev.Progress: progress,
    ev.Scanned: scanned,
    ev.Collected: collected,
    ev.HealthSeen: health_seen,
    ev.BarredSeen: barred_seen,
    ev.StopAsked: stop_asked,
    ev.ResumeAsked: resume_asked,
    ev.QuarantineAsked: quarantine_asked,
    ev.PutAway: put_away,
    ev.Due: due,
    ev.Done: noted,
}
