"""Repairs that people told of: what was seen before one says nothing of what is there now.

A check knows nothing of it: what it remembered is forgotten once, and the kernel's log, the BMC's
and counts that a boot alone clears are read to it from the repair on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from healthchecks.frame.state import KeptState
from supervisor.core.errors import UserError
from supervisor.core.setting import REPAIRS

ALL = ""  # of the whole node: every check


def told(settings: Mapping[str, Mapping[str, Any]], node: str) -> dict[str, float]:
    """By check, group of checks or ALL: when the node was repaired, in seconds since the epoch.

    Raises UserError.
    """
    try:
        return {str(k): float(at) for k, at in settings.get(REPAIRS, {}).get(node, {}).items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{REPAIRS}: not as they are sent to nodes: {error!r}") from error


def take_in(state: KeptState, repairs: Mapping[str, float], now: float) -> None:
    """Forget what the checks remembered before a repair that this state has not heard of."""
    for name, at in repairs.items():
        if at <= state.repaired.get(name, (0.0, 0.0))[0]:
            continue
        # The clock of who told it may be ahead: what comes from now on counts in any case.
        state.repaired[name] = (at, min(at, now))
        for finding in [*state.memories]:
            if _covers(name, finding.partition("[")[0]):
                del state.memories[finding]


def since(state: KeptState, check: str) -> float:
    """From when on what is seen counts for a check: seconds since the epoch, 0 where always."""
    return max(
        (at for name, (_, at) in state.repaired.items() if _covers(name, check)), default=0.0
    )


def _covers(name: str, check: str) -> bool:
    return name in (ALL, check) or check.startswith(f"{name}.")
