"""The engine's own network is gone for a minute: that is no fault of anybody's."""

from __future__ import annotations

import time

import pytest
from runs import SAVE_EVERY, Runs, runs, shared_lab, until  # noqa: F401

from supervisor.core import events as ev

pytestmark = pytest.mark.lab
CUT_S = 60  # much longer than every limit for silence, and than ZeroMQ's heartbeats


def test_an_engine_that_is_cut_off_restarts_nothing(runs: Runs) -> None:  # noqa: F811
    run = runs.launch(runs.ring(policy={"hang_timeout_min_s": 20}))
    before = run.until_step(SAVE_EVERY + 2)
    ranks = run.ranks()
    runs.lab.cut("login")
    isolated, steps = False, set()
    end = time.monotonic() + CUT_S
    while time.monotonic() < end:
        status = run.status()
        isolated = isolated or status["isolated"]
        steps.add(status["step"])
        time.sleep(2)
    assert isolated, "an engine that hears nobody knows that it is cut off"
    assert len(steps) <= 2, "it heard of no step meanwhile"
    runs.lab.mend("login")
    after = run.until_step(before["step"] + 100)
    assert (after["incidents"], after["attempt"], after["epoch"]) == ([], 1, 1)
    assert run.ranks() == ranks
    until(lambda: not run.status()["isolated"], "all agents again")
    assert not run.events(ev.HeartbeatLost)
    assert run.events(ev.EngineIsolated) and len(run.events(ev.IsolationEnded)) == 1


@pytest.mark.soak
def test_the_first_step_may_come_while_the_engine_is_cut_off(runs: Runs) -> None:  # noqa: F811
    """Longer than a start may take."""
    limit = {"first_step_timeout_s": 30, "hang_timeout_min_s": 60}
    run = runs.launch(runs.ring("ring", "--step-s=25", policy=limit))
    run.until(lambda s: s["phase"] == "starting" and run.events(ev.RanksStarted), "ranks")
    runs.lab.cut("login")
    time.sleep(CUT_S)
    runs.lab.mend("login")
    after = run.until_step(2)
    assert (after["incidents"], after["attempt"], after["epoch"]) == ([], 1, 1)
    assert not run.events(ev.DeadlineExpired)
