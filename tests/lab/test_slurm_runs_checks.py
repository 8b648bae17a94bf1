"""Slurm itself runs `superv prolog` and `superv healthcheck`, as docs/slurm.md says."""

from __future__ import annotations

import json
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
WELL: dict[str, object] = {"nvme": {"count": 0}}
BAD: dict[str, object] = {"nvme": {"count": 99}}  # disks that the node has not


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
        f"#!/bin/sh\nat={shlex.quote(str(home))}/$(hostname)\n"
        f"exec {words} --state $at --site $at.yaml 2>>$at.err\n"
    )
    path.chmod(0o755)
    return path


def site(home: Path, node: str, checks: dict[str, object], drain: str) -> None:
    part = home / f"{node}.part"
    rule = {"mode": drain, "look_again_s": 1}
    part.write_text(
        yaml.safe_dump({"checks": checks, "drain": rule, "state_dir": str(home / "state")})
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
        site(home, node, WELL, "on")
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
    assert state(there, "n1")[1].startswith("superv: nvme: ")

    site(home, "n1", WELL, "on")
    until(lambda: state(there, "n1")[0] == "idle")
    assert state(there, "n2") == ("drained", "ops: fan")  # a person's, though it passes


@pytest.mark.releases("24.11", "26.05")
def test_a_drain_of_superv_is_lifted_after_its_node_was_silent(
    make_lab: Callable[..., Lab], home: Path
) -> None:
    """Newer Slurms write more behind a reason, and leave it there."""
    site(home, "n1", BAD, "on")
    there = make_lab(1, settings={"SlurmdTimeout": "5", "MessageTimeout": "2"})
    health = str(program(home, "healthcheck"))

    def looks() -> None:
        for _ in range(2):
            there.run("n1", [health], user="root")
            time.sleep(1.1)  # looks that lie closer together count as one

    looks()
    assert state(there, "n1")[0] == "drained" and state(there, "n1")[1].startswith("superv: nvme: ")
    there.poweroff("n1")
    until(lambda: state(there, "n1")[0] == "drained*")
    there.poweron("n1")
    until(lambda: state(there, "n1")[0] == "drained")
    site(home, "n1", WELL, "on")
    looks()
    assert state(there, "n1")[0] == "idle", (home / "n1.err").read_text()
    site(home, "n1", BAD, "on")  # what 24.11 left there is in nobody's way
    looks()
    assert state(there, "n1")[0] == "drained"
    assert "a person's" not in (home / "n1.err").read_text()


def test_a_prolog_goes_by_what_was_counted_and_asks_nobody(
    make_lab: Callable[..., Lab], home: Path
) -> None:
    """The HealthCheckProgram runs but once in this test's time: by hand, as slurmd would."""
    site(home, "n1", BAD, "on")
    there = make_lab(1, settings={"Prolog": str(program(home, "prolog")), "PrologFlags": "Alloc"})
    health = str(program(home, "healthcheck"))
    assert there.run("n1", [health], user="root").rc == 1  # the first look
    kept = json.loads((home / "n1" / "suspects.json").read_text())["faults"]
    assert "nvme" in kept and state(there, "n1")[0] == "idle"
    (home / "n1" / "brake.json").unlink()
    assert there.run("login", ["srun", "-w", "n1", "true"]).rc == 0
    time.sleep(1.1)  # looks that lie closer together than look_again_s count as one
    assert there.run("n1", [health], user="root").rc == 1  # the second: it is found again
    assert state(there, "n1")[0].startswith("drain")
    assert state(there, "n1")[1].startswith("superv: nvme: ")
    brake = json.loads((home / "n1" / "brake.json").read_text())
    assert (brake["count"], brake["total"], brake["limit"]) == (0, 1, 2)

    prolog = str(program(home, "prolog"))
    assert there.run("n1", [prolog], user="root").rc == 1  # two looks found it, and there is room
    site(home, "n1", BAD, "off")
    assert there.run("n1", [prolog], user="root").rc == 0
    said = (home / "n1.err").read_text()
    assert "the job may begin all the same: drain is off in site.yaml" in said
