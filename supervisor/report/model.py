"""What a report holds. Plain values: the JSON document of docs/report-json.md is these fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.check_status import Status
from supervisor.core.nodeset import compress
from supervisor.host.terminal import one_line

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PageVerdict:
    """The top of the page. Every node is in exactly one of the tuples."""

    status: Status
    can_run: str | None  # yes, no, unknown; None: no run was named
    text: str
    need: int | None  # nodes that the run needs
    healthy: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()  # usable, with a warning
    failed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()  # something could not be measured
    excluded: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()  # it would be usable, but was not looked at for a day
    out: tuple[str, ...] = ()  # checks would have it, and Slurm or a run says it can't be used

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """By state, the worst first; those without a node are left out."""
        every = {
            "failed": self.failed,
            "out": self.out,
            "unknown": self.unknown,
            "stale": self.stale,
            "degraded": self.degraded,
            "excluded": self.excluded,
            "healthy": self.healthy,
        }
        return {state: nodes for state, nodes in every.items() if nodes}

    @property
    def usable(self) -> int:
        return len(self.healthy) + len(self.degraded)

    @property
    def nodes(self) -> int:
        return sum(map(len, self.groups.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionItem:
    """Something that a person has to do."""

    status: Status
    who: str
    what: str
    do: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the checks of one area say of a node."""

    status: Status
    findings: tuple[str, ...]  # those that say so; empty where all is well
    stale: bool  # they were last asked more than a day ago


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A node that is not healthy, or several of which the same is to be said."""

    nodes: tuple[str, ...]
    state: str
    stale: bool
    since: float
    looked_at: float  # the oldest of them
    strikes: int  # the most of them
    cells: Mapping[str, Cell]  # by area; none where nothing was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLine:
    """One thing that was seen, and on which nodes."""

    text: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A cause: what is wrong, where, since when, and what to do."""

    status: Status
    title: str
    nodes: tuple[str, ...]
    checks: tuple[str, ...]
    shared: str
    seen: tuple[EvidenceLine, ...]
    expected: str
    fix: str
    since: float
    asked: float  # the oldest look that this rests on
    pages: tuple[str, ...]  # where the checks are described
    excluded: bool  # all its nodes are out of runs already


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeGroup:
    """Checks that said something else than before: the same on one or several nodes."""

    at: float  # the newest
    first: float
    finding: str
    also: int  # so many checks more said the same words at that time, of the same nodes
    was: Status | None
    status: Status
    nodes: tuple[str, ...]
    times: int  # more than there are nodes where it comes and goes
    origin: str
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExclusion:
    """Nodes that somebody keeps out of new runs, or kept until recently."""

    nodes: tuple[str, ...]
    since: float
    until: float | None
    ended: float | None  # None: in force
    reason: str
    by: str
    passed: tuple[str, ...]  # those that passed a full look since


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClaim:
    """Nodes that a user, or a run of his, keeps out of his own runs."""

    nodes: tuple[str, ...]
    by: str  # the user
    run: str | None  # None: himself
    since: float
    until: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodesOut:
    """Nodes that Slurm, or a run, says can't be used."""

    nodes: tuple[str, ...]
    by: str  # Slurm, or `run NAME`
    state: str
    since: float | None  # of the first of them
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """A drain that superv set in Slurm."""

    node: str
    since: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offender:
    """A node that failed by itself within 28 days."""

    node: str
    strikes: int
    checks: Mapping[str, int]  # by check: on how many days
    days: tuple[int, ...]  # strikes on each of the last 28 days, the oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """A speed that has fallen since the node was accepted."""

    node: str
    what: str
    unit: str
    value: float
    at: float
    accepted: float
    accepted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measurement; `on` is the device that it was worst on."""

    at: float
    value: float
    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A node whose line is far from the others'."""

    node: str
    worst: Point
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """One kind of measurement over time: a line for each node, of its worst device."""

    title: str
    unit: str
    nodes: int
    lowest: Point
    lowest_node: str
    highest: Point
    highest_node: str
    median: float  # of the nodes' worst values
    outliers: tuple[Outlier, ...]  # the farthest first
    rest: Mapping[str, tuple[Point, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIncident:
    """What happened to the run within the period."""

    at: float
    cause: str
    culprits: tuple[str, ...]
    why: str
    remedy: str
    runbook: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAttention:
    """What needs attention in the run though nothing is stopped for it."""

    what: str
    since: float | None
    text: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """What Slurm says of a run's job that waits."""

    job: str
    reason: str  # Slurm's word
    means: str
    do: str  # empty: nothing, the queue does its work
    starts_at: float | None  # when Slurm expects its start


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Where the run was at a time."""

    at: float
    step: int
    loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpan:
    """An attempt from its start to its end, and what ended it."""

    number: int
    began: float | None  # None: an adopted run's first
    first_step: float | None
    resumed_from: int | None
    ended: float | None  # None: it goes on
    last_step: int | None
    cause: str  # empty: no incident ended it
    culprits: tuple[str, ...]
    why: str
    remedy: str  # what was done; where no incident ended it, the run's phase
    said: tuple[str, ...]  # the evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPart:
    """The run that was asked for, from its status document."""

    name: str
    phase: str
    since: float
    reason: str
    engine: bool
    step: int | None
    need: int
    slots: Mapping[str, str]  # slot → node, "" where it waits for one
    spares: tuple[str, ...]
    unusable: Mapping[str, str]  # node → why
    incidents: tuple[RunIncident, ...]  # of the period, newest first
    attention: tuple[RunAttention, ...] = ()
    queued: QueuedJob | None = None
    drained: tuple[str, ...] = ()  # in Slurm: no ranks begin there
    launched: float | None = None
    attempts: tuple[AttemptSpan, ...] = ()  # all of them, the newest first
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that is shown."""

    at: float
    since: float
    record: str
    cluster: str  # its name, as Slurm says; empty where that is not known
    looked_at: float | None  # the newest look at any node
    verdict: PageVerdict
    action_items: tuple[ActionItem, ...]
    run: RunPart | None
    areas: tuple[str, ...]
    rows: tuple[Row, ...]
    healthy: tuple[str, ...]  # those without a row
    problems: tuple[Problem, ...]
    changes: tuple[ChangeGroup, ...]
    exclusions: tuple[NodeExclusion, ...]
    claims: tuple[NodeClaim, ...]
    out_of_use: tuple[NodesOut, ...]
    slurm_problem: str  # why Slurm's word is not known; empty: it is, or there is no Slurm here
    drains: tuple[Drained, ...]
    offenders: tuple[Offender, ...]
    slower: tuple[Slower, ...]
    trends_since: float
    trends: tuple[Trend, ...]
    all_zero: tuple[str, ...]  # measured, and zero on every node at every look


def names(nodes: Iterable[str]) -> str:
    """Nodes as people write them; names that no node can have are listed as they are."""
    every = list(nodes)
    try:
        return compress(every)
    except ValueError:
        return ", ".join(one_line(name, 80) for name in every)


def some(things: Sequence[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
