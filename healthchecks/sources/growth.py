"""Counters judged by how much they grew, never by their totals."""

from __future__ import annotations

from dataclasses import dataclass

from healthchecks.frame.context import Ctx


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterGrowth:
    """What a counter gained."""

    last: float  # since the look before
    lately: float  # within the window, as a rate: of a longer time between looks its share
    count: float  # within the window, and since the look before however long ago that is
    span_s: float  # in which `count` came
    per_s: float  # since the look before


def counter_growth(ctx: Ctx, key: str, value: int, within_s: float) -> CounterGrowth | None:
    """How a counter grew within a window that may hold several looks; None at the first look.

    Where the last look is older than the window, its share of the window is taken for the rate: a
    steady growth. Single events are told by `count` and `span_s`.
    """
    delta = ctx.memory.counter_delta(key, value)
    if delta is None:
        return None
    share = delta.by * min(1.0, within_s / delta.over_s)
    short = delta.over_s <= within_s
    kept = [s for _, s in ctx.memory.recent(f"grown:{key}", [share, short], within_s)]
    return CounterGrowth(
        last=delta.by,
        lately=sum(float(by) for by, _ in kept),
        count=delta.by + sum(float(by) for by, alone in kept[:-1] if alone and short),
        span_s=within_s if short else delta.over_s,
        per_s=delta.per_s,
    )
