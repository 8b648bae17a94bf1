"""`superv runs`: all runs of this user, and the removal of what old ones left behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from supervisor.core.types import ENDED
from supervisor.host import terminal

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.host.terminal import Text

OLDER = "30d"
_KEYS = ("run", "name", "replaced", "run_id", "launched", "phase", "since", "reason", "attempt")
_MORE = ("step", "loss", "engine", "problem", "fix")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/runs.md.")
@click.option("--prune", is_flag=True, help="Remove the folders of runs that ended long ago.")
@click.option(
    "--older-than", default=OLDER, show_default=True, metavar="AGE", help="With --prune: 12h, 30d."
)
@click.option("--dry-run", is_flag=True, help="With --prune: say what would go; remove nothing.")
def runs(as_json: bool, prune: bool, older_than: str, dry_run: bool) -> None:
    """List all runs, those that have ended too: id, age, phase and step of each.

    RUN is what other commands take. A run whose name a later launch took is NAME~ID. ID stands in
    the names of its Slurm jobs, too.
    """
    import os

    from supervisor.cli.nodes import duration
    from supervisor.cli.status import all_listed, none_there
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.engine.clock import clock

    age = duration(older_than, "--older-than")
    home, now = load_site(os.environ).state_dir, clock()
    if prune:
        _prune(home, now, age, dry_run=dry_run, as_json=as_json)
        return
    if dry_run or older_than != OLDER:
        raise UserError("--older-than and --dry-run go with --prune")
    every = [_row(one) for one in all_listed(home)]
    if as_json:
        click.echo(json.dumps({"schema": 1, "at": now, "runs": every}, indent=2))
    elif not every:
        click.echo(none_there(home))
    else:
        terminal.show([terminal.table(_COLUMNS, [_cells(one, now) for one in every])])


def _row(told: dict[str, Any]) -> dict[str, Any]:
    """What of a status document stands in the list."""
    row = {key: told.get(key) for key in (*_KEYS, *_MORE)}
    return {**row, "attention": [one["what"] for one in told.get("attention", [])]}


_COLUMNS = (
    terminal.TableColumn("RUN", most=32),
    terminal.TableColumn("ID"),
    terminal.TableColumn("AGE", right=True),
    terminal.TableColumn("PHASE"),
    terminal.TableColumn("FOR", right=True),
    terminal.TableColumn("STEP", right=True),
    terminal.TableColumn("", folds=True),
)


def _cells(run: dict[str, Any], now: float) -> tuple[str | Text, ...]:
    if run["phase"] is None:
        unread = terminal.styled(("can't be read", "bold red"))
        return run["run"], "", "", unread, "", "", f"{run['problem']}; {run['fix']}"
    phase = terminal.styled((run["phase"], terminal.style_of(run["phase"])))
    age = _ago(run["launched"], now)
    step = "" if run["step"] is None else str(run["step"])
    name, run_id = run["run"], run["run_id"][:6]
    return name, run_id, age, phase, _ago(run["since"], now), step, _note(run)


def _ago(then: float | None, now: float) -> str:
    return "-" if then is None else terminal.duration(now - then)


def _note(run: dict[str, Any]) -> str:
    """What of it a person should know at a glance."""
    if run["phase"] in ENDED:
        return "replaced by a later launch" if run["replaced"] else ""
    no_engine = () if run["engine"] or "engine" in run["attention"] else ("no engine",)
    return ", ".join(dict.fromkeys((*no_engine, *run["attention"])))


# --- removal --------------------------------------------------------------------------------------


def _prune(home: Path, now: float, age: float, *, dry_run: bool, as_json: bool) -> None:
    import shutil

    from supervisor.core.nodeset import compress
    from supervisor.run import folder, prune

    removed: list[str] = []
    on_nodes: set[str] = set()
    kept: dict[str, str] = {}
    failed = False
    for run in folder.every(home):
        name = run.path.name
        try:
            was = (prune.over if dry_run else prune.remove)(run, now - age)
        except prune.Kept as because:
            kept[name] = because.why
        except OSError as error:
            kept[name] = _not_removed(run.path, error)
            failed = True
        else:
            removed.append(name)
            on_nodes |= prune.clean_here(was, dry_run=dry_run)
    for half_made in prune.leftovers(home, now - age):
        try:
            if not dry_run:
                shutil.rmtree(half_made)
        except OSError as error:
            kept[half_made.name] = _not_removed(half_made, error)
            failed = True
        else:
            removed.append(half_made.name)
    if as_json:
        document: dict[str, Any] = {
            "schema": 1,
            "dry_run": dry_run,
            "removed": removed,
            "kept": kept,
        }
        document["on_nodes"] = sorted(on_nodes)
        click.echo(json.dumps(document, indent=2))
    else:
        done = "would be removed" if dry_run else "removed"
        rows = [(name, done) for name in removed]
        rows += [(name, f"stays: {why}") for name, why in kept.items()]
        columns = (terminal.TableColumn("RUN", most=40), terminal.TableColumn("", folds=True))
        if rows:
            terminal.show([terminal.table(columns, rows)])
        if on_nodes:
            nodes = terminal.one_line(compress(on_nodes))
            click.echo(
                f"logs of these runs on {nodes} stay until a later agent of yours there finds them "
                "30 days old"
            )
        click.echo(f"{len(removed)} {'run' if len(removed) == 1 else 'runs'} {done}")
    if failed:
        raise click.exceptions.Exit(1)


def _not_removed(path: Path, error: OSError) -> str:
    where = path / (error.filename or "")  # below the folder it is the last name only
    return f"can't be removed: {where}: {error.strerror or error}"
