"""Evidence → Verdict → Remedy. First form: exits and silences; log and kernel signatures join here.

A node is named only on evidence that names it. Secondary errors name nobody.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from supervisor.core.types import Evidence, Incident, Node, NodeState, RankExit, Run, Verdict

# Every cause that an incident can have; each has a page docs/runbooks/CAUSE.md.
CAUSES = (
    "node-lost",
    "rank-exit",
    "hang",
    "no-first-step",
    "start-failed",
    "ranks-lost",
    "agent-left",
    "allocation-ended",
    "wrong-step",
    "quarantine",
    "unhealthy-node",
)
SHARED_CAUSE_NODES = 3  # so many nodes at once mean a shared cause: nobody is blamed
SHARED_CAUSE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """What to do about a Verdict: retry, swap or hold."""

    kind: str
    delay_s: float = 0.0
    exclude: tuple[str, ...] = ()
    text: str = ""


def diagnose(run: Run, incident: Incident) -> Verdict:
    """Name the cause and, where the evidence names one, the culprit."""
    if incident.cause == "node-lost":
        return _node_lost(run, incident)
    if incident.cause in HEALTH_EXPLAINS and (ill := _ill(run, incident)):
        return ill
    if incident.cause == "rank-exit":
        return _rank_exit(run, incident)
    if incident.cause == "start-failed":
        return _start_failed(run, incident)
    return Verdict(cause=incident.cause, why="nothing in the evidence names a node")


def _node_lost(run: Run, incident: Incident) -> Verdict:
    gone = [
        node
        for node in run.pool.values()
        if node.state is NodeState.SUSPECT
        or (
            node.state is NodeState.LOST
            and abs(incident.confirmed_at - node.since) <= SHARED_CAUSE_WINDOW_S
        )
    ]
    if len(gone) >= SHARED_CAUSE_NODES:
        return Verdict(
            cause="node-lost",
            why=f"{len(gone)} nodes went within a minute: a shared cause (switch, power, storage); "
            "they are replaced, and none is blamed",
        )
    told = {e.node for e in incident.evidence}
    lost = tuple(n.name for n in gone if n.state is NodeState.LOST and n.name in told)
    if not lost:
        return Verdict(cause="node-lost", why="the node that was silent is heard again")
    return Verdict(
        cause="node-lost",
        culprits=lost,
        confidence="witnessed",
        why="silence, and a second witness",
    )


# A node whose own health checks fail is the likeliest reason for these.
HEALTH_EXPLAINS = ("unhealthy-node", "rank-exit", "hang", "no-first-step", "start-failed")


def _ill(run: Run, incident: Incident) -> Verdict | None:
    """The nodes of the attempt that failed health checks of their own, if these name few.

    Those that the incident's own evidence names count also where they pass again by now: a node
    that fails now and then is not well.
    """
    slots = run.attempt.slots if run.attempt else ()
    told = {e.node: e.text for e in incident.evidence if e.source == "health"}
    failed = {n.name: failure(n).text for n in run.pool.values() if n.own_faults}
    ill = {name: text for name, text in {**told, **failed}.items() if name in slots}
    if not ill:
        return None
    why = "; ".join(ill.values())
    together = max(len(ill), len(_alike(run, incident, ill)))
    if together >= SHARED_CAUSE_NODES:
        return Verdict(
            cause="unhealthy-node",
            why=f"{together} nodes fail health checks at once: a shared cause; they are replaced, "
            f"and none is blamed ({why})",
        )
    return Verdict(cause="unhealthy-node", culprits=tuple(ill), confidence="witnessed", why=why)


def failure(node: Node) -> Evidence:
    """That a node failed a health check of its own, and which."""
    worst = node.own_faults[0]
    return Evidence(
        node=node.name,
        at=node.checked_at or 0.0,
        source="health",
        text=f"{node.name} failed {worst.check}: {worst.text}",
    )


def health_of(run: Run, verdict: Verdict, incident: Incident) -> list[Evidence]:
    """What a verdict on nodes' health rests on, as far as the incident does not say it yet."""
    told = {e.node for e in incident.evidence if e.source == "health"}
    return [
        failure(run.pool[name])
        for name in verdict.culprits
        if verdict.cause == "unhealthy-node" and name not in told
    ]


def _alike(run: Run, incident: Incident, ill: Collection[str]) -> list[str]:
    """Nodes, spares and those blamed a moment ago among them, that began to fail as these do."""
    checks = {f.check for name in ill if name in run.pool for f in run.pool[name].own_faults}
    return [
        node.name
        for node in run.pool.values()
        if any(f.check in checks for f in node.own_faults)
        and abs(incident.confirmed_at - (node.checked_at or 0.0)) <= SHARED_CAUSE_WINDOW_S
    ]


