"""`superv nodes`, `exclude` and `include`: what they print, refuse and keep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from healthchecks.frame.check import Result as Seen
from healthchecks.frame.check import Status
from healthchecks.frame.report import Finding, Report
from supervisor.cli.exclude import exclude
from supervisor.cli.include import include
from supervisor.cli.nodes import nodes
from supervisor.core.errors import UserError
from supervisor.engine.clock import clock
from supervisor.fleet.record import Fleet

NAMES = [f"n{i}" for i in range(1, 64)]


def report(node: str, status: Status = Status.OK, seen: str = "97 % used", **more: Any) -> Report:
    found = Finding(check="fs.local", on="/", result=Seen(status=status, seen=seen))
    values = {"at": clock(), "tags": ("preflight",), **more}
    return Report(node=node, findings=(found,), **values)


class SlurmSite:
    """A site with a Slurm of 63 nodes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        (path / "site.yaml").write_text(yaml.safe_dump({"state_dir": str(path / "state")}))
        monkeypatch.setenv("SUPERV_SITE", str(path / "site.yaml"))
        monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
        self.slurm("\n".join(f"echo '{name}|main*|idle|0/4/0/4|gpu:8|none'" for name in NAMES))
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
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmSite:
    return SlurmSite(tmp_path, monkeypatch)


def test_the_table_fits_100_columns_whatever_is_in_it(site: SlurmSite) -> None:
    long = "fan \x1b[31m" + "very " * 60
    site.fleet.record([report(n, Status.FAIL, long) for n in NAMES[:20]], "sweep")
    site.fleet.record([report(n) for n in NAMES[20:]], "sweep")
    site.fleet.record([report("a" * 90, Status.WARN, long)], "sweep")
    site.fleet.exclude("n30", long, "a-person-with-a-long-name" * 3, clock(), None)
    site.fleet.exclude("n31", "noise", "kim", clock(), clock() + 3600)
    for words in ((), ("--all",), ("n1",), ("a" * 90,)):
        done = site.do(nodes, *words)
        assert done.exit_code == 0, done.exception
        assert all(len(line) <= 100 for line in done.output.splitlines()), done.output
        assert "\x1b" not in done.output
    told = site.do(nodes).output
    assert "healthy: 41 nodes, n[21-29,32-63]" in told
    assert "noise (by kim, until " in told


