"""From a seed that failed to a short story: faults are left out for as long as it still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from supervisor.simulate.seed_plan import SeedPlan

Fails = Callable[[SeedPlan], bool]


def shrunk(plan: SeedPlan, fails: Fails, most: int = 300) -> SeedPlan:
    """The smallest plan found that fails too, in at most so many worlds."""
    tried = 0
    found = True
    while found:
        found = False
        for smaller in simpler(plan):
            tried += 1
            if tried > most:
                return plan
            if fails(smaller):
                plan, found = smaller, True
                break
    return plan


def simpler(plan: SeedPlan) -> Iterator[SeedPlan]:
    """Plans with a little less in them, the most daring first."""
    faults = plan.injections
    for size in (len(faults) // 2, 1):
        for first in range(0, len(faults) if size else 0, size or 1):
            yield replace(plan, injections=faults[:first] + faults[first + size :])
    plain = SeedPlan(seed=plan.seed)
    for name in ("preflight", "accounting", "all_report", "keep", "more", "spares", "nodes"):
        usual = getattr(plain, name)
        if getattr(plan, name) != usual:
            yield replace(plan, **{name: usual})
    for name in ("step_s", "save_every", "save_s", "load_s"):
        usual = getattr(plain, name)
        if getattr(plan, name) != usual:
            yield replace(plan, **{name: usual})
    for i, one in enumerate(faults):
        gap = one.at - (faults[i - 1].at if i else 0.0)
        if gap > 200:  # a quiet spell
            earlier = tuple(replace(o, at=round(o.at - gap + 150, 2)) for o in faults[i:])
            yield replace(plan, injections=(*faults[:i], *earlier))
        if one.lasts > 20:
            shorter = replace(one, lasts=round(one.lasts / 2, 2))
            yield replace(plan, injections=(*faults[:i], shorter, *faults[i + 1 :]))
