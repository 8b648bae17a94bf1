"""Users' claims: what root may read of them, whose they are, and what comes of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from strangers import NOBODY, SETPRIV, meeting_place, needs_root

from launchers.slurm import Slurm
from supervisor.cli.exclude import exclude
from supervisor.cli.include import include
from supervisor.cli.nodes import nodes
from supervisor.cli.report import report
from supervisor.config import load_site
from supervisor.core.types import Exclusion
from supervisor.engine.clock import clock
from supervisor.engine.fleet_recorder import FleetRecorder, operator_exclusions
from supervisor.fleet import claims
from supervisor.fleet.apply_drains import apply_drains
from supervisor.fleet.claims import Claim
from supervisor.fleet.record import Fleet

assert meeting_place  # a fixture
T = 1_790_000_000.0
ME = claims.user()


def claim(node: str = "n1", **more: Any) -> Claim:
    given = {"since": T, "until": None, "reason": "flaps"}
    return Claim(node=node, **given | more)


def row(**more: Any) -> dict[str, Any]:
    return {"node": "n1", "run": "", "since": T, "until": None, "reason": "flaps"} | more


def document(*rows: Any, schema: Any = 1) -> str:
    return json.dumps({"schema": schema, "claims": list(rows)})


def test_a_claim_is_told_to_all_and_taken_back(tmp_path: Path) -> None:
    claims.put(tmp_path, [claim("n1"), claim("n2", until=T + 60), claim("n1", run="moe")])
    claims.put(tmp_path, [claim("n1", reason="still flaps")])
    found, notes = claims.told(tmp_path, T + 30)
    assert {(c.node, c.by, c.reason) for c in found} == {
        ("n1", ME, "still flaps"),
        ("n1", f"{ME}, run moe", "flaps"),
        ("n2", ME, "flaps"),
    }
    assert notes == [] and {c.node for c in claims.told(tmp_path, T + 61)[0]} == {"n1"}
    claims.take_back(tmp_path, ["n1"])
    assert [c.node for c in claims.mine(tmp_path, T)] == ["n2"]
    assert (tmp_path / f"{ME}.json").stat().st_mode & 0o777 == 0o644


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text(document(row()))
    path.symlink_to(path.parent / "elsewhere")


def a_second_name(path: Path) -> None:
    (path.parent / "elsewhere").write_text(document(row()))
    path.hardlink_to(path.parent / "elsewhere")


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link": a_link,
    "a second name of a file": a_second_name,
    "a pipe that nobody writes to": os.mkfifo,
    "a folder": Path.mkdir,
    "too large": lambda path: path.write_text(" " * (1 << 18) + document(row())),
    "too many": lambda path: path.write_text(document(*[row()] * 1001)),
    "nested without end": lambda path: path.write_text("[" * 100_000),
    "no JSON": lambda path: path.write_text("n1"),
    "no mapping": lambda path: path.write_text("[1]"),
    "of another schema": lambda path: path.write_text(document(row(), schema=2)),
    "a claim that is none": lambda path: path.write_text(document(7)),
    "without a time": lambda path: path.write_text(document(row(since=None))),
    "at no time": lambda path: path.write_text(document(row(since=float("inf")))),
    "of many nodes": lambda path: path.write_text(document(row(node="n[1-9]"))),
    "no text": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_file_of_claims_is_left_out_and_said(tmp_path: Path, what: str) -> None:
    HOSTILE[what](tmp_path / f"{ME}.json")
    found, notes = claims.told(tmp_path, T)
    assert found == [] and len(notes) == 1 and f"{tmp_path}/{ME}.json: left out: " in notes[0]


def test_a_file_of_another_name_counts_for_nobody(tmp_path: Path) -> None:
    (tmp_path / "root-or-kim.json").write_text(document(row()))
    found, notes = claims.told(tmp_path, T)
    assert found == [] and f"it is {ME}'s, whose claims are in {ME}.json" in notes[0]


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    assert claims.told(tmp_path / "gone", T)[0] == []
    assert "can't be read" in claims.told(tmp_path / "gone", T)[1][0]
    with pytest.raises(Exception, match="install -d -m 1777"):
        claims.put(tmp_path / "gone", [claim()])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "claims").mkdir()
    told = {"state_dir": str(tmp_path / "state"), "claims_dir": str(tmp_path / "claims")}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(told))
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'n1|main*|idle|0/4/0/4|gpu:8|none'\n")
    (tmp_path / "sinfo").chmod(0o755)
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("SUPERV_SITE", str(tmp_path / "site.yaml"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    Fleet(tmp_path / "state/fleet.db").close()
    return tmp_path


def shown(*words: str) -> Any:
    done = CliRunner().invoke(nodes, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_whom_a_run_excludes_everybody_sees_with_its_name(site: Path) -> None:
    since = clock()
    out = Exclusion(node="n1", reason="node-lost: silence", since=since, attempt=1)
    run: Any = SimpleNamespace(excluded={"n1": out})
    recorder = FleetRecorder(site / "state/other.db", "moe", clock, site / "claims")
    recorder.close(run)
    recorder._thread.shutdown(wait=True)
    (one,) = shown()["claims"]
    assert (one["node"], one["by"], one["run"]) == ("n1", ME, "moe")
    page = CliRunner().invoke(nodes, []).output
    assert f"n1 {ME}, run moe since" in page and "superv drains nobody for it" in page
    assert operator_exclusions(site / "state/fleet.db", clock(), site / "claims") == {}


def test_the_report_names_who_keeps_a_node_out_and_says_what_it_can_not_read(site: Path) -> None:
    claims.put(site / "claims", [claim(since=clock(), run="moe", reason="node-lost: silence")])
    (site / "claims/odd.json").write_text("{}")
    done = CliRunner().invoke(report, [])
    assert done.exit_code == 0, done.output
    assert f"n1: {ME}, run moe, since" in done.stdout and "node-lost: silence" in done.stdout
    assert "odd.json: left out" in done.stderr
    assert CliRunner().invoke(exclude, ["n1", "--reason", "fan"]).exit_code == 0
    told = json.loads(CliRunner().invoke(report, ["--format", "json"]).stdout)
    assert [c["run"] for c in told["claims"]] == ["moe"]  # what the record has is there once
    assert told["exclusions"][0]["by"] == ME


def test_nobody_is_drained_for_a_claim(site: Path) -> None:
    claims.put(site / "claims", [claim(since=clock())])
    told = {**yaml.safe_load((site / "site.yaml").read_text()), "drain": {"mode": "on"}}
    (site / "site.yaml").write_text(yaml.safe_dump(told))
    with Fleet(site / "state/fleet.db") as fleet:
        slurm, loaded = Slurm(deadline_s=30.0), load_site(os.environ)
        assert asyncio.run(apply_drains(fleet, slurm, loaded, {}, clock, count=True)) == []
    assert not (site / "told").exists() and shown()["nodes"] == []


def test_an_exclusion_is_in_the_record_and_shown_once(site: Path) -> None:
    assert CliRunner().invoke(exclude, ["n1", "--reason", "fan"]).exit_code == 0
    assert shown()["nodes"][0]["state"] == "excluded" and shown()["claims"] == []
    assert CliRunner().invoke(include, ["n1", "--force"]).exit_code == 0
    assert claims.mine(site / "claims", clock()) == []


@needs_root
def test_where_the_record_is_roots_a_user_claims_and_his_runs_heed_it(meeting_place: Path) -> None:
    (meeting_place / "claims").mkdir()
    (meeting_place / "claims").chmod(0o1777)
    (meeting_place / "deep").mkdir()
    record = meeting_place / "deep/fleet.db"
    Fleet(record).close()
    record.chmod(0o644)
    told = {"fleet_file": str(record), "claims_dir": str(meeting_place / "claims")}
    (meeting_place / "site.yaml").write_text(yaml.safe_dump(told))
    env = {"SUPERV_SITE": str(meeting_place / "site.yaml"), "PATH": "/usr/bin:/bin", "HOME": "/"}

    def as_user(*words: str) -> tuple[int, str]:
        argv = [*SETPRIV, sys.executable, "-m", "supervisor.cli", *words]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    code, err = as_user("exclude", "n1", "--reason", "flaps")
    assert code == 0 and "your own runs heed" in err and "it is root's, mode 0644" in err
    found, notes = claims.told(meeting_place / "claims", clock())
    assert [(c.node, c.who) for c in found] == [("n1", "nobody")] and notes == []
    heeded = "from pathlib import Path; from supervisor.engine.fleet_recorder import *\n"
    heeded += (
        f"p = Path({str(meeting_place)!r}); print(operator_exclusions(p / 'x', 0, p / 'claims'))"
    )
    done = subprocess.run(
        [*SETPRIV, sys.executable, "-c", heeded], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "{'n1': 'flaps'}\n", done.stderr
    assert operator_exclusions(meeting_place / "x", clock(), meeting_place / "claims") == {}
    assert as_user("include", "n1", "--force")[0] == 0
    assert claims.told(meeting_place / "claims", clock())[0] == []
    assert os.stat(meeting_place / "claims/nobody.json").st_uid == NOBODY
