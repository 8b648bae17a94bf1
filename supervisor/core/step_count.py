"""Which step ranks are at, of what several say: plausible numbers, then those that agree.

A number that does not follow from the ones before it is set aside until the next one follows from
it. Of reporters that still report, the step is the one that half of them have reached.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

FIRST = 100  # steps to a trainer's first report, else the second one has to follow it
FIRST_JUMP = 1000  # steps between its first two
COUNTS = 3  # so many steps are a count that may begin again with an epoch
USUAL = 10  # a report is plausible within so many times the largest stride so far
LOOK_S = 0.25  # all reports are looked at no more often
RECENT_S = 60.0  # whose last new step is older than the newest one by more has no voice


@dataclass(slots=True)
class StepCounter:
    """The steps that one rank's lines report. `resumed_from` is the step that was promised."""

    resumed_from: int = 0
    step: int | None = None  # those of epochs before this one included
    advances: int = 0  # plausible new steps so far
    at: float = 0.0  # of the last one
    per_epoch: bool = False  # it begins again with each epoch: not to be compared with checkpoints
    set_aside: int | None = None  # what no other line has followed yet
    _base: int = 0
    _last: int | None = None
    _stride: int = 0
    _epoch: int | None = None

    def see(self, printed: int, at: float, epoch: int | None = None) -> bool:
        """A line reports this step; returns whether it is a new one that is plausible."""
        new_epoch = None not in (epoch, self._epoch) and epoch != self._epoch
        again = new_epoch and self._last is not None and printed <= self._last
        self._epoch = epoch if epoch is not None else self._epoch
        if printed == self._last and not again:
            return False
        if not (again or self._follows(self._last, printed)):
            if not self._follows_doubt(printed):
                self.set_aside = printed
                return False
            assert self.set_aside is not None
            again = self._last is not None and self.set_aside <= max(1, self._stride)
            again = again and printed < (self._last or 0) and self.advances >= COUNTS
            self._last = None if self._last is None or again else self.set_aside
        if again:
            self._base, self.per_epoch = self.step or 0, True
        elif self._last is not None:
            self._stride = max(self._stride, printed - self._last)
        if epoch is not None and printed < self.resumed_from:
            self.per_epoch = True
        self.set_aside = None
        self.step, self._last = self._base + printed, printed
        self.advances += 1
        self.at = at
        return True

    def _follows(self, last: int | None, printed: int) -> bool:
        if last is None:
            return 0 <= printed - self.resumed_from <= FIRST
        return 0 < printed - last <= (USUAL * self._stride or FIRST_JUMP)

    def _follows_doubt(self, printed: int) -> bool:
        stride = max(FIRST_JUMP, USUAL * self._stride)
        return self.set_aside is not None and 0 < printed - self.set_aside <= stride


def agreed(reports: Iterable[tuple[int, float]], recent_s: float = RECENT_S) -> int | None:
    """The step that half of those have reached who report still: of (step, time) each."""
    known = list(reports)
    if not known:
        return None
    newest = max(at for _, at in known)
    steps = sorted(step for step, at in known if at >= newest - recent_s)
    return steps[len(steps) // 2]


@dataclass(slots=True)
class StepVote:
    """The step of a run, of what its nodes report, or of a node, of what its ranks do.

    One that follows the last is the next, whoever tells it. One that is far ahead needs most of
    those who report still. Those of hooks count before those of log lines.
    """

    step: int | None = None
    hooks: bool = False  # those alone are listened to
    _reports: dict[Hashable, tuple[int, float]] = field(default_factory=dict)
    _stride: int = 0
    _counted: float = float("-inf")

    @property
    def reporters(self) -> list[Hashable]:
        """Who reports still: within a minute of the one that reported a new step last."""
        newest = max((at for _, at in self._reports.values()), default=0.0)
        return [who for who, (_, at) in self._reports.items() if at >= newest - RECENT_S]

    def heard(
        self, who: Hashable, step: int, at: float, *, hook: bool = False, recent_s: float = RECENT_S
    ) -> bool:
        """Somebody reports a step; returns whether the step of all is another one now.

        Not all are looked at each time: only while one is far ahead, and now and then.
        """
        if hook and not self.hooks:
            self.hooks = True
            self._reports.clear()
        if self.hooks and not hook:
            return False
        before = self._reports.get(who)
        self._reports[who] = (step, at if before is None or before[0] != step else before[1])
        if self.step is not None and step <= self.step:
            return False
        if self.step is None or step - self.step <= (USUAL * self._stride or FIRST_JUMP):
            self._stride = max(self._stride, 0 if self.step is None else step - self.step)
            self.step = step
            return True
        if len(self._reports) > 1 and at - self._counted < LOOK_S:
            return False
        self._counted = at
        most = agreed(self._reports.values(), recent_s)
        if most is None or most <= self.step:
            return False
        self.step = most
        return True
