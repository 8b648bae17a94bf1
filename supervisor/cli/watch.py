"""What `launch` and `attach` show while a run lives: lines, or on a terminal a view that renews."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self

import click

from supervisor.cli.status import summary
from supervisor.core.types import Phase
from supervisor.engine import control
from supervisor.host import terminal
from supervisor.run import folder

STATUS_EVERY_S = 10.0
HISTORY = 8  # lines of the engine's log that an attached reader sees first
# supervisor/host/log.py; before November 2026 lines had no level
_LOG_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d) (?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) )?(.+)"
)


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
        click.echo(f"{when:<10} {terminal.printable(text)}")

    def status(self, status: dict[str, Any]) -> None:
        if time.monotonic() - self._shown >= STATUS_EVERY_S:
            self._shown = time.monotonic()
            self.line(terminal.time_of_day(status["now"]), summary(status))


def screen() -> Screen:
    """The view where standard output is a terminal, lines elsewhere."""
    if terminal.renews(sys.stdout):
        from supervisor.cli.view import View

        return View()
    return Lines()


def watch(run: folder.RunDir) -> int:
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
    if not ended.ended:
        click.echo(
            f"the engine of {name} is gone; its ranks go on. `superv attach {name}` starts it "
            f"again; {run.log} tells more"
        )
        return 1
    click.echo(f"run {name} is {ended.phase.value}: {terminal.printable(ended.reason)}")
    return exit_code(ended.phase)


def exit_code(ended: Phase) -> int:
    """3 for a run that is held: a person has to act."""
    return 3 if ended is Phase.HELD else 0


def _follow(run: folder.RunDir, shown: Screen) -> None:
    """Until the engine ends."""
    for when, text in history(run.log):
        shown.line(when, text)
    try:
        for answer in control.ask(run.socket, {"do": "watch"}, stream=True):
            if "text" in answer:
                shown.line(terminal.time_of_day(answer["at"]), answer["text"])
            else:
                shown.status(answer["status"])
    except control.NoEngineError:
        pass  # it ended just now


def history(log: Path) -> list[tuple[str, str]]:
    """The last lines of an engine's log, and of the one before it: when and what."""
    lines: list[str] = []
    for path in (log.with_name(f"{log.name}.1"), log):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # it rotates
            file.seek(max(0, path.stat().st_size - 16_384))
            lines += file.read().decode(errors="replace").splitlines()
    found = [match.groups() for line in lines if (match := _LOG_LINE.fullmatch(line))]
    return [(when, text) for when, text in found[-HISTORY:]]
