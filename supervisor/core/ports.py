"""What the core's actions need from the world, as protocols. Adapters live outside the core."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

# What job.yaml may name as `launcher` → where it is: module:class, imported when it is used.
LAUNCHERS = {
    "sbatch": "launchers.sbatch:Sbatch",
    "local": "launchers.local:Local",
    "torchx": "launchers.torchx:torchx",
}


class JobState(StrEnum):
    """What a Slurm job's state means to superv. The raw state is kept beside it."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELLED = "cancelled"
    ENDED = "ended"  # any other end: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, PREEMPTED …
    FORGOTTEN = "forgotten"  # the scheduler answers, and knows no such job
    UNKNOWN = "unknown"  # could not be read, or a state that superv does not know


ENDS_OF_JOBS = (JobState.CANCELLED, JobState.ENDED, JobState.FORGOTTEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One allocation to ask for."""

    job_name: str  # unique to run and allocation; submission is idempotent by it
    nodes: int  # active nodes and spares together
    min_nodes: int = 0  # so few will do; 0: all of `nodes`
    slurm: Mapping[str, str] = field(default_factory=dict)  # sbatch options: long name → value
    exclude: tuple[str, ...] = ()  # node names
    agent_argv: tuple[str, ...] = ()  # the command that every node runs
    # Made on each node, of mode 0700, before its command starts, which finds it in the variable
    # SUPERV_NODE_FOLDER; never in argv, where other users would read it before it is there.
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A submission as it would be made: printable, compared in golden tests."""

    job_name: str
    argv: tuple[str, ...]  # the submit command; the script goes to its standard input
    script: str
    env: Mapping[str, str] = field(default_factory=dict)  # of that command, where argv is no place


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """One allocation as the launcher's world reports it."""

    job_id: str
    job_name: str
    state: JobState
    raw: str  # the scheduler's own word
    nodes: tuple[str, ...] = ()
    down: tuple[str, ...] = ()  # nodes of it that the scheduler reports DOWN or not responding
    drained: tuple[str, ...] = ()  # nodes of it that are to take no new work
    nodes_read: bool = True  # else nobody could say which are down or drained
    reason: str = ""
    means: str = ""  # of one that waits: the reason in words
    do: str = ""  # … and what to do about it; empty where the queue does its work
    starts_at: float | None = None  # … and when the scheduler expects its start; epoch seconds

    @staticmethod
    def forgotten(job: str, why: str) -> JobStatus:
        """The scheduler answers, and knows no such job."""
        state = JobState.FORGOTTEN
        return JobStatus(job_id=job, job_name="", state=state, raw="FORGOTTEN", reason=why)

    @staticmethod
    def unknown(job: str, why: str) -> JobStatus:
        """Nobody could say how it is with the job."""
        return JobStatus(job_id=job, job_name="", state=JobState.UNKNOWN, raw="", reason=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why a request can't be granted, however long it waits, unless something changes."""

    lacking: int  # so many nodes in service are missing; 0: none
    excluded: tuple[str, ...] = ()  # nodes in service that the request leaves out


class Launcher(Protocol):
    """Gets agents onto nodes. Every launcher passes tests/contract/test_launchers.py."""

    @property
    def programs(self) -> tuple[str, ...]:
        """What has to be in PATH where a run is launched."""
        ...

    def plan(self, spec: LaunchSpec) -> Plan:
        """Render the submission. Pure: reads and starts nothing."""
        ...

    async def submit(self, plan: Plan) -> str:
        """Submit and return the job's id; an active job of that name is returned, not repeated.

        Raises RefusalError where the scheduler refuses the request, UserError where it can't be
        asked from here, TransientError where it is not known whether the job exists.
        """
        ...

    async def find(self, name_prefix: str, *, past: bool = True) -> list[JobStatus]:
        """The user's jobs whose name begins so; with `past` those that ended long ago, too.

        Raises TransientError.
        """
        ...

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        """Status by job id, in one query; a job that can't be read is UNKNOWN. Never raises.

        FORGOTTEN: the scheduler answered, and knows the job no more, nor how it ended.
        """
        ...

    async def shortage(self, spec: LaunchSpec) -> Shortage:
        """Whether enough nodes are in service for a request that waits. Raises TransientError."""
        ...

    async def cancel(self, job: str) -> None:
        """End the job; nothing happens where it is gone. Raises TransientError."""
        ...

    async def send_file(
        self, job: str, content: bytes, path: str, *, replace: bool = False
    ) -> None:
        """Write a new file of mode 0600 on every node of a running job.

        `path` is a name in the job's folder that was never used before: a file that is there is
        not written to. With `replace` it is, for jobs of superv 0.1, whose agents look at one name
        only. The content never appears in argv, an environment or the script. Raises
        TransientError.
        """
        ...

    async def start_agent(
        self, job: str, node: str, agent_argv: tuple[str, ...], folder: str
    ) -> None:
        """Start an agent on one node of a running job, beside the agent step.

        Returns when the request is made, not when the agent lives. Raises TransientError.
        """
        ...
