"""What to do about events. Actions are journaled before they are done.

A field that is added needs a default, so that older journals can be read.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTIONS: dict[str, type[Action]] = {}  # by name: each class below puts itself here


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to do. The key names it forever: done again, it looks before it acts."""

    key: str

    def __init_subclass__(cls) -> None:
        ACTIONS[cls.__name__] = cls  # with slots a class is made twice; the last one counts
        for base in cls.__bases__:
            ACTIONS.pop(base.__name__, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Action):
    job_name: str
    nodes: int
    min_nodes: int = 0  # so few will do; 0: all of `nodes`
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Action):
    job_id: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll(Action):
    """Ask Slurm about an allocation now."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendKeys(Action):
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAgent(Action):
    job_id: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCommand(Action):
    """An action that one node's agent carries out."""

    node: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(AgentCommand):
    """Clear the node of older ranks and pick a free port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(AgentCommand):
    slot: int
    nnodes: int
    master_addr: str
    master_port: int
    save_dir: str | None
    resume_path: str | None
    resume_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(AgentCommand):
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect(AgentCommand):
    """Bring the process states and, where nothing died, where the ranks stand in their code."""

    stacks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(AgentCommand):
    """See whether another node answers."""

    target: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(AgentCommand):
    """End the agent; its ranks are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan(Action):
    """Verify checkpoints: the attempt's own directory, and what the lineage ends with."""

    attempt: int
    directory: str
    known: tuple[
        tuple[int, str, int], ...
    ]  # step, path and attempt of lineage entries to verify again


@dataclass(frozen=True, slots=True, kw_only=True)
class BadEnd:
    """How a rank ended, in words, and its last lines as they are known already."""

    rank: int
    how: str
    tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLogs(Action):
    """Bring what an attempt's ranks wrote into the run's folder, before its nodes are given back.

    Of all ranks the end; of those that ended badly first, and of rank 0, all of it, up to a bound.
    """

    attempt: int
    slots: tuple[str, ...]  # nodes by group rank
    first: tuple[BadEnd, ...] = ()  # the bad ends that came first


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard(Action):
    """Delete a checkpoint that retention gave up."""

    path: str
    home: str  # checkpoints.dir: nothing outside of its attempts' directories is touched


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine(Action):
    """Move a checkpoint that a person called bad out of every trainer's sight."""

    path: str
    home: str
