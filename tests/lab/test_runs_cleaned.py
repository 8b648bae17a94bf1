"""Somebody cleans the nodes while a run is there."""

from __future__ import annotations

import os
import signal

import pytest
from runs import (  # noqa: F401
    NODES,
    PER_NODE,
    SAVE_EVERY,
    LaunchedRun,
    Runs,
    Status,
    runs,
    shared_lab,
    until,
)

from supervisor.core import events as ev

pytestmark = pytest.mark.lab
# As cleaners do, on the folders' own file systems only.
EMPTY = ("find", "/tmp", "/var/tmp", "/dev/shm", "-xdev", "-mindepth", "1", "-delete")


def joins(run: LaunchedRun, node: str) -> list[ev.AgentJoined]:
    return [event for event in run.events(ev.AgentJoined) if event.node == node]


def names(status: Status) -> list[str]:
    return [slot["node"] for slot in status["slots"]]


def test_a_cleaner_empties_every_nodes_temporary_folders(runs: Runs) -> None:  # noqa: F811
    """During the run, as an epilog or a person does it; the next restart goes as any other."""
    run = runs.launch()
    before = run.until_step(SAVE_EVERY + 2)
    for node in names(before) + before["spares"]:
        runs.lab.run(node, EMPTY, user="root")
    run.rank(3).signal(signal.SIGKILL)
    after = run.until_recovered()
    [incident] = after["incidents"]
    assert (incident["cause"], incident["culprits"], after["excluded"]) == ("rank-exit", [], [])
    assert names(after) == names(before) and after["unusable"] == []
    assert {(r.attempt, r.rank) for r in run.ranks()} == {
        (2, rank) for rank in range(NODES * PER_NODE)
    }
    said = {event.node for event in run.events(ev.FilesRestored)}
    assert said == {*names(before), *before["spares"]}
    assert "somebody removed files of superv there; made again: " in run.log()
    assert f"step: {incident['resumed_from'] + 1} loss: " in runs.superv("logs", run.name).out


def test_an_agent_dies_in_an_emptied_folder(runs: Runs) -> None:  # noqa: F811
    """Its keys are sent again, and the ranks train on."""
    run = runs.launch()
    before = run.until_step(SAVE_EVERY + 2)
    victim = names(before)[1]
    agent = run.agent(victim)
    os.kill(agent, signal.SIGSTOP)  # it can't put back what goes now
    runs.lab.run(victim, EMPTY, user="root")
    run.kill(agent)
    until(lambda: len(joins(run, victim)) == 2, "the next agent")
    joined = joins(run, victim)[-1]
    assert (joined.node, joined.attempt, joined.ranks) == (victim, 1, PER_NODE)
    run.until_step((run.status()["step"] or 0) + SAVE_EVERY)
    assert run.status()["incidents"] == []
    run.rank(0).signal(signal.SIGKILL)
    after = run.until_recovered()
    assert names(after) == names(before)
