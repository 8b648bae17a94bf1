"""The report for a ticket: short, and nothing from outside is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterator

from supervisor.host.terminal import day_time, one_line
from supervisor.report.model import Page, Problem, count, names, some
from supervisor.report.words import claimed, ends, fallen, out_of_use, point, zone

LONGEST = 300  # characters of one text
MAX_CHANGES = 15
MAX_OFFENDERS = 10
_MARKUP = re.compile(r"([\\`*_{}\[\]|~$])")  # CommonMark 2.4: a backslash takes its meaning
_NAMES = re.compile(r"([@#]|:(?=//))")  # people, tickets and links, which forges find in any text


def markdown(page: Page) -> str:
    """The whole report."""
    parts = (
        _top(page),
        _problems(page),
        _changes(page),
        _out(page),
        _offenders(page),
        _slower(page),
        _trends(page),
    )
    return "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"


def plain(text: str) -> str:
    """The text, with nothing in it that Markdown or HTML would take for its own."""
    shown = _MARKUP.sub(r"\\\1", one_line(text, LONGEST))
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _NAMES.sub("\\1\N{ZERO WIDTH SPACE}", shown)


def _top(page: Page) -> Iterator[str]:
    verdict = page.verdict
    word = verdict.status.value
    if page.run is not None:
        word = f"Can {plain(page.run.name)} run? {(verdict.can_run or '').upper()}"
    yield f"## {word}: {plain(verdict.text)}"
    yield ""
    made = f"{day_time(page.at)} {zone(page.at)}"
    of = f"{plain(page.cluster)}, " if page.cluster else ""
    yield f"superv report of {of}{made}, newest look {day_time(page.looked_at)}."
    yield ""
    if verdict.nodes:
        yield "| state | nodes | |"
        yield "|---|---|---|"
    for name, nodes in verdict.groups.items():
        yield f"| {name} | {len(nodes)} | {plain(names(nodes))} |"
    if page.action_items:
        yield ""
        yield "### Action required"
        yield ""
    for item in page.action_items:
        yield f"1. {item.status.value} **{plain(item.who)}** {plain(item.what)}"
        yield f"   → {plain(item.do)}"


def _problems(page: Page) -> Iterator[str]:
    if not page.problems:
        return
    yield "### Findings by cause"
    yield ""
    for problem in page.problems:
        yield from _problem(problem)


def _problem(problem: Problem) -> Iterator[str]:
    who = plain(names(problem.nodes))
    many = f" ({count(len(problem.nodes), 'node')})" if len(problem.nodes) > 1 else ""
    out = ", excluded already" if problem.excluded else ""
    yield (
        f"- {problem.status.value} **{plain(problem.title)}**: {who}{many}, "
        f"since {day_time(problem.since)}{out}"
    )
    for seen in problem.seen[:3]:
        on = f"{plain(names(seen.nodes))}: " if len(problem.seen) > 1 else ""
        yield f"  - {on}{plain(seen.text)}"
    if len(problem.seen) > 3:
        yield f"  - and {len(problem.seen) - 3} more like these"
    if problem.expected:
        yield f"  - expected: {plain(problem.expected)}"
    if problem.fix:
        yield f"  - → {plain(problem.fix)}"
    yield f"  - {some(problem.pages)}"


def _changes(page: Page) -> Iterator[str]:
    yield f"### Changed since {day_time(page.since)}"
    yield ""
    if not page.changes:
        yield "Nothing."
        return
    yield "| when | what | nodes | check | seen |"
    yield "|---|---|---|---|---|"
    for group in page.changes[:MAX_CHANGES]:
        was = group.was.value if group.was else "new"
        again = f", {group.times} times" if group.times > len(group.nodes) else ""
        also = f" and {group.also} more" if group.also else ""
        yield (
            f"| {day_time(group.at)} | {was} → {group.status.value}{again} "
            f"| {plain(names(group.nodes))} | {plain(group.finding)}{also} | {plain(group.seen)} |"
        )
    if len(page.changes) > MAX_CHANGES:
        yield ""
        yield f"and {len(page.changes) - MAX_CHANGES} more"


def _out(page: Page) -> Iterator[str]:
    if not (page.exclusions or page.claims or page.drains or page.out_of_use):
        return
    yield "### Excluded and drained"
    yield ""
    for one in page.out_of_use:
        yield f"- **{plain(names(one.nodes))}** out of use: {plain(out_of_use(one))}"
    for out in page.exclusions:
        yield (
            f"- **{plain(names(out.nodes))}** {ends(out, page.at)}, by {plain(out.by)}: "
            f"{plain(out.reason)}"
        )
    for claim in page.claims:
        yield f"- **{plain(names(claim.nodes))}** kept out by {plain(claimed(claim))}"
    for drain in page.drains:
        yield (
            f"- **{plain(drain.node)}** drained by superv since {day_time(drain.since)}: "
            f"{plain(drain.reason)}"
        )


def _offenders(page: Page) -> Iterator[str]:
    if not page.offenders:
        return
    yield "### Worst nodes over 28 days"
    yield ""
    for one in page.offenders[:MAX_OFFENDERS]:
        checks = ", ".join(f"{name} {n}" for name, n in one.checks.items())
        yield f"- **{plain(one.node)}** {count(one.strikes, 'strike')}: {plain(checks)}"
    if len(page.offenders) > MAX_OFFENDERS:
        yield f"- and {len(page.offenders) - MAX_OFFENDERS} more"


def _slower(page: Page) -> Iterator[str]:
    if not page.slower:
        return
    yield "### Slower than when accepted"
    yield ""
    for one in page.slower[:MAX_OFFENDERS]:
        yield f"- **{plain(one.node)}** {plain(fallen(one))}"
    if len(page.slower) > MAX_OFFENDERS:
        yield f"- and {len(page.slower) - MAX_OFFENDERS} more"


def _trends(page: Page) -> Iterator[str]:
    odd = [(trend, outlier) for trend in page.trends for outlier in trend.outliers]
    if not odd:
        return
    yield f"### Far from the others since {day_time(page.trends_since)}"
    yield ""
    for trend, outlier in odd:
        yield (
            f"- **{plain(outlier.node)}** {trend.title}: "
            f"{plain(point(outlier.worst, trend.unit))} (usual worst {trend.median:g})"
        )
