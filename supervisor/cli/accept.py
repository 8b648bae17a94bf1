"""`superv accept`: the full suites on new or repaired nodes; what they measure is the baseline."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from healthchecks.remote import Answer
    from healthchecks.report import Report

TAGS = ("preflight", "deep")


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
    and keeps what the last round measured as each node's baseline. A node that fails in any round
    is not accepted. Exit code 0: all accepted; 1: some are not.
    """
    import json

    from healthchecks.check import Status
    from supervisor.cli.nodes import named
    from supervisor.core.errors import UserError

    if rounds < 1:
        raise UserError(f"--rounds {rounds}: expected 1 or more")
    names = named(node_list)
    refused: dict[str, str] = {}
    reports: dict[str, Report] = {}
    for number in range(1, rounds + 1):
        click.echo(f"round {number} of {rounds}: {', '.join(sorted(TAGS))}", err=True)
        answers = _round(names, sets, deadline, forget=number == 1)
        for node, answer in answers.items():
            report = answer.report
            if report is None:
                refused.setdefault(node, f"not asked: {answer.why}")
                continue
            reports[node] = report
            bad = report.having(Status.FAIL, Status.UNKNOWN)
            if bad:
                told = "; ".join(f"{f.name} {f.status.value}: {f.result.seen}" for f in bad)
                refused.setdefault(node, f"round {number}: {told}")
    _keep(reports, refused)
    if as_json:
        click.echo(json.dumps({n: r.document() for n, r in reports.items()}, indent=2))
    for node in names:
        why = refused.get(node)
        click.echo(f"{node}: {'not accepted: ' + why if why else 'accepted'}", err=as_json)
    sys.exit(1 if refused else 0)


def _round(
    names: tuple[str, ...], sets: tuple[str, ...], deadline: float, *, forget: bool
) -> Mapping[str, Answer]:
    import asyncio

    from healthchecks.remote import Suite, examine
    from healthchecks.settings import merged
    from healthchecks.storage_width import together
    from supervisor.config import load_site

    site = load_site(os.environ)
    suite = Suite(
        tags=TAGS, settings=together(merged(os.environ, sets), time.time()), forget=forget
    )
    return asyncio.run(examine(names, suite, site, deadline_s=deadline))


def _keep(reports: Mapping[str, Report], refused: Mapping[str, str]) -> None:
    from supervisor.config import load_site
    from supervisor.fleet import Fleet

    with Fleet(load_site(os.environ).fleet) as fleet:
        fleet.record(reports.values(), "accept")
        for node, report in reports.items():
            if node not in refused:
                fleet.accept(report)
