"""The pages say what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from docs import make
from supervisor.cli import COMMANDS
from supervisor.core import phases
from supervisor.core.policy import Policy
from supervisor.core.status import status
from supervisor.core.types import Cause, Incident, Phase, Run, RunSpec
from supervisor.core.way_forward import STATES

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
MAX_LINES = 150
MADE = re.compile(r"\A.*\n\n<!-- Made by `.+`; don't edit. -->\n")


RUNBOOKS = sorted([*Cause, *STATES])


def test_every_cause_has_a_runbook_and_every_runbook_a_cause_or_a_state() -> None:
    assert sorted(path.stem for path in (DOCS / "runbooks").iterdir()) == RUNBOOKS


@pytest.mark.parametrize("name", RUNBOOKS)
def test_a_runbook_begins_with_what_it_is_about_and_the_command_to_type(name: str) -> None:
    first, _, command, *_ = (DOCS / "runbooks" / f"{name}.md").read_text().splitlines()
    assert first.startswith(f"# {name}: "), "the page begins with its cause in short"
    assert re.match(r" {4}[a-z].* # ", command), "then comes the command to type"


def test_every_cause_is_found_in_the_core() -> None:
    """An incident is opened for it, or a verdict has it."""
    found = set()
    for path in (REPO / "supervisor" / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", "")
            if name == "open_incident":
                assert isinstance(node.args[1], ast.Attribute), f"{path.name}: name the cause"
                found.add(Cause[node.args[1].attr])
            elif name == "Verdict":
                causes = [k.value for k in node.keywords if k.arg == "cause"]
                found |= {Cause[c.attr] for c in causes if c.attr in Cause.__members__}
    assert found == set(Cause)


def test_pages_that_are_made_are_up_to_date() -> None:
    there = {path: path.read_text() for path in DOCS.rglob("*.md") if MADE.search(path.read_text())}
    made = {DOCS / name: text for name, text in make.pages().items()}
    assert there.keys() == made.keys(), "run: python docs/make.py"
    for path, text in made.items():
        assert there[path] == text, f"{path.name}: run: python docs/make.py"


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
    run = Run(spec=spec, incidents=(Incident(attempt=1, cause=Cause.HANG),))
    told = status(run, 0.0)
    named = set(re.findall(r"`([a-z_]+)`", (DOCS / "status.md").read_text()))
    assert set(told) <= named
    assert set(told["incidents"][0]) <= named


PAGES = sorted([*REPO.glob("*.md"), *DOCS.rglob("*.md")])


def anchors(page: Path) -> set[str]:
    """As forges make them of headings: lower case, blanks to hyphens, other signs gone."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"no {target}"
        assert not anchor or anchor in anchors(there), f"{path} has no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths in backticks that begin with a folder of the repository; NAME and * stand for any."""
    if page.name == "CHANGELOG.md" or page.parent.name == "recipes":
        return  # what once was; files that a reader makes, which test_recipes.py looks at
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    tops = "|".join(path.name for path in REPO.iterdir() if path.is_dir() and path.name[0] != ".")
    for path in re.findall(rf"`((?:{tops})/[\w./*-]*)`", text):
        pattern = re.sub(r"\b[A-Z]{3,}\b", "*", path.rstrip("/"))
        assert any(REPO.glob(pattern)), f"no {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_a_page_that_people_write_is_short(page: Path) -> None:
    text = page.read_text()
    most = 3 * MAX_LINES if page.name == "CHANGELOG.md" else MAX_LINES  # it grows by release
    assert MADE.search(text) or len(text.splitlines()) <= most


def test_the_pages_name_commands_that_exist() -> None:
    for page in (REPO / "README.md", DOCS / "operating.md", DOCS / "contributing.md"):
        for name in re.findall(r"(?m)(?:^ +|`)superv ([a-z]+)", page.read_text()):
            assert name in COMMANDS or name == "hello", f"{page.name}: superv {name}"


def test_every_phase_has_a_way_on() -> None:
    assert set(phases.LEADS_TO) == set(Phase)
    assert all(targets for targets in phases.LEADS_TO.values())
