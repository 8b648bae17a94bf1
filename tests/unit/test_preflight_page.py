"""What `superv preflight` prints, and the pinned profile's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from healthchecks.many import golden
from healthchecks.many.cohort import ComparedReports, judge
from healthchecks.many.remote import ANSWERS, NodeAnswer
from healthchecks.many.slurm_nodes import Transport
from supervisor.cli.preflight import document, exit_code, page, verdict
from supervisor.core.errors import UserError
from supervisor.host import terminal


def answer(
    node: str, status: Status, seen: str = "as it should be", shared: str = ""
) -> NodeAnswer:
    result = Result(status=status, seen=seen, fix="do this", expected="that", shared=shared)
    report = Report(
        node=node,
        at=0.0,
        findings=(
            Finding(check=ANSWERS, result=Result(status=Status.OK, seen="it answered")),
            Finding(check="nfs.alive", on="/data", result=result),
        ),
    )
    return NodeAnswer(node=node, transport=Transport.SRUN, state="idle", report=report)


def judged(*given: NodeAnswer) -> tuple[dict[str, NodeAnswer], ComparedReports]:
    answers = {a.node: a for a in given}
    return answers, judge({n: a.report for n, a in answers.items() if a.report is not None}, {})


def plain(answers: dict[str, NodeAnswer], found: ComparedReports, *notes: str) -> list[str]:
    """The page without colours."""
    return terminal.rendered(page(answers, found, notes, 4.21), colour=False).splitlines()


def test_the_verdict_comes_first_and_nothing_is_too_wide() -> None:
    dead = "stale file handle " * 12
    answers, found = judged(
        *(answer(f"n{i}", Status.FAIL, dead, "nfs server 10.0.0.5") for i in range(1, 61)),
        answer("n61", Status.OK),
        answer("n62", Status.UNKNOWN, "NVML \x1b[31mhangs"),
        NodeAnswer(
            node="n63", transport=Transport.NONE, state="allocated", why="busy: job 7 of bob"
        ),
    )
    lines = plain(answers, found, "pinned to x")
    first = "60 failed: n[1-60]; 1 of 63 nodes can be used; 1 unknown: n62; 1 left alone"
    assert lines[0] == f"FAIL    {first}"
    assert verdict(answers, found) == first
    assert max(map(len, lines)) <= terminal.WIDTH
    text = "\n".join(lines)
    assert "FAIL    nfs server 10.0.0.5: 60 of 62 nodes, n[1-60] (nfs.alive)" in text
    assert "UNKNOWN n62 nfs.alive[/data]\n        NVML ·[31mhangs" in text
    assert lines[-4:] == [
        "passed      1 node: n61",
        "left alone  n63: busy: job 7 of bob",
        "note        pinned to x",
        "took 4.2 s",
    ]


@pytest.mark.parametrize(
    ("statuses", "code", "first"),
    [
        ([Status.OK, Status.SKIP], 0, "OK      2 of 2 nodes can be used"),
        ([Status.OK, Status.WARN], 0, "WARN    2 of 2 nodes can be used, 1 of them with warnings"),
        ([Status.UNKNOWN, Status.WARN], 3, "UNKNOWN 1 of 2 nodes can be used, 1 of them with "),
        ([Status.FAIL, Status.UNKNOWN], 1, "FAIL    1 failed: n0; 0 of 2 nodes can be used; 1 un"),
        ([], 3, "UNKNOWN 0 of 0 nodes can be used"),
    ],
)
def test_exit_codes(statuses: list[Status], code: int, first: str) -> None:
    answers, found = judged(*(answer(f"n{i}", status) for i, status in enumerate(statuses)))
    assert exit_code(found) == code
    assert plain(answers, found)[0].startswith(first)


def test_the_document() -> None:
    answers, found = judged(
        answer("n1", Status.FAIL, "gone"),
        NodeAnswer(node="n2", transport=Transport.NONE, why="busy"),
    )
    told = document(answers, found, ["a note"], 1.0)
    assert (told["schema"], told["status"], told["notes"]) == (1, "FAIL", ["a note"])
    assert told["nodes"]["n2"] == {"way": "none", "slurm": "", "why": "busy", "report": None}
    assert told["nodes"]["n1"]["report"]["node"] == "n1"
    (cause,) = told["causes"]
    assert (cause["check"], cause["nodes"], cause["of"]) == ("nfs.alive[/data]", ["n1"], 1)
    assert cause["seen"] == [{"text": "gone", "nodes": ["n1"]}]


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile = {
        "versions": {"driver": "580.10", "cuda": "13.0"},
        "fs.local[/]": {"type": "no", "odd: 'name'": "[x]"},
    }
    (tmp_path / "golden.yaml").write_text(golden.text(profile))
    assert golden.load(tmp_path / "golden.yaml") == profile


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("versoins: {driver: '1'}", "versoins"),
        ("gpu: {driver: '1'}", "is a group"),
        ("versions: 580", "expected a mapping"),
        ("- versions", "expected a mapping"),
    ],
)
def test_what_is_no_profile(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "golden.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        golden.load(tmp_path / "golden.yaml")
