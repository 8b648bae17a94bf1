"""superv checkpoints: list and verify a run's checkpoints. Storage is touched by a child only."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """List and verify checkpoints (torch.distributed.checkpoint)."""


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
    """List the checkpoints under a directory: step-N, and aNNNN/step-N of its attempts."""
    from supervisor.core.errors import UserError

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


def _row(one: Report, directory: str) -> str:
    import time
    from pathlib import Path

    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.mtime))
    where = Path(one.path).relative_to(directory)
    row = f"{one.step:>9}  {one.state.value:10}  {_size(one.bytes):>9}  {saved}  {where}"
    return f"{row}\n{'':11}{one.reason}" if one.reason else row
