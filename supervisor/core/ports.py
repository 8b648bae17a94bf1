"""What the core's actions need from the world, as protocols. Adapters live outside the core."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class JobState(StrEnum):
    """What a Slurm job's state means to superv. The raw state is kept beside it."""

    PENDING = "pending"
    RUNNING = "running"
    CANCELLED = "cancelled"
    ENDED = "ended"  # any other end: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, PREEMPTED …
    UNKNOWN = "unknown"  # could not be read, or a state that superv does not know


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One allocation to ask for."""

    job_name: str  # unique to run and allocation; submission is idempotent by it
    nodes: int  # active nodes and spares together
    slurm: Mapping[str, str] = field(default_factory=dict)  # sbatch options: long name → value
    exclude: tuple[str, ...] = ()  # node names
    # The command that every node runs. A launcher whose nodes share a machine puts the node's name
    # where `{node}` stands; no other has it in its commands.
    agent_argv: tuple[str, ...] = ()
    log_path: str = "/dev/null"  # the batch script's own output; the agents write to local disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A submission as it would be made: printable, compared in golden tests."""

    job_name: str
    argv: tuple[str, ...]  # the submit command; the script goes to its standard input
    script: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """One allocation as the launcher's world reports it."""

    job_id: str
    job_name: str
    state: JobState
    raw: str  # the scheduler's own word
    nodes: tuple[str, ...] = ()
    down: tuple[str, ...] = ()  # nodes of it that the scheduler reports DOWN or not responding
    reason: str = ""


class Launcher(Protocol):
    """Gets agents onto nodes. Every launcher passes tests/contract/test_launchers.py."""

    def plan(self, spec: LaunchSpec) -> Plan:
        """Render the submission. Pure: reads and starts nothing."""
        ...

    async def submit(self, plan: Plan) -> str:
        """Submit and return the job's id; an active job of that name is returned, not repeated.

        Raises UserError where the scheduler refuses the request, TransientError where it is not
        known whether the job exists.
        """
        ...

    async def find(self, name_prefix: str) -> list[JobStatus]:
        """The user's jobs, ended ones included, whose name begins so. Raises TransientError."""
        ...

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        """Status by job id, in one query; a job that can't be read is UNKNOWN. Never raises."""
        ...

    async def cancel(self, job: str) -> None:
        """End the job; nothing happens where it is gone. Raises TransientError."""
        ...

    async def send_file(self, job: str, content: bytes, path: str) -> None:
        """Write a file of mode 0600 at a node-local path on every node of a running job.

        The content never appears in argv, an environment or the script. Raises TransientError.
        """
        ...

    async def start_agent(self, job: str, node: str, agent_argv: tuple[str, ...]) -> None:
        """Start an agent on one node of a running job, beside the agent step.

        Returns when the request is made, not when the agent lives. Raises TransientError.
        """
        ...
