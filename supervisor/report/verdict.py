"""The top of the page: can the job run, and what needs a hand?"""

from __future__ import annotations

from collections.abc import Sequence

from healthchecks.check import Status, worst
from supervisor.core.types import Phase
from supervisor.fleet import NodeHealth
from supervisor.report.model import Exclusion, Hand, Problem, RunPart, Verdict, count, names

_ENDED = (Phase.DONE, Phase.HELD, Phase.STOPPED)
_TRAINS = (Phase.RUNNING, Phase.STARTING, Phase.CHECKING)


def verdict_of(
    every: Sequence[NodeHealth],
    old: set[str],
    hands: Sequence[Hand],
    problems: Sequence[Problem],
    run: RunPart | None,
) -> Verdict:
    """`old`: nodes that were not looked at lately; a good word about them counts no more."""
    of: dict[str, list[str]] = {}
    for node in every:
        good = node.state in ("healthy", "degraded")
        of.setdefault("stale" if good and node.name in old else node.state, []).append(node.name)
    groups = {state: tuple(nodes) for state, nodes in of.items()}
    usable = len(groups.get("healthy", ())) + len(groups.get("degraded", ()))
    doubtful = len(groups.get("stale", ())) + len(groups.get("unknown", ()))
    can_run, text = None, ""
    if run is not None:
        can_run, text = _can_run(run, groups, usable, doubtful)
    if not every:
        fleet = "no node was looked at yet; superv preflight NODES or superv sweep does that"
    else:
        fleet = f"{usable} of {count(len(every), 'node')} can be used"
    warnings = sum(p.status is Status.WARN for p in problems)
    if warnings:
        fleet += f", {count(warnings, 'warning')}"
    status = worst([Status.OK, *(h.status for h in hands)])
    if can_run == "no":
        status = Status.FAIL
    elif can_run == "unknown" or not every:
        status = Status.UNKNOWN
    elif status is not Status.OK and can_run == "yes":
        status = Status.WARN
    return Verdict(
        status=status,
        can_run=can_run,
        text=f"{text}; {fleet}" if text else fleet,
        need=run.need if run is not None else None,
        **groups,
    )


def _can_run(
    run: RunPart, groups: dict[str, tuple[str, ...]], usable: int, doubtful: int
) -> tuple[str, str]:
    """yes, no or unknown, and why."""
    bad = {*groups.get("failed", ()), *groups.get("excluded", ())}
    if run.phase in _ENDED:
        text = f"{run.name} is {run.phase}, and needs {count(run.need, 'node')}"
        if run.phase == Phase.DONE:
            text = f"{run.name} is done; it needed {count(run.need, 'node')}"
        if usable >= run.need:
            return "yes", text
        return ("unknown" if usable + doubtful >= run.need else "no"), text
    filled = [node for node in run.slots.values() if node]
    fit = [node for node in (*filled, *run.spares) if node not in run.unusable]
    spares = [node for node in run.spares if node not in bad]
    text = (
        f"{run.name} is {run.phase}: {len(filled)} of {count(run.need, 'slot')} filled, "
        f"{count(len(spares), 'good spare')}"
    )
    if run.phase in _TRAINS:
        ill = bad & set(filled)
        return "yes", text + (f", {names(ill)} in it failed or is excluded" if ill else "")
    return ("yes" if len([n for n in fit if n not in bad]) >= run.need else "no"), text


def hands_of(
    problems: Sequence[Problem],
    every: Sequence[NodeHealth],
    exclusions: Sequence[Exclusion],
    old: set[str],
    run: RunPart | None,
) -> list[Hand]:
    """What a person must see to, the most urgent first. Warnings can wait: they are not in it."""
    found = []
    if run is not None and run.phase == Phase.HELD:
        found.append(
            Hand(
                status=Status.FAIL,
                who=f"run {run.name}",
                what=f"held: {run.reason}",
                do=f"mend it, then superv resume {run.name}",
            )
        )
    if run is not None and not run.engine and run.phase not in _ENDED:
        found.append(
            Hand(
                status=Status.FAIL,
                who=f"run {run.name}",
                what="no engine watches it",
                do=f"superv attach {run.name}",
            )
        )
    out = {n.name for n in every if n.excluded is not None}
    for problem in problems:
        nodes = [node for node in problem.nodes if node not in out]
        if nodes and problem.status in (Status.FAIL, Status.UNKNOWN):
            found.append(_hand(problem, nodes))
    stale = [n.name for n in every if n.name in old and n.name not in out]
    if stale:
        found.append(
            Hand(
                status=Status.UNKNOWN,
                who=names(stale),
                what="not looked at for more than a day: what was said of it counts no more",
                do=f"superv preflight {names(stale)}",
            )
        )
    found += _may_return(every, exclusions)
    return found


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


def _may_return(every: Sequence[NodeHealth], exclusions: Sequence[Exclusion]) -> list[Hand]:
    """Nodes that are kept out, although their checks find nothing any more."""
    found = []
    for exclusion in exclusions:
        if exclusion.passed:
            who = names(exclusion.passed)
            found.append(
                Hand(
                    status=Status.OK,
                    who=who,
                    what=f"passed its checks since {exclusion.by} excluded it: {exclusion.reason}",
                    do=f"superv include {who}, if the reason is gone",
                )
            )
    for node in every:
        if node.drain is not None and node.state == "healthy":
            found.append(
                Hand(
                    status=Status.OK,
                    who=node.name,
                    what=f"passed, and is drained by superv still: {node.drain.reason}",
                    do="superv sweep lifts the drain after two full looks without a fault",
                )
            )
    return found
