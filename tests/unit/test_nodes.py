"""`superv nodes`, `exclude` and `include`: what they print, refuse and keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from healthchecks.check import Result as Seen
from healthchecks.check import Status
from healthchecks.report import Finding, Report
from supervisor import app
from supervisor.cli.nodes import exclude, include, nodes
from supervisor.core.errors import UserError
from supervisor.fleet import Fleet

NAMES = [f"n{i}" for i in range(1, 64)]


def report(node: str, status: Status = Status.OK, seen: str = "97 % used", **more: Any) -> Report:
    found = Finding(check="fs.local", on="/", result=Seen(status=status, seen=seen))
    values = {"at": app.clock(), "tags": ("preflight",), **more}
    return Report(node=node, findings=(found,), **values)


class Place:
    """A site with a Slurm of 63 nodes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        (path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(path / "state")}))
        monkeypatch.setenv("SUPERV_SITE", str(path / "site.yaml"))
        monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
        self.slurm("\n".join(f"echo '{name}|idle|none'" for name in NAMES))
        self.fleet = Fleet(path / "state/fleet.db")

    def slurm(self, body: str) -> None:
        (self.path / "sinfo").write_text(f"#!/bin/sh\n{body}\n")
        (self.path / "sinfo").chmod(0o755)

    def do(self, command: click.Command, *words: str) -> Result:
        return CliRunner().invoke(command, list(words))

    def refused(self, command: click.Command, *words: str) -> str:
        done = self.do(command, *words)
        assert isinstance(done.exception, UserError), done.output
        assert len(str(done.exception).splitlines()) == 1
        return str(done.exception)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_the_table_fits_100_columns_whatever_is_in_it(place: Place) -> None:
    long = "fan \x1b[31m" + "very " * 60
    place.fleet.record([report(n, Status.FAIL, long) for n in NAMES[:20]], "sweep")
    place.fleet.record([report(n) for n in NAMES[20:]], "sweep")
    place.fleet.record([report("a" * 90, Status.WARN, long)], "sweep")
    place.fleet.exclude("n30", long, "a-person-with-a-long-name" * 3, app.clock(), None)
    place.fleet.exclude("n31", "noise", "kim", app.clock(), app.clock() + 3600)
    for words in ((), ("--all",), ("n1",), ("a" * 90,)):
        done = place.do(nodes, *words)
        assert done.exit_code == 0, done.exception
        assert all(len(line) <= 100 for line in done.output.splitlines()), done.output
        assert "\x1b" not in done.output
    told = place.do(nodes).output
    assert "healthy: 41 nodes, n[21-29,32-63]" in told
    assert "noise (by kim, until " in told


