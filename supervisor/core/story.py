"""Tells what happened in words: one line for what a person wants to know, none for the rest."""

from __future__ import annotations

from supervisor.core import events as ev
from supervisor.core.types import NodeState, Phase, Retired, Run


def tell(before: Run, event: ev.Event, after: Run) -> list[str]:
    """Lines for a log, a terminal or a timeline; times are the event's."""
    lines = _of_event(before, event, after)
    if after.phase is not before.phase or (after.phase.value, after.since) != (
        before.phase.value,
        before.since,
    ):
        lines.append(f"{after.phase.value}: {after.reason}" if after.reason else after.phase.value)
    return lines


def _of_event(before: Run, event: ev.Event, after: Run) -> list[str]:
    match event:
        case ev.EngineStarted():
            return [f"engine started on {event.host}, epoch {event.epoch}"]
        case ev.Submitted():
            return [f"job {event.job_id} ({event.job_name}) submitted"]
        case ev.Waiting():
            return [f"waiting, and trying again: {event.why}"]
        case ev.AllocationSeen():
            names = f" on {len(event.nodes)} nodes" if event.nodes else ""
            reason = f" ({event.reason})" if event.reason and event.reason != "None" else ""
            return [f"job {event.job_id} is {event.raw}{names}{reason}"]
        case ev.AgentJoined():
            here, want = len(after.pool), after.spec.nodes + after.spec.spares
            if event.problems:
                return [f"{event.node} is unfit: {'; '.join(event.problems)}"]
            again = " again" if event.node in before.pool else ""
            held = (
                f", holding {event.ranks} ranks of attempt {event.attempt}" if event.ranks else ""
            )
            return [f"{event.node} registered{again}{held} ({here}/{want})"]
        case ev.AgentLeft() if not before.ended:
            return [f"{event.node} left: {event.reason}"]
        case ev.NodeSilent():
            return [f"{event.node} suspected: silent for {event.at - event.last_heard:.1f} s"]
        case ev.NodeHeard():
            return [f"{event.node} is heard again"]
        case ev.Probed() if (
            event.target in before.pool and before.pool[event.target].state is NodeState.SUSPECT
        ):
            return [f"{event.node} probed {event.target}: {event.outcome}"]
        case ev.RanksStarted():
            return _cold(before, event)
        case ev.Progress():
            return _progress(before, event, after)
        case ev.Scanned():
            return _scanned(before, event, after)
    return _of_people(before, event, after)


def _of_people(before: Run, event: ev.Event, after: Run) -> list[str]:
    """What people ask for, what checks found, and what became of checkpoints."""
    match event:
        case ev.HealthSeen():
            return _health(before, event)
        case ev.BarredSeen():
            return [
                f"{node} is excluded by people: {why}"
                for node, why in event.barred.items()
                if node in after.pool and node not in before.barred
            ]
        case ev.StopAsked():
            return [f"{event.who} asked for the end of the run"]
        case ev.ResumeAsked() if before.ended and not after.ended:
            back = f"; no longer excluded: {', '.join(event.include)}" if event.include else ""
            return [f"{event.who} resumed the run{f'; {event.note}' if event.note else ''}{back}"]
        case ev.QuarantineAsked():
            steps = ", ".join(str(r.step) for r in after.retired.values() if r.at == event.at)
            return [f"{event.who} put step {steps} into quarantine: {event.reason}"]
        case ev.PutAway() if event.path in after.retired:
            return _put_away(after.retired[event.path])
    return []


def _put_away(one: Retired) -> list[str]:
    what = "moved into quarantine" if one.quarantined else "removed"
    if one.problem:
        return [f"checkpoint of step {one.step} can't be {what}: {one.problem}; left at {one.path}"]
    return [f"checkpoint of step {one.step} {what} ({one.why})"]


def _health(before: Run, event: ev.HealthSeen) -> list[str]:
    old = before.pool.get(event.node)
    if old is None:
        return []
    known = {(f.check, f.status) for f in old.faults}
    lines = [
        f"{event.node} health: {f.check} {f.status}: {f.text}"
        for f in event.faults
        if (f.check, f.status) not in known
    ]
    if event.status in ("OK", "WARN") and old.health in ("FAIL", "UNKNOWN"):
        lines.append(f"{event.node} passes its health checks again")
    return lines


def _cold(before: Run, event: ev.RanksStarted) -> list[str]:
    """Why ranks were not forked: each reason once for an attempt, and not what the user chose."""
    told = before.attempt.cold if before.attempt else ()
    if (
        event.warm
        or event.by_choice
        or not event.why_cold
        or any(why.endswith(event.why_cold) for why in told)
    ):
        return []
    return [f"{event.node} started its ranks cold: {event.why_cold}"]


def _progress(before: Run, event: ev.Progress, after: Run) -> list[str]:
    if before.phase is Phase.STARTING and after.phase is Phase.RUNNING:
        loss = f", loss {event.loss:g}" if event.loss is not None else ""
        return [f"first new step: {event.step}{loss}"]
    return []


def _scanned(before: Run, event: ev.Scanned, after: Run) -> list[str]:
    known = {c.path for c in before.lineage}
    bad = {r.path for r in before.rejected}
    lines = [
        f"checkpoint of step {r.step} rejected: {r.why}"
        for r in event.rejected
        if r.path not in bad
    ]
    new = [c for c in after.lineage if c.path not in known]  # not all that was found counts
    if new:
        newest = max(new, key=lambda c: c.step)
        lines.append(f"checkpoint of step {newest.step} verified: {newest.path}")
    return lines
