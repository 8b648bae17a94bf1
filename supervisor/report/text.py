"""The report for a terminal and a pager: WIDTH columns, and the same without colours."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from healthchecks.check import Status
from supervisor.report.model import (
    Hand,
    Page,
    Problem,
    Row,
    RunPart,
    Trend,
    count,
    names,
    one_line,
    some,
)
from supervisor.report.words import ago, amount, ends, fallen, point, when, zone

WIDTH = 100
MOST_HANDS = 12
MOST_CHANGES = 20
MOST_OFFENDERS = 10
# Each status has a letter of its own: colours only help.
LETTERS = {
    Status.FAIL: "F",
    Status.UNKNOWN: "?",
    Status.WARN: "w",
    Status.OK: ".",
    Status.SKIP: "-",
}
_COLOURS = {
    Status.FAIL: "31",
    Status.UNKNOWN: "35",
    Status.WARN: "33",
    Status.OK: "32",
    Status.SKIP: "2",
}
Paint = Callable[[Status, str], str]


def text(page: Page, *, colour: bool) -> str:
    """The whole report."""
    paint: Paint = _painted if colour else lambda _, shown: shown
    sections = (
        _top(page, paint),
        _run(page.run, page),
        _map(page, paint),
        _problems(page, paint),
        _changes(page, paint),
        _exclusions(page),
        _drains(page),
        _offenders(page),
        _slower(page),
        _trends(page),
    )
    lines: list[str] = []
    for section in sections:
        part = list(section)
        lines += ([""] if lines and part else []) + part
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _painted(status: Status, shown: str) -> str:
    return f"\x1b[{_COLOURS[status]}m{shown}\x1b[0m"


def _wrapped(shown: str, first: str = "", rest: str = "", width: int = 0) -> list[str]:
    """Lines of WIDTH columns; `first` may hold colours: `width` is what it takes without."""
    lines = textwrap.wrap(shown, WIDTH - max(len(rest), width), break_on_hyphens=False) or [""]
    return [first + lines[0], *(rest + line for line in lines[1:])]


def _heading(shown: str) -> str:
    return f"{shown.upper()}"


# --- the top ---


def _top(page: Page, paint: Paint) -> Iterator[str]:
    verdict = page.verdict
    looked = f"newest look {when(page.looked_at)}" if page.looked_at else "no look yet"
    told = f"superv report of {when(page.at)} {zone(page.at)}, {looked}, record {page.record}"
    yield from _wrapped(told, rest="  ")
    yield ""
    word = verdict.status.value
    if verdict.can_run is not None:
        word = f"Can {page.run.name if page.run else 'it'} run? {verdict.can_run.upper()}"
    head = paint(verdict.status, word)
    lines = _wrapped(f"{word}: {verdict.text}", rest="  ")
    yield lines[0].replace(word, head, 1)
    yield from lines[1:]
    groups = (
        ("failed", verdict.failed),
        ("unknown", verdict.unknown),
        ("stale", verdict.stale),
        ("degraded", verdict.degraded),
        ("excluded", verdict.excluded),
        ("healthy", verdict.healthy),
    )
    for name, nodes in groups:
        if nodes:
            first = f"  {name:<9} {len(nodes):>4}  "
            yield from _wrapped(names(nodes), first, " " * len(first), len(first))
    yield ""
    if not page.hands:
        yield "Nothing needs a hand." if verdict.nodes else "Nothing is known."
        return
    yield _heading("needs a hand")
    for hand in page.hands[:MOST_HANDS]:
        yield from _hand(hand, paint)
    if len(page.hands) > MOST_HANDS:
        yield f"  and {len(page.hands) - MOST_HANDS} more, below"


def _hand(hand: Hand, paint: Paint) -> Iterator[str]:
    head = f"  {paint(hand.status, f'{hand.status.value:<7}')} "
    pad = " " * 10
    yield from _wrapped(f"{hand.who}  {hand.what}", head, pad, 10)
    yield from _wrapped(hand.do, pad + "→ ", pad + "  ", 12)


def _run(run: RunPart | None, page: Page) -> Iterator[str]:
    if run is None:
        return
    yield _heading(f"run {run.name}")
    step = f", step {run.step}" if run.step is not None else ""
    told = "" if run.engine else " (read from its journal)"
    why = f": {run.reason}" if run.reason else ""
    yield from _wrapped(f"{run.phase} since {when(run.since)}{step}{told}{why}", "  ", "  ", 2)
    waits = [slot for slot, node in run.slots.items() if not node]
    filled = names(node for node in run.slots.values() if node) or "none"
    yield from _wrapped(filled, "  slots     ", " " * 12, 12)
    if waits:
        yield from _wrapped(", ".join(waits), "  waiting   ", " " * 12, 12)
    yield from _wrapped(names(run.spares) or "none", "  spares    ", " " * 12, 12)
    for node, reason in run.unusable.items():
        yield from _wrapped(f"{node} {reason}", "  not used  ", " " * 12, 12)
    for incident in run.incidents:
        who = names(incident.culprits) or "nobody named"
        shown = f"{when(incident.at)} {incident.cause}, {who}: {incident.remedy}"
        yield from _wrapped(f"{shown} ({incident.runbook})", "  incident  ", " " * 12, 12)


# --- nodes by check ---


def _map(page: Page, paint: Paint) -> Iterator[str]:
    if not page.rows:
        return
    yield _heading("nodes by check") + "   F failed  ? unknown  w warning  . fine  - does not apply"
    if any(row.stale for row in page.rows):
        yield "  * not looked at for more than a day"
    told = [a for a in page.areas if any(_tells(row, a) for row in page.rows)]
    wide = min(24, max(len(_cut(names(row.nodes), 24)) for row in page.rows))
    room = (WIDTH - wide - 14) // 2
    for start in range(0, max(len(told), 1), room):
        part = told[start : start + room]
        yield from _header(part, wide)
        for row in page.rows:
            yield _row(row, part, wide, paint)
    if page.fine:
        yield from _wrapped(names(page.fine), "  fine: ", " " * 8, 8)


def _tells(row: Row, area: str) -> bool:
    cell = row.cells.get(area)
    return cell is not None and cell.status not in (Status.OK, Status.SKIP)


def _header(areas: Sequence[str], wide: int) -> Iterator[str]:
    """A staircase of names, so that a column needs two characters."""
    left = " " * (wide + 14)
    for index in range(len(areas) - 1, -1, -1):
        yield left + "│ " * index + areas[index]


def _row(row: Row, areas: Sequence[str], wide: int, paint: Paint) -> str:
    cells = []
    for area in areas:
        cell = row.cells.get(area)
        cells.append(paint(cell.status, LETTERS[cell.status]) if cell else " ")
    state = f"{row.state}*" if row.stale else row.state
    return f"  {_cut(names(row.nodes), wide):<{wide}}  {state:<9} " + " ".join(cells)


def _cut(shown: str, room: int) -> str:
    return one_line(shown, room)


# --- what is wrong, and what changed ---


def _problems(page: Page, paint: Paint) -> Iterator[str]:
    if not page.problems:
        return
    yield _heading("findings by cause")
    for problem in page.problems:
        yield from _problem(problem, page, paint)


def _problem(problem: Problem, page: Page, paint: Paint) -> Iterator[str]:
    many = f"{count(len(problem.nodes), 'node')}, " if len(problem.nodes) > 1 else ""
    title = f"{problem.title}: {many}{names(problem.nodes)}, since {when(problem.since)}"
    pad = " " * 10
    yield from _wrapped(title, f"  {paint(problem.status, f'{problem.status.value:<7}')} ", pad, 10)
    for seen in problem.seen[:3]:
        who = f"{names(seen.nodes)}: " if len(problem.seen) > 1 else ""
        yield from _wrapped(f"{who}{seen.text}", pad, pad + "  ", 10)
    if len(problem.seen) > 3:
        yield f"{pad}and {len(problem.seen) - 3} more like these"
    if problem.expected:
        yield from _wrapped(f"expected: {problem.expected}", pad, pad + "  ", 10)
    if problem.fix:
        yield from _wrapped(problem.fix, pad + "→ ", pad + "  ", 12)
    old = f"; last asked {ago(page.at - problem.asked)}" if page.at - problem.asked > 3600 else ""
    out = "; excluded already" if problem.excluded else ""
    yield from _wrapped(f"{some(problem.pages)}{old}{out}", pad, pad, 10)


def _changes(page: Page, paint: Paint) -> Iterator[str]:
    yield _heading(f"changed since {when(page.since)}")
    if not page.changes:
        yield "  nothing"
    for turn in page.changes[:MOST_CHANGES]:
        again = f" ({turn.times} times)" if turn.times > len(turn.nodes) else ""
        was = turn.was.value if turn.was else "new"
        head = f"  {when(turn.at)} {was:>7} → {paint(turn.status, f'{turn.status.value:<7}')} "
        also = f" and {turn.also} more" if turn.also else ""
        shown = f"{names(turn.nodes)} {turn.finding}{also}{again}: {turn.seen}"
        pad = " " * 32
        yield from _wrapped(one_line(shown, 180), head, pad, 32)
    if len(page.changes) > MOST_CHANGES:
        yield f"  and {len(page.changes) - MOST_CHANGES} more; superv nodes NODE has a history"


# --- people, drains, repeat offenders, trends ---


def _exclusions(page: Page) -> Iterator[str]:
    if not page.exclusions:
        return
    yield _heading("excluded by people")
    for out in page.exclusions:
        shown = f"{names(out.nodes)} {ends(out, page.at)}, by {out.by}: {out.reason}"
        yield from _wrapped(shown, "  ", "    ", 4)


def _drains(page: Page) -> Iterator[str]:
    if not page.drains:
        return
    yield _heading("drained by superv")
    for drain in page.drains:
        yield from _wrapped(f"{drain.node} since {when(drain.since)}: {drain.reason}", "  ", "    ")


def _offenders(page: Page) -> Iterator[str]:
    if not page.offenders:
        return
    yield _heading("worst nodes over 28 days") + "   (days on which a check of its own failed)"
    for one in page.offenders[:MOST_OFFENDERS]:
        strip = "".join(str(min(n, 9)) if n else "·" for n in one.days)
        checks = ", ".join(f"{name} {n}" for name, n in one.checks.items())
        pad = " " * 56
        head = f"  {_cut(one.node, 18):<18} {one.strikes:>3} x  {strip}  "
        yield from _wrapped(checks, head, pad, 56)
    if len(page.offenders) > MOST_OFFENDERS:
        yield f"  and {len(page.offenders) - MOST_OFFENDERS} more"


def _slower(page: Page) -> Iterator[str]:
    if not page.slower:
        return
    yield _heading("slower than when accepted")
    for one in page.slower:
        yield from _wrapped(f"{one.node} {fallen(one)}", "  ", "    ", 4)


def _trends(page: Page) -> Iterator[str]:
    if not page.trends and not page.quiet:
        return
    yield _heading(f"measured since {when(page.trends_since)}") + "   (each node's worst device)"
    for trend in page.trends:
        yield from _trend(trend)
    if page.quiet:
        yield from _wrapped(f"nought everywhere: {', '.join(page.quiet)}", "  ", "    ", 4)


def _trend(trend: Trend) -> Iterator[str]:
    low, high = amount(trend.lowest.value, trend.unit), amount(trend.highest.value, trend.unit)
    spread = low if low == high else f"{low} to {high}"
    yield from _wrapped(
        f"{trend.title}: {spread}, usual worst {amount(trend.median, trend.unit)}, "
        f"{count(trend.nodes, 'node')}",
        "  ",
        "    ",
        4,
    )
    for outlier in trend.outliers:
        yield from _wrapped(
            f"{outlier.node} {point(outlier.worst, trend.unit)}", "    ! ", " " * 6, 6
        )
