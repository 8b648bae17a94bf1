"""What `launch` and `attach` print while a run lives."""

from __future__ import annotations

import time
from typing import Any

import click

from supervisor import control, runs

STATUS_EVERY_S = 10.0


def stamp(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 10) % 10}"


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


def watch(run: runs.RunDir) -> int:
    """Print what happens until the run has ended; Ctrl-C detaches.

    Returns the exit code: 0 for a run that is done or was stopped, 3 for one that is held.
    """
    name = run.path.name
    shown = 0.0
    try:
        for answer in control.ask(run.socket, {"do": "watch"}, stream=True):
            if "text" in answer:
                click.echo(f"{stamp(answer['at'])} {answer['text']}")
                continue
            status = answer["status"]
            if time.monotonic() - shown >= STATUS_EVERY_S:
                shown = time.monotonic()
                click.echo(f"{stamp(status['now'])} {summary(status)}")
    except KeyboardInterrupt:
        click.echo(f"\ndetached; the run goes on. `superv attach {name}` comes back to it, ")
        click.echo(f"`superv stop {name}` ends it.")
        return 0
    ended = run.load()
    if ended is None or not ended.ended:
        click.echo(
            f"the engine of {name} is gone; its ranks go on. `superv attach {name}` starts it again"
        )
        return 1
    click.echo(f"run {name} is {ended.phase.value}: {ended.reason}")
    return 3 if ended.phase.value == "held" else 0