def test_colours_are_the_terminals_and_can_be_turned_off(
    site: SlurmSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fleet.record([report("n1", Status.FAIL)], "sweep")
    assert "\x1b[31m" in CliRunner().invoke(nodes, color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in CliRunner().invoke(nodes, color=True).output


def test_json_has_what_the_page_on_the_fleet_says(site: SlurmSite) -> None:
    site.fleet.record([report("n1", Status.FAIL)], "sweep")
    site.fleet.accept(report("n1", at=1_790_000_000.0))
    site.fleet.drained("n1", "superv: fs.local[/]: 97 % used", clock())
    site.do(exclude, "n1", "--reason=fan", "--for=2d")
    row = {"node", "state", "since", "why", "looked_at", "strikes", "excluded", "drained"}
    told = json.loads(site.do(nodes, "--json").output)
    assert told["schema"] == 1 and [set(n) for n in told["nodes"]] == [row]
    one = json.loads(site.do(nodes, "n1", "--json").output)
    more = {"schema", "accepted", "findings", "changes", "exclusions", "claims"}
    more |= {"repairs", "out_of_use", "slurm_problem"}
    assert set(one) == row | more and one["accepted"] == 1_790_000_000.0
    assert set(one["excluded"]) == {"since", "until", "reason", "by"}
    assert set(one["drained"]) == {"since", "reason"}
    assert set(one["changes"][0]) == {"at", "origin", "finding", "was", "status", "seen"}
    assert set(one["exclusions"][0]) == {"since", "until", "reason", "by", "lifted"}
    assert {"check", "on", "status", "seen", "since", "at"} <= set(one["findings"][0])
    page = Path(__file__).parents[2].joinpath("docs/fleet.md").read_text()
    assert all(f"`{key}`" in page or f"{key}" in page for key in row | more)


def test_when_a_node_was_accepted_is_on_its_page(site: SlurmSite) -> None:
    site.fleet.record([report("n1")], "sweep")
    assert "accepted  never" in site.do(nodes, "n1").output
    site.fleet.accept(report("n1"))
    assert "accepted  never" not in site.do(nodes, "n1").output


def test_a_node_that_slurm_does_not_know_is_a_typo(site: SlurmSite) -> None:
    said = site.refused(exclude, "n1,n77,m3", "--reason=fan")
    assert said.startswith("n77: Slurm knows no such node (nor 1 more of these); did you mean n7")
    assert site.fleet.exclusions(clock()) == {}


@pytest.mark.parametrize(
    "body", ["echo 'Unable to contact slurm controller' >&2; exit 1", "exit 127"]
)
def test_where_slurm_does_not_say_the_exclusion_counts_and_a_note_is_told(
    site: SlurmSite, body: str
) -> None:
    site.slurm(body)
    done = site.do(exclude, "n77", "--reason=fan")
    assert done.exit_code == 0 and "note: whether there are such nodes is not known" in done.output
    assert list(site.fleet.exclusions(clock())) == ["n77"]


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
def test_what_can_not_be_excluded(site: SlurmSite, words: list[str], said: str) -> None:
    assert said in site.refused(exclude, *words)
    assert site.fleet.exclusions(clock()) == {}


def test_a_reason_is_kept_on_one_line(site: SlurmSite) -> None:
    site.do(exclude, "n[1-2]", "--reason", " link 3\n  flaps ")
    assert {x.reason for x in site.fleet.exclusions(clock()).values()} == {"link 3 flaps"}


def test_a_node_is_included_once_it_has_passed_or_by_force(site: SlurmSite) -> None:
    site.do(exclude, "n[1-3]", "--reason=fan")
    refused = site.do(include, "n[1-3]")
    assert refused.exit_code == 1 and len(site.fleet.exclusions(clock())) == 3
    said = " ".join(refused.output.split())
    assert (
        "n2 stays out: excluded by " in said and "fan; no preflight passed since: superv " in said
    )
    later = clock() + 1
    site.fleet.record([report("n1", at=later), report("n2", at=later, tags=("running",))], "sweep")
    some = site.do(include, "n[1-3]", "--json")
    assert some.exit_code == 1 and [*site.fleet.exclusions(clock())] == ["n2", "n3"]
    rows = json.loads(some.stdout)["nodes"]
    assert [(bool(r["lifted"]), len(r["kept_out_by"])) for r in rows] == [
        (True, 0),
        (False, 1),
        (False, 1),
    ]
    site.fleet.record([report("n2", Status.FAIL, at=later + 1)], "sweep")
    failing = site.do(include, "n2")
    assert failing.exit_code == 1 and "its newest look found fs.local" in failing.stderr
    done = site.do(include, "n[2-3]", "--force")
    assert done.exit_code == 0 and "included n2: it was excluded by " in done.stdout
    assert "n1: not excluded" in site.refused(include, "n1")


def drained(node: str, reason: str, state: str = "drained") -> str:
    return f"echo '{node}|main*|{state}|0/4/0/4|gpu:8|{reason}'"


def scontrol(site: SlurmSite, body: str) -> Path:
    told = site.path / "told"
    (site.path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {told}\n{body}\n')
    (site.path / "scontrol").chmod(0o755)
    return told


def test_include_lifts_drains_of_superv_and_names_those_of_people(site: SlurmSite) -> None:
    told = scontrol(site, "exit 0")
    ours, theirs = "superv: gpu.handle: gpu3 lost", "fan, eve"
    site.slurm(
        "\n".join([drained("n1", ours), drained("n2", theirs), drained("n3", theirs, "idle")])
    )
    site.fleet.drained("n1", ours, clock() - 60)
    site.fleet.drained("n2", ours, clock() - 60)  # somebody has changed its reason since
    first = site.do(include, "n[1-3]")
    said = " ".join(first.stdout.split())
    assert first.exit_code == 1 and not told.exists()
    assert "n1 stays out: drained by superv in Slurm" in said
    assert "superv preflight n1, then superv include n1" in said
    command = "scontrol update nodename=n2 state=resume"
    assert f"n2 stays out: drained in Slurm (fan, eve), not by superv: {command}" in said
    assert "n3: nothing keeps it out" in said
    site.fleet.record([report("n1", at=clock() + 1)], "sweep")
    done = site.do(include, "n1")
    assert done.exit_code == 0 and "included n1: it was drained by superv" in done.stdout
    assert told.read_text() == "update NodeName=n1 State=RESUME\n"
    assert "n1" not in site.fleet.drains()


def test_a_drain_that_may_not_be_lifted_is_said_with_the_command(site: SlurmSite) -> None:
    scontrol(site, "echo 'slurm_update error: Invalid user id' >&2; exit 1")
    site.slurm(drained("n1", "superv: xid: gpu3"))
    site.fleet.drained("n1", "superv: xid: gpu3", clock() - 60)
    done = site.do(include, "n1", "--force")
    said = " ".join(done.stdout.split())
    assert done.exit_code == 1 and "Invalid user id; with the rights: scontrol update" in said
    assert "n1" in site.fleet.drains()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("down*", "out of service in Slurm: down* (fan); scontrol show node n1"),
        ("n9", "Slurm knows no such node"),
    ],
)
def test_what_slurm_keeps_out_otherwise_is_said(site: SlurmSite, state: str, says: str) -> None:
    site.slurm(":" if state == "n9" else drained("n1", "fan", state))
    done = site.do(include, "n1")
    assert done.exit_code == 1 and says in " ".join(done.stdout.split())


def test_without_slurm_the_rest_is_done_and_that_is_said(site: SlurmSite) -> None:
    site.do(exclude, "n1", "--reason=fan")
    site.slurm("echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1")
    done = site.do(include, "n1", "--force")
    assert done.exit_code == 0 and "included n1" in done.stdout
    assert "whether they are drained in Slurm is not known" in done.stderr


def test_a_node_that_left_the_cluster_is_forgotten(site: SlurmSite) -> None:
    site.fleet.record([report("n1", Status.FAIL), report("n2")], "sweep")
    site.fleet.exclude("n1", "gone", "ops", clock(), None)
    assert "n1 is no longer in the fleet record" in site.do(nodes, "n1", "--forget").output
    assert [n.name for n in site.fleet.nodes(clock())] == ["n2"]
    assert site.fleet.changes(0.0) == [] and site.fleet.report_history("n1", 0.0) == []
    assert "needs the name" in site.refused(nodes, "--forget")
    assert "not in the fleet record" in site.refused(nodes, "n1", "--forget")


def test_a_repair_is_told_of_all_or_of_some_checks(site: SlurmSite) -> None:
    site.fleet.record([report("n1", Status.FAIL), report("n2")], "sweep")
    site.do(nodes, "n[1-2]", "--repaired", "boards\n swapped")
    said = site.do(nodes, "n1", "--repaired=cable 3", "--check=ib", "--check=xid").output
    assert said == "repaired n1 (ib, xid): cable 3; superv accept n1 looks at it\n"
    newest = site.fleet.repairs.newest()
    assert [sorted(newest[node]) for node in ("n1", "n2")] == [["", "ib", "xid"], [""]]
    page = site.do(nodes, "n1").output
    assert "(ib, xid): cable 3" in page and "boards swapped" in page
    told = json.loads(site.do(nodes, "n1", "--json").output)["repairs"]
    assert [r["checks"] for r in told] == [["ib", "xid"], []]
    site.do(nodes, "n1", "--forget")
    assert site.fleet.repairs.newest().keys() == {"n2"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repaired=fan"], "--repaired needs the names of nodes"),
        (["n1", "--repaired="], "--repaired: say why"),
        (["n9", "--repaired=fan"], "n9: not in the fleet record"),
        (["n1", "--repaired=fan", "--check=xidd"], "xidd"),
        (["n1", "--check=xid"], "--check goes with --repaired"),
    ],
)
def test_what_can_not_be_repaired(site: SlurmSite, words: list[str], said: str) -> None:
    site.fleet.record([report("n1")], "sweep")
    assert said in site.refused(nodes, *words)
    assert site.fleet.repairs.newest() == {}


