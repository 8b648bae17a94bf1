"""An attempt trains: it makes steps, or checkpoints that verify."""

from __future__ import annotations

from supervisor.core.step_lines import says_over
from supervisor.core.transition import Transition
from supervisor.core.types import Deadline, DeadlineKind, Phase, Run


def trains(t: Transition) -> None:
    """The attempt makes steps."""
    attempt = t.run.attempt
    assert attempt is not None
    if t.run.phase is Phase.STARTING:
        t.update_attempt(first_step_at=t.at)
        t.enter_phase(Phase.RUNNING, f"attempt {attempt.number}")
        if attempt.exits:
            expect_last_ranks(t)
        if t.run.incidents and t.run.incidents[-1].first_step_at is None:
            t.update_incident(first_step_at=t.at)


def saved(t: Transition, step: int) -> None:
    """A new checkpoint of the attempt was verified: it trains, whatever its lines say."""
    attempt = t.run.attempt
    if attempt is None or t.run.phase not in (Phase.STARTING, Phase.RUNNING):
        return
    if attempt.step is None or (attempt.by_checkpoint and step > attempt.step):
        t.update_attempt(step=step, step_at=t.at, by_checkpoint=True)
    trains(t)


def expect_last_ranks(t: Transition) -> None:
    """Some ranks have ended well: the others have a while to do so too."""
    if t.run.attempt is not None and t.run.attempt.first_end_at is None:
        t.update_attempt(first_end_at=t.at)
    at = t.at + t.run.spec.policy.last_ranks_timeout_s
    if t.run.deadline is None or t.run.deadline.at > at:
        t.set(deadline=Deadline(at=at, kind=DeadlineKind.LAST_RANKS))


def worked(run: Run) -> bool:
    """Whether ranks that all ended well have done something, by what they have shown.

    A step, a new verified checkpoint, a resume (then nothing was left to do), or their own word.
    """
    attempt = run.attempt
    if attempt is None:
        return False
    return (
        attempt.step is not None
        or attempt.below is not None
        or any(one.attempt == attempt.number for one in run.lineage)
        or (attempt.resume is not None and attempt.resumed_well)
        or any(says_over(line) for one in attempt.exits.values() for line in one.tail)
    )
