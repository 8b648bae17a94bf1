"""`superv accept`: the full suites on new or repaired nodes; what they measure is the baseline."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from healthchecks.report import Report
    from supervisor.config import Site

TAGS = ("preflight", "deep")
MOST_ROUNDS = 1000
DAY_S = 86_400


@click.command()
@click.argument("node_list", metavar="NODES")
@click.option("--rounds", default=1, show_default=True, help="How often; more are a burn-in.")
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option("--deadline", default=1800.0, show_default=True, help="Seconds for each round.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports of the last round.")
def accept(
    node_list: str, rounds: int, sets: tuple[str, ...], deadline: float, as_json: bool
) -> None:
    """Accept NODES into the fleet: on day one, and after every repair.

    Forgets what checks remembered of the nodes, runs the preflight and deep suites --rounds times,
    and keeps what the last round measured as each node's baseline. A node that fails in any round,
    or of which something is unknown, is not accepted, whatever the other rounds say. Exit code 0:
    all accepted; 1: some are not.
    """
    import json

    from healthchecks.report import printable
    from healthchecks.settings import merged
    from supervisor.cli.nodes import named
    from supervisor.config import load_site
    from supervisor.core.errors import UserError

    if not 1 <= rounds <= MOST_ROUNDS:
        raise UserError(f"--rounds {rounds}: expected 1 to {MOST_ROUNDS}")
    if not 30 <= deadline <= DAY_S:
        raise UserError(f"--deadline {deadline:g}: expected 30 to {DAY_S} seconds")
    names, site, settings = named(node_list), load_site(os.environ), merged(os.environ, sets)
    refused: dict[str, str] = {}
    reports: dict[str, Report] = {}
    for number in range(1, rounds + 1):
        click.echo(f"round {number} of {rounds}: {', '.join(TAGS)}", err=True)
        reports, why = _round(names, site, settings, deadline, forget=number == 1)
        for node, text in why.items():
            refused.setdefault(node, f"round {number}: {text}")
        _record(site, reports)
    _accepted(site, [r for node, r in reports.items() if node not in refused])
    if as_json:
        click.echo(json.dumps({n: r.document() for n, r in reports.items()}, indent=2))
    for node in names:
        told = f"not accepted: {refused[node]}" if node in refused else "accepted"
        click.echo(printable(f"{node}: {told}"), err=as_json)
    sys.exit(1 if refused else 0)


def _round(
    names: tuple[str, ...],
    site: Site,
    settings: Mapping[str, Mapping[str, Any]],
    deadline: float,
    *,
    forget: bool,
) -> tuple[dict[str, Report], dict[str, str]]:
    """The nodes' reports, compared with each other and the pinned profile, and who is refused."""
    import asyncio

    from healthchecks import golden
    from healthchecks.check import Status
    from healthchecks.cohort import judge
    from healthchecks.registry import registered
    from healthchecks.remote import Suite, examine
    from healthchecks.storage_width import together
    from supervisor.core.errors import TransientError

    suite = Suite(tags=TAGS, settings=together(settings, time.time()), forget=forget)
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
    from supervisor import app
    from supervisor.fleet import Fleet

    with Fleet(site.fleet) as fleet:
        fleet.record(reports.values(), "accept", now=app.clock())


def _accepted(site: Site, reports: Sequence[Report]) -> None:
    from supervisor.fleet import Fleet

    with Fleet(site.fleet) as fleet:
        for report in reports:
            fleet.accept(report)
