"""`superv resume`: go on with a run that has ended."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option("--include", metavar="NODE", multiple=True, help="Exclude NODE no longer.")
@click.option("--forget-exclusions", is_flag=True, help="Exclude no node any longer.")
@click.option(
    "--config",
    metavar="JOB.YAML",
    type=click.Path(path_type=Path, readable=False),
    help="Take this job file, and the trainer's code, as they are now.",
)
@click.option("--detach", is_flag=True, help="Return as soon as the run's engine works.")
def resume(
    run: str, include: tuple[str, ...], forget_exclusions: bool, config: Path | None, detach: bool
) -> None:
    """Go on with RUN from its newest verified checkpoint, as the same run with fresh budgets.

    Job file, code, environment and exclusions stay as they were. Ctrl-C detaches.
    """
    import getpass
    import os

    from supervisor.cli.launch import look
    from supervisor.cli.watch import watch
    from supervisor.config import load_site
    from supervisor.engine import launching
    from supervisor.run import folder

    found = folder.find(load_site(os.environ).state_dir, run)
    made = launching.resume(
        found,
        os.environ,
        who=getpass.getuser(),
        include=include,
        forget_exclusions=forget_exclusions,
        config=config,
        look=look,
    )
    for note in made.notes:
        click.echo(note)
    if detach:
        click.echo(f"run {run} goes on by itself; `superv attach {run}` shows it")
        return
    sys.exit(watch(made.run))
