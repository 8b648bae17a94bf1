"""`superv attach`: watch a run, and start its engine where none lives."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("run")
def attach(run: str) -> None:
    """Watch RUN. Ctrl-C detaches and does not stop the job."""
    import os

    from supervisor import app, runs
    from supervisor.cli.watch import watch
    from supervisor.config import load_site

    found = runs.find(load_site(os.environ).state_dir, run)
    state = found.load()
    if state is not None and state.ended and not state.live_jobs:
        click.echo(f"run {run} is {state.phase.value}: {state.reason}")
        sys.exit(3 if state.phase.value == "held" else 0)
    if app.ensure_engine(found):
        click.echo(f"the engine of {run} was started again")
    sys.exit(watch(found))
