"""How long the steps and saves of a run take, learned of those that were seen.

What happened once is no rhythm: a standstill that healed makes nobody blind, and one long save
makes no step look short. What is learned is journaled with the steps (`Rhythm` of the run), so that
the next engine and the next attempt begin with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from supervisor.core.policy import Policy
from supervisor.core.types import Rhythm

STEPS, SAVES = 256, 32  # the newest intervals that count
ENOUGH = 3  # intervals from which a median is taken
USUAL = 3  # so many as long within the window are its rhythm: 1 % of it
SAVE_FACTOR = 2.0  # an interval with a save in it counts as one where it is so many steps long
SLOW_FACTOR = 2.0  # a step may take so many times the usual slow one
OVERDUE_FACTOR = 3.0  # a step is overdue at 3x the median interval …
OVERDUE_SLOW_FACTOR = 1.5  # … and at 1.5x the usual slow one …
OVERDUE_FLOOR_S = 1.0  # … and not before a second

RATE_OVER_S = 60.0  # a rate is taken over the last minute …
RATE_REPORTS = 16  # … and over so many reports: with saves among them where steps are slow


class StepRate:
    """Steps per second of an attempt, over the newest reports."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def stepped(self, at: float, step: int) -> None:
        """A step was reported at that time, in seconds."""
        self._seen.append((at, step))
        while self._seen[0][0] < at - RATE_OVER_S and len(self._seen) > RATE_REPORTS:
            self._seen.popleft()

    def per_s(self) -> float | None:
        """None where too little was seen to tell."""
        if not self._seen or self._seen[-1][0] - self._seen[0][0] < 1.0:
            return None
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began)


class RhythmLearner:
    """Of one engine; `known` is what engines before it had learned."""

    def __init__(self) -> None:
        self.known = Rhythm()
        self._steps: deque[float] = deque(maxlen=STEPS)  # seconds between reported steps
        self._saves: deque[float] = deque(maxlen=SAVES)  # the same, where a save lies between

    def learn(self, interval: float, *, saved: bool) -> None:
        """A step was reported so many seconds after the one before; `saved`: in phase `save`."""
        usual = self.step
        if saved and usual is not None and interval > SAVE_FACTOR * usual:
            self._saves.append(interval)
        else:
            self._steps.append(interval)

    @property
    def step(self) -> float | None:
        """The median interval between reported steps, in seconds; None while it is unknown."""
        return median(self._steps) if len(self._steps) >= ENOUGH else self.known.step

    @property
    def slow(self) -> float | None:
        """The longest interval that is usual: so many as long were seen."""
        if len(self._steps) < STEPS and self.known.slow is not None:
            return max(self.known.slow, _usual(self._steps) or 0.0)
        return _usual(self._steps)

    @property
    def save(self) -> float | None:
        """The median interval with a save in it."""
        return median(self._saves) if self._saves else self.known.save

    @property
    def learned(self) -> Rhythm:
        return Rhythm(step=self.step, slow=self.slow, save=self.save)

    def overdue_s(self, policy: Policy, *, saving: bool) -> float | None:
        """Seconds after which the next step is late; None while the rhythm is unknown."""
        if self.step is None:
            return None
        usual = OVERDUE_SLOW_FACTOR * (self.slow or 0.0)
        late = max(OVERDUE_FLOOR_S, OVERDUE_FACTOR * self.step, usual)
        return max(late, self._save_s(policy)) if saving else late

    def hang_s(self, policy: Policy, *, saving: bool) -> float:
        """Seconds without a step after which ranks are taken to hang.

        The first save takes as long as a start may: nobody knows yet how long saves take.
        """
        usual = policy.hang_factor * (self.step or 0.0)
        slow = SLOW_FACTOR * (self.slow or 0.0)
        limit = max(policy.hang_timeout_min_s, usual, slow)
        return max(limit, self._save_s(policy)) if saving else limit

    def _save_s(self, policy: Policy) -> float:
        if self.save is None:
            return policy.first_step_timeout_s
        return policy.hang_factor * self.save


def _usual(intervals: Sequence[float]) -> float | None:
    return sorted(intervals)[-USUAL] if len(intervals) >= USUAL else None
