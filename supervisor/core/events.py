"""What happens to a Run. All of it is journaled.

A field that is added needs a default, so that older journals can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.check_status import Status
from supervisor.core.ports import JobState
from supervisor.core.types import (
    Checkpoint,
    DeadlineKind,
    Evidence,
    Exclusion,
    Fault,
    Phase,
    ProbeOutcome,
    RankExit,
    Rejected,
    RunSpec,
)

EVENTS: dict[str, type[Event]] = {}  # by name: each class below puts itself here


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `at` is the engine's clock, seconds since the epoch."""

    at: float

    def __init_subclass__(cls) -> None:
        EVENTS[cls.__name__] = cls  # with slots a class is made twice; the last one counts
        for base in cls.__bases__:
            EVENTS.pop(base.__name__, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent(Event):
    """Something that the agent of the node where it happened reports, and nobody else may."""

    @property
    def reporter(self) -> str:
        """The node whose agent may report it."""
        return str(getattr(self, "node", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched(Event):
    """A user launched the run; `seed` is a checkpoint to begin from."""

    spec: RunSpec
    seed: Checkpoint | None = None
    operator_excluded: Mapping[str, str] = field(default_factory=dict)  # by people: why


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedJob:
    """A Slurm job of an adopted run; one without nodes waits in the queue."""

    job_id: str
    job_name: str
    raw: str
    nodes: tuple[str, ...] = ()
    reason: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedAgent:
    """An agent that answered when a run was adopted, and holds its node's ranks."""

    node: str
    job_id: str
    address: str
    port: int
    agent: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted(Event):
    """A person had a run whose journal was lost taken up as its agents and Slurm know it.

    It begins a journal, as Launched does; what it does not tell was lost with the old one.
    """

    who: str
    why: str  # what was wrong with the journal before
    spec: RunSpec
    endpoint: str
    jobs: tuple[AdoptedJob, ...]
    attempt: int | None  # None: no agent holds ranks, or knows of any
    slots: tuple[str, ...] = ()
    resume: Checkpoint | None = None  # what that attempt resumed from
    agents: tuple[AdoptedAgent, ...] = ()
    lineage: tuple[Checkpoint, ...] = ()
    excluded: tuple[Exclusion, ...] = ()
    operator_excluded: Mapping[str, str] = field(default_factory=dict)  # by people: why


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
    folder: str = ""  # the job's private folder on each of its nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitRefused(Event):
    """The scheduler refused the request, or could not be asked for it from here."""

    key: str
    why: str
    # It says no again when it is asked again; None: journaled by a version that did not tell.
    definite: bool | None = None
    lacking: int = 0  # so many nodes it has too few
    excluded: tuple[str, ...] = ()  # nodes that it has, and that the request leaves out


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event):
    """The world did not answer an action; it is tried again. Shown, changes nothing."""

    key: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSeen(Event):
    """What Slurm says of an allocation, when that changed."""

    job_id: str
    state: JobState
    raw: str
    nodes: tuple[str, ...] = ()
    down: tuple[str, ...] = ()
    reason: str = ""
    drained: tuple[str, ...] = ()
    means: str = ""  # of a job that waits: the reason in words
    do: str = ""  # … and what to do about it; empty where the queue does its work
    starts_at: float | None = None  # … and when Slurm expects its start


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesLacking(Event):
    """How many nodes in service Slurm has too few for a job that waits, when that changed."""

    job_id: str
    lacking: int
    excluded: tuple[str, ...] = ()  # nodes in service that the job leaves out


@dataclass(frozen=True, slots=True, kw_only=True)
class StrayJobSeen(Event):
    """Slurm has a job of this run that is not in the journal: a submission's answer was lost."""

    job_id: str
    job_name: str


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
    key: str = ""  # a hash of its own key; empty: an agent of a version that had none


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLeft(AgentEvent):
    node: str
    agent: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemsSeen(AgentEvent):
    """What keeps ranks from a node, as its agent found at a later look; empty: nothing does."""

    node: str
    agent: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRestored(AgentEvent):
    """Somebody removed files of superv on a node; its agent has made them again."""

    node: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesMissing(AgentEvent):
    """A node lacks files that only the engine can give."""

    node: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatLost(Event):
    """No heartbeat for longer than policy.heartbeat_timeout_s; most other agents were heard."""

    node: str
    last_heard: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRegained(Event):
    """A silent node's agent was heard again."""

    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIsolated(Event):
    """Half of the agents or more are silent, and nobody says why; again while that lasts."""

    since: float  # when the last of them was heard
    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationEnded(Event):
    """Silence counts again: of single nodes, with a second witness each."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed(AgentEvent):
    """A peer tried to reach a silent node."""

    key: str
    node: str  # the peer
    target: str
    outcome: ProbeOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOverdue(Event):
    """The next step is late by the job's own rhythm."""

    last_step: int
    last_at: float
    limit_s: float
    suspects: tuple[str, ...] = ()  # peers had time to reach them; empty: of a superv before that


@dataclass(frozen=True, slots=True, kw_only=True)
class HangDetected(Event):
    """No step for so long that the ranks are taken to hang."""

    last_step: int
    last_at: float
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(AgentEvent):
    key: str
    node: str
    attempt: int
    port: int
    problems: tuple[str, ...] = ()
    stuck: tuple[int, ...] = ()  # of these, pids of older ranks that could not be killed
    foreign: tuple[str, ...] = ()  # others' processes that hold GPUs: said, and no problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksStarted(AgentEvent):
    """The node's ranks run; forked from a preloaded process, or cold and why."""

    key: str
    node: str
    attempt: int
    warm: bool = False
    why_cold: str = ""
    by_choice: bool = False  # nothing to preload is configured


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailed(AgentEvent):
    key: str
    node: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExited(AgentEvent):
    attempt: int
    exit: RankExit

    @property
    def reporter(self) -> str:
        return self.exit.node


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksExited(AgentEvent):
    """What RankExited says, of ranks of a node that ended while its agent had others to report."""

    attempt: int
    node: str
    exits: tuple[RankExit, ...]

    @property
    def reporter(self) -> str:
        """None where it speaks for other nodes too."""
        return self.node if all(one.node == self.node for one in self.exits) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksStopped(AgentEvent):
    """No rank of the attempt is left on the node, but for pids that could not be killed."""

    key: str
    node: str
    attempt: int
    stuck: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(AgentEvent):
    """The trainer said which step it resumed from (0: from the beginning)."""

    attempt: int
    node: str
    step: int
    log: bool = False  # by a line; else from inside the rank
    others: int = 0  # ranks of the node that say the same, beside the first


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTimes(AgentEvent):
    """When slot 0's first rank entered its phases, by its node's clock."""

    attempt: int
    node: str
    phase_times: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    attempt: int
    step: int
    loss: float | None = None  # finite; JSON has no word for the others
    interval: float | None = None  # the typical time between steps so far, in seconds
    loss_not_finite: bool = False  # the trainer says NaN or infinite
    log: bool = False  # lines say so; else the ranks' hooks
    slow: float | None = None  # the longest time between steps that is usual, in seconds
    save: float | None = None  # the typical time between steps with a save between them
    per_epoch: bool = False  # the lines count each epoch from its beginning
    finite_step: int | None = None  # the newest step whose loss lines have told, and it was finite


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesUnread(Event):
    """For a minute or more ranks write lines, and none of them is understood as a step."""

    attempt: int
    node: str
    rank: int
    line: str
    pattern: str = ""  # for progress.step in job.yaml: what would fit, where that can be told


@dataclass(frozen=True, slots=True, kw_only=True)
class HookTroubled(Event):
    """The hook can't enter the trainer where it should, or is never called there."""

    attempt: int
    node: str
    rank: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned(Event):
    """The checkpoints that are there, verified or rejected."""

    key: str
    found: tuple[Checkpoint, ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected(AgentEvent):
    key: str
    node: str
    attempt: int
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsKept(Event):
    """What an attempt's ranks wrote is in the run's folder, as far as it could be had."""

    key: str
    attempt: int
    ranks: int  # whose logs are kept
    missing: tuple[str, ...] = ()  # of whom they could not be had, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSeen(AgentEvent):
    """A node's agent ran health checks, and they said something new."""

    node: str
    agent: str
    status: Status  # the worst of `faults`; OK where there is none
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorExclusionsChanged(Event):
    """The nodes that people keep out of runs, when that changed."""

    operator_excluded: Mapping[str, str]  # why


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Event):
    """A person asked for the end of the run."""

    who: str
    now: bool = False  # without a grace period


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested(Event):
    """A person wants a run that has ended to go on, from its newest verified checkpoint."""

    who: str
    spec: RunSpec
    include: tuple[str, ...] = ()  # nodes that are excluded no longer
    note: str = ""  # what else the person changed


@dataclass(frozen=True, slots=True, kw_only=True)
class IncludeRequested(Event):
    """A person wants nodes that the run has excluded to be used again, alive or ended."""

    who: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRequested(Event):
    """A person says that a verified checkpoint is bad, and perhaps all that came of it."""

    who: str
    step: int
    reason: str
    and_later: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRetired(Event):
    """A checkpoint was deleted or moved; or why it can't be."""

    key: str
    path: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified(Event):
    """People are about to be told of something, by the commands of `notify`."""

    key: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyFailed(Event):
    """A command of `notify` failed."""

    key: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The run has ended as this says: whatever a later superv would decide, it stays so."""

    phase: Phase
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineExpired(Event):
    """The run's deadline passed."""

    kind: DeadlineKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Event):
    """An action that answers with nothing else was carried out."""

    key: str
