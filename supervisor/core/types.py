"""The nouns of a Run, as frozen values. docs/architecture.md explains the words."""

from __future__ import annotations

import signal
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from supervisor.core.actions import Action, Submit
from supervisor.core.check_status import Status
from supervisor.core.last_words import is_cascade, last_line, last_words
from supervisor.core.persistent import Names, PersistentList, PersistentMap, PersistentSet
from supervisor.core.policy import Policy


def _kept_as(value: object, field_name: str, kind: type) -> None:
    """Keep a field as the collection that grows without a copy, whatever it was given as."""
    given = getattr(value, field_name)
    if type(given) is not kind:
        object.__setattr__(value, field_name, kind(given))


class Phase(StrEnum):
    """Where a Run stands; the last three are ends."""

    PENDING = "pending"  # nodes are asked for
    GATHERING = "gathering"  # agents arrive
    CHECKING = "checking"  # every slot's node confirms that it is free of older ranks
    STARTING = "starting"  # ranks are started; no step seen yet
    RUNNING = "running"
    STOPPING = "stopping"  # ranks are being stopped
    TRIAGE = "triage"  # the ranks are gone; checkpoints are verified and a verdict is made
    BACKOFF = "backoff"
    DONE = "done"
    HELD = "held"
    STOPPED = "stopped"


ENDED = frozenset({Phase.DONE, Phase.HELD, Phase.STOPPED})
HAS_RANKS = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


class NodeState(StrEnum):
    """What superv knows of a node with an agent. Its slot says whether it is active or a spare."""

    READY = "ready"
    SUSPECT = "suspect"  # silent; no second witness yet
    LOST = "lost"  # silent, and a second witness said so
    UNUSABLE = "unfit"  # its agent found something that keeps ranks from running
    LEFT = "left"  # its agent said goodbye


class AllocationState(StrEnum):
    """Where a Slurm job that holds nodes for the Run stands."""

    REQUESTED = "asked"
    GRANTED = "granted"
    ENDED = "ended"


class DeadlineKind(StrEnum):
    """What a Run waits for with a deadline; core/machine.py says what comes after it."""

    REGISTRATION = "gather"  # enough agents for every slot
    SPARES = "spares"  # the agents beyond that
    PREPARE = "prepare"  # every slot's node confirms that it is free of older ranks
    FIRST_STEP = "start"
    STOP = "stop"  # every node confirms that its ranks are gone
    LAST_RANKS = "last ranks"  # some ranks have ended well; the others do so too
    FINAL_SCAN = "last look"  # storage says what the last attempt of an ending run saved
    RETRY = "retry"  # a pause before the next attempt
    ASK_AGAIN = "ask again"  # a pause before a request that Slurm refused is made again
    LOGS = "logs"  # what the last attempt's ranks wrote is in the run's folder
    RELEASE = "release"  # agents that were told to leave have ended their job
    REFUSED = "refused"  # an action that was refused (core/refusal.py); nothing else is waited for


class Cause(StrEnum):
    """Why an attempt ended badly; each has a page docs/runbooks/CAUSE.md."""

    NODE_LOST = "node-lost"
    RANK_EXIT = "rank-exit"
    HANG = "hang"
    NO_FIRST_STEP = "no-first-step"
    START_FAILED = "start-failed"
    RANKS_LOST = "ranks-lost"
    AGENT_LEFT = "agent-left"
    ALLOCATION_ENDED = "allocation-ended"
    WRONG_STEP = "wrong-step"
    QUARANTINE = "quarantine"
    UNHEALTHY_NODE = "unhealthy-node"
    ENDED_EARLY = "ended-early"


class Confidence(StrEnum):
    """How sure a Verdict is of its culprits."""

    UNNAMED = "unnamed"  # there are none
    INFERRED = "inferred"  # from a pattern over attempts
    WITNESSED = "witnessed"  # something saw the fault on that node


class RemedyKind(StrEnum):
    """What is done about a Verdict."""

    RETRY = "retry"
    SWAP = "swap"
    HOLD = "hold"


