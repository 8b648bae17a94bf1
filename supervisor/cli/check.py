"""`superv check`: run health checks on this node and show what they found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from healthchecks.check import Check
    from healthchecks.report import Finding, Report

WIDTH = 100
COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red", "UNKNOWN": "magenta", "SKIP": "white"}


@click.command()
@click.argument("names", metavar="[CHECK]…", nargs=-1)
@click.option("--tags", help="The suites to run, with commas; preflight where nothing is named.")
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Read /proc and /sys below here.",
)
@click.option("--state", type=click.Path(path_type=Path), help="Keep counters between runs here.")
@click.option("--deadline", type=float, help="Seconds for all of it; 60, deep suites longer.")
@click.option("--list", "listing", is_flag=True, help="Show the checks and their settings.")
@click.option("--all", "everything", is_flag=True, help="Also show what passed or does not apply.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/checks.md.")
@click.option("--nagios", is_flag=True, help="Print as a Nagios plugin does, with its exit codes.")
def check(
    names: tuple[str, ...],
    tags: str | None,
    sets: tuple[str, ...],
    root: Path | None,
    state: Path | None,
    deadline: float | None,
    listing: bool,
    everything: bool,
    as_json: bool,
    nagios: bool,
) -> None:
    """Run the health checks named CHECK (`gpu` means all of gpu.*); --tags narrows them.

    Exit code 0: nothing failed; 1: something did; 3: nothing failed, but something could not be
    measured. With --nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    """
    import os
    import signal

    from healthchecks import report as documents
    from healthchecks.registry import select
    from healthchecks.runner import Order, enough_s, run
    from healthchecks.settings import merged
    from healthchecks.state import default_folder

    chosen = tuple(tag.strip() for tag in tags.split(",")) if tags else ()
    if listing:
        _list(select(names, chosen) if names or chosen else select(tags=_all_tags()), as_json)
        return
    if not names and not chosen:
        chosen = ("preflight",)
    checks = select(names, chosen)
    folder = state if state is not None or root is not None else default_folder()
    for number in (signal.SIGTERM, signal.SIGHUP):  # the checks' processes end with this one
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    report = run(
        Order(
            checks=checks,
            settings=merged(os.environ, sets),
            tags=() if names else chosen,
            root=root or Path("/"),
            folder=folder,
            deadline_s=enough_s(checks) if deadline is None else deadline,
        )
    )
    if nagios:
        text, code = documents.nagios(report)
        click.echo(text)
        sys.exit(code)
    if as_json:
        import json

        click.echo(json.dumps(report.document(), indent=2))
    else:
        show(report, everything=everything or bool(names))
    sys.exit(documents.exit_code(report))


def _all_tags() -> tuple[str, ...]:
    from healthchecks.check import TAGS

    return tuple(TAGS)


def show(report: Report, *, everything: bool) -> None:
    """The findings, worst first, and one line that counts them."""
    from healthchecks.check import WORST_FIRST, Status

    hidden = () if everything else (Status.OK, Status.SKIP)
    for status in WORST_FIRST:
        for finding in report.having(status):
            if status not in hidden:
                _show(finding)
    for note in report.notes:
        click.echo(f"note: {note}")
    counts = [(s, len(report.having(s))) for s in WORST_FIRST]
    told = ", ".join(f"{n} {s.value}" for s, n in counts if n)
    click.echo(f"{report.node}: {told or 'no checks'}; took {report.took_s:.2f} s")


def _show(finding: Finding) -> None:
    import textwrap

    from healthchecks.report import printable

    status = finding.status.value
    click.echo(f"{click.style(f'{status:<8}', fg=COLOURS[status])}{printable(finding.name)}")
    result = finding.result
    expected = f" (expected: {result.expected})" if result.expected else ""
    indent = " " * 8
    for text, first in ((result.seen + expected, ""), (result.fix, "→ ")):
        if text:
            lines = textwrap.wrap(
                printable(text), WIDTH, initial_indent=indent + first, subsequent_indent=indent
            )
            click.echo("\n".join(lines))


def _list(checks: list[Check], as_json: bool) -> None:
    if as_json:
        import json

        from healthchecks.catalogue import document

        click.echo(json.dumps(document(checks), indent=2))
        return
    for item in checks:
        click.echo(f"{item.name:<20} {', '.join(sorted(item.tags))}")
        click.echo(f"    {item.summary}")
        for option in item.options().values():
            unit = f" {option.about.unit}" if option.about.unit else ""
            click.echo(f"    --set {item.name}.{option.name}={_value(option.default)}{unit}")


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
