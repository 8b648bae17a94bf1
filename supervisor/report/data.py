"""Gathers a report from the fleet record and, where one is named, a run's status document.

Decides what belongs together and what comes first; how it looks is for text, markdown and html.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from healthchecks.frame.areas import area_of, in_order, page_of
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Report
from healthchecks.many.causes import FindingCause, causes_of, urgency
from healthchecks.many.remote import ANSWERS
from supervisor.core.check_status import NOT_FINE, WORST_FIRST, Status, worst
from supervisor.core.nodeset import natural_sort_key
from supervisor.core.status import state_word
from supervisor.core.types import AllocationState
from supervisor.fleet.claims import Claim
from supervisor.fleet.out_of_use import SlurmWord, known, of_runs
from supervisor.fleet.record import DAY_S, STRIKES_OVER_S, Fleet
from supervisor.fleet.types import Change, CurrentFinding, NodeHealth
from supervisor.host.terminal import one_line
from supervisor.report.model import (
    Cell,
    ChangeGroup,
    CurvePoint,
    Drained,
    EvidenceLine,
    NodeClaim,
    NodeExclusion,
    Offender,
    Page,
    Problem,
    QueuedJob,
    Row,
    RunAttention,
    RunIncident,
    RunPart,
    names,
    some,
)
from supervisor.report.run_history import attempts_of
from supervisor.report.slower import slower_than_accepted
from supervisor.report.trends import trends_of
from supervisor.report.verdict import (
    action_items_of,
    answer_of,
    grouped,
    groups_of,
    out_action_items,
    run_action_items,
    slurm_action_items,
    verdict_of,
)

STALE_S = DAY_S  # what was last asked before that is not known any more
TOGETHER_S = 1800.0  # changes of one kind on several nodes within this time are one
ALIKE = 3  # so many nodes with the same cells share a row of the heat map
TRENDS_OVER_S = 7 * DAY_S  # plots go back this far, or to `since` where that is longer ago
DAYS = int(STRIKES_OVER_S / DAY_S)


def gather(
    fleet: Fleet,
    now: float,
    since: float,
    status: Mapping[str, Any] | None = None,
    need: int = 0,
    claims: Iterable[Claim] = (),
    slurm: SlurmWord | None = None,
    runs: Iterable[Mapping[str, Any]] = (),
    curve: tuple[CurvePoint, ...] = (),
) -> Page:
    """All that is known at `now`; what changed from `since` on. Times in seconds since the epoch.

    `status` is the document of docs/status.md of the run that is asked about, which needs `need`
    nodes, and `curve` its steps over time; `claims` what users keep out by their own word, `slurm`
    Slurm's word of its nodes, `runs` the documents of all runs of this user. Raises TransientError
    where the record does not answer.
    """
    standing: dict[str, dict[str, CurrentFinding]] = {}
    for item in fleet.current_findings():
        standing.setdefault(item.node, {})[item.finding.name] = item
    every = fleet.nodes(now)
    old = {n.name for n in every if now - n.looked_at > STALE_S}
    slurm = slurm or SlurmWord()
    said = [*slurm.nodes, *of_runs(runs)]
    out = {word.node for word in said}
    healthy = [n.name for n in every if n.state == "healthy" and n.name not in old | out]
    problems = problems_of(standing, {n.name for n in every if n.excluded is not None})
    run = _run(status, since, need, curve) if status is not None else None
    exclusions = _exclusions(fleet, every, since, now)
    drains = tuple(
        Drained(node=names([n.name]), since=n.drain.at, reason=one_line(n.drain.reason))
        for n in every
        if n.drain is not None
    )
    shown = known(said, {n.name for n in every} | (_nodes_of(run) if run is not None else set()))
    groups = groups_of(every, old, out)
    answer = answer_of(run, groups, out) if run is not None else None
    items = [] if run is None or answer is None else list(run_action_items(run, answer))
    items += out_action_items(shown, every, problems)
    items += slurm_action_items(slurm)
    items += action_items_of(problems, every, exclusions, old, now)
    rows = _rows(every, standing, old, out, now)
    trends_since = min(since, now - TRENDS_OVER_S)
    trends, all_zero = trends_of(fleet, trends_since, now)
    return Page(
        at=now,
        since=since,
        record=str(fleet.path),
        cluster=one_line(slurm.cluster, 80),
        looked_at=max((n.looked_at for n in every if n.looked_at), default=None),
        verdict=verdict_of(groups, items, problems, run, answer),
        action_items=tuple(items),
        run=run,
        areas=_areas(rows),
        rows=rows,
        healthy=tuple(healthy),
        problems=tuple(problems),
        changes=_change_groups(fleet.changes(since)),
        exclusions=exclusions,
        claims=_claims(claims),
        out_of_use=grouped(shown),
        slurm_problem=one_line(slurm.problem),
        drains=drains,
        offenders=_offenders(fleet, now),
        slower=slower_than_accepted(fleet, standing),
        trends_since=trends_since,
        trends=trends,
        all_zero=all_zero,
    )


# --- what is wrong ---


def problems_of(
    standing: Mapping[str, Mapping[str, CurrentFinding]], excluded: set[str]
) -> list[Problem]:
    """What the checks say at present, by cause: the worst first, then the widest.

    Those of which all nodes are excluded come last.
    """
    reports = {
        node: Report(node=node, at=0.0, findings=[s.finding for s in items.values()])
        for node, items in standing.items()
    }
    causes = sorted(causes_of(reports), key=urgency)
    problems = [_problem(cause, standing, excluded) for cause in causes]
    return sorted(problems, key=lambda p: p.excluded)


def _problem(
    cause: FindingCause, standing: Mapping[str, Mapping[str, CurrentFinding]], excluded: set[str]
) -> Problem:
    members = [
        item
        for node in cause.nodes
        for item in standing[node].values()
        if item.finding.not_fine
        and (
            item.finding.result.shared == cause.shared
            if cause.shared
            else item.finding.check in cause.checks
            and (item.finding.name == cause.check or len(cause.checks) > 1)
        )
    ]
    title = cause.check
    if cause.shared:
        title = f"{cause.shared} ({some(cause.checks)})"
    elif len(cause.checks) > 1:
        title = some((cause.check, *(c for c in cause.checks if c != cause.check)), 1)
    return Problem(
        status=cause.status,
        title=one_line(title),
        nodes=cause.nodes,
        checks=cause.checks,
        shared=one_line(cause.shared),
        seen=tuple(EvidenceLine(text=one_line(text), nodes=nodes) for text, nodes in cause.seen),
        expected=one_line(cause.expected),
        fix=one_line(cause.fix),
        since=min(item.since for item in members),
        asked=min(item.at for item in members),
        pages=tuple(_page(check) for check in cause.checks),
        excluded=excluded.issuperset(cause.nodes),
    )


def _page(check: str) -> str:
    """Where a check is described."""
    known = registered().get(check)
    if known is None:  # what the asking itself finds: that a node does not answer
        return "docs/preflight.md"
    if not known.run.__module__.startswith("healthchecks."):
        return f"the module {known.run.__module__}"
    return page_of(check)


# --- nodes by check ---


def _rows(
    every: Sequence[NodeHealth],
    standing: Mapping[str, Mapping[str, CurrentFinding]],
    old: set[str],
    out: Collection[str],
    now: float,
) -> tuple[Row, ...]:
    """Nodes that are not healthy, or out of use, the worst first; nodes alike are one row."""
    groups: dict[str, list[Row]] = {}
    for node in every:
        if node.state == "healthy" and node.name not in old and node.name not in out:
            continue
        is_out = node.name in out and node.state not in ("failed", "excluded")
        row = Row(
            nodes=(node.name,),
            state="out" if is_out else node.state,
            stale=node.name in old and node.state != "excluded",
            since=node.since,
            looked_at=node.looked_at,
            strikes=node.strikes,
            cells=_cells(standing.get(node.name, {}), now, silent=_is_silent(node, standing)),
        )
        groups.setdefault(f"{row.state} {row.stale} {row.cells}", []).append(row)
    rows: list[Row] = []
    for alike in groups.values():
        rows += [_joined(alike)] if len(alike) >= ALIKE else alike
    order = ("failed", "out", "unknown", "degraded", "excluded", "healthy")
    return tuple(
        sorted(
            rows, key=lambda r: (order.index(r.state), -len(r.nodes), natural_sort_key(r.nodes[0]))
        )
    )


def _areas(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those in which something is wrong come first: a phone shows few columns."""
    cells = [(area, cell) for row in rows for area, cell in row.cells.items()]
    wrong = {area for area, cell in cells if cell.status in NOT_FINE}
    return (*in_order(wrong), *in_order({area for area, _ in cells} - wrong))


