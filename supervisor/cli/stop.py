"""`superv stop`: end a run and give its nodes back."""

from __future__ import annotations

import click


@click.command()
@click.argument("run")
@click.option("--now", is_flag=True, help="SIGKILL the ranks instead of SIGTERM and a grace.")
def stop(run: str, now: bool) -> None:
    """End RUN: its ranks, its agents and its Slurm job."""
    import getpass
    import os

    from supervisor import app, control, runs
    from supervisor.config import load_site

    found = runs.find(load_site(os.environ).state_dir, run)
    state = found.load()
    if state is not None and state.ended and not state.live_jobs:
        click.echo(f"run {run} has ended already: {state.phase.value} ({state.reason})")
        return
    app.ensure_engine(found)
    for _ in control.ask(found.socket, {"do": "stop", "who": getpass.getuser(), "now": now}):
        pass
    click.echo(f"run {run} is being stopped; `superv attach {run}` shows how")
