"""A Run as the document that `superv status --json` prints. docs/status.md describes the schema."""

from __future__ import annotations

from typing import Any

from supervisor.core.types import Incident, NodeState, Run

SCHEMA = 1


def status(run: Run, now: float) -> dict[str, Any]:
    """Plain values only. Times are seconds since the epoch; absent ones are null."""
    attempt = run.attempt
    newest = run.lineage[-1] if run.lineage else None
    return {
        "schema": SCHEMA,
        "name": run.spec.name,
        "run_id": run.spec.run_id,
        "phase": run.phase.value,
        "since": run.since,
        "now": now,
        "reason": run.reason,
        "epoch": run.epoch,
        "step": attempt.step if attempt else None,
        "loss": attempt.loss if attempt else None,
        "step_at": attempt.step_at if attempt else None,
        "attempt": attempt.number if attempt else None,
        "attempt_cold": list(attempt.cold) if attempt else [],
        "attempt_resumed_from": attempt.resume.step if attempt and attempt.resume else None,
        "slots": [
            {
                "slot": slot,
                "node": name or None,
                "state": run.pool[name].state.value if name in run.pool else None,
                "reason": run.pool[name].reason if name in run.pool else "",
            }
            for slot, name in enumerate(run.slots)
        ],
        "spares": list(run.spares),
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
                "status": n.health or None,
                "checked_at": n.checked_at,
                "faults": [
                    {"check": f.check, "status": f.status, "text": f.text, "own": f.own}
                    for f in n.faults
                ],
            }
            for n in run.pool.values()
        ],
        "allocations": [
            {
                "job_id": a.job_id,
                "job_name": a.job_name,
                "state": a.state,
                "raw": a.raw,
                "nodes": list(a.nodes),
                "reason": a.reason,
            }
            for a in run.allocations.values()
        ],
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
        "incidents": [_incident(i) for i in run.incidents],
        "pending": sorted(run.pending),
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
        "marks": dict(incident.marks),
        "step": incident.step,
        "resumed_from": incident.resumed_from,
        "steps_lost": incident.steps_lost,
        "evidence": [
            {"node": e.node or None, "at": e.at, "source": e.source, "text": e.text}
            for e in incident.evidence
        ],
    }