def _joined(rows: Sequence[Row]) -> Row:
    first = rows[0]
    return Row(
        nodes=tuple(node for row in rows for node in row.nodes),
        state=first.state,
        stale=first.stale,
        since=min(row.since for row in rows),
        looked_at=min(row.looked_at for row in rows),
        strikes=max(row.strikes for row in rows),
        cells=first.cells,
    )


def _is_silent(node: NodeHealth, standing: Mapping[str, Mapping[str, CurrentFinding]]) -> bool:
    """Whether nobody can ask it at present: what was fine before is not known to be so now."""
    answers = standing.get(node.name, {}).get(ANSWERS)
    return answers is not None and answers.finding.status is Status.FAIL


def _cells(
    items: Mapping[str, CurrentFinding], now: float, *, silent: bool = False
) -> dict[str, Cell]:
    by_area: dict[str, list[CurrentFinding]] = {}
    for item in items.values():
        by_area.setdefault(area_of(item.finding.check), []).append(item)
    cells = {}
    for area, group in by_area.items():
        measured = [s for s in group if s.finding.gap is None]
        status = worst(s.finding.status for s in measured)
        telling = [s for s in measured or group if s.finding.status is status]
        cells[area] = Cell(
            status=status,
            findings=tuple(one_line(s.finding.name, 200) for s in telling)
            if status in NOT_FINE
            else (),
            stale=(silent and status not in NOT_FINE) or all(now - s.at > STALE_S for s in telling),
        )
    return cells


