"""The view of a living run on a terminal: what happened scrolls above a panel that renews."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from supervisor.cli.run_words import pace, waited_for
from supervisor.core.nodeset import compress
from supervisor.core.status import state_word
from supervisor.host.terminal import (
    WIDTH,
    Live,
    duration,
    facts,
    one_line,
    style_of,
    styled,
    time_of_day,
)

if TYPE_CHECKING:
    from supervisor.host.terminal import Table, Text

ENGINE_SILENT_S = 5.0  # the engine tells its status every second
BAD_SHOWN = 8  # nodes that are listed one by one
LABEL = 10  # columns
ROOM = WIDTH - LABEL - 2


class View:
    """Shows a run on a terminal."""

    def __init__(self) -> None:
        self._status: dict[str, Any] | None = None
        self._heard = 0.0
        self._live = Live(self._panel)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        self._live.__exit__(*why)

    def line(self, when: str, text: str) -> None:
        self._live.line(styled((f"{when:<10} ", "dim"), (text, _style_of_line(text))))

    def status(self, status: dict[str, Any]) -> None:
        self._status, self._heard = status, time.monotonic()

    def _panel(self) -> Table:
        if self._status is None:
            return facts((), LABEL)
        silent = time.monotonic() - self._heard
        return panel(self._status, silent)


def _style_of_line(text: str) -> str:
    word = text.partition(":")[0]
    urgent = " suspected" in text or word in ("stopping", "triage")
    return style_of(word, "yellow" if urgent else "")


def panel(status: dict[str, Any], engine_silence_s: float) -> Table:
    """The state of a run; `engine_silence_s`: how long ago the engine sent it."""
    now = status["now"] + engine_silence_s
    phase = status["phase"]
    reason = f": {status['reason']}" if status["reason"] else ""
    rows: list[tuple[str, str | Text]] = [
        (
            "run",
            styled(
                (status["name"], "bold"),
                (f"  {phase}", style_of(phase, "yellow")),
                f" for {duration(now - status['since'])}{reason}",
            ),
        ),
        *_attention(status, now),
        ("training", _training(status, now)),
        *_waits_for(status, now),
    ]
    newest = status["last_checkpoint"]
    if newest is not None:
        verified = f"step {newest['step']}, verified {duration(now - newest['verified_at'])} ago"
        rows.append(("checkpoint", f"{verified}; {newest['path']}"))
    else:
        rows.append(("checkpoint", "none verified yet: a restart begins at step 0"))
    rows += _nodes(status)
    rows += _incident(status)
    if engine_silence_s > ENGINE_SILENT_S:
        says = f"has not answered for {duration(engine_silence_s)}; the ranks go on without it"
        rows.append(("engine", styled((says, "bold yellow"))))
    rows.append(("", styled(("Ctrl-C detaches; the run goes on", "dim"))))
    return facts(rows, LABEL)


def _attention(status: dict[str, Any], now: float) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = []
    for one in status.get("attention", []):  # an engine of an older superv has none
        since = f" for {duration(now - one['since'])}" if one["since"] else ""
        words = (f"{one['text']}{since}", "bold yellow")
        rows.append(("attention", styled(words, (f"; {one['fix']}", "dim"))))
    return rows


def _waits_for(status: dict[str, Any], now: float) -> list[tuple[str, str | Text]]:
    words = waited_for(status, now)
    return [("waits for", styled((words, "yellow")))] if words else []


def _training(status: dict[str, Any], now: float) -> str | Text:
    if status["step"] is None:
        return "no step yet" if status["attempt"] is not None else "not begun"
    parts = [f"step {status['step']}"]
    if status["loss"] is not None:
        parts.append(f"loss {status['loss']:g}")
    if words := pace(status):
        parts.append(words)
    last = f"   last step {duration(now - status['step_at'])} ago"
    return styled("   ".join(parts), (last, "dim"))


def _nodes(status: dict[str, Any]) -> list[tuple[str, Text]]:
    """The node table: hostlists of those that are well, a line for each of the others."""
    bad = {node["node"]: node for node in status["unusable"]}
    slots = {slot["node"]: slot["slot"] for slot in status["slots"] if slot["node"]}
    rows: list[tuple[str, Text]] = []
    active = [node for node in slots if node not in bad]
    if active:
        rows.append(("active", _named(active, "green")))
    if status["spares"]:
        rows.append(("spare", _named(status["spares"], "cyan")))
    elif status["slots"]:
        rows.append(("spare", styled(("none left", "yellow"))))
    empty = [slot["slot"] for slot in status["slots"] if not slot["node"]]
    if empty:
        numbers = ", ".join(str(slot) for slot in empty)
        rows.append(("waiting", styled((f"slot {numbers}: no node yet", "yellow"))))
    excluded = {node["node"]: {**node, "state": "excluded"} for node in status["excluded"]}
    worse = list({**bad, **excluded}.values())
    for node in worse[:BAD_SHOWN]:
        rows.append((state_word(node["state"]), _bad(node, slots.get(node["node"]))))
    if len(worse) > BAD_SHOWN:
        rest = compress(node["node"] for node in worse[BAD_SHOWN:])
        rows.append(("and", styled((rest, "red"))))
    return rows


def _named(nodes: list[str], style: str) -> Text:
    names = one_line(compress(nodes), 2 * ROOM - 12)
    return styled((f"{len(nodes):>3}  ", f"bold {style}"), (names, style))


def _bad(node: dict[str, Any], slot: int | None) -> Text:
    where = f", slot {slot}" if slot is not None else ""
    since = time_of_day(node["since"], 0)
    name = (node["node"], style_of(node["state"], "yellow"))
    return styled(name, f"{where}, since {since}: {node['reason']}")


def _incident(status: dict[str, Any]) -> list[tuple[str, str | Text]]:
    """The incident under way, or the last one in a line."""
    if not status["incidents"]:
        return []
    last = status["incidents"][-1]
    what = f"{last['cause']}, {', '.join(last['culprits']) or 'nobody named'}"
    if last["first_step"] is not None:
        took = duration(last["first_step"] - (last["suspected"] or last["confirmed"]))
        text = f" at {time_of_day(last['confirmed'], 0)}: training again after {took}"
        if last["steps_lost"] is not None:
            text += f", {last['steps_lost']} steps lost"
        return [("incident", styled((what, "dim"), text))]
    why = last["why"] or "evidence is gathered"
    rows: list[tuple[str, str | Text]] = [("incident", styled((what, "bold"), f": {why}"))]
    for evidence in last["evidence"][:3]:
        rows.append(("", styled((one_line(evidence["text"], ROOM), "dim"))))
    if last["remedy"]:
        rows.append(("remedy", last["remedy"]))
    return rows
