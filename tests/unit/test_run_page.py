"""The run's part of the report: plots, attempts, what was said, and runbooks inside the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.core.types import Cause
from supervisor.fleet.out_of_use import SlurmWord
from supervisor.fleet.record import Fleet
from supervisor.report.data import gather
from supervisor.report.document import document
from supervisor.report.html import SHOWN_WARNINGS, html
from supervisor.report.markdown import markdown
from supervisor.report.model import CurvePoint, Page
from supervisor.report.run_chart import BAR, bars, plots
from supervisor.report.run_history import CURVE_POINTS, attempts_of, curve_of
from supervisor.report.runbooks import as_html, runbook
from supervisor.report.text import text

REPO = Path(__file__).resolve().parents[2]
SAMPLES = REPO / "tests/data/journals"
STATUS: dict[str, Any] = json.loads((SAMPLES / "ring-status.json").read_text()) | {"engine": True}


def page(tmp_path: Path, **changes: Any) -> Page:
    curve = curve_of(SAMPLES / "ring.jsonl")
    with Fleet(tmp_path / "fleet.db") as fleet:
        return gather(fleet, STATUS["now"], 0.0, STATUS | changes, 2, curve=curve)


def test_every_attempt_is_told_from_its_start_to_what_ended_it(tmp_path: Path) -> None:
    told = page(tmp_path)
    assert told.run is not None
    newest, *_, first = told.run.attempts
    numbers = [one.number for one in told.run.attempts]
    assert numbers == sorted(set(numbers), reverse=True) and first.number == 1
    assert first.cause == STATUS["incidents"][0]["cause"] and first.said
    assert newest.cause == "" and newest.ended is not None
    made = bars(told.run, told.at)
    assert made and all(0 <= b.start < b.end <= BAR for b in made)
    assert "curve" not in document(told)["run"] and document(told)["run"]["attempts"]


def test_steps_and_losses_are_drawn(tmp_path: Path) -> None:
    told = page(tmp_path)
    assert told.run is not None
    steps, losses = plots(told.run)
    assert (steps.title, losses.title) == ("step", "loss")
    shown = html(told)
    assert shown.count('class="curve"') == 2 and "Attempts, the newest first" in shown
    assert not re.search(r'(?:href|src)="(?!#|data:)', shown)


def test_a_curve_is_thin_and_keeps_its_end(tmp_path: Path) -> None:
    line = (SAMPLES / "ring.jsonl").read_text()
    assert curve_of(SAMPLES / "ring.jsonl") and line
    assert curve_of(tmp_path / "none.jsonl") == ()
    (tmp_path / "broken.jsonl").write_text(line.replace('"epoch"', '"epoc"'))
    assert curve_of(tmp_path / "broken.jsonl") == ()
    assert len(curve_of(SAMPLES / "ring.jsonl")) <= CURVE_POINTS + 1


def test_a_run_without_steps_or_attempts_has_neither(tmp_path: Path) -> None:
    assert attempts_of({"incidents": [], "attempt": None, "launched": None}) == ()
    with Fleet(tmp_path / "f.db") as fleet:
        told = gather(fleet, STATUS["now"], 0.0, STATUS | {"incidents": []}, 2)
    assert told.run is not None and plots(told.run) == ()
    assert html(told)


def test_a_cause_is_one_click_from_its_runbook(tmp_path: Path) -> None:
    incident = STATUS["incidents"][0] | {"cause": "rank-exit"}
    shown = html(page(tmp_path, incidents=[incident], attempt=2))
    (inside,) = re.findall(r'<details class="runbook">(.*?)</details>', shown, re.S)
    title = (REPO / "docs/runbooks/rank-exit.md").read_text().splitlines()[0].lstrip("# ")
    assert f"<h4>{title.replace(chr(39), '&#39;')}</h4>" in inside


@pytest.mark.parametrize("cause", Cause)
def test_every_runbook_travels_with_superv(cause: Cause) -> None:
    text = runbook(cause)
    assert text == (REPO / f"docs/runbooks/{cause}.md").read_text()
    shown = re.sub(r"<[^>]*>", "", as_html(text))
    assert "**" not in shown and "](" not in shown


def test_nothing_in_a_runbook_or_a_journal_is_taken_for_markup(tmp_path: Path) -> None:
    assert runbook("../rank-exit") == runbook("<b>") == ""
    assert "<script>" not in as_html("# a <script>\n\n- `<script>`\n\n    <script>")
    bad = STATUS["incidents"][0] | {"cause": "<script>", "why": "<script>", "remedy": "<script>"}
    bad["evidence"] = [{"node": "<script>", "at": 1.0, "source": "x", "text": "<script>"}]
    assert "<script>" not in html(page(tmp_path, incidents=[bad], attempt=2))


def test_the_cluster_is_named_where_slurm_says_its_name(tmp_path: Path) -> None:
    with Fleet(tmp_path / "f.db") as fleet:
        told = gather(fleet, STATUS["now"], 0.0, slurm=SlurmWord(cluster="b200-\x1beast"))
        unnamed = gather(fleet, STATUS["now"], 0.0)
    for shown in (html(told), markdown(told), text(told, colour=False)):
        assert "b200-" in shown and "\x1b" not in shown
    assert "superv report of 1" in text(unnamed, colour=False)


def test_a_flat_curve_is_drawn(tmp_path: Path) -> None:
    curve = tuple(CurvePoint(at=float(at), step=7, loss=0.0) for at in range(3))
    with Fleet(tmp_path / "f.db") as fleet:
        told = gather(fleet, STATUS["now"], 0.0, STATUS, 2, curve=curve)
    assert told.run is not None and len(plots(told.run)) == 2
    assert "nan" not in html(told).lower().replace("dominant", "")


def test_many_warnings_are_folded_and_nothing_green_stands_for_a_node_that_is_off(
    tmp_path: Path,
) -> None:
    def finding(check: str, status: Status) -> Finding:
        return Finding(check=check, result=Result(status=status, seen=f"seen by {check}"))

    fine = [finding("fs.local", Status.OK)]
    warns = [finding(f"own.check{n}", Status.WARN) for n in range(SHOWN_WARNINGS + 1)]
    with Fleet(tmp_path / "f.db") as fleet:
        fleet.record([Report(node="n1", at=1000.0, findings=fine)], "sweep")
        off = [finding("node.answers", Status.FAIL)]
        fleet.record([Report(node="n1", at=2000.0, findings=off)], "sweep")
        told = gather(fleet, 2001.0, 0.0)
        (row,) = told.rows
        assert [cell.stale for cell in row.cells.values() if cell.status is Status.OK] == [True]
        assert "warnings, and nodes" not in html(told)
        fleet.record([Report(node="n2", at=2000.0, findings=warns)], "sweep")
        shown = html(gather(fleet, 2001.0, 0.0))
    before, _, folded = shown.partition('<details class="warnings">')
    assert "5 more findings: warnings" in folded and "node.answers" in before
    assert folded.count('class="finding WARN"') == len(warns)
    assert 'class="finding WARN"' not in before
