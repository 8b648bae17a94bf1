"""Ended runs that go on, retention and quarantine, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from home import RunHome, until

QUICK = {"stop_grace_s": 1, "backoff_s": [0]}


def checkpoints(home: RunHome) -> list[str]:
    found = (home.path / "checkpoint").glob("a*/step-*/.metadata")
    return sorted(f"{p.parts[-3]}/{p.parts[-2]}" for p in found)


def lineage(home: RunHome) -> list[int]:
    told = json.loads(home.superv("checkpoints", "list", "ring", "--json"))
    return [one["step"] for one in told["lineage"]]


def stopped(home: RunHome, step: int = 15) -> dict[str, Any]:
    home.launched()
    home.at_step(step)
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")
    return home.status()


def test_a_stopped_run_goes_on_as_the_same_run(home: RunHome) -> None:
    before = stopped(home)
    told = home.superv("resume", "ring", "--detach")
    assert "run ring goes on" in told
    after = home.at_step(before["last_checkpoint"]["step"] + 2, attempt=2)
    assert after["run_id"] == before["run_id"]
    assert after["attempt_resumed_from"] == before["last_checkpoint"]["step"] >= 10
    assert after["epoch"] == before["epoch"] + 1 and len(after["allocations"]) == 2
    assert "ResumeAsked" in (home.run_dir / "journal.jsonl").read_text()
    assert "is alive" in home.superv("resume", "ring", rc=2)
    assert "no run 'rong'" in home.superv("resume", "rong", rc=2)


def test_a_held_run_goes_on_when_its_cause_is_mended(home: RunHome) -> None:
    script = home.path / "train.py"
    script.write_text("raise SystemExit('the data is not there')\n")
    trainer = {"script": str(script), "args": ["{save_dir}{resume_path}"]}
    job = home.job(trainer=trainer, policy={**QUICK, "restarts_without_progress": 1})
    assert "run ring is held" in home.superv("launch", str(job), rc=3)
    until(lambda: not home.processes(), "the end of all processes")
    script.write_text("print('Training starts at step 1\\nstep: 1', flush=True)\n")
    told = home.superv("resume", "ring", rc=3)
    assert f"code changed: {script}" in told and "--config" in told, "the old code was run again"
    until(lambda: not home.processes(), "the end of all processes")
    told = home.superv("resume", "ring", "--config", str(job))
    assert "taken as they are now" in told and "run ring is done" in told


def test_what_a_resume_can_not_change(home: RunHome) -> None:
    stopped(home)
    job = home.job(nodes=3)
    told = home.superv("resume", "ring", "--config", str(job), rc=2)
    assert "the run has 4 ranks, this says 6" in told
    told = home.superv("launch", str(job), rc=2)
    assert "`superv resume ring` goes on with the job file of then" in told
    assert f"`superv resume ring --config {job}` with this one" in told
    told = home.superv("resume", "ring", "--config", str(home.job(name="rang")), rc=2)
    assert "rang is another run" in told
    told = home.superv("resume", "ring", "--include", "local-7", rc=2)
    assert "excludes no such node; there: none" in told
    assert home.status()["phase"] == "stopped" and not home.processes()


def test_a_damaged_newest_checkpoint_is_passed_over(home: RunHome) -> None:
    before = stopped(home, 25)
    newest = before["last_checkpoint"]["step"]
    shard = next(Path(before["last_checkpoint"]["path"]).glob("*.distcp"))
    os.truncate(shard, 100)
    home.superv("resume", "ring", "--detach")
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"], "new steps")
    assert after["attempt_resumed_from"] == newest - 10
    home.superv("stop", "ring", "--now")
    until(lambda: not home.processes(), "the end of all processes")
    shutil.rmtree(home.path / "checkpoint")
    told = home.superv("resume", "ring", rc=3)
    assert "no verified checkpoint is left" in told and "--from scratch" in told


def test_from_a_checkpoint_or_scratch(home: RunHome) -> None:
    stopped(home)
    job = str(home.path / "job.yaml")
    assert "superv resume ring" in home.superv("launch", job, rc=2)
    told = home.superv("launch", job, "--from", str(home.path / "nowhere"), rc=2)
    assert f"--from {home.path}/nowhere: can't be resumed from: no such directory" in told
    oldest = min(lineage(home))  # how many there are depends on how soon the stop was heard
    good = home.path / f"checkpoint/a0001/step-{oldest}"
    odd = home.path / "best"
    shutil.copytree(good, odd)
    assert "must be called step-N" in home.superv("launch", job, "--from", str(odd), rc=2)
    assert home.status()["phase"] == "stopped"
    home.superv("launch", job, "--detach", "--from", str(good))
    after = home.at_step(oldest + 3, attempt=2)
    assert after["attempt_resumed_from"] == oldest
    assert "is alive (running): --from begins" in home.superv(
        "launch", job, "--from", "scratch", rc=2
    )
    home.superv("stop", "ring", "--now")
    home.superv("launch", job, "--detach", "--from", "scratch")  # waits for the end itself
    after = home.at_step(3)
    assert (after["attempt"], after["attempt_resumed_from"]) == (3, None)
    assert {one["name"] for one in json.loads(home.superv("status", "--json"))} == {"ring"}


def test_only_the_newest_are_kept_and_nothing_else_is_touched(home: RunHome) -> None:
    foreign = [home.path / "checkpoint/step-5", home.path / "checkpoint/a0001/notes"]
    job = {"checkpoints": {"dir": str(home.path / "checkpoint"), "keep": 2, "keep_every": 40}}
    home.superv("launch", "--detach", str(home.job(**job)))
    home.at_step(3)
    for path in foreign:
        path.mkdir(parents=True)
        (path / "mine").write_text("mine")
    home.at_step(62)
    os.kill(min(home.processes("local-2", "ring.py")), signal.SIGKILL)  # looks at all of them
    home.reached(lambda s: s["attempt"] == 2 and s["step"], "new steps")
    for pid in home.processes(words="ring.py"):
        os.kill(pid, signal.SIGSTOP)  # no more checkpoints, whose verification removes others

    def listed() -> set[str]:
        told = json.loads(home.superv("checkpoints", "list", "ring", "--json"))["lineage"]
        return {"/".join(Path(one["path"]).parts[-2:]) for one in told}

    def removed() -> bool:
        old = {name for name in checkpoints(home) if name.startswith("a0001")}
        return old <= listed() <= set(checkpoints(home))

    until(removed, "the removal of the others")
    kept = lineage(home)
    newest = kept[-1]  # the run may have gone on for a while
    assert kept == sorted({*range(40, newest + 1, 40), newest - 10, newest})
    assert all((path / "mine").read_text() == "mine" for path in foreign)
    assert not list((home.path / "checkpoint").glob("a*/.superv-trash/*"))
    assert "checkpoint of step 10 removed (beyond the newest 2)" in home.log()


@pytest.mark.parametrize("alive", [True, False])
def test_a_checkpoint_in_quarantine(home: RunHome, alive: bool) -> None:
    stopped(home, 35)
    steps = lineage(home)
    bad = steps[-2]
    if alive:
        home.superv("resume", "ring", "--detach")
        home.reached(lambda s: s["attempt"] == 2 and s["step"], "new steps")
    told = home.superv("checkpoints", "quarantine", "ring", str(bad), "--reason", "spike", rc=2)
    assert "--and-later" in told and f"step {steps[-1]}" in told
    assert ("the ranks that train now" in told) is alive
    assert lineage(home) == steps
    told = home.superv(
        "checkpoints", "quarantine", "ring", str(bad), "--reason", "spike", "--and-later"
    )
    assert told.count("in quarantine: ") == 2
    home_dir = home.path / "checkpoint/quarantine/a0001"
    until(lambda: (home_dir / f"step-{steps[-1]}/.metadata").exists(), "both moved")
    if not alive:
        home.superv("resume", "ring", "--detach")
    attempt = 3 if alive else 2
    after = home.reached(lambda s: s["attempt"] == attempt and s["step"], "new steps")
    assert after["attempt_resumed_from"] == bad - 10
    assert [i["cause"] for i in after["incidents"]] == (["quarantine"] if alive else [])
    told = home.superv("checkpoints", "list", "ring")
    assert "spike" in told and str(home_dir / f"step-{bad}") in told
    assert (home_dir / f"step-{bad}/.metadata").exists()