def first_exit(run: Run) -> RankExit | None:
    """The earliest bad end of a rank in the current attempt."""
    bad = [e for e in run.attempt.exits if not e.clean] if run.attempt else []
    return min(bad, key=lambda e: e.at, default=None)


def _rank_exit(run: Run, incident: Incident) -> Verdict:
    first = first_exit(run)
    if first is None:
        return Verdict(cause="rank-exit", why="no rank's end was seen")
    before = [i for i in run.incidents if i is not incident and i.verdict is not None]
    last = before[-1] if before else None
    again = (
        last is not None
        and last.cause == "rank-exit"
        and first.node == first_told(incident) == first_told(last)
        and not _progressed_since(run, last)
    )
    if _everywhere_the_same(run, first):
        return Verdict(
            cause="rank-exit",
            why=f"{first.text()}, and so did ranks on other nodes before the first step: "
            "that is the code's or the configuration's fault, and no node's",
        )
    if again:
        return Verdict(
            cause="rank-exit",
            culprits=(first.node,),
            confidence="inferred",
            why=f"{first.text()}; ranks on {first.node} ended first in two attempts running, "
            "with no new verified checkpoint in between",
        )
    return Verdict(cause="rank-exit", why=f"{first.text()}; once is not enough to name the node")


def _everywhere_the_same(run: Run, first: RankExit) -> bool:
    """Whether ranks on several nodes ended by themselves with one code, before any step."""
    attempt = run.attempt
    if attempt is None or attempt.step is not None or first.code is None:
        return False
    return len({e.node for e in attempt.exits if e.code == first.code}) > 1


def _failed_to_start(incident: Incident) -> tuple[str, ...]:
    return tuple(dict.fromkeys(e.node for e in incident.evidence if e.source == "start"))


def first_told(incident: Incident) -> str:
    """The node whose agent told first. Where its clock says otherwise, the order is open."""
    return incident.evidence[0].node


def _progressed_since(run: Run, incident: Incident) -> bool:
    return any(c.attempt > incident.attempt for c in run.lineage)


def _start_failed(run: Run, incident: Incident) -> Verdict:
    failed = _failed_to_start(incident)
    slots = run.attempt.slots if run.attempt else ()
    started = run.attempt.started if run.attempt else ()
    if set(failed) >= set(slots):
        said = next(e.text for e in incident.evidence if e.source == "start")
        return Verdict(cause="start-failed", why=said)
    if len(failed) < SHARED_CAUSE_NODES and set(started) - set(failed):
        return Verdict(
            cause="start-failed",
            culprits=failed,
            confidence="witnessed",
            why="the trainer can't be started there, and can be on other nodes",
        )
    if run.attempt and run.attempt.slot0_first and not started:
        return Verdict(
            cause="start-failed",
            why=f"the trainer can't be started on {slots[0]}, where it was tried first; the next "
            "attempt asks all nodes at once",
        )
    return Verdict(
        cause="start-failed",
        why=f"the trainer can't be started on {len(failed)} of {len(slots)} nodes",
    )


def nothing_left(run: Run) -> str:
    """Why the run can't begin again, where all of its checkpoints have gone."""
    if not run.spec.checkpoint_dir or run.lineage:
        return ""
    finished = [r for r in run.rejected if not r.incomplete]
    if run.best_step > 0:
        what = f"no verified checkpoint is left, though one of step {run.best_step} was there"
    elif finished:
        newest = max(finished, key=lambda r: r.step)
        what = f"no checkpoint can be resumed from; the newest, of step {newest.step}: {newest.why}"
    else:
        return ""
    return (
        f"{what}; superv does not start again from step 0 by itself: "
        "superv launch --from CHECKPOINT or --from scratch begins anew"
    )


def remedy(run: Run, verdict: Verdict, tries: int) -> Remedy:
    """What to do, given that this is restart number `tries` for the cause without progress."""
    policy = run.spec.policy
    limit = policy.restarts_without_progress
    if why := nothing_left(run):
        return Remedy(kind="hold", text=why)
    if verdict.cause == "start-failed" and set(_failed_to_start(run.incidents[-1])) >= set(
        run.attempt.slots if run.attempt else ()
    ):
        return Remedy(kind="hold", text="the trainer can't be started on any node")
    if tries > limit:
        return Remedy(
            kind="hold",
            text=f"{limit} restarts for {verdict.cause} without new verified progress",
        )
    if verdict.culprits:
        names = ", ".join(verdict.culprits)
        return Remedy(
            kind="swap", exclude=verdict.culprits, text=f"{names} excluded; a spare takes the slot"
        )
    delay = policy.backoff_s[min(tries, len(policy.backoff_s)) - 1] if policy.backoff_s else 0.0
    return Remedy(kind="retry", delay_s=delay, text="the same slots again, but for lost nodes")
