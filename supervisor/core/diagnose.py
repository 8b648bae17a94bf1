"""Evidence → Verdict → Remedy. First form: exits and silences; log and kernel signatures join here.

A node is named only on evidence that names it. Secondary errors name nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import assert_never

from supervisor.core.last_words import is_cascade, same_words
from supervisor.core.lineage import last_finite
from supervisor.core.policy import Policy
from supervisor.core.step_lines import says_not_finite
from supervisor.core.told import hardware, no_node_s_fault, told
from supervisor.core.types import (
    Cause,
    Confidence,
    Evidence,
    Incident,
    Node,
    NodeState,
    RankExit,
    RemedyKind,
    Run,
    Verdict,
)
from supervisor.core.verdict import Diagnosis

SHARED_CAUSE_NODES = 3  # so many nodes at once mean a shared cause: nobody is blamed
SHARED_CAUSE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What to do about a Verdict: retry, swap or hold."""

    kind: RemedyKind
    delay_s: float = 0.0
    exclude: tuple[str, ...] = ()
    text: str = ""


def diagnose(run: Run, incident: Incident) -> Verdict:
    """Name the cause and, where the evidence names one, the culprit."""
    if incident.cause in HEALTH_EXPLAINS and (verdict := _unhealthy(run, incident)):
        return verdict
    match incident.cause:
        case Cause.NODE_LOST:
            return _node_lost(run, incident)
        case Cause.RANK_EXIT:
            return replace(_rank_exit(run, incident), said=_said(run))
        case Cause.START_FAILED:
            return _start_failed(run, incident)
        case Cause.ENDED_EARLY:
            return Verdict(
                cause=Cause.ENDED_EARLY,
                why=f"{incident.evidence[0].text}; that names no node",
            )
        case (
            Cause.HANG
            | Cause.NO_FIRST_STEP
            | Cause.RANKS_LOST
            | Cause.AGENT_LEFT
            | Cause.ALLOCATION_ENDED
            | Cause.WRONG_STEP
            | Cause.QUARANTINE
            | Cause.UNHEALTHY_NODE
        ):
            seen = incident.evidence[0].text if incident.evidence else "nothing was seen"
            return Verdict(cause=incident.cause, why=f"{seen}; nobody is blamed for it")
        case _:
            assert_never(incident.cause)


def _node_lost(run: Run, incident: Incident) -> Verdict:
    gone = [
        node
        for node in run.pool.values()
        if node.state is NodeState.SUSPECT
        or (
            node.state is NodeState.LOST
            and abs(incident.confirmed_at - node.since) <= SHARED_CAUSE_WINDOW_S
        )
    ]
    if len(gone) >= SHARED_CAUSE_NODES:
        return Verdict(
            cause=Cause.NODE_LOST,
            why=f"{len(gone)} nodes went within a minute: a shared cause (switch, power, storage); "
            "they are replaced, and none is blamed",
        )
    named = {e.node for e in incident.evidence}
    lost = tuple(n.name for n in gone if n.state is NodeState.LOST and n.name in named)
    if not lost:
        return Verdict(cause=Cause.NODE_LOST, why="the node that was silent is heard again")
    return Verdict(
        cause=Cause.NODE_LOST,
        culprits=lost,
        confidence=Confidence.WITNESSED,
        why=f"{', '.join(lost)} went silent, and a second witness: {_witness(incident, lost)}",
    )


def _witness(incident: Incident, lost: tuple[str, ...]) -> str:
    """What somebody else said of the lost nodes."""
    said = (e for e in incident.evidence if e.node in lost)
    return next((e.text for e in said if e.source not in ("silence", "agent", "rank log")), "")


# A node whose own health checks fail is the likeliest reason for these.
HEALTH_EXPLAINS = (
    Cause.UNHEALTHY_NODE,
    Cause.RANK_EXIT,
    Cause.HANG,
    Cause.NO_FIRST_STEP,
    Cause.START_FAILED,
)


