"""`superv sweep`: look over the fleet, from cron or by hand; `--install` puts it there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from supervisor.cli.node_names import nodes_argument
from supervisor.cli.numbers import Number
from supervisor.host import terminal

if TYPE_CHECKING:
    from supervisor.fleet.sweep import Sweep

NOT_DONE = 4  # exit code: the sweep could not be done


@click.command()
@nodes_argument(required=False)
@click.option("-p", "--partition", help="Nodes of this partition; all of them without NODES.")
@click.option("--tags", default="preflight", show_default=True, help="The suites, with commas.")
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option(
    "--deadline",
    type=Number(10, 3600, "seconds"),
    default=240,
    show_default=True,
    help="For all of it.",
)
@click.option("--install", is_flag=True, help="Write the line of your crontab that runs this.")
@click.option("--timer", is_flag=True, help="With --install: a systemd timer in place of cron.")
@click.option(
    "--every",
    type=Number(1, 59, "minutes", whole=True),
    default=30,
    show_default=True,
    help="With --install: how often.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/fleet.md.")
def sweep(
    nodes: tuple[str, ...],
    partition: str | None,
    tags: str,
    sets: tuple[str, ...],
    deadline: float,
    install: bool,
    timer: bool,
    every: int,
    as_json: bool,
) -> None:
    """Check idle, drained and down nodes (NODES, or all), and record what was found.

    Busy nodes are left alone. Prints what changed since the last sweep, and nothing where
    nothing did and nobody watches: cron sends no mail then. Exit code 0: nothing got worse; 1:
    something fails or is unknown that was better before; 4: the sweep could not be done.
    """
    from supervisor.core.errors import TransientError, UserError

    if install:
        from supervisor.core.nodeset import compress

        words = [compress(nodes)] if nodes else []
        words += [f"--partition={partition}"] if partition else []
        words += [f"--tags={tags}", f"--deadline={deadline:g}", *(f"--set={s}" for s in sets)]
        _install(words, every, timer=timer)
        return
    elif timer:
        raise UserError("--timer goes with --install")
    try:
        found = _sweep(nodes, partition, tags, sets, deadline)
    except TransientError as error:
        click.echo(f"superv: sweep not done: {error}", err=True)
        _leave(NOT_DONE)
    if as_json:
        from supervisor.fleet.sweep import document

        click.echo(document(found))
    else:
        _tell(found)
    _leave(1 if found.worse else 0)


def _leave(code: int) -> NoReturn:
    """A thread may hang in a connection: nobody waits for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _sweep(
    nodes: tuple[str, ...],
    partition: str | None,
    tags: str,
    sets: tuple[str, ...],
    deadline: float,
) -> Sweep:
    import asyncio
    from dataclasses import replace

    from healthchecks.frame.registry import select
    from healthchecks.frame.settings import merged
    from healthchecks.many import golden as profiles
    from healthchecks.many.remote import Suite
    from supervisor.config import load_site
    from supervisor.core.errors import TransientError
    from supervisor.core.setting import REPAIRS
    from supervisor.engine.clock import clock
    from supervisor.fleet.record import Fleet
    from supervisor.fleet.sweep import SweepRunning, sweep_lock
    from supervisor.fleet.sweep import sweep as look

    site = load_site(os.environ)
    suite = Suite(
        tags=tuple(tag.strip() for tag in tags.split(",")), settings=merged(os.environ, sets)
    )
    select(tags=suite.tags)  # raises where there is no such suite

    try:
        with sweep_lock(site), Fleet(site.fleet, whole=True) as fleet:
            known = {**suite.settings, REPAIRS: fleet.repairs.newest()}
            return asyncio.run(
                look(
                    nodes,
                    replace(suite, settings=known),
                    site,
                    fleet,
                    partition=partition,
                    deadline_s=deadline,
                    now=clock,
                    golden=profiles.load(site.golden) if site.golden else None,
                )
            )
    except SweepRunning as why:
        raise TransientError(str(why)) from None


def _tell(found: Sweep) -> None:
    from healthchecks.many.slurm_nodes import Transport
    from supervisor.core.check_status import Status
    from supervisor.core.nodeset import compress

    lines = []
    for change in found.changes:
        was = f" (was {change.was.value})" if change.was else ""
        lines.append(f"{change.status.value:<8}{change.node} {change.finding}{was}: {change.seen}")
    lines += (
        [drain.text for drain in found.drains] if sys.stdout.isatty() else found.drains_to_report
    )
    if not lines and not sys.stdout.isatty():
        return
    reports = {n: a.report for n, a in found.answers.items() if a.report}
    failed = [n for n, r in reports.items() if r.status is Status.FAIL]
    left = [
        n for n, a in found.answers.items() if a.transport is Transport.NONE and a.report is None
    ]
    summary = f"{len(reports)} nodes looked at"
    summary += f", failed: {compress(failed)}" if failed else ", nothing failed in this sweep"
    summary += f"; {len(left)} left alone: {compress(left)}" if left else ""
    terminal.show(terminal.entry("", line, 0, hang=8) for line in [*lines, summary])


def _install(words: list[str], every: int, *, timer: bool) -> None:
    from supervisor.fleet.schedule import cron_environment

    # -P: a folder called supervisor in cron's working directory is not ours
    argv = [sys.executable, "-P", "-m", "supervisor.cli", "sweep", *words]
    (_timer if timer else _crontab)(argv, cron_environment(os.environ), every)


def _crontab(argv: list[str], given: dict[str, str], every: int) -> None:
    from supervisor import proc
    from supervisor.core.errors import UserError
    from supervisor.fleet.schedule import crontab_line, with_crontab_line
    from supervisor.host import trusted

    line = crontab_line(argv, given, every)
    env = {**os.environ, "LC_ALL": "C"}
    if os.geteuid() == 0:
        env["PATH"] = trusted.search_path(os.environ)[0]
    there = proc.run_sync(("crontab", "-l"), deadline_s=10.0, env=env)
    if there.rc == 127:
        raise UserError(
            f"there is no crontab command here; use --timer, or add to cron: {line.strip()}"
        )
    if there.rc != 0 and "no crontab for" not in there.err:
        raise UserError(f"crontab -l: {there.why()}; nothing was changed")
    text = with_crontab_line(there.out if there.rc == 0 else "", line)
    done = proc.run_sync(("crontab", "-"), deadline_s=10.0, stdin=text.encode(), env=env)
    if done.rc != 0:
        raise UserError(f"crontab: {done.why()}; nothing was changed")
    click.echo(f"in your crontab now: {line}", nl=False)


def _timer(argv: list[str], given: dict[str, str], every: int) -> None:
    from supervisor.core.errors import UserError
    from supervisor.fleet.schedule import systemd_units

    if os.geteuid() == 0:
        folder, how = Path("/etc/systemd/system"), "systemctl"
    else:
        folder, how = Path.home() / ".config/systemd/user", "systemctl --user"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in systemd_units(argv, given, every).items():
            (folder / name).write_text(text)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; use cron, without --timer") from error
    click.echo(f"wrote superv-sweep.service and superv-sweep.timer to {folder}; now run")
    click.echo(f"  {how} daemon-reload && {how} enable --now superv-sweep.timer")
    if os.geteuid() != 0:
        click.echo("  loginctl enable-linger   # so that it runs while you are logged out")
