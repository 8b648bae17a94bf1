"""Ends of ranks that come together mean what they mean one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core.types import Phase, RankExit

ENDS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0, 1, None])), max_size=8
)  # rank, and its code


@given(ENDS, st.sampled_from([Phase.STARTING, Phase.RUNNING]))
def test_together_or_one_by_one(ends: list[tuple[int, int | None]], phase: Phase) -> None:
    apart = Scenario(nodes=2, ranks=3).to(phase)
    together = Scenario(nodes=2, ranks=3).to(phase)
    assert apart.run == together.run
    exits = tuple(
        RankExit(
            rank=rank, node="n1", code=code, signal=9 if code is None else None, at=5.0, tail=("x",)
        )
        for rank, code in ends
    )
    apart.now = together.now = apart.now + 1.0
    actions = [
        action
        for end in exits
        for action in apart.take(ev.RankExited, after=0.0, attempt=1, exit=end)
    ]
    assert actions == together.take(ev.RanksExited, after=0.0, attempt=1, node="n1", exits=exits)
    assert apart.run == together.run


def test_a_node_speaks_for_its_own_ranks_alone() -> None:
    own = RankExit(rank=0, node="n1", code=1, signal=None, at=1.0)
    event = ev.RanksExited(at=1.0, attempt=1, node="n1", exits=(own, replace(own, rank=1)))
    assert event.reporter == "n1"
    foreign = replace(event, exits=(own, replace(own, node="n2")))
    assert foreign.reporter == ""


@pytest.mark.parametrize("code", [0, 1])
def test_of_an_older_attempt_they_change_nothing(code: int) -> None:
    play = Scenario(nodes=2, ranks=3).to(Phase.RUNNING)
    end = RankExit(rank=0, node="n1", code=code, signal=None, at=1.0)
    before = play.run
    assert play.take(ev.RanksExited, attempt=0, node="n1", exits=(end,)) == []
    assert play.run == before
