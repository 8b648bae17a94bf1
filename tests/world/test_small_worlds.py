"""Every order of a few events in a world of three nodes: the run recovers, in every one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core import events as ev
from supervisor.core.types import Phase, Run
from supervisor.simulate.explore import ROUNDS, Explorer, beginnings, may_come, take, well

BEGINNINGS = beginnings()
DEPTH = {
    Phase.PENDING: 4,
    Phase.GATHERING: 4,
    Phase.CHECKING: 2,
    Phase.STARTING: 2,
    Phase.RUNNING: 2,
    Phase.STOPPING: 2,
}


@pytest.mark.parametrize("phase", DEPTH, ids=lambda phase: phase.value)
def test_a_run_trains_again_from_wherever_a_few_events_lead(phase: Phase) -> None:
    explorer = Explorer()
    finding = explorer.explore(BEGINNINGS[phase], DEPTH[phase])
    assert finding is None, "\n".join((finding.what, *map(str, finding.trace)))
    assert explorer.states > 3


# --- faults again and again, and never a new checkpoint -------------------------------------------

OF_THE_TRAINER = (ev.RankExited, ev.StartFailed, ev.HangDetected)


def step(run: Run, event: ev.Event) -> Run:
    """The run after an event; what ranks saved is never seen, so nothing is progress."""
    if isinstance(event, ev.Scanned):
        event = replace(event, found=tuple(run.lineage))
    after, wrong = take(run, event)
    assert not wrong, f"{event}: {wrong}"
    return after


def trains_again(run: Run) -> Run:
    for _ in range(ROUNDS):
        assert not run.ended, f"{run.phase}: {run.reason}"
        if run.phase is Phase.RUNNING:
            return run
        event = well(run)
        assert event is not None, f"nothing ends {run.phase}: {run.reason}"
        run = step(run, event)
    raise AssertionError(f"{run.phase} forever: {run.reason}")


def began() -> Run:
    run: Run | None = None
    for event in BEGINNINGS[Phase.RUNNING]:
        run, _ = take(run, event)
    assert run is not None
    return run


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=4), min_size=8, max_size=30))
def test_nodes_and_slurm_never_end_a_run(faults: list[list[int]]) -> None:
    """However often it is set back: when they are well, it trains again."""
    run = began()
    for together in faults:
        for choice in together:
            known = (ev.RankExited, ev.StartFailed, ev.HangDetected, ev.Scanned)
            events = [event for event in may_come(run) if not isinstance(event, known)]
            run = step(run, events[choice % len(events)])
        run = trains_again(run)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=5))
def test_ranks_that_end_without_a_known_cause_end_the_run(faults: list[int]) -> None:
    """Again and again, without progress: a person is asked, and is told why."""
    run, attempts = began(), set()
    limit = run.spec.policy.restarts_without_progress
    for turn in range(1000):
        if run.ended:
            break
        events = [event for event in may_come(run) if isinstance(event, OF_THE_TRAINER)]
        if run.phase is Phase.RUNNING and events:
            run = step(run, events[faults[turn % len(faults)] % len(events)])
            continue
        event = well(run)
        assert event is not None
        run = step(run, event)
        attempts.add(run.attempt.number if run.attempt else 0)
    assert run.phase is Phase.HELD and "without new verified progress" in run.reason
    assert len(attempts) <= 1 + limit * len(OF_THE_TRAINER)
