"""Whether the programs of `notify` can be called: a page that never comes is missed too late."""

from __future__ import annotations

import shutil

from healthchecks.frame.report import Finding
from supervisor.config import Job
from supervisor.doctor.files import SeenFiles, why
from supervisor.doctor.finding import fail


def paths(job: Job) -> list[str]:
    """What has to be looked at."""
    return [one.command[0] for one in job.notify if one.command[0].startswith("/")]


def look(job: Job, seen: SeenFiles) -> list[Finding]:
    """The engine calls them on this machine, in / and without a shell: what fails here fails."""
    programs = dict.fromkeys(one.command[0] for one in job.notify)
    problems = ((program, _problem(program, seen)) for program in programs)
    fix = "fix notify in the job file"
    return [fail("notify", f"notify: {program}{what}", fix) for program, what in problems if what]


def _problem(program: str, seen: SeenFiles) -> str:
    if program.startswith("/"):
        there = seen.path(program)
        if there is None or (there["kind"] == "file" and there["enter"]):
            return ""
        return f": {why(program, there)}" if there["kind"] == "missing" else " is not to be run"
    if shutil.which(program) is not None and "/" not in program:
        return ""
    if any(mark in program for mark in " |;&$"):
        return ": there is no such program; a line for a shell is written [sh, -c, LINE]"
    return ": a relative path; write all of it" if "/" in program else ": not in PATH"
