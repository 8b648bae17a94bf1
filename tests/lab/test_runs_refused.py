"""Requests that Slurm refuses, or does not answer; ended runs and snapshots on real nodes."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import pytest
from runs import NODES, PYTHON, RING, SPARES, Runs, runs, shared_lab, started, until  # noqa: F401

from supervisor.core import events as ev

pytestmark = pytest.mark.lab

REFUSED = {
    "partition": (
        {"slurm": {"partition": "trian"}},
        "slurm: partition: 'trian' is unknown; valid:",
    ),
    "nodes": ({"nodes": 40}, f"40 nodes are asked for, but partition main has {NODES + SPARES}"),
    "constraint": ({"slurm": {"constraint": "gold"}}, "slurm: constraint: Slurm refused the job"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_slurm_refuses_changes_nothing(runs: Runs, mistake: str) -> None:  # noqa: F811
    more, words = REFUSED[mistake]
    job = runs.write("ring", runs.ring(**more))
    done = runs.superv("launch", "--detach", str(job), rc=2)
    (line,) = done.err.strip().splitlines()
    assert words in line, line
    assert "ring" not in runs.superv("status").out.replace(str(runs.state), "")
    assert not list((runs.state / "runs").iterdir())
    assert not runs.do("squeue", "--noheader").out


def test_two_runs_of_one_name(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(1)
    other = Runs(runs.lab)
    job = other.write("ring", other.ring())
    done = other.superv("launch", "--detach", str(job), rc=2)
    assert f"another run is called ring: its job {run.jobs()[0]} (superv-ring-" in done.err
    assert run.status()["phase"] == "running"


def test_two_runs_of_one_name_at_one_moment(runs: Runs) -> None:  # noqa: F811
    """With a state_dir of their own each: the one whose job is older goes on."""
    other = Runs(runs.lab)
    homes = {runs: runs.home / "said", other: other.home / "said"}
    with contextlib.ExitStack() as both:
        children = {}
        for home, said in homes.items():
            job = home.write("ring", home.ring())
            argv = home.enter("launch", "--detach", str(job))
            children[home] = both.enter_context(started(argv, said))
        codes = {home: child.wait(60) for home, child in children.items()}
    assert sorted(codes.values()) == [0, 2], [said.read_text() for said in homes.values()]
    [winner] = [home for home, code in codes.items() if code == 0]
    [loser] = [home for home in homes if home is not winner]
    run = winner.found("ring")
    run.until_step(3)
    assert "another run is called ring" in homes[loser].read_text()
    assert not list((loser.state / "runs").iterdir()), "nothing is left"
    assert len(run.jobs()) == 1


def test_a_controller_that_does_not_answer_is_waited_for(runs: Runs) -> None:  # noqa: F811
    runs.lab.pause_controller()
    run = runs.launch()
    status = run.until(lambda s: run.events(ev.Waiting), "a word about what it waits for", 90)
    assert status["phase"] == "pending"
    assert "squeue" in run.events(ev.Waiting)[0].why and "time" in run.events(ev.Waiting)[0].why
    runs.lab.resume_controller()
    run.until_step(3)
    assert len(run.jobs()) == 1


def test_a_snapshot_reaches_every_node_and_an_ended_run_goes_on(runs: Runs) -> None:  # noqa: F811
    script = runs.home / "train.py"
    script.write_text(RING.read_text())
    job = runs.ring()
    job["trainer"] = {**job["trainer"], "script": str(script), "python": PYTHON}
    run = runs.launch(job)
    run.until_step(12)
    script.write_text("raise SystemExit('half edited')\n")
    run.rank(0).signal(signal.SIGKILL)
    run.until_recovered()
    node = runs.lab.run("n1", ["sh", "-c", "cat /var/tmp/superv-*/n1/code/*/" + str(script)[1:]])
    assert node.out == RING.read_text()
    before = run.status()
    runs.superv("stop", "ring")
    run.until_ended("stopped")
    out = runs.superv("resume", "ring", "--detach").out
    assert f"code changed: {script}" in out
    after = run.until_step((before["step"] or 0) + 12, attempt=3)
    assert after["run_id"] == before["run_id"] and len(after["allocations"]) == 2
    assert Path(after["last_checkpoint"]["path"]).parent.name in ("a0002", "a0003")
    until(lambda: len(run.jobs()) == 1, "one job")
