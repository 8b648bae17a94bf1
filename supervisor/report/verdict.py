"""The top of the page: can the job run, and which actions are required?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.check_status import Status, worst
from supervisor.core.types import ENDED, Phase
from supervisor.fleet.out_of_use import SLURM, OutOfUse, SlurmWord, by_node
from supervisor.fleet.record import DAY_S
from supervisor.fleet.types import NodeHealth
from supervisor.host.terminal import day_time, duration, one_line
from supervisor.report.model import (
    ActionItem,
    NodeExclusion,
    NodesOut,
    PageVerdict,
    Problem,
    RunPart,
    count,
    names,
)
from supervisor.report.words import out_of_use, waiting

_TRAINS = (Phase.RUNNING, Phase.STARTING, Phase.CHECKING)

Groups = Mapping[str, tuple[str, ...]]  # what a node is → nodes; each node is in one


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAnswer:
    """Whether a run can go on."""

    can_run: str  # yes, no, unknown
    text: str
    nodes_short: int = 0  # so many nodes more are needed


def groups_of(every: Sequence[NodeHealth], old: set[str], out: Collection[str] = ()) -> Groups:
    """`old`: nodes that were not looked at recently: that they were healthy counts no more.

    `out`: those that Slurm or a run says can't be used.
    """
    of: dict[str, list[str]] = {}
    for node in every:
        good = node.state in ("healthy", "degraded")
        state = "stale" if good and node.name in old else node.state
        if node.name in out and state not in ("failed", "excluded"):
            state = "out"
        of.setdefault(state, []).append(node.name)
    return {state: tuple(nodes) for state, nodes in of.items()}


def answer_of(run: RunPart, groups: Groups, shut: Collection[str] = ()) -> RunAnswer:
    """A run that trains can run. One that is held or waits for its job can't; others need enough
    nodes, without those that are excluded, or that Slurm or a run says can't be used (`shut`):
    their own, or before and after a run those of the fleet.
    """
    bad = {*groups.get("failed", ()), *groups.get("excluded", ()), *shut, *run.drained}
    if run.phase in ENDED or run.phase == Phase.PENDING:
        return _of_the_fleet(run, groups, bad)
    filled = [node for node in run.slots.values() if node]
    spares = [node for node in run.spares if node not in bad]
    text = (
        f"{run.name} is {run.phase}: {len(filled)} of {count(run.need, 'slot')} filled, "
        f"{count(len(spares), 'good spare')}"
    )
    if run.phase in _TRAINS:
        unhealthy = bad & set(filled)
        text += f", {names(unhealthy)} in it failed, excluded, down or drained" if unhealthy else ""
        return RunAnswer(can_run="yes", text=text)
    out = bad | run.unusable.keys()
    fit = len({*filled, *spares} - out)
    if fit >= run.need:
        return RunAnswer(can_run="yes", text=text)
    return RunAnswer(can_run="no", text=text, nodes_short=run.need - fit)


def _of_the_fleet(run: RunPart, groups: Groups, bad: Collection[str]) -> RunAnswer:
    """Of a run without nodes: would enough be there?"""
    out = {*bad, *run.unusable}
    usable = {*groups.get("healthy", ()), *groups.get("degraded", ())} - out
    doubtful = {*groups.get("stale", ()), *groups.get("unknown", ())} - out
    short = max(0, run.need - len(usable))
    if run.phase in (Phase.HELD, Phase.PENDING):
        why = run.reason if run.phase == Phase.HELD or not run.queued else waiting(run.queued)
        there = f"{len(usable)} of {count(run.need, 'node')} that it needs could be used"
        text = f"{run.name} is {run.phase}: {why}; {there}"
        return RunAnswer(can_run="no", text=text, nodes_short=short)
    answer = "yes" if not short else "unknown" if len(doubtful) >= short else "no"
    text = f"{run.name} is {run.phase} and needs {count(run.need, 'node')}"
    return RunAnswer(can_run=answer, text=text, nodes_short=short)


def verdict_of(
    groups: Groups,
    action_items: Sequence[ActionItem],
    problems: Sequence[Problem],
    run: RunPart | None,
    answer: RunAnswer | None,
) -> PageVerdict:
    """Without a run as bad as the worst action item; a run that can go on is no failure."""
    usable = len(groups.get("healthy", ())) + len(groups.get("degraded", ()))
    total = sum(map(len, groups.values()))
    fleet = f"{usable} of {count(total, 'node')} can be used"
    if not total:
        fleet = "no node was looked at yet; superv preflight NODES or superv sweep does that"
    if warnings := sum(p.status is Status.WARN for p in problems):
        fleet += f", {count(warnings, 'warning')}"
    can_run = answer.can_run if answer is not None else None
    status = worst([Status.OK, *(item.status for item in action_items)])
    if can_run == "no":
        status = Status.FAIL
    elif can_run == "unknown" or not total:
        status = Status.UNKNOWN
    elif can_run == "yes" and status is not Status.OK:
        status = Status.WARN
    return PageVerdict(
        status=status,
        can_run=can_run,
        text=f"{answer.text}; {fleet}" if answer is not None else fleet,
        need=run.need if run is not None else None,
        **groups,
    )


def action_items_of(
    problems: Sequence[Problem],
    every: Sequence[NodeHealth],
    exclusions: Sequence[NodeExclusion],
    old: set[str],
    now: float,
) -> Iterator[ActionItem]:
    """What a person has to do, the most urgent first. Warnings can wait: they are not in it."""
    out = {n.name for n in every if n.excluded is not None}
    failing = {n for p in problems if p.status is Status.FAIL for n in p.nodes}
    for problem in problems:
        # What can't be asked of a node that fails may well come of that: fix this first.
        seen_to = out if problem.status is Status.FAIL else out | failing
        nodes = [node for node in problem.nodes if node not in seen_to]
        if nodes and problem.status in (Status.FAIL, Status.UNKNOWN):
            yield _action_item(problem, nodes)
    stale = [n.name for n in every if n.name in old and n.name not in out]
    if stale:
        yield ActionItem(
            status=Status.UNKNOWN,
            who=names(stale),
            what="not looked at for more than a day: what was said of it counts no more",
            do=f"superv preflight {names(stale)}",
        )
    for exclusion in exclusions:
        if exclusion.ended is None:
            yield from _of_exclusion(exclusion, failing, now)


def out_action_items(
    words: Sequence[OutOfUse], every: Sequence[NodeHealth], problems: Sequence[Problem]
) -> Iterator[ActionItem]:
    """Nodes that Slurm or a run says can't be used, where nothing else on the page sees to them.

    One that a person or superv drained was seen to. What Slurm says of a node comes before what
    runs do: one thing to do for each node.
    """
    seen_to = {n.name for n in every if n.excluded is not None}
    seen_to |= {n for p in problems if p.status is Status.FAIL for n in p.nodes}
    seen_to |= {word.node for word in words if word.drained}
    for one in grouped(words):
        if not (nodes := [node for node in one.nodes if node not in seen_to]):
            continue
        seen_to.update(nodes)
        who = names(nodes)
        slurm = one.by == SLURM
        look = f"superv preflight {who}"
        yield ActionItem(
            status=Status.FAIL if slurm else Status.WARN,
            who=who,
            what=out_of_use(one),
            do=f"repair it or power it on; {look}; superv include {who}"
            if slurm
            else f"{look}; superv include {who}, once it is well",
        )


def slurm_action_items(slurm: SlurmWord) -> Iterator[ActionItem]:
    """Where Slurm does not say which nodes are down, nobody knows that of any."""
    if slurm.problem:
        yield ActionItem(
            status=Status.UNKNOWN,
            who="Slurm",
            what=f"which nodes are down or drained is not known: {one_line(slurm.problem)}",
            do=one_line(slurm.fix),
        )


def grouped(words: Sequence[OutOfUse]) -> tuple[NodesOut, ...]:
    """One for what the same of Slurm or the runs says in the same words; Slurm's come first."""
    groups: dict[tuple[str, str, str], list[OutOfUse]] = {}
    for node in by_node(words).values():
        for word in node:
            groups.setdefault((word.by, word.state, word.why), []).append(word)
    found = [
        NodesOut(
            nodes=tuple(word.node for word in said),
            by=one_line(by, 80),
            state=one_line(state, 40),
            since=min((word.since for word in said if word.since), default=None),
            why=one_line(why),
        )
        for (by, state, why), said in groups.items()
    ]
    return tuple(sorted(found, key=lambda one: one.by != SLURM))