# --- what changed ---


def _change_groups(changes: Sequence[Change]) -> tuple[ChangeGroup, ...]:
    """Newest first; one for what several nodes did at once, or a node again and again."""
    groups: dict[tuple[str, Status | None, Status], list[list[Change]]] = {}
    for change in changes:
        runs = groups.setdefault((change.finding, change.was, change.status), [])
        for group in runs:
            same = any(c.node == change.node for c in group)
            if same or group[-1].at - change.at <= TOGETHER_S:
                group.append(change)
                break
        else:
            runs.append([change])
    alike: dict[tuple[object, ...], list[ChangeGroup]] = {}
    for one in (_change_group(group) for runs in groups.values() for group in runs):
        key = (one.at, one.was, one.status, one.nodes, one.times, one.seen)
        alike.setdefault(key, []).append(one)
    shown = [replace(same[0], also=len(same) - 1) for same in alike.values()]
    return tuple(sorted(shown, key=lambda c: (-c.at, WORST_FIRST.index(c.status), c.finding)))


def _change_group(group: Sequence[Change]) -> ChangeGroup:
    newest = group[0]
    return ChangeGroup(
        at=newest.at,
        first=group[-1].at,
        finding=one_line(newest.finding, 200),
        also=0,
        was=newest.was,
        status=newest.status,
        nodes=tuple(sorted({c.node for c in group}, key=natural_sort_key)),
        times=len(group),
        origin=one_line(newest.origin, 60),
        seen=one_line(newest.seen),
    )


# --- exclusions, offenders, the run ---


def _exclusions(
    fleet: Fleet, every: Sequence[NodeHealth], since: float, now: float
) -> tuple[NodeExclusion, ...]:
    """Those in force, the next to end first; then those that ended within the period."""
    groups: dict[tuple[float, float | None, float | None, str, str], list[str]] = {}
    for node in every:
        if (out := node.excluded) is not None:
            groups.setdefault((out.since, out.until, None, out.reason, out.who), []).append(
                node.name
            )
    for past, lifted in fleet.ended_exclusions(since, now):
        groups.setdefault((past.since, past.until, lifted, past.reason, past.who), []).append(
            past.node
        )
    found = [
        NodeExclusion(
            nodes=tuple(nodes),
            since=start,
            until=until,
            ended=ended,
            reason=one_line(reason),
            by=one_line(who, 60),
            passed=() if ended is not None else tuple(n for n in nodes if fleet.passes(n, start)),
        )
        for (start, until, ended, reason, who), nodes in groups.items()
    ]
    return tuple(
        sorted(found, key=lambda e: (e.ended is not None, -(e.ended or 0), e.until or 1e12))
    )


