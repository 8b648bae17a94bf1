"""`superv prolog` and `superv healthcheck`: for slurm.conf; docs/slurm.md has the lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click


def _setting(state: Path | None) -> tuple[str, Path]:
    """This node's name and where its state is kept."""
    import socket

    from healthchecks.state import default_folder

    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return name, state or default_folder()


@click.command()
@click.option("--state", type=click.Path(path_type=Path), help="Where checks keep their counters.")
def prolog(state: Path | None) -> None:
    """Slurm's Prolog: let a job begin here, or drain the node.

    Runs the checks that need milliseconds, and counts what the last full look of the last 15
    minutes found. Exit code 0: go; 1: the node has a fault of its own, Slurm drains it and requeues
    the job. What can't be measured stops nothing, nor does a mistake in site.yaml. The reason goes
    to syslog and standard error.
    """
    try:
        told = _forbidden(state)
    except Exception as error:  # any other exit code than 0 drains the node: not for our own faults
        _say("prolog", f"the node was not looked at, the job may begin: {error or repr(error)}")
        return
    if told:
        _say("prolog", told)
        sys.exit(1)


def _forbidden(state: Path | None) -> str:
    """What forbids a job here; empty where nothing does. Raises UserError."""
    from healthchecks.settings import merged
    from supervisor import app
    from supervisor.on_node import prolog as look

    name, folder = _setting(state)
    report, bad = look(name, merged(os.environ), folder, app.clock())
    return "; ".join(f"{report.node}: {f.name}: {f.result.seen}" for f in bad)


def _say(who: str, text: str) -> None:
    from healthchecks.report import printable
    from supervisor.on_node import log

    log(f"{who}: {printable(text)}")
    click.echo(f"superv: {printable(text)}", err=True)


@click.command()
@click.option("--state", type=click.Path(path_type=Path), help="Where checks keep their counters.")
def healthcheck(state: Path | None) -> None:
    """Slurm's HealthCheckProgram: look at this node, and drain it where the site allows that.

    The preflight suite on an idle node, the running suite beside a job; over within 45 s of the 60
    that Slurm grants. With `drain: on` in site.yaml a fault of the node's own that two looks found
    drains it, and two full looks without one lift that drain again; never another's. Exit code 0:
    nothing failed; 1: something did.
    """
    from healthchecks.report import exit_code, printable
    from healthchecks.settings import merged
    from supervisor import app
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.on_node import healthcheck as look
    from supervisor.on_node import jobs_here, log

    name, folder = _setting(state)
    try:
        site = load_site(os.environ)
        report, acts = look(name, merged(os.environ), site, folder, busy=jobs_here(), now=app.clock)
    except UserError as error:  # slurmd throws away what is printed
        log(f"healthcheck: the node was not looked at: {printable(str(error))}")
        raise
    for line in (*(f"note: {note}" for note in report.notes), *acts):
        log(f"healthcheck: {printable(line)}")
        click.echo(printable(line))
    sys.exit(1 if exit_code(report) == 1 else 0)
