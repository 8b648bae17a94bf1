"""What ranks tell while they run, and what their end means."""

from __future__ import annotations

import math

from supervisor.core import events as ev
from supervisor.core.lineage import may_hold_nan
from supervisor.core.liveness import confirm_lost, is_stopped
from supervisor.core.recovery import has_slot, open_incident, triage
from supervisor.core.step_lines import says_not_finite
from supervisor.core.training import expect_last_ranks, trains
from supervisor.core.transition import Transition, handles
from supervisor.core.types import (
    Cause,
    Evidence,
    HookTrouble,
    NodeState,
    Phase,
    RankExit,
    Rhythm,
    Run,
    UnreadLine,
)

ENDS_TOLD = 50  # lines of evidence that ends of ranks may fill
CLOCKS_S = 1.0  # by which clocks of nodes that keep time differ, and more


@handles(ev.StartFailed)
def start_failed(t: Transition, event: ev.StartFailed) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number:
        return
    seen = Evidence(node=event.node, at=t.at, source="start", text=f"{event.node}: {event.why}")
    if t.run.phase in (Phase.STARTING, Phase.RUNNING):  # other nodes' ranks may make steps already
        open_incident(t, Cause.START_FAILED, seen)
    elif t.run.phase is Phase.STOPPING and t.run.stopping_as is None:
        t.update_incident(evidence=t.run.incidents[-1].evidence.plus([seen]))


@handles(ev.Resumed)
def resumed(t: Transition, event: ev.Resumed) -> None:
    """A rank at another step than promised: seen from inside, or by the lines of most ranks.

    One rank's line may be a library's, or of something else. It counts once steps bear it out.
    """
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or (event.log and attempt.save_dir is None)  # nothing is promised: it saves by itself
        or t.run.phase not in (Phase.STARTING, Phase.RUNNING)
    ):
        return
    promised = attempt.resume.step if attempt.resume else 0
    if event.step == promised or (event.log and event.step == promised + 1):  # the next one
        if not attempt.resumed_well:
            t.update_attempt(resumed_well=True)
        return
    text = f"{event.node} resumed at step {event.step}, promised was step {promised}"
    if not event.log:
        wrong_step(t, text)
        return
    others = [one for one in attempt.resumed_elsewhere if one[0] != event.node]
    said = (*others, (event.node, event.step, event.others + 1))
    t.update_attempt(resumed_elsewhere=said)
    if _elsewhere(t.run, attempt.first_step):
        ranks = sum(count for _, _, count in said)
        total = len(attempt.slots) * t.run.spec.ranks_per_node
        wrong_step(t, text if total == 1 else f"{text}; so say {ranks} of {total} ranks")


def _elsewhere(run: Run, first: int | None) -> bool:
    """Whether the ranks surely resumed elsewhere, as lines say: most of them, or the first step.

    A step goes before a line: one that is nearer to what was promised leaves it at that.
    """
    attempt = run.attempt
    assert attempt is not None
    promised = attempt.resume.step if attempt.resume else 0
    claims = attempt.resumed_elsewhere
    if first is None:
        total = len(attempt.slots) * run.spec.ranks_per_node
        return 2 * sum(count for _, _, count in claims) > total
    if first < promised:
        return any(step <= first for _, step, _ in claims)
    return any(promised < step <= first <= step + 1 for _, step, _ in claims)


@handles(ev.PhaseTimes)
def phase_times(t: Transition, event: ev.PhaseTimes) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or event.node != attempt.slots[0]:
        return
    t.update_attempt(phase_times=event.phase_times)
    if (
        t.run.incidents
        and not t.run.incidents[-1].phase_times
        and t.run.incidents[-1].relaunched_at
    ):
        t.update_incident(phase_times=event.phase_times)


def wrong_step(t: Transition, text: str) -> None:
    seen = Evidence(node="", at=t.at, source="rank log", text=text)
    t.set(stopping_as=Phase.HELD)
    open_incident(t, Cause.WRONG_STEP, seen)
    t.set(reason=f"attempt {t.run.attempt.number if t.run.attempt else 0}: {text}")


@handles(ev.Progress)
def progress(t: Transition, event: ev.Progress) -> None:
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or t.run.phase not in (Phase.STARTING, Phase.RUNNING)
        or (attempt.step is not None and event.step <= attempt.step)
    ):
        return
    if attempt.step is None and not _begins_as_promised(t, event):
        return
    t.update_attempt(
        first_step=attempt.first_step if attempt.first_step is not None else event.step,
        step=event.step,
        step_at=t.at,
        interval=event.interval or attempt.interval,
        log_steps=event.log,
        by_checkpoint=False,
        unread=None,
    )
    if event.interval is not None:
        t.set(rhythm=Rhythm(step=event.interval, slow=event.slow, save=event.save))
    if event.finite_step is not None and event.finite_step > (attempt.finite_step or 0):
        t.update_attempt(finite_step=event.finite_step)
    if event.loss_not_finite:
        _loss_is_not_finite(t)
    elif event.loss is not None and math.isfinite(event.loss):
        t.update_attempt(loss=event.loss, loss_not_finite_since=None)
    if not t.run.spec.checkpoint_dir and event.step > t.run.best_step:
        t.set(best_step=event.step, restarts_without_progress={})
    trains(t)


