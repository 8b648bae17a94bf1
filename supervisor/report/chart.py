"""Line charts: where lines, ticks and labels of a Trend go. The template draws them as SVG."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from supervisor.report.model import Point, Trend
from supervisor.report.words import amount

# The chart's own units; about one CSS pixel on a phone.
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 10, 22
NAMES = 66  # room for the names of those that stand out
LABEL_APART = 12
GAP = 3.0  # times the usual time between looks: then the line is broken
_STEPS_S = (600, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 172_800, 345_600, 604_800)
_BYTES = ("B", "B/s")
_Place = Callable[[Point], tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A line of the grid and what is written beside it."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLine:
    """A node that stands out."""

    node: str
    path: str
    dots: tuple[tuple[float, float], ...]  # points that no line joins
    end: tuple[float, float]
    label: float  # the label's height; labels do not overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Everything to draw, in the chart's units."""

    trend: Trend
    right: float  # where the lines end
    rest: str  # one path for all other nodes
    rest_dots: tuple[tuple[float, float], ...]
    lines: tuple[ChartLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lowest: tuple[float, float]
    highest: tuple[float, float]


def chart(trend: Trend, since: float, until: float) -> Chart:
    """`since` and `until`: the ends of the time axis, in seconds since the epoch."""
    y_values = nice(trend.lowest.value, trend.highest.value, trend.unit)
    bottom, top = y_values[0], y_values[-1]
    every = [*trend.rest.values(), *(o.points for o in trend.outliers)]
    first = min(points[0].at for points in every)
    since = max(since, first - 0.02 * (until - first))  # no wide margin before the first look
    right = WIDTH - RIGHT - (NAMES if trend.outliers else 0)
    gap = GAP * _usual_step(every)

    def place(point: Point) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * (point.at - since) / max(until - since, 1.0)
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (point.value - bottom) / (top - bottom)
        return round(x, 1), round(y, 1)

    rest, rest_dots = [], []
    for points in trend.rest.values():
        path, dots = _path(points, place, gap)
        rest.append(path)
        rest_dots += dots
    lines = []
    for outlier in trend.outliers:
        path, dots = _path(outlier.points, place, gap)
        lines.append((outlier.node, path, tuple(dots), place(outlier.points[-1])))
    heights = _apart([end[1] for *_, end in lines])
    return Chart(
        trend=trend,
        right=right,
        rest="".join(rest),
        rest_dots=tuple(dict.fromkeys(rest_dots)),
        lines=tuple(
            ChartLine(node=node, path=path, dots=dots, end=end, label=height)
            for (node, path, dots, end), height in zip(lines, heights, strict=True)
        ),
        x_ticks=tuple(
            Tick(at=place(Point(at=at, value=bottom, on=""))[0], text=text)
            for at, text in times(since, until)
        ),
        y_ticks=tuple(
            Tick(at=place(Point(at=since, value=value, on=""))[1], text=amount(value, trend.unit))
            for value in y_values
        ),
        lowest=place(trend.lowest),
        highest=place(trend.highest),
    )


def _usual_step(every: Iterable[Sequence[Point]]) -> float:
    steps = [
        later.at - earlier.at for points in every for earlier, later in itertools.pairwise(points)
    ]
    return median(steps) if steps else math.inf


def _path(
    points: Sequence[Point], place: _Place, gap: float
) -> tuple[str, list[tuple[float, float]]]:
    """SVG path data, broken where looks are missing, and the points that stand alone.

    A point between two of the same height adds nothing and is left out.
    """
    parts: list[list[Point]] = []
    for point in points:
        if parts and point.at - parts[-1][-1].at <= gap:
            parts[-1].append(point)
        else:
            parts.append([point])
    path, alone = [], []
    for part in parts:
        if len(part) == 1:
            alone.append(place(part[0]))
            continue
        kept = [
            p
            for i, p in enumerate(part)
            if i in (0, len(part) - 1) or not part[i - 1].value == p.value == part[i + 1].value
        ]
        path.append("M" + "L".join(f"{x:g} {y:g}" for x, y in map(place, kept)))
    return "".join(path), alone


def _apart(heights: Sequence[float]) -> list[float]:
    """The heights, moved so that each is LABEL_APART from the next and all stay in the chart."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    floor = float(TOP)
    for index in order:
        moved[index] = floor = max(floor, heights[index])
        floor += LABEL_APART
    ceiling = float(HEIGHT - BOTTOM)
    for index in reversed(order):
        moved[index] = ceiling = min(ceiling, moved[index])
        ceiling -= LABEL_APART
    return moved


def nice(low: float, high: float, unit: str) -> list[float]:
    """Round values from below the lowest to above the highest."""
    if low >= 0 and low < high / 2:
        low = 0.0
    if high <= low:
        high = low + (abs(low) or 1.0)
    base = 2.0 ** (10 * math.floor(math.log2(high) / 10)) if unit in _BYTES and high > 0 else 1.0
    rough = (high - low) / base / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough) * base
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * n for n in range(first, last + 1)]


def times(since: float, until: float) -> list[tuple[float, str]]:
    """Round local times, three to six of them."""
    step = next((s for s in _STEPS_S if (until - since) / s <= 5), _STEPS_S[-1])
    shift = time.localtime(since).tm_gmtoff
    form = "%m-%d" if step >= 86_400 else "%H:%M"
    first = math.ceil((since + shift) / step)
    found = []
    while (at := first * step - shift) <= until:
        found.append((float(at), time.strftime(form, time.localtime(at))))
        first += 1
    return found
