"""`superv sweep`, with programs that stand where Slurm's are: what it drains, and what it tells."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from healthchecks.check import Result, Status
from healthchecks.report import Finding, Report
from launchers.slurm import Slurm
from supervisor.config import load_site
from supervisor.fleet import Change, Fleet
from supervisor.sweep import Busy, Sweep, alone, crontab_line, installed, settle, units

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
        return [act.text for act in asyncio.run(work)]

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


NODE = """
import json, os, sys, time
from healthchecks.frames import pieces
order = json.loads(sys.stdin.readline())
status = "FAIL" if os.path.exists("BAD") else "OK"
row = {"check": "fs.local", "on": "/", "status": status, "seen": "x"}
report = {"schema": 1, "node": "n1", "at": time.time(), "tags": order["tags"], "results": [row]}
for text in ("", json.dumps(report)):
    for line in pieces(order["mark"], "n1", text):
        print(line, flush=True)
"""


class Fleetful(World):
    """A world with one node, which answers through srun."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "on")
        self.bad = path / "bad"
        (path / "node").write_text(NODE.replace("BAD", str(self.bad)))
        self.put("srun", f"exec {shlex.quote(sys.executable)} {path}/node")
        self.put("squeue", "exit 0")
        self.put("scancel", "exit 0")
        self.nodes(n1="idle")

    def drain(self, word: str) -> None:
        told = yaml.safe_load((self.path / "site.yaml").read_text())
        (self.path / "site.yaml").write_text(yaml.safe_dump(told | {"drain": word}))

    def nodes(self, **states: str) -> None:
        rows = [f"echo '{n}|main*|{word}|0/4/0/4|gpu:8|none'" for n, word in states.items()]
        brief = [f"echo '{n}|{word}|none'" for n, word in states.items()]
        self.put("sinfo", f"case $* in *%C*) {'; '.join(rows)};; *) {'; '.join(brief)};; esac")

    def sweep(self, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "supervisor.cli", "sweep", *more]
        whole = {**os.environ, **self.env, **env}
        return subprocess.run(argv, env=whole, capture_output=True, text=True, timeout=60)


@pytest.fixture
def fleetful(tmp_path: Path) -> Fleetful:
    return Fleetful(tmp_path)


def test_the_command_looks_at_nodes_and_tells_what_changed(fleetful: Fleetful) -> None:
    quiet = fleetful.sweep("n1")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    fleetful.bad.touch()
    worse = fleetful.sweep()
    assert worse.returncode == 1
    assert "FAIL    n1 fs.local[/] (was OK): x" in worse.stdout
    assert "n1: drained: superv: fs.local[/]: x" in worse.stdout
    told = json.loads(fleetful.sweep("--json").stdout)
    assert set(told) == {"schema", "nodes", "changes", "acts"} and told["schema"] == 1
    assert set(told["nodes"]["n1"]) == {"asked", "state", "why", "report"}
    assert told["nodes"]["n1"]["report"]["status"] == "FAIL" and told["changes"] == []


def test_a_drain_that_slurm_does_not_answer_loses_nothing_else(fleetful: Fleetful) -> None:
    fleetful.put("scontrol", "exec sleep 600")
    fleetful.bad.touch()
    done = fleetful.sweep("--deadline=20")
    assert done.returncode == 1 and "FAIL    n1 fs.local[/]" in done.stdout
    assert "n1: drain: scontrol did not answer" in done.stdout
    assert list(fleetful.fleet.drains()) == ["n1"]  # perhaps it was done: it is looked at again
    fleetful.put("scontrol", f'echo "$@" >> {fleetful.path}/told')
    again = fleetful.sweep()
    assert "the drain is superv's no longer: it is drained no longer" in again.stdout
    assert "n1: drained" in fleetful.sweep().stdout