def _unhealthy(run: Run, incident: Incident) -> Verdict | None:
    """The nodes of the attempt that failed health checks of their own, if these name few.

    Those that the incident's own evidence names count also where they pass again by now: a node
    that fails now and then is not well.
    """
    slots = run.attempt.slots if run.attempt else ()
    named = {e.node: e.text for e in incident.evidence if e.source == "health"}
    failed = {n.name: failure(n).text for n in run.pool.values() if n.node_faults}
    unhealthy = {name: text for name, text in {**named, **failed}.items() if name in slots}
    if not unhealthy:
        return None
    why = "; ".join(unhealthy.values())
    together = max(len(unhealthy), len(_alike(run, incident, unhealthy)))
    if together >= SHARED_CAUSE_NODES:
        return Verdict(
            cause=Cause.UNHEALTHY_NODE,
            why=f"{together} nodes fail health checks at once: a shared cause; they are replaced, "
            f"and none is blamed ({why})",
        )
    return Verdict(
        cause=Cause.UNHEALTHY_NODE,
        culprits=tuple(unhealthy),
        confidence=Confidence.WITNESSED,
        why=why,
    )


def failure(node: Node) -> Evidence:
    """That a node failed a health check of its own, and which."""
    worst = node.node_faults[0]
    return Evidence(
        node=node.name,
        at=node.checked_at or 0.0,
        source="health",
        text=f"{node.name} failed {worst.check}: {worst.text}",
    )


def health_of(run: Run, verdict: Verdict, incident: Incident) -> list[Evidence]:
    """What a verdict on nodes' health rests on, as far as the incident does not say it yet."""
    named = {e.node for e in incident.evidence if e.source == "health"}
    return [
        failure(run.pool[name])
        for name in verdict.culprits
        if verdict.cause is Cause.UNHEALTHY_NODE and name not in named
    ]


def _alike(run: Run, incident: Incident, unhealthy: Collection[str]) -> list[str]:
    """Nodes, spares and those blamed a moment ago among them, that began to fail as these do."""
    checks = {f.check for name in unhealthy if name in run.pool for f in run.pool[name].node_faults}
    return [
        node.name
        for node in run.pool.values()
        if any(f.check in checks for f in node.node_faults)
        and abs(incident.confirmed_at - (node.checked_at or 0.0)) <= SHARED_CAUSE_WINDOW_S
    ]


def bad_ends(run: Run) -> list[RankExit]:
    """Bad ends of ranks in the current attempt, the earliest first.

    Who only lost its peers comes after all that ended for reasons of their own.
    """
    bad = [e for e in run.attempt.exits.values() if not e.clean] if run.attempt else []
    return sorted(bad, key=lambda e: (e.follows, e.at))


def first_exit(run: Run) -> RankExit | None:
    return next(iter(bad_ends(run)), None)


def _said(run: Run) -> str:
    """The words of the rank that stands first; empty where it only lost its peers."""
    return next((end.said for end in bad_ends(run) if not end.follows), "")


