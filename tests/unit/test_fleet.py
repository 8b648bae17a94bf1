"""The fleet record: folding reports, changes, exclusions, strikes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest
from strangers import SETPRIV, meeting_place, needs_root

from healthchecks.frame.check import Metric, Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.core.errors import TransientError, UserError
from supervisor.fleet import database
from supervisor.fleet.record import DAY_S, FORGET_LEAST, KEEP_S, Fleet

T = 1_790_000_000.0
assert meeting_place  # a fixture


def as_stranger_who_fails(code: str) -> str:
    """The last line of what another user's Python says."""
    words = [*SETPRIV, sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


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


def test_who_only_reads_keeps_nobody_from_writing(fleet, monkeypatch):
    """Any user who may read the record can hold SQLite's shared lock without end."""
    monkeypatch.setattr(database, "READER_S", 0.1)
    fleet.path.chmod(0o640)
    words = [sys.executable, "-c", READS_ON, str(fleet.path)]
    with (
        Fleet(fleet.path) as other,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader,
    ):
        assert reader.stdout.readline() == b"reads\n"
        other.record([report(finding())], "sweep")
        assert [node.name for node in fleet.nodes(T)] == ["n1"]  # it goes on at its name
        fleet.record([report(finding(), node="n2")], "sweep")
        assert [node.name for node in other.nodes(T)] == ["n1", "n2"]
    assert fleet.path.stat().st_mode & 0o777 == 0o640
    assert {p.name for p in fleet.path.parent.iterdir()} == {"fleet.db", "fleet.write.lock"}


def test_another_writer_that_holds_it_is_named(fleet, monkeypatch):
    monkeypatch.setattr(database, "READER_S", 0.1)
    monkeypatch.setattr(database, "WAIT_S", 0.2)
    words = [sys.executable, "-c", READS_ON.replace("ro", "rw").replace("BEGIN", "BEGIN IMMEDIATE")]
    with subprocess.Popen(
        [*words, str(fleet.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"reads\n"
        who = f"held by process {writer.pid} \\(.*\\) of uid {os.getuid()}$"
        with pytest.raises(TransientError, match=who):
            fleet.record([report(finding())], "sweep")
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


def test_a_writer_that_holds_it_too_long_is_no_answer(fleet, monkeypatch):
    monkeypatch.setattr(database, "READER_S", 0.01)
    monkeypatch.setattr(database, "WAIT_S", 0.01)
    other = sqlite3.connect(fleet.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
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


# --- clocks that jump: of the machine that records


@pytest.mark.parametrize("jump", [-3 * DAY_S, -0.1 * DAY_S, 3 * DAY_S])
def test_the_last_look_counts_whatever_the_recorders_clock_said_before(fleet, jump):
    fleet.record([report(finding(), at=T + jump)], "sweep", now=T + jump)
    fleet.record([report(finding(status=Status.FAIL, seen="full"))], "sweep", now=T)
    assert fleet.nodes(T)[0].state == "failed"
    assert fleet.changes(0.0)[0].status is Status.FAIL
    assert fleet.passes("n1", 0.0) == 0


@pytest.mark.parametrize("jump", [-30 * DAY_S, 30 * DAY_S])
def test_a_look_after_an_exclusion_lets_a_node_back_whatever_the_clock_says(fleet, jump):
    fleet.record([report(finding())], "sweep", now=T)
    fleet.exclude("n1", "cable", "kim", T + 60, None)
    fleet.drained("n1", "superv: fs.local: full", T + 60)
    out = fleet.exclusions(T + 61)["n1"]
    assert fleet.passes_since(out) == 0
    later = T + 120 + jump
    fleet.record([report(finding(), at=later)], "sweep", now=later)
    assert fleet.passes_since(out) == 1
    assert fleet.passes("n1", 0.0, after=fleet.drains()["n1"].look) == 1


def test_a_clock_that_is_years_ahead_for_a_while_costs_the_record_little(fleet):
    fleet.record([report(finding(), at=T + day * DAY_S) for day in range(90)], "sweep")
    ahead = T + 5000 * DAY_S
    fleet.record([report(finding(), at=ahead)], "sweep", now=ahead)
    assert len(fleet.report_history("n1", 0.0)) >= 91 - 2 * FORGET_LEAST
    now = T + 91 * DAY_S
    fleet.record([report(finding(status=Status.FAIL), at=now)], "sweep", now=now)
    assert fleet.nodes(now)[0].state == "failed" and fleet.nodes(now)[0].looked_at == now


# --- damage


SPOIL = {
    "a finding": "UPDATE standing SET row = '{' WHERE finding = 'cpu.steal'",
    "a finding of no kind": "UPDATE standing SET row = '[]' WHERE finding = 'cpu.steal'",
    "a time": "UPDATE standing SET at = 'noon' WHERE finding = 'cpu.steal'",
    "a change": "UPDATE change SET status = 'FINE'",
    "measurements": "UPDATE look SET metrics = x'00'",
    "a report": "UPDATE look SET status = 'FINE'",
    "a baseline": "UPDATE baseline SET row = '{}'",
}


@pytest.mark.parametrize("what", SPOIL)
def test_a_row_that_can_not_be_read_is_left_out_and_said(fleet, what):
    fleet.record([report(finding(status=Status.FAIL), finding("cpu.steal"))], "sweep")
    fleet.accept(report(finding()))
    with sqlite3.connect(fleet.path) as link:
        link.execute(SPOIL[what])
    link.close()
    assert fleet.nodes(T)[0].state == "failed"
    for read in (fleet.changes, fleet.series):
        read(0.0)
    list(fleet.samples(0.0, T, 10))
    fleet.passes("n1", 0.0)
    fleet.baseline("n1")
    fleet.unreported_changes("sweep")
    (note,) = fleet.notes
    assert "1 rows can't be read and are left out, the first: " in note
    fleet.record([report(finding("cpu.steal", Status.FAIL), at=T + 1)], "sweep")
    assert len(fleet.current_findings()) == 2


def test_a_damaged_file_is_set_aside_and_what_can_be_read_goes_on(fleet):
    fleet.record([report(finding(status=Status.FAIL), node=f"n{i}") for i in range(200)], "sweep")
    fleet.exclude("n7", "cable", "kim", T, None)
    fleet.close()
    data = bytearray(fleet.path.read_bytes())
    with sqlite3.connect(fleet.path) as link:
        (page,) = link.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'standing'"
        ).fetchone()
    link.close()
    data[4096 * (page - 1) : 4096 * page] = b"\xff" * 4096
    fleet.path.write_bytes(data)
    with (
        Fleet(fleet.path, write=False) as reader,
        pytest.raises(TransientError, match="superv sweep sets it"),
    ):
        reader.nodes(T)
    with pytest.raises(TransientError, match="was damaged: set aside as ") as said:
        Fleet(fleet.path, whole=True)
    assert "200 of look" in str(said.value) and "1 of exclusion" in str(said.value)
    with Fleet(fleet.path, whole=True) as again:
        assert list(again.exclusions(T)) == ["n7"] and len(again.changes(0.0)) == 200
        again.record([report(finding(), node="n1")], "sweep")
    assert len(list(fleet.path.parent.glob("*.damaged-*"))) == 1


# --- rights


@needs_root
def test_who_may_not_read_it_is_told_whose_it_is(meeting_place):
    (meeting_place / "deep").mkdir()
    path = meeting_place / "deep/fleet.db"
    Fleet(path).close()
    path.chmod(0o640)
    code = "from pathlib import Path; from supervisor.fleet.record import Fleet\n"
    code += "Fleet(Path({!r}), write=False)"
    said = as_stranger_who_fails(code.format(str(path)))
    assert f"{path}: you may not read this fleet record: it is root's, mode 0640; ask root" in said
    path.parent.chmod(0o700)
    assert "you may not look into its folder" in as_stranger_who_fails(code.format(str(path)))
