"""The nouns of a Run, as frozen values. docs/architecture.md explains the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from supervisor.core.actions import Action
from supervisor.core.policy import Policy


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


ENDS = frozenset({Phase.DONE, Phase.HELD, Phase.STOPPED})
HAS_RANKS = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


class NodeState(StrEnum):
    """What superv knows of a node with an agent. Its slot says whether it is active or a spare."""

    READY = "ready"
    SUSPECT = "suspect"  # silent; no second witness yet
    LOST = "lost"  # silent, and a second witness said so
    UNFIT = "unfit"  # its agent found something that keeps ranks from running
    LEFT = "left"  # its agent said goodbye


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
    preflight: bool = False  # a node takes a slot only once its health checks have said something


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a health check found on a node."""

    check: str
    status: str  # FAIL, UNKNOWN, WARN
    text: str
    own: bool = True  # the node's own fault, not a server's, a switch's or a user's


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node with an agent."""

    name: str
    job_id: str
    address: str  # where its peers reach it
    port: int  # the agent's echo port, for peers' probes
    agent: str  # this life of the agent; a restarted agent has another
    state: NodeState = NodeState.READY
    since: float = 0.0
    reason: str = ""
    unconfirmed: bool = False  # UNFIT until it says that no rank of an older attempt is left
    unreachable: tuple[str, ...] = ()  # peers that could not reach it while it was suspect
    reachable: tuple[str, ...] = ()  # peers that could
    health: str = (
        ""  # the worst of its health checks: OK, WARN, FAIL, UNKNOWN; empty: not yet known
    )
    faults: tuple[Fault, ...] = ()
    checked_at: float | None = None
    ill: bool = False  # UNFIT until its health checks pass

    @property
    def own_faults(self) -> tuple[Fault, ...]:
        """Failures that are the node's own: neither a server's nor a user's."""
        return tuple(f for f in self.faults if f.status == "FAIL" and f.own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A node that this Run does not use again."""

    node: str
    reason: str
    since: float
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A Slurm job that holds nodes for the Run."""

    job_id: str
    job_name: str
    state: str  # asked, granted, ended
    raw: str = ""  # Slurm's own word
    nodes: tuple[str, ...] = ()
    down: tuple[str, ...] = ()  # those that Slurm reports DOWN or not responding
    reason: str = ""
    cancelled: bool = False  # superv asked for its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was verified."""

    step: int
    path: str
    attempt: int  # 0: it was there before the run
    verified_at: float
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A checkpoint that did not pass verification."""

    step: int
    path: str
    why: str
    incomplete: bool = False  # it was never finished; what is left of it is good for nothing


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

    def text(self) -> str:
        """How it ended, in words."""
        if self.signal is not None:
            return f"rank {self.rank} on {self.node} was ended by signal {self.signal}"
        if self.code is None:
            return f"rank {self.rank} on {self.node} ended while no agent watched it"
        return f"rank {self.rank} on {self.node} exited with code {self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Something that was seen: where, when, and the line that says so."""

    node: str  # empty where it is about no single node
    at: float
    source: str  # agent, rank log, silence, peers, slurm, storage …
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the evidence means."""

    cause: str
    culprits: tuple[str, ...] = ()  # empty: nobody is named
    confidence: str = "unnamed"  # unnamed, inferred, witnessed
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """An Attempt that ended badly: what was seen, what it meant, what was done."""

    attempt: int
    cause: str
    evidence: tuple[Evidence, ...] = ()
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
    marks: tuple[tuple[str, float], ...] = ()  # phases of the relaunch's first rank

    @property
    def steps_lost(self) -> int | None:
        if self.step is None or self.resumed_from is None:
            return None
        return max(0, self.step - self.resumed_from)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the ranks on N slots."""

    number: int
    slots: tuple[str, ...]  # node names, by group rank
    resume: Checkpoint | None
    save_dir: str | None
    slot0_first: bool = False  # the other nodes' ranks are ordered once slot 0's are started
    prepared: tuple[str, ...] = ()
    master_port: int | None = None
    started: tuple[str, ...] = ()  # nodes whose ranks run
    started_at: float | None = None  # the start was ordered
    cold: tuple[str, ...] = ()  # nodes whose ranks were not forked from a preloaded process: why
    marks: tuple[tuple[str, float], ...] = ()  # when slot 0's first rank entered its phases
    resumed_step: int | None = None  # the step that the trainer says it resumed from
    first_step_at: float | None = None
    step: int | None = None
    step_at: float | None = None
    loss: float | None = None
    interval: float | None = None  # the typical time between its steps, in seconds
    exits: tuple[RankExit, ...] = ()
    gone: tuple[str, ...] = ()  # nodes that confirmed that no rank of it is left
    tainted_from: int | None = None  # from this step on its checkpoints don't count


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """What happens at a time if nothing else does."""

    at: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that decisions rest on; rebuilt from the journal."""

    spec: RunSpec
    phase: Phase = Phase.PENDING
    since: float = 0.0
    reason: str = ""  # why it is in this phase, in words
    epoch: int = 0
    endpoint: str = ""
    deadline: Deadline | None = None
    allocations: Mapping[str, Allocation] = field(default_factory=dict)  # by job id
    asked: int = 0  # allocations asked for so far
    pool: Mapping[str, Node] = field(default_factory=dict)  # by node name
    slots: tuple[str, ...] = ()  # by group rank; an empty name waits for a node
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    barred: Mapping[str, str] = field(default_factory=dict)  # by people, for all runs: why
    attempt: Attempt | None = None
    lineage: tuple[Checkpoint, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    retired: Mapping[str, Retired] = field(default_factory=dict)  # by path
    leftovers: tuple[Checkpoint, ...] = ()  # never finished, and nobody is left to finish them
    incidents: tuple[Incident, ...] = ()
    fruitless: Mapping[str, int] = field(
        default_factory=dict
    )  # restarts without progress, by cause
    best_step: int = 0  # the newest verified step when `fruitless` was last reset
    goal: Phase | None = None  # the end that a stop is for
    pending: Mapping[str, Action] = field(default_factory=dict)  # actions without a result yet

    @property
    def ended(self) -> bool:
        return self.phase in ENDS

    @property
    def live_jobs(self) -> tuple[str, ...]:
        return tuple(a.job_id for a in self.allocations.values() if a.state != "ended")

    @property
    def spares(self) -> tuple[str, ...]:
        """Nodes that could take a slot now."""
        return tuple(
            n.name
            for n in self.pool.values()
            if n.state is NodeState.READY
            and n.name not in self.slots
            and n.name not in self.excluded
            and n.name not in self.barred
        )