def _begins_as_promised(t: Transition, event: ev.Progress) -> bool:
    """Whether the first step is one after what was resumed; where it surely isn't, the run is held.

    By lines a trainer may count from 0, or begin again with each epoch: a step before the promised
    one counts against it once another has followed; a rank's word on the resume goes before it.
    """
    attempt = t.run.attempt
    assert attempt is not None
    if event.log and attempt.save_dir is None:
        return True
    promised = attempt.resume.step if attempt.resume else 0
    text = f"the first step was {event.step}, promised was one after {promised}"
    if not event.log:
        if event.step > promised:
            return True
        wrong_step(t, text)
        return False
    fits = event.step >= promised or event.per_epoch or attempt.resumed_well
    followed = attempt.below is not None and event.step > attempt.below
    if _elsewhere(t.run, event.step):
        node, step, _ = attempt.resumed_elsewhere[-1]
        said = f"{node} resumed at step {step}, promised was step {promised}"
        wrong_step(t, f"{said}; the first step was {event.step}")
        return False
    if followed and not fits:
        wrong_step(t, text)
        return False
    if not fits:
        t.update_attempt(below=event.step)
    return fits


@handles(ev.LinesUnread)
def lines_unread(t: Transition, event: ev.LinesUnread) -> None:
    """Lines come, and no step is understood: said where a person looks first."""
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or t.run.phase not in (Phase.STARTING, Phase.RUNNING)
        or not (attempt.step is None or attempt.by_checkpoint)
    ):
        return
    before = attempt.unread
    now = UnreadLine(
        node=event.node,
        rank=event.rank,
        line=event.line,
        pattern=event.pattern or (before.pattern if before else ""),
        since=before.since if before else t.at,
        at=t.at,
    )
    t.update_attempt(unread=now)


@handles(ev.HookTroubled)
def hook_troubled(t: Transition, event: ev.HookTroubled) -> None:
    """Steps or saves may not be told from inside the ranks: said where a person looks first."""
    attempt = t.run.attempt
    if attempt is not None and event.attempt == attempt.number and attempt.hook_trouble is None:
        one = HookTrouble(node=event.node, rank=event.rank, text=event.text, since=t.at)
        t.update_attempt(hook_trouble=one)


def _loss_is_not_finite(t: Transition) -> None:
    """What was saved since the last step that is known to be finite does not count while it is so.

    It may count again: a loss that was infinite once may be finite at the next step.
    """
    attempt = t.run.attempt
    assert attempt is not None
    if attempt.loss_not_finite_since is None:
        t.update_attempt(loss_not_finite_since=t.at)
    t.set(lineage=tuple(c for c in t.run.lineage if not may_hold_nan(t.run, c)))


@handles(ev.RankExited)
def rank_exited(t: Transition, event: ev.RankExited) -> None:
    _exited(t, event.attempt, event.exit)


@handles(ev.RanksExited)
def ranks_exited(t: Transition, event: ev.RanksExited) -> None:
    for one in event.exits:
        _exited(t, event.attempt, one)


def _exited(t: Transition, number: int, end: RankExit) -> None:
    attempt = t.run.attempt
    if attempt is None or number != attempt.number or end.rank in attempt.exits:
        return
    t.update_attempt(exits=attempt.exits.put(end.rank, end))
    if any(says_not_finite(line) for line in end.tail):
        _loss_is_not_finite(t)
    if t.run.phase is Phase.STOPPING and t.run.stopping_as is None and not end.clean:
        _another(t, end)
    if t.run.phase not in (Phase.STARTING, Phase.RUNNING):
        return
    if not end.clean:
        open_incident(t, Cause.RANK_EXIT, _seen(end), fault_at=_on_our_clock(t, end.at))
    elif len(attempt.exits) + 1 == len(attempt.slots) * t.run.spec.ranks_per_node:
        where = f" at step {attempt.step}" if attempt.step is not None else ""
        t.set(stopping_as=Phase.DONE, reason=f"all ranks ended well{where}")
        triage(t)
    elif not attempt.exits:
        expect_last_ranks(t)


def _on_our_clock(t: Transition, at: float) -> float | None:
    """A time by a node's clock, where that can be the engine's too; None where it is off.

    No rank ends before the newest step of its attempt, nor after the word of it has come.
    """
    attempt = t.run.attempt
    assert attempt is not None
    began = attempt.step_at or attempt.started_at or 0.0
    return min(at, t.at) if began - CLOCKS_S <= at <= t.at + CLOCKS_S else None


def _seen(end: RankExit) -> Evidence:
    return Evidence(node=end.node, at=end.at, source="agent", text=end.text())


def _another(t: Transition, end: RankExit) -> None:
    """One more ended while ranks are stopped: evidence where it may stand before those so far."""
    last = t.run.incidents[-1]
    if last.cause is Cause.RANK_EXIT and not end.follows and len(last.evidence) < ENDS_TOLD:
        t.update_incident(evidence=last.evidence.plus([_seen(end)]))


@handles(ev.HangDetected)
def hang_detected(t: Transition, event: ev.HangDetected) -> None:
    """The ranks stand still. Where nodes of theirs are stopped, agents and all, those are lost."""
    if t.run.phase is not Phase.RUNNING or t.run.isolated_since is not None:
        return
    text = f"no step for {event.limit_s:.0f} s after step {event.last_step}"
    suspects = t.run.pool.group(NodeState.SUSPECT)
    stopped = [n for n in suspects if has_slot(t.run, n) and is_stopped(t.run, n)]
    if stopped:
        confirm_lost(t, stopped, "no step", text)
    else:
        open_incident(t, Cause.HANG, Evidence(node="", at=t.at, source="progress", text=text))
