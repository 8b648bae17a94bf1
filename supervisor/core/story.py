"""Tells what happened in words: one line for what a person wants to know, none for the rest."""

from __future__ import annotations

from supervisor.core import events as ev
from supervisor.core.check_status import PASSES, Status
from supervisor.core.nodeset import compress, natural_sort_key
from supervisor.core.renewal import granted
from supervisor.core.types import NodeState, Phase, Retired, Run


def describe(before: Run, event: ev.Event, after: Run) -> list[str]:
    """Lines for a log, a terminal or a timeline; times are the event's."""
    lines = _of_event(before, event, after)
    asked = isinstance(event, ev.ResumeRequested | ev.IncludeRequested)
    if after.excluded is not before.excluded and not asked:
        back = [x for name, x in before.excluded.items() if name not in after.excluded]
        verdict = after.incidents[-1].verdict if after.incidents else None
        cleared = verdict.cleared if verdict else ()
        lines += [
            f"{x.node} is used again: "
            + (
                "what failed has followed the ranks"
                if x.node in cleared
                else "the others are too few"
            )
            + f" ({x.reason})"
            for x in back
        ]
    if after.phase is not before.phase or (after.phase.value, after.since) != (
        before.phase.value,
        before.since,
    ):
        lines.append(f"{after.phase.value}: {after.reason}" if after.reason else after.phase.value)
    if after.violations is not before.violations:
        new = [v for v in after.violations if v not in before.violations]
        lines += [f"{v.text}; this is a fault of superv, please report it" for v in new]
    return lines


def _of_event(before: Run, event: ev.Event, after: Run) -> list[str]:
    match event:
        case ev.EngineStarted():
            return [f"engine started on {event.host}, epoch {event.epoch}"]
        case ev.AgentJoined():
            here = len(after.pool)
            want = len(granted(after)) or after.spec.nodes + after.spec.spares
            taken = after.pool.get(event.node)
            if taken is None or (taken.agent, taken.job_id) != (event.agent, event.job_id):
                return [f"{event.node} is not taken: job {event.job_id} is none of this run now"]
            if event.problems:
                return [f"{event.node} is unusable: {'; '.join(event.problems)}"]
            again = " again" if event.node in before.pool else ""
            held = (
                f", holding {event.ranks} ranks of attempt {event.attempt}" if event.ranks else ""
            )
            return [f"{event.node} registered{again}{held} ({here}/{want})"]
        case ev.AgentLeft() if not before.ended:
            return [f"{event.node} left: {event.reason}"]
        case ev.HeartbeatLost() if _state(before, event.node) is not NodeState.SUSPECT:
            return [f"{event.node} suspected: silent for {event.at - event.last_heard:.1f} s"]
        case ev.EngineIsolated() | ev.IsolationEnded() | ev.HeartbeatRegained():
            return _heard(before, event)
        case ev.Probed() if _state(before, event.target) is NodeState.SUSPECT:
            return [f"{event.node} probed {event.target}: {event.outcome}"]
        case ev.RanksStarted():
            return _cold(before, event)
        case ev.Progress():
            return _progress(before, event, after)
        case ev.Prepared() if event.foreign:
            return [f"{event.node}: {text}, and is none of this run" for text in event.foreign]
        case ev.LinesUnread() if before.attempt and before.attempt.unread is None:
            return [
                f"no step is understood in the ranks' lines; rank {event.rank} on {event.node} "
                f"writes: {event.line}"
            ]
        case ev.HookTroubled() if before.attempt and before.attempt.hook_trouble is None:
            return [f"hook: {event.text} (rank {event.rank} on {event.node})"]
        case ev.Scanned():
            return _scanned(before, event, after)
    return _of_slurm(before, event) or _of_people(before, event, after)


