"""A run over its whole life: its attempts and what ended each, and steps and losses over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.types import ENDED
from supervisor.host.terminal import one_line
from supervisor.report.model import AttemptSpan, CurvePoint
from supervisor.run import journal

CURVE_POINTS = 600  # of a plot: more than its pixels are not seen
SAID_LINES = 12  # of an incident's evidence


def curve_of(path: Path) -> tuple[CurvePoint, ...]:
    """Steps and losses as the journal tells them, thinned; what can't be read is left out."""
    points: list[CurvePoint] = []
    try:
        for record in journal.read(path):
            if isinstance(record.event, ev.Progress):
                loss = record.event.loss
                points.append(CurvePoint(at=record.event.at, step=record.event.step, loss=loss))
    except (UserError, OSError):
        pass  # the status document says what is wrong with it
    every = max(1, math.ceil(len(points) / CURVE_POINTS))
    thinned = points[::every]
    return tuple(thinned if not points or thinned[-1] == points[-1] else [*thinned, points[-1]])


def attempts_of(
    status: Mapping[str, Any], curve: Sequence[CurvePoint] = ()
) -> tuple[AttemptSpan, ...]:
    """The attempts of a status document (docs/status.md), the newest first.

    When the first one's first step was, `curve` tells: no incident came before it.
    """
    return tuple(reversed(list(_attempts(status, curve))))


def _attempts(status: Mapping[str, Any], curve: Sequence[CurvePoint]) -> Iterator[AttemptSpan]:
    began, resumed = status.get("launched"), None
    first_step = curve[0].at if curve else None
    incidents: Sequence[Mapping[str, Any]] = status["incidents"]
    for one in incidents:
        yield AttemptSpan(
            number=one["attempt"],
            began=began,
            first_step=first_step,
            resumed_from=resumed,
            ended=one["fault"] or one["suspected"] or one["confirmed"],
            last_step=one["step"],
            cause=one["cause"],
            culprits=tuple(one["culprits"]),
            why=one_line(one["why"] or ""),
            remedy=one_line(one["remedy"] or "under way"),
            said=tuple(_said(one["evidence"])),
        )
        began, first_step, resumed = one["relaunched"], one["first_step"], one["resumed_from"]
    number = status["attempt"]
    if number is not None and (not incidents or incidents[-1]["attempt"] != number):
        over = status["phase"] in ENDED
        yield AttemptSpan(
            number=number,
            began=began,
            first_step=first_step,
            resumed_from=status["attempt_resumed_from"],
            ended=status["since"] if over else None,
            last_step=status["step"],
            cause="",
            culprits=(),
            why="",
            remedy=status["phase"],
            said=(),
        )


def _said(evidence: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in evidence[:SAID_LINES]:
        yield one_line(f"{one['node'] or one['source']}: {one['text']}", 400)
    if len(evidence) > SAID_LINES:
        yield f"and {len(evidence) - SAID_LINES} more lines: superv status RUN --json"
