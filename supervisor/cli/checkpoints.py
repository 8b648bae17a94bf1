"""superv checkpoints: list, verify, quarantine. Storage is touched by children only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from supervisor.checkpoints import Report, Scan

DEADLINE_S = 120.0  # a checkpoint of 480 shards on NFS is looked through in seconds

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_required = click.option(
    "--required",
    metavar="KEYS",
    help="Comma-separated keys that a checkpoint must hold. Default: TorchTitan's.",
)


@click.group()
def checkpoints() -> None:
    """List, verify and quarantine checkpoints (torch.distributed.checkpoint)."""


@checkpoints.command()
@click.argument("path")
@_required
@_json
def verify(path: str, required: str | None, as_json: bool) -> None:
    """Say whether training can be resumed from the checkpoint at PATH (exit 0) or not (exit 1)."""
    scan = _ask("verify", path, required)
    one = scan.found[0]
    _print_json(scan) if as_json else click.echo(_verdict(one))
    raise SystemExit(0 if one.verified else 1)


@checkpoints.command("list")
@click.argument("run_or_dir")
@_required
@_json
def list_(run_or_dir: str, required: str | None, as_json: bool) -> None:
    """List the checkpoints of a run, as its journal tells, or those under a directory.

    In a directory that is what is called step-N, and aNNNN/step-N of attempts, each looked at now.
    A name without a slash is a run's, where there is one.
    """
    from supervisor.core.errors import UserError

    if _list_run(run_or_dir, as_json):
        return
    scan = _ask("scan", run_or_dir, required)
    if as_json:
        _print_json(scan)
    elif not scan.exists:
        raise UserError(f"{run_or_dir}: no such directory; give one that holds step-N or aNNNN")
    elif not scan.found:
        click.echo(f"{run_or_dir}: no checkpoint (nothing called step-N)")
    else:
        click.echo(f"{'STEP':>9}  {'STATE':10}  {'SIZE':>9}  {'SAVED':19}  WHERE")
        for one in scan.found:
            click.echo(_row(one, scan.directory))


def _list_run(name: str, as_json: bool) -> bool:
    """Print a run's lineage, and what left it; False where there is no such run."""
    import json
    import os

    from supervisor import app, runs
    from supervisor.config import load_site
    from supervisor.core.status import status

    home = load_site(os.environ).state_dir
    if "/" in name or not (runs.runs_dir(home) / name / "journal.jsonl").exists():
        return False
    run = runs.find(home, name).load()
    assert run is not None, "a run's folder comes with a journal"
    told = status(run, app.clock())
    keys = ("lineage", "retired_checkpoints", "rejected_checkpoints")
    if as_json:
        click.echo(json.dumps({"name": name, **{key: told[key] for key in keys}}, indent=2))
        return True
    if not told["lineage"]:
        click.echo(f"{name}: no verified checkpoint")
    else:
        click.echo(f"{'STEP':>9}  {'ATTEMPT':>7}  {'SIZE':>9}  {'VERIFIED':19}  WHERE")
    for one in told["lineage"]:
        attempt = one["attempt"] or "before"
        click.echo(
            f"{one['step']:>9}  {attempt:>7}  {_size(one['bytes']):>9}  "
            f"{_time(one['verified_at'])}  {one['path']}"
        )
    retired = {one["path"]: one for one in told["retired_checkpoints"]}
    for one in retired.values():
        what = "in quarantine" if one["quarantined"] else "being removed"
        click.echo(f"{one['step']:>9}  {what}: {one['why']}: {_lies(one, run.spec.checkpoint_dir)}")
    for one in told["rejected_checkpoints"]:
        if one["path"] not in retired:
            click.echo(f"{one['step']:>9}  rejected: {one['why']}: {one['path']}")
    return True


def _lies(one: dict[str, Any], home: str | None) -> str:
    """Where a checkpoint that left the lineage lies."""
    from supervisor.retention import quarantined_path

    if one["problem"]:
        return f"{one['path']} ({one['problem']})"
    ours = home and one["path"].startswith(f"{home}/a")
    moved = one["quarantined"] and one["done"] and ours
    return quarantined_path(one["path"], home) if moved and home else str(one["path"])


@checkpoints.command()
@click.argument("run")
@click.argument("step", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why: shown wherever the checkpoint is.")
@click.option(
    "--and-later",
    "and_later",
    flag_value=True,
    type=bool,
    default=None,
    help="All later ones too; ranks that train on from it go back to an older one.",
)
@click.option(
    "--only",
    "and_later",
    flag_value=False,
    type=bool,
    help="Keep what was trained from it, and let the ranks train on.",
)
def quarantine(run: str, step: int, reason: str, and_later: bool | None) -> None:
    """Say that the checkpoint of STEP is bad: nothing resumes from it again.

    It is moved to checkpoints.dir/quarantine, never deleted. What was trained from it is suspect
    too: where there is such a thing, --and-later or --only has to say what becomes of it.
    """
    import getpass
    import os

    from supervisor import launching, runs
    from supervisor.config import load_site

    found = runs.find(load_site(os.environ).state_dir, run)
    gone = launching.quarantine(
        found, step, who=getpass.getuser(), reason=reason, and_later=and_later
    )
    for path in gone:
        click.echo(f"in quarantine: {path}")
    click.echo(f"`superv checkpoints list {run}` shows what the run resumes from now")


def _ask(command: str, path: str, required: str | None) -> Scan:
    """Ask a child; exits with 1 and one line where the storage does not answer."""
    import asyncio
    from pathlib import Path

    from supervisor.checkpoints import REQUIRED
    from supervisor.core.errors import TransientError
    from supervisor.storage import ask_once

    keys = REQUIRED if required is None else tuple(filter(None, required.split(",")))
    try:
        return asyncio.run(
            ask_once(command, str(Path(path).absolute()), required=keys, deadline_s=DEADLINE_S)
        )
    except TransientError as error:
        click.echo(f"superv: {error}", err=True)
        raise SystemExit(1) from error


def _print_json(scan: Scan) -> None:
    import msgspec

    click.echo(msgspec.json.encode(scan).decode())


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _verdict(one: Report) -> str:
    if one.verified:
        return f"{one.path}: verified, {_size(one.bytes)}"
    return f"{one.path}: {one.state.value}: {one.reason}"


def _time(at: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _row(one: Report, directory: str) -> str:
    from pathlib import Path

    saved = _time(one.mtime)
    where = Path(one.path).relative_to(directory)
    row = f"{one.step:>9}  {one.state.value:10}  {_size(one.bytes):>9}  {saved}  {where}"
    return f"{row}\n{'':11}{one.reason}" if one.reason else row
