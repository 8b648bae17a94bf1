"""Sightings of signatures → cause, culprits or none, confidence, and what would decide it. Pure.

The root is the earliest sighting of a cause; symptoms count where no cause was seen, cascades never
blame. A cause that is the program's or its user's names nobody, nor does one that nodes share:
three nodes or more, or all that there are. Where clocks leave the order open, nobody is named.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from supervisor.core.hang_story import Hang, hang
from supervisor.core.sighting import JobShape, Sighting
from supervisor.core.types import Confidence
from supervisor.signatures import Blames, CauseClass, CauseInfo, Role, Signatures

SHARED_NODES = 3  # so many nodes with one cause at once: it is shared, and none is blamed
CLOCK_S = 2.0  # clocks of different nodes may differ by as much; NTP keeps them closer
TOGETHER_S = 60.0  # sightings of one cause within it are one event
STACK_LINES = 400  # lines of one rank in which a stack of Python's ends
SURVIVED_S = 3600.0  # what lies further before the next sighting, the job survived
# From ten minutes before a failure to five after it, a health event may explain it (Meta, arXiv
# 2410.21680).
BEFORE_S = 600.0
AFTER_S = 300.0
STEP_SLACK_S = 120.0  # ranks that have not noticed yet may print a step so much later
# What ends a job that may have been in trouble before: earlier symptoms say more.
_ENDS = ("time-limit", "preempted", "cancelled")
_ONE_NODE = ("import-error", "missing-file")  # a mount, where all ranks of one node alone say it


@dataclass(frozen=True, slots=True, kw_only=True)
class Blamed:
    """Who is blamed: a node, as far as it is known, and what of it."""

    node: str = ""
    rank: int | None = None
    gpu: str = ""

    def __str__(self) -> str:
        parts = [self.node] if self.node else []
        parts += [f"rank {self.rank}"] if self.rank is not None else []
        parts += [f"GPU {self.gpu}"] if self.gpu else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What ended a job, as far as its logs tell."""

    cause: CauseInfo
    culprits: tuple[Blamed, ...] = ()
    confidence: Confidence = Confidence.UNNAMED
    why: str = ""
    evidence: tuple[Sighting, ...] = ()  # the root first
    first_symptom: Sighting | None = None
    suspects: tuple[Blamed, ...] = ()  # where to look first; not blamed
    decide: str = ""  # what would make it surer
    others: tuple[Sighting, ...] = ()  # other causes that were seen


def diagnosed(sightings: Iterable[Sighting], shape: JobShape, signatures: Signatures) -> Diagnosis:
    """Judge what was seen in a job's logs. Pure; the same sightings give the same diagnosis."""
    all_seen = sorted((_placed(one, shape) for one in sightings), key=_order)
    seen = _relevant(all_seen, shape)
    told = [one for one in seen if one.signature.role is not Role.CASCADE]
    if not told:
        name = "consequence" if seen else "unknown"
        return Diagnosis(
            cause=signatures.causes[name],
            evidence=tuple(seen[:3]),
            first_symptom=seen[0] if seen else None,
            why="only consequences of a failure elsewhere were found" if seen else "",
            decide=_missing(shape),
        )
    root = _root(told)
    stuck = hang(told, shape) if root.signature.cause.name == "collective-timeout" else None
    if stuck is not None:
        return _hung(stuck, root, seen, shape, signatures)
    alike = [
        one
        for one in told
        if one.signature.cause is root.signature.cause and _near(one, root, TOGETHER_S)
    ]
    named = _blame(root, alike, told, shape)
    others = {
        one.signature.cause.name: one
        for one in reversed(told)
        if one.signature.role is Role.CAUSE and one.signature.cause is not root.signature.cause
    }
    return replace(
        named,
        evidence=_lines(root, alike),
        first_symptom=_first(told, root),
        others=tuple(sorted(others.values(), key=_order))[:4],
    )


def _placed(one: Sighting, shape: JobShape) -> Sighting:
    """With the node that its rank is known to run on."""
    if one.node or one.rank is None:
        return one
    return replace(one, node=shape.node_of.get(one.rank, ""))


