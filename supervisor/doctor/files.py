"""What a child of ours sees of files that a job names, and how sure nodes see the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthchecks.frame.report import Finding
from supervisor import proc
from supervisor.config import Job
from supervisor.doctor.finding import fail, unknown, warn
from supervisor.engine.hook_notes import on_network
from supervisor.host import procfs


@dataclass(slots=True)
class SeenFiles:
    """What children have told: of paths, and of what was asked beside them."""

    told: dict[str, Any] = field(default_factory=dict)
    hangs: str = ""  # what was looked at when the deadline came

    def path(self, path: str) -> Mapping[str, Any] | None:
        """None where it was not looked at."""
        found: Mapping[str, Any] | None = self.told.get(path)
        return found


async def ask(question: Mapping[str, Any], deadline_s: float) -> SeenFiles:
    """Let a child of ours look at files."""
    argv = (sys.executable, "-I", "-m", "supervisor.doctor.look_at_files")
    done = await proc.run(argv, deadline_s=deadline_s, stdin=json.dumps(question).encode())
    seen, last = SeenFiles(), ""
    for line in done.out.splitlines():
        last, value = json.loads(line)
        if value is not None:
            seen.told[last] = value
    if done.timed_out:
        seen.hangs = last or "it"
    return seen


def hangs(what: str, deadline_s: float) -> Finding:
    text = f"{what}: no answer within {deadline_s:g} s"
    return unknown("storage", text, "see whether the file system that holds it answers")


def sure(job: Job, path: str) -> bool:
    """Whether what this machine lacks there the nodes lack too."""
    return job.on_this_machine or on_network(procfs.mount_of(path)[1])


def judge(job: Job, path: str, check: str, text: str, fix: str) -> Finding:
    if sure(job, path):
        return fail(check, text, fix)
    return warn(check, f"{text} (on this machine; nodes may differ)", fix)


def why(path: str, there: Mapping[str, Any]) -> str:
    """Why a path is missing, and how much of it is there."""
    if there["why"] != "No such file or directory":
        return str(there["why"])
    near = "" if Path(there["near"]) == Path(path).parent else f" (only {there['near']} is there)"
    return f"not there{near}"
