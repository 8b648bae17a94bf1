"""`superv exclude` and `include`: a person's word about nodes."""

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

    noted = _written(site, put)
    if site.claims_dir:
        claim = Claim(node="", since=now, until=until, reason=why)
        claims.put(site.claims_dir, [replace(claim, node=name) for name in nodes])
    if noted:
        click.echo(f"superv: note: {noted}", err=True)
    end = f"until {terminal.day_time(until)}" if until else "until superv include"
    terminal.show([terminal.entry("", f"excluded {compress(nodes)} {end}: {why}", 0)])


@click.command()
@nodes_argument(required=True)
@click.option("--force", is_flag=True, help="Also nodes that have not passed since.")
def include(nodes: tuple[str, ...], force: bool) -> None:
    """Let runs use NODES again, once each has passed a preflight since it was excluded."""
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import compress
    from supervisor.engine.clock import clock
    from supervisor.fleet import claims
    from supervisor.fleet.record import Fleet

    now, site = clock(), load_site(os.environ)
    mine = {c.node: c.since for c in claims.mine(site.claims_dir, now)} if site.claims_dir else {}
    with Fleet(site.fleet, write=False) as fleet:
        out = fleet.exclusions(now)
        strangers = [name for name in nodes if name not in out and name not in mine]
        if strangers:
            raise UserError(f"{compress(strangers)}: not excluded; superv nodes shows who is")
        late = [
            name
            for name in nodes
            if not (
                fleet.passes_since(out[name]) if name in out else fleet.passes(name, mine[name])
            )
        ]
    if late and not force:
        raise UserError(
            f"{compress(late)}: no preflight passed since the exclusion; run superv preflight "
            f"{compress(late)} first, or include with --force"
        )

    def lift(fleet: Fleet) -> None:
        for name in nodes:
            fleet.include(name, claims.user(), now)

    noted = _written(site, lift)
    if site.claims_dir:
        claims.take_back(site.claims_dir, nodes)
    if noted and set(nodes) & set(out):
        raise UserError(f"{compress(sorted(set(nodes) & set(out)))} stays excluded: {noted}")
    click.echo(f"included {compress(nodes)}")


def _written(site: Site, work: Callable[[Fleet], object]) -> str:
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
