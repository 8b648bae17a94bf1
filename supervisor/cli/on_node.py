"""`superv prolog` and `superv healthcheck`: for slurm.conf; docs/slurm.md has the lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.host import terminal

if TYPE_CHECKING:
    from supervisor.config import Site

_STATE = click.option(
    "--state",
    type=click.Path(path_type=Path, readable=False),
    help="Where checks keep their counters.",
)
_SITE = click.option(
    "--site",
    "site_file",
    type=click.Path(path_type=Path, readable=False),
    help="Read this in place of /etc/superv/site.yaml; nothing else is read.",
)
_IGNORED = ("SUPERV_SITE", "XDG_CONFIG_HOME")  # where a person's commands find site.yaml


def _setting(state: Path | None) -> tuple[str, Path]:
    """This node's name and where its state is kept."""
    import socket

    from healthchecks.frame.state import default_folder

    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return name, state or default_folder()


def _site(site_file: Path | None) -> tuple[Site, list[str]]:
    """The node's own site.yaml and no other, and what was not heeded. Raises UserError.

    Slurm starts this as root: what runs, and what is read, is what only root can change.
    """
    from supervisor.config import load_site
    from supervisor.config.site import SYSTEM_FILE
    from supervisor.core.errors import UserError
    from supervisor.host import trusted

    os.environ["PATH"], notes = trusted.search_path(os.environ)
    file = site_file or SYSTEM_FILE
    if site_file is not None and not site_file.exists():
        raise UserError(f"--site {site_file}: there is no such file")
    notes += [
        f"{name} is not heeded: only {file} is read" for name in _IGNORED if os.environ.get(name)
    ]
    return load_site(os.environ, file, only=True), notes


@click.command()
@_STATE
@_SITE
def prolog(state: Path | None, site_file: Path | None) -> None:
    """Slurm's Prolog: let a job begin here, or drain the node.

    Runs the checks that need milliseconds, and counts what two full looks, one of the last 15
    minutes, found. Exit code 0: go; 1: the node has a fault of its own, Slurm drains it and
    requeues the job. That takes `drain: on` in site.yaml, and a count of superv's drains by
    `superv healthcheck`, not older than 15 minutes, that leaves room for one more. What can't be
    measured stops nothing, nor does a mistake in site.yaml. What was found goes to syslog and
    standard error.
    """
    try:
        text, fails = _judge(state, site_file)
    except Exception as error:  # any other exit code than 0 drains the node: not for our own faults
        _say("prolog", f"the node was not looked at, the job may begin: {error or repr(error)}")
        return
    if text:
        _say("prolog", text)
    if fails:
        sys.exit(1)


def _judge(state: Path | None, site_file: Path | None) -> tuple[str, bool]:
    """What was found, and whether it forbids a job here. Raises UserError."""
    from healthchecks.frame.settings import of_site
    from supervisor.engine.clock import clock
    from supervisor.fleet.slurm_programs import prolog as look

    name, folder = _setting(state)
    site, notes = _site(site_file)
    verdict = look(name, of_site(site), site, folder, clock())
    return "; ".join([text for text in (verdict.text(), *notes) if text]), verdict.fails


def _say(who: str, text: str) -> None:
    from supervisor.fleet.slurm_programs import to_syslog

    to_syslog(f"{who}: {terminal.printable(text)}")
    click.echo(f"superv: {terminal.printable(text)}", err=True)


@click.command()
@_STATE
@_SITE
def healthcheck(state: Path | None, site_file: Path | None) -> None:
    """Slurm's HealthCheckProgram: look at this node, and drain it where the site allows that.

    The preflight suite on an idle node, the running suite beside a job; over within 45 s of the 60
    that Slurm grants. With `drain: on` in site.yaml a fault of the node's own that two looks found,
    a minute or more apart, drains it, unless superv has drained too many nodes already; two full
    looks without one lift that drain again; never another's. Exit code 0: nothing failed; 1:
    something did.
    """
    from healthchecks.frame.report import exit_code
    from healthchecks.frame.settings import of_site
    from supervisor.core.errors import UserError
    from supervisor.engine.clock import clock
    from supervisor.fleet.slurm_programs import healthcheck as look
    from supervisor.fleet.slurm_programs import job_steps_here, to_syslog

    name, folder = _setting(state)
    try:
        site, notes = _site(site_file)
        report, acts = look(name, of_site(site), site, folder, busy=job_steps_here(), now=clock)
    except UserError as error:  # slurmd throws away what is printed
        to_syslog(f"healthcheck: the node was not looked at: {terminal.printable(str(error))}")
        raise
    for line in (*(f"note: {note}" for note in (*notes, *report.notes)), *acts):
        to_syslog(f"healthcheck: {terminal.printable(line)}")
        click.echo(terminal.printable(line))
    sys.exit(1 if exit_code(report) == 1 else 0)
