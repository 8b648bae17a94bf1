"""superv checkpoints: list, verify, quarantine. Storage is touched by children only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from supervisor.cli import Commands
from supervisor.cli.numbers import Number
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from supervisor.checkpoints.dcp import CheckpointReport, CheckpointScan

T = TypeVar("T")

DEADLINE_S = 120.0  # a checkpoint of 480 shards on NFS is looked through in seconds

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_required = click.option(
    "--required",
    metavar="KEYS",
    help="Comma-separated keys that a checkpoint must hold. Default: TorchTitan's.",
)


@click.group(cls=Commands)
def checkpoints() -> None:
    """List, verify and quarantine checkpoints (torch.distributed.checkpoint)."""


@checkpoints.command()
@click.argument("path")
@click.option(
    "--deep", is_flag=True, help="Read every byte, and compare the checksums that torch.save wrote."
)
@_required
@_json
def verify(path: str, deep: bool, required: str | None, as_json: bool) -> None:
    """Say whether training can be resumed from the checkpoint at PATH (exit 0) or not (exit 1).

    It looks at the metadata, and at both ends of what the shards hold. Bits that rotted inside a
    tensor are found by --deep, which reads about 900 MB a second where storage is as fast.
    """
    from supervisor.checkpoints.dcp import NO_DIRECTORY, CheckpointScan
    from supervisor.checkpoints.storage import verify_once

    path = _absolute(path)
    with terminal.StatusLine("looking") as line:
        one = _ask(
            verify_once(
                path,
                required=_keys(required),
                deep=deep,
                deadline_s=DEADLINE_S,
                progress=lambda shards, of: line.update(f"shard {shards} of {of}"),
            )
        )
    scan = CheckpointScan(directory=path, exists=one.reason != NO_DIRECTORY, found=(one,))
    if as_json:
        _print_json(scan)
    else:
        click.echo(terminal.printable(_verdict(one)))
        _hint(scan, required)
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
    from supervisor.checkpoints.storage import scan_once
    from supervisor.core.errors import UserError

    if _list_run(run_or_dir, as_json):
        return
    directory = _absolute(run_or_dir)
    scan = _ask(scan_once(directory, required=_keys(required), deadline_s=DEADLINE_S))
    if as_json:
        _print_json(scan)
    elif not scan.exists:
        raise UserError(f"{run_or_dir}: no such directory; give one that holds step-N or aNNNN")
    elif not scan.found:
        click.echo(f"{run_or_dir}: no checkpoint (nothing called step-N)")
    else:
        terminal.show(_listing(scan))
        _hint(scan, required)


def _list_run(name: str, as_json: bool) -> bool:
    """Print a run's lineage, and what left it; False where there is no such run."""
    import json
    import os

    from supervisor.config import load_site
    from supervisor.core.status import status
    from supervisor.engine.clock import clock
    from supervisor.run import folder

    home = load_site(os.environ).state_dir
    if "/" in name or not (folder.runs_dir(home) / name).is_dir():
        return False
    run = folder.find(home, name).load()
    record = status(run, clock())
    if as_json:
        keys = ("lineage", "retired_checkpoints", "rejected_checkpoints")
        click.echo(json.dumps({"name": name, **{key: record[key] for key in keys}}, indent=2))
    else:
        terminal.show(_lineage(name, record, run.spec.checkpoint_dir))
    return True


def _lineage(name: str, record: dict[str, Any], home: str | None) -> Iterator[Any]:
    """What the run can resume from, then what left its lineage."""
    if record["lineage"]:
        rows = [
            (
                str(one["step"]),
                str(one["attempt"] or "before"),
                _size(one["bytes"]),
                terminal.date_time(one["verified_at"]),
                one["path"],
            )
            for one in record["lineage"]
        ]
        yield terminal.table(_columns("ATTEMPT", "VERIFIED"), rows)
    else:
        yield f"{name}: no verified checkpoint"
    retired = {one["path"]: one for one in record["retired_checkpoints"]}
    for one in retired.values():
        what = "in quarantine" if one["quarantined"] else "being removed"
        text = f"{what}: {one['why']}: {_lies(one, home)}"
        yield terminal.entry(f"{one['step']:>9}", text, 11)
    for one in record["rejected_checkpoints"]:
        if one["path"] not in retired:
            text = f"rejected: {one['why']}: {one['path']}"
            yield terminal.entry(f"{one['step']:>9}", text, 11)


