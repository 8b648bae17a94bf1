"""Removes the folders of runs that are over: of those alone of which all is known."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR

from supervisor.channel import node_folders
from supervisor.core.errors import UserError
from supervisor.core.types import Run
from supervisor.run import folder
from supervisor.run.folder import RunDir
from supervisor.run.journal import Busy, Journal

_HALF_MADE = re.compile(r"\.[a-z0-9-]+\.[0-9a-f]{8}")  # supervisor/host/footprint.py: {run}
_HALF_MADE_S = 86_400.0  # a launch that packs code from slow storage is done within minutes


class Kept(Exception):
    """Why a run's folder stays."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def over(run: RunDir, before: float) -> Run:
    """The run, where it is over since a time before `before` (seconds since the epoch).

    Raises Kept: it lives, its jobs may, it ended later, its journal does not tell, or its folder
    lies elsewhere.
    """
    if run.path.is_symlink():
        raise Kept(f"it is a link to {run.path.readlink()}")
    try:
        state = run.load()
    except UserError as error:
        raise Kept(f"its state is unknown: {error}") from None
    if not state.ended:
        raise Kept(f"it is {state.phase.value}")
    if state.live_jobs:
        raise Kept(f"its job {', '.join(state.live_jobs)} may still be there")
    if state.since >= before:
        raise Kept("it ended later")
    return state


def remove(run: RunDir, before: float) -> Run:
    """Remove the folder; the run that it was. Raises Kept as `over` does, OSError.

    Nobody resumes it meanwhile, nor launches another of its name: the journal's lock is held, and
    the folder leaves its name before anything in it goes.
    """
    folder.check(run.path)
    with folder.alone(run.path.parent), _locked(run):
        state = over(run, before)
        away = run.path.with_name(f".{run.path.name.partition('~')[0]}.{secrets.token_hex(4)}")
        run.path.rename(away)
    shutil.rmtree(away)
    return state


def clean_here(run: Run, *, dry_run: bool) -> set[str]:
    """Remove its allocations' folders from this machine; the nodes where such may be left.

    Others' disks can't be reached from here, and what can't be removed is left.
    """
    left: set[str] = set()
    for one in run.allocations.values():
        gone = not one.folder
        with contextlib.suppress(OSError):
            gone = gone or node_folders.remove(one.folder, dry_run=dry_run)
        if not gone:
            left.update(one.nodes)
    return left


def leftovers(state_dir: Path, before: float) -> list[Path]:
    """Folders of runs that were being put together or removed, and that nobody finished."""
    home = folder.runs_dir(state_dir)
    latest = min(before, time.time() - _HALF_MADE_S)
    hidden = [path for path in home.glob(".*") if _HALF_MADE.fullmatch(path.name)]
    found = ((path, path.lstat()) for path in hidden)
    return [path for path, seen in found if S_ISDIR(seen.st_mode) and seen.st_mtime < latest]


@contextlib.contextmanager
def _locked(run: RunDir) -> Iterator[None]:
    """While no engine has the run. Raises Kept."""
    if not run.journal.exists():
        raise Kept(f"its state is unknown: {run.journal}: gone")
    try:
        journal = Journal(run.journal)
    except Busy:
        raise Kept("an engine has it") from None
    except UserError as error:
        raise Kept(f"its state is unknown: {error}") from None
    try:
        yield
    finally:
        journal.close()
