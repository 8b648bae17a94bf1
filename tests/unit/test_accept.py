"""`superv accept`, with an srun that answers as nodes would."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.fleet.record import Fleet

# Each call of srun is a round; FILE holds what each node says in it, and orders are kept.
NODES = """
import json, os, sys, time
from pathlib import Path
from healthchecks.frame.frames import pieces
line = sys.stdin.readline()
home = Path("HOME")
with open(home / "orders", "a") as orders:
    orders.write(line)
order = json.loads(line)
number = len((home / "orders").read_text().splitlines())
for node, rounds in json.loads((home / "story").read_text()).items():
    status = rounds[number - 1]
    if status == "gone":
        continue
    row = {"check": "fs.local", "on": "/", "status": status, "seen": f"in round {number}"}
    if status == "no tool":
        row |= {"status": "UNKNOWN", "gap": "tool", "seen": "dcgmi is not installed: not looked at",
                "fix": "install it"}
    row["metrics"] = {"used": {"value": number, "unit": "%"}}
    report = {"schema": 1, "node": node, "at": time.time(), "tags": order["tags"], "results": [row]}
    for text in ("", json.dumps(report)):
        for line in pieces(order["mark"], node, text):
            print(line, flush=True)
"""


class RepairedSite:
    """A site, its record and nodes that tell a story, a word for each round."""

    def __init__(self, path: Path, **story: list[str]) -> None:
        self.path = path
        (path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(path / "state")}))
        (path / "story").write_text(json.dumps(story))
        (path / "node").write_text(NODES.replace("HOME", str(path)))
        rows = "; ".join(f"echo '{n}|main*|idle|0/4/0/4|gpu:8|none'" for n in story)
        self.put("sinfo", rows)
        self.put("srun", f"exec {shlex.quote(sys.executable)} {path}/node")
        self.put("squeue", "exit 0")
        self.put("scancel", "exit 0")
        self.nodes = ",".join(story)

    def put(self, name: str, body: str) -> None:
        (self.path / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / name).chmod(0o755)

    def accept(self, *more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "supervisor.cli", "accept", self.nodes, *more]
        env = {**os.environ, "PATH": f"{self.path}:/usr/bin:/bin"}
        env["SUPERV_SITE"] = str(self.path / "site.yaml")
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)

    def orders(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.path / "orders").read_text().splitlines()]

    def baseline(self, node: str) -> float | None:
        with Fleet(self.path / "state/fleet.db") as fleet:
            kept = fleet.baseline(node)
        if kept is None:
            return None
        return next(f for f in kept.findings if f.check == "fs.local").result.metrics["used"].value


def test_one_bad_round_refuses_a_node_whatever_the_others_say(tmp_path: Path) -> None:
    repair = RepairedSite(tmp_path, n1=["OK", "OK"], n2=["FAIL", "OK"], n3=["OK", "UNKNOWN"])
    done = repair.accept("--rounds=2")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        "n1: accepted",
        "n2: not accepted: round 1: fs.local[/] FAIL: in round 1",
        "n3: not accepted: round 2: fs.local[/] UNKNOWN: in round 2",
    ]
    assert [repair.baseline(n) for n in ("n1", "n2", "n3")] == [2.0, None, None]
    first, second = repair.orders()
    told: Any = [order["settings"] for order in (first, second)]
    assert told[0]["repairs"] == told[1]["repairs"]  # repaired once, as of the beginning
    assert [(node, *of) for node, of in told[0]["repairs"].items()] == [
        ("n1", ""), ("n2", ""), ("n3", "")
    ]  # fmt: skip
    assert first["tags"] == ["preflight", "deep"]
    with Fleet(tmp_path / "state/fleet.db") as fleet:  # every round is in the record
        assert [c.status for c in fleet.changes(0, "n2") if c.finding == "fs.local[/]"] == [
            "OK",
            "FAIL",
        ]


def test_it_goes_by_the_repair_that_somebody_told_of_once(tmp_path: Path) -> None:
    repair = RepairedSite(tmp_path, n1=["FAIL", "OK"], n2=["OK", "OK"])
    with Fleet(tmp_path / "state/fleet.db") as fleet:
        fleet.repairs.tell("n1", 1000.0, ("ib",), "cable", "ops")
        fleet.repairs.tell("n3", 1000.0, (), "another's", "ops")
    repair.accept()
    repair.accept()
    first, second = [order["settings"] for order in repair.orders()]  # type: ignore[misc]
    assert first["repairs"]["n1"] == {"ib": 1000.0}  # what came since fails it
    assert first["repairs"]["n2"].keys() == second["repairs"]["n2"].keys() == {""}
    assert second["repairs"]["n1"].keys() == {"ib", ""}  # nobody told of another: as of now
    assert second["repairs"]["n1"][""] >= first["repairs"]["n2"][""]
    with Fleet(tmp_path / "state/fleet.db") as fleet:
        assert [r.note for r in fleet.repairs.of("n1", 0.0)] == ["superv accept", "cable"]


def test_a_node_that_does_not_answer_is_not_accepted(tmp_path: Path) -> None:
    done = RepairedSite(tmp_path, n1=["OK"], n2=["gone"]).accept("--json")
    assert done.returncode == 1 and "n2: not accepted: round 1: node.answers" in done.stderr
    assert set(json.loads(done.stdout)) == {"n1", "n2"}


def test_a_slurm_that_does_not_answer_costs_one_round_and_is_told(tmp_path: Path) -> None:
    repair = RepairedSite(tmp_path, n1=["OK"])
    repair.put("sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")
    done = repair.accept("--rounds=2")
    assert done.returncode == 1 and "round 1: not asked: Slurm does not answer" in done.stdout
    assert repair.baseline("n1") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--rounds=0"], "1 to 1000"), (["--deadline=1"], "30 to 86400"), (["--set=x"], "--set x")],
)
def test_what_can_not_be_asked_for(tmp_path: Path, words: list[str], said: str) -> None:
    done = RepairedSite(tmp_path, n1=["OK"]).accept(*words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_node_without_dcgm_is_accepted_and_it_is_said_what_was_not_tested(tmp_path: Path) -> None:
    done = RepairedSite(tmp_path, n1=["no tool"], n2=["UNKNOWN"]).accept()
    assert done.stdout.splitlines() == [
        "n1: accepted; not tested: fs.local[/]",
        "n2: not accepted: round 1: fs.local[/] UNKNOWN: in round 1",
    ]
    assert "n1 (fs.local): dcgmi is not installed: not looked at; install it" in done.stderr


def test_nodes_are_named_in_as_many_words_as_one_likes(tmp_path: Path) -> None:
    repair = RepairedSite(tmp_path, n1=["OK"], n2=["OK"], n3=["OK"])
    repair.nodes = "n[2-3]"
    assert repair.accept("n1", "n2").stdout.split() == [
        *("n2:", "accepted", "n3:", "accepted", "n1:", "accepted")
    ]
