"""Retention, quarantine, and runs that a person takes up again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scenario import HOME, Play, kinds, rebuilt, spec

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.people import objection
from supervisor.core.types import Checkpoint, Phase, Rejected


def play(keep: int = 0, keep_every: int = 0, seed: Checkpoint | None = None) -> Play:
    p = Play(seed=seed)
    p.run = replace(p.run, spec=replace(p.run.spec, keep=keep, keep_every=keep_every))
    return p.to(Phase.RUNNING)


def saved(p: Play, *steps: int) -> None:
    """The ranks save these, one look at the disk after each."""
    for step in steps:
        p.progress(step)
        p.save(step)
        p.take(ev.Scanned, key="look", **p.look_now())


def lineage(p: Play) -> list[int]:
    return [c.step for c in p.run.lineage]


def discarded(p: Play) -> list[str]:
    return [a.path.removeprefix(HOME) for a in p.ordered if isinstance(a, do.Discard)]


def asked(p: Play, step: int, **more: Any) -> list[str]:
    return kinds(p.take(ev.QuarantineAsked, who="ann", step=step, reason="a spike", **more))


# --- retention --------------------------------------------------------------------------------


def test_everything_is_kept_where_nothing_is_said() -> None:
    p = play()
    saved(p, *range(10, 210, 10))
    assert len(lineage(p)) == 20 and not discarded(p)


def test_the_newest_are_kept_and_milestones() -> None:
    p = play(keep=2, keep_every=30)
    saved(p, 10, 20, 30, 40, 50, 60)
    assert lineage(p) == [30, 50, 60]
    assert discarded(p) == ["/a0001/step-10", "/a0001/step-20", "/a0001/step-40"]


def test_a_look_from_before_a_removal_brings_nothing_back() -> None:
    p = play(keep=2)
    saved(p, 10, 20)
    late = p.look_now()
    saved(p, 30)
    p.answer(do.Discard)
    p.take(ev.Scanned, key="look", **late)
    assert lineage(p) == [20, 30]


def test_what_the_attempt_resumed_from_stays_until_it_has_its_own() -> None:
    p = play(keep=2)
    saved(p, 10, 20)
    p.exit(0)
    p.again()
    assert p.run.attempt and p.run.attempt.resume and p.run.attempt.resume.step == 20
    p.run = replace(p.run, spec=replace(p.run.spec, keep=1))
    p.take(ev.Scanned, key="look")
    assert lineage(p) == [20]
    saved(p, 30)
    assert lineage(p) == [30]


def test_what_was_there_before_the_run_is_never_removed() -> None:
    seed = Checkpoint(step=5, path=f"{HOME}/a0001/step-5", attempt=0, verified_at=0.0)
    p = play(keep=2, seed=seed)
    saved(p, 10, 20, 30)
    assert lineage(p) == [5, 20, 30]
    assert discarded(p) == ["/a0001/step-10"]


def test_a_removal_that_fails_is_told_and_not_repeated() -> None:
    p = play(keep=2)
    saved(p, 10, 20, 30)
    (action,) = [a for a in p.run.pending.values() if isinstance(a, do.Discard)]
    p.take(ev.PutAway, key=action.key, path=action.path, problem="Permission denied")
    saved(p, 40)
    one = p.run.retired[action.path]
    assert (one.done, one.problem) == (False, "Permission denied")
    assert discarded(p).count("/a0001/step-10") == 1


def test_a_run_that_ends_still_removes() -> None:
    p = play(keep=2)
    saved(p, 10, 20, 30)
    p.take(ev.StopAsked, who="ann")
    p.answer(do.Stop)
    p.answer(do.Scan)
    assert p.phase is Phase.STOPPED
    assert [a.path for a in p.run.pending.values() if isinstance(a, do.Discard)]


@pytest.mark.parametrize("node_lost", [False, True])
def test_unfinished_ones_go_only_when_nobody_can_finish_them(node_lost: bool) -> None:
    p = play(keep=2)
    saved(p, 10)
    p.progress(20)
    p.progress(21)
    p.lose("n1") if node_lost else p.exit(0)
    p.answer(do.Collect, do.Stop)
    (scan,) = [a for a in p.run.pending.values() if isinstance(a, do.Scan)]
    rest = Rejected(step=20, path=f"{HOME}/a0001/step-20", why="not finished", incomplete=True)
    p.reply(scan, rejected=(rest,))
    assert not discarded(p), "nothing newer is verified yet"
    if p.phase is Phase.BACKOFF:
        p.due()
    p.start()
    p.first_step()
    saved(p, 20)
    assert discarded(p) == ([] if node_lost else ["/a0001/step-20"])
    assert lineage(p) == [10, 20]


# --- quarantine -------------------------------------------------------------------------------


def test_the_newest_of_an_ended_run_goes_without_more_words() -> None:
    p = play()
    saved(p, 10, 20)
    p.take(ev.StopAsked, who="ann")
    p.stopped()
    assert objection(p.run, 20, and_later=None) == ""
    assert asked(p, 20) == ["Quarantine"]
    assert lineage(p) == [10]
    late = Checkpoint(step=30, path=f"{HOME}/a0001/step-30", attempt=1, verified_at=0.0)
    p.disk.append(late)  # saved before the end, and never looked at
    p.take(ev.AllocationSeen, job_id="101", state="ended", raw="COMPLETED")
    p.take(ev.ResumeAsked, who="ann", spec=p.run.spec)
    p.answer(do.Scan)
    assert lineage(p) == [10], "step 30 came of step 20"


def test_what_came_of_it_is_for_a_person_to_judge() -> None:
    p = play()
    saved(p, 10, 20, 30)
    why = objection(p.run, 20, and_later=None)
    assert "step 30, the ranks that train now came of step 20" in why
    assert "--and-later" in why and "--only" in why
    assert "in the lineage of moe; there: 10, 20, 30" in objection(p.run, 15, and_later=True)


def test_only_leaves_the_ranks_alone() -> None:
    p = play()
    saved(p, 10, 20, 30)
    assert asked(p, 20) == ["Quarantine"]
    assert p.phase is Phase.RUNNING and lineage(p) == [10, 30]


def test_with_all_that_came_of_it_the_ranks_go_back() -> None:
    p = play()
    saved(p, 10, 20, 30)
    p.progress(40)
    p.save(40)  # nobody has looked at it yet
    assert asked(p, 20, and_later=True) == [*["Collect"] * 2, *["Quarantine"] * 2, *["Stop"] * 2]
    p.again()
    assert p.incident.cause == "quarantine" and p.incident.resumed_from == 10
    assert {r.step for r in p.run.retired.values() if r.quarantined} == {20, 30, 40}
    saved(p, 20)
    assert lineage(p) == [10, 20], "the new step 20 counts"
    assert rebuilt(p.events).lineage == p.run.lineage


def test_with_nothing_left_the_run_is_held() -> None:
    p = play()
    saved(p, 10)
    asked(p, 10, and_later=True)
    p.answer(do.Collect, do.Stop)
    p.answer(do.Scan)
    assert p.phase is Phase.HELD and "does not start again from step 0" in p.run.reason


@pytest.mark.parametrize("phase", [Phase.CHECKING, Phase.STARTING])
def test_ranks_never_load_what_is_in_quarantine(phase: Phase) -> None:
    p = play()
    saved(p, 10, 20)
    p.exit(0)
    p.stopped()
    if phase is Phase.STARTING:
        p.start()
    assert p.phase is phase
    asked(p, 20)
    if phase is Phase.STARTING:
        p.stopped()
    p.start()
    assert {a.resume_step for a in p.starts[-2:]} == {10}


# --- going on after an end --------------------------------------------------------------------


def ended(p: Play) -> Play:
    """Held or stopped, and its nodes given back."""
    assert p.run.ended
    p.answer(do.Leave, do.Cancel)
    p.seen("ended", "COMPLETED")
    assert not p.run.live_jobs
    return p


def held() -> Play:
    p = Play(restarts_without_progress=0).to(Phase.RUNNING)
    saved(p, 10)
    p.exit(0)
    p.stopped()
    assert p.phase is Phase.HELD
    return ended(p)


def test_a_held_run_goes_on_as_the_same_run() -> None:
    p = held()
    assert kinds(p.take(ev.ResumeAsked, who="ann", spec=p.run.spec)) == ["Scan"]
    p.answer(do.Scan)
    assert p.phase is Phase.PENDING and p.run.fruitless == {}
    p.gather()
    p.start()
    p.first_step()
    assert p.run.attempt and (p.run.attempt.number, p.run.attempt.save_dir) == (2, f"{HOME}/a0002")
    assert p.run.attempt.resume and p.run.attempt.resume.step == 10
    p.exit(0)
    p.stopped()
    assert p.phase is Phase.HELD, "the budget counts again from the resume on"


def test_the_newest_is_looked_at_again() -> None:
    p = Play().to(Phase.RUNNING)
    saved(p, 10)
    p.rotten.add(p.save(20))
    p.take(ev.Scanned, key="look", found=(p.disk[-1],))
    p.take(ev.StopAsked, who="ann", now=True)
    p.rotten.clear()
    p.stopped()
    assert lineage(ended(p)) == [10, 20]
    p.rotten.add(f"{HOME}/a0001/step-20")
    p.take(ev.ResumeAsked, who="ann", spec=p.run.spec)
    p.answer(do.Scan)
    assert lineage(p) == [10] and p.phase is Phase.PENDING


def test_a_run_whose_checkpoints_are_gone_is_held_again() -> None:
    p = held()
    p.rotten.add(f"{HOME}/a0001/step-10")
    p.take(ev.ResumeAsked, who="ann", spec=p.run.spec)
    p.answer(do.Scan)
    assert p.phase is Phase.HELD and "superv launch --from" in p.run.reason


def test_exclusions_are_kept_but_for_those_named() -> None:
    p = Play(nodes=2, spares=3).to(Phase.RUNNING)
    for node in ("n1", "n2"):
        p.lose(node)
        p.again()
    p.take(ev.StopAsked, who="ann")
    p.stopped()
    ended(p)
    p.take(ev.ResumeAsked, who="ann", spec=p.run.spec, include=("n2",))
    p.answer(do.Scan)
    (submit,) = [a for a in p.run.pending.values() if isinstance(a, do.Submit)]
    assert submit.exclude == ("n1",) and submit.job_name.endswith("-2")


def test_attempts_never_go_into_a_directory_that_is_there() -> None:
    p = held()
    p.take(ev.ResumeAsked, who="ann", spec=replace(p.run.spec, first_attempt=7))
    p.answer(do.Scan)
    p.gather()
    assert p.run.attempt and p.run.attempt.save_dir == f"{HOME}/a0007"


def test_a_run_that_lives_or_still_has_a_job_is_not_resumed() -> None:
    p = Play().to(Phase.RUNNING)
    before = p.run
    assert p.take(ev.ResumeAsked, who="ann", spec=spec()) == [] and p.run == before
    p.take(ev.StopAsked, who="ann")
    p.stopped()
    before = p.run
    assert p.run.live_jobs
    assert p.take(ev.ResumeAsked, who="ann", spec=spec()) == [] and p.run == before


def test_a_run_that_never_made_an_attempt_is_resumed() -> None:
    p = Play()
    p.take(ev.SubmitRefused, key="submit/1", why="invalid partition")
    assert p.phase is Phase.HELD
    assert kinds(p.take(ev.ResumeAsked, who="ann", spec=p.run.spec)) == ["Submit"]
