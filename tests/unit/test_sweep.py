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

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from launchers.slurm import Slurm
from supervisor.config import load_site
from supervisor.fleet.apply_drains import apply_drains, in_both
from supervisor.fleet.record import Fleet
from supervisor.fleet.schedule import crontab_line, systemd_units, with_crontab_line
from supervisor.fleet.sweep import Sweep, SweepRunning, sweep_lock
from supervisor.fleet.types import Change

T = 1_790_000_000.0


def report(node: str, status: Status, at: float = T) -> Report:
    found = Finding(check="fs.local", on="/", result=Result(status=status, seen="97 % used"))
    return Report(node=node, at=at, findings=(found,), tags=("preflight",))


def rule(mode: str, look_again_s: float = 0) -> dict[str, object]:
    return {"mode": mode, "look_again_s": look_again_s}


class SweepSite:
    """A site, its fleet record, and a scontrol that writes down what it is told."""

    def __init__(self, path: Path, drain: str) -> None:
        self.path = path
        (path / "site.yaml").write_text(
            yaml.safe_dump({"state_dir": str(path / "state"), "drain": rule(drain)})
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
        rows = ((node, *state.split("|")) for node, state in nodes.items())
        lines = "".join(f"{n}|main*|{word}|0/4/0/4|gpu:8|{why}\n" for n, word, why in rows)
        self.put("sinfo", f"printf %s {shlex.quote(lines)}")

    def settle(self, first: list[Report], second: list[Report], at: float = T) -> list[str]:
        self.fleet.record(first, "sweep")
        by = lambda reports: {r.node: r for r in reports}  # noqa: E731
        both = in_both(by(first), by(second))
        work = apply_drains(self.fleet, Slurm(env=self.env), self.site, both, lambda: at)
        return [drain.text for drain in asyncio.run(work)]

    @property
    def told(self) -> list[str]:
        path = self.path / "told"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> SweepSite:
    return SweepSite(tmp_path, "on")


def test_what_failed_twice_is_drained_and_known_to_be_ours(world: SweepSite) -> None:
    bad = report("n1", Status.FAIL)
    assert world.settle([bad], [bad]) == ["n1: drained: superv: fs.local[/]: 97 % used"]
    assert world.told == ["update NodeName=n1 State=DRAIN Reason=superv: fs.local[/]: 97 % used"]
    assert list(world.fleet.drains()) == ["n1"]


def test_what_failed_once_is_not(world: SweepSite) -> None:
    assert world.settle([report("n1", Status.FAIL)], [report("n1", Status.OK)]) == []
    assert world.settle([report("n1", Status.FAIL)], [report("n1", Status.UNKNOWN)]) == []
    assert world.told == []


def test_a_drained_node_is_resumed_after_two_passes(world: SweepSite) -> None:
    bad = report("n1", Status.FAIL)
    world.settle([bad], [bad])
    world.states(n1="drained|superv: fs.local[/]: 97 % used")
    assert world.settle([report("n1", Status.OK, T + 10)], []) == []
    (line,) = world.settle([report("n1", Status.OK, T + 20)], [])
    assert line == "n1: resumed: passed 2 times"
    assert world.told[-1] == "update NodeName=n1 State=RESUME" and world.fleet.drains() == {}


def test_without_the_sites_word_the_command_is_told(tmp_path: Path) -> None:
    world = SweepSite(tmp_path, "off")
    bad = report("n1", Status.FAIL)
    (line,) = world.settle([bad], [bad])
    assert "would drain" in line and "scontrol update NodeName=n1 State=DRAIN" in line
    assert world.told == [] and world.fleet.drains() == {}


def test_without_the_rights_too(world: SweepSite) -> None:
    world.put("scontrol", "echo 'slurm_update error: Access/permission denied' >&2; exit 1")
    bad = report("n1", Status.FAIL)
    (line,) = world.settle([bad], [bad])
    assert "not drained" in line and "denied" in line and "scontrol update NodeName=n1" in line
    assert world.fleet.drains() == {}


def test_one_sweep_at_a_time(world: SweepSite) -> None:
    with (
        sweep_lock(world.site),
        pytest.raises(SweepRunning, match="under way"),
        sweep_lock(world.site),
    ):
        pass


NODE = """
import json, os, sys, time
from healthchecks.frame.frames import pieces
order = json.loads(sys.stdin.readline())
status = "FAIL" if os.path.exists("BAD") else "OK"
row = {"check": "fs.local", "on": "/", "status": status, "seen": "x"}
report = {"schema": 1, "node": "n1", "at": time.time(), "tags": order["tags"], "results": [row]}
for text in ("", json.dumps(report)):
    for line in pieces(order["mark"], "n1", text):
        print(line, flush=True)
"""


class AnsweringSite(SweepSite):
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
        (self.path / "site.yaml").write_text(yaml.safe_dump(told | {"drain": rule(word)}))

    def nodes(self, **states: str) -> None:
        rows = [f"echo '{n}|main*|{word}|0/4/0/4|gpu:8|none'" for n, word in states.items()]
        self.put("sinfo", "; ".join(rows))

    def sweep(self, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "supervisor.cli", "sweep", *more]
        whole = {**os.environ, **self.env, **env}
        return subprocess.run(argv, env=whole, capture_output=True, text=True, timeout=60)


@pytest.fixture
def site(tmp_path: Path) -> AnsweringSite:
    return AnsweringSite(tmp_path)


def test_the_command_looks_at_nodes_and_tells_what_changed(site: AnsweringSite) -> None:
    quiet = site.sweep("n1")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    site.bad.touch()
    worse = site.sweep()
    assert worse.returncode == 1
    assert "FAIL    n1 fs.local[/] (was OK): x" in worse.stdout
    assert "n1: drained: superv: fs.local[/]: x" in worse.stdout
    told = json.loads(site.sweep("--json").stdout)
    assert set(told) == {"schema", "nodes", "changes", "acts"} and told["schema"] == 1
    assert set(told["nodes"]["n1"]) == {"asked", "state", "why", "report"}
    assert told["nodes"]["n1"]["report"]["status"] == "FAIL" and told["changes"] == []


def test_a_drain_that_slurm_does_not_answer_loses_nothing_else(site: AnsweringSite) -> None:
    site.put("scontrol", "exec sleep 600")
    site.bad.touch()
    done = site.sweep("--deadline=20")
    assert done.returncode == 1 and "FAIL    n1 fs.local[/]" in done.stdout
    assert "n1: drain: scontrol did not answer" in done.stdout
    assert list(site.fleet.drains()) == ["n1"]  # perhaps it was done: it is looked at again
    site.put("scontrol", f'echo "$@" >> {site.path}/told')
    again = site.sweep()
    assert "the drain is superv's no longer: it is drained no longer" in again.stdout
    assert "n1: drained" in site.sweep().stdout


def test_what_runs_and_people_found_meanwhile_is_told_and_advice_once(site: AnsweringSite) -> None:
    site.drain("off")
    site.sweep()
    site.bad.touch()
    before = report("n1", Status.FAIL, time.time())
    site.fleet.record([before], "run moe")
    site.fleet.strike("n1", "run moe", "node-lost: silence", time.time())
    told = site.sweep()
    assert told.returncode == 1
    assert "FAIL    n1 fs.local[/] (was OK): 97 % used" in told.stdout
    assert "FAIL    n1 run: node-lost: silence" in told.stdout
    assert "n1: would drain it" in told.stdout
    again = site.sweep()
    assert (again.returncode, again.stdout) == (0, "")
    assert "n1: would drain it" in site.sweep("--json").stdout
    site.fleet.record([report("n1", Status.UNKNOWN, time.time())], "run moe")
    assert site.sweep().stdout == ""  # it fails, as before


def test_one_that_is_under_way_is_not_disturbed(site: AnsweringSite) -> None:
    with sweep_lock(site.site):
        done = site.sweep()
    assert done.returncode == 4 and "another sweep is under way" in done.stderr


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_whatever_hangs_a_sweep_ends_in_time(site: AnsweringSite, more: bool) -> None:
    """srun, a host that takes connections and says nothing, the engine of a run.

    And more: scancel, and the home directory before ssh has so much as connected.
    """
    site.put("srun", "exec sleep 600")
    home = site.path / "home"
    (home / ".ssh").mkdir(parents=True)
    if more:
        site.put("scancel", "exec sleep 600")
        os.mkfifo(home / ".ssh/known_hosts")
    site.nodes(n1="idle", localhost="down*", n3="allocated")
    job = f"7|{os.getuid()}|me|n3|superv-moe-0123ab-1"
    site.put("squeue", f'echo "${{SQUEUE_FORMAT%%|*}}|{job}"')
    run = site.site.state_dir / "runs/moe"
    run.mkdir(parents=True)
    with socket.socket() as mute, socket.socket(socket.AF_UNIX) as engine:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        engine.bind(str(run / "control.sock"))
        engine.listen()
        told = yaml.safe_load((site.path / "site.yaml").read_text())
        told["ssh"] = {"port": mute.getsockname()[1], "connect_timeout_s": 2}
        (site.path / "site.yaml").write_text(yaml.safe_dump(told))
        done = site.sweep("--deadline=10", "--json", HOME=str(home))
    assert done.returncode == 1, done.stderr
    nodes = json.loads(done.stdout)["nodes"]
    seen = {n: row["report"]["results"][0] for n, row in nodes.items() if row["report"]}
    assert seen["n1"]["status"] == "FAIL" and "nothing started within" in seen["n1"]["seen"]
    assert seen["localhost"]["status"] in ("FAIL", "UNKNOWN") and "ssh" in seen["localhost"]["seen"]
    assert nodes["n3"]["why"] == "in run moe, whose agent does not answer"


def test_a_slurm_that_does_not_answer_is_no_sweep(site: AnsweringSite) -> None:
    site.put(
        "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    )
    done = site.sweep()
    assert done.returncode == 4 and "sweep not done" in done.stderr


def test_crons_bare_environment_is_one_clear_line(site: AnsweringSite) -> None:
    env = {"PATH": "/nonexistent", "SUPERV_SITE": site.env["SUPERV_SITE"]}
    argv = [sys.executable, "-m", "supervisor.cli", "sweep"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "superv: sinfo is not on PATH here: superv needs Slurm's client commands\n"
    )


def test_the_crontabs_line_runs_a_sweep_and_is_there_once(site: AnsweringSite) -> None:
    tab = site.path / "tab"
    tab.write_text("MAILTO=ops\n5 4 * * * backup\n")
    site.put("crontab", f'[ "$1" = -l ] && exec cat {tab}; exec cat > {tab}')
    for every in ("20", "10"):
        done = site.sweep("--install", f"--every={every}", "--set=fs.local.warn_percent=80")
        assert done.returncode == 0, done.stderr
    before, line = tab.read_text().rsplit("\n", 2)[:2]
    assert before == "MAILTO=ops\n5 4 * * * backup"
    assert line.startswith("*/10 * * * * env PATH=") and "--set=fs.local.warn_percent=80" in line
    site.bad.touch()
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
def test_a_crontab_that_can_not_be_changed(site: AnsweringSite, crontab: str, said: str) -> None:
    site.put("crontab", crontab)
    done = site.sweep("--install")
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
def test_what_can_not_be_asked_for(site: AnsweringSite, words: list[str], said: str) -> None:
    done = site.sweep(*words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_the_line_for_cron_and_the_timer() -> None:
    env = {"PATH": "/opt/slurm/bin:/bin", "SLURM_CONF": "/etc/100%"}
    line = crontab_line(["/opt/it's/python", "-m", "x", "--set=a.b=50%"], env, 30)
    assert line.startswith("*/30 * * * * env PATH=/opt/slurm/bin:/bin ") and r"50\%" in line
    before = "MAILTO=ops\n5 4 * * * backup\n"
    once = with_crontab_line(before, line)
    assert once.startswith(before) and with_crontab_line(once, line) == once
    files = systemd_units(["/opt/p y", 'say "100%"', "$HOME"], env, 15)
    service = files["superv-sweep.service"]
    assert 'ExecStart="/opt/p y" "say \\"100%%\\"" "$$HOME"' in service
    assert 'Environment="SLURM_CONF=/etc/100%%"\n' in service
    assert "OnUnitInactiveSec=15min" in files["superv-sweep.timer"]


def test_better_is_not_worse() -> None:
    def found(was: Status | None, status: Status) -> bool:
        change = Change(
            node="n1", at=T, origin="sweep", finding="x", was=was, status=status, seen=""
        )
        return Sweep(answers={}, changes=[change], drains=[]).worse

    assert found(None, Status.FAIL) and found(Status.OK, Status.UNKNOWN)
    assert found(Status.UNKNOWN, Status.FAIL) and found(Status.WARN, Status.FAIL)
    assert not found(Status.FAIL, Status.UNKNOWN) and not found(Status.FAIL, Status.WARN)
    assert not found(None, Status.WARN) and not found(Status.FAIL, Status.OK)


def test_what_can_never_be_measured_keeps_no_drain_but_the_drains_own_check_does(
    world: SweepSite,
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
