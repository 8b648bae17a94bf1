"""Pages: no word steers a terminal, no line is too wide, colours are only colours."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.check_status import Status
from supervisor.core.types import ENDED, Phase
from supervisor.host import terminal
from supervisor.host.terminal import TableColumn, entry, rendered, styled, table

HOSTILE = (
    "\x1b[2J\x1b[31mred\x1b[0m",  # CSI
    "\x1b]0;a title\x07 \x1b]8;;http://evil\x1b\\\\link",  # OSC
    "\x9b2J \x9d0;title\x9c \x90q\x9c",  # the same as one character each (C1)
    "a\rb\x08c\x7fd\x0b\x0c\x85e\u2028f\n",
    "\u202eright to left\u2066\u2069\u200f\u061c",
    "[bold]no markup[/bold] :smile: \ufeff\u200b\U000e0041",
)
WORDS = st.text(max_size=300) | st.sampled_from(HOSTILE)


def steering(text: str) -> set[str]:
    """What is more than a character to look at, or a line end of the page's own."""
    bad = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return {c for c in text.replace("\n", "") if unicodedata.category(c) in bad}


def columns_of(words: str) -> tuple[TableColumn, ...]:
    return TableColumn(words, most=12), TableColumn("N", right=True), TableColumn("", folds=True)


def pages(words: str) -> list[Any]:
    return [
        words,
        entry(words, words, 8, hang=2),
        entry(styled((words, "red")), styled(words, (words, "bold green")), 30),
        table(
            (
                TableColumn(words, most=12),
                TableColumn("N", right=True),
                TableColumn("", folds=True),
            ),
            [[words] * 3],
        ),
        terminal.facts([(words, words)], 10),
    ]


@settings(deadline=None)
@given(WORDS, st.sampled_from((40, 80, 100)))
def test_no_word_steers_a_terminal_or_makes_a_line_too_wide(words: str, columns: int) -> None:
    plain = rendered(pages(words), colour=False, columns=columns)
    assert steering(plain) == set()
    assert all(width(line) <= columns for line in plain.splitlines())
    coloured = rendered(pages(words), colour=True, columns=columns)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.split("\n")] == plain.split("\n")


def width(line: str) -> int:
    """Columns: of East Asian letters two (Unicode Annex 11), of marks none: they join a letter."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in line)
    return len(line) + wide - sum(unicodedata.category(c)[0] == "M" for c in line)


@pytest.mark.parametrize("words", HOSTILE)
def test_known_sequences_are_words(words: str) -> None:
    assert steering(terminal.printable(words)) == set()
    assert len(terminal.printable(words)) == len(words)


def test_markup_of_a_stranger_is_not_markup() -> None:
    assert "[bold]no markup[/bold] :smile:" in rendered([HOSTILE[-1]], colour=True)


def test_long_words_are_whole_and_paragraphs_are_indented() -> None:
    text = rendered([entry("FAIL", "word " * 30 + "x" * 120, 8, hang=2)], colour=False)
    first, *others = text.splitlines()
    assert first.startswith("FAIL    word")
    assert all(line.startswith(" " * 10) and line[10] != " " for line in others)
    assert text.count("x") == 120


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_no_color(env: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert terminal.is_coloured() is coloured


def test_a_pipe_gets_no_colours_and_no_line_that_renews(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show([styled(("FAIL", "red"))])
    assert capsys.readouterr().out == "FAIL\n"
    assert not terminal.renews(io.StringIO())
    assert not terminal.renews(None)


def test_every_status_and_end_of_a_run_has_a_colour() -> None:
    assert all(terminal.style_of(word) for word in (*Status, *ENDED, Phase.RUNNING))


def test_times() -> None:
    at = 1_700_000_005.98
    assert terminal.time_of_day(at).endswith("5.9")
    assert terminal.time_of_day(at, 3).endswith("5.980")
    assert terminal.time_of_day(at, 0).endswith(":25")
    assert re.fullmatch(r"11-1[45] \d\d:\d\d", terminal.day_time(at))
    assert re.fullmatch(r"11-1[45] \d\d:\d\d:25", terminal.day_time(at, seconds=True))
    assert terminal.day_time(None) == "-"
    assert terminal.date_time(at).startswith("2023-11-1")


def test_help_does_not_wait_for_rich() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from supervisor.cli import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\n"
        "print([m for m in ('rich', 'supervisor.host.terminal', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@given(st.text())
def test_a_rank_s_lines_keep_their_ends_and_steer_nothing(words: str) -> None:
    shown = terminal.printable_lines(words)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert shown.count("\n") == words.count("\n") + words.count("\r") - words.count("\r\n")


@pytest.mark.parametrize(
    ("term", "says"),
    [
        (None, "TERM is not set"),
        ("", "TERM is not set"),
        ("dumb", "TERM=dumb can't"),
        ("xterm", ""),
    ],
)
def test_why_a_terminal_can_not_be_drawn_on(
    term: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    main, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream:
        assert terminal.renews(stream) is (says == "")
        assert says in terminal.why_not(stream)
    os.close(main)
    with open(os.devnull) as stream:
        assert terminal.why_not(stream) == terminal.why_not(None) == "standard output is none"
