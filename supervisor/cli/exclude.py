"""`superv exclude`: a person's word that keeps nodes out of runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from supervisor.cli.node_names import nodes_argument
from supervisor.cli.nodes import duration, one_reason
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.config import Site
    from supervisor.fleet.record import Fleet

SLURM_S = 10.0  # for its list of nodes


def _known(names: tuple[str, ...]) -> str:
    """Why it is not known that Slurm has these nodes; raises UserError where it has not."""
    import asyncio

    from launchers.slurm import Slurm
    from supervisor.config.schema import did_you_mean
    from supervisor.core.errors import TransientError, UserError

    try:
        there = asyncio.run(Slurm(deadline_s=SLURM_S).nodes())
    except (UserError, TransientError) as error:
        return str(error)
    strangers = [name for name in names if name not in there]
    if strangers:
        more = f" (nor {len(strangers) - 1} more of these)" if len(strangers) > 1 else ""
        guess = did_you_mean(strangers[0], there)
        raise UserError(
            f"{strangers[0]}: Slurm knows no such node{more}{guess}; sinfo -N lists them"
        )
    return ""


@click.command()
@nodes_argument(required=True)
@click.option("--reason", required=True, help="Why; others will read it at 3 a.m.")
@click.option("--for", "period", help="How long, as 12h or 2d; until it is included without.")
def exclude(nodes: tuple[str, ...], reason: str, period: str | None) -> None:
    """Keep NODES out of new runs, and out of the slots that runs refill."""
    from dataclasses import replace

    from supervisor.config import load_site
    from supervisor.core.nodeset import compress
    from supervisor.engine.clock import clock
    from supervisor.fleet import claims
    from supervisor.fleet.claims import Claim

    why = one_reason(reason, "--reason")
    now = clock()
    until = now + duration(period, "--for") if period is not None else None
    if unsure := _known(nodes):
        click.echo(f"superv: note: whether there are such nodes is not known: {unsure}", err=True)
    site = load_site(os.environ)

    def put(fleet: Fleet) -> None:
        for name in nodes:
            fleet.exclude(name, why, claims.user(), now, until)

    noted = written(site, put)
    if site.claims_dir:
        claim = Claim(node="", since=now, until=until, reason=why)
        claims.put(site.claims_dir, [replace(claim, node=name) for name in nodes])
    if noted:
        click.echo(f"superv: note: {noted}", err=True)
    end = f"until {terminal.day_time(until)}" if until else "until superv include"
    terminal.show([terminal.entry("", f"excluded {compress(nodes)} {end}: {why}", 0)])


def written(site: Site, work: Callable[[Fleet], object]) -> str:
    """Do it in the record; why it holds for this user's runs alone, where that is another's."""
    from supervisor.fleet.database import NoRightError
    from supervisor.fleet.record import Fleet

    try:
        with Fleet(site.fleet) as fleet:
            work(fleet)
    except NoRightError as error:
        if site.claims_dir is None:
            raise
        return f"a claim in {site.claims_dir}, which your own runs heed: {error}"
    return ""
