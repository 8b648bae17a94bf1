"""What superv says and orders, story by story: the files in transcripts/.

After a wanted change: UPDATE_GOLDEN=1 pytest tests/unit/test_transcripts.py, and read the diff.
Each step is held to the invariants, and the journal of the events gives the same run.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest
from scenario import rebuilt
from transcript import COMMANDS, rewritten

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


def difference(name: str, text: str, made: str) -> str:
    """What a reader has to judge: each change with the commands above it."""
    lines = text.splitlines(), made.splitlines()
    return "\n".join(difflib.unified_diff(*lines, name, "as it is now", lineterm="", n=5))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    made, stage = rewritten(text)
    assert rebuilt(stage.events) == stage.run
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(made)
    elif made != text:
        pytest.fail(difference(path.name, text, made), pytrace=False)


def test_each_command_is_used_and_each_file_says_what_it_is_about() -> None:
    texts = [path.read_text() for path in FILES]
    first = {line.split()[0] for text in texts for line in text.splitlines() if line}
    assert set(COMMANDS) <= first and all(text.startswith("# ") for text in texts)


def test_what_is_said_otherwise_is_shown_below_its_command() -> None:
    commands = "# A stop.\n\nworld\nstop-requested kim\n"
    made, _ = rewritten(commands)
    assert rewritten(made)[0] == made and made.startswith("# A stop.\n\nworld\n    ")
    old = made.replace("stopped by kim", "ended by kim")
    assert rewritten(old)[0] == made
    shown = difference("stop.txt", old, made).splitlines()
    assert " stop-requested kim" in shown
    assert "-    says      stopped: ended by kim" in shown
    assert "+    says      stopped: stopped by kim" in shown


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("advance 1s\n", "a transcript begins with: world"),
        ("world\nadvanc 1s\n", "advanc is not a command"),
        ("world\nanswer stop all\n", "no stop of all waits for an answer; waiting: submit/1"),
        ("world\nanswer halt all\n", "no action is called halt"),
        ("world drakes\n", "drakes: not known here; valid: preflight, no-checkpoints"),
        ("world phase=running\nrank-exited 0\n", "code=, signal= or unwatched"),
        ("world phase=running\nrank-exited 0 sig=9\n", "sig: not known here; valid: code, signal"),
        ("world\nadvance 1s wind=high\n", "unexpected keyword argument 'wind'"),
    ],
)
def test_a_mistake_names_its_line(text: str, problem: str) -> None:
    with pytest.raises((AssertionError, TypeError), match=problem) as caught:
        rewritten(text)
    assert caught.value.__notes__ == [f"line {text.count(chr(10))}: {text.splitlines()[-1]}"]