class ProbeOutcome(StrEnum):
    """Whether a peer reaches a node whose heartbeats stopped."""

    REACHED = "reached"  # its agent answers
    MUTE = "mute"  # the host takes the connection for it, and it says nothing: it is stopped
    REFUSED = "refused"  # the host answers, and nobody listens there
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What the user asked for, as far as decisions need it."""

    name: str
    run_id: str  # unique to this launch: 12 hex digits
    nodes: int  # slots
    spares: int
    ranks_per_node: int
    checkpoint_dir: str | None  # None: every restart begins at step 0
    policy: Policy
    first_attempt: int = 1  # higher where the directory holds attempts of an earlier run
    keep: int = 0  # verified checkpoints that retention leaves; 0: all of them
    keep_every: int = 0  # those of steps that this divides are never removed; 0: no such steps
    shows_work: bool = False  # a hook tells steps, or checkpoints are saved: who trains shows it
    preflight: bool = False  # a node takes a slot only once its health checks have said something


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a health check found on a node."""

    check: str
    status: Status
    text: str
    node_fault: bool = True  # the node's own fault, not a server's, a switch's or a user's


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node with an agent."""

    name: str
    job_id: str
    address: str  # where its peers reach it
    port: int  # the agent's echo port, for peers' probes
    agent: str  # this life of the agent; a restarted agent has another
    key: str = ""  # a hash of what lives on there between agents; empty where there is none
    state: NodeState = NodeState.READY
    since: float = 0.0
    reason: str = ""
    unconfirmed: int | None = None  # UNUSABLE until it says that no rank up to this attempt is left
    unprepared: int | None = None  # UNUSABLE until it is ready for this attempt, or for a later one
    problems: tuple[str, ...] = ()  # UNUSABLE until its agent finds none of these any more
    listed: bool = True  # Slurm has it among its job's nodes
    trouble: str = ""  # what makes it UNUSABLE, kept while it is silent
    looked_at: float | None = None  # when Slurm and peers were asked last where it is
    unreachable: tuple[str, ...] = ()  # peers that could not reach it at that look
    reachable: tuple[str, ...] = ()  # peers whose connection its host took or refused
    answering: tuple[str, ...] = ()  # of these, peers that its agent answered
    mute: tuple[str, ...] = ()  # of these, peers that its agent keeps waiting
    helped_at: float | None = None  # when its agent was started last because it was silent
    health: Status | None = None  # the worst of its health checks; None: not yet known
    faults: tuple[Fault, ...] = ()
    checked_at: float | None = None
    unhealthy: bool = False  # UNUSABLE until its health checks pass

    @property
    def node_faults(self) -> tuple[Fault, ...]:
        """Failures that are the node's own: neither a server's nor a user's."""
        return tuple(f for f in self.faults if f.status is Status.FAIL and f.node_fault)


class Pool(PersistentMap[str, Node]):
    """Nodes by name; grouped by state, by state and health, and by job; and those not listed."""

    __slots__ = ()

    @staticmethod
    def groups_of(value: Node) -> tuple[object, ...]:
        found = (value.state, (value.state, value.health), ("job", value.job_id))
        return found if value.listed else (*found, "unlisted")