def test_colours_are_the_terminals_and_can_be_turned_off(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.fleet.record([report("n1", Status.FAIL)], "sweep")
    assert "\x1b[31m" in CliRunner().invoke(nodes, color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(nodes, color=True).output


def test_json_has_what_the_page_on_the_fleet_says(place: Place) -> None:
    place.fleet.record([report("n1", Status.FAIL)], "sweep")
    place.fleet.accept(report("n1", at=1_790_000_000.0))
    place.fleet.drained("n1", "superv: fs.local[/]: 97 % used", app.clock())
    place.do(exclude, "n1", "--reason=fan", "--for=2d")
    row = {"node", "state", "since", "why", "looked_at", "strikes", "excluded", "drained"}
    told = json.loads(place.do(nodes, "--json").output)
    assert told["schema"] == 1 and [set(n) for n in told["nodes"]] == [row]
    one = json.loads(place.do(nodes, "n1", "--json").output)
    more = {"schema", "accepted", "findings", "changes", "exclusions"}
    assert set(one) == row | more and one["accepted"] == 1_790_000_000.0
    assert set(one["excluded"]) == {"since", "until", "reason", "by"}
    assert set(one["drained"]) == {"since", "reason"}
    assert set(one["changes"][0]) == {"at", "origin", "finding", "was", "status", "seen"}
    assert set(one["exclusions"][0]) == {"since", "until", "reason", "by", "lifted"}
    assert {"check", "on", "status", "seen", "since", "at"} <= set(one["findings"][0])
    page = Path(__file__).parents[2].joinpath("docs/fleet.md").read_text()
    assert all(f"`{key}`" in page or f"{key}" in page for key in row | more)


def test_when_a_node_was_accepted_is_on_its_page(place: Place) -> None:
    place.fleet.record([report("n1")], "sweep")
    assert "accepted  never" in place.do(nodes, "n1").output
    place.fleet.accept(report("n1"))
    assert "accepted  never" not in place.do(nodes, "n1").output


def test_a_node_that_slurm_does_not_know_is_a_typo(place: Place) -> None:
    said = place.refused(exclude, "n1,n77,m3", "--reason=fan")
    assert said.startswith("n77: Slurm knows no such node (nor 1 more of these); did you mean n7")
    assert place.fleet.exclusions(app.clock()) == {}


@pytest.mark.parametrize(
    "body", ["echo 'Unable to contact slurm controller' >&2; exit 1", "exit 127"]
)
def test_where_slurm_does_not_say_the_exclusion_counts_and_a_note_is_told(
    place: Place, body: str
) -> None:
    place.slurm(body)
    done = place.do(exclude, "n77", "--reason=fan")
    assert done.exit_code == 0 and "note: whether there are such nodes is not known" in done.output
    assert list(place.fleet.exclusions(app.clock())) == ["n77"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n1", "--reason="], "say why"),
        (["n1", "--reason= \n\t"], "say why"),
        (["n1", "--reason=a\x1bb"], "say why"),
        (["n1", "--reason=" + "x" * 301], "301 characters"),
        (["n1", "--reason=x", "--for="], "no duration"),
        (["n1", "--reason=x", "--for=0d"], "expected 1m to 366d"),
        (["n1", "--reason=x", "--for=99999w"], "expected 1m to 366d"),
        (["n1", "--reason=x", "--for=-1d"], "no duration"),
        (["n1", "--reason=x", "--for=forever"], "write 90m"),
        (["", "--reason=x"], "no node is named"),
        (["n[1", "--reason=x"], "host list"),
        (["n1;reboot", "--reason=x"], "host list"),
    ],
)
def test_what_can_not_be_excluded(place: Place, words: list[str], said: str) -> None:
    assert said in place.refused(exclude, *words)
    assert place.fleet.exclusions(app.clock()) == {}


def test_a_reason_is_kept_on_one_line(place: Place) -> None:
    place.do(exclude, "n[1-2]", "--reason", " link 3\n  flaps ")
    assert {x.reason for x in place.fleet.exclusions(app.clock()).values()} == {"link 3 flaps"}


def test_a_node_is_included_once_it_has_passed_or_by_force(place: Place) -> None:
    place.do(exclude, "n[1-3]", "--reason=fan")
    assert "n[1-3]: not passed since" in place.refused(include, "n[1-3]")
    later = app.clock() + 1
    place.fleet.record([report("n1", at=later), report("n2", at=later, tags=("running",))], "sweep")
    assert "n[2-3]: not passed since" in place.refused(include, "n[1-3]")
    assert len(place.fleet.exclusions(app.clock())) == 3  # all or none
    assert place.do(include, "n1").output == "included n1\n"
    place.fleet.record([report("n2", Status.FAIL, at=later + 1)], "sweep")
    assert "not passed" in place.refused(include, "n2")
    assert place.do(include, "n[2-3]", "--force").exit_code == 0
    assert "n1: not excluded" in place.refused(include, "n1")


def test_a_node_that_left_the_cluster_is_forgotten(place: Place) -> None:
    place.fleet.record([report("n1", Status.FAIL), report("n2")], "sweep")
    place.fleet.exclude("n1", "gone", "ops", app.clock(), None)
    assert "n1 is no longer in the fleet record" in place.do(nodes, "n1", "--forget").output
    assert [n.name for n in place.fleet.nodes(app.clock())] == ["n2"]
    assert place.fleet.changes(0.0) == [] and place.fleet.looks("n1", 0.0) == []
    assert "needs the name" in place.refused(nodes, "--forget")
    assert "not in the fleet record" in place.refused(nodes, "n1", "--forget")
