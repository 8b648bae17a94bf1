"""A run's plots: steps and losses over time, and a bar for each attempt on the same axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.report.chart import BOTTOM, HEIGHT, LEFT, TOP, Tick, nice, times
from supervisor.report.model import AttemptSpan, RunPart
from supervisor.report.words import amount

WIDTH = 360  # a plot's own units, as a chart's
RIGHT = 352.0
BAR = 1000.0  # units of an attempt's bar
LEAST_BAR = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlot:
    """A line over time, with a mark where an attempt ended badly."""

    title: str
    path: str
    marks: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lowest: str
    highest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptBar:
    """Where an attempt lies on the run's time axis: until its first step, and from there on."""

    span: AttemptSpan
    start: float
    trains: float | None  # None: it had no step
    end: float


def plots(run: RunPart) -> tuple[RunPlot, ...]:
    """Of steps, and of losses where there are any; none where the journal tells too few."""
    found = []
    steps = [(point.at, float(point.step)) for point in run.curve]
    losses = [(point.at, point.loss) for point in run.curve if point.loss is not None]
    for title, told in (("step", steps), ("loss", losses)):
        if len(told) > 1 and told[-1][0] > told[0][0]:
            found.append(_plot(title, told, run.attempts))
    return tuple(found)


def _plot(
    title: str, points: Sequence[tuple[float, float]], attempts: Sequence[AttemptSpan]
) -> RunPlot:
    since, until = points[0][0], points[-1][0]
    values = [value for _, value in points]
    heights = nice(min(values), max(values), "")
    bottom, top = heights[0], heights[-1]

    def x(at: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (at - since) / (until - since), 1)

    def y(value: float) -> float:
        room = HEIGHT - TOP - BOTTOM
        return round(HEIGHT - BOTTOM - room * (value - bottom) / (top - bottom), 1)

    ends = [one.ended for one in attempts if one.cause and one.ended is not None]
    return RunPlot(
        title=title,
        path="M" + "L".join(f"{x(at):g} {y(value):g}" for at, value in points),
        marks=tuple(x(at) for at in ends if since <= at <= until),
        x_ticks=tuple(Tick(at=x(at), text=text) for at, text in times(since, until)),
        y_ticks=tuple(Tick(at=y(value), text=amount(value, "")) for value in heights),
        lowest=f"{min(values):.6g}",
        highest=f"{max(values):.6g}",
    )


def bars(run: RunPart, now: float) -> tuple[AttemptBar, ...]:
    """A bar for each attempt whose times are known."""
    known = [one for one in run.attempts if _first(one) is not None]
    if not known:
        return ()
    since = min(_first(one) or now for one in known)
    until = max([one.ended or now for one in known])

    def x(at: float) -> float:
        return round(BAR * (at - since) / max(1.0, until - since), 1)

    found: list[AttemptBar] = []
    for one in known:
        start, end = x(_first(one) or since), x(one.ended or now)
        trains = None if one.first_step is None else x(one.first_step)
        start = min(start, BAR - LEAST_BAR)
        found.append(
            AttemptBar(span=one, start=start, trains=trains, end=max(end, start + LEAST_BAR))
        )
    return tuple(found)


def _first(one: AttemptSpan) -> float | None:
    return next((at for at in (one.began, one.first_step, one.ended) if at is not None), None)