def _claims(told: Iterable[Claim]) -> tuple[NodeClaim, ...]:
    """One for what a user or a run said of several nodes at once; the newest first."""
    groups: dict[Claim, list[str]] = {}
    for claim in told:
        groups.setdefault(replace(claim, node=""), []).append(claim.node)
    found = [
        NodeClaim(
            nodes=tuple(sorted(nodes, key=natural_sort_key)),
            by=one_line(claim.who, 60),
            run=one_line(claim.run, 80) or None,
            since=claim.since,
            until=claim.until,
            reason=one_line(claim.reason),
        )
        for claim, nodes in groups.items()
    ]
    return tuple(sorted(found, key=lambda c: (-c.since, c.by, c.run or "")))


def _offenders(fleet: Fleet, now: float) -> tuple[Offender, ...]:
    """Nodes by strikes, the most first."""
    by_node: dict[str, list[tuple[str, int]]] = {}
    for node, check, day in fleet.strike_details(now):
        by_node.setdefault(node, []).append((check, day))
    today = int(now / DAY_S)
    found = []
    for node, strikes in by_node.items():
        checks: dict[str, int] = {}
        days = [0] * DAYS
        for check, day in strikes:
            name = "named by a run" if check.startswith("run ") else one_line(check, 80)
            checks[name] = checks.get(name, 0) + 1
            days[max(0, min(DAYS - 1, day - today + DAYS - 1))] += 1
        ordered = dict(sorted(checks.items(), key=lambda item: -item[1]))
        found.append(
            Offender(node=names([node]), strikes=len(strikes), checks=ordered, days=tuple(days))
        )
    return tuple(sorted(found, key=lambda o: (-o.strikes, natural_sort_key(o.node))))


def _nodes_of(run: RunPart) -> set[str]:
    return {*filter(None, run.slots.values()), *run.spares, *run.unusable}


def _queued(allocations: Sequence[Mapping[str, Any]]) -> QueuedJob | None:
    """The newest job that waits."""
    for job in reversed(allocations):
        if job["state"] == AllocationState.REQUESTED:
            return QueuedJob(
                job=job["job_id"],
                reason=one_line(job["reason"]),
                means=one_line(job.get("means", "")),
                do=one_line(job.get("do", "")),
                starts_at=job.get("starts_at"),
            )
    return None


def _run(
    status: Mapping[str, Any], since: float, need: int, curve: tuple[CurvePoint, ...]
) -> RunPart:
    incidents = [
        RunIncident(
            at=i["confirmed"] or i["suspected"],
            cause=i["cause"],
            culprits=tuple(i["culprits"]),
            why=one_line(i["why"] or ""),
            remedy=one_line(i["remedy"] or "under way"),
            runbook=i["runbook"],
        )
        for i in status["incidents"]
    ]
    return RunPart(
        name=one_line(status["name"], 80),
        phase=status["phase"],
        since=status["since"],
        reason=one_line(status["reason"] or ""),
        engine=status["engine"],
        step=status["step"],
        need=need,
        slots={str(s["slot"]): s["node"] or "" for s in status["slots"]},
        spares=tuple(status["spares"]),
        unusable={
            **{
                n["node"]: one_line(f"{state_word(n['state'])}: {n['reason']}")
                for n in status["unusable"]
            },
            **{n["node"]: one_line(f"excluded: {n['reason']}") for n in status["excluded"]},
        },
        incidents=tuple(i for i in reversed(incidents) if i.at >= since),
        queued=_queued(status["allocations"]),
        drained=tuple(status.get("drained", ())),  # an engine of an older superv does not tell
        attention=tuple(
            RunAttention(
                what=one["what"],
                since=one["since"],
                text=one_line(one["text"]),
                fix=one_line(one["fix"]),
            )
            for one in status.get("attention", [])  # an engine of an older superv has none
        ),
        launched=status.get("launched"),
        attempts=attempts_of(status, curve),
        curve=curve,
    )