def test_a_node_that_is_down_in_slurm_is_named_whatever_its_checks_said(site: SlurmSite) -> None:
    site.fleet.record([report(n, Status.OK) for n in NAMES[:4]], "sweep")
    site.fleet.record([report("n4", Status.WARN)], "sweep")
    down = "\n".join(
        f"echo '{n}|main*|{'down*' if n in ('n3', 'n4', 'n9') else 'idle'}|0/4/0/4|gpu:8|"
        f"{'Not responding' if n in ('n3', 'n4', 'n9') else 'none'}'"
        for n in NAMES
    )
    site.slurm(f'case "$*" in *%H*) echo "n3|2026-11-27T08:10:00"; exit ;; esac\n{down}')
    told = site.do(nodes).output
    assert re.search(r"(?m)^n3 +down\* +\S+ \S+ +Slurm: Not responding$", told), told
    assert re.search(r"(?m)^n4 +down\* +Slurm: Not responding$", told), told
    assert re.search(r"(?m)^n4 +degraded ", told), "what its checks say stands beside it"
    assert "healthy: 2 nodes, n[1-2]" in told
    rows = json.loads(site.do(nodes, "--json").output)["out_of_use"]
    assert [(row["node"], row["state"]) for row in rows] == [("n3", "down*"), ("n4", "down*")]
    page = " ".join(site.do(nodes, "n3").output.split())
    assert page.startswith("n3: out of use; its checks: healthy since")
    assert " out Slurm: down* since" in page
    site.slurm("echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1")
    done = site.do(nodes, "--json")
    assert "Slurm does not answer" in json.loads(done.stdout)["slurm_problem"]
    assert "note: which nodes are down in Slurm is not known" in done.stderr


def test_a_brake_that_holds_is_shown(site: SlurmSite) -> None:
    for name in NAMES:
        site.fleet.record([report(name)], "sweep")
    for name in ("n1", "n2", "n3"):
        site.fleet.drained(name, "superv: gpu.count: 7 of 8 GPUs", clock())
    assert "brake" not in site.do(nodes).output  # drain is off
    told = {"state_dir": str(site.path / "state"), "drain": "on"}
    (site.path / "site.yaml").write_text(yaml.safe_dump(told))
    shown = " ".join(site.do(nodes).output.split())
    assert "the drain brake holds: superv has drained 3 of these 63 nodes, 3 may be" in shown
    site.fleet.undrained("n2", clock())
    assert "brake" not in site.do(nodes).output
