"""Whole runs on real Slurm in which nodes or agents are silent, and somebody else knows more."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from runs import (  # noqa: F401
    NODES,
    SAVE_EVERY,
    SPARES,
    LaunchedRun,
    Runs,
    runs,
    shared_lab,
    until,
)

from supervisor.core import events as ev

pytestmark = pytest.mark.lab


def launched(here: Runs, *args: str, **changes: Any) -> LaunchedRun:
    """A run with all of the lab's nodes: a job takes fewer spares where nodes are not idle yet."""
    states = ("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N")
    until(lambda: len(here.do(*states).out.split()) == NODES + SPARES, "idle nodes")
    return here.launch(here.ring("ring", *args, **changes))


def test_half_of_the_nodes_go_off_at_once_and_peers_tell_who(runs: Runs) -> None:  # noqa: F811
    run = launched(runs, nodes=2, spares=2)
    before = run.until_step(SAVE_EVERY + 2)
    assert [slot["node"] for slot in before["slots"]] == ["n1", "n2"]
    for victim in ("n2", "n4"):
        runs.lab.poweroff(victim)
    after = run.until_recovered()
    [incident] = after["incidents"]
    run.check_times(incident)
    # The spare that went off too is named as well where peers told of it first.
    assert incident["cause"] == "node-lost" and {"n2"} <= {*incident["culprits"]} <= {"n2", "n4"}
    assert [slot["node"] for slot in after["slots"]] == ["n1", "n3"]
    assert run.events(ev.EngineIsolated) and run.events(ev.IsolationEnded)
    lost = {"n2": "lost", "n4": "lost"}
    after = run.until(
        lambda s: {one["node"]: one["state"] for one in s["unusable"]} == lost, "both are lost"
    )
    assert after["attention"] == []


def test_a_node_that_an_admin_takes_out_is_given_up(runs: Runs) -> None:  # noqa: F811
    """Slurm ends what runs there, and runs the job without it."""
    run = launched(runs)
    before = run.until_step(SAVE_EVERY + 2)
    victim = before["slots"][1]["node"]
    words = ["scontrol", "update", f"NodeName={victim}", "State=DOWN", "Reason=ops: fan"]
    assert runs.lab.run("ctl", words, user="root").rc == 0
    try:
        after = run.until_recovered()
        [spare] = before["spares"]
        assert after["slots"][1]["node"] == spare and after["spares"] == []
        run.until(
            lambda s: [one["state"] for one in s["unusable"]] in (["lost"], ["left"]),
            f"{victim} is lost or has left",
        )
    finally:
        words = ["scontrol", "update", f"NodeName={victim}", "State=RESUME"]
        assert runs.lab.run("ctl", words, user="root").rc == 0


def test_who_tells_the_steps_falls_silent_and_peers_reach_it(runs: Runs) -> None:  # noqa: F811
    """Rank 0 alone prints: silence of its node's agent silences the steps too."""
    run = launched(runs, "--quiet", policy={"hang_timeout_min_s": 5})
    before = run.until_step(SAVE_EVERY + 2)
    [teller] = [slot["node"] for slot in before["slots"] if slot["slot"] == 0]
    ranks, agent = run.ranks(), run.agent(teller)
    run.kill(agent, signal.SIGSTOP)
    try:
        run.until(lambda s: s["slots"][0]["state"] == "suspect", f"{teller} is suspected")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            status = run.status()
            assert (status["phase"], status["incidents"]) == ("running", []), run.log()
            time.sleep(1)
    finally:
        run.kill(agent, signal.SIGCONT)
    after = run.until_step(before["step"] + 200)
    assert (after["incidents"], after["attempt"]) == ([], 1) and run.ranks() == ranks
    # Its kernel takes connections, and the process answers nothing.
    assert {event.outcome for event in run.events(ev.Probed)} == {"mute"}


@pytest.mark.soak
def test_the_first_save_takes_longer_than_a_hang_and_grows(runs: Runs) -> None:  # noqa: F811
    run = launched(runs, "--save-s=75", policy={"hang_timeout_min_s": 30})
    run.until(lambda s: s["step"] == SAVE_EVERY, "the first save")
    after = run.until(lambda s: s["step"] > SAVE_EVERY + 10, "steps after it", within_s=150)
    assert (after["incidents"], after["attempt"]) == ([], 1)