def _order(one: Sighting) -> tuple[float, int]:
    return (one.at if one.at is not None else float("inf"), one.order)


def _first(seen: Iterable[Sighting], root: Sighting) -> Sighting:
    """The first of those that are known to be no later than the root; else the root itself.

    In one file without times at both lines count, over files times alone.
    """
    first = root
    for one in seen:
        if one.at is not None and first.at is not None:
            earlier = _order(one) < _order(first)
        else:
            earlier = one.source == first.source and one.line < first.line
        if earlier:
            first = one
    return first


def _near(one: Sighting, other: Sighting, within_s: float) -> bool:
    """Whether two sightings may be of one event. Without a time they may."""
    return one.at is None or other.at is None or abs(one.at - other.at) <= within_s


def _relevant(seen: Sequence[Sighting], shape: JobShape) -> list[Sighting]:
    """Without what the job survived: steps went on, or an hour passed before anything else."""
    alive = [one for one in seen if not _survived(one, shape)]
    kept = alive or list(seen)
    timed = [one for one in kept if one.at is not None]
    begin = float("-inf")
    for one, following in pairwise(timed):
        if (following.at or 0.0) - (one.at or 0.0) > SURVIVED_S:
            begin = following.at or begin
    kept = [one for one in kept if one.at is None or one.at >= begin]
    job = [one.at for one in kept if one.at is not None and not one.kernel]
    if job:
        first, last = min(job) - BEFORE_S, max(job) + AFTER_S
        kept = [o for o in kept if not o.kernel or o.at is None or first <= o.at <= last]
    return kept


def _survived(one: Sighting, shape: JobShape) -> bool:
    """Whether training went on behind it."""
    if one.signature.cause.name == "not-finite":  # steps go on, and mean nothing
        return False
    if one.cleared:
        return True
    slack = BEFORE_S if one.kernel else STEP_SLACK_S
    last = shape.last_step_at
    if one.at is not None and last is not None:
        return one.at < last - slack
    return one.line < shape.last_step_line.get(one.source, 0) and not one.kernel


def _root(told: Sequence[Sighting]) -> Sighting:
    """The earliest cause; where none was seen, the earliest symptom, particular ones first."""
    first = told[0]
    particular = [one for one in told if not one.signature.general]
    causes = [one for one in told if one.signature.role is Role.CAUSE]
    if ended := [one for one in causes if one.signature.cause.name in _ENDS]:
        others = [one for one in particular if one not in ended]
        if not others or _order(ended[0]) <= _order(others[0]):
            return ended[0]
        causes = [one for one in causes if one not in ended] or [others[0]]
    pool = causes or particular or [_ending(first, told)]
    root = min(pool, key=_order)
    within_s = CLOCK_S if root.exact else TOGETHER_S
    tied = [one for one in pool if one is not root and _near(one, root, within_s)]
    # Where the order is open, what the hardware itself says comes first.
    strong = [one for one in (root, *tied) if one.kernel]
    return strong[0] if strong else root


def _ending(first: Sighting, told: Sequence[Sighting]) -> Sighting:
    """What the same rank's stack of Python's ends in, where that says more than that it ended."""
    if first.signature.cause.name != "python-error":
        return first
    place = (first.source, first.rank, first.node)
    ends = (
        one
        for one in told
        if (one.source, one.rank, one.node) == place
        and 0 < one.line - first.line <= STACK_LINES
        and one.signature.cause.name != "python-error"
        and one.signature.role is Role.SYMPTOM
    )
    return next(ends, first)


def _lines(root: Sighting, alike: Sequence[Sighting]) -> tuple[Sighting, ...]:
    """The root, then what else says so: one line a node or rank, a few of them."""
    more = {(one.node, one.rank, one.signature.id): one for one in alike if one is not root}
    return (root, *list(more.values())[:4])


