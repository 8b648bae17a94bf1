"""What people ask for beyond a stop: that an ended run goes on, that nodes are used again, that a
checkpoint is bad."""

from __future__ import annotations

from supervisor.core import events as ev
from supervisor.core.diagnose import diagnose
from supervisor.core.lineage import retire
from supervisor.core.liveness import help_back
from supervisor.core.placement import assign_slots, try_assign_slots
from supervisor.core.recovery import open_incident, stop_ranks, triage
from supervisor.core.shutdown import end
from supervisor.core.transition import Transition, handles
from supervisor.core.types import HAS_RANKS, Cause, Evidence, Phase, Run

TRAINS = (Phase.CHECKING, Phase.STARTING, Phase.RUNNING)


@handles(ev.StopRequested)
def stop_requested(t: Transition, event: ev.StopRequested) -> None:
    if t.run.ended:
        return
    t.set(stopping_as=Phase.STOPPED, reason=f"stopped by {event.who}")
    if t.run.phase in HAS_RANKS:
        grace = 0.0 if event.now else t.run.spec.policy.stop_grace_s
        stop_ranks(t, t.run.reason, grace)
    else:
        end(t, Phase.STOPPED, t.run.reason)


@handles(ev.ResumeRequested)
def resume_requested(t: Transition, event: ev.ResumeRequested) -> None:
    """Take an ended run back to where the next attempt is decided, with fresh budgets."""
    if not t.run.ended or t.run.live_jobs:
        return
    excluded = {name: x for name, x in t.run.excluded.items() if name not in event.include}
    t.set(
        spec=event.spec,
        excluded=excluded,
        asked_by_person=True,
        refusals=0,
        asked_others=0,
        avoid=(),
        stopping_as=None,
        restarts_without_progress={},
        slots=(),
        pool={},
    )
    if t.run.incidents and t.run.incidents[-1].verdict is None:
        verdict = diagnose(t.run, t.run.incidents[-1])
        t.update_incident(verdict=verdict, remedy=f"resumed by {event.who}")
    t.set(reason=f"resumed by {event.who}; looking at the checkpoints")
    triage(t)


@handles(ev.IncludeRequested)
def include_requested(t: Transition, event: ev.IncludeRequested) -> None:
    """They may take slots again: at once where nodes are waited for, else as spares.

    Where one was lost and may be back, an agent is started there.
    """
    help_back(t, event.nodes)
    kept = {name: x for name, x in t.run.excluded.items() if name not in event.nodes}
    if len(kept) == len(t.run.excluded):
        return
    t.set(excluded=kept)
    if t.run.phase is Phase.GATHERING:
        try_assign_slots(t)


def objection(run: Run, step: int, *, and_later: bool | None) -> str:
    """Why a checkpoint can't be put into quarantine so, or an empty string.

    What was trained from a bad checkpoint is suspect too. Whether it goes as well is for a person
    to say: `and_later` None means that nothing was said.
    """
    if step not in {c.step for c in run.lineage}:
        there = ", ".join(str(c.step) for c in run.lineage) or "none"
        return f"no checkpoint of step {step} is in the lineage of {run.spec.name}; there: {there}"
    if and_later is not None:
        return ""
    suspects = [f"step {c.step}" for c in run.lineage if c.step > step]
    if run.phase in TRAINS and trained_through(run, step):
        suspects.append("the ranks that train now")
    if not suspects:
        return ""
    return (
        f"{', '.join(suspects)} came of step {step} and may be bad too: --and-later takes all of "
        "it back and resumes from an older checkpoint, --only keeps it"
    )


def trained_through(run: Run, step: int) -> bool:
    """Whether the current attempt has, or began with, what the step's checkpoint holds."""
    attempt = run.attempt
    if attempt is None:
        return False
    began = attempt.resume.step if attempt.resume else 0
    return max(began, attempt.step or 0) >= step


@handles(ev.QuarantineRequested)
def quarantine_requested(t: Transition, event: ev.QuarantineRequested) -> None:
    chosen = [
        c
        for c in t.run.lineage
        if c.step == event.step or (event.and_later and c.step > event.step)
    ]
    if not chosen:
        return
    attempt = t.run.attempt
    newest = chosen[0].step == t.run.lineage[-1].step
    # Of an ended run, checkpoints may be there that nobody has verified yet.
    tainted = trained_through(t.run, event.step) and (event.and_later or (t.run.ended and newest))
    for one in chosen:
        retire(t, one, f"{event.who}: {event.reason}", quarantined=True)
    if t.run.lineage:  # else the run must not take itself for a new one
        t.set(best_step=t.run.lineage[-1].step, restarts_without_progress={})
    if attempt is None:
        return
    if tainted:
        t.update_attempt(tainted_from=min(event.step, attempt.tainted_from or event.step))
    loads = attempt.resume is not None and attempt.resume.path in t.run.retired
    starts = t.run.phase is Phase.STARTING or (  # slot 0 may have made a step before the others
        t.run.phase is Phase.RUNNING and len(attempt.started) < len(attempt.slots)
    )
    if t.run.phase is Phase.CHECKING and loads:
        assign_slots(t)
    elif (starts and loads) or (t.run.phase in (Phase.STARTING, Phase.RUNNING) and tainted):
        text = f"{event.who} put step {event.step} into quarantine: {event.reason}"
        open_incident(t, Cause.QUARANTINE, Evidence(node="", at=t.at, source="person", text=text))
