"""`superv check`: run health checks on this node and show what they found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.numbers import Number
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from healthchecks.frame.check import Check
    from healthchecks.frame.report import Finding, Report
    from healthchecks.frame.switched_off import SwitchedOff
    from supervisor.config import Site


@click.command()
@click.argument("names", metavar="[CHECK]…", nargs=-1)
@click.option("--check", "more", metavar="CHECK", multiple=True, help="These checks alone.")
@click.option("--tags", help="The suites, with commas; preflight where no check is named.")
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path, readable=False),
    help="Read /proc and /sys below here.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, readable=False),
    help="Keep counters between runs here.",
)
@click.option(
    "--deadline", type=Number(1, 86_400, "seconds"), help="For all of it; 60, deep suites longer."
)
@click.option("--list", "listing", is_flag=True, help="Show the checks and their settings.")
@click.option("--explain", is_flag=True, help="Say all that is known of the checks; run none.")
@click.option("--all", "everything", is_flag=True, help="Also show what passed or does not apply.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/checks.md.")
@click.option("--nagios", is_flag=True, help="Print as a Nagios plugin does, with its exit codes.")
def check(
    names: tuple[str, ...],
    more: tuple[str, ...],
    tags: str | None,
    sets: tuple[str, ...],
    root: Path | None,
    state: Path | None,
    deadline: float | None,
    listing: bool,
    explain: bool,
    everything: bool,
    as_json: bool,
    nagios: bool,
) -> None:
    """Run the health checks named CHECK (`gpu` means all of gpu.*); --tags narrows them.

    \b
    Suites:
      preflight  before a run, on an idle node; all of it under 10 s
      prolog     cheap enough for Slurm's Prolog; all of it under 2 s
      running    safe beside a training job
      deep       loads GPUs, links or storage; idle nodes only, minutes

    Exit code 0: nothing failed; 1: something did; 3: nothing failed, but something could not be
    measured. With --nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    """
    import os
    import signal

    from healthchecks.frame import report as documents
    from healthchecks.frame.registry import select
    from healthchecks.frame.runner import Order, enough_s, run
    from healthchecks.frame.settings import of_site
    from healthchecks.frame.state import default_folder
    from supervisor.config import load_site

    names += more
    site = load_site(os.environ)
    settings = of_site(site, sets)  # the site's own checks are known from here on
    chosen = tuple(tag.strip() for tag in tags.split(",")) if tags else ()
    if explain and not names:
        raise click.UsageError("--explain: name the checks; superv check --list shows all")
    if explain:
        _explain(select(names, chosen), as_json)
        return
    if listing:
        shown = select(names, chosen) if names or chosen else select(tags=_all_tags())
        _list(shown, as_json, _off(shown, site, sets))
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
            settings=settings,
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
    from healthchecks.frame.check import TAGS

    return tuple(TAGS)


def show(report: Report, *, everything: bool) -> None:
    """The findings, worst first, and one line that counts them."""
    from healthchecks.frame.check import Gap
    from supervisor.core.check_status import WORST_FIRST, Status

    hidden = () if everything else (Status.OK, Status.SKIP)
    page: list[Any] = []
    for status in WORST_FIRST:
        for finding in report.having(status):
            if status not in hidden:
                page += shown(finding)
    if everything:
        for finding in report.gaps():
            page += shown(finding)
    page += [f"note: {note}" for note in report.notes]
    counts = [(s, len(report.having(s))) for s in WORST_FIRST]
    counts_apart = [(gap.value, len(report.gaps(gap))) for gap in Gap]
    tally = ", ".join(f"{n} {s.value}" for s, n in counts if n)
    tally += "".join(f", {n} not measured ({why})" for why, n in counts_apart if n)
    page.append(f"{report.node}: {tally or 'no checks'}; took {report.took_s:.2f} s")
    terminal.show(page)


def shown(finding: Finding) -> Iterator[terminal.Entry]:
    """A finding: its status and name, what was seen, and what to do."""
    status, result = finding.status.value, finding.result
    label = terminal.styled((status, terminal.style_of(status)))
    yield terminal.entry(label, finding.name, 8)
    expected = f" (expected: {result.expected})" if result.expected else ""
    yield terminal.entry("", result.seen + expected, 8)
    if result.fix:
        yield terminal.entry("        → ", result.fix, 8)


def _here() -> tuple[str, str]:
    """This node's name, and the partition of the job that this is in."""
    import os
    import socket

    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return node, os.environ.get("SLURM_JOB_PARTITION", "")


def _off(checks: list[Check], site: Site, sets: tuple[str, ...]) -> dict[str, list[SwitchedOff]]:
    """What is switched off on this node, by check."""
    from healthchecks.frame.settings import given
    from healthchecks.frame.switched_off import switched_off

    found: dict[str, list[SwitchedOff]] = {}
    for one in switched_off(checks, site, *_here(), given(sets)):
        found.setdefault(one.check, []).append(one)
    return found


def _list(checks: list[Check], as_json: bool, off: Mapping[str, list[SwitchedOff]]) -> None:
    if as_json:
        import json

        from healthchecks.frame.catalogue import document

        rows = document(checks)
        for row in rows["checks"]:
            said = off.get(row["check"], [])
            row["enabled"] = all(one.switches.enabled for one in said)
            row["ignored"] = [item for one in said for item in one.switches.ignore]
            row["switched_off"] = [{"what": one.what, "where": one.where} for one in said]
        click.echo(json.dumps(rows, indent=2))
        return
    page: list[Any] = []
    for item in checks:
        page.append(terminal.entry(item.name, ", ".join(sorted(item.tags)), 21))
        for one in off.get(item.name, []):
            page.append(terminal.entry("", f"switched off here: {one.what} ({one.where})", 4))
        page.append(terminal.entry("", item.summary, 4))
        for option in item.options().values():
            unit = f" {option.about.unit}" if option.about.unit else ""
            value = f"--set {item.name}.{option.name}={_value(option.default)}{unit}"
            page.append(terminal.entry("", value, 4, hang=2))
    terminal.show(page)


def _explain(checks: list[Check], as_json: bool) -> None:
    """What docs/checks/ says of them."""
    import json

    from healthchecks.frame.catalogue import document, explained

    if as_json:
        click.echo(json.dumps(document(checks), indent=2))
        return
    page: list[Any] = []
    for item in checks:
        page.append(terminal.styled((item.name, "bold")))
        for label, text in explained(item):
            page.append(terminal.entry(f"  {label}", text, 14))
    terminal.show(page)


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
