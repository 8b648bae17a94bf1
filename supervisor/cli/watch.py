"""What `launch` and `attach` show while a run lives: lines, or on a terminal a view that renews."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

import click

from supervisor import control, runs

STATUS_EVERY_S = 10.0
HISTORY = 8  # lines of the engine's log that an attached reader is told first
_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d) (.+)")


def stamp(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 10) % 10}"


def printable(text: str) -> str:
    """The text without what could steer a terminal: it may hold what a rank has printed."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def summary(status: dict[str, Any]) -> str:
    """One line: where the run stands."""
    parts = [status["phase"]]
    if status["attempt"] is not None:
        parts.append(f"attempt {status['attempt']}")
    if status["step"] is not None:
        parts.append(f"step {status['step']}")
    if status["loss"] is not None:
        parts.append(f"loss {status['loss']:g}")
    newest = status["last_checkpoint"]
    if newest is not None:
        parts.append(f"checkpoint {newest['step']}")
    spares = status["spares"]
    parts.append(f"{len(spares)} spare{'' if len(spares) == 1 else 's'}")
    return ", ".join(parts)


class Screen(AbstractContextManager["Screen"], Protocol):
    """Where it is shown."""

    def line(self, when: str, text: str) -> None:
        """Something happened."""

    def status(self, status: dict[str, Any]) -> None:
        """How the run stands now; comes about once a second."""


class Lines:
    """For a pipe, a file, or a terminal that can't renew what it shows."""

    def __init__(self) -> None:
        self._shown = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def line(self, when: str, text: str) -> None:
        click.echo(f"{when:<10} {text}")

    def status(self, status: dict[str, Any]) -> None:
        if time.monotonic() - self._shown >= STATUS_EVERY_S:
            self._shown = time.monotonic()
            self.line(stamp(status["now"]), summary(status))


def screen() -> Screen:
    """The view where standard output is a terminal, lines elsewhere."""
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", ""):
        from supervisor.cli.view import View

        return View()
    return Lines()


def watch(run: runs.RunDir) -> int:
    """Show what happens until the run has ended; Ctrl-C detaches.

    Returns the exit code: 0 for a run that is done or was stopped or that was detached from, 3 for
    one that is held, 1 where the engine is gone.
    """
    name = run.path.name
    try:
        with screen() as shown:
            _follow(run, shown)
    except KeyboardInterrupt:
        click.echo(
            f"\ndetached; the run goes on. `superv attach {name}` comes back to it, "
            f"`superv stop {name}` ends it."
        )
        return 0
    ended = run.load()
    if ended is None or not ended.ended:
        click.echo(
            f"the engine of {name} is gone; its ranks go on. `superv attach {name}` starts it "
            f"again; {run.log} tells more"
        )
        return 1
    click.echo(f"run {name} is {ended.phase.value}: {printable(ended.reason)}")
    return 3 if ended.phase.value == "held" else 0


def _follow(run: runs.RunDir, shown: Screen) -> None:
    """Until the engine ends."""
    for when, text in history(run.log):
        shown.line(when, text)
    try:
        for answer in control.ask(run.socket, {"do": "watch"}, stream=True):
            if "text" in answer:
                shown.line(stamp(answer["at"]), printable(answer["text"]))
            else:
                shown.status(answer["status"])
    except control.NoEngineError:
        pass  # it ended just now


def history(log: Path) -> list[tuple[str, str]]:
    """The last lines of an engine's log: when and what."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        lines = file.read().decode(errors="replace").splitlines()
    told = [found.groups() for line in lines if (found := _LOG_LINE.fullmatch(line))]
    return [(when, printable(text)) for when, text in told[-HISTORY:]]
