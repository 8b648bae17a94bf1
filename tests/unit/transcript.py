"""A scenario as a file: what happens, one line each, and below it what superv said and ordered.

docs/contributing.md says how to write one. A line that is not indented is a command, `#` begins a
remark, and indented lines are what came of the command above: they are made.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from transcript_world import COMMANDS, Stage, world

INDENT = "    "


def rewritten(text: str) -> tuple[str, Stage]:
    """The transcript with what comes of its commands now, and the stage after the last one."""
    stage: Stage | None = None
    made: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(INDENT):
            continue
        made.append(line)
        if line and not line.startswith("#"):
            try:
                stage, came = _play(stage, line)
            except Exception as error:
                error.add_note(f"line {number}: {line}")
                raise
            made += [f"{INDENT}{one}" for one in came]
    assert stage is not None, "no command"
    return "\n".join([*made, ""]), stage


def _play(stage: Stage | None, line: str) -> tuple[Stage, list[str]]:
    name, *words = shlex.split(line)
    named = dict(word.split("=", 1) for word in words if "=" in word)
    plain = [word for word in words if "=" not in word]
    if stage is None:
        assert name == "world", "a transcript begins with: world"
        stage = world(plain, named)
    else:
        assert name in COMMANDS, f"{name} is not a command; there are: {', '.join(COMMANDS)}"
        stage.shown = []
        COMMANDS[name](stage, *plain, **{key.replace("-", "_"): named[key] for key in named})
    return stage, list(_came(stage.shown))


def _came(shown: list[tuple[str, list[str]]]) -> Iterator[str]:
    """Events are named where a command stands for several, or time made one."""
    for words, came in shown:
        if came and words and (len(shown) > 1 or words.startswith("deadline")):
            yield f"({words})"
        yield from came
