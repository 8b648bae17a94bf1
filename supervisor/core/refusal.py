"""What becomes of a step that would break an invariant: part of the fold, so a rebuild agrees.

The offending actions are left out: not done, not journaled, not waited for. Where ranks that train
would be ended, the step is not taken at all, because a run that believes its ranks to be stopped
starts others in their place. Either way the run is shown with what was refused, and its next good
step goes on from there. It waits for no answer that can't come: where nothing else would end its
phase, a deadline holds it, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.invariants import violations
from supervisor.core.run_invariants import REFUSED_S, waits_for_something
from supervisor.core.types import Deadline, DeadlineKind, Orders, Phase, Run, Violation

MAX_SHOWN = 20  # violations that a run remembers, the newest of them

Taken = tuple[Run, list[Action]]


def guarded(before: Run, event: ev.Event, run: Run, actions: list[Action]) -> Taken:
    """The step as it is taken: as it is, or without what would break an invariant."""
    broken = violations(before, event, run, actions, whole=False)
    if not broken:
        return run, actions
    answered = "" if isinstance(event, ev.Waiting) else getattr(event, "key", "")
    waited = before.pending.without(answered)  # an answer did come
    if any(v.undone for v in broken):
        run, actions = replace(before, pending=waited), []
    else:
        run, actions = _without(waited, run, actions, broken)
    shown = run.violations
    for one in broken:
        shown = _added(shown, one)
    return _with_an_end(replace(run, violations=shown), event), actions


def _without(
    waited: Mapping[str, Action],
    run: Run,
    actions: list[Action],
    broken: Sequence[Violation],
) -> Taken:
    keys = {key for v in broken for key in v.refused}
    nodes = {name for v in broken for name in v.nodes}
    if any(a.key in keys and isinstance(a, act.Start) for a in actions):
        keys |= {a.key for a in actions if isinstance(a, act.Start)}  # no attempt with a hole in it
        if run.deadline is not None and run.phase is Phase.STARTING:
            soon = min(run.deadline.at, run.since + REFUSED_S)
            run = replace(run, deadline=replace(run.deadline, at=soon))
    return (
        replace(
            run,
            pending=Orders(
                (key, waited[key] if key in keys else action)
                for key, action in run.pending.items()
                if key in waited or key not in keys
            ),
            excluded={name: x for name, x in run.excluded.items() if name not in nodes},
        ),
        [a for a in actions if a.key not in keys],
    )


def _added(shown: tuple[Violation, ...], one: Violation) -> tuple[Violation, ...]:
    """With one more; the same thing again is counted."""
    same = [v for v in shown if (v.invariant, v.what) == (one.invariant, one.what)]
    others = [v for v in shown if v not in same]
    return (*others, replace(one, times=1 + sum(v.times for v in same)))[-MAX_SHOWN:]


def _with_an_end(run: Run, event: ev.Event) -> Run:
    """With a deadline where nothing else would end the phase, or where it would pass at once."""
    kind = DeadlineKind.REFUSED
    if isinstance(event, ev.DeadlineExpired) and run.deadline and run.deadline.at <= event.at:
        kind = run.deadline.kind
    elif waits_for_something(run):
        return run
    return replace(run, deadline=Deadline(at=event.at + REFUSED_S, kind=kind))
