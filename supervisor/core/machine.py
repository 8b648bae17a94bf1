"""`step(run, event) -> (run, actions)`: every decision about a Run, as one pure function.

Time arrives in events. Results of actions come back as events. The engine, a rebuild from the
journal and every test go through this function and nothing else. What an event changes is decided
by its handler, a function marked `@handles(EVENT)` in the module of its subject.
"""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import actions as act
from supervisor.core import (
    adoption,
    deadlines,
    files,
    health,
    isolation,
    lineage,
    liveness,
    membership,
    names,
    notices,
    operator_requests,
    placement,
    recovery,
    running,
)
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.refusal import guarded
from supervisor.core.renewal import request_allocation
from supervisor.core.run_invariants import ENGINE_SLACK_S
from supervisor.core.transition import HANDLERS, Handlers, Transition, handles
from supervisor.core.types import AllocationState, Run

# The subjects; importing them registers their handlers.
SUBJECTS = (
    adoption,
    deadlines,
    files,
    health,
    isolation,
    lineage,
    liveness,
    membership,
    notices,
    operator_requests,
    placement,
    recovery,
    running,
)

ENGINE_STARTS = 4  # so many are remembered


def step(run: Run | None, event: ev.Event) -> tuple[Run, tuple[Action, ...]]:
    """Fold one event into the run; the first of a journal is Launched or Adopted.

    What would break an invariant is left out: supervisor.core.refusal.
    """
    t = transition(run, event)
    return t.run, tuple(t.actions)


def transition(run: Run | None, event: ev.Event, handlers: Handlers = HANDLERS) -> Transition:
    """`step`, with the phases that it went through; other handlers show what is left out."""
    if run is None:
        run = _begun(event)
    t = Transition(run, event.at)
    key = getattr(event, "key", "")
    if key in run.pending and not isinstance(event, ev.Waiting):
        t.set(pending=run.pending.without(key))
    handlers[type(event)](t, event)
    # What was ordered and dropped within the same step is not wanted any more.
    t.actions = [a for a in t.actions if a.key in t.run.pending]
    t.run, t.actions = guarded(run, event, t.run, t.actions)
    return t


def _begun(event: ev.Event) -> Run:
    if isinstance(event, ev.Adopted):
        return adoption.adopted(event)
    assert isinstance(event, ev.Launched), "a journal begins with Launched or Adopted"
    seed = (event.seed,) if event.seed else ()
    return Run(spec=event.spec, launched_at=event.at, lineage=seed)


@handles(ev.Launched)
def launched(t: Transition, event: ev.Launched) -> None:
    if event.seed:
        t.set(best_step=event.seed.step)
    t.set(operator_excluded=dict(event.operator_excluded))
    request_allocation(t)


@handles(ev.EngineStarted)
def engine_started(t: Transition, event: ev.EngineStarted) -> None:
    moved = bool(t.run.endpoint) and t.run.endpoint != event.endpoint
    starts = (*t.run.engine_starts, t.at)[-ENGINE_STARTS:]
    t.set(epoch=event.epoch, endpoint=event.endpoint, engine_starts=starts)
    cut_off = t.run.isolated_since is not None
    isolation.let_deadlines_run(t)  # whom this engine hears it will say itself
    if t.run.deadline is not None:
        later = max(t.run.deadline.at, t.at + ENGINE_SLACK_S)
        t.set(deadline=replace(t.run.deadline, at=later))
    t.actions.extend(t.run.pending.values())
    if moved:
        for alloc in t.run.allocations.values():
            if alloc.state is AllocationState.GRANTED:
                t.emit(
                    act.SendKeys(
                        key=names.send_keys_key(alloc.job_id, event.epoch), job_id=alloc.job_id
                    )
                )
    if cut_off:
        isolation.decide_what_waited(t)


def record_only(t: Transition, event: ev.Event) -> None:
    """Kept for the record, or an answer that only ends what was pending; decides nothing."""


for _kind in (ev.Waiting, ev.Done, ev.KeysSent):
    HANDLERS[_kind] = record_only
