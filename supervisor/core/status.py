"""A Run as the document that `superv status --json` prints. docs/status.md describes the schema."""

from __future__ import annotations

from typing import Any

from supervisor.core.attention import EngineView, attention
from supervisor.core.node_life import drained, spares
from supervisor.core.types import HAS_RANKS, Incident, NodeState, Phase, Run
from supervisor.core.waits import waits_for
from supervisor.core.way_forward import NextStep, way_forward

SCHEMA = 1


def state_word(state: str) -> str:
    """A node's state as people read it: the tag is older than the word."""
    return "unusable" if state == NodeState.UNUSABLE.value else state


def next_step(one: NextStep | None) -> dict[str, Any] | None:
    """What a person should type, as a part of the document."""
    if one is None:
        return None
    page = f"docs/runbooks/{one.runbook}.md" if one.runbook else None
    return {"command": one.command, "why": one.why, "runbook": page}


def status(
    run: Run, now: float, seen: EngineView | None = None, job_file: str = ""
) -> dict[str, Any]:
    """Plain values only. Times are seconds since the epoch; absent ones are null.

    `seen`: what a running engine knows beside the journal; `job_file`: where the job's file lies.
    """
    attempt = run.attempt
    return {
        "schema": SCHEMA,
        "name": run.spec.name,
        "run_id": run.spec.run_id,
        "ranks_per_node": run.spec.ranks_per_node,
        "launched": run.launched_at,
        "phase": run.phase.value,
        "since": run.since,
        "now": now,
        "reason": run.reason,
        "attention": [
            {"what": a.what, "since": a.since, "text": a.text, "fix": a.fix}
            for a in attention(run, now, seen)
        ],
        "next": next_step(way_forward(run, now, seen, job_file)),
        "waits_for": _waits_for(run),
        "epoch": run.epoch,
        "step": attempt.step if attempt else None,
        "loss": attempt.loss if attempt else None,
        "step_at": attempt.step_at if attempt else None,
        **_pace(run, seen or EngineView()),
        "attempt": attempt.number if attempt else None,
        "attempt_cold": list(attempt.cold) if attempt else [],
        "attempt_resumed_from": attempt.resume.step if attempt and attempt.resume else None,
        **_nodes(run),
        **_allocations(run),
        **_checkpoints(run),
        "incidents": [_incident(i) for i in run.incidents],
        "pending": sorted(run.pending),
        **_violations(run),
    }


def _waits_for(run: Run) -> dict[str, Any] | None:
    awaited = waits_for(run)
    if awaited is None:
        return None
    return {"what": awaited.what, "until": awaited.until, "then": awaited.then}


def _pace(run: Run, seen: EngineView) -> dict[str, Any]:
    """How fast steps come, and how long the rest takes at that pace: saves are part of it."""
    trains = run.phase is Phase.RUNNING and run.attempt is not None
    rate = seen.steps_per_s if trains else None
    step = run.attempt.step if run.attempt else None
    target = seen.target_step if run.phase in HAS_RANKS else None
    left = None
    if rate and target is not None and step is not None:
        left = max(0, target - step) / rate
    return {"steps_per_s": rate, "target_step": target, "left_s": left}


def _nodes(run: Run) -> dict[str, Any]:
    return {
        "slots": [
            {
                "slot": slot,
                "node": name or None,
                "state": run.pool[name].state.value if name in run.pool else None,
                "reason": run.pool[name].reason if name in run.pool else "",
            }
            for slot, name in enumerate(run.slots)
        ],
        "spares": list(spares(run)),
        "drained": sorted(drained(run)),
        "unusable": [
            {"node": n.name, "state": n.state.value, "reason": n.reason, "since": n.since}
            for n in run.pool.values()
            if n.state is not NodeState.READY
        ],
        "excluded": [
            {"node": x.node, "reason": x.reason, "since": x.since} for x in run.excluded.values()
        ],
        "health": [
            {
                "node": n.name,
                "status": n.health,
                "checked_at": n.checked_at,
                "faults": [
                    {"check": f.check, "status": f.status, "text": f.text, "own": f.node_fault}
                    for f in n.faults
                ],
            }
            for n in run.pool.values()
        ],
    }


def _allocations(run: Run) -> dict[str, Any]:
    return {
        "allocations": [
            {
                "job_id": a.job_id,
                "job_name": a.job_name,
                "state": a.state,
                "raw": a.raw,
                "nodes": list(a.nodes),
                "reason": a.reason,
                "means": a.means,
                "do": a.do,
                "starts_at": a.starts_at,
                "folder": a.folder,
            }
            for a in run.allocations.values()
        ],
    }


def _checkpoints(run: Run) -> dict[str, Any]:
    newest = run.lineage[-1] if run.lineage else None
    return {
        "last_checkpoint": None
        if newest is None
        else {
            "step": newest.step,
            "path": newest.path,
            "verified": True,
            "verified_at": newest.verified_at,
        },
        "lineage": [
            {
                "step": c.step,
                "path": c.path,
                "attempt": c.attempt,
                "verified_at": c.verified_at,
                "bytes": c.bytes,
            }
            for c in run.lineage
        ],
        "retired_checkpoints": [
            {
                "step": r.step,
                "path": r.path,
                "at": r.at,
                "why": r.why,
                "quarantined": r.quarantined,
                "done": r.done,
                "problem": r.problem,
            }
            for r in run.retired.values()
            if r.quarantined or not r.done
        ],
        "rejected_checkpoints": [
            {"step": r.step, "path": r.path, "why": r.why} for r in run.rejected
        ],
    }


def _violations(run: Run) -> dict[str, Any]:
    return {
        "violations": [
            {
                "invariant": v.invariant,
                "what": v.what,
                "at": v.at,
                "times": v.times,
                "refused": list(v.refused),
                "undone": v.undone,
            }
            for v in run.violations
        ],
    }


def _incident(incident: Incident) -> dict[str, Any]:
    verdict = incident.verdict
    return {
        "attempt": incident.attempt,
        "cause": verdict.cause if verdict else incident.cause,
        "culprits": list(verdict.culprits) if verdict else [],
        "confidence": verdict.confidence if verdict else None,
        "why": verdict.why if verdict else None,
        "runbook": f"docs/runbooks/{verdict.cause if verdict else incident.cause}.md",
        "remedy": incident.remedy,
        "fault": incident.fault_at,
        "suspected": incident.suspected_at,
        "confirmed": incident.confirmed_at,
        "stopped": incident.stopped_at,
        "judged": incident.judged_at,
        "relaunched": incident.relaunched_at,
        "first_step": incident.first_step_at,
        "warm": incident.warm,
        "marks": dict(incident.phase_times),
        "step": incident.step,
        "resumed_from": incident.resumed_from,
        "steps_lost": incident.steps_lost,
        "evidence": [
            {"node": e.node or None, "at": e.at, "source": e.source, "text": e.text}
            for e in incident.evidence
        ],
    }
