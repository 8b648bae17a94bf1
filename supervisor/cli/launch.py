"""`superv launch`: start a run, or attach to it where it lives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.core.errors import UserError
from supervisor.host import terminal

if TYPE_CHECKING:
    from supervisor.channel.wire import RankJob

if TYPE_CHECKING:
    from supervisor.config import Job, Site


@click.command()
@click.argument("job_file", metavar="JOB.YAML", type=click.Path(path_type=Path, readable=False))
@click.option("--dry-run", is_flag=True, help="Print what would be done; touch nothing.")
@click.option("--detach", is_flag=True, help="Return as soon as the run's engine works.")
@click.option(
    "--from",
    "origin",
    metavar="CHECKPOINT|scratch",
    help="Begin from this checkpoint, or from step 0 though checkpoints are there.",
)
def launch(job_file: Path, dry_run: bool, detach: bool, origin: str | None) -> None:
    """Start the run that JOB.YAML describes; a run of that name that is under way is attached to.

    Ctrl-C detaches and does not stop the job.
    """
    import os

    if dry_run:
        _dry_run(job_file)
        return
    from supervisor.cli.watch import watch
    from supervisor.engine import launching

    made = launching.launch(job_file, os.environ, origin=origin, look=look)
    name = made.run.path.name
    if not made.attached:
        launching.refused(made)
    for note in made.notes:
        click.echo(note)
    if made.attached:
        what = "its engine was started again" if made.engine_started else "attached"
        click.echo(f"run {name} is there already: {what}")
    if detach:
        click.echo(f"run {name} goes on by itself; `superv attach {name}` shows it")
        return
    sys.exit(watch(made.run))


def look(job: Job) -> list[str]:
    """What is wrong with a job before it waits in a queue. Raises UserError where it can't run."""
    import asyncio

    from supervisor.doctor import before_launch

    async def ask() -> list[str]:
        found = await before_launch.slurm_is_here(job)
        return before_launch.notes([*found, *await before_launch.look(job)], job)

    return asyncio.run(ask())


def _container(job: RankJob, node_dir: Path) -> None:
    """The line that starts one rank in its container, with words for what each node knows."""
    if job.container is None:
        return
    import shlex

    from supervisor.core.container import NVIDIA, ContainerPlace, inside

    folder = f"{node_dir}/AGENT"
    place = ContainerPlace(node="NODE", job_id="JOB", folder=folder, gpus=NVIDIA)
    line = inside(job.container, place, f"{folder}/ATTEMPT/RANK.env", ["RANK-COMMAND"])
    warm = "what ranks are forked from, and ranks that start cold," if job.preload else "each rank"
    click.echo(f"# {warm} in a container; on a node with NVIDIA GPUs as")
    click.echo(shlex.join(line))


def _suites(found: dict[str, tuple[str, ...]], running_s: float) -> None:
    """The health checks of every node, as its agent runs them."""
    words = {"before": "before ranks start", "beside": f"beside them, every {running_s:g} s"}
    if not found:
        click.echo("\n# no health checks (preflight: {tags: [], running_s: 0})")
    for when, names in found.items():
        click.echo(f"\n# health checks on every node {words[when]}")
        terminal.show([" ".join(names)])


def _switched_off(job: Job, site: Site) -> None:
    """Which of them are left out, and which line says so."""
    from healthchecks.frame.registry import select
    from healthchecks.frame.switched_off import of_job

    found = list(of_job(select((), (*job.preflight.tags, "running")), job, site))
    if found:
        click.echo("\n# of these left out")
    for nodes, off in found:
        on = f" on {nodes}" if nodes else ""
        click.echo(f"{off.check}{on}: {off.what} ({off.where})")


def _dry_run(job_file: Path) -> None:
    import os
    import shlex

    from supervisor.config import load_job, load_site
    from supervisor.engine.dry_run import dry_run
    from supervisor.engine.launching import notes_of
    from supervisor.engine.wiring import suites
    from supervisor.run.snapshot import CODE

    job, site = load_job(job_file), load_site(os.environ)
    try:
        looked = look(job)
    except UserError as error:  # it is a look at what would be: all the rest is shown too
        looked = [f"superv launch would refuse this: {error}"]
    would = dry_run(job, site)
    for note in (*notes_of(job, site), *looked):
        click.echo(f"# {note}")
    click.echo(f"# {would.spec.nodes} nodes: {job.nodes} that train, {job.spares} spare")
    for name, value in sorted(would.spec.slurm.items()):
        click.echo(f"#   {name}: {value}")
    click.echo("\n# submitted as (the script on standard input)")
    click.echo(shlex.join(would.plan.argv))
    click.echo("\n# agent command, on every node")
    click.echo(shlex.join(would.spec.agent_argv))
    python = [would.job.python] if would.job.python else []
    click.echo(f"\n# rank command, {would.job.ranks_per_node} on each node, in {would.job.workdir}")
    click.echo(shlex.join([*python, *would.job.entry]))
    _container(would.job, site.node_dir)
    for when, fields in would.fields.items():
        click.echo(f"# in its configuration the hook sets, {when}:")
        for field, set_to in fields.items():
            click.echo(f"#   checkpoint.{field} = {set_to}")
    if would.job.preload:
        click.echo(
            f"# ranks are forked from a process that has imported {', '.join(would.job.preload)}"
        )
    if would.code is not None:
        click.echo(
            f"# {CODE} is each node's copy of the code as it is at launch: {would.code.summary()}"
        )
    else:
        click.echo("# the code is read where it is, at every start (trainer.snapshot: false)")
    _suites(suites(job, site), job.preflight.running_s)
    _switched_off(job, site)
    click.echo("\n# added to the environment of every rank, beside torchrun's variables")
    for name, value in sorted(would.env.items()):
        click.echo(f"{name}={shlex.quote(value)}")
    click.echo("\n# script")
    click.echo(would.plan.script)
