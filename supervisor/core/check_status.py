"""What a check found, in one word, the same on nodes, in the engine's journal and in reports."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Status(StrEnum):
    """What a check found."""

    OK = "OK"
    WARN = "WARN"  # look at it; the node can be used
    FAIL = "FAIL"  # the node should not be used
    UNKNOWN = "UNKNOWN"  # could not be measured; neither good nor bad
    SKIP = "SKIP"  # does not apply to this node


WORST_FIRST = (Status.FAIL, Status.UNKNOWN, Status.WARN, Status.OK, Status.SKIP)
PASSES = (Status.OK, Status.WARN)  # ranks may run there
NOT_FINE = (Status.FAIL, Status.UNKNOWN, Status.WARN)  # worth a person's look


def worst(statuses: Iterable[Status]) -> Status:
    """SKIP where there is none."""
    return min(statuses, key=WORST_FIRST.index, default=Status.SKIP)
