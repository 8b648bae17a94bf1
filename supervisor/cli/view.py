"""The view of a living run on a terminal: what happened scrolls above a panel that renews.

The only module that uses rich. It changes nothing about the terminal that would have to be
restored: no alternate screen, no hidden cursor, no raw mode.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from supervisor.cli.watch import printable, stamp
from supervisor.core.nodeset import compress

WIDTH = 100
RENEW_PER_S = 2
WINDOW_S = 60.0  # over which throughput is told
SILENT_S = 5.0  # the engine tells its status every second
BAD_SHOWN = 8  # nodes that are listed one by one
_COLOURS = {
    "running": "green",
    "done": "green",
    "held": "bold red",
    "stopped": "yellow",
    "suspect": "yellow",
    "lost": "red",
    "unfit": "red",
    "left": "yellow",
    "excluded": "red",
}


def age(seconds: float) -> str:
    """A duration in words that fit a table.

    >>> age(3.24), age(75), age(7300), age(200_000)
    ('3.2 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    if minutes < 60 * 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


class Throughput:
    """Steps per minute of the attempt, over the last minute that was watched."""

    def __init__(self) -> None:
        self._attempt: int | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def take(self, status: dict[str, Any]) -> None:
        if status["attempt"] != self._attempt:
            self._attempt = status["attempt"]
            self._seen.clear()
        at, step = status["step_at"], status["step"]
        if at is None or (self._seen and self._seen[-1] == (at, step)):
            return
        self._seen.append((at, step))
        while self._seen[0][0] < at - WINDOW_S:
            self._seen.popleft()

    def per_minute(self) -> float | None:
        """None where too little was seen to tell."""
        if not self._seen or self._seen[-1][0] - self._seen[0][0] < 1.0:
            return None
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) * 60


