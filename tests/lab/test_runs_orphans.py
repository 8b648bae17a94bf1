"""Daemons of ranks that nothing names any more."""

from __future__ import annotations

import signal

import pytest
from runs import (  # noqa: F401
    NODES,
    PER_NODE,
    SAVE_EVERY,
    LaunchedRun,
    Runs,
    runs,
    shared_lab,
    until,
)

from supervisor.core import events as ev
from supervisor.host import procfs

pytestmark = pytest.mark.lab
PORT = 33000


def daemons(run: LaunchedRun) -> list[int]:
    return [
        p.pid
        for p in run.lab.processes()
        if p.argv[1:2] == ("-c",)
        and p.argv[-1].isdecimal()
        and PORT <= int(p.argv[-1]) < PORT + NODES * PER_NODE
        and procfs.state(p.pid) != "Z"
    ]


def leave(run: LaunchedRun) -> list[int]:
    """Each rank leaves a daemon."""
    for rank in run.ranks():
        rank.signal(signal.SIGUSR1)
    until(lambda: len(daemons(run)) == NODES * PER_NODE, "the daemons")
    assert not any(procfs.environ(pid) for pid in daemons(run))
    return daemons(run)


@pytest.mark.both
def test_no_daemon_outlives_its_attempt_nor_the_run(runs: Runs) -> None:  # noqa: F811
    """Ranks could not start again where one held its port."""
    run = runs.launch(runs.ring("ring", f"--daemon-port={PORT}"))
    run.until_step(SAVE_EVERY + 2)
    first = leave(run)
    run.rank(3).signal(signal.SIGKILL)
    after = run.until_recovered()
    assert [i["cause"] for i in after["incidents"]] == ["rank-exit"]
    assert all(procfs.state(pid) in (None, "Z") for pid in first)
    leave(run)
    runs.superv("stop", run.name)
    run.until_ended("stopped")
    until(lambda: not daemons(run), "the end of the daemons")


@pytest.mark.only("strict")
def test_a_daemon_of_adopted_ranks_is_found_by_the_steps_cgroup(runs: Runs) -> None:  # noqa: F811
    """Agents that came later are no parents of what the ranks start."""
    run = runs.launch(runs.ring("ring", f"--daemon-port={PORT}"))
    before = run.until_step(SAVE_EVERY + 2)
    joined = len(run.events(ev.AgentJoined))
    for slot in before["slots"]:
        run.kill(run.agent(slot["node"]))
    until(lambda: len(run.events(ev.AgentJoined)) == joined + NODES, "the next agents")
    first = leave(run)
    run.rank(3).signal(signal.SIGKILL)
    after = run.until_recovered()
    assert [i["cause"] for i in after["incidents"]] == ["rank-exit"]
    assert all(procfs.state(pid) in (None, "Z") for pid in first)
