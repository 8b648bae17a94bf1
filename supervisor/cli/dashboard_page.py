"""The pages of `superv watch`: a run or all runs as lines for a screen of so many columns and rows.

Pure: a document in, lines out. What does not fit is scrolled; a wide screen has two columns.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supervisor.cli.run_words import pace, rank_phases, waited_for
from supervisor.core.nodeset import compress
from supervisor.core.status import state_word
from supervisor.core.types import ENDED
from supervisor.host import terminal
from supervisor.host.terminal import duration, entry, one_line, style_of, styled, time_of_day

WIDE = 140  # columns from which there are two
LABEL = 11
DAY_S = 86_400.0  # what is older is told by its day
INCIDENTS, LOG_LINES = 3, 4  # shown at least, where there are so many
FEW_SLOTS = 8  # so many are listed one by one
LEAST = (40, 8)  # columns, rows
HELP = "q quit   ↑↓ scroll   ← all runs"
HELP_LIST = "q quit   ↑↓ choose   ⏎ open"
# A slot in the map of slots: letters, so that colours say nothing that is not there without them.
LETTERS: Mapping[str, str] = {
    **{"ready": ".", "suspect": "s", "lost": "L", "unfit": "u", "left": "l", "": "_"},
}
MEANS = {"s": "suspect", "L": "lost", "u": "unusable", "l": "left", "_": "waits for a node"}

Line = terminal.Entry | Any


@dataclass(slots=True)
class Look:
    """What a person looks at: how large the screen is, how far it is scrolled, what is chosen."""

    columns: int = 80
    rows: int = 24
    scroll: int = 0
    chosen: int = 0
    colour: bool = False
    note: str = ""  # what is wrong with the view itself
    more: int = field(default=0, init=False)  # lines below what is shown: set by a page

    def lines(self, parts: Sequence[Line], columns: int) -> list[str]:
        return terminal.rendered(parts, colour=self.colour, columns=columns).splitlines()


# --- one run --------------------------------------------------------------------------------------


def run_page(
    run: Mapping[str, Any], log: Sequence[Mapping[str, Any]], now: float, look: Look
) -> list[str]:
    """The run's document (docs/status.md) and what its engine said; `now` as the reader's clock."""
    if run["phase"] is None:
        problem = entry("", styled((f"{run['problem']}; {run['fix']}", "bold red")), 0)
        return _framed(look, _title(look, run["run"], "", now), look.lines([problem], look.columns))
    head = _title(look, _name(run), _phase(run, now), now)
    left = list(_standing(run, now))
    incidents = list(_incidents(run, now))
    if look.columns >= WIDE:
        wide = look.columns * 11 // 20
        beside = look.columns - wide - 2
        body = _beside(
            look.lines(left, wide), _right(look, incidents, log, beside, look.rows - 2), wide
        )
        return _framed(look, head, body)
    lines = look.lines(left, look.columns)
    room = look.rows - 2 - len(lines)
    lines += _right(look, incidents, log, look.columns, room)
    return _framed(look, head, lines)


def _right(
    look: Look,
    incidents: Sequence[Line],
    log: Sequence[Mapping[str, Any]],
    columns: int,
    room: int,
) -> list[str]:
    """Incidents and the newest lines of the log, as many as there is room for."""
    told = [look.lines([one], columns) for one in incidents]
    lines = look.lines(list(_log(log, columns)), columns)
    heads: list[str] = []
    left = room - min(len(lines), LOG_LINES) - (1 if lines else 0)
    for number, one in enumerate(told):
        if number >= 1 and len(heads) + len(one) > left:
            break
        heads += one
    found = [*([_rule(look, "incidents, the newest first", columns)] if heads else []), *heads]
    rest = max(LOG_LINES, room - len(found) - 1)
    if lines:
        found += [_rule(look, "log", columns), *lines[-rest:]]
    return found


def _name(run: Mapping[str, Any]) -> str:
    return f"{run.get('run', run['name'])} ({run['run_id'][:6]})"


def _phase(run: Mapping[str, Any], now: float) -> str:
    attempt = f", attempt {run['attempt']}" if run["attempt"] is not None else ""
    return f"{run['phase']} for {duration(now - run['since'])}{attempt}"


def _standing(run: Mapping[str, Any], now: float) -> Iterator[Line]:
    if run["reason"]:
        yield entry("why", run["reason"], LABEL)
    for one in run.get("attention", []):
        since = f" (for {duration(now - one['since'])})" if one["since"] else ""
        words = styled((f"{one['text']}{since}", "bold yellow"), f" → {one['fix']}")
        yield entry(styled(("attention", "bold yellow")), words, LABEL)
    if awaited := waited_for(dict(run), now):
        yield entry(styled(("waits for", "yellow")), awaited, LABEL)
    if not run.get("engine") and run["phase"] not in ENDED:
        fix = f"none is running here; `superv attach {run['name']}` starts it again"
        yield entry(styled(("engine", "bold yellow")), fix, LABEL)
    yield entry("training", _training(run, now), LABEL)
    newest = run["last_checkpoint"]
    saved = "none verified yet: a restart begins at step 0"
    if newest is not None:
        saved = f"step {newest['step']}, verified {duration(now - newest['verified_at'])} ago"
    yield entry("checkpoint", saved, LABEL)
    for job in run["allocations"]:
        if job["state"] != "ended":
            reason = f": {job['reason']}" if job["reason"] not in ("", "None") else ""
            text = f"{job['job_id']} {job['raw']}, {_nodes(len(job['nodes']))}{reason}"
            yield entry("job", text, LABEL)
    yield from _slots(run)
    yield from _others(run)


def _nodes(number: int) -> str:
    return f"{number} node{'' if number == 1 else 's'}"


def _training(run: Mapping[str, Any], now: float) -> Any:
    if run["step"] is None:
        return "no step yet" if run["attempt"] is not None else "not begun"
    parts = [f"step {run['step']}"]
    if run["loss"] is not None:
        parts.append(f"loss {run['loss']:g}")
    if words := pace(dict(run)):
        parts.append(words)
    ago = f"   last step {duration(now - run['step_at'])} ago" if run["step_at"] else ""
    return styled(("   ".join(parts), "bold"), ago)


def _slots(run: Mapping[str, Any]) -> Iterator[Line]:
    slots = run["slots"]
    if not slots:
        return
    phases = {n: p for p, names in (run.get("rank_phase_nodes") or {}).items() for n in names}
    if len(slots) <= FEW_SLOTS:
        for slot in slots:
            state = slot["state"] or ""
            word = state_word(state) if slot["node"] else "waits for a node"
            rank = f", ranks in {phases[slot['node']]}" if slot["node"] in phases else ""
            words = styled(f"{slot['node'] or '-'}  ", (word, style_of(state, "green")), rank)
            yield entry(f"slot {slot['slot']}", words, LABEL)
        return
    letters = [_letter(slot) for slot in slots]
    for first in range(0, len(letters), 60):
        tens = [letters[i : i + 10] for i in range(first, min(first + 60, len(letters)), 10)]
        cells = [
            (" " if i and not j else "", c) for i, t in enumerate(tens) for j, c in enumerate(t)
        ]
        parts = [part for gap, (c, style) in cells for part in (gap, (c, style))]
        yield entry(f"slot {first}", styled(*parts), LABEL)
    met = sorted({letter for letter, _ in letters} - {"."})
    if met:
        yield entry("", ", ".join(f"{c} {MEANS[c]}" for c in met), LABEL)
    well = [slot["node"] for slot in slots if slot["state"] == "ready"]
    if well:
        names = styled((f"{len(well)}  ", "bold green"), (compress(well), "green"))
        yield entry("active", names, LABEL)
    if shown := rank_phases(dict(run)):
        yield entry("ranks", shown, LABEL)


def _letter(slot: Mapping[str, Any]) -> tuple[str, str]:
    state = (slot["state"] or "") if slot["node"] else ""
    letter = LETTERS.get(state, "?")
    return letter, "green" if state == "ready" else style_of(state, "yellow")


def _others(run: Mapping[str, Any]) -> Iterator[Line]:
    """Spares, and nodes that no ranks are on, those alike together."""
    spares = run["spares"]
    if spares:
        names = styled((f"{len(spares)}  ", "bold cyan"), (compress(spares), "cyan"))
        yield entry("spares", names, LABEL)
    elif run["slots"]:
        yield entry("spares", styled(("none left", "yellow")), LABEL)
    if run.get("drained"):
        yield entry("drained", f"{compress(run['drained'])}: no ranks begin there", LABEL)
    alike: dict[tuple[str, str], list[str]] = {}
    for node in run["unusable"]:
        alike.setdefault((node["state"], node["reason"]), []).append(node["node"])
    for node in run["excluded"]:
        alike.setdefault(("excluded", node["reason"]), []).append(node["node"])
    for (state, reason), nodes in alike.items():
        word = (state_word(state), style_of(state, "yellow"))
        yield entry(styled(word), styled((compress(nodes), "bold"), f": {reason}"), LABEL)
    seen = Counter(one["status"] for one in run.get("health", []) if one["status"])
    bad = [one["node"] for one in run.get("health", []) if one["status"] in ("WARN", "FAIL")]
    if bad:
        counts = ", ".join(f"{seen[word]} {word}" for word in ("FAIL", "WARN", "OK") if seen[word])
        yield entry("checks", f"{counts}: {one_line(compress(bad), 200)}", LABEL)


def _incidents(run: Mapping[str, Any], now: float) -> Iterator[Line]:
    for one in reversed(run["incidents"]):
        culprits = ", ".join(one["culprits"]) or "nobody named"
        remedy = one["remedy"] or "under way"
        took = ""
        if one["first_step"] is not None:
            spent = one["first_step"] - (one["fault"] or one["suspected"] or one["confirmed"])
            took = f"; new steps after {duration(spent)}"
            if one["steps_lost"] is not None:
                took += f", {one['steps_lost']} lost"
        what = styled((f"{one['cause']}, {culprits}", "bold"), f": {remedy}{took}")
        at = one["confirmed"]
        when = time_of_day(at, 0) if now - at < DAY_S else terminal.day_time(at).partition(" ")[0]
        yield entry(styled((when, "dim")), what, LABEL)


def _log(log: Sequence[Mapping[str, Any]], columns: int) -> Iterator[Line]:
    for one in log:
        style = style_of(one["text"].partition(":")[0])
        words = one_line(one["text"], max(8, columns - LABEL))
        yield entry(styled((one["at"][:8], "dim")), styled((words, style)), LABEL)


# --- all runs -------------------------------------------------------------------------------------


def list_page(runs: Sequence[Mapping[str, Any]], now: float, look: Look) -> list[str]:
    """A line for every run, one of them chosen."""
    rows = []
    for number, run in enumerate(runs):
        mark = "▶" if number == look.chosen else " "
        if run["phase"] is None:
            rows.append((mark, run["run"], "", styled(("can't be read", "bold red")), "", ""))
            continue
        phase = styled((run["phase"], style_of(run["phase"])))
        step = "" if run["step"] is None else str(run["step"])
        tags = ", ".join(dict.fromkeys(one["what"] for one in run.get("attention", [])))
        since = duration(now - run["since"])
        rows.append((mark, run["run"], run["run_id"][:6], phase, since, f"{step:>9}  {tags}"))
    heads = ("", "RUN", "ID", "PHASE", "FOR", "     STEP")
    columns = [terminal.TableColumn(head, most=None if head else 1) for head in heads]
    lines = look.lines([terminal.table(columns, rows)] if rows else ["no runs"], look.columns)
    head = _title(look, "all runs", f"{len(runs)}", now)
    look.scroll = max(0, look.chosen + 4 - look.rows)
    return _framed(look, head, lines, HELP_LIST)


def waiting_page(name: str, look: Look) -> list[str]:
    """Before anything has come."""
    return _framed(look, _title(look, name, "asked for", time.time()), [])


# --- frames ---------------------------------------------------------------------------------------


def _title(look: Look, name: str, phase: str, now: float) -> str:
    word = phase.partition(" ")[0]
    clock = time_of_day(now, 0)
    left = styled(("superv ", "dim"), (name, "bold"), "  ", (phase, style_of(word, "yellow")))
    left.truncate(max(0, look.columns - len(clock) - 1), overflow="ellipsis", pad=True)
    return look.lines([left + styled(f" {clock}")], look.columns)[0]


def _rule(look: Look, words: str, columns: int) -> str:
    text = f"── {words} "
    return look.lines([styled((text.ljust(columns, "─")[:columns], "dim"))], columns)[0]


def _beside(left: list[str], right: list[str], wide: int) -> list[str]:
    height = max(len(left), len(right))
    rows = zip(
        left + [""] * (height - len(left)), right + [""] * (height - len(right)), strict=True
    )
    return [f"{terminal.padded(one, wide)}  {two}" for one, two in rows]


def _framed(look: Look, head: str, body: list[str], keys: str = HELP) -> list[str]:
    """The head, as much of the body as fits below, and what keys do."""
    if look.columns < LEAST[0] or look.rows < LEAST[1]:
        least = f"{LEAST[0]}x{LEAST[1]} at least"
        return [head, *look.lines([styled(least)], look.columns)][: look.rows]
    room = look.rows - 2
    look.scroll = max(0, min(look.scroll, len(body) - room))
    shown = body[look.scroll : look.scroll + room]
    look.more = len(body) - look.scroll - len(shown)
    more = f"   {look.more} more lines below" if look.more else ""
    note = f"{look.note}   " if look.note else ""
    foot = styled((note, "yellow"), (f"{keys}{more}", "dim"))
    foot.truncate(look.columns, overflow="ellipsis")
    shown += [""] * (room - len(shown))
    return [head, *shown, *look.lines([foot], look.columns)[:1]]
