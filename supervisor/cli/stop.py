"""`superv stop`: end a run and give its nodes back."""

from __future__ import annotations

import click

from supervisor.host import terminal


@click.command()
@click.argument("run")
@click.option("--now", is_flag=True, help="SIGKILL the ranks instead of SIGTERM and a grace.")
def stop(run: str, now: bool) -> None:
    """End RUN: its ranks, its agents and its Slurm job."""
    import getpass
    import os

    from supervisor.config import load_site
    from supervisor.engine import control
    from supervisor.engine.lost_run import end_jobs
    from supervisor.engine.spawn import ensure_engine, lives
    from supervisor.run import folder
    from supervisor.run.journal import LostJournalError

    found = folder.find(load_site(os.environ).state_dir, run)
    if not lives(found):
        try:
            state = found.load()
        except LostJournalError as lost:
            _end_lost(run, end_jobs(found), lost.problem)
            return
        if state.ended and not state.live_jobs:
            why = terminal.printable(state.reason)
            click.echo(f"run {run} has ended already: {state.phase.value} ({why})")
            return
        ensure_engine(found)
    for _ in control.ask(found.socket, {"do": "stop", "who": getpass.getuser(), "now": now}):
        pass
    click.echo(f"run {run} is being stopped; `superv attach {run}` shows how")


def _end_lost(run: str, jobs: tuple[str, ...], problem: str) -> None:
    """What is to be said of a run that has no journal to keep its end in."""
    what = f"job {', '.join(jobs)} was cancelled and is gone" if jobs else "it has no job any more"
    click.echo(
        terminal.printable(
            f"run {run}: {what}; its journal is lost ({problem}), so `superv launch JOB.YAML "
            "--from CHECKPOINT` begins again"
        )
    )
