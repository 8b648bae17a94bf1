"""What was decided about drains, done in Slurm and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from healthchecks.frame.check import Status
from healthchecks.frame.report import Finding, Report
from launchers.slurm import Slurm
from supervisor.config import Site
from supervisor.core.errors import TransientError
from supervisor.fleet.brake import Brake, counted, too_many
from supervisor.fleet.drain import DrainDecision, decide, drained_finding, scontrol_command
from supervisor.fleet.record import Fleet
from supervisor.fleet.types import Drain


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOutcome:
    """What was done about a drain, or could not be."""

    text: str  # one line
    node: str = ""  # empty: it is about several
    done: bool = False  # else it is advice, the same as in the last sweep perhaps


async def apply_drains(
    fleet: Fleet,
    slurm: Slurm,
    site: Site,
    confirmed: Mapping[str, Sequence[Finding]],
    now: Callable[[], float],
    *,
    count: bool = False,
    counted_as: Callable[[Brake], None] = lambda _: None,
) -> list[DrainOutcome]:
    """Drain what two looks found, by node, as the brake allows; lift own drains that passed twice.

    With `count` Slurm is asked also where there is nothing to do; `counted_as` is told what was
    counted. Raises UserError, TransientError where Slurm does not say how its nodes are.
    """
    own = fleet.drains()
    if not own and not confirmed and not count:
        return []
    states = await slurm.nodes()
    brake = counted(states, site.drain, now())
    counted_as(brake)
    decisions, held = decide(
        confirmed=confirmed,
        brake=brake,
        slurm=states,
        own=own,
        passes={node: passes_since(fleet, drain) for node, drain in own.items()},
    )
    outcomes = [DrainOutcome(text=held)] if held else []
    drained = []
    for decision in decisions:
        node = decision.node
        try:
            text, done = await _apply(decision, fleet, slurm, site, now())
        except TransientError as error:  # perhaps done: the next sweep sees it
            text, done = f"{decision.act}: {error}; the next sweep sees whether it was done", True
        outcomes.append(DrainOutcome(node=node, text=f"{node}: {text}", done=done))
        if done and decision.act == "drain":
            drained.append(node)
    return outcomes + await _give_back(fleet, slurm, site, drained, now)


async def _give_back(
    fleet: Fleet, slurm: Slurm, site: Site, drained: Sequence[str], now: Callable[[], float]
) -> list[DrainOutcome]:
    """Lift what was drained just now where others drained at the same moment, and it is too much.

    The nodes of a cluster run this at the same time, and each counted before any had drained.
    """
    if not drained:
        return []
    outcomes = []
    try:
        states = await slurm.nodes()
        for node in too_many(states, site.drain, drained):
            why = await slurm.resume(node)
            if not why:
                fleet.undrained(node, now())
            text = f"{node}: {f'not resumed: {why}' if why else 'resumed at once'}: "
            text += counted(states, site.drain, now()).text()
            outcomes.append(DrainOutcome(node=node, text=text, done=True))
    except TransientError as error:
        text = f"whether others drained at the same moment is not known: {error}"
        outcomes.append(DrainOutcome(text=text))
    return outcomes


def in_both(reports: Mapping[str, Report], again: Mapping[str, Report]) -> dict[str, list[Finding]]:
    """What failed in two reports on a node, as the second has it."""
    confirmed = {}
    for node, report in again.items():
        failed = {f.name for f in reports[node].findings if f.status is Status.FAIL}
        both = [f for f in report.findings if f.status is Status.FAIL and f.name in failed]
        if both:
            confirmed[node] = both
    return confirmed


def passes_since(fleet: Fleet, drain: Drain) -> int:
    """Looks in a row without a fault since the drain's own check says that all is well.

    What else could not be measured keeps no drain: on some nodes something never can be.
    """
    since = drain.at if drain.look is None else float("-inf")
    for said in fleet.current_findings(drain.node):
        if said.finding.name == drained_finding(drain.reason):
            if said.finding.status in (Status.FAIL, Status.UNKNOWN):
                return 0
            since = max(since, said.since - 0.001)  # the report that said so counts
    return fleet.passes(drain.node, since, unknown=True, after=drain.look)


async def _apply(
    decision: DrainDecision, fleet: Fleet, slurm: Slurm, site: Site, now: float
) -> tuple[str, bool]:
    """What came of it, and whether it was done.

    Recorded first: an act that is not known of would look like a person's.
    """
    node = decision.node
    if decision.act == "forget":
        fleet.undrained(node, now)
        return f"the drain is superv's no longer: {decision.reason}", True
    if not site.drain.on:
        return f"would {decision.act} it ({decision.reason}): {scontrol_command(decision)}", False
    if decision.act == "drain":
        fleet.drained(node, decision.reason, now)
        if why := await slurm.drain(node, decision.reason):
            fleet.undrained(node, now)
            return f"not drained: {why}; with the rights: {scontrol_command(decision)}", False
        return f"drained: {decision.reason}", True
    if why := await slurm.resume(node):
        return f"not resumed: {why}; with the rights: {scontrol_command(decision)}", False
    fleet.undrained(node, now)
    return f"resumed: {decision.reason}", True