def _rank_exit(run: Run, incident: Incident) -> Verdict:
    first = first_exit(run)
    if first is None:
        return Verdict(cause=Cause.RANK_EXIT, why="no rank's end was seen")
    before = [i for i in run.incidents if i is not incident and i.verdict is not None]
    last = before[-1] if before else None
    again = (
        last is not None
        and last.cause is Cause.RANK_EXIT
        and first.node == first_reporter(incident) == first_reporter(last)
        and not _progressed_since(run, last)
    )
    if first.follows:
        return _peers_gone(run, incident, first)
    if said := _not_finite(run):
        return Verdict(
            cause=Cause.RANK_EXIT,
            why=f"{said}; that names no node, and what was saved after step "
            f"{last_finite(run)} is not resumed",
        )
    ended = _again_in_words(run, incident, first)
    lines = told(bad_ends(run), run.attempt.slots if run.attempt else ())
    if gpu := _gpu_failed(run, incident, first, lines):
        return gpu
    if moved := _followed_its_slot(run, incident, first):
        return moved
    if elsewhere := _said_elsewhere(run, incident, first):
        return elsewhere
    if _everywhere_the_same(run, first):
        return Verdict(
            cause=Cause.RANK_EXIT,
            why=f"{ended}; ranks on other nodes ended alike, before the first step: {THE_CODES}",
        )
    if no_node_s_fault(lines):
        return Verdict(
            cause=Cause.RANK_EXIT, why=f"{ended}: {lines.cause.short}; that names no node"
        )
    if again and len(inferred_lately(run, first.node, incident.confirmed_at)) >= SHARED_CAUSE_NODES:
        return Verdict(
            cause=Cause.RANK_EXIT,
            why=f"{ended}; twice running, as ranks on other nodes did "
            "within a minute: a shared cause (code, storage, switch); none more is blamed",
        )
    if again:
        return Verdict(
            cause=Cause.RANK_EXIT,
            culprits=(first.node,),
            confidence=Confidence.INFERRED,
            why=f"{ended}; ranks on {first.node} ended first in two "
            "attempts running, with no new verified checkpoint in between",
            slot=_slot_of(run, first.node),
        )
    return Verdict(
        cause=Cause.RANK_EXIT, why=f"{first.text()}; once is not enough to name the node"
    )


def _gpu_failed(run: Run, incident: Incident, first: RankExit, lines: Diagnosis) -> Verdict | None:
    """A rank's own words say that its GPU failed; not where they go from node to node."""
    slots = run.attempt.slots if run.attempt else ()
    others = {one.node for one in _alike_before(run, incident, first)} - {first.node}
    nodes = tuple(name for name in hardware(lines) if name in slots)
    if not nodes or len(others) >= SHARED_CAUSE_NODES - 1:
        return None
    return Verdict(
        cause=Cause.RANK_EXIT,
        culprits=nodes,
        confidence=Confidence.WITNESSED,
        why=f"{lines.why} ({lines.evidence[0].text})",
    )


def _peers_gone(run: Run, incident: Incident, first: RankExit) -> Verdict:
    """Every rank that ended only says that others had gone: a lost node explains that."""
    named = {e.node for e in incident.evidence}
    if any(n.state is NodeState.LOST and n.name in named for n in run.pool.values()):
        return _node_lost(run, incident)
    return Verdict(
        cause=Cause.RANK_EXIT,
        why=f"{first.text()}; that only follows from another's end, and what began it was not seen",
    )


THE_CODES = "that is the code's or the configuration's fault, and no node's"


def _said_elsewhere(run: Run, incident: Incident, first: RankExit) -> Verdict | None:
    """The same words on other nodes, with no progress in between: whoever was named is cleared."""
    others = [one for one in _alike_before(run, incident, first) if one.node != first.node]
    if not others:
        return None
    cleared = [name for one in others for name in one.culprits if name != first.node]
    return Verdict(
        cause=Cause.RANK_EXIT,
        why=f"{_again_in_words(run, incident, first)}: {THE_CODES}",
        cleared=tuple(dict.fromkeys(cleared)),
    )


@dataclass(frozen=True, slots=True)
class _Before:
    """An earlier attempt that ended with the same words."""

    node: str
    culprits: tuple[str, ...]


def _in_a_row(run: Run, incident: Incident) -> list[Incident]:
    """The incidents before this one, since the last new verified checkpoint."""
    return [i for i in run.incidents if i is not incident and not _progressed_since(run, i)]


def _alike_before(run: Run, incident: Incident, first: RankExit) -> list[_Before]:
    return [
        _Before(first_reporter(one), one.verdict.culprits)
        for one in _in_a_row(run, incident)
        if one.verdict is not None and same_words(one.verdict.said, first.said)
    ]