def run_action_items(run: RunPart, answer: RunAnswer) -> Iterator[ActionItem]:
    """What the run itself waits for."""
    who = f"run {run.name}"
    for one in run.attention:
        since = f" (since {day_time(one.since)})" if one.since else ""
        yield ActionItem(status=Status.WARN, who=who, what=f"{one.text}{since}", do=one.fix)
    mute = any(one.what == "engine" for one in run.attention)
    if not run.engine and run.phase not in ENDED and not mute:
        yield ActionItem(
            status=Status.FAIL,
            who=who,
            what="no engine watches it",
            do=f"superv attach {run.name}",
        )
    if run.phase == Phase.HELD:
        yield ActionItem(
            status=Status.FAIL,
            who=who,
            what=f"held: {run.reason}",
            do=f"fix it, then superv resume {run.name}",
        )
    if answer.nodes_short and run.phase not in (Phase.DONE, Phase.STOPPED):
        yield ActionItem(
            status=Status.FAIL if answer.can_run == "no" else Status.UNKNOWN,
            who=who,
            what=f"{run.phase}: {count(answer.nodes_short, 'usable node')} too few",
            do="repair or include what is listed here, or free nodes in Slurm",
        )


def _action_item(problem: Problem, nodes: Sequence[str]) -> ActionItem:
    what = problem.seen[0].text if problem.seen else ""
    if len(problem.seen) > 1:
        what += f" (and {len(problem.seen) - 1} more like it)"
    return ActionItem(
        status=problem.status,
        who=names(nodes),
        what=f"{problem.title}: {what}",
        do=problem.fix or f"see {problem.pages[0]}",
    )


def _of_exclusion(exclusion: NodeExclusion, failing: set[str], now: float) -> Iterator[ActionItem]:
    """Nodes that are out for good though they pass, and nodes that are soon in though they fail."""
    if exclusion.until is None and exclusion.passed:
        who = names(exclusion.passed)
        yield ActionItem(
            status=Status.OK,
            who=who,
            what=f"passed its checks since {exclusion.by} excluded it: {exclusion.reason}",
            do=f"superv include {who}, if the reason is gone",
        )
    unhealthy = [node for node in exclusion.nodes if node in failing]
    if exclusion.until is not None and exclusion.until < now + DAY_S and unhealthy:
        yield ActionItem(
            status=Status.WARN,
            who=names(unhealthy),
            what=f"fails, and its exclusion ends in {duration(exclusion.until - now)}",
            do=f"superv exclude {names(unhealthy)} --reason … --for 2d, or repair it",
        )
