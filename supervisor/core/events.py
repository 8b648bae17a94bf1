"""What happens to a Run. All of it is journaled.

A field that is added needs a default, so that older journals can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.types import Checkpoint, Evidence, Fault, RankExit, Rejected, RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `at` is the engine's clock, seconds since the epoch."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched(Event):
    """A user launched the run; `seed` is a checkpoint to begin from."""

    spec: RunSpec
    seed: Checkpoint | None = None
    barred: Mapping[str, str] = field(default_factory=dict)  # nodes that people keep out: why


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStarted(Event):
    """An engine took the run over."""

    epoch: int
    host: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted(Event):
    key: str
    job_id: str
    job_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRefused(Event):
    """The scheduler refused the request: a person has to change it."""

    key: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """The world did not answer an action; it is tried again. Shown, changes nothing."""

    key: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSeen(Event):
    """What Slurm says of an allocation, when that changed."""

    job_id: str
    state: str  # a JobState
    raw: str
    nodes: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysSent(Event):
    key: str
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentJoined(Event):
    """An agent registered, for the first time or again."""

    node: str
    job_id: str
    address: str
    port: int
    agent: str
    problems: tuple[str, ...] = ()
    attempt: int | None = None  # the attempt whose ranks it holds
    ranks: int = 0  # how many of them live


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLeft(Event):
    node: str
    agent: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSilent(Event):
    """No beat came for longer than policy.silent_s, though most other agents were heard."""

    node: str
    last_heard: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHeard(Event):
    """A silent node's agent was heard again."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(Event):
    """A peer tried to reach a silent node."""

    key: str
    node: str  # the peer
    target: str
    outcome: str  # reached, refused, unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOverdue(Event):
    """The next step is late by the job's own rhythm."""

    last_step: int
    last_at: float
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled(Event):
    """No step for so long that the ranks are taken to hang."""

    last_step: int
    last_at: float
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Event):
    key: str
    node: str
    attempt: int
    port: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksStarted(Event):
    """The node's ranks run; forked from a preloaded process, or cold and why."""

    key: str
    node: str
    attempt: int
    warm: bool = False
    why_cold: str = ""
    by_choice: bool = False  # nothing to preload is configured


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed(Event):
    key: str
    node: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExited(Event):
    attempt: int
    exit: RankExit


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksStopped(Event):
    """No rank of the attempt is left on the node, but for pids that could not be killed."""

    key: str
    node: str
    attempt: int
    stuck: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """The trainer said which step it resumed from (0: from the beginning)."""

    attempt: int
    node: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks(Event):
    """When slot 0's first rank entered its phases, by its node's clock."""

    attempt: int
    node: str
    marks: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    attempt: int
    step: int
    loss: float | None = None
    interval: float | None = None  # the typical time between steps so far, in seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned(Event):
    """The checkpoints that are there, verified or rejected."""

    key: str
    found: tuple[Checkpoint, ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected(Event):
    key: str
    node: str
    attempt: int
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSeen(Event):
    """A node's agent ran health checks, and they said something new."""

    node: str
    agent: str
    status: str  # OK, WARN, FAIL, UNKNOWN
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BarredSeen(Event):
    """The nodes that people keep out of runs, when that changed."""

    barred: Mapping[str, str]  # why


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAsked(Event):
    """A person asked for the end of the run."""

    who: str
    now: bool = False  # without a grace period


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAsked(Event):
    """A person wants a run that has ended to go on, from its newest verified checkpoint."""

    who: str
    spec: RunSpec
    include: tuple[str, ...] = ()  # nodes that are excluded no longer
    note: str = ""  # what else the person changed


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineAsked(Event):
    """A person says that a verified checkpoint is bad, and perhaps all that came of it."""

    who: str
    step: int
    reason: str
    and_later: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PutAway(Event):
    """A checkpoint was deleted or moved; or why it can't be."""

    key: str
    path: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due(Event):
    """The run's deadline passed."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Event):
    """An action that answers with nothing else was carried out."""

    key: str


EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Launched,
        EngineStarted,
        Submitted,
        SubmitRefused,
        Waiting,
        AllocationSeen,
        KeysSent,
        AgentJoined,
        AgentLeft,
        NodeSilent,
        NodeHeard,
        Probed,
        StepOverdue,
        Stalled,
        Prepared,
        RanksStarted,
        StartFailed,
        RankExited,
        RanksStopped,
        Resumed,
        Marks,
        Progress,
        Scanned,
        Collected,
        HealthSeen,
        BarredSeen,
        StopAsked,
        ResumeAsked,
        QuarantineAsked,
        PutAway,
        Due,
        Done,
    )
}
