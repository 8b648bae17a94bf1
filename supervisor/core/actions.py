"""What to do about events. Actions are journaled before they are done.

A field that is added needs a default, so that older journals can be read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to do. The key names it for ever: done again, it looks before it acts."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit(Action):
    job_name: str
    nodes: int
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
class Order(Action):
    """An action that one node's agent carries out."""

    node: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Order):
    """Clear the node of older ranks and pick a free port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Order):
    slot: int
    nnodes: int
    master_addr: str
    master_port: int
    save_dir: str | None
    resume_path: str | None
    resume_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Order):
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Collect(Order):
    """Bring the process states and, where nothing died, where the ranks stand in their code."""

    stacks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Order):
    """See whether another node answers."""

    target: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Order):
    """End the agent; its ranks are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan(Action):
    """Verify checkpoints: the attempt's own directory, and what the lineage ends with."""

    attempt: int
    directory: str
    known: tuple[
        tuple[int, str, int], ...
    ]  # step, path and attempt of lineage entries to look at again


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


ACTIONS: dict[str, type[Action]] = {
    kind.__name__: kind
    for kind in (
        Submit,
        Cancel,
        Poll,
        SendKeys,
        StartAgent,
        Prepare,
        Start,
        Stop,
        Collect,
        Probe,
        Leave,
        Scan,
        Discard,
        Quarantine,
    )
}
