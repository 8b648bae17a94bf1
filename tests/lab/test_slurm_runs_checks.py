"""Slurm itself runs `superv prolog` and `superv healthcheck`, as docs/slurm.md says."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lab.cluster import Lab

pytestmark = [pytest.mark.lab, pytest.mark.only("plain")]
CPUS = {"fs.local": {"fail_percent": 100, "warn_percent": 100}}
BAD = {"fs.local": {"fail_percent": 0, "warn_percent": 0}}


def until(reached: Callable[[], object], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.2)


def program(home: Path, command: str) -> Path:
    """What slurm.conf names: a script, since it takes no arguments."""
    path = home / command
    words = shlex.join([sys.executable, "-m", "supervisor.cli", command])
    path.write_text(
        f"#!/bin/sh\nexport SUPERV_SITE={shlex.quote(str(home))}/$(hostname).yaml\n"
        f"exec {words} --state {shlex.quote(str(home))}/$(hostname) 2>>{home}/$(hostname).err\n"
    )
    path.chmod(0o755)
    return path


def site(home: Path, node: str, checks: dict[str, object], drain: str) -> None:
    part = home / f"{node}.part"
    part.write_text(
        yaml.safe_dump({"checks": checks, "drain": drain, "state_dir": str(home / "state")})
    )
    part.rename(home / f"{node}.yaml")


def state(lab: Lab, node: str) -> tuple[str, str]:
    done = lab.run("ctl", ["sinfo", "-h", "-N", "-n", node, "-o", "%T|%E"], user="root")
    word, _, reason = done.out.strip().partition("|")
    return word, reason


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the lab's nodes see: their /tmp is their own."""
    path = Path(tempfile.mkdtemp(prefix="superv-test-", dir="/srv"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_slurm_drains_resumes_and_keeps_jobs_off(make_lab: Callable[..., Lab], home: Path) -> None:
    for node in ("n1", "n2"):
        site(home, node, CPUS, "on")
    there = make_lab(
        2,
        settings={
            "HealthCheckProgram": str(program(home, "healthcheck")),
            "HealthCheckInterval": "2",
            "HealthCheckNodeState": "ANY",
            "Prolog": str(program(home, "prolog")),
            "PrologFlags": "Alloc",
        },
    )
    drain = ["scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=ops: fan"]
    assert there.run("ctl", drain, user="root").rc == 0
    assert there.run("login", ["srun", "-w", "n1", "true"]).rc == 0

    site(home, "n1", BAD, "on")
    until(lambda: state(there, "n1")[0].startswith("drain"))
    assert state(there, "n1")[1].startswith("superv: fs.local[")

    site(home, "n1", CPUS, "on")
    until(lambda: state(there, "n1")[0] == "idle")
    assert state(there, "n2") == ("drained", "ops: fan")  # a person's, though it passes

    site(home, "n1", BAD, "off")  # looks, and drains nothing: the Prolog goes by its last look
    last = home / "n1" / "n1.json"
    until(lambda: '"FAIL"' in last.read_text())
    assert state(there, "n1")[0] == "idle"
    assert there.run("login", ["sbatch", "-wn1", "--output=/dev/null", "--wrap=true"]).rc == 0
    until(lambda: state(there, "n1")[0].startswith("drain"))
    assert "rolog" in state(there, "n1")[1]
    assert "fs.local[" in (home / "n1.err").read_text()
