"""What `superv watch` shows, as it comes: the run's engine pushes, the journal is read without one.

A document a second at most, a JSON line each: `superv watch --json` prints them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.run.folder import RunDir

AGAIN_S = 2.0  # where nobody pushes
KEPT_LINES = 200


def of_run(run: RunDir) -> Iterator[dict[str, Any]]:
    """Of one run, without end: `{schema, run, lines}`; lines are new ones, each {at, text}."""
    from supervisor.cli.status import LIST_WITHIN_S, listed
    from supervisor.cli.watch import history
    from supervisor.core.errors import TransientError
    from supervisor.engine import control

    told = {"run": run.path.name, "replaced": run.replaced}
    lines = [{"at": when, "text": text} for when, text in history(run.log)]
    while True:
        try:
            for answer in control.ask(run.socket, {"do": "watch"}, stream=True):
                if "text" in answer:
                    lines.append({"at": _clock(answer["at"]), "text": answer["text"]})
                else:
                    yield _frame({**answer["status"], "engine": True, **told}, lines)
                    lines = []
        except (control.NoEngineError, TransientError):
            pass
        yield _frame(listed(run, LIST_WITHIN_S), lines)
        lines = []
        time.sleep(AGAIN_S)


def of_all(home: Path) -> Iterator[dict[str, Any]]:
    """Of all runs, without end: `{schema, at, runs}`."""
    from supervisor.cli.status import all_listed

    while True:
        yield {"schema": 1, "at": time.time(), "runs": all_listed(home)}
        time.sleep(AGAIN_S)


def _frame(run: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": 1, "run": run, "lines": lines[-KEPT_LINES:]}


def _clock(at: float) -> str:
    from supervisor.host.terminal import time_of_day

    return time_of_day(at, 0)


def print_all(frames: Iterator[dict[str, Any]]) -> None:
    """Each as a line, for whoever reads as it comes."""
    import click

    for frame in frames:
        click.echo(json.dumps(frame))
