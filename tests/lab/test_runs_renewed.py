"""Allocations that end on a cluster of just the nodes that are needed, and odd words of Slurm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import NODES, SAVE_EVERY, SETTINGS, SPARES, LaunchedRun, Runs, runs, shared_lab, until  # noqa: F401

from lab.cluster import Lab
from supervisor.core import events as ev

pytestmark = pytest.mark.lab
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


def end_allocation(run: LaunchedRun) -> None:
    """As a time limit would, and not as a person does: the batch script is gone."""
    run.runs.do("scancel", "--batch", "--signal=KILL", run.job)


def drain(runs: Runs, node: str, state: str = "DRAIN") -> None:  # noqa: F811
    argv = ["scontrol", "update", f"NodeName={node}", f"State={state}"]
    argv += ["Reason=a fan"] if state == "DRAIN" else []
    done = runs.lab.run("ctl", argv, user="root")
    assert done.rc == 0, done.err


def program(runs: Runs, name: str, body: str) -> Path:  # noqa: F811
    """A program of the engine's PATH in front of Slurm's; returns a folder for its own files."""
    folder = runs.home / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nreal=/usr/bin/{name}\n{body}\n")
    (folder / name).chmod(0o755)
    os.chown(folder, runs.uid, runs.uid)
    runs.env["PATH"] = f"{folder}:{PATH}"
    return folder


def test_a_drained_spare_holds_no_renewal_up_and_an_engine_comes_back(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(SAVE_EVERY + 2)
    drain(runs, "n4")
    try:
        run.until(lambda s: s["drained"] == ["n4"] and s["spares"] == [], "the drain's word", 40)
        run.kill(run.engines()[0])
        until(lambda: run.status()["engine"], "the next engine")
        step = run.status()["step"]
        end_allocation(run)
        after = run.until_step(step + SAVE_EVERY, attempt=2)
    finally:
        drain(runs, "n4", "RESUME")
    [_, second] = after["allocations"]
    assert (sorted(second["nodes"]), after["spares"]) == (["n1", "n2", "n3"], [])
    assert after["epoch"] == 2 and len(run.guardians()) == 1


def test_an_excluded_node_is_used_again_where_there_is_no_other(runs: Runs) -> None:  # noqa: F811
    job = runs.ring(nodes=NODES + SPARES, spares=0, policy={"registration_timeout_s": 5})
    run = runs.launch(job)
    run.until_step(SAVE_EVERY + 2)
    runs.lab.poweroff("n2")
    run.until(lambda s: [x["node"] for x in s["excluded"]] == ["n2"], "its exclusion")
    runs.lab.poweron("n2")
    after = run.until_recovered()
    assert len(after["allocations"]) == 2 and after["excluded"] == []
    assert sorted(slot["node"] for slot in after["slots"]) == ["n1", "n2", "n3", "n4"]


def test_a_configless_client_is_waited_for(runs: Runs) -> None:  # noqa: F811
    """The client's own words where it finds neither slurm.conf nor a slurmctld that has one."""
    away, first = runs.home / "away", runs.home / "first"
    hidden = 'mount -t tmpfs none /etc/slurm && exec "$0" "$@"'
    for name in ("squeue", "sinfo", "sbatch", "scancel", "scontrol"):
        without = f'unset SLURM_CONF; exec unshare -rm sh -c \'{hidden}\' "$real" "$@"'
        begins = f"if [ ! -e {first} ]; then touch {first} {away}; fi\n" if name == "sbatch" else ""
        program(runs, name, f'{begins}if [ -e {away} ]; then {without}; fi\nexec "$real" "$@"')
    run = runs.launch()  # which would be refused where it is so from the beginning
    run.until(lambda s: run.events(ev.Waiting), "a word about what it waits for", 90)
    assert "configuration source" in run.events(ev.Waiting)[0].why
    away.unlink()
    run.until_step(3)
    assert len(run.jobs()) == 1


def test_the_twin_of_a_job_whose_submission_was_not_answered_is_cancelled(runs: Runs) -> None:  # noqa: F811
    first = runs.home / "first"
    program(
        runs,
        "sbatch",
        f"if [ ! -e {first} ]; then touch {first}; cat >{first}.sh\n"
        f'(sleep 6; "$real" "$@" <{first}.sh >{first}.out 2>&1) >/dev/null 2>&1 &\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1; fi\n'
        'exec "$real" "$@"',
    )
    run = runs.launch()
    run.until_step(3)
    until(lambda: Path(f"{first}.out").exists() and Path(f"{first}.out").read_text(), "the twin")
    until(lambda: run.events(ev.StrayJobSeen), "that it is seen", 90)
    until(lambda: run.jobs() == [run.job], "its end")
    assert run.until_step(run.status()["step"] + 3)["attempt"] == 1


@pytest.mark.soak
def test_a_job_that_slurm_has_forgotten_is_over(make_lab: Callable[..., Lab]) -> None:
    """It ended while nobody looked, and MinJobAge is over: there is no accounting."""
    runs = Runs(make_lab(NODES + SPARES, settings={**SETTINGS, "MinJobAge": "2"}))  # noqa: F811
    try:
        run = runs.launch()
        run.until_step(SAVE_EVERY + 2)
        run.kill_engine()
        step = run.status()["step"]
        end_allocation(run)
        ask = ["squeue", "--noheader", "--states=all", "--jobs=1"]
        until(lambda: runs.lab.run("login", ask).out == "", "Slurm's forgetting", 90)
        runs.superv("launch", "--detach", str(runs.home / "ring.yaml"))
        after = run.until_step(step + SAVE_EVERY, attempt=2)
        assert len(after["allocations"]) == 2
        assert [e.raw for e in run.events(ev.AllocationSeen) if e.job_id == "1"][-1] == "FORGOTTEN"
    finally:
        runs.close()