class Orders(PersistentMap[str, Action]):
    """Actions by key; grouped by type, by node and by the node that is probed."""

    __slots__ = ()

    @staticmethod
    def groups_of(value: Action) -> tuple[object, ...]:
        node, target = getattr(value, "node", None), getattr(value, "target", None)
        return type(value), ("node", node), ("target", target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A node that this Run does not use again."""

    node: str
    reason: str
    since: float
    attempt: int
    cause: Cause | None = None
    confidence: Confidence = Confidence.WITNESSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A Slurm job that holds nodes for the Run."""

    job_id: str
    job_name: str
    state: AllocationState
    raw: str = ""  # Slurm's own word
    nodes: Names = field(default_factory=Names)
    down: tuple[str, ...] = ()  # those that Slurm reports DOWN or not responding
    drained: tuple[str, ...] = ()  # those that people or superv drain in Slurm
    reason: str = ""
    means: str = ""  # while it waits: the reason in words
    do: str = ""  # while it waits: what to do about it; empty where the queue does its work
    starts_at: float | None = None  # while it waits: when Slurm expects its start
    lacking: int = 0  # while it waits: nodes that Slurm has too few in service for it
    cancelled: bool = False  # superv asked for its end
    folder: str = ""  # on its nodes; empty: submitted by a superv that had none

    def __post_init__(self) -> None:
        _kept_as(self, "nodes", Names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was verified."""

    step: int
    path: str
    attempt: int  # 0: it was there before the run
    verified_at: float
    bytes: int = 0
    fingerprint: str = ""  # of its files' names, sizes and times; empty where it was not taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A checkpoint that did not pass verification."""

    step: int
    path: str
    why: str
    incomplete: bool = False  # it was never finished; what is left of it is good for nothing
    unreadable: bool = False  # storage did not let us look, though an older one could be read

    @property
    def final(self) -> bool:
        """Whether it stays rejected whatever a later look finds."""
        return not self.incomplete and not self.unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """A checkpoint that was verified, or the rest of one, and left the lineage on purpose."""

    step: int
    path: str  # where it was
    at: float
    why: str
    quarantined: bool = False  # by a person; else removed by retention
    done: bool = False  # it is where it should be
    problem: str = ""  # why it is still at `path`


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExit:
    """How one rank ended, as its agent saw it."""

    node: str
    rank: int
    code: int | None  # exit code; None where a signal ended it or nobody saw the end
    signal: int | None
    at: float  # the node's clock, seconds since the epoch
    tail: tuple[str, ...] = ()  # its last lines

    @property
    def clean(self) -> bool:
        return self.code == 0

    @property
    def said(self) -> str:
        """Its own line that says why; empty where it said nothing of the kind."""
        return "" if self.clean else last_words(self.tail)

    @property
    def follows(self) -> bool:
        """Whether it shows no more than that others had gone, or that it was told to end."""
        return self.signal == signal.SIGTERM or is_cascade(self.said)

    def text(self) -> str:
        """How it ended, in words: its own, where it said why."""
        who = f"rank {self.rank} on {self.node}"
        if self.said:
            return f"{who}: {self.said} ({self._how()})"
        line = "" if self.clean else last_line(self.tail)
        last = f'; it said last "{line}"' if line else ""
        if self.signal is not None:
            return f"{who} was ended by {self._how()}{last}"
        if self.code is None:
            return f"{who} ended while no agent watched it{last}"
        return f"{who} exited with code {self.code}{last}"

    def _how(self) -> str:
        if self.signal is not None:
            known = self.signal in signal.Signals.__members__.values()
            return signal.Signals(self.signal).name if known else f"signal {self.signal}"
        return "nobody saw the end" if self.code is None else f"exit code {self.code}"


class Exits(PersistentMap[int, RankExit]):
    """Ends of ranks by rank; grouped by node."""

    __slots__ = ()

    @staticmethod
    def groups_of(value: RankExit) -> tuple[object, ...]:
        return (value.node,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Something that was seen: where, when, and the line that says so."""

    node: str  # empty where it is about no single node
    at: float
    source: str  # agent, rank log, silence, peers, slurm, storage …
    text: str


class EvidenceLog(PersistentList[Evidence]):
    """Evidence in the order in which it came. The same again, at another time, is not new."""

    __slots__ = ()

    @staticmethod
    def told_apart_by(item: Evidence) -> Hashable:
        return item.node, item.source, item.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the evidence means."""

    cause: Cause
    culprits: tuple[str, ...] = ()  # empty: nobody is named
    confidence: Confidence = Confidence.UNNAMED
    why: str = ""
    slot: int | None = None  # where its culprit was named for what its ranks did
    said: str = ""  # the words of the rank that stands first
    cleared: tuple[str, ...] = ()  # named before by inference, and by this evidence not at fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """An Attempt that ended badly: what was seen, what it meant, what was done."""

    attempt: int
    cause: Cause
    evidence: EvidenceLog = field(default_factory=EvidenceLog)
    fault_at: float | None = None  # where the evidence itself carries the time of the fault
    suspected_at: float | None = None
    confirmed_at: float = 0.0
    stopped_at: float | None = None  # the old ranks are gone
    verdict: Verdict | None = None
    judged_at: float | None = None
    remedy: str = ""
    relaunched_at: float | None = None
    first_step_at: float | None = None
    step: int | None = None  # the last step seen before it
    resumed_from: int | None = None  # the step of the checkpoint that was loaded
    warm: bool | None = None  # whether all ranks of the relaunch were forked, once known
    phase_times: tuple[tuple[str, float], ...] = ()  # phases of the relaunch's first rank

    def __post_init__(self) -> None:
        _kept_as(self, "evidence", EvidenceLog)

    @property
    def steps_lost(self) -> int | None:
        if self.step is None or self.resumed_from is None:
            return None
        return max(0, self.step - self.resumed_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadLine:
    """A line of a rank, where none was understood as a step."""

    node: str
    rank: int
    line: str
    pattern: str  # for progress.step in job.yaml; empty: no number in the lines grows
    since: float
    at: float  # when there were new ones last


@dataclass(frozen=True, slots=True, kw_only=True)
class HookTrouble:
    """What is amiss with the hook in a rank."""

    node: str
    rank: int
    text: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the ranks on N slots."""

    number: int
    slots: Names  # by group rank
    resume: Checkpoint | None
    save_dir: str | None
    slot0_first: bool = False  # the other nodes' ranks are ordered once slot 0's are started
    prepared: PersistentSet[str] = field(default_factory=PersistentSet)
    master_port: int | None = None
    started: PersistentSet[str] = field(default_factory=PersistentSet)  # nodes whose ranks run
    started_at: float | None = None  # the start was ordered
    # nodes whose ranks were not forked from a preloaded process: why
    cold: PersistentSet[str] = field(default_factory=PersistentSet)
    phase_times: tuple[tuple[str, float], ...] = ()  # when slot 0's first rank entered its phases
    first_step_at: float | None = None
    first_step: int | None = None  # that ranks told
    step: int | None = None
    step_at: float | None = None
    loss: float | None = None  # the last finite one
    loss_not_finite_since: float | None = None  # None: the newest loss is finite
    finite_step: int | None = None  # the newest step whose loss is known to have been finite
    interval: float | None = None  # the typical time between its steps, in seconds
    log_steps: bool = False  # lines told its step, not its ranks' hooks
    by_checkpoint: bool = False  # no step was understood: a verified checkpoint told it
    below: int | None = None  # a first step before the promised one, which nothing confirms yet
    resumed_well: bool = False  # some rank said that it resumed where it was promised
    resumed_elsewhere: tuple[tuple[str, int, int], ...] = ()  # node, step, ranks: lines say so
    unread: UnreadLine | None = None  # while no step is understood
    hook_trouble: HookTrouble | None = None
    exits: Exits = field(default_factory=Exits)
    first_end_at: float | None = None  # the first end with code 0 was told, by the engine's clock
    # nodes that confirmed that no rank of it is left
    confirmed_stopped: PersistentSet[str] = field(default_factory=PersistentSet)
    tainted_from: int | None = None  # from this step on its checkpoints don't count

    def __post_init__(self) -> None:
        _kept_as(self, "slots", Names)
        for name in ("prepared", "started", "cold", "confirmed_stopped"):
            _kept_as(self, name, PersistentSet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """How long the run's steps and saves take, in seconds; None while that is unknown."""

    step: float | None = None  # the median between reported steps
    slow: float | None = None  # the longest that is usual
    save: float | None = None  # the median between reported steps with a save between them


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """What happens at a time if nothing else does."""

    at: float
    kind: DeadlineKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """An invariant that a step would have broken: a fault of superv's own, kept to be shown."""

    at: float  # the newest time
    invariant: int  # its number in "What it never does" of docs/invariants.md
    what: str
    refused: tuple[str, ...] = ()  # keys of the actions that were left out
    nodes: tuple[str, ...] = ()  # nodes that were to be excluded for it, and were not
    undone: bool = False  # the whole step was not taken
    times: int = 1

    @property
    def text(self) -> str:
        done = "refused" if self.refused or self.nodes or self.undone else "noticed"
        often = f", {self.times} times" if self.times > 1 else ""
        return f"{done}: {self.what} (invariant {self.invariant}{often})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that decisions rest on; rebuilt from the journal."""

    spec: RunSpec
    launched_at: float | None = None  # None: an adopted run, whose journal was lost
    phase: Phase = Phase.PENDING
    since: float = 0.0
    reason: str = ""  # why it is in this phase, in words
    epoch: int = 0
    engine_starts: tuple[float, ...] = ()  # the newest ones
    endpoint: str = ""
    deadline: Deadline | None = None
    allocations: Mapping[str, Allocation] = field(default_factory=dict)  # by job id
    allocations_requested: int = 0  # allocations asked for so far
    asked_by_person: bool = True  # the last request is the first since a launch or a resume
    request: Submit | None = None  # the newest one
    refusals: int = 0  # of the same request, one after the other
    avoid: tuple[str, ...] = ()  # nodes that the next request leaves out, and it alone
    asked_others: int = 0  # so often other nodes were asked for before it trained
    pool: Pool = field(default_factory=Pool)
    slots: Names = field(default_factory=Names)  # by group rank; an empty name waits for a node
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)  # by this run itself
    operator_excluded: Mapping[str, str] = field(default_factory=dict)  # from all runs: why
    attempt: Attempt | None = None
    lineage: tuple[Checkpoint, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    retired: Mapping[str, Retired] = field(default_factory=dict)  # by path
    incomplete_checkpoints: tuple[Checkpoint, ...] = ()  # nobody is left to finish them
    incidents: tuple[Incident, ...] = ()
    restarts_without_progress: Mapping[Cause, int] = field(default_factory=dict)  # by cause
    best_step: int = 0  # the newest verified step when that was last reset
    stopping_as: Phase | None = None  # the end that a stop is for
    rhythm: Rhythm = Rhythm()
    isolated_since: float | None = None  # this engine is cut off: most agents are silent
    pending: Orders = field(default_factory=Orders)  # actions without a result yet
    notified: tuple[str, ...] = ()  # keys of what people were told, the newest last
    violations: tuple[Violation, ...] = ()  # the newest ones; empty unless superv is at fault

    def __post_init__(self) -> None:
        _kept_as(self, "pool", Pool)
        _kept_as(self, "slots", Names)
        _kept_as(self, "pending", Orders)

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def live_jobs(self) -> tuple[str, ...]:
        return tuple(
            a.job_id for a in self.allocations.values() if a.state is not AllocationState.ENDED
        )
