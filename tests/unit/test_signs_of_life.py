"""What ranks show of themselves: what holds a hang back, what is told of lines, who is behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core.failure_detector import FailureDetector
from supervisor.core.signs_of_life import UNREAD_FACTOR, Signs
from supervisor.core.types import Phase

FIRST_STEP_S, HANG_S = 1000.0, 300.0


class PlayedRanks:
    """A run of three nodes whose heartbeats are played; times are seconds from its first step."""

    def __init__(self, phase: Phase = Phase.RUNNING) -> None:
        self.play = Scenario(
            nodes=3, spares=0, first_step_timeout_s=FIRST_STEP_S, hang_timeout_min_s=HANG_S
        ).to(phase)
        self.detector = FailureDetector(self.play.run.spec.policy)
        self.began = self.play.now
        self.found: list[ev.Event] = []

    def beat(self, node: str, at: float, step: int | None = None, **signs: Any) -> None:
        """As the engine takes it."""
        now, said = self.began + at, Signs(**signs)
        detector, attempt = self.detector, self.play.run.attempt
        assert attempt is not None
        detector.heard(node, now, self.play.run)
        if detector.signs.heard(node, attempt.number, step, said, now, detector.rhythm.step or 0.0):
            assert detector.signs.step is not None
            if detector.stepped(attempt.number, detector.signs.step, now):
                self.play.now = now
                self.play.progress(detector.signs.step, after=0.0, log=not said.hook)

    def look(self, at: float) -> list[ev.Event]:
        """Once a second up to then; all agents are heard."""
        found: list[ev.Event] = []
        while self.play.now < self.began + at:
            self.play.now += 1.0
            for node in self.play.run.slots:
                self.detector.heard(node, self.play.now, self.play.run)
            found += self.detector.check(self.play.now, self.play.run)
        return [one for one in found if isinstance(one, ev.HangDetected | ev.LinesUnread)]


def hangs(found: list[ev.Event]) -> bool:
    return any(isinstance(one, ev.HangDetected) for one in found)


def test_a_hang_of_ranks_with_hooks() -> None:
    ranks = PlayedRanks()
    ranks.beat("n1", 1.0, 2, hook=True, advances=1)
    assert not hangs(ranks.look(HANG_S - 5))
    assert hangs(ranks.look(HANG_S + 5))


def test_any_ranks_next_step_holds_it_back() -> None:
    """Also of a rank that is behind: the run's own step stands still."""
    ranks = PlayedRanks()
    ranks.beat("n1", 1.0, 200, advances=1)
    for second in range(60, 1200, 60):
        assert not hangs(ranks.look(second))
        ranks.beat("n2", second, 2 + second // 60, advances=second // 60)


def test_a_new_verified_checkpoint_holds_it_back() -> None:
    ranks = PlayedRanks()
    ranks.beat("n1", 1.0, 2, hook=True, advances=1)
    assert not hangs(ranks.look(HANG_S - 5))
    ranks.play.save(2)
    ranks.play.take(ev.Scanned, key="look", **ranks.play.scan_found())
    assert not hangs(ranks.look(HANG_S + 200))
    assert hangs(ranks.look(2 * HANG_S + 5))


@pytest.mark.parametrize(("hook", "limit"), [(False, 2 * HANG_S), (True, HANG_S)])
def test_lines_that_still_come_hold_it_back_where_lines_told_the_steps(
    hook: bool, limit: float
) -> None:
    """A trainer may word its steps otherwise from some step on; a hook would see them."""
    ranks = PlayedRanks()
    ranks.beat("n1", 1.0, 2, hook=hook, advances=1)
    for second in range(30, round(limit) - 10, 30):
        ranks.beat("n1", second, 2, hook=hook, advances=1, lines=second)
        assert not hangs(ranks.look(second))
    for second in range(round(limit), round(limit) + 400, 30):
        ranks.beat("n1", second, 2, hook=hook, advances=1, lines=second)
    assert hangs(ranks.look(limit + 400))


@pytest.mark.parametrize(("lines", "limit"), [(False, 1), (True, UNREAD_FACTOR)])
def test_where_checkpoints_alone_tell_steps(lines: bool, limit: int) -> None:
    """They are as far apart as a first step may be, and lines are the only other sign of life."""
    ranks = PlayedRanks(Phase.STARTING)
    ranks.play.save(10)
    ranks.play.take(ev.Scanned, key="look", **ranks.play.scan_found())
    assert ranks.play.phase is Phase.RUNNING
    step = 30
    for second in range(step, round(limit * FIRST_STEP_S), step):
        ranks.beat("n1", second, lines=second if lines else 0)
        assert not hangs(ranks.look(second))
    end = round(limit * FIRST_STEP_S + HANG_S) + 60
    for second in range(round(limit * FIRST_STEP_S), end, step):
        ranks.beat("n1", second, lines=second if lines else 0)
        if hangs(ranks.look(second)):
            return
    raise AssertionError("a hang that nobody tells")


def test_lines_without_a_step_are_told_again_while_they_come() -> None:
    ranks = PlayedRanks(Phase.STARTING)
    unread = (0, "done 17 of 400", r"\bdone\W+(?P<step>\d+)")
    found: list[ev.Event] = []
    for second in range(10, 200, 10):
        ranks.beat("n2", second, lines=second, unread=unread)
        ranks.beat("n1", second, lines=0)
        found += ranks.look(second)
    told = [one for one in found if isinstance(one, ev.LinesUnread)]
    assert len(told) == 4
    assert (told[0].node, told[0].rank, told[0].line, told[0].pattern) == ("n2", *unread)
    assert ranks.look(500)[1:] == []  # the lines have ended


def test_lines_are_no_matter_once_a_step_is_understood() -> None:
    ranks = PlayedRanks(Phase.STARTING)
    ranks.beat("n1", 1.0, 1, advances=1, lines=1)
    ranks.beat("n2", 2.0, lines=9, unread=(0, "a warning", ""))
    assert ranks.look(100) == []


def test_a_rank_that_is_behind() -> None:
    ranks = PlayedRanks()
    for node, slowest in (("n1", (0, 150)), ("n2", (1, 10)), ("n3", (2, 149))):
        ranks.beat(node, 1.0, slowest[1] + 1, advances=9, slowest=slowest)
    ranks.beat("n1", 2.0, 150, advances=10, slowest=(0, 150))
    (one,) = ranks.detector.signs.stragglers(ranks.play.run)
    assert (one.node, one.rank, one.step, one.factor) == ("n2", 1, 10, 15.1)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["n1", "n2", "n3"]), min_size=4, max_size=30), st.data())
def test_ranks_whose_steps_advance_never_hang(who: list[str], data: st.DataObject) -> None:
    """Whoever makes the next step, however late within the limit, and whatever one node claims."""
    ranks = PlayedRanks()
    steps, told = (dict.fromkeys(("n1", "n2", "n3"), first) for first in (1, 0))
    at = 1.0
    for node in who:
        at += data.draw(st.floats(1.0, HANG_S - 5))
        steps[node] += data.draw(st.integers(1, 3))
        assert not hangs(ranks.look(at))
        told[node] += 1
        ranks.beat(node, at, steps[node], advances=told[node])
        if data.draw(st.booleans()):
            false = data.draw(st.integers(0, 10**9))
            ranks.beat("n3", at, false, advances=told["n3"])