def _blame(
    root: Sighting, alike: Sequence[Sighting], told: Sequence[Sighting], shape: JobShape
) -> Diagnosis:
    cause = root.signature.cause
    places = _places(alike)
    if cause.kind is not CauseClass.INFRASTRUCTURE or root.signature.blames is Blames.NOBODY:
        return _not_hardware(root, alike, places, shape)
    if root.peer and not root.kernel:
        return _linked(cause, [one for one in alike if one.peer and not one.kernel], shape)
    if root.signature.blames is Blames.LINK:  # an adapter speaks of itself; its peers follow
        alike = [one for one in alike if one.signature.role is root.signature.role]
        places = _places(alike)
    if not places:
        return Diagnosis(
            cause=cause,
            why=f"{_said(root)}; the line does not say on which node",
            decide=_missing(shape),
        )
    if shared := _shared(places, shape):
        return Diagnosis(cause=cause, why=f"{shared}: a shared cause, and no node is blamed")
    if root.signature.blames is Blames.STORAGE and not _alone(root, alike, places, shape):
        return Diagnosis(
            cause=cause,
            why=f"{_said(root)}; whether it is that node's client or the storage is open",
            suspects=tuple(places.values()),
            decide="the other nodes' kernel logs (--kmsg): one node alone is the client",
        )
    itself = root.names_itself or root.signature.blames is Blames.GPU
    if len(places) > 1 and not root.kernel:
        firsts = [one for one in alike if _place(one) and _near(one, root, CLOCK_S)]
        if len({_place(one) for one in firsts}) > 1 or root.at is None:
            return Diagnosis(
                cause=cause,
                why=f"{', '.join(places)} say so within {CLOCK_S:.0f} s: a tie names nobody",
                suspects=tuple(places.values()),
                decide=_missing(shape),
            )
        places = {_place(root): places[_place(root)]}
    return Diagnosis(
        cause=cause,
        culprits=tuple(places.values()),
        confidence=Confidence.WITNESSED if root.kernel or itself else Confidence.INFERRED,
        why=_said(root),
        decide="" if all(one.node for one in places.values()) else _missing(shape),
    )


def _not_hardware(
    root: Sighting,
    alike: Sequence[Sighting],
    places: Mapping[str, Blamed],
    shape: JobShape,
) -> Diagnosis:
    """The program, its user, or nobody knows: nobody is blamed, but for a mount of one node."""
    cause = root.signature.cause
    if cause.name in _ONE_NODE and (node := _one_nodes_mount(alike, shape)):
        return Diagnosis(
            cause=cause,
            culprits=(Blamed(node=node),),
            confidence=Confidence.INFERRED,
            why=f"all ranks of {node} say so, and none of the {len(shape.nodes) - 1} other nodes: "
            "that node's mount or environment",
        )
    everywhere = _shared(places, shape)
    why = _said(root)
    if cause.kind in (CauseClass.SOFTWARE, CauseClass.USER):
        ranks = {one.rank for one in alike if one.rank is not None}
        also = f", and {len(ranks) - 1} other ranks" if len(ranks) > 1 else ""
        return Diagnosis(cause=cause, why=f"{why}{also}; that names no node", decide="")
    return Diagnosis(
        cause=cause,
        why=f"{why}; {everywhere or 'once'} is not enough to name a node",
        suspects=() if everywhere else tuple(list(places.values())[:2]),
        decide=_decide(root, shape),
    )


def _one_nodes_mount(alike: Sequence[Sighting], shape: JobShape) -> str:
    """The node all of whose ranks said it, two at least, while ranks of other nodes did not."""
    by_node: dict[str, set[int]] = defaultdict(set)
    for one in alike:
        if one.node and one.rank is not None:
            by_node[one.node].add(one.rank)
    if len(by_node) != 1 or len(shape.nodes) < 2 or any(not one.node for one in alike):
        return ""
    ((node, ranks),) = by_node.items()
    local = {rank for rank, name in shape.node_of.items() if name == node}
    others = [rank for rank in shape.ranks if shape.node_of.get(rank, node) != node]
    return node if len(ranks) > 1 and ranks == local and 0 not in ranks and others else ""


def _place(one: Sighting) -> str:
    return one.node or ("" if one.rank is None else f"rank {one.rank}")


