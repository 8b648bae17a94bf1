"""How the rows of limits (test_checks_limits.py) are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from checks import Case, Change

from healthchecks.frame.check import Status

OK, WARN, FAIL, UNKNOWN = Status.OK, Status.WARN, Status.FAIL, Status.UNKNOWN


def limit(
    check: str,
    what: str,
    how: Callable[[Any], Change],
    means: Mapping[Any, Status],
    *,
    earlier: Sequence[tuple[float, Change]] = (),
    **more: Any,
) -> list[Case]:
    """`how` makes a node that measures a value; `means` is what the check says of each."""
    return [
        Case(
            check=check,
            name=f"{what} {value}",
            change=how(value),
            status=status,
            earlier=earlier,
            **more,
        )
        for value, status in means.items()
    ]


def prints(
    check: str,
    what: str,
    how: Callable[[Any], Mapping[str, str]],
    means: Mapping[Any, Status],
    **more: Any,
) -> list[Case]:
    """`how` gives what programs print where the measure has a value."""
    return [
        Case(check=check, name=f"{what} {value}", programs=how(value), status=status, **more)
        for value, status in means.items()
    ]


def lasting(
    check: str, what: str, change: Change, means: Mapping[float, Status], **more: Any
) -> list[Case]:
    """A state that an earlier look found too, so many seconds ago."""
    return [
        Case(
            check=check,
            name=f"{what} for {ago_s:g} s",
            earlier=[(ago_s, change)],
            status=status,
            **more,
        )
        for ago_s, status in means.items()
    ]