def test_what_runs_and_people_found_meanwhile_is_told_and_advice_once(fleetful: Fleetful) -> None:
    fleetful.drain("off")
    fleetful.sweep()
    fleetful.bad.touch()
    before = report("n1", Status.FAIL, time.time())
    fleetful.fleet.record([before], "run moe")
    fleetful.fleet.strike("n1", "run moe", "node-lost: silence", time.time())
    told = fleetful.sweep()
    assert told.returncode == 1
    assert "FAIL    n1 fs.local[/] (was OK): 97 % used" in told.stdout
    assert "FAIL    n1 run: node-lost: silence" in told.stdout
    assert "n1: would drain it" in told.stdout
    again = fleetful.sweep()
    assert (again.returncode, again.stdout) == (0, "")
    assert "n1: would drain it" in fleetful.sweep("--json").stdout
    fleetful.fleet.record([report("n1", Status.UNKNOWN, time.time())], "run moe")
    assert fleetful.sweep().stdout == ""  # it fails, as before


def test_one_that_is_under_way_is_not_disturbed(fleetful: Fleetful) -> None:
    with alone(fleetful.site):
        done = fleetful.sweep()
    assert done.returncode == 4 and "another sweep is under way" in done.stderr


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_whatever_hangs_a_sweep_ends_in_time(fleetful: Fleetful, more: bool) -> None:
    """srun, a host that takes connections and says nothing, the engine of a run.

    And more: scancel, and the home directory before ssh has so much as connected.
    """
    fleetful.put("srun", "exec sleep 600")
    home = fleetful.path / "home"
    (home / ".ssh").mkdir(parents=True)
    if more:
        fleetful.put("scancel", "exec sleep 600")
        os.mkfifo(home / ".ssh/known_hosts")
    fleetful.nodes(n1="idle", localhost="down*", n3="allocated")
    job = f"7|{os.getuid()}|me|n3|superv-moe-0123ab-1"
    fleetful.put("squeue", f"echo '{job}'")
    run = fleetful.site.state_dir / "runs/moe"
    run.mkdir(parents=True)
    with socket.socket() as mute, socket.socket(socket.AF_UNIX) as engine:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        engine.bind(str(run / "control.sock"))
        engine.listen()
        told = yaml.safe_load((fleetful.path / "site.yaml").read_text())
        told["ssh"] = {"port": mute.getsockname()[1], "connect_timeout_s": 2}
        (fleetful.path / "site.yaml").write_text(yaml.safe_dump(told))
        done = fleetful.sweep("--deadline=10", "--json", HOME=str(home))
    assert done.returncode == 1, done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    seen = {n: row["report"]["results"][0] for n, row in nodes.items() if row["report"]}
    assert seen["n1"]["status"] == "FAIL" and "nothing started within" in seen["n1"]["seen"]
    assert seen["localhost"]["status"] in ("FAIL", "UNKNOWN") and "ssh" in seen["localhost"]["seen"]
    assert nodes["n3"]["why"] == "in run moe, whose agent does not answer"


