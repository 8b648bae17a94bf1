"""Nodes that Slurm or a run has out of use: in what the report and `superv nodes` say of them."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.check_status import Status
from supervisor.core.status import status
from supervisor.core.types import Phase
from supervisor.fleet import out_of_use
from supervisor.fleet.out_of_use import OutOfUse, SlurmWord, by_node, known, of_runs
from supervisor.fleet.record import DAY_S, Fleet
from supervisor.report.data import gather
from supervisor.report.document import document
from supervisor.report.html import html
from supervisor.report.markdown import markdown
from supervisor.report.model import Page
from supervisor.report.text import text
from tests.hardware.weeks import HOUR_S, NOW, node_name, report
from tests.unit.scenario import Scenario

N = [node_name(i) for i in range(1, 5)]


def down(node: str, state: str = "down*", **more: Any) -> OutOfUse:
    told = {"since": NOW - HOUR_S, "why": "Not responding", **more}
    return OutOfUse(node=node, by="Slurm", state=state, **told)


def run_that_lost(node: str, **changes: Any) -> dict[str, Any]:
    """The document of a run that trains again without a node that it lost."""
    p = Scenario().to(Phase.RUNNING)
    lost = "n1"
    p.lose(lost)
    p.recover_to_first_step()
    told = status(p.run, p.now)
    assert [row["node"] for row in told["excluded"]] == [lost]
    assert [row["node"] for row in told["unusable"]] == [lost]
    for row in (*told["excluded"], *told["unusable"]):
        row["node"] = node
    return {**told, **changes}


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet.db") as made:
        made.record([report(i, NOW) for i in range(1, 5)], "preflight")
        yield made


def shown(page: Page) -> Iterator[str]:
    whole = unescape(html(page))
    for one in (text(page, colour=False), whole, markdown(page).replace("\\", "")):
        yield " ".join(one.split())


SAID: dict[str, tuple[dict[str, Any], Status, set[str]]] = {
    "a run": ({"runs": [run_that_lost(N[2])]}, Status.WARN, {"run moe"}),
    "Slurm": ({"slurm": SlurmWord(nodes=(down(N[2]), down("cpu7")))}, Status.FAIL, {"Slurm"}),
    "both": (
        {"runs": [run_that_lost(N[2])], "slurm": SlurmWord(nodes=(down(N[2]),))},
        Status.FAIL,
        {"run moe", "Slurm"},
    ),
}


@pytest.mark.parametrize("who", SAID)
def test_a_node_that_slurm_or_a_run_has_out_of_use_is_named_and_not_usable(
    four: Fleet, who: str
) -> None:
    said, verdict, by = SAID[who]
    page = gather(four, NOW + 60, NOW - DAY_S, **said)
    told = page.verdict
    assert (told.status, told.out, told.usable, told.nodes) == (verdict, (N[2],), 3, 4)
    assert told.text.startswith("3 of 4 nodes can be used")
    assert N[2] not in page.healthy and [row.state for row in page.rows] == ["out"]
    (item,) = page.action_items
    assert item.who == N[2] and f"superv include {N[2]}" in item.do
    rows = document(page)["out_of_use"]
    assert {row["by"] for row in rows} == by
    assert all(row["nodes"] == (N[2],) and row["since"] and row["why"] for row in rows)
    for form in shown(page):
        assert "cpu7" not in form, "nobody looks at it"
        for row in rows:
            assert f"{row['by']}: {row['state']} since" in form and row["why"] in form


@pytest.mark.parametrize("who", SAID)
@pytest.mark.parametrize(("need", "answer"), [(3, "yes"), (4, "no")])
def test_whether_another_run_can_go_on_does_not_count_them(
    four: Fleet, who: str, need: int, answer: str
) -> None:
    other = status(Scenario().run, NOW) | {"name": "b", "phase": "stopped", "engine": False}
    page = gather(four, NOW + 60, NOW - DAY_S, other, need, **SAID[who][0])
    assert page.verdict.can_run == answer


def test_what_a_person_drained_is_named_and_no_action(four: Fleet) -> None:
    one = down(N[1], "drained", why="new fan", drained=True)
    page = gather(four, NOW + 60, NOW - DAY_S, slurm=SlurmWord(nodes=(one,)))
    assert (page.verdict.usable, page.verdict.out, page.action_items) == (3, (N[1],), ())
    assert "Slurm: drained since" in text(page, colour=False)


def test_where_slurm_does_not_answer_the_page_says_so(four: Fleet) -> None:
    mute = SlurmWord(problem="sinfo: no answer within 5 s", fix="`scontrol ping`")
    page = gather(four, NOW + 60, NOW - DAY_S, slurm=mute)
    assert (page.verdict.status, document(page)["slurm_problem"]) == (Status.UNKNOWN, mute.problem)
    for form in shown(page):
        assert "is not known: sinfo: no answer within 5 s" in form.replace("`", "")


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        ({}, ["excluded"]),
        ({"excluded": []}, ["lost"]),
        ({"phase": "held"}, ["excluded"]),
        ({"phase": "held", "excluded": []}, []),  # its job is over: so is what it saw of its nodes
        ({"phase": "held", "replaced": True}, []),
        ({"phase": "stopped"}, []),
        ({"phase": "done"}, []),
        ({"phase": None}, []),  # it can't be read
    ],
)
def test_only_runs_that_live_or_are_held_have_a_say(
    changes: dict[str, Any], states: list[str]
) -> None:
    assert [word.state for word in of_runs([run_that_lost("n3", **changes)])] == states


def test_slurms_word_of_a_node_that_only_a_run_knows_is_told() -> None:
    words = [*of_runs([run_that_lost("n3")]), down("n3"), down("n9")]
    assert [(word.node, word.by) for word in known(words, ["n1"])] == [
        ("n3", "run moe"),
        ("n3", "Slurm"),
    ]


def test_slurms_word_comes_first() -> None:
    words = [*of_runs([run_that_lost("n3")]), down("n3")]
    assert [word.by for word in by_node(words)["n3"]] == ["Slurm", "run moe"]


SINFO = """#!/bin/sh
case "$*" in
*%H*) echo 'n3|2026-11-27T08:10:00'; echo 'n4|Unknown' ;;
*StateComplete*) echo 'n5 IDLE+DRAIN' ;;
*) echo 'n1|main*|idle|0/4/0/4|gpu:8|none'
   echo 'n3|main*|down*|0/4/0/4|gpu:8|Not responding'
   echo 'n4|main*|down*|0/4/0/4|gpu:8|none'
   echo 'n5|main*|drained|0/0/4/4|gpu:8|new fan' ;;
esac
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    for name, body in (
        ("sinfo", SINFO),
        ("scontrol", "#!/bin/sh\necho 'ClusterName             = east'\n"),
    ):
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_slurm_says_who_is_out_since_when_and_why(commands: Path) -> None:
    told = out_of_use.asked()
    assert (told.cluster, told.problem) == ("east", "")
    assert [(w.node, w.state, w.since, w.why, w.drained) for w in told.nodes] == [
        ("n3", "down*", 1795767000.0, "Not responding", False),
        ("n4", "down*", None, "its slurmd does not answer", False),
        ("n5", "drained", None, "new fan", True),
    ]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("slurm_load_node error: Unable to contact slurm controller", "Unable to contact"),
        ("sinfo: fatal: Could not establish a configuration source", ""),
    ],
    ids=["no controller", "no slurm.conf"],
)
def test_slurm_that_is_away_is_said_and_no_cluster_is_none(
    commands: Path, said: str, problem: str
) -> None:
    (commands / "sinfo").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    told = out_of_use.asked()
    assert told.nodes == () and problem in told.problem and bool(problem) == bool(told.problem)
