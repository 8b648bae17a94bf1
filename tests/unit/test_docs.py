"""The pages say what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from supervisor.cli import COMMANDS
from supervisor.core.diagnose import CAUSES
from supervisor.core.policy import Policy
from supervisor.core.status import status
from supervisor.core.types import Incident, Run, RunSpec

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"


def test_every_cause_has_a_runbook_and_every_runbook_a_cause() -> None:
    assert sorted(path.stem for path in (DOCS / "runbooks").iterdir()) == sorted(CAUSES)
    for cause in CAUSES:
        assert f"[{cause}](runbooks/{cause}.md)" in (DOCS / "operating.md").read_text()


def test_incidents_are_opened_for_known_causes_only() -> None:
    opened = set()
    for path in (REPO / "supervisor" / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_incident":
                cause = node.args[1]
                assert isinstance(cause, ast.Constant), f"{path.name}: name the cause literally"
                opened.add(cause.value)
    assert opened == set(CAUSES)


def test_the_status_page_names_every_key() -> None:
    spec = RunSpec(
        name="x",
        run_id="0" * 12,
        nodes=1,
        spares=0,
        ranks_per_node=1,
        checkpoint_dir=None,
        policy=Policy(),
    )
    run = Run(spec=spec, incidents=(Incident(attempt=1, cause="hang"),))
    told = status(run, 0.0)
    named = set(re.findall(r"`([a-z_]+)`", (DOCS / "status.md").read_text()))
    assert set(told) <= named
    assert set(told["incidents"][0]) <= named


def test_links_between_pages_lead_somewhere() -> None:
    for page in [REPO / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pages_name_commands_that_exist() -> None:
    for page in (REPO / "README.md", DOCS / "operating.md", DOCS / "contributing.md"):
        for name in re.findall(r"(?m)(?:^ +|`)superv ([a-z]+)", page.read_text()):
            assert name in COMMANDS or name == "hello", f"{page.name}: superv {name}"
