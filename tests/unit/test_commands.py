"""The command line itself: what it says where there is no such command, or none is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from healthchecks.frame.check import TAGS
from supervisor.cli import COMMANDS, HABITS, Commands, cli
from supervisor.cli.numbers import Number
from supervisor.core.errors import UserError


def superv(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor.cli", *argv], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["lanch"], "no command 'lanch'; valid: init, launch, attach, "),
        (["lab", "statsu"], "no command 'lab statsu'; valid: cut, delay, "),
        (
            ["checkpoints", "lsit"],
            "no command 'checkpoints lsit'; valid: list, quarantine, verify; ",
        ),
    ],
)
def test_a_typo_is_one_line_with_what_is_valid(argv: list[str], says: str) -> None:
    done = superv(*argv)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"superv: {says}")
    assert "; did you mean " in done.stderr


@pytest.mark.parametrize("argv", [[], ["lab"], ["checkpoints"]])
def test_a_group_without_a_command_shows_its_help(argv: list[str]) -> None:
    done = superv(*argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert done.stdout == superv(*argv, "--help").stdout


@pytest.mark.parametrize("argv", [["status", "nope"], ["checkpoints", "list", "nope", "--jsno"]])
def test_a_script_that_asks_for_json_gets_the_error_as_json(argv: list[str]) -> None:
    done = superv(*argv, "--json")
    found = json.loads(done.stdout)
    assert (found["schema"], found["exit"]) == (1, done.returncode)
    assert done.stderr == f"superv: {found['error']}\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["logs"], "missing argument 'RUN'; see superv logs --help"),
        (["status", "--jsno"], "no such option '--jsno'; did you mean '--json'?; see superv"),
        (["sweep", "--deadline", "nan"], "--deadline nan: expected 10 to 3600 seconds"),
        (["accept", "n1", "--rounds", "1.5"], "--rounds 1.5: expected a whole number, 1 to 1000"),
        (["report", "--output", "x.pdf"], "--output x.pdf: superv writes no PDF; `superv report"),
        (["report", "--output", "x.doc"], "--output x.doc: no such form; end it with .html, .htm"),
        (["report", "--since", "x"], "--since x: no duration; write 90m, 12h, 2d or 1w"),
        (["report", "--format", "x"], "--format x: expected one of text, html, json, md; see"),
        (["logs", "r", "--rank", "x"], "--rank x: expected a whole number, 0 or more"),
        (["checkpoints", "quarantine", "r", "-"], "STEP -: expected a whole number, 1 or more"),
    ],
)
def test_a_mistake_in_options_is_one_line(argv: list[str], says: str) -> None:
    done = superv(*argv)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"superv: {says}")


def test_words_from_habit_lead_to_a_command() -> None:
    for word, command in HABITS.items():
        assert word not in COMMANDS
        with pytest.raises(UserError, match=f"; did you mean {command}[?]$"):
            cli.resolve_command(click.Context(cli), [word])
        assert command in COMMANDS
    assert superv("why", "r").stderr.endswith("; did you mean status?\n")
    assert superv("lab", "list").stderr.count("did you mean runs") == 0


def groups(group: click.Group) -> Iterator[click.Group]:
    yield group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from groups(command)


def test_every_group_says_what_is_valid() -> None:
    found = list(groups(cli))
    assert len(found) >= 3
    assert all(isinstance(group, Commands) for group in found)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_page_of_help_fits(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    shown = command.get_help(click.Context(command, info_name=name, max_content_width=100))
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("group", ["lab", "checkpoints"])
def test_a_group_shows_whole_sentences(group: str) -> None:
    command = cli.get_command(click.Context(cli), group)
    assert command is not None
    page = command.get_help(click.Context(command, max_content_width=100))
    assert not [line for line in page.splitlines()[1:] if line.endswith(("...", "…"))]


def parameters(group: click.Group) -> Iterator[tuple[str, click.Parameter]]:
    for each in groups(group):
        for name in each.list_commands(click.Context(each)):
            command = each.get_command(click.Context(each), name)
            assert command is not None
            for parameter in command.params:
                yield f"{name} {parameter.human_readable_name}", parameter


PARAMETERS = dict(parameters(cli))


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_option_is_explained_and_every_number_has_a_range(name: str) -> None:
    parameter = PARAMETERS[name]
    if isinstance(parameter, click.Option):
        assert parameter.help
    assert not isinstance(parameter.type, (type(click.INT), type(click.FLOAT)))
    if isinstance(parameter.type, Number):
        for wrong in ("nan", "-inf", "x", "", str(parameter.type.least - 1)):
            with pytest.raises(UserError, match=r": expected .*[0-9]"):
                parameter.type.convert(wrong, parameter, None)


# --- one spelling, one meaning --------------------------------------------------------------------


def options() -> Iterator[tuple[str, click.Option]]:
    with click.Context(cli) as ctx:
        for name in COMMANDS:
            command = cli.get_command(ctx, name)
            assert command is not None
            for one in command.params:
                if isinstance(one, click.Option):
                    for spelling in one.opts:
                        yield spelling, one


def test_an_option_means_the_same_in_all_commands_on_nodes() -> None:
    on_nodes = {"--partition", "-p", "--tags", "--set", "--check", "--via"}
    met: dict[str, set[tuple[str, bool]]] = {}
    for spelling, one in options():
        if spelling in on_nodes:
            met.setdefault(spelling, set()).add((str(one.metavar), one.multiple))
    assert met.keys() == on_nodes
    assert {spelling: found for spelling, found in met.items() if len(found) > 1} == {}


def test_suites_stand_in_the_help_of_check() -> None:
    said = " ".join(superv("check", "--help").stdout.split())
    for tag, text in TAGS.items():
        assert f"{tag} {text}" in said


@pytest.mark.parametrize("command", ["preflight", "sweep", "accept", "exclude", "include", "nodes"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["n[1-5"], "host list 'n[1-5': a bracket is not closed; write names as n1 n[4-7]"),
        (["n5", "n[4-3]"], "host list 'n[4-3]': [4-3]: the range '4-3' runs backwards; write"),
    ],
)
def test_nodes_that_are_no_names(command: str, words: list[str], says: str) -> None:
    done = superv(command, *words, *(["--reason", "x"] if command == "exclude" else []))
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(f"superv: {says}")


def test_a_check_is_explained() -> None:
    done = superv("check", "--explain", "fs.local")
    assert done.returncode == 0
    for word in ("fs.local", "facebookresearch/gcm", "warn_percent = 80 %", "docs/checks/disk.md"):
        assert word in done.stdout
    found = json.loads(superv("check", "--explain", "--check", "fs.local", "--json").stdout)
    (one,) = found["checks"]
    assert one["check"] == "fs.local" and "Thresholds" in one["text"] and one["traits"]


def test_the_lab_that_is_meant() -> None:
    from supervisor.cli.lab import meant

    assert [meant(there) for there in ([], ["ann"], ["ann", "default"])] == [
        "default",
        "ann",
        "default",
    ]
    with pytest.raises(UserError, match=r"which lab[?] give --name; there: ann, bob"):
        meant(["ann", "bob"])


def test_only_what_makes_or_removes_a_lab_takes_no_other_for_it() -> None:
    from supervisor.cli.lab import lab

    usual = {
        name: next(p for p in command.params if p.name == "name").default
        for name, command in lab.commands.items()
    }
    assert {name for name, value in usual.items() if value == "default"} == {"up", "down"}