def test_a_slurm_that_does_not_answer_is_no_sweep(fleetful: Fleetful) -> None:
    fleetful.put(
        "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    )
    done = fleetful.sweep()
    assert done.returncode == 4 and "sweep not done" in done.stderr


def test_crons_bare_environment_is_one_clear_line(fleetful: Fleetful) -> None:
    env = {"PATH": "/nonexistent", "SUPERV_SITE": fleetful.env["SUPERV_SITE"]}
    argv = [sys.executable, "-m", "supervisor.cli", "sweep"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "superv: sinfo is not on PATH here: superv needs Slurm's client commands\n"
    )


def test_the_crontabs_line_runs_a_sweep_and_is_there_once(fleetful: Fleetful) -> None:
    tab = fleetful.path / "tab"
    tab.write_text("MAILTO=ops\n5 4 * * * backup\n")
    fleetful.put("crontab", f'[ "$1" = -l ] && exec cat {tab}; exec cat > {tab}')
    for every in ("20", "10"):
        done = fleetful.sweep("--install", f"--every={every}", "--set=fs.local.warn_percent=80")
        assert done.returncode == 0, done.stderr
    before, line = tab.read_text().rsplit("\n", 2)[:2]
    assert before == "MAILTO=ops\n5 4 * * * backup"
    assert line.startswith("*/10 * * * * env PATH=") and "--set=fs.local.warn_percent=80" in line
    fleetful.bad.touch()
    command = line.removeprefix("*/10 * * * * ").replace(r"\%", "%")
    bare = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
    ran = subprocess.run(
        ["/bin/sh", "-c", command], env=bare, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1 and "FAIL    n1 fs.local[/]" in ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("crontab", "said"),
    [
        ("echo 'you (kim) are not allowed to use this program' >&2; exit 1", "not allowed"),
        ('[ "$1" = -l ] && { echo "no crontab for kim" >&2; exit 1; }; exit 3', "nothing was"),
        ("exec /nonexistent/crontab", "there is no crontab command here"),
    ],
)
def test_a_crontab_that_can_not_be_changed(fleetful: Fleetful, crontab: str, said: str) -> None:
    fleetful.put("crontab", crontab)
    done = fleetful.sweep("--install")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--install", "--every=0"], "1 to 59"),
        (["--deadline=1"], "10 to 3600"),
        (["--timer"], "goes with --install"),
        (["--install", "--set=fs.local.warn_percent=1\n* * * * * x"], "no line breaks"),
        (["--install", f"--set=fs.local.warn_percent={'1' * 1000}"], "990 at most"),
        (["--tags=nonsense"], "nonsense"),
    ],
)
def test_what_can_not_be_asked_for(fleetful: Fleetful, words: list[str], said: str) -> None:
    done = fleetful.sweep(*words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_the_line_for_cron_and_the_timer() -> None:
    env = {"PATH": "/opt/slurm/bin:/bin", "SLURM_CONF": "/etc/100%"}
    line = crontab_line(["/opt/it's/python", "-m", "x", "--set=a.b=50%"], env, 30)
    assert line.startswith("*/30 * * * * env PATH=/opt/slurm/bin:/bin ") and r"50\%" in line
    before = "MAILTO=ops\n5 4 * * * backup\n"
    once = installed(before, line)
    assert once.startswith(before) and installed(once, line) == once
    files = units(["/opt/p y", 'say "100%"', "$HOME"], env, 15)
    service = files["superv-sweep.service"]
    assert 'ExecStart="/opt/p y" "say \\"100%%\\"" "$$HOME"' in service
    assert 'Environment="SLURM_CONF=/etc/100%%"\n' in service
    assert "OnUnitInactiveSec=15min" in files["superv-sweep.timer"]


def test_better_is_not_worse() -> None:
    def found(was: Status | None, status: Status) -> bool:
        change = Change(
            node="n1", at=T, origin="sweep", finding="x", was=was, status=status, seen=""
        )
        return Sweep(answers={}, changes=[change], acts=[]).worse

    assert found(None, Status.FAIL) and found(Status.OK, Status.UNKNOWN)
    assert found(Status.UNKNOWN, Status.FAIL) and found(Status.WARN, Status.FAIL)
    assert not found(Status.FAIL, Status.UNKNOWN) and not found(Status.FAIL, Status.WARN)
    assert not found(None, Status.WARN) and not found(Status.FAIL, Status.OK)


def test_what_can_never_be_measured_keeps_no_drain_but_the_drains_own_check_does(
    world: World,
) -> None:
    def blind(at: float, own: Status) -> Report:
        other = Finding(check="roce.qos", result=Result(status=Status.UNKNOWN, seen="no dcb"))
        return replace(report("n1", own, at), findings=(*report("n1", own).findings, other))

    bad = report("n1", Status.FAIL)
    world.settle([bad], [bad])
    world.states(n1="drained|superv: fs.local[/]: 97 % used")
    for at in (10, 20):
        assert world.settle([blind(T + at, Status.UNKNOWN)], []) == []
    assert world.settle([blind(T + 30, Status.OK)], []) == []
    assert world.settle([blind(T + 40, Status.OK)], []) == ["n1: resumed: passed 2 times"]
    assert world.fleet.drains() == {}
