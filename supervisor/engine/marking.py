"""A run's claim on checkpoints.dir: two runs that save into one folder would mix their attempts."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

from supervisor.checkpoints import mark
from supervisor.checkpoints.storage import Storage
from supervisor.config import Job
from supervisor.core.errors import TransientError, UserError
from supervisor.core.types import Run
from supervisor.engine.clock import clock
from supervisor.host.terminal import date_time, one_line
from supervisor.run import folder
from supervisor.run.journal import readable

logger = logging.getLogger(__name__)

STORAGE_S = 60.0  # for storage to answer
RELEASE_S = 3.0  # at an end nobody waits for storage that hangs: the journal says that it is over


def claim(job: Job, run: folder.RunDir, run_id: str, *, replaced: bool = False) -> None:
    """Make checkpoints.dir the run's. `replaced`: it takes the place of one that is over.

    Raises UserError where it is another run's that may go on, TransientError.
    """
    if job.checkpoints is None:
        return
    directory = str(job.checkpoints.dir)
    mine: mark.Mark = {
        "run": job.name,
        "run_id": run_id,
        "host": socket.gethostname(),
        "folder": str(run.path),
        "since": clock(),
    }
    question = {"command": "claim", "path": directory, "mark": mine, "instead": ""}
    theirs = _ask(question)
    if theirs is not None and _is_over(theirs, run, replaced=replaced):
        theirs = _ask({**question, "instead": theirs["run_id"]})
    if theirs is None:
        return
    since = theirs.get("since")
    when = f" since {date_time(since)}" if isinstance(since, int | float) else ""
    where = ", ".join(one_line(str(theirs[k]), 200) for k in ("host", "folder") if k in theirs)
    raise UserError(
        f"checkpoints.dir: {directory} is that of run {one_line(str(theirs.get('run', '?')), 60)} "
        f"({where}){when}; two runs can't save into one folder: stop that one, or choose another "
        f"checkpoints.dir; if it is over for good, remove {directory}/{mark.NAME}"
    )


def release(job: Job, run_id: str) -> None:
    """Give checkpoints.dir back, where storage answers."""
    asyncio.run(_release(job, run_id))


async def released(job: Job, run: Run) -> None:
    """`release`, by an engine, of a run that has ended."""
    if run.ended and not run.live_jobs:
        await _release(job, run.spec.run_id)


async def _release(job: Job, run_id: str) -> None:
    if job.checkpoints is None:
        return
    question = {"command": "release", "path": str(job.checkpoints.dir), "run_id": run_id}
    try:
        async with Storage() as storage:
            await storage.ask(question, deadline_s=RELEASE_S)
    except TransientError as error:
        logger.warning(f"the mark in checkpoints.dir stays: {error}")


def _ask(question: dict[str, Any]) -> mark.Mark | None:
    async def ask() -> mark.Mark | None:
        async with Storage() as storage:
            theirs: mark.Mark | None = await storage.ask(question, deadline_s=STORAGE_S)
            return theirs

    return asyncio.run(ask())


def _is_over(theirs: mark.Mark, run: folder.RunDir, *, replaced: bool) -> bool:
    """Whether the run of a mark has ended, as far as this machine can tell."""
    run_id, path = theirs.get("run_id"), Path(str(theirs.get("folder", "")))
    if theirs.get("host") != socket.gethostname() or not isinstance(run_id, str):
        return False
    if replaced and path == run.path:
        return True
    for place in (path, path.with_name(f"{path.name}~{run_id[:6]}")):
        there, _ = readable(folder.RunDir(place).journal)
        if there is not None and there.spec.run_id == run_id:
            return there.ended and not there.live_jobs
    return False
