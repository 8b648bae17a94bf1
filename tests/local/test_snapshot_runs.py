"""A restart runs the code of the launch, however it is started."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from home import RunHome, until

from supervisor.host import procfs

TRAIN = """\
import os, sys, time
import helper
from pathlib import Path
print("train", 1, "helper", helper.VERSION, "conf", Path(sys.argv[1]).read_text(), flush=True)
print("cwd", os.getcwd(), "data", (Path(__file__).parent / "data.bin").read_text(), flush=True)
step = int(sys.argv[3])
print("Training starts at step", step + 1, flush=True)
while True:
    step += 1
    print("step:", step, flush=True)
    time.sleep(0.1)
"""
WAYS = {
    "script": {"script": "train.py"},
    "module": {"module": "train"},
    "warm": {"script": "train.py", "preload": ["helper"]},
    "warm-module": {"module": "train", "preload": ["helper"]},
    "command": {"command": [sys.executable, "train.py"], "python": None},
    "path": {"script": "bin/start.py", "env": {"PYTHONPATH": "."}},
}


def write(home: RunHome, version: int) -> None:
    work = home.path / "work"
    (work / "bin").mkdir(parents=True, exist_ok=True)
    (work / "train.py").write_text(TRAIN.replace('"train", 1', f'"train", {version}'))
    (work / "bin/start.py").write_text(TRAIN.replace('"train", 1', f'"train", {version}'))
    (work / "helper.py").write_text(f"VERSION = {version}\n")
    (work / "run.toml").write_text(f"{version}")
    for folder in (work, work / "bin"):
        (folder / "data.bin").write_text(f"{version}")


def launch(home: RunHome, way: str, **more: Any) -> Path:
    write(home, 1)
    usual = {
        "workdir": str(home.path / "work"),
        "python": sys.executable,
        "args": ["run.toml", "{save_dir}", "{resume_step}"],
        **WAYS[way],
        **more,
    }
    if "script" in usual:
        usual["script"] = str(home.path / "work" / str(usual["script"]))
    trainer = {key: value for key, value in usual.items() if value is not None}
    job = home.job(nodes=1, spares=0, trainer=trainer, policy={"backoff_s": [0]})
    home.superv("launch", "--detach", str(job))
    home.at_step(3)
    return job


def again(home: RunHome) -> str:
    """Kill the rank; what its successor said first."""
    (told,) = (home.path / "nodes").glob("superv-*/local-1/ranks.json")
    ((_, pid, _),) = json.loads(told.read_text())["ranks"]
    os.kill(pid, signal.SIGKILL)
    home.reached(lambda s: s["attempt"] == 2 and s["step"], "new steps")
    return home.superv("logs", "ring")


@pytest.mark.parametrize("way", WAYS)
def test_a_restart_runs_what_was_launched(home: RunHome, way: str) -> None:
    job = launch(home, way)
    write(home, 2)
    said = again(home)
    assert "train 1 helper 1 conf 1" in said
    assert f"cwd {home.path}/work data 2" in said, "data stays where it is"
    warm = home.status()["attempt_cold"] == []
    assert warm == way.startswith("warm"), home.log()
    if way == "script":
        told = home.superv("launch", "--detach", str(job))
        assert "code changed: " in told and "keeps what it was launched with" in told
        job.write_text(job.read_text() + "\n")
        assert "config changed: " in home.superv("launch", "--detach", str(job))


def test_without_a_snapshot_the_code_is_read_where_it_is(home: RunHome) -> None:
    launch(home, "script", snapshot=False)
    write(home, 2)
    assert "train 2 helper 2 conf 2" in again(home)


def test_a_dry_run_says_what_would_be_packed(home: RunHome) -> None:
    write(home, 1)
    work = home.path / "work"
    args = ["run.toml", "{save_dir}{resume_path}"]
    job = home.job(trainer={"script": str(work / "train.py"), "args": args, "workdir": str(work)})
    told = home.superv("launch", "--dry-run", str(job))
    assert "copy of the code as it is at launch: 4 files of code" in told
    assert f"{{superv_code}}{home.path}/work/run.toml" in told
    assert not home.run_dir.exists()


def test_the_environment_is_that_of_the_launch(home: RunHome) -> None:
    launch(home, "script")
    home.kill_engine()
    until(lambda: "none is running here" in home.superv("status", "ring"), "the end of the engine")
    before = home.env
    home.env = {**before, "PATH": f"{before['PATH']}:/elsewhere", "HOME": "/elsewhere"}
    home.superv("launch", "--detach", str(home.path / "job.yaml"))
    engine = procfs.environ(home.engine()) or {}
    assert engine["PATH"] == before["PATH"]
    assert engine.get("HOME") != "/elsewhere"
    home.env = before
