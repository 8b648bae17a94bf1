"""The engine's clock: seconds since the epoch that never go back."""

from __future__ import annotations

import time
from collections.abc import Callable


class SteadyClock:
    """The wall clock as it was read once, and the time since; never before `not_before`.

    A run's journal holds times of the engines before this one. Where the machine's clock was set
    back meanwhile, what they saw would lie in the future, and durations would be negative.
    """

    def __init__(
        self,
        not_before: float = 0.0,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self.base = max(wall(), not_before) - monotonic()

    def __call__(self) -> float:
        return self.base + self._monotonic()


clock = SteadyClock()