def _of_slurm(before: Run, event: ev.Event) -> list[str]:
    match event:
        case ev.Submitted():
            return [f"job {event.job_id} ({event.job_name}) submitted"]
        case ev.Waiting():
            return [f"waiting, and trying again: {event.why}"]
        case ev.AllocationSeen():
            names = f" on {len(event.nodes)} nodes" if event.nodes else ""
            reason = f" ({event.reason})" if event.reason and event.reason != "None" else ""
            return [f"job {event.job_id} is {event.raw}{names}{reason}"]
        case ev.NodesLacking() if event.lacking:
            return [f"job {event.job_id} lacks {event.lacking} nodes in service"]
        case ev.StrayJobSeen() if event.job_id not in before.live_jobs:
            return [f"job {event.job_id} ({event.job_name}) is a twin, and is cancelled"]
    return []


def _heard(
    before: Run, event: ev.EngineIsolated | ev.IsolationEnded | ev.HeartbeatRegained
) -> list[str]:
    since = before.isolated_since
    match event:
        case ev.EngineIsolated() if since is None:
            few = f"{len(event.silent)} of {len(before.pool)} agents are silent"
            return [f"cut off: {few}; nothing is concluded from that until more is known"]
        case ev.IsolationEnded() if since is not None:
            return [f"no longer cut off, after {event.at - since:.0f} s: {event.why}"]
        case ev.HeartbeatRegained():
            return [f"{event.node} is heard again"]
    return []


def _state(run: Run, name: str) -> NodeState | None:
    return run.pool[name].state if name in run.pool else None


def _of_people(before: Run, event: ev.Event, after: Run) -> list[str]:
    """What people ask for, what checks found, what became of checkpoints and of logs."""
    match event:
        case ev.ProblemsSeen():
            found = "; ".join(event.problems)
            return [f"{event.node}: {found or 'what kept ranks from it is over'}"]
        case ev.FilesMissing():
            return [f"{event.node}: {event.why}; it is sent again"]
        case ev.FilesRestored():
            what = ", ".join(event.files)
            return [f"{event.node}: somebody removed files of superv there; made again: {what}"]
        case ev.HealthSeen():
            return _health(before, event)
        case ev.OperatorExclusionsChanged():
            return [
                f"{node} is excluded by people: {why}"
                for node, why in event.operator_excluded.items()
                if node in after.pool and node not in before.operator_excluded
            ]
        case ev.StopRequested():
            return [f"{event.who} asked for the end of the run"]
        case ev.ResumeRequested() if before.ended and not after.ended:
            included = f"; no longer excluded: {', '.join(event.include)}" if event.include else ""
            return [
                f"{event.who} resumed the run{f'; {event.note}' if event.note else ''}{included}"
            ]
        case ev.LogsKept() if event.missing:
            what = f"logs of attempt {event.attempt}: kept of {event.ranks} ranks"
            return [f"{what}, not had: {'; '.join(event.missing)}"]
        case ev.IncludeRequested() if after.excluded is not before.excluded:
            back = sorted(before.excluded.keys() - after.excluded.keys(), key=natural_sort_key)
            return [f"{event.who} included {compress(back)} again"]
        case ev.Notified():
            return [f"people are told ({event.key})"]
        case ev.NotifyFailed():
            return [f"could not tell people ({event.key}): {event.why}"]
        case ev.QuarantineRequested():
            steps = ", ".join(str(r.step) for r in after.retired.values() if r.at == event.at)
            return [f"{event.who} put step {steps} into quarantine: {event.reason}"]
        case ev.CheckpointRetired() if event.path in after.retired:
            return _retired(after.retired[event.path])
    return []


def _retired(one: Retired) -> list[str]:
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
    if event.status in PASSES and old.health in (Status.FAIL, Status.UNKNOWN):
        lines.append(f"{event.node} passes its health checks again")
    return lines


def _cold(before: Run, event: ev.RanksStarted) -> list[str]:
    """Why ranks were not forked: each reason once for an attempt, and not what the user chose."""
    known = before.attempt.cold if before.attempt else ()
    if (
        event.warm
        or event.by_choice
        or not event.why_cold
        or any(why.endswith(event.why_cold) for why in known)
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
