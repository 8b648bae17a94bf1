"""What the fleet record says: current findings, changes, exclusions, drains, nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from healthchecks.frame.check import Blame
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Finding, result_from
from supervisor.core.check_status import Status, worst


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentFinding:
    """What a check says of a node at present."""

    node: str
    finding: Finding
    since: float  # it has said so from then on
    at: float  # and was last asked then


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A check said something else than before."""

    node: str
    at: float
    origin: str  # sweep, preflight, run NAME, accept …
    finding: str
    was: Status | None  # None: it was never asked
    status: Status
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """Somebody, or a run, keeps a node out of new runs."""

    node: str
    since: float
    until: float | None  # None: until somebody includes it
    reason: str
    who: str
    look: int | None = None  # the last report then; None: a record of superv 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """A drain in Slurm that superv set."""

    node: str
    at: float
    reason: str
    look: int | None = None  # the last report then


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Somebody said that a node, or what some checks look at, was repaired."""

    node: str
    at: float
    checks: tuple[str, ...]  # or groups of them; none: all of the node
    note: str
    who: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHealth:
    """A node at a glance."""

    name: str
    state: str  # healthy, degraded, failed, unknown, excluded
    since: float
    why: str
    looked_at: float
    strikes: int  # times that it failed by itself within 28 days
    excluded: Excluded | None = None
    drain: Drain | None = None


_WORDS = {
    Status.OK: "healthy",
    Status.SKIP: "unknown",
    Status.WARN: "degraded",
    Status.FAIL: "failed",
    Status.UNKNOWN: "unknown",
}


Metrics = Mapping[str, tuple[float, str]]


def blame(finding: Finding) -> Blame:
    """Whose the finding is; what names a server or a switch is nobody's node."""
    registered()  # checks say whose their failures are
    return Blame(finding.whose())


def change_of(row: Sequence[Any]) -> Change:
    """A change from (node, at, origin, finding, was, status, seen). Raises ValueError."""
    node, at, origin, finding, was, status, seen = row
    before = Status(was) if was else None
    return Change(
        node=node,
        at=at,
        origin=origin,
        finding=finding,
        was=before,
        status=Status(status),
        seen=seen,
    )


def since_then(changes: Sequence[Change]) -> list[Change]:
    """What they come to, by node and finding: from before the first to after the last."""
    first: dict[tuple[str, str], Change] = {}
    last: dict[tuple[str, str], Change] = {}
    for change in changes:
        key = (change.node, change.finding)
        first.setdefault(key, change)
        last[key] = change
    both = [replace(change, was=first[key].was) for key, change in last.items()]
    fine = (None, Status.OK, Status.SKIP)
    return [c for c in both if c.was is not c.status and not (c.was in fine and c.status in fine)]


def finding_of(row: Mapping[str, Any]) -> Finding:
    """The finding in a row of a report's `results`. Raises KeyError, TypeError, ValueError."""
    return Finding(
        check=row["check"],
        on=row.get("on", ""),
        result=result_from(row),
        took_s=row.get("took_s", 0.0),
        blame=row.get("blame", ""),
    )


def summarise(
    name: str,
    standing: list[CurrentFinding],
    strikes: int,
    excluded: Excluded | None,
    drain: Drain | None,
) -> NodeHealth:
    """A person's word comes first; else the worst that stands, and the oldest of it says why.

    What was not measured though nothing is wrong counts where nothing else stands.
    """
    measured = [s for s in standing if s.finding.gap is None]
    status = worst(s.finding.status for s in measured)
    if status is Status.SKIP:
        measured, status = standing, worst(s.finding.status for s in standing)
    bad = sorted((s for s in measured if s.finding.status is status), key=lambda s: s.since)
    looked_at = max((s.at for s in standing), default=0.0)
    if excluded is not None:
        state, since, why = "excluded", excluded.since, excluded.reason
    elif status in (Status.OK, Status.SKIP):
        state, since, why = _WORDS[status], max((s.since for s in standing), default=0.0), ""
    else:
        state, since = _WORDS[status], bad[0].since
        why = f"{bad[0].finding.name}: {bad[0].finding.result.seen}"
        if len(bad) > 1:
            why += f" (and {len(bad) - 1} more)"
    return NodeHealth(
        name=name,
        state=state,
        since=since,
        why=why,
        looked_at=looked_at,
        strikes=strikes,
        excluded=excluded,
        drain=drain,
    )
