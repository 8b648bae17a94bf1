"""Pages held against the code: the numbers, tables and examples of those about nodes' health, and
the commands of all."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from healthchecks.frame.registry import select
from supervisor.cli import cli
from supervisor.cli.check import check
from supervisor.cli.sweep import NOT_DONE, sweep
from supervisor.config import load_site
from supervisor.config.own_checks import OwnCheck
from supervisor.config.site import DrainRule
from supervisor.core.check_status import Status
from supervisor.engine.fleet_recorder import READ_EVERY_S
from supervisor.fleet import claims
from supervisor.fleet.drain import MARK, PASSES_TO_RESUME
from supervisor.fleet.record import DAY_S, STRIKES_OVER_S
from supervisor.fleet.sweep import CANCEL_S
from supervisor.fleet.types import _WORDS as STATE_OF_STATUS

DOCS = Path(__file__).parents[2] / "docs"
FLEET, OWN = (DOCS / "fleet.md").read_text(), (DOCS / "own-checks.md").read_text()
WORDS = " ".join(FLEET.split())
REPO = DOCS.parent
PAGES = sorted(page.relative_to(REPO) for page in (REPO / "README.md", *DOCS.rglob("*.md")))


def table(text: str, head: str) -> list[list[str]]:
    """The rows of the table below a heading row."""
    lines = text.partition(f"\n{head}\n")[2].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def test_the_states_of_a_node_are_those_of_the_page() -> None:
    states = {row[0] for row in table(FLEET, "| state | meaning |")}
    assert states == {*STATE_OF_STATUS.values(), "excluded"} == {
        "healthy", "degraded", "failed", "unknown", "excluded"
    }  # fmt: skip
    assert STATE_OF_STATUS[Status.WARN] == "degraded"


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"reads exclusions every {READ_EVERY_S:g} s" in WORDS
    assert f"history of {STRIKES_OVER_S / DAY_S:g} days" in FLEET and "`28 d` in the table" in WORDS
    assert f"for {claims.RUN_S / DAY_S:g} days" in WORDS
    rule = DrainRule()
    (example,) = re.findall(r"drain: (\{.*\})", FLEET)
    given = yaml.safe_load(example)
    assert given.pop("mode") is True  # YAML's `on`; site.yaml reads it as text
    assert given == {f.name: getattr(rule, f.name) for f in fields(rule) if f.name != "mode"}
    assert f"{rule.max_percent:g} % of the cluster's nodes" in WORDS and rule.max_nodes == 2
    assert not rule.on and "Off until site.yaml says `drain: on`" in WORDS
    assert PASSES_TO_RESUME == 2 and "after two full looks" in WORDS
    assert f"`{MARK}CHECK: what was seen`" in WORDS
    assert f"{NOT_DONE}: it could not be done" in WORDS
    assert CANCEL_S == 10 and "within `--deadline` and ten seconds" in WORDS
    every = next(p.default for p in sweep.params if p.name == "every")
    assert f"every {every} minutes" in WORDS


def commands(page: Path) -> list[str]:
    """What stands in a block and begins with superv."""
    text = re.sub(r" \\\n *", " ", (REPO / page).read_text())  # a command that goes on
    blocks = re.findall(r"(?ms)^```(?:sh|)\n(.*?)^```", text) + re.findall(r"(?m)^    .*$", text)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    found = [part.strip() for line in lines for part in re.sub(r"^[\d*/ ]+", "", line).split(";")]
    return [one for one in found if re.match(r"superv [a-z]+( |$)", one)]  # no run's name


WITH_COMMANDS = [page for page in PAGES if commands(page)]


def typed(line: str) -> None:
    """Raises click's error where a command has no such option."""
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        inner = command.get_command(context, words[0])
        assert inner is not None, line
        context = click.Context(inner, context, words[0], **inner.context_settings)
        command, words = inner, words[1:]
    command.make_parser(context).parse_args(list(words))


def test_what_can_not_be_typed_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        typed("superv include n1 --gently")
    assert {"docs/fleet.md", "docs/after-a-repair.md", "README.md"} <= {*map(str, WITH_COMMANDS)}


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=str)
def test_every_command_of_a_page_can_be_typed(page: Path) -> None:
    for line in commands(page):
        typed(line)


# --- checks of one's own, as the page has them ---


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (example,) = re.findall(r"(?ms)^```yaml\n(.*?)^```", OWN)
    example = example.replace("/opt/site/licence-answers", f"{tmp_path}/licence-answers")
    (tmp_path / "site.yaml").write_text(example)
    programs = {
        "ofed_info": "echo OFED-internal-24.10-0.7.0:",
        "mountpoint": "exit 32",
        "licence-answers": "sleep 60",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SUPERV_SITE", str(tmp_path / "site.yaml"))
    return tmp_path


def test_own_checks_work_as_the_page_has_them(site: Path) -> None:
    done = CliRunner().invoke(check, ["site", "--state", str(site / "state")])
    said = " ".join(done.output.split())
    assert done.exit_code == 1, done.output
    assert "site.ofed OFED-internal-24.10-0.7.0:" in said
    assert "FAIL site.scratch mountpoint ended with 32" in said and "→ mount /scratch" in said
    assert "UNKNOWN site.licence" in said and "1 FAIL, 1 UNKNOWN, 1 OK" in said
    explained = CliRunner().invoke(check, ["--explain", "site.ofed"]).output
    assert "ofed_info -s" in " ".join(explained.split())
    assert {c.name for c in select(tags=["prolog"])} >= {"site.scratch"}
    assert "site.ofed" not in {c.name for c in select(tags=["prolog"])}


def test_the_table_of_own_checks_is_that_of_the_code() -> None:
    rows = {row[0]: row[1] for row in table(OWN, "| key | default | meaning |")}
    assert [*rows] == [f.name for f in fields(OwnCheck)]
    one = OwnCheck(command=("true",))
    told = {name: str(value) for name, value in rows.items() if value not in ("", "anything")}
    assert told == {
        "exit_code": str(one.exit_code),
        "deadline_s": f"{one.deadline_s:g}",
        "suites": f"[{', '.join(one.suites)}]",
        "status": one.status,
        "drains": str(one.drains).lower(),
    }


def test_a_backslash_in_double_quotes_is_explained(tmp_path: Path) -> None:
    from supervisor.core.errors import UserError

    (tmp_path / "site.yaml").write_text('own_checks:\n  a: {command: [x], output: "24\\.10"}\n')
    with pytest.raises(UserError, match=r"site\.yaml:2: .*single quotes"):
        load_site({"SUPERV_SITE": str(tmp_path / "site.yaml"), "HOME": "/"})
