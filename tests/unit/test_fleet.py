"""The fleet record: folding reports, changes, exclusions, strikes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest

from healthchecks.frame.check import Metric, Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.core.errors import TransientError, UserError
from supervisor.fleet import database
from supervisor.fleet.record import DAY_S, KEEP_S, Fleet

T = 1_790_000_000.0


def finding(check="fs.local", status=Status.OK, on="", seen="it", **more):
    return Finding(check=check, on=on, result=Result(status=status, seen=seen, **more))


def report(*findings, node="n1", at=T, tags=("preflight",)):
    return Report(node=node, at=at, findings=findings, tags=tags)


@pytest.fixture
def fleet(tmp_path):
    with Fleet(tmp_path / "deep/fleet.db") as made:
        yield made


READS_ON = """
import os, sqlite3, sys
link = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
link.execute("BEGIN")
link.execute("SELECT count(*) FROM look").fetchall()
print("reads", flush=True)
sys.stdin.read()
"""


def test_who_keeps_writers_out_is_named(fleet, monkeypatch):
    """Any user who may read the record can hold SQLite's shared lock for ever."""
    monkeypatch.setattr(database, "WAIT_S", 0.2)
    words = [sys.executable, "-c", READS_ON, str(fleet.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"reads\n"
        who = f"held by process {reader.pid} \\(.*\\) of uid {os.getuid()}$"
        with Fleet(fleet.path) as other, pytest.raises(TransientError, match=who):
            other.record([report(finding())], "sweep")
    assert fleet.record([report(finding())], "sweep") == []


def test_a_failure_is_a_change_and_the_nodes_state(fleet):
    assert fleet.record([report(finding())], "sweep") == []
    (change,) = fleet.record([report(finding(status=Status.FAIL, seen="full"), at=T + 60)], "sweep")
    assert (change.node, change.was, change.status) == ("n1", Status.OK, Status.FAIL)
    (node,) = fleet.nodes(T + 61)
    assert (node.state, node.since, node.why) == ("failed", T + 60, "fs.local: full")
    assert fleet.changes(T) == [change]


def test_what_was_not_asked_keeps_what_it_said(fleet):
    fleet.record([report(finding(status=Status.FAIL), finding("cpu.steal"))], "preflight")
    fleet.record([report(finding("cpu.steal"), at=T + 1, tags=("running",))], "run r")
    assert fleet.nodes(T + 2)[0].state == "failed"


def test_unknown_cures_nothing_and_since_is_kept_while_nothing_changes(fleet):
    fleet.record([report(finding(status=Status.FAIL))], "sweep")
    fleet.record([report(finding(status=Status.FAIL), at=T + 5)], "sweep")
    assert fleet.nodes(T + 6)[0].since == T
    fleet.record([report(finding(status=Status.UNKNOWN), at=T + 10)], "sweep")
    assert fleet.nodes(T + 11)[0].state == "unknown"


def test_an_older_report_that_comes_late_changes_nothing(fleet):
    fleet.record([report(finding(status=Status.FAIL), at=T + 5)], "sweep")
    assert fleet.record([report(finding(), at=T)], "sweep") == []
    assert fleet.nodes(T + 6)[0].state == "failed"


def test_a_target_that_is_gone_is_forgotten(fleet):
    fleet.record([report(finding(on="/a", status=Status.FAIL), finding(on="/b"))], "sweep")
    fleet.record([report(finding(on="/b"), at=T + 1)], "sweep")
    assert fleet.nodes(T + 2)[0].state == "healthy"


def test_exclusions_end_when_lifted_or_over(fleet):
    fleet.exclude("n1", "bad link", "ops", T, T + 100)
    fleet.exclude("n2", "noise", "ops", T, None)
    assert set(fleet.exclusions(T + 50)) == {"n1", "n2"}
    assert set(fleet.exclusions(T + 101)) == {"n2"}
    assert [n.state for n in fleet.nodes(T + 50)] == ["excluded", "excluded"]
    fleet.include("n2", "ops", T + 60)
    assert set(fleet.exclusions(T + 61)) == {"n1"}
    assert fleet.past_exclusions("n2", T)[0][1] == T + 60


def test_a_second_exclusion_takes_the_place_of_the_first(fleet):
    fleet.exclude("n1", "one", "ops", T, None)
    fleet.exclude("n1", "two", "ops", T + 1, T + 10)
    assert fleet.exclusions(T + 5)["n1"].reason == "two"
    assert fleet.exclusions(T + 11) == {}


def test_strikes_count_a_check_once_a_day_and_not_what_a_server_did(fleet):
    for hour in range(4):
        bad, at = (Status.FAIL if hour % 2 else Status.OK), T + 3600 * hour
        fleet.record([report(finding(status=bad), at=at)], "sweep")
    assert fleet.strikes(T + DAY_S) == {"n1": 1}
    shared = finding("nfs.alive", Status.FAIL, shared="nfs server s")
    fleet.record([report(shared, at=T + 5 * 3600)], "sweep")
    assert fleet.strikes(T + DAY_S) == {"n1": 1}
    assert fleet.strikes(T + 40 * DAY_S) == {}


def test_passes_count_full_looks_since(fleet):
    fleet.record([report(finding(status=Status.FAIL))], "sweep")
    fleet.record([report(finding(), at=T + 1)], "sweep")
    fleet.record([report(finding(), at=T + 2, tags=("running",))], "run r")
    assert fleet.passes("n1", T) == 1
    fleet.record([report(finding(), at=T + 3)], "sweep")
    assert fleet.passes("n1", T) == 2
    fleet.record([report(finding(status=Status.UNKNOWN), at=T + 4)], "sweep")
    assert fleet.passes("n1", T) == 0


def test_drains_and_baselines(fleet):
    fleet.drained("n1", "superv: fs.local: full", T)
    assert fleet.drains()["n1"].reason == "superv: fs.local: full"
    fleet.undrained("n1", T + 1)
    assert fleet.drains() == {}
    assert fleet.baseline("n1") is None
    fleet.accept(report(finding(metrics={"x": Metric(value=3.0, unit="B/s")})))
    assert fleet.baseline("n1").findings[0].result.metrics["x"].value == 3.0


def test_measurements_over_time(fleet):
    for step in range(2):
        metrics = {"used": Metric(value=step, unit="%")}
        fleet.record([report(finding(on="/a", metrics=metrics), at=T + step)], "sweep")
    assert [v["fs.local[/a].used"] for _, _, v in fleet.series(T)] == [[0, "%"], [1, "%"]]


def test_old_looks_are_dropped(fleet):
    fleet.record([report(finding(status=Status.FAIL))], "sweep")
    fleet.record([report(finding(), at=T + KEEP_S + 1)], "sweep")
    assert len(fleet.series(0.0)) == 1
    assert [c.status for c in fleet.changes(0.0)] == [Status.OK]


def test_it_is_kept_on_disk_and_read_without_writing(fleet):
    fleet.record([report(finding())], "sweep")
    with Fleet(fleet.path, write=False) as reader:
        assert reader.nodes(T)[0].name == "n1"
        with pytest.raises(TransientError, match="readonly"):
            reader.include("n1", "me", T)


def test_a_record_that_is_not_there_or_none_says_so(tmp_path):
    with pytest.raises(UserError, match="no fleet record yet"):
        Fleet(tmp_path / "fleet.db", write=False)
    (tmp_path / "fleet.db").write_text("hello, this is no database at all" * 50)
    with pytest.raises(UserError, match="can't be opened"):
        Fleet(tmp_path / "fleet.db")


def test_a_writer_that_holds_it_too_long_is_no_answer(fleet):
    other = sqlite3.connect(fleet.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    fleet._db.execute("PRAGMA busy_timeout = 10")
    with pytest.raises(TransientError, match="locked"):
        fleet.record([report(finding())], "sweep")
    other.close()


def test_what_comparison_found_only_comparison_takes_back(fleet):
    driver = finding("versions")
    odd = finding("versions", Status.WARN, on="cohort", seen="driver 570")
    trio = ("n1", "n2", "n3")
    fleet.record([report(driver, odd)], "sweep", compared=trio)
    fleet.record([report(driver, at=T + 1)], "preflight")  # of n1 alone: nothing to compare with
    fleet.record([report(driver, at=T + 2)], "run moe")
    assert fleet.nodes(T + 3)[0].state == "degraded"
    (change,) = fleet.record([report(driver, at=T + 4)], "sweep", compared=trio)
    assert (change.status, fleet.nodes(T + 5)[0].state) == (Status.OK, "healthy")


def test_a_strike_of_a_run_that_is_told_again_counts_once(fleet):
    for _ in range(2):
        fleet.strike("n1", "run moe", "node-lost", T)
    fleet.strike("n1", "run moe", "node-lost", T + 60)
    assert fleet.strikes(T + 61) == {"n1": 2}


def test_a_path_that_looks_like_an_address(tmp_path):
    odd = tmp_path / "a?mode=rwc#b%41"
    odd.mkdir()
    with Fleet(odd / "fleet.db") as made:
        made.record([report(finding())], "sweep")
    with Fleet(odd / "fleet.db", write=False) as reader:
        assert reader.nodes(T)[0].name == "n1"


def test_a_node_whose_clock_is_wrong_makes_no_other_report_old(fleet):
    fleet.record([report(finding(), node="n2")], "sweep", now=T)
    late = T + 3 * KEEP_S
    fleet.record([report(finding(status=Status.FAIL), at=late)], "sweep", now=T + 10)
    assert fleet.nodes(T + 11)[0].since == T + 10 and len(fleet.series(0.0)) == 2
    fleet.record([report(finding(), at=T - 9000)], "sweep", now=T + 20)
    assert fleet.nodes(T + 21)[0].state == "healthy" and fleet.passes("n1", T + 15) == 1
    fleet.record([report(finding(status=Status.WARN), at=T + 25)], "sweep", now=T + 30)
    assert fleet.nodes(T + 31)[0].since == T + 25  # a clock that is right is believed


def test_a_check_that_can_not_tell_its_targets_cures_none(fleet):
    fleet.record([report(finding(on="/a", status=Status.FAIL))], "sweep")
    fleet.record([report(finding(status=Status.UNKNOWN), at=T + 1)], "sweep")
    assert fleet.nodes(T + 2)[0].state == "failed"
    fleet.record([report(finding(status=Status.SKIP), at=T + 3)], "sweep")
    assert fleet.nodes(T + 4)[0].state == "unknown"  # nothing there that it applies to


def test_a_reader_is_told_once_what_changed_whoever_found_it(fleet):
    fleet.record([report(finding(status=Status.FAIL)), report(finding(), node="n2")], "preflight")
    (change,) = fleet.unreported_changes("sweep")
    assert (change.node, change.was, change.status) == ("n1", None, Status.FAIL)
    assert fleet.unreported_changes("sweep") == []
    fleet.record([report(finding(status=Status.FAIL), node="n2", at=T + 1)], "run moe")
    fleet.record([report(finding(), node="n2", at=T + 2)], "run moe")  # came and went
    fleet.record([report(finding(status=Status.UNKNOWN), at=T + 1)], "run moe")
    fleet.record([report(finding(status=Status.WARN), at=T + 2)], "run moe")
    (change,) = fleet.unreported_changes("sweep")
    assert (change.node, change.was, change.status) == ("n1", Status.FAIL, Status.WARN)
    fleet.record([report(finding(), at=T + KEEP_S + 9)], "run moe")
    fleet.record([report(finding(), at=T + 3 * KEEP_S)], "run moe")  # nothing is left by now
    fleet.record([report(finding(status=Status.FAIL), at=T + 3 * KEEP_S + 1)], "run moe")
    assert [c.status for c in fleet.unreported_changes("sweep")] == [Status.FAIL]
