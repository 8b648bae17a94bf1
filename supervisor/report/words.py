"""Times, spans and amounts as people read them."""

from __future__ import annotations

import time

from supervisor.report.model import Exclusion, Point, Slower

_BINARY = (("TiB", 2.0**40), ("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10))


def when(at: float | None) -> str:
    return time.strftime("%m-%d %H:%M", time.localtime(at)) if at else "-"


def zone(at: float) -> str:
    return time.strftime("%Z", time.localtime(at))


def span(seconds: float) -> str:
    """2 d, 5 h, 12 min."""
    if seconds >= 2 * 86_400:
        return f"{seconds / 86_400:.0f} d"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min"


def ago(seconds: float) -> str:
    return f"{span(seconds)} ago"


def ends(out: Exclusion, now: float) -> str:
    """Since when a node is out, and how long yet."""
    if out.ended is not None:
        return f"was out from {when(out.since)} to {when(out.ended)}"
    if out.until is None:
        return f"since {when(out.since)}, until superv include"
    return f"since {when(out.since)}, until {when(out.until)} (in {span(out.until - now)})"


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
        f"{amount(one.accepted, one.unit)} it was accepted with on {when(one.accepted_at)}"
    )


def point(one: Point, unit: str) -> str:
    on = f" {one.on}" if one.on else ""
    return f"{amount(one.value, unit)}{on} at {when(one.at)}"
