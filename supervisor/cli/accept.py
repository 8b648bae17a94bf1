"""`superv accept`: the full suites on new or repaired nodes; what they measure is the baseline."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from supervisor.cli.node_names import nodes_argument
from supervisor.cli.numbers import Number
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from healthchecks.frame.report import Report
    from supervisor.config import Site

TAGS = ("preflight", "deep")


@click.command()
@nodes_argument(required=True)
@click.option(
    "--rounds",
    type=Number(1, 1000, whole=True),
    default=1,
    show_default=True,
    help="How often; more are a burn-in.",
)
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option(
    "--deadline",
    type=Number(30, 86_400, "seconds"),
    default=1800,
    show_default=True,
    help="For each round.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the reports of the last round.")
def accept(
    nodes: tuple[str, ...], rounds: int, sets: tuple[str, ...], deadline: float, as_json: bool
) -> None:
    """Accept NODES into the fleet: on day one, and after every repair.

    What checks remembered of the nodes, and older lines of the kernel's and the BMC's logs, count
    no more: from the last `superv nodes --repaired` on, or else from now. Runs the preflight and
    deep suites --rounds times, and keeps what the last round measured as each node's baseline. A
    node that fails in any round, or of which something is unknown, is not accepted, whatever the
    other rounds say. What could not
    be tested, for want of an earlier look, a right, DCGM or torch, is named. Exit code 0: all
    accepted; 1: some are not.
    """
    import json

    from healthchecks.frame.settings import merged
    from healthchecks.many.causes import gaps_of
    from supervisor.config import load_site

    site = load_site(os.environ)
    settings = _repaired(site, nodes, merged(os.environ, sets))
    refused: dict[str, str] = {}
    reports: dict[str, Report] = {}
    for number in range(1, rounds + 1):
        click.echo(f"round {number} of {rounds}: {', '.join(TAGS)}", err=True)
        reports, why = _round(nodes, site, settings, deadline)
        for node, text in why.items():
            refused.setdefault(node, f"round {number}: {text}")
        _record(site, reports)
    _accepted(site, [r for node, r in reports.items() if node not in refused])
    for note in gaps_of({n: r for n, r in reports.items() if n not in refused}):
        click.echo(terminal.printable(f"note: {note}"), err=True)
    if as_json:
        click.echo(json.dumps({n: r.document() for n, r in reports.items()}, indent=2))
    for node in nodes:
        answer = f"not accepted: {refused[node]}" if node in refused else "accepted"
        if node not in refused and (apart := reports[node].gaps()):
            answer += f"; not tested: {', '.join(f.name for f in apart)}"
        if node not in refused and (off := _switched_off(reports[node])):
            answer += f"; switched off: {', '.join(off)}"
        click.echo(terminal.printable(f"{node}: {answer}"), err=as_json)
    sys.exit(1 if refused else 0)


def _switched_off(report: Report) -> list[str]:
    from healthchecks.frame.switches import OFF

    return [f.name for f in report.findings if f.result.seen.startswith(OFF)]


def _repaired(
    site: Site, nodes: Sequence[str], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The settings, with when the nodes were repaired: as of now where nobody said."""
    from supervisor.core.setting import REPAIRS
    from supervisor.engine.clock import clock
    from supervisor.fleet import claims
    from supervisor.fleet.record import Fleet

    with Fleet(site.fleet) as fleet:
        fleet.repairs.begin_acceptance(nodes, clock(), claims.user())
        return {**settings, REPAIRS: fleet.repairs.newest()}


def _round(
    names: tuple[str, ...],
    site: Site,
    settings: Mapping[str, Mapping[str, Any]],
    deadline: float,
) -> tuple[dict[str, Report], dict[str, str]]:
    """The nodes' reports, compared with each other and the pinned profile, and who is refused."""
    import asyncio

    from healthchecks.frame.registry import registered
    from healthchecks.many import golden
    from healthchecks.many.cohort import judge
    from healthchecks.many.remote import Suite, examine
    from healthchecks.many.storage_width import together
    from supervisor.core.check_status import Status
    from supervisor.core.errors import TransientError

    suite = Suite(tags=TAGS, settings=together(settings, time.time()))
    profile = golden.load(site.golden) if site.golden else None
    try:
        answers = asyncio.run(examine(names, suite, site, deadline_s=deadline))
    except TransientError as error:  # one of many rounds: what the others found is kept
        return {}, dict.fromkeys(names, f"not asked: {error}")
    there = {node: a.report for node, a in answers.items() if a.report is not None}
    reports = dict(judge(there, registered(), profile).reports)
    why = {n: f"not asked: {a.why}" for n, a in answers.items() if a.report is None}
    for node, report in reports.items():
        if bad := report.having(Status.FAIL, Status.UNKNOWN):
            why[node] = "; ".join(f"{f.name} {f.status.value}: {f.result.seen}" for f in bad)
    return reports, why


def _record(site: Site, reports: Mapping[str, Report]) -> None:
    from supervisor.engine.clock import clock
    from supervisor.fleet.record import Fleet

    with Fleet(site.fleet) as fleet:
        fleet.record(reports.values(), "accept", now=clock())


def _accepted(site: Site, reports: Sequence[Report]) -> None:
    from supervisor.fleet.record import Fleet

    with Fleet(site.fleet) as fleet:
        for report in reports:
            fleet.accept(report)
