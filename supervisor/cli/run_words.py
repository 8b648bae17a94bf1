"""Words for what a status document says, as `status`, the live view and `watch` share them."""

from __future__ import annotations

from typing import Any

from supervisor.core.nodeset import compress
from supervisor.core.types import AllocationState
from supervisor.host.terminal import day_time, duration

SLOW_PER_S = 0.5  # slower than this is said a minute


def pace(run: dict[str, Any]) -> str:
    """How fast steps come, and how long the rest takes; empty where nothing is known of it."""
    rate = run.get("steps_per_s")  # an engine of an older superv does not tell
    if not rate:
        return ""
    words = f"{rate:.3g} steps/s" if rate >= SLOW_PER_S else f"{60 * rate:.3g} steps/min"
    if run["left_s"] is not None and run["target_step"]:
        words += f", {duration(run['left_s'])} left to step {run['target_step']}"
    return words


def waited_for(run: dict[str, Any], now: float) -> str:
    """What the run can't go on without, and until when; empty where it waits for nothing."""
    awaited = run.get("waits_for")
    if not awaited:
        return ""
    if awaited["until"] is None:
        return f"{awaited['what']}{expected_start(run, now)}"
    left = awaited["until"] - now
    when = f"for {duration(left)} more" if left > 0 else "its time is up"
    return f"{awaited['what']} ({when}, then {awaited['then']})"


def expected_start(run: dict[str, Any], now: float) -> str:
    """When Slurm expects the start of what it was asked for last; empty where it does not say."""
    asked = [job for job in run["allocations"] if job["state"] == AllocationState.REQUESTED]
    at = asked[-1].get("starts_at") if asked else None  # an engine of an older superv tells none
    if at is None:
        return ""
    left = f", in {duration(at - now)}" if at > now else ""
    return f"; Slurm expects to start it {day_time(at)}{left}"


def rank_phases(run: dict[str, Any]) -> str:
    """In which phases the ranks are, the rarest last with its nodes; empty without a hook."""
    by_phase: dict[str, list[str]] = run.get("rank_phase_nodes") or {}
    ordered = sorted(by_phase.items(), key=lambda item: -len(item[1]))
    if not ordered:
        return ""
    (most, nodes), *others = ordered
    words = f"{most} ({len(nodes)} node{'' if len(nodes) == 1 else 's'})"
    return ", ".join([words, *(f"{phase}: {compress(names)}" for phase, names in others)])
