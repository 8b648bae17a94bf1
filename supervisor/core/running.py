"""What ranks tell while they run, and what their end means."""

from __future__ import annotations

import math

from supervisor.core import events as ev
from supervisor.core.recovery import open_incident, triage
from supervisor.core.turn import Turn
from supervisor.core.types import Evidence, Phase


def start_failed(t: Turn, event: ev.StartFailed) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number:
        return
    seen = Evidence(node=event.node, at=t.at, source="start", text=f"{event.node}: {event.why}")
    if t.run.phase in (Phase.STARTING, Phase.RUNNING):  # other nodes' ranks may make steps already
        open_incident(t, "start-failed", seen)
    elif t.run.phase is Phase.STOPPING and t.run.goal is None:
        t.incident(evidence=(*t.run.incidents[-1].evidence, seen))


def resumed(t: Turn, event: ev.Resumed) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number:
        return
    t.attempt(resumed_step=event.step)
    promised = attempt.resume.step if attempt.resume else 0
    if event.step != promised and t.run.phase in (Phase.STARTING, Phase.RUNNING):
        wrong_step(t, f"{event.node} resumed at step {event.step}, promised was step {promised}")


def marks(t: Turn, event: ev.Marks) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or event.node != attempt.slots[0]:
        return
    t.attempt(marks=event.marks)
    if t.run.incidents and not t.run.incidents[-1].marks and t.run.incidents[-1].relaunched_at:
        t.incident(marks=event.marks)


def wrong_step(t: Turn, text: str) -> None:
    seen = Evidence(node="", at=t.at, source="rank log", text=text)
    t.set(goal=Phase.HELD)
    open_incident(t, "wrong-step", seen)
    t.set(reason=f"attempt {t.run.attempt.number if t.run.attempt else 0}: {text}")


def progress(t: Turn, event: ev.Progress) -> None:
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or t.run.phase not in (Phase.STARTING, Phase.RUNNING)
        or (attempt.step is not None and event.step <= attempt.step)
    ):
        return
    promised = attempt.resume.step if attempt.resume else 0
    if attempt.step is None and event.step <= promised:
        wrong_step(t, f"the first step was {event.step}, promised was one after {promised}")
        return
    t.attempt(step=event.step, step_at=t.at, interval=event.interval or attempt.interval)
    if event.loss is not None and math.isfinite(event.loss):  # JSON has no word for the others
        t.attempt(loss=event.loss)
    if not t.run.spec.checkpoint_dir and event.step > t.run.best_step:
        t.set(best_step=event.step, fruitless={})
    if t.run.phase is Phase.STARTING:
        t.attempt(first_step_at=t.at)
        t.phase(Phase.RUNNING, f"attempt {attempt.number}")
        if t.run.incidents and t.run.incidents[-1].first_step_at is None:
            t.incident(first_step_at=t.at)


def rank_exited(t: Turn, event: ev.RankExited) -> None:
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or any(e.rank == event.exit.rank for e in attempt.exits)
    ):
        return
    t.attempt(exits=(*attempt.exits, event.exit))
    if t.run.phase not in (Phase.STARTING, Phase.RUNNING):
        return
    if not event.exit.clean:
        seen = Evidence(
            node=event.exit.node, at=event.exit.at, source="agent", text=event.exit.text()
        )
        open_incident(t, "rank-exit", seen, *last_line(event), fault_at=event.exit.at)
    elif len(attempt.exits) + 1 == len(attempt.slots) * t.run.spec.ranks_per_node:
        where = f" at step {attempt.step}" if attempt.step is not None else ""
        t.set(goal=Phase.DONE, reason=f"all ranks ended well{where}")
        triage(t)


def last_line(event: ev.RankExited) -> list[Evidence]:
    last = event.exit.tail[-1:]
    return [
        Evidence(node=event.exit.node, at=event.exit.at, source="rank log", text=line)
        for line in last
    ]


def stalled(t: Turn, event: ev.Stalled) -> None:
    if t.run.phase is Phase.RUNNING:
        text = f"no step for {event.limit_s:.0f} s after step {event.last_step}"
        open_incident(t, "hang", Evidence(node="", at=t.at, source="progress", text=text))
