"""`superv attach`: watch a run, and start its engine where none is running."""

from __future__ import annotations

import sys

import click

from supervisor.host.terminal import printable


@click.command()
@click.argument("run")
@click.option(
    "--adopt",
    is_flag=True,
    help="Where its journal is lost: take the run up as its agents know it. The ranks go on.",
)
def attach(run: str, adopt: bool) -> None:
    """Watch RUN. Ctrl-C detaches and does not stop the job."""
    import getpass
    import os

    from supervisor.cli.watch import exit_code, watch
    from supervisor.config import load_site
    from supervisor.engine import launching
    from supervisor.engine.spawn import ensure_engine, lives
    from supervisor.run import folder

    found = folder.find(load_site(os.environ).state_dir, run)
    if adopt:
        click.echo(f"asking the agents of {run}; this takes up to a minute")
        launching.adopt(found, who=getpass.getuser())
        click.echo(f"run {run} is adopted; the lost journal is kept beside the new one")
    elif not lives(found):
        state = found.load()
        if state.ended and not state.live_jobs:
            click.echo(printable(f"run {run} is {state.phase.value}: {state.reason}"))
            sys.exit(exit_code(state.phase))
        ensure_engine(found)
        click.echo(f"the engine of {run} was started again")
    sys.exit(watch(found))
