"""Times, spans and amounts as people read them."""

from __future__ import annotations

import time

from supervisor.host.terminal import day_time, duration
from supervisor.report.model import NodeClaim, NodeExclusion, NodesOut, Point, QueuedJob, Slower

_BINARY = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10))


def zone(at: float) -> str:
    return time.strftime("%Z", time.localtime(at))


def ends(out: NodeExclusion, now: float) -> str:
    """Since when a node is out, and how long yet."""
    if out.ended is not None:
        return f"was out from {day_time(out.since)} to {day_time(out.ended)}"
    if out.until is None:
        return f"since {day_time(out.since)}, until superv include"
    return (
        f"since {day_time(out.since)}, until {day_time(out.until)} (in {duration(out.until - now)})"
    )


def claimed(one: NodeClaim) -> str:
    """Whose word it is, since when, how long yet and why."""
    by = f"{one.by}, run {one.run}" if one.run else one.by
    end = f", until {day_time(one.until)}" if one.until else ", until superv include"
    return f"{by}, since {day_time(one.since)}{end}: {one.reason}"


def out_of_use(one: NodesOut) -> str:
    """Who says it, what it is to them, since when and why."""
    since = f" since {day_time(one.since)}" if one.since else ""
    return f"{one.by}: {one.state}{since}{f': {one.why}' if one.why else ''}"


def waiting(one: QueuedJob) -> str:
    """What Slurm says of a job that waits."""
    why = f" ({one.reason}{f': {one.means}' if one.means else ''})" if one.reason else ""
    start = f"; Slurm expects to start it {day_time(one.starts_at)}" if one.starts_at else ""
    return f"job {one.job} waits{why}{start}"


def amount(value: float, unit: str) -> str:
    """A measurement with its unit, in the prefix that people use."""
    if unit == "s" and value and abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    if unit in ("B", "B/s"):
        for prefix, size in _BINARY:
            if abs(value) >= size:
                return f"{value / size:.3g} {prefix}{unit[1:]}"
    shown = f"{value:.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown} {unit}".rstrip()


def fallen(one: Slower) -> str:
    """How much slower, since when."""
    share = 100 * (1 - one.value / one.accepted)
    return (
        f"{one.what}: {amount(one.value, one.unit)}, {share:.0f} % below the "
        f"{amount(one.accepted, one.unit)} it was accepted with on {day_time(one.accepted_at)}"
    )


def point(one: Point, unit: str) -> str:
    on = f" {one.on}" if one.on else ""
    return f"{amount(one.value, unit)}{on} at {day_time(one.at)}"
