"""What a run tells people who do not look: held, swapped, waits that a person has to end, ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from supervisor.core import events as ev
from supervisor.core.attention import EngineView, attention
from supervisor.core.status import next_step
from supervisor.core.transition import Transition, handles
from supervisor.core.types import Phase, Run
from supervisor.core.way_forward import way_forward

SCHEMA = 1
KEPT = 200  # keys of what was told
WAIT_S = 60.0  # a wait that is over by then woke nobody
# What of `attention` a person has to end (docs/status.md).
NEEDS_A_HAND = frozenset(
    {"engine", "isolated", "journal", "storage", "slurm", "queue", "nodes", "restarts"}
)


class NoticeKind(StrEnum):
    """What a notice is about."""

    HELD = "held"
    SWAPPED = "swapped"
    WAITS = "waits"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing to tell."""

    key: str  # names it forever: what has been told is not told again
    kind: NoticeKind
    at: float  # seconds since the epoch
    text: str


def untold(run: Run, now: float, seen: EngineView | None = None) -> tuple[Notice, ...]:
    """What is to be told now, the oldest first."""
    found = (*_swaps(run), *_waits(run, now, seen), *_end(run))
    return tuple(one for one in found if one.key not in run.notified)


def _swaps(run: Run) -> Iterator[Notice]:
    for one in run.incidents:
        if one.verdict is None or not one.verdict.culprits or one.relaunched_at is None:
            continue
        yield Notice(
            key=f"swapped/{one.attempt}/{one.confirmed_at:.0f}",
            kind=NoticeKind.SWAPPED,
            at=one.relaunched_at,
            text=f"{one.remedy} ({one.verdict.why})",
        )


def _waits(run: Run, now: float, seen: EngineView | None) -> Iterator[Notice]:
    """Once in a phase for each kind of wait, however many engines the run has meanwhile."""
    if run.ended:
        return
    for one in attention(run, now, seen):
        since = one.since if one.since is not None else run.since
        if one.what in NEEDS_A_HAND and now - since >= WAIT_S:
            key = f"waits/{one.what}/{run.since:.0f}"
            yield Notice(key=key, kind=NoticeKind.WAITS, at=since, text=one.text)


def _end(run: Run) -> Iterator[Notice]:
    if run.ended:
        kind = NoticeKind.HELD if run.phase is Phase.HELD else NoticeKind.ENDED
        key = f"{run.phase.value}/{run.since:.0f}"
        yield Notice(key=key, kind=kind, at=run.since, text=run.reason)


def document(
    run: Run, notice: Notice, now: float, seen: EngineView | None, job_file: str
) -> dict[str, Any]:
    """What a command is given on its standard input; docs/notify.md describes it."""
    attempt = run.attempt
    return {
        "schema": SCHEMA,
        "event": notice.kind.value,
        "key": notice.key,
        "at": notice.at,
        "run": run.spec.name,
        "run_id": run.spec.run_id,
        "phase": run.phase.value,
        "text": notice.text,
        "attempt": attempt.number if attempt else None,
        "step": attempt.step if attempt else None,
        "next": next_step(way_forward(run, now, seen, job_file)),
    }


@handles(ev.Notified)
def notified(t: Transition, event: ev.Notified) -> None:
    """Kept before anybody is told: better once too few than twice."""
    t.set(notified=(*t.run.notified, event.key)[-KEPT:])


@handles(ev.NotifyFailed)
def notify_failed(t: Transition, event: ev.NotifyFailed) -> None:
    """For the record; nothing is decided by it."""
