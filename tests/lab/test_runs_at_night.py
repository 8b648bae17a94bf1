"""A bad night on real Slurm: power lost, a sick kernel, a checkpoint directory that is read-only.

After each, two commands say what happened, why, and what to type. An Xid alone fails no node that
has no such GPU; what a kernel says of its CPUs goes the same way.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from runs import SAVE_EVERY, SETTINGS, LaunchedRun, Runs, runs, until  # noqa: F401

from lab.cluster import Lab

# An ordinary user may not read a strict node's kernel log.
pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.only("plain")]
LOCKUP = "watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [python:4242]"


@pytest.fixture(scope="module")
def shared_lab(fence: Path, strict: bool) -> Iterator[Lab]:
    """Two nodes that train and two spares; what a kernel's log says stays for the module."""
    there = Lab(f"{leftovers.NAME}-night")
    there.up(4, settings=SETTINGS, strict=strict)
    yield there
    there.down()


def told(run: LaunchedRun) -> tuple[str, str]:
    """What `superv status RUN` and `superv logs RUN` print, each on one line."""
    printed = run.runs.superv("status", run.name)
    wrote = run.runs.superv("logs", run.name)
    return " ".join(printed.out.split()), " ".join((wrote.err + wrote.out).split())


def test_a_bad_night_is_understood_from_two_commands(
    runs: Runs,  # noqa: F811
    lab: Lab,
) -> None:
    job = runs.ring(nodes=2, spares=2)
    job["preflight"] = {"tags": ["running"], "running_s": 1}
    run = runs.launch(job)
    run.until_step(SAVE_EVERY + 2)

    lab.poweroff("n2")
    after = run.until_recovered()
    assert [x["node"] for x in after["excluded"]] == ["n2"]
    status, _ = told(run)
    assert "node-lost, n2: n2 excluded; n3 takes slot 1 of n2" in status
    assert "n2 went silent, and a second witness: " in status
    assert "docs/runbooks/node-lost.md" in status

    lab.kmsg("n1", LOCKUP)
    until(
        lambda: [h for h in run.status()["health"] if (h["node"], h["status"]) == ("n1", "FAIL")],
        "the check of n1's kernel log",
    )
    next(rank for rank in run.ranks() if rank.node == "n1").signal(signal.SIGKILL)
    run.until_recovered(2)
    status, _ = told(run)
    assert "unhealthy-node, n1: n1 excluded; n4 takes slot 0 of n1" in status
    assert "n1 failed kernel: a CPU was stuck" in status
    assert "docs/runbooks/unhealthy-node.md" in status

    runs.do("chmod", "-R", "a-w", str(runs.home / "ring-checkpoints"))
    try:
        held = run.until_ended("held")
    finally:
        runs.do("chmod", "-R", "u+w", str(runs.home / "ring-checkpoints"))
    status, logs = told(run)
    assert "checkpoints.dir can't be written" in held["reason"]
    assert f"why {held['reason']}"[:60] in status
    command = shlex.split(held["next"]["command"])
    assert command == ["superv", "resume", "ring", "--config", str(runs.home / "ring.yaml")]
    assert f"next {held['next']['command']}" in status
    assert "Permission denied" in logs or "Read-only" in logs, logs
    runs.superv(*command[1:], "--detach")
    run.until_step(held["lineage"][-1]["step"] + 1, held["attempt"] + 1)
