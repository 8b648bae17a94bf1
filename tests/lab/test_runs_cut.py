"""The engine's own network is gone for a minute: that is no fault of anybody's."""

from __future__ import annotations

import time

import pytest
from runs import SAVE_EVERY, Runs, runs, shared_lab, until  # noqa: F401

from supervisor.core import events as ev

pytestmark = pytest.mark.lab
CUT_S = 60  # much longer than every limit for silence, and than ZeroMQ's heartbeats


def test_an_engine_that_is_cut_off_restarts_nothing(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
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
    assert not run.events(ev.NodeSilent)
    until(lambda: not run.status()["isolated"], "all agents again")
