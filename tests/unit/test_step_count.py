"""Which step ranks are at: plausible numbers of one rank, and what most of several say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.step_count import StepCounter, StepVote

Lines = list[int | tuple[int, int]]  # a step, or an epoch and a step


def counted(lines: Lines, resumed_from: int = 0) -> tuple[StepCounter, list[int | None]]:
    counter, steps = StepCounter(resumed_from=resumed_from), []
    for at, line in enumerate(lines):
        epoch, step = line if isinstance(line, tuple) else (None, line)
        counter.see(step, float(at), epoch)
        steps.append(counter.step)
    return counter, steps


@pytest.mark.parametrize(
    ("lines", "steps", "per_epoch"),
    [
        ([1, 2, 3], [1, 2, 3], False),
        ([0, 1, 2], [0, 1, 2], False),
        ([10, 20, 30], [10, 20, 30], False),
        ([1, 2, 999999, 3, 4], [1, 2, 2, 3, 4], False),  # one line that does not follow
        ([999999, 1, 2], [None, 1, 2], False),
        ([50, 1, 2, 3], [50, 50, 2, 3], False),  # one number is no epoch
        ([500, 1000], [None, 1000], False),
        ([54321, 54322], [None, 54322], False),  # it resumes by its own means
        ([1, 2, 3, 100, 200, 300], [1, 2, 3, 3, 200, 300], False),  # it reports less often
        ([1, 1, 2, 2], [1, 1, 2, 2], False),
        ([1, 2, 3, 1, 2, 3], [1, 2, 3, 3, 5, 6], True),  # epochs that are not told
        ([(1, 1), (1, 2), (2, 1), (2, 2)], [1, 2, 3, 4], True),
        ([(1, 100), (2, 100), (3, 100)], [100, 200, 300], True),
        ([(1, 100), (1, 200), (2, 300)], [100, 200, 300], False),  # epochs, counted through
        ([100, 200, 300, 250, 260], [100, 200, 300, 300, 260], False),  # it went back by itself
    ],
)
def test_one_ranks_lines(lines: Lines, steps: list[int | None], per_epoch: bool) -> None:
    counter, found = counted(lines)
    assert (found, counter.per_epoch) == (steps, per_epoch)


def test_the_first_line_after_a_resume() -> None:
    assert counted([500], 500)[1] == [500]
    assert counted([501], 500)[1] == [501]
    assert counted([1, 2], 500)[1] == [None, 2]
    assert counted([(7, 1), (7, 2)], 500)[0].per_epoch


@given(
    st.integers(0, 10**6),
    st.integers(1, 50),
    st.integers(3, 30),
    st.data(),
)
def test_lines_that_follow_nothing_change_nothing_for_long(
    first: int, stride: int, reports: int, data: st.DataObject
) -> None:
    """A real trainer's lines with lone false ones between: each real line is a sign of life."""
    real = [first + n * stride for n in range(reports)]
    counter, advanced = StepCounter(resumed_from=first), 0
    for at, step in enumerate(real):
        advanced += counter.see(step, float(at))
        if at > 1 and data.draw(st.booleans()):
            false = data.draw(st.integers(0, 10**15))
            if not 0 < false - step <= 1000 * stride and abs(false - step) > 2000 * stride:
                counter.see(false, float(at))
    assert counter.step == real[-1]
    assert advanced == reports


def vote(reports: list[tuple[str, int, float]], *, hooks: str = "") -> int | None:
    votes = StepVote()
    for node, step, at in reports:
        votes.heard(node, step, at, hook=node in hooks.split(), recent_s=60.0)
    return votes.step


def test_one_of_six_is_outvoted() -> None:
    beats = [(f"n{n}", step, step + n / 10) for step in range(1, 5) for n in range(1, 6)]
    assert vote(beats) == 4
    assert vote([*beats, ("n6", 1_000_000, 5.0)]) == 4


def test_a_lone_reporter_is_believed() -> None:
    assert vote([("n1", 1, 1.0), ("n1", 2, 2.0)]) == 2


def test_who_told_a_step_once_holds_nobody_up() -> None:
    """All ranks tell the first step; after it only rank 0 does."""
    beats = [(f"n{n}", 0, 0.0) for n in range(1, 7)]
    later = [("n1", step, 2.0 * step) for step in range(1, 100)]
    assert vote(beats + later) == 99


def test_hooks_go_before_lines() -> None:
    beats = [(f"n{n}", 1000, 0.0) for n in range(2, 7)]
    assert vote([("n1", 7, 1.0), *beats], hooks="n1") == 7


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 50)), max_size=200))
def test_the_runs_step_never_goes_back_and_was_told(beats: list[tuple[str, int]]) -> None:
    votes, before = StepVote(), -1
    for at, (node, step) in enumerate(beats):
        moved = votes.heard(node, step, float(at), hook=False, recent_s=60.0)
        assert votes.step is not None and moved is (votes.step > before)
        before = votes.step
    assert votes.step is None or votes.step in {step for _, step in beats}