def _places(alike: Sequence[Sighting]) -> dict[str, Blamed]:
    """Who said it, by node; by rank where the node is not known."""
    found: dict[str, Blamed] = {}
    for one in sorted(alike, key=_order):
        if name := _place(one):
            found.setdefault(name, Blamed(node=one.node, rank=one.rank, gpu=one.gpu))
    return found


def _shared(places: Mapping[str, Blamed], shape: JobShape) -> str:
    """That nodes have it in common, in words; empty where they do not."""
    nodes = {one.node for one in places.values() if one.node}
    if len(places) >= SHARED_NODES:
        return f"{len(places)} {'nodes' if len(nodes) == len(places) else 'ranks'} say so"
    if len(nodes) > 1 and nodes == set(shape.nodes):
        return f"all {len(nodes)} nodes say so"
    return ""


def _alone(
    root: Sighting, alike: Sequence[Sighting], places: Mapping[str, Blamed], shape: JobShape
) -> bool:
    """Whether other nodes, whose logs are there, see the storage."""
    others = set(shape.kernel_nodes if root.kernel else ()) - set(places)
    return bool(others) or bool(_one_nodes_mount(alike, shape))


def _linked(cause: CauseInfo, pairs: Sequence[Sighting], shape: JobShape) -> Diagnosis:
    """Two ends each; the one that most distinct pairs have in common is named, if one is."""
    ends: dict[frozenset[str], None] = {}
    for one in pairs:
        peer = shape.node_at.get(one.peer, one.peer)
        if one.node and peer != one.node:
            ends[frozenset((one.node, peer))] = None
    partners: dict[str, set[str]] = defaultdict(set)
    for pair in ends:
        for end in pair:
            partners[end] |= pair - {end}
    most = sorted(partners, key=lambda end: len(partners[end]), reverse=True)
    first = pairs[0]
    if len(most) > 2 and len(partners[most[0]]) > len(partners[most[1]]):
        node = most[0]
        return Diagnosis(
            cause=cause,
            culprits=(Blamed(node=node),),
            confidence=Confidence.INFERRED,
            why=f"{node} is an end of {len(partners[node])} links that failed, any other node of "
            f"{len(partners[most[1]])} at most",
        )
    return Diagnosis(
        cause=cause,
        why=f"{_said(first)}; a link has two ends, and nothing says which",
        suspects=tuple(Blamed(node=end) for end in most[:2]),
        decide="all ranks' NCCL WARN lines (NCCL_DEBUG=WARN), the adapters' counters at both ends, "
        "or a test of each end against a third node",
    )


def _hung(
    stuck: Hang, root: Sighting, seen: Sequence[Sighting], shape: JobShape, signatures: Signatures
) -> Diagnosis:
    """A collective did not end: a suspect perhaps, and never a culprit by that alone."""
    return Diagnosis(
        cause=signatures.causes[stuck.cause],
        why=stuck.why,
        suspects=tuple(
            Blamed(node=shape.node_of.get(rank, ""), rank=rank) for rank in stuck.ranks[:4]
        ),
        evidence=(*stuck.lines[:5],) or (root,),
        first_symptom=_first(seen, root),
        decide=stuck.decide,
    )


def _said(root: Sighting) -> str:
    place = _place(root)
    where = f"{place}: " if place else ""
    if root.rank is not None and root.node:
        where = f"{root.node}, rank {root.rank}: "
    return f"{where}{root.signature.cause.short}"


def _decide(root: Sighting, shape: JobShape) -> str:
    place = _place(root)
    missing = _missing(shape)
    if not root.kernel and root.node and root.node not in shape.kernel_nodes:
        return f"the kernel's log of {root.node} (--kmsg), and whether it comes again there"
    return missing or f"whether it comes again on {place or 'the same node'}"


def _missing(shape: JobShape) -> str:
    """What more to give superv."""
    wanted = []
    if not shape.ranks:
        wanted.append("the ranks' own output")
    if not shape.kernel_nodes:
        wanted.append("the nodes' kernel logs (--kmsg)")
    if shape.ranks and not shape.node_of:
        wanted.append("the job's nodes (--nodes)")
    return ", ".join(wanted)
