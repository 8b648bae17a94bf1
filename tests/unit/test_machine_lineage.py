"""Retention, quarantine, and runs that a person takes up again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scenario import HOME, Scenario, kinds, spec

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.node_life import spares
from supervisor.core.operator_requests import objection
from supervisor.core.types import Cause, Checkpoint, Confidence, Exclusion, Phase, Rejected


def play(keep: int = 0, keep_every: int = 0, seed: Checkpoint | None = None) -> Scenario:
    return Scenario(seed=seed, keep=keep, keep_every=keep_every).to(Phase.RUNNING)


def saved(p: Scenario, *steps: int) -> None:
    """The ranks save these, one look at the disk after each."""
    for step in steps:
        p.progress(step)
        p.save(step)
        p.take(ev.Scanned, key="look", **p.scan_found())


def lineage(p: Scenario) -> list[int]:
    return [c.step for c in p.run.lineage]


def discarded(p: Scenario) -> list[str]:
    return [a.path.removeprefix(HOME) for a in p.ordered if isinstance(a, act.Discard)]


def asked(p: Scenario, step: int, **more: Any) -> list[str]:
    return kinds(p.take(ev.QuarantineRequested, who="ann", step=step, reason="a spike", **more))


# --- retention --------------------------------------------------------------------------------


def test_everything_is_kept_where_nothing_is_said() -> None:
    p = play()
    saved(p, *range(10, 210, 10))
    assert len(lineage(p)) == 20 and not discarded(p)


def test_a_look_from_before_a_removal_brings_nothing_back() -> None:
    p = play(keep=2)
    saved(p, 10, 20)
    late = p.scan_found()
    saved(p, 30)
    p.answer(act.Discard)
    p.take(ev.Scanned, key="look", **late)
    assert lineage(p) == [20, 30]


def test_what_the_attempt_resumed_from_stays_until_it_has_its_own() -> None:
    p = play(keep=2)
    saved(p, 10, 20)
    p.exit(0)
    p.recover_to_first_step()
    assert p.run.attempt and p.run.attempt.resume and p.run.attempt.resume.step == 20
    p.run = replace(p.run, spec=replace(p.run.spec, keep=1))
    p.take(ev.Scanned, key="look")
    assert lineage(p) == [20]
    saved(p, 30)
    assert lineage(p) == [30]


def test_what_was_there_before_the_run_is_never_removed() -> None:
    seed = Checkpoint(step=5, path=f"{HOME}/a0000/step-5", attempt=0, verified_at=0.0)
    p = play(keep=2, seed=seed)
    saved(p, 10, 20, 30)
    assert lineage(p) == [5, 20, 30]
    assert discarded(p) == ["/a0001/step-10"]


@pytest.mark.parametrize("node_lost", [False, True])
def test_unfinished_ones_go_only_when_nobody_can_finish_them(node_lost: bool) -> None:
    p = play(keep=2)
    saved(p, 10)
    p.progress(20)
    p.progress(21)
    p.lose("n1") if node_lost else p.exit(0)
    p.answer(act.Collect, act.Stop)
    (scan,) = [a for a in p.run.pending.values() if isinstance(a, act.Scan)]
    rest = Rejected(step=20, path=f"{HOME}/a0001/step-20", why="not finished", incomplete=True)
    p.reply(scan, rejected=(rest,))
    assert not discarded(p), "nothing newer is verified yet"
    if p.phase is Phase.BACKOFF:
        p.expire_deadline()
    p.start()
    p.first_step()
    saved(p, 20)
    assert discarded(p) == ([] if node_lost else ["/a0001/step-20"])
    assert lineage(p) == [10, 20]


def test_what_seemed_unfinished_counts_when_it_is_found_finished() -> None:
    p = play(keep=1)
    saved(p, 10)
    p.progress(20)
    p.take(ev.StopRequested, who="ann")
    p.answer(act.Collect, act.Stop)
    (scan,) = [a for a in p.run.pending.values() if isinstance(a, act.Scan)]
    rest = Rejected(step=20, path=f"{HOME}/a0001/step-20", why="not finished", incomplete=True)
    p.reply(scan, rejected=(rest,))
    assert p.phase is Phase.STOPPED and lineage(p) == [10] and p.run.rejected == (rest,)
    p.disk.append(Checkpoint(step=20, path=rest.path, attempt=1, verified_at=p.now))
    p.take(ev.AllocationSeen, job_id="101", state="ended", raw="COMPLETED")
    p.take(ev.ResumeRequested, who="ann", spec=p.run.spec)
    p.answer(act.Scan)
    assert lineage(p) == [20] and p.run.rejected == () and p.run.incomplete_checkpoints == ()
    assert discarded(p) == ["/a0001/step-10"], "not the one that was taken for unfinished"


def test_damaged_once_is_damaged_unread_once_is_not() -> None:
    p = play()
    saved(p, 10, 20, 30)
    p.take(ev.StopRequested, who="ann")
    p.answer(act.Collect, act.Stop)
    (scan,) = [a for a in p.run.pending.values() if isinstance(a, act.Scan)]
    where = f"{HOME}/a0001/step-"
    damaged = Rejected(step=30, path=f"{where}30", why="a shard is too short")
    unread = Rejected(step=20, path=f"{where}20", why="can't be read", unreadable=True)
    p.reply(scan, found=p.run.lineage[:1], rejected=(damaged, unread))
    assert lineage(p) == [10]
    p.take(ev.AllocationSeen, job_id="101", state="ended", raw="COMPLETED")
    p.take(ev.ResumeRequested, who="ann", spec=p.run.spec)
    p.answer(act.Scan)
    assert lineage(p) == [10, 20] and p.run.rejected == (damaged,)


def test_of_an_earlier_attempt_only_what_led_to_its_later_ones_counts() -> None:
    p = play()
    for step in (10, 20, 30):
        p.progress(step)
        p.save(step)
    *early, newest = p.disk
    p.exit(0)
    p.answer(act.Collect, act.Stop)
    (scan,) = [a for a in p.run.pending.values() if isinstance(a, act.Scan)]
    p.reply(scan, found=(early[1],))
    p.start()
    p.first_step()
    assert lineage(p) == [20]
    p.take(ev.Scanned, key="look", found=(early[0],))
    p.take(ev.Scanned, key="look", found=(newest,))
    assert lineage(p) == [10, 20], "step 30 is of no attempt's history"


# --- quarantine -------------------------------------------------------------------------------


def test_the_newest_of_an_ended_run_goes_without_more_words() -> None:
    p = play()
    saved(p, 10, 20)
    p.take(ev.StopRequested, who="ann")
    p.finish_stop_and_scan()
    assert objection(p.run, 20, and_later=None) == ""
    assert asked(p, 20) == ["Quarantine"]
    assert lineage(p) == [10]
    late = Checkpoint(step=30, path=f"{HOME}/a0001/step-30", attempt=1, verified_at=0.0)
    p.disk.append(late)  # saved before the end, and never looked at
    p.take(ev.AllocationSeen, job_id="101", state="ended", raw="COMPLETED")
    p.take(ev.ResumeRequested, who="ann", spec=p.run.spec)
    p.answer(act.Scan)
    assert lineage(p) == [10], "step 30 came of step 20"


def test_what_came_of_it_is_for_a_person_to_judge() -> None:
    p = play()
    saved(p, 10, 20, 30)
    why = objection(p.run, 20, and_later=None)
    assert "step 30, the ranks that train now came of step 20" in why
    assert "--and-later" in why and "--only" in why
    assert "in the lineage of moe; there: 10, 20, 30" in objection(p.run, 15, and_later=True)


@pytest.mark.parametrize("phase", [Phase.CHECKING, Phase.STARTING])
def test_ranks_never_load_what_is_in_quarantine(phase: Phase) -> None:
    p = play()
    saved(p, 10, 20)
    p.exit(0)
    p.finish_stop_and_scan()
    if phase is Phase.STARTING:
        p.start()
    assert p.phase is phase
    asked(p, 20)
    if phase is Phase.STARTING:
        p.finish_stop_and_scan()
    p.start()
    assert {a.resume_step for a in p.starts[-2:]} == {10}


# --- going on after an end --------------------------------------------------------------------


def ended(p: Scenario) -> Scenario:
    """Held or stopped, and its nodes given back."""
    assert p.run.ended
    p.answer(act.Leave, act.Cancel)
    p.seen("ended", "COMPLETED")
    assert not p.run.live_jobs
    return p


def held() -> Scenario:
    p = Scenario(restarts_without_progress=0).to(Phase.RUNNING)
    saved(p, 10)
    p.exit(0)
    p.finish_stop_and_scan()
    assert p.phase is Phase.HELD
    return ended(p)


def test_the_newest_is_looked_at_again() -> None:
    p = Scenario().to(Phase.RUNNING)
    saved(p, 10)
    p.corrupt.add(p.save(20))
    p.take(ev.Scanned, key="look", found=(p.disk[-1],))
    p.take(ev.StopRequested, who="ann", now=True)
    p.corrupt.clear()
    p.finish_stop_and_scan()
    assert lineage(ended(p)) == [10, 20]
    p.corrupt.add(f"{HOME}/a0001/step-20")
    p.take(ev.ResumeRequested, who="ann", spec=p.run.spec)
    p.answer(act.Scan)
    assert lineage(p) == [10] and p.phase is Phase.PENDING


def test_exclusions_are_kept_but_for_those_named() -> None:
    p = Scenario(nodes=2, spares=3).to(Phase.RUNNING)
    for node in ("n1", "n2"):
        p.lose(node)
        p.recover_to_first_step()
    p.take(ev.StopRequested, who="ann")
    p.finish_stop_and_scan()
    ended(p)
    p.take(ev.ResumeRequested, who="ann", spec=p.run.spec, include=("n2",))
    p.answer(act.Scan)
    (submit,) = [a for a in p.run.pending.values() if isinstance(a, act.Submit)]
    assert submit.exclude == ("n1",) and submit.job_name.endswith("-2")


def test_an_excluded_node_that_is_included_is_a_spare_at_once() -> None:
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    p.lose("n1")
    p.recover_to_first_step()
    p.join("n1", agent="again")
    assert p.phase is Phase.RUNNING and {*p.run.excluded} == {"n1"}
    assert p.take(ev.IncludeRequested, who="ann", nodes=("n1", "n9")) == []
    assert not p.run.excluded and p.phase is Phase.RUNNING and spares(p.run) == ("n1",)
    again = p.run
    p.take(ev.IncludeRequested, who="ann", nodes=("n1",))
    assert p.run.excluded is again.excluded


def test_a_node_that_is_included_ends_the_wait_for_one() -> None:
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    out = Exclusion(node="n1", reason="gpu", since=0.0, attempt=1, cause=Cause.UNHEALTHY_NODE)
    p.run = replace(p.run, excluded={"n1": replace(out, confidence=Confidence.WITNESSED)})
    p.lose("n2")
    p.finish_stop_and_scan()
    if p.phase is Phase.BACKOFF:
        p.expire_deadline()
    assert p.phase is Phase.GATHERING, p.run.reason
    p.take(ev.IncludeRequested, who="ann", nodes=("n1",))
    assert p.phase is Phase.CHECKING and "n1" in p.run.slots


def test_nodes_of_an_ended_run_are_included_and_it_stays_ended() -> None:
    p = held()
    out = Exclusion(node="n1", reason="gpu", since=0.0, attempt=1)
    p.run = replace(p.run, excluded={"n1": out})
    assert p.take(ev.IncludeRequested, who="ann", nodes=("n1",)) == []
    assert p.phase is Phase.HELD and not p.run.excluded


def test_attempts_never_go_into_a_directory_that_is_there() -> None:
    p = held()
    p.take(ev.ResumeRequested, who="ann", spec=replace(p.run.spec, first_attempt=7))
    p.answer(act.Scan)
    p.gather()
    assert p.run.attempt and p.run.attempt.save_dir == f"{HOME}/a0007"


def test_a_run_that_lives_or_still_has_a_job_is_not_resumed() -> None:
    p = Scenario().to(Phase.RUNNING)
    before = p.run
    assert p.take(ev.ResumeRequested, who="ann", spec=spec()) == [] and p.run == before
    p.take(ev.StopRequested, who="ann")
    p.finish_stop_and_scan()
    before = p.run
    assert p.run.live_jobs
    assert p.take(ev.ResumeRequested, who="ann", spec=spec()) == [] and p.run == before


def test_the_only_checkpoint_goes_into_quarantine_in_a_pause_and_nothing_begins_anew() -> None:
    p = Scenario(backoff_s=(5.0,)).to(Phase.RUNNING)
    p.save(10)
    p.exit(0)
    p.answer(act.Stop, act.Collect)
    p.answer(act.Scan)
    assert p.phase is Phase.BACKOFF
    p.take(ev.QuarantineRequested, who="ann", step=10, reason="a spike")
    p.expire_deadline()
    assert p.phase is Phase.HELD and "no verified checkpoint is left" in p.run.reason
