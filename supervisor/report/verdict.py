"""The top of the page: can the job run, and what needs a hand?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from healthchecks.check import Status, worst
from supervisor.core.types import Phase
from supervisor.fleet import DAY_S, NodeHealth
from supervisor.report.model import Exclusion, Hand, Problem, RunPart, Verdict, count, names
from supervisor.report.words import span

_ENDED = (Phase.DONE, Phase.HELD, Phase.STOPPED)
_TRAINS = (Phase.RUNNING, Phase.STARTING, Phase.CHECKING)

Groups = Mapping[str, tuple[str, ...]]  # what a node is → nodes; each node is in one


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether a run can go on."""

    can_run: str  # yes, no, unknown
    text: str
    lacks: int = 0  # so many nodes more are needed


def groups_of(every: Sequence[NodeHealth], old: set[str]) -> Groups:
    """`old`: nodes that were not looked at lately; a good word about them counts no more."""
    of: dict[str, list[str]] = {}
    for node in every:
        good = node.state in ("healthy", "degraded")
        of.setdefault("stale" if good and node.name in old else node.state, []).append(node.name)
    return {state: tuple(nodes) for state, nodes in of.items()}


def answer_of(run: RunPart, groups: Groups) -> Answer:
    """A run that trains can run. Others need enough nodes: their own, or before and after a run
    those of the fleet."""
    bad = {*groups.get("failed", ()), *groups.get("excluded", ())}
    if run.phase in _ENDED or run.phase == Phase.PENDING:
        usable = len(groups.get("healthy", ())) + len(groups.get("degraded", ()))
        doubtful = len(groups.get("stale", ())) + len(groups.get("unknown", ()))
        text = f"{run.name} is {run.phase} and needs {count(run.need, 'node')}"
        if usable >= run.need:
            return Answer(can_run="yes", text=text)
        answer = "unknown" if usable + doubtful >= run.need else "no"
        return Answer(can_run=answer, text=text, lacks=run.need - usable)
    filled = [node for node in run.slots.values() if node]
    spares = [node for node in run.spares if node not in bad]
    text = (
        f"{run.name} is {run.phase}: {len(filled)} of {count(run.need, 'slot')} filled, "
        f"{count(len(spares), 'good spare')}"
    )
    if run.phase in _TRAINS:
        ill = bad & set(filled)
        text += f", {names(ill)} in it failed or is excluded" if ill else ""
        return Answer(can_run="yes", text=text)
    out = bad | run.unusable.keys()
    fit = len({*filled, *spares} - out)
    if fit >= run.need:
        return Answer(can_run="yes", text=text)
    return Answer(can_run="no", text=text, lacks=run.need - fit)


def verdict_of(
    groups: Groups,
    hands: Sequence[Hand],
    problems: Sequence[Problem],
    run: RunPart | None,
    answer: Answer | None,
) -> Verdict:
    """Without a run as bad as the worst that needs a hand; a run that can go on is no failure."""
    usable = len(groups.get("healthy", ())) + len(groups.get("degraded", ()))
    total = sum(map(len, groups.values()))
    fleet = f"{usable} of {count(total, 'node')} can be used"
    if not total:
        fleet = "no node was looked at yet; superv preflight NODES or superv sweep does that"
    if warnings := sum(p.status is Status.WARN for p in problems):
        fleet += f", {count(warnings, 'warning')}"
    can_run = answer.can_run if answer is not None else None
    status = worst([Status.OK, *(h.status for h in hands)])
    if can_run == "no":
        status = Status.FAIL
    elif can_run == "unknown" or not total:
        status = Status.UNKNOWN
    elif can_run == "yes" and status is not Status.OK:
        status = Status.WARN
    return Verdict(
        status=status,
        can_run=can_run,
        text=f"{answer.text}; {fleet}" if answer is not None else fleet,
        need=run.need if run is not None else None,
        **groups,
    )


def hands_of(
    problems: Sequence[Problem],
    every: Sequence[NodeHealth],
    exclusions: Sequence[Exclusion],
    old: set[str],
    now: float,
) -> Iterator[Hand]:
    """What a person must see to, the most urgent first. Warnings can wait: they are not in it."""
    out = {n.name for n in every if n.excluded is not None}
    failing = {n for p in problems if p.status is Status.FAIL for n in p.nodes}
    for problem in problems:
        # What can't be asked of a node that fails may well come of that: mend this first.
        seen_to = out if problem.status is Status.FAIL else out | failing
        nodes = [node for node in problem.nodes if node not in seen_to]
        if nodes and problem.status in (Status.FAIL, Status.UNKNOWN):
            yield _hand(problem, nodes)
    stale = [n.name for n in every if n.name in old and n.name not in out]
    if stale:
        yield Hand(
            status=Status.UNKNOWN,
            who=names(stale),
            what="not looked at for more than a day: what was said of it counts no more",
            do=f"superv preflight {names(stale)}",
        )
    for exclusion in exclusions:
        if exclusion.ended is None:
            yield from _of_exclusion(exclusion, failing, now)


def run_hands(run: RunPart, answer: Answer) -> Iterator[Hand]:
    """What the run itself waits for."""
    who = f"run {run.name}"
    if not run.engine and run.phase not in _ENDED:
        yield Hand(
            status=Status.FAIL,
            who=who,
            what="no engine watches it",
            do=f"superv attach {run.name}",
        )
    if run.phase == Phase.HELD:
        yield Hand(
            status=Status.FAIL,
            who=who,
            what=f"held: {run.reason}",
            do=f"mend it, then superv resume {run.name}",
        )
    if answer.lacks and run.phase not in (Phase.DONE, Phase.STOPPED):
        yield Hand(
            status=Status.FAIL if answer.can_run == "no" else Status.UNKNOWN,
            who=who,
            what=f"{run.phase}: {count(answer.lacks, 'usable node')} too few",
            do="repair or include what is listed here, or free nodes in Slurm",
        )


def _hand(problem: Problem, nodes: Sequence[str]) -> Hand:
    what = problem.seen[0].text if problem.seen else ""
    if len(problem.seen) > 1:
        what += f" (and {len(problem.seen) - 1} more like it)"
    return Hand(
        status=problem.status,
        who=names(nodes),
        what=f"{problem.title}: {what}",
        do=problem.fix or f"see {problem.pages[0]}",
    )


def _of_exclusion(exclusion: Exclusion, failing: set[str], now: float) -> Iterator[Hand]:
    """Nodes that are out for good though they pass, and nodes that are soon in though they fail."""
    if exclusion.until is None and exclusion.passed:
        who = names(exclusion.passed)
        yield Hand(
            status=Status.OK,
            who=who,
            what=f"passed its checks since {exclusion.by} excluded it: {exclusion.reason}",
            do=f"superv include {who}, if the reason is gone",
        )
    ill = [node for node in exclusion.nodes if node in failing]
    if exclusion.until is not None and exclusion.until < now + DAY_S and ill:
        yield Hand(
            status=Status.WARN,
            who=names(ill),
            what=f"fails, and its exclusion ends in {span(exclusion.until - now)}",
            do=f"superv exclude {names(ill)} --reason … --for 2d, or repair it",
        )
