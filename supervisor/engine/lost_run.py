"""A run whose journal is lost: its jobs, found by their name, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace

from launchers import launcher_of
from supervisor.config import load_site
from supervisor.core import names
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import ENDS_OF_JOBS, JobStatus, Launcher
from supervisor.core.types import Run
from supervisor.run import folder
from supervisor.run.journal import readable

CANCEL_S = 60.0  # a cancelled job's agents end its ranks well within this
POLL_S = 0.5


async def active_jobs(launcher: Launcher, run: folder.RunDir) -> list[JobStatus]:
    """The jobs of the run that may wait or run. Raises UserError, TransientError.

    They are found by their name, and by their id where the journal still tells it: a person may
    have renamed one. The journal told them apart from those of another run of the name; without it
    there may be one run only. A job of which nobody can say how it is counts: ranks may go on.
    """
    name, (before, _) = run.path.name, readable(run.journal)
    run_id = before.spec.run_id if before else ""
    with contextlib.suppress(UserError, OSError):
        run_id = run_id or folder.read_server_keys(run).run_id
    there: dict[str, list[JobStatus]] = {}  # by the first letters of the run's id
    listed: set[str] = set()
    for job in await launcher.find(names.allocations_of(name)):
        listed.add(job.job_id)
        found = names.run_of(job.job_name)
        if found is not None and found[0] == name and _may_be_active(job):
            there.setdefault(found[1], []).append(job)
    if run_id:
        unlisted = await _unlisted(launcher, before, listed) if before is not None else []
        return [*there.get(run_id[:6], []), *unlisted]
    if len(there) > 1:
        jobs = ", ".join(f"{j.job_id} ({j.job_name})" for jobs in there.values() for j in jobs)
        raise UserError(f"jobs of several runs are called {name}: {jobs}; `scancel` all but one's")
    return [job for jobs in there.values() for job in jobs]


def _may_be_active(job: JobStatus) -> bool:
    return job.state not in ENDS_OF_JOBS and job.raw != "COMPLETING"


async def _unlisted(launcher: Launcher, before: Run, listed: set[str]) -> list[JobStatus]:
    """Jobs that the journal knows as the run's, and that are not found under its name any more.

    They keep the name that they had. One that has another run's name is not the same any more.
    """
    asked = [job for job in before.live_jobs if job not in listed]
    seen = await launcher.poll(asked) if asked else {}
    return [
        replace(job, job_name=before.allocations[job.job_id].job_name)
        for job in seen.values()
        if _may_be_active(job) and names.run_of(job.job_name) is None
    ]


def end_jobs(run: folder.RunDir) -> tuple[str, ...]:
    """Cancel the jobs of the run, and see that they are gone; returns their ids.

    Raises UserError, TransientError where some are left.
    """

    async def end() -> tuple[str, ...]:
        launcher = launcher_of(folder.read_job(run), load_site(os.environ))
        jobs = await active_jobs(launcher, run)
        for job in jobs:
            await launcher.cancel(job.job_id)
        until = time.monotonic() + CANCEL_S
        while left := await active_jobs(launcher, run):
            if time.monotonic() > until:
                ids = ", ".join(job.job_id for job in left)
                raise TransientError(f"job {ids} was cancelled and is still there; try again")
            await asyncio.sleep(POLL_S)
        return tuple(job.job_id for job in jobs)

    return asyncio.run(end())
