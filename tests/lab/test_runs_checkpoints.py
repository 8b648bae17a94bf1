"""Whole runs on real Slurm: what they resume from, and when they are held."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from runs import SAVE_EVERY, LaunchedRun, Runs, runs, shared_lab, until  # noqa: F401

pytestmark = pytest.mark.lab


def freeze(runs: Runs, run: LaunchedRun, least: int) -> list[Path]:  # noqa: F811
    """Stop rank 0, and with it the steps, once so many checkpoints are finished; those."""
    until(lambda: len(runs.checkpoints(run)) >= least, f"{least} checkpoints")
    run.rank(0).signal(signal.SIGSTOP)
    return runs.checkpoints(run)


def damage(checkpoint: Path) -> None:
    shard = checkpoint / "__1_0.distcp"
    os.truncate(shard, shard.stat().st_size // 2)


def test_a_truncated_checkpoint_is_rejected_and_an_older_one_resumed(
    runs: Runs,  # noqa: F811
) -> None:
    run = runs.launch()
    *_, older, newest = freeze(runs, run, 2)
    damage(newest)
    run.rank(3).signal(signal.SIGKILL)
    after = run.until_recovered()
    [incident] = after["incidents"]
    assert incident["resumed_from"] == int(older.name.removeprefix("step-"))
    [why] = [r["why"] for r in after["rejected_checkpoints"] if r["path"] == str(newest)]
    assert why.startswith("__1_0.distcp is truncated: ")
    assert "truncated" in run.log()


@pytest.mark.parametrize("verified", [True, False], ids=["known-to-be-good", "never-looked-at"])
def test_no_good_checkpoint_left_is_never_step_0(runs: Runs, verified: bool) -> None:  # noqa: F811
    run = runs.launch()
    if verified:
        until(lambda: runs.checkpoints(run), "a checkpoint")
        run.rank(1).signal(signal.SIGKILL)
        assert run.until_recovered()["last_checkpoint"]["verified"]
    for checkpoint in freeze(runs, run, 2):
        damage(checkpoint)
    run.rank(3).signal(signal.SIGKILL)
    status = run.until_ended("held")
    assert "checkpoint" in status["reason"] and "step 0" in status["reason"]
    assert status["attempt"] == (2 if verified else 1)
    assert run.jobs() == []


def test_an_end_in_the_midst_of_the_first_save_begins_anew(runs: Runs) -> None:  # noqa: F811
    run = runs.launch(runs.ring("ring", f"--save-every={SAVE_EVERY * 1000}"))
    run.until_step(5)
    half = runs.home / "ring-checkpoints/a0001/step-4"
    runs.do("mkdir", "-p", str(half))
    runs.do("touch", str(half / "__0_0.distcp"))
    run.rank(3).signal(signal.SIGKILL)
    after = run.until_recovered()
    assert after["incidents"][0]["resumed_from"] == 0
    assert [r["why"] for r in after["rejected_checkpoints"]] == ["no .metadata: not finished"]


def test_a_run_that_comes_back_at_another_step_is_held(runs: Runs) -> None:  # noqa: F811
    run = runs.launch(runs.ring("ring", "--skew=2"))
    until(lambda: runs.checkpoints(run), "a checkpoint")
    run.rank(3).signal(signal.SIGKILL)
    status = run.until_ended("held")
    resumed = status["incidents"][0]["resumed_from"]
    assert f"resumed at step {resumed + 2}, promised was step {resumed}" in status["reason"]
    assert [i["cause"] for i in status["incidents"]] == ["rank-exit", "wrong-step"]
    assert (run.jobs(), run.marked()) == ([], [])


def test_a_trainer_that_is_not_there_is_held_and_named(runs: Runs) -> None:  # noqa: F811
    job = runs.ring()
    job["trainer"]["python"] = "/no/such/python"
    run = runs.launch(job)
    status = run.until_ended("held")
    assert "/no/such/python: " in status["reason"]
    assert {i["cause"] for i in status["incidents"]} == {"start-failed"}
    assert status["excluded"] == []
    assert run.jobs() == []


def test_a_trainer_that_ends_at_once_is_tried_again_a_few_times(runs: Runs) -> None:  # noqa: F811
    job = runs.ring("ring", "--exit-code=7", policy={"restarts_without_progress": 2})
    run = runs.launch(job)
    status = run.until_ended("held")
    assert "2 restarts for rank-exit without new verified progress" in status["reason"]
    assert "exited with code 7" in status["reason"]
    assert len(status["incidents"]) == 3
    text = "cannot train: exit code 7 was asked for"
    assert all(text in i["evidence"][0]["text"] for i in status["incidents"])
    assert run.jobs() == []
