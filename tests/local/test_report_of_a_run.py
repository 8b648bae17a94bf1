"""`superv report --run` of a run that trains, and of the same when it was stopped."""

from __future__ import annotations

import json
import time
from typing import Any

from home import RunHome, until

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.fleet.record import Fleet


def told(home: RunHome) -> dict[str, Any]:
    page: dict[str, Any] = json.loads(home.superv("report", "--run", "ring", "--format", "json"))
    return page


def test_whether_it_can_run(home: RunHome) -> None:
    assert "no fleet record yet" in home.superv("report", rc=2)
    nodes = [slot["node"] for slot in home.launched()["slots"]]
    found = [Finding(check="fs.local", result=Result(status=Status.OK, seen="12 % used"))]
    with Fleet(home.path / "state/fleet.db") as fleet:
        fleet.record([Report(node=n, at=time.time(), findings=found) for n in nodes[:1]], "sweep")
    page = told(home)
    assert page["verdict"]["can_run"] == "yes"
    assert page["verdict"]["need"] == page["run"]["need"] == 2
    assert list(page["run"]["slots"].values()) == nodes
    assert page["run"]["engine"] is True
    assert "2 of 2 slots filled, 1 good spare" in page["verdict"]["text"]
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")
    page = told(home)
    assert page["run"]["phase"] == "stopped"
    assert page["verdict"]["can_run"] == "no"  # of the nodes, one was looked at
    shown = home.superv("report", "--run", "ring")
    assert "Can ring run? NO: ring is stopped and needs 2 nodes; 1 of 1 node can be used" in shown
