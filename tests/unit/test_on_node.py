"""`superv prolog` and `superv healthcheck`: in time and harmless, whatever is wrong on the node."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from healthchecks.check import Result, Status
from healthchecks.report import Finding, Report

HUNG = Path(__file__).with_name("hung_fuse.py")
BAD = {"fs.local": {"fail_percent": 0, "warn_percent": 0}}
LONGEST_S = {"prolog": 30, "healthcheck": 60}  # far more than it takes; Slurm kills at 60 s


class Node:
    """A node with a site file, and a Slurm that keeps what it is told."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, path / "health"
        self.site()
        self.put("sinfo", "echo 'n1|idle|none'")
        self.put("scontrol", f'echo "$@" >> {shlex.quote(str(path))}/told')

    def put(self, name: str, body: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / name).chmod(0o755)

    def site(self, checks: dict[str, Any] | None = None, drain: str = "on", **more: Any) -> None:
        told = {"state_dir": str(self.path / "state"), "drain": drain, "checks": checks or {}}
        (self.path / "site.yaml").write_text(yaml.safe_dump(told | more))

    def run(self, command: str, *before: str) -> subprocess.CompletedProcess[str]:
        argv = [*before, sys.executable, "-m", "supervisor.cli", command]
        env = {
            "PATH": f"{self.path}:/usr/bin:/bin:/usr/sbin:/sbin",
            "SUPERV_SITE": str(self.path / "site.yaml"),
            "SLURMD_NODENAME": "n1",
        }
        return subprocess.run(
            [*argv, "--state", str(self.state)],
            env=env,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=LONGEST_S[command],
        )

    @property
    def told(self) -> list[str]:
        path = self.path / "told"
        return path.read_text().splitlines() if path.exists() else []

    def last_look(self, status: Status, at: float) -> None:
        """What the HealthCheckProgram has left."""
        found = Finding(check="fs.local", on="/", result=Result(status=status, seen="full"))
        report = Report(node="n1", at=at, findings=(found,), tags=("preflight",), boot_id=BOOT)
        self.state.mkdir(mode=0o700)
        (self.state / "n1.json").write_text(
            json.dumps(
                {
                    "boot_id": BOOT,
                    "memories": {},
                    "stuck": [],
                    "last": {"preflight": report.document()},
                }
            )
        )


BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(
    ("status", "age_s", "code"),
    [(Status.FAIL, 60, 1), (Status.FAIL, 1000, 0), (Status.UNKNOWN, 60, 0), (Status.OK, 60, 0)],
)
def test_the_prolog_goes_by_the_last_full_look_if_it_is_recent(
    node: Node, status: Status, age_s: float, code: int
) -> None:
    node.last_look(status, time.time() - age_s)
    done = node.run("prolog")
    assert done.returncode == code, done.stderr
    assert ("n1: fs.local[/]: full" in done.stderr) == bool(code)
    assert node.told == []  # a Prolog must not call scontrol


@pytest.mark.parametrize(
    "text", ["checks: {nfs.alive: {no_such_key: 1}}", "nonsense: 1", "drain: [", "checks: {x: {}}"]
)
def test_a_mistake_in_site_yaml_drains_no_node(node: Node, text: str) -> None:
    (node.path / "site.yaml").write_text(text)
    done = node.run("prolog")
    assert done.returncode == 0 and "the job may begin" in done.stderr
    assert done.stderr.count("\n") == 1
    assert node.run("healthcheck").returncode == 2 and node.told == []


@pytest.mark.parametrize("command", ["prolog", "healthcheck"])
def test_a_state_folder_that_can_not_be_used_drains_nobody(node: Node, command: str) -> None:
    node.site(BAD)
    node.state.write_text("a file, and no folder")
    done = node.run(command)
    assert node.told == []
    assert done.returncode == (0 if command == "prolog" else 1)
    if command == "healthcheck":
        assert "nothing is drained or resumed" in done.stdout


def test_a_healthcheck_drains_what_two_looks_found(node: Node) -> None:
    node.site(BAD)
    done = node.run("healthcheck")
    assert done.returncode == 1 and "n1: drained: superv: fs.local[" in done.stdout, done
    assert node.told[0].startswith("update NodeName=n1 State=DRAIN Reason=superv: fs.local[")


def test_a_slurm_that_hangs_costs_its_deadline(node: Node) -> None:
    node.site(BAD)
    node.put("sinfo", "exec sleep 600")
    done = node.run("healthcheck")
    assert done.returncode == 1 and "sinfo did not answer within" in done.stdout
    assert node.told == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("command", ["prolog", pytest.param("healthcheck", marks=pytest.mark.soak)])
def test_a_hung_mount_and_a_hung_command_cost_their_deadline(node: Node, command: str) -> None:
    folder = node.path / "hung"
    folder.mkdir()
    for program in ("slurmd", "scontrol", "sinfo"):
        node.put(program, "exec sleep 600")
    node.site({"nfs.alive": {"paths": [str(folder)]}})
    done = node.run(command, sys.executable, str(HUNG), str(folder))
    if done.returncode == 77:
        pytest.skip("no FUSE here")
    assert done.returncode in (0, 1), done.stderr
    last = json.loads(
        (node.state / ("prolog" if command == "prolog" else "") / "n1.json").read_text()
    )
    [(tag, report)] = last["last"].items()
    by_name = {f"{r['check']}[{r.get('on', '')}]": r for r in report["results"]}
    hung = by_name[f"nfs.alive[{folder}]"]
    assert hung["status"] in ("FAIL", "UNKNOWN"), hung
    if tag == "preflight":  # else a job's step runs on this machine: another test's
        drift = by_name["slurm.drift[]"]  # it does not apply where no slurmd runs
        assert drift["status"] == "UNKNOWN" or "slurmd does not run here" in drift["seen"]
    if command == "healthcheck":
        assert "nothing is drained" in done.stdout
