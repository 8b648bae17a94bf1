"""Counters judged by how much they grew, never by their totals."""

from __future__ import annotations

from dataclasses import dataclass

from healthchecks.context import Ctx


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What a counter gained."""

    last: float  # since the look before
    lately: float  # within the window
    per_s: float  # since the look before


def grown(ctx: Ctx, key: str, value: int, within_s: float) -> Grown | None:
    """How a counter grew within a window that may hold several looks; None at the first look.

    Where the last look is older than the window, its share of the window is taken: a steady growth.
    """
    rise = ctx.memory.rise(key, value)
    if rise is None:
        return None
    share = rise.by * min(1.0, within_s / rise.over_s)
    kept = ctx.memory.recent(key, share, within_s)
    return Grown(last=rise.by, lately=sum(float(s) for _, s in kept), per_s=rise.per_s)