def _columns(second: str, fourth: str) -> tuple[terminal.TableColumn, ...]:
    return (
        terminal.TableColumn("     STEP", right=True),
        terminal.TableColumn(second),
        terminal.TableColumn("SIZE", right=True),
        terminal.TableColumn(fourth),
        terminal.TableColumn("WHERE", folds=True),
    )


def _lies(one: dict[str, Any], home: str | None) -> str:
    """Where a checkpoint that left the lineage lies."""
    from supervisor.checkpoints.retention import quarantined_path

    if one["problem"]:
        return f"{one['path']} ({one['problem']})"
    ours = home and one["path"].startswith(f"{home}/a")
    moved = one["quarantined"] and one["done"] and ours
    return quarantined_path(one["path"], home) if moved and home else str(one["path"])


@checkpoints.command()
@click.argument("run")
@click.argument("step", type=Number(1, None, whole=True))
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

    from supervisor.config import load_site
    from supervisor.engine import launching
    from supervisor.run import folder

    found = folder.find(load_site(os.environ).state_dir, run)
    gone = launching.quarantine(
        found, step, who=getpass.getuser(), reason=reason, and_later=and_later
    )
    for path in gone:
        click.echo(f"in quarantine: {terminal.printable(path)}")
    click.echo(f"`superv checkpoints list {run}` shows what the run resumes from now")


def _absolute(path: str) -> str:
    from pathlib import Path

    return str(Path(path).absolute())


def _hint(scan: CheckpointScan, required: str | None) -> None:
    """Where keys are missing that only TorchTitan's checkpoints have to hold."""
    from supervisor.checkpoints.dcp import REQUIRED

    lacking = [one.reason.removeprefix(".metadata lacks ").split(", ") for one in scan.found]
    if required is None and any(set(keys) & set(REQUIRED) for keys in lacking):
        click.echo(
            "by default these must hold TorchTitan's keys; for another trainer name its own, as "
            "--required model,optimizer",
            err=True,
        )


def _keys(required: str | None) -> tuple[str, ...]:
    from supervisor.checkpoints.dcp import REQUIRED

    return REQUIRED if required is None else tuple(filter(None, required.split(",")))


def _ask(question: Coroutine[Any, Any, T]) -> T:
    """A child's answer; exits with 1 and one line where the storage does not answer."""
    import asyncio

    from supervisor.core.errors import TransientError

    try:
        return asyncio.run(question)
    except TransientError as error:
        click.echo(f"superv: {terminal.printable(str(error))}", err=True)
        raise SystemExit(1) from error


def _print_json(scan: CheckpointScan) -> None:
    import json

    import msgspec

    click.echo(json.dumps(msgspec.to_builtins(scan), separators=(",", ":")))


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _verdict(one: CheckpointReport) -> str:
    if one.verified:
        but = f"; {one.reason}" if one.reason else ""
        return f"{one.path}: verified, {_size(one.bytes)}{but}"
    return f"{one.path}: {one.state.value}: {one.reason}"


def _listing(scan: CheckpointScan) -> Iterator[Any]:
    """All checkpoints, then why some can't be resumed from."""
    from pathlib import Path

    where = {one.path: str(Path(one.path).relative_to(scan.directory)) for one in scan.found}
    rows = [
        (
            str(one.step),
            one.state.value,
            _size(one.bytes),
            terminal.date_time(one.mtime),
            where[one.path],
        )
        for one in scan.found
    ]
    yield terminal.table(_columns("STATE", "SAVED"), rows)
    for one in scan.found:
        if one.reason:
            yield terminal.entry(f"{one.step:>9}", f"{where[one.path]}: {one.reason}", 11)