class View:
    """Shows a run on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._told: dict[str, Any] | None = None
        self._heard = 0.0
        self._throughput = Throughput()
        self._console = console or Console(highlight=False)
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=RENEW_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        self._console.show_cursor(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def line(self, when: str, text: str) -> None:
        line = Text(f"{when:<10} ", style="dim", end="")
        line.append(text, style=_of_line(text))
        self._console.print(line, soft_wrap=True)

    def status(self, status: dict[str, Any]) -> None:
        self._throughput.take(status)
        self._told, self._heard = status, time.monotonic()

    def _render(self) -> RenderableType:
        if self._told is None:
            return Text("")
        silent = time.monotonic() - self._heard
        rows = panel(self._told, silent, self._throughput.per_minute())
        return Group(Rule(style="dim"), rows)


def _of_line(text: str) -> str:
    word = text.partition(":")[0]
    if word in _COLOURS:
        return _COLOURS[word]
    return "yellow" if " suspected" in text or word in ("stopping", "triage") else "not dim"


def panel(told: dict[str, Any], silent_s: float, per_minute: float | None) -> Table:
    """The state of a run; `silent_s`: how long ago the engine told it."""
    now = told["now"] + silent_s
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=10)
    grid.add_column(overflow="fold", max_width=WIDTH - 12)
    phase = Text(told["name"], style="bold")
    phase.append(f"  {told['phase']}", style=_COLOURS.get(told["phase"], "yellow"))
    phase.append(f" for {age(now - told['since'])}")
    if told["reason"]:
        phase.append(f": {printable(told['reason'])}")
    grid.add_row("run", phase)
    grid.add_row("training", _training(told, now, per_minute))
    newest = told["last_checkpoint"]
    if newest is not None:
        verified = f"step {newest['step']}, verified {age(now - newest['verified_at'])} ago"
        grid.add_row("checkpoint", Text(f"{verified}; {printable(newest['path'])}"))
    else:
        grid.add_row("checkpoint", "none verified yet: a restart begins at step 0")
    for label, text in _nodes(told):
        grid.add_row(label, text)
    for label, text in _incident(told):
        grid.add_row(label, text)
    if silent_s > SILENT_S:
        says = f"has not answered for {age(silent_s)}; the ranks go on without it"
        grid.add_row("engine", Text(says, style="bold yellow"))
    grid.add_row("", Text("Ctrl-C detaches; the run goes on", style="dim"))
    return grid


def _training(told: dict[str, Any], now: float, per_minute: float | None) -> Text:
    if told["step"] is None:
        return Text("no step yet" if told["attempt"] is not None else "not begun")
    parts = [f"step {told['step']}"]
    if told["loss"] is not None:
        parts.append(f"loss {told['loss']:g}")
    if per_minute is not None:
        parts.append(f"{per_minute:.3g} steps/min")
    text = Text("   ".join(parts))
    text.append(f"   last step {age(now - told['step_at'])} ago", style="dim")
    return text


def _nodes(told: dict[str, Any]) -> list[tuple[str, Text]]:
    """The node table: hostlists of those that are well, a line for each of the others."""
    bad = {node["node"]: node for node in told["unusable"]}
    slots = {slot["node"]: slot["slot"] for slot in told["slots"] if slot["node"]}
    rows: list[tuple[str, Text]] = []
    active = [node for node in slots if node not in bad]
    if active:
        rows.append(("active", _named(active, "green")))
    if told["spares"]:
        rows.append(("spare", _named(told["spares"], "cyan")))
    elif told["slots"]:
        rows.append(("spare", Text("none left", style="yellow")))
    empty = [slot["slot"] for slot in told["slots"] if not slot["node"]]
    if empty:
        numbers = ", ".join(str(slot) for slot in empty)
        rows.append(("waiting", Text(f"slot {numbers}: no node yet", style="yellow")))
    excluded = {node["node"]: {**node, "state": "excluded"} for node in told["excluded"]}
    worse = list({**bad, **excluded}.values())
    for node in worse[:BAD_SHOWN]:
        rows.append((node["state"], _bad(node, slots.get(node["node"]))))
    if len(worse) > BAD_SHOWN:
        rest = compress(node["node"] for node in worse[BAD_SHOWN:])
        rows.append(("and", Text(rest, style="red")))
    return rows


def _named(nodes: list[str], style: str) -> Text:
    names = compress(nodes)
    limit = 2 * (WIDTH - 12) - 12
    text = Text(f"{len(nodes):>3}  ", style=f"bold {style}")
    text.append(names if len(names) <= limit else names[:limit] + "…", style=f"not bold {style}")
    return text


def _bad(node: dict[str, Any], slot: int | None) -> Text:
    text = Text(node["node"], style=_COLOURS.get(node["state"], "yellow"))
    where = f", slot {slot}" if slot is not None else ""
    text.append(
        f"{where}, since {stamp(node['since'])[:8]}: {printable(node['reason'])}", "not bold"
    )
    return text


def _incident(told: dict[str, Any]) -> list[tuple[str, Text]]:
    """The incident under way, or the last one in a line."""
    if not told["incidents"]:
        return []
    last = told["incidents"][-1]
    culprits = ", ".join(last["culprits"]) or "nobody named"
    text = Text(f"{last['cause']}, {culprits}", style="bold")
    if last["first_step"] is not None:
        text = Text(f"{last['cause']}, {culprits}", style="dim")
        took = age(last["first_step"] - (last["suspected"] or last["confirmed"]))
        text.append(f" at {stamp(last['confirmed'])[:8]}: training again after {took}")
        if last["steps_lost"] is not None:
            text.append(f", {last['steps_lost']} steps lost")
        return [("incident", text)]
    text.append(f": {printable(last['why'] or 'evidence is gathered')}", "not bold")
    rows = [("incident", text)]
    for evidence in last["evidence"][:3]:
        rows.append(("", Text(printable(evidence["text"])[: WIDTH - 13], style="dim")))
    if last["remedy"]:
        rows.append(("remedy", Text(printable(last["remedy"]))))
    return rows
