"""The report for a terminal and a pager: the same words with and without colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from supervisor.core.check_status import Status
from supervisor.host.terminal import (
    WIDTH,
    Entry,
    day_time,
    duration,
    entry,
    one_line,
    rendered,
    style_of,
    styled,
)
from supervisor.report.model import (
    Page,
    Problem,
    Row,
    RunPart,
    Trend,
    count,
    names,
    some,
)
from supervisor.report.words import amount, claimed, ends, fallen, out_of_use, point, waiting, zone

if TYPE_CHECKING:
    from supervisor.host.terminal import Text

MAX_NAME = 24  # columns of the heat map
MAX_ACTION_ITEMS = 12
MAX_CHANGES = 20
MAX_OFFENDERS = 10
# Each status has a letter of its own: colours only help.
LETTERS = {
    Status.FAIL: "F",
    Status.UNKNOWN: "?",
    Status.WARN: "w",
    Status.OK: ".",
    Status.SKIP: "-",
}
_STATUS_WIDTH = 10  # columns of a status at the beginning of an entry
_LABEL_WIDTH = 12

Lines = Iterator["str | Text | Entry"]


def text(page: Page, *, colour: bool) -> str:
    """The whole report."""
    sections = (
        _top(page),
        _run(page.run),
        _out_of_use(page),
        _map(page),
        _problems(page),
        _changes(page),
        _exclusions(page),
        _claims(page),
        _drains(page),
        _offenders(page),
        _slower(page),
        _trends(page),
    )
    lines: list[str | Text | Entry] = []
    for section in sections:
        part = list(section)
        lines += ["", *part] if lines and part else part
    return rendered(lines, colour=colour)


def _status(status: Status) -> Text:
    return styled("  ", (status.value, style_of(status.value)))


# --- the top ---


def _top(page: Page) -> Lines:
    verdict = page.verdict
    looked = f"newest look {day_time(page.looked_at)}" if page.looked_at else "no look yet"
    of = f"{page.cluster}, " if page.cluster else ""
    made = (
        f"superv report of {of}{day_time(page.at)} {zone(page.at)}, {looked}, record {page.record}"
    )
    yield entry("", made, 0, hang=2)
    yield ""
    word = verdict.status.value
    if verdict.can_run is not None:
        word = f"Can {page.run.name if page.run else 'it'} run? {verdict.can_run.upper()}"
    head = styled((word, style_of(verdict.status.value)), f": {verdict.text}")
    yield entry("", head, 0, hang=2)
    for name, nodes in verdict.groups.items():
        label = styled("  ", (f"{name:<9}", style_of(name)), f" {len(nodes):>4}  ")
        yield entry(label, names(nodes), 18)
    yield ""
    if not page.action_items:
        yield "No action is required." if verdict.nodes else "Nothing is known."
        return
    yield "ACTION REQUIRED"
    for item in page.action_items[:MAX_ACTION_ITEMS]:
        yield entry(_status(item.status), f"{item.who}  {item.what}", _STATUS_WIDTH)
        yield entry(f"{'':{_STATUS_WIDTH}}→ ", item.do, _STATUS_WIDTH + 2)
    if len(page.action_items) > MAX_ACTION_ITEMS:
        yield f"  and {len(page.action_items) - MAX_ACTION_ITEMS} more, below"


def _run(run: RunPart | None) -> Lines:
    if run is None:
        return
    yield f"run {run.name}".upper()
    step = f", step {run.step}" if run.step is not None else ""
    source = "" if run.engine else " (read from its journal)"
    why = f": {run.reason}" if run.reason else ""
    yield entry("", f"{run.phase} since {day_time(run.since)}{step}{source}{why}", 2)
    waits = ", ".join(slot for slot, node in run.slots.items() if not node)
    rows = [("slots", names(node for node in run.slots.values() if node) or "none")]
    rows += [("waiting", waits)] if waits else []
    rows += [("job", waiting(run.queued))] if run.queued else []
    rows += [("spares", names(run.spares) or "none")]
    rows += [("drained", f"{names(run.drained)}, in Slurm")] if run.drained else []
    rows += [("not used", f"{node} {reason}") for node, reason in run.unusable.items()]
    for incident in run.incidents:
        who = names(incident.culprits) or "nobody named"
        shown = f"{day_time(incident.at)} {incident.cause}, {who}: {incident.remedy}"
        rows.append(("incident", f"{shown} ({incident.runbook})"))
    for label, words in rows:
        yield entry(f"  {label}", words, _LABEL_WIDTH)


# --- nodes by check ---


def _map(page: Page) -> Lines:
    if not page.rows:
        return
    yield "NODES BY CHECK   F failed  ? unknown  w warning  . ok  - does not apply"
    if any(row.stale for row in page.rows):
        yield "  * not looked at for more than a day"
    areas = [a for a in page.areas if any(_is_bad(row, a) for row in page.rows)]
    wide = min(MAX_NAME, max(len(_name(row)) for row in page.rows))
    room = (WIDTH - wide - 14) // 2
    for start in range(0, max(len(areas), 1), room):
        part = areas[start : start + room]
        yield from _header(part, wide)
        for row in page.rows:
            yield _row(row, part, wide)
    if page.healthy:
        yield entry("  healthy: ", names(page.healthy), 11)


def _name(row: Row) -> str:
    return one_line(names(row.nodes), MAX_NAME)


def _is_bad(row: Row, area: str) -> bool:
    cell = row.cells.get(area)
    return cell is not None and cell.status not in (Status.OK, Status.SKIP)


def _header(areas: Sequence[str], wide: int) -> Lines:
    """A staircase of names, so that a column needs two characters."""
    left = " " * (wide + 14)
    for index in range(len(areas) - 1, -1, -1):
        yield left + "│ " * index + areas[index]


def _row(row: Row, areas: Sequence[str], wide: int) -> Text:
    state = f"{row.state}*" if row.stale else row.state
    cells: list[str | tuple[str, str]] = []
    for area in areas:
        cell = row.cells.get(area)
        letter = (LETTERS[cell.status], style_of(cell.status.value)) if cell else " "
        cells += [letter, " "]
    return styled(f"  {_name(row):<{wide}}  {state:<9} ", *cells)


# --- what is wrong, and what changed ---


def _problems(page: Page) -> Lines:
    if not page.problems:
        return
    yield "FINDINGS BY CAUSE"
    for problem in page.problems:
        yield from _problem(problem, page)


def _problem(problem: Problem, page: Page) -> Lines:
    many = f"{count(len(problem.nodes), 'node')}, " if len(problem.nodes) > 1 else ""
    title = f"{problem.title}: {many}{names(problem.nodes)}, since {day_time(problem.since)}"
    yield entry(_status(problem.status), title, _STATUS_WIDTH)
    lines = [
        (f"{names(seen.nodes)}: " if len(problem.seen) > 1 else "") + seen.text
        for seen in problem.seen[:3]
    ]
    if len(problem.seen) > 3:
        lines.append(f"and {len(problem.seen) - 3} more like these")
    if problem.expected:
        lines.append(f"expected: {problem.expected}")
    for line in lines:
        yield entry("", line, _STATUS_WIDTH, hang=2)
    if problem.fix:
        yield entry(f"{'':{_STATUS_WIDTH}}→ ", problem.fix, _STATUS_WIDTH + 2)
    age = page.at - problem.asked
    old = f"; last asked {duration(age)} ago" if age > 3600 else ""
    out = "; excluded already" if problem.excluded else ""
    yield entry("", f"{some(problem.pages)}{old}{out}", _STATUS_WIDTH)


def _changes(page: Page) -> Lines:
    yield f"CHANGED SINCE {day_time(page.since)}"
    if not page.changes:
        yield "  nothing"
    for group in page.changes[:MAX_CHANGES]:
        again = f" ({group.times} times)" if group.times > len(group.nodes) else ""
        was = group.was.value if group.was else "new"
        status = (f"{group.status.value:<7}", style_of(group.status.value))
        head = styled(f"  {day_time(group.at)} {was:>7} → ", status, " ")
        also = f" and {group.also} more" if group.also else ""
        shown = f"{names(group.nodes)} {group.finding}{also}{again}: {group.seen}"
        yield entry(head, one_line(shown, 180), 32)
    if len(page.changes) > MAX_CHANGES:
        yield f"  and {len(page.changes) - MAX_CHANGES} more; superv nodes NODE has a history"


# --- people, drains, repeat offenders, trends ---


def _out_of_use(page: Page) -> Lines:
    if not page.out_of_use:
        return
    yield "OUT OF USE, AS SLURM AND YOUR RUNS SAY"
    for one in page.out_of_use:
        yield entry("", f"{names(one.nodes)}  {out_of_use(one)}", 2, hang=2)


def _exclusions(page: Page) -> Lines:
    if not page.exclusions:
        return
    yield "EXCLUDED BY PEOPLE"
    for out in page.exclusions:
        shown = f"{names(out.nodes)} {ends(out, page.at)}, by {out.by}: {out.reason}"
        yield entry("", shown, 2, hang=2)


def _claims(page: Page) -> Lines:
    if not page.claims:
        return
    yield "KEPT OUT BY USERS OF THEIR OWN RUNS"
    for claim in page.claims:
        yield entry("", f"{names(claim.nodes)}: {claimed(claim)}", 2, hang=2)


def _drains(page: Page) -> Lines:
    if not page.drains:
        return
    yield "DRAINED BY SUPERV"
    for drain in page.drains:
        shown = f"{drain.node} since {day_time(drain.since)}: {drain.reason}"
        yield entry("", shown, 2, hang=2)


def _offenders(page: Page) -> Lines:
    if not page.offenders:
        return
    yield "WORST NODES OVER 28 DAYS   (days on which a check of its own failed)"
    for one in page.offenders[:MAX_OFFENDERS]:
        strip = "".join(str(min(n, 9)) if n else "·" for n in one.days)
        checks = ", ".join(f"{name} {n}" for name, n in one.checks.items())
        yield entry(f"  {one_line(one.node, 18):<18} {one.strikes:>3} x  {strip}  ", checks, 56)
    if len(page.offenders) > MAX_OFFENDERS:
        yield f"  and {len(page.offenders) - MAX_OFFENDERS} more"


def _slower(page: Page) -> Lines:
    if not page.slower:
        return
    yield "SLOWER THAN WHEN ACCEPTED"
    for one in page.slower:
        yield entry("", f"{one.node} {fallen(one)}", 2, hang=2)


def _trends(page: Page) -> Lines:
    if not page.trends and not page.all_zero:
        return
    yield f"MEASURED SINCE {day_time(page.trends_since)}   (each node's worst device)"
    for trend in page.trends:
        yield from _trend(trend)
    if page.all_zero:
        yield entry("", f"zero on every node: {', '.join(page.all_zero)}", 2, hang=2)


def _trend(trend: Trend) -> Lines:
    low, high = amount(trend.lowest.value, trend.unit), amount(trend.highest.value, trend.unit)
    spread = low if low == high else f"{low} to {high}"
    usual = f"usual worst {amount(trend.median, trend.unit)}, {count(trend.nodes, 'node')}"
    yield entry("", f"{trend.title}: {spread}, {usual}", 2, hang=2)
    for outlier in trend.outliers:
        yield entry("    ! ", f"{outlier.node} {point(outlier.worst, trend.unit)}", 6)