def _again_in_words(run: Run, incident: Incident, first: RankExit) -> str:
    """How a rank ended; where others did with the same words, on how many attempts and nodes."""
    alike = _alike_before(run, incident, first)
    if not alike:
        return first.text()
    total = 1 + len(_in_a_row(run, incident))
    often = "every attempt" if len(alike) + 1 == total else f"{len(alike) + 1} of {total} attempts"
    nodes = sorted({first.node, *(one.node for one in alike)})
    where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes ({', '.join(nodes)})"
    return f"{first.said}, on {often} and on {where}"


def _slot_of(run: Run, node: str) -> int | None:
    slots = run.attempt.slots if run.attempt else ()
    return slots.index(node) if node in slots else None


def _followed_its_slot(run: Run, incident: Incident, first: RankExit) -> Verdict | None:
    """Ranks of one slot end first on the node that took it over, too: a program's fault, or its
    data's, follows its ranks. Whoever had the slot before is cleared.
    """
    slot = _slot_of(run, first.node)
    before = [
        verdict.culprits
        for one in run.incidents
        if one is not incident
        and (verdict := one.verdict) is not None
        and verdict.confidence is Confidence.INFERRED
        and verdict.slot == slot is not None
        and not _progressed_since(run, one)
    ]
    cleared = tuple(n for names in before for n in names if n != first.node)
    if not cleared or first.node != first_reporter(incident):
        return None
    return Verdict(
        cause=Cause.RANK_EXIT,
        why=f"{_again_in_words(run, incident, first)}; so did ranks on {', '.join(cleared)} while "
        "that had the slot: it follows the ranks, so the program or its data is at fault, and no "
        "node",
        cleared=cleared,
    )


def _not_finite(run: Run) -> str:
    """A rank's line that says that it ended because its loss was NaN or infinite."""
    exits = run.attempt.exits.values() if run.attempt else ()
    lines = (line for one in exits for line in one.tail if says_not_finite(line))
    return next(lines, "").strip()[:200]


def inferred_lately(run: Run, node: str, at: float) -> set[str]:
    """The node, and those that were named by inference within the minute before."""
    lately = (
        i.verdict.culprits
        for i in run.incidents
        if i.verdict is not None
        and i.verdict.confidence is Confidence.INFERRED
        and at - (i.judged_at or 0.0) <= SHARED_CAUSE_WINDOW_S
    )
    return {node, *(name for names in lately for name in names)}


def _everywhere_the_same(run: Run, first: RankExit) -> bool:
    """Whether ranks on several nodes ended by themselves with one code, before any step."""
    attempt = run.attempt
    if attempt is None or attempt.step is not None or first.code is None:
        return False
    return len({e.node for e in attempt.exits.values() if e.code == first.code}) > 1


def _failed_to_start(incident: Incident) -> tuple[str, ...]:
    return tuple(dict.fromkeys(e.node for e in incident.evidence if e.source == "start"))


def first_reporter(incident: Incident) -> str:
    """The node whose agent reported first, of those whose ranks did not just lose their peers.

    Where its clock says otherwise, the order is open.
    """
    return cause_first(incident.evidence)[0].node


def cause_first(evidence: Iterable[Evidence]) -> list[Evidence]:
    """The evidence in its order, but that what only follows from another's end comes last."""
    return sorted(evidence, key=lambda one: one.source == "agent" and is_cascade(one.text))


def _progressed_since(run: Run, incident: Incident) -> bool:
    return any(c.attempt > incident.attempt for c in run.lineage)


def _start_failed(run: Run, incident: Incident) -> Verdict:
    failed = _failed_to_start(incident)
    slots: tuple[str, ...] = run.attempt.slots if run.attempt else ()
    started = run.attempt.started if run.attempt else ()
    if set(failed) >= set(slots):
        said = next(e.text for e in incident.evidence if e.source == "start")
        return Verdict(cause=Cause.START_FAILED, why=said)
    if len(failed) < SHARED_CAUSE_NODES and set(started) - set(failed):
        return Verdict(
            cause=Cause.START_FAILED,
            culprits=failed,
            confidence=Confidence.WITNESSED,
            why="the trainer can't be started there, and can be on other nodes",
        )
    if run.attempt and run.attempt.slot0_first and not started:
        return Verdict(
            cause=Cause.START_FAILED,
            why=f"the trainer can't be started on {slots[0]}, where it was tried first; the next "
            "attempt asks all nodes at once",
        )
    return Verdict(
        cause=Cause.START_FAILED,
        why=f"the trainer can't be started on {len(failed)} of {len(slots)} nodes",
    )


