"""`superv sweep`, with programs that stand where Slurm's are: what it drains, and what it tells."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from healthchecks.check import Result, Status
from healthchecks.report import Finding, Report
from launchers.slurm import Slurm
from supervisor.config import load_site
from supervisor.fleet import Fleet
from supervisor.sweep import Busy, alone, crontab_line, installed, settle, units

T = 1_790_000_000.0


def report(node: str, status: Status, at: float = T) -> Report:
    found = Finding(check="fs.local", on="/", result=Result(status=status, seen="97 % used"))
    return Report(node=node, at=at, findings=(found,), tags=("preflight",))


class World:
    """A site, its fleet record, and a scontrol that writes down what it is told."""

    def __init__(self, path: Path, drain: str) -> None:
        self.path = path
        (path / "site.yaml").write_text(
            yaml.safe_dump({"state_dir": str(path / "state"), "drain": drain})
        )
        self.env = {"PATH": f"{path}:/usr/bin:/bin", "SUPERV_SITE": str(path / "site.yaml")}
        self.site = load_site(self.env, system=path / "none")
        self.fleet = Fleet(self.site.fleet)
        self.put("scontrol", f'echo "$@" >> {shlex.quote(str(path))}/told')
        self.states(n1="idle|none", n2="drained|ops: fan", n3="idle|none")

    def put(self, name: str, body: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / name).chmod(0o755)

    def states(self, **nodes: str) -> None:
        lines = "".join(f"{node}|{state}\n" for node, state in nodes.items())
        self.put("sinfo", f"printf %s {shlex.quote(lines)}")

    def settle(self, first: list[Report], second: list[Report], at: float = T) -> list[str]:
        self.fleet.record(first, "sweep")
        by = lambda reports: {r.node: r for r in reports}  # noqa: E731
        work = settle(
            *(self.fleet, Slurm(env=self.env), self.site, by(first), by(second), 63),
            now=lambda: at,
        )
        return asyncio.run(work)

    @property
    def told(self) -> list[str]:
        path = self.path / "told"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, "on")


def test_what_failed_twice_is_drained_and_known_to_be_ours(world: World) -> None:
    bad = report("n1", Status.FAIL)
    assert world.settle([bad], [bad]) == ["n1: drained: superv: fs.local[/]: 97 % used"]
    assert world.told == ["update NodeName=n1 State=DRAIN Reason=superv: fs.local[/]: 97 % used"]
    assert list(world.fleet.drains()) == ["n1"]


def test_what_failed_once_is_not(world: World) -> None:
    assert world.settle([report("n1", Status.FAIL)], [report("n1", Status.OK)]) == []
    assert world.settle([report("n1", Status.FAIL)], [report("n1", Status.UNKNOWN)]) == []
    assert world.told == []


def test_a_drained_node_is_resumed_after_two_passes(world: World) -> None:
    bad = report("n1", Status.FAIL)
    world.settle([bad], [bad])
    world.states(n1="drained|superv: fs.local[/]: 97 % used")
    assert world.settle([report("n1", Status.OK, T + 10)], []) == []
    (line,) = world.settle([report("n1", Status.OK, T + 20)], [])
    assert line == "n1: resumed: passed 2 times"
    assert world.told[-1] == "update NodeName=n1 State=RESUME" and world.fleet.drains() == {}


def test_without_the_sites_word_the_command_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, "off")
    bad = report("n1", Status.FAIL)
    (line,) = world.settle([bad], [bad])
    assert "would drain" in line and "scontrol update NodeName=n1 State=DRAIN" in line
    assert world.told == [] and world.fleet.drains() == {}


def test_without_the_rights_too(world: World) -> None:
    world.put("scontrol", "echo 'slurm_update error: Access/permission denied' >&2; exit 1")
    bad = report("n1", Status.FAIL)
    (line,) = world.settle([bad], [bad])
    assert "not drained" in line and "denied" in line and "scontrol update NodeName=n1" in line
    assert world.fleet.drains() == {}


def test_one_sweep_at_a_time(world: World) -> None:
    with alone(world.site), pytest.raises(Busy, match="under way"), alone(world.site):
        pass


def test_the_command_looks_at_nodes_and_tells_what_changed(world: World) -> None:
    """srun here is a program that answers as a node would."""
    node = world.path / "node"
    node.write_text(
        "import json, sys\n"
        "from healthchecks.frames import pieces\n"
        "order = json.loads(sys.stdin.readline())\n"
        f"bad = {str(world.path / 'bad')!r}\n"
        "import os\n"
        "status = 'FAIL' if os.path.exists(bad) else 'OK'\n"
        "row = {'check': 'fs.local', 'on': '/', 'status': status, 'seen': 'x'}\n"
        "report = {'schema': 1, 'node': 'n1', 'at': __import__('time').time(),\n"
        "          'tags': order['tags'], 'results': [row]}\n"
        "for text in ('', json.dumps(report)):\n"
        "    for line in pieces(order['mark'], 'n1', text):\n"
        "        print(line, flush=True)\n"
    )
    world.put("srun", f"exec {shlex.quote(sys.executable)} {node}")
    world.put("squeue", "exit 0")
    world.put("scancel", "exit 0")
    world.put(
        "sinfo",
        "case $* in *%C*) echo 'n1|main*|idle|0/4/0/4|gpu:8|none';; *) echo 'n1|idle|none';; esac",
    )

    def sweep(*more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "supervisor.cli", "sweep", "n1", *more]
        env = {**os.environ, **world.env}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)

    quiet = sweep()
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    (world.path / "bad").touch()
    worse = sweep()
    assert worse.returncode == 1
    assert "FAIL    n1 fs.local[/] (was OK): x" in worse.stdout
    assert "n1: drained: superv: fs.local[/]: x" in worse.stdout
    told = json.loads(sweep("--json").stdout)
    assert told["schema"] == 1 and told["nodes"]["n1"]["report"]["status"] == "FAIL"
    assert told["changes"] == []


def test_a_slurm_that_does_not_answer_is_no_sweep(world: World) -> None:
    world.put(
        "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    )
    argv = [sys.executable, "-m", "supervisor.cli", "sweep"]
    done = subprocess.run(
        argv, env={**os.environ, **world.env}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 4 and "sweep not done" in done.stderr


def test_the_line_for_cron_and_the_timer() -> None:
    line = crontab_line(["/opt/it's/python", "-m", "x", "--set=a.b=50%"], 30)
    assert line.startswith("*/30 * * * * ") and r"50\%" in line
    before = "MAILTO=ops\n5 4 * * * backup\n"
    once = installed(before, line)
    assert once.startswith(before) and installed(once, line) == once
    files = units(["/opt/p y", 'say "100%"', "$HOME"], 15)
    assert 'ExecStart="/opt/p y" "say \\"100%%\\"" "$$HOME"' in files["superv-sweep.service"]
    assert "OnUnitInactiveSec=15min" in files["superv-sweep.timer"]
