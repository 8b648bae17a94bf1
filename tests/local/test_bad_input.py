"""Each mistake gets one line that names key, file or node, and changes nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from home import RunHome, until

ROOT = os.geteuid() == 0


def changed(home: RunHome) -> list[str]:
    """What lies in the state directory, and the run's processes."""
    state = home.path / "state"
    left = [str(p.relative_to(state)) for p in state.rglob("*")] if state.exists() else []
    return [p for p in left if p != "runs"] + list(home.processes().values())


def refused(home: RunHome, *argv: str, rc: int = 2) -> str:
    told = home.superv(*argv, rc=rc)
    (line,) = told.strip().splitlines()
    assert line.startswith("superv: ")
    until(lambda: changed(home) == [], "the end of all that it began", 10)
    return line


JOBS: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt key": ({"node": 2}, r"job.yaml:\d+: node: unknown key; valid: .*nodes"),
    "a wrong type": ({"nodes": "two"}, r"job.yaml:\d+: nodes: expected a whole number"),
    "a launcher that is none": ({"launcher": "sbach"}, "launcher: expected .* did you mean sbatch"),
    "options without effect": ({"slurm": {"partition": "x"}}, "slurm: has no effect with launcher"),
}


@pytest.mark.parametrize("mistake", JOBS)
def test_in_the_job_file(home: RunHome, mistake: str) -> None:
    import re

    more, words = JOBS[mistake]
    told = refused(home, "launch", "--detach", str(home.job(**more)))
    assert re.search(words, told), told


def test_files_that_are_not_there(home: RunHome) -> None:
    assert "gone.yaml: no such file" in refused(home, "launch", str(home.path / "gone.yaml"))
    home.env["SUPERV_SITE"] = str(home.path / "gone.yaml")
    assert "gone.yaml: no such file" in refused(home, "launch", str(home.job()))


@pytest.mark.parametrize("command", ["attach", "resume", "stop", "status", "logs"])
def test_a_run_that_is_not_there(home: RunHome, command: str) -> None:
    assert "no run 'rong'" in refused(home, command, "rong")


def test_checkpoints_that_can_not_be_saved(home: RunHome) -> None:
    (home.path / "file").write_text("")
    job = home.job(checkpoints={"dir": str(home.path / "file/in")})
    told = refused(home, "launch", str(job))
    wanted = f"checkpoints.dir: {home.path}/file/in can't be made"
    assert f"{wanted}: {home.path}/file is not a directory" in told
    if Path("/proc/sys").exists():
        job = home.job(checkpoints={"dir": "/proc/sys/superv"})
        told = refused(home, "launch", str(job))
        assert "checkpoints.dir: /proc/sys/superv can't be made: /proc/sys can't be written" in told


def test_in_a_job_array(home: RunHome) -> None:
    home.env["SLURM_ARRAY_TASK_ID"] = "3"
    assert "task 3 of a job array" in refused(home, "launch", str(home.job()))


@pytest.fixture
def taken() -> Iterator[str]:
    """A range of ports that are all in use."""
    held = []
    for first in range(21000, 29000, 16):
        try:
            for port in range(first, first + 16):
                one = socket.socket()
                one.bind(("127.0.0.1", port))
                one.listen()
                held.append(one)
        except OSError:
            for one in held:
                one.close()
            held = []
            continue
        break
    yield f"{first}-{first + 15}"
    for one in held:
        one.close()


def site(home: RunHome, **more: str) -> None:
    path = home.path / "site.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **more}))


def test_no_port_for_the_engine(home: RunHome, taken: str) -> None:
    site(home, engine_ports=taken)
    told = refused(home, "launch", str(home.job()))
    assert f"site.yaml: engine_ports: no free port in {taken}" in told
    site(home, engine_ports="20000-29999")
    home.superv("launch", "--detach", str(home.job()))  # nothing is in its way
    home.at_step(1)


def test_a_trainer_that_is_not_there(home: RunHome) -> None:
    """A launch refuses it; a run that loses it later is held, and says so."""
    python, script = home.path / "python", home.path / "train.py"
    script.touch()
    more = {"script": str(script), "python": str(python)}
    job = home.job(trainer={**more, "args": ["{save_dir}{resume_path}"]})
    told = home.superv("launch", str(job), rc=2)
    assert told == (
        f"superv: trainer.python: {python}: not there; fix trainer.python in the job file; "
        "nothing was launched\n"
    )
    assert not list((home.path / "state").glob("runs/*"))
    python.write_text('#!/bin/sh\nrm "$0"; exec /usr/bin/python3 "$@"\n')  # once, for the look
    python.chmod(0o755)
    told = home.superv("launch", str(job), rc=3)
    assert f"{python}: there is no such program" in told.splitlines()[-1]


def test_two_runs_of_one_name(home: RunHome) -> None:
    home.launched()
    site(home, state_dir=str(home.path / "other"))
    job = home.job(checkpoints={"dir": str(home.path / "elsewhere")})
    told = home.superv("launch", "--detach", str(job), rc=2)
    assert "another run is called ring: its job local-" in told
    assert not list((home.path / "other/runs").iterdir())
    site(home, state_dir=str(home.path / "state"))
    assert home.status()["phase"] == "running"


@pytest.fixture
def tiny(home: RunHome) -> Iterator[Path]:
    """A file system of 256 kB."""
    if not ROOT:
        pytest.skip("mounting needs root")
    place = home.path / "tiny"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tiny", str(place)], check=True)
    yield place
    home.end()
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as out:
        while True:
            try:
                out.write(b"x" * 512)
            except OSError:
                return filler


def test_a_full_disk_at_launch(home: RunHome, tiny: Path) -> None:
    site(home, state_dir=str(tiny / "s"))
    filler = fill(tiny)
    told = home.superv("launch", str(home.job()), rc=2).strip()
    assert told.startswith("superv: state_dir: ") and "No space left" in told
    assert "\n" not in told and not home.processes()
    filler.unlink()
    assert not [p for p in tiny.rglob("*") if p.is_file()]


def test_a_disk_that_fills_up_under_the_engine(home: RunHome, tiny: Path) -> None:
    site(home, state_dir=str(tiny / "s"))
    home.run_dir = tiny / "s/runs/ring"
    home.launched()
    ranks = home.processes(words="ring.py")
    engine = home.engine()
    with subprocess.Popen(
        home.argv("attach", "ring"), env=home.env, stdout=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline()
        filler = fill(tiny)
        told = watcher.communicate(timeout=60)[0]
    assert "journal.jsonl: can't be written: No space left" in told
    assert "`superv attach ring`" in told
    until(lambda: engine not in home.processes(), "the end of the engine")
    assert home.processes(words="ring.py") == ranks, "the ranks go on"
    filler.unlink()
    before = home.status()["step"]
    home.superv("launch", "--detach", str(home.path / "job.yaml"))
    after = home.at_step(before + 10)
    assert (after["attempt"], after["incidents"]) == (1, [])