def nothing_left(run: Run) -> str:
    """Why the run can't begin again, where all of its checkpoints have gone."""
    if not run.spec.checkpoint_dir or run.lineage:
        return ""
    finished = [r for r in run.rejected if not r.incomplete]
    if run.best_step > 0:
        what = f"no verified checkpoint is left, though one of step {run.best_step} was there"
    elif finished:
        newest = max(finished, key=lambda r: r.step)
        what = f"no checkpoint can be resumed from; the newest, of step {newest.step}: {newest.why}"
    else:
        return ""
    return (
        f"{what}; superv does not start again from step 0 by itself: "
        "superv launch --from CHECKPOINT or --from scratch begins again"
    )


# Causes that are never the trainer's: a run that has trained waits these out.
OF_THE_WORLD = frozenset(
    {
        Cause.NODE_LOST,
        Cause.RANKS_LOST,
        Cause.AGENT_LEFT,
        Cause.ALLOCATION_ENDED,
        Cause.UNHEALTHY_NODE,
    }
)
LONGEST_PAUSE_S = 300.0  # a world that is well again is noticed within this


def over_budget(run: Run, cause: Cause, tries: int) -> bool:
    """Whether restart number `tries` without progress is one too many.

    Not for what nodes, Slurm and people do to a run that has trained: its configuration works.
    """
    over = tries > run.spec.policy.restarts_without_progress
    return over and not (cause in OF_THE_WORLD and has_trained(run))


def longest_pause(policy: Policy) -> float:
    """No pause before a restart is longer, in seconds."""
    return max(LONGEST_PAUSE_S, *policy.backoff_s)


def growing_pause(run: Run, tries: int) -> float:
    """The pause before a restart beyond the budget: twice as long each time, up to a bound."""
    beyond = tries - run.spec.policy.restarts_without_progress
    return min(LONGEST_PAUSE_S, 5.0 * 2 ** min(beyond, 10)) if beyond > 0 else 0.0


def has_trained(run: Run) -> bool:
    """Whether ranks of the run have made a step: its configuration works."""
    attempt = run.attempt
    if attempt is not None and attempt.step is not None:
        return True
    return any(c.attempt > 0 for c in run.lineage) or any(
        incident.first_step_at is not None for incident in run.incidents
    )


def remedy(run: Run, verdict: Verdict, tries: int) -> Remedy:
    """What to do, given that this is restart number `tries` for the cause without progress."""
    policy = run.spec.policy
    limit = policy.restarts_without_progress
    if why := nothing_left(run):
        return Remedy(kind=RemedyKind.HOLD, text=why)
    if verdict.cause is Cause.START_FAILED and set(_failed_to_start(run.incidents[-1])) >= set(
        run.attempt.slots if run.attempt else ()
    ):
        return Remedy(kind=RemedyKind.HOLD, text="the trainer can't be started on any node")
    if over_budget(run, verdict.cause, tries):
        return Remedy(
            kind=RemedyKind.HOLD,
            text=f"held after {limit} restart{'' if limit == 1 else 's'} for {verdict.cause} "
            "without new verified progress",
        )
    if verdict.culprits:
        names = ", ".join(verdict.culprits)
        return Remedy(
            kind=RemedyKind.SWAP,
            delay_s=growing_pause(run, tries),
            exclude=verdict.culprits,
            text=f"{names} excluded",
        )
    delay = policy.backoff_s[min(tries, len(policy.backoff_s)) - 1] if policy.backoff_s else 0.0
    delay = max(delay, growing_pause(run, tries))
    return Remedy(kind=RemedyKind.RETRY, delay_s=delay, text="starts again")
