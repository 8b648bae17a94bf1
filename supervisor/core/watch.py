"""Turns beats and steps, and their absence, into events. Keeps time only as it is told."""

from __future__ import annotations

from collections import deque
from statistics import median

from supervisor.core.events import Event, NodeHeard, NodeSilent, Stalled, StepOverdue
from supervisor.core.policy import Policy
from supervisor.core.types import NodeState, Phase, Run

OVERDUE_FACTOR = 3.0  # a step is overdue at 3x the median interval …
OVERDUE_FLOOR_S = 1.0  # … and not before a second
BEAT_S = 1.0  # agents beat once a second
LATELY_FLOOR_S = 1.25
MAX_TICK_S = 1.0  # checks further apart than this mean that the engine itself stood still
WATCHED = (NodeState.READY, NodeState.SUSPECT)


class Watch:
    """What was heard from whom and when; one per engine, begun anew with it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heard: dict[str, float] = {}
        self._checked: float | None = None
        self._attempt = 0
        self._step: tuple[int, float] | None = None  # the newest step and when it was heard
        self._intervals: deque[float] = deque(maxlen=64)  # seconds between reported steps
        self._longest = 0.0
        self._known = 0.0  # the typical interval as an engine before this one knew it
        self._taken_over = False  # the newest step is from before this engine: no interval
        self._told_overdue: tuple[int, frozenset[str]] | None = None
        self._told_stalled: int | None = None
        self.isolated = False  # most agents are silent: then it is this engine that is cut off

    def heard(self, node: str, at: float, run: Run) -> list[Event]:
        """An agent sent something."""
        self._heard[node] = at
        known = run.pool.get(node)
        if known is not None and known.state in (NodeState.SUSPECT, NodeState.LOST):
            return [NodeHeard(at=at, node=node)]
        return []

    def stepped(self, attempt: int, step: int, at: float) -> bool:
        """A rank reported a step; returns whether it is a new one of the attempt."""
        if attempt != self._attempt:
            self._attempt, self._step = attempt, None
        if self._step is not None:
            if step <= self._step[0]:
                return False
            if not self._taken_over:
                self._intervals.append(at - self._step[1])
                self._longest = max(self._longest, at - self._step[1])
        self._step, self._taken_over = (step, at), False
        return True

    def typical(self) -> float | None:
        """The median interval between reported steps, in seconds; None while it is unknown."""
        if len(self._intervals) < 3:
            return self._known or None
        return median(self._intervals)

    def overdue_limit(self) -> float | None:
        """Seconds after which the next step is late; None while the rhythm is unknown."""
        typical = self.typical()
        return None if typical is None else max(OVERDUE_FLOOR_S, OVERDUE_FACTOR * typical)

    def _take_over(self, now: float, run: Run) -> None:
        """Steps that ended before this engine began are late from its first look on."""
        attempt = run.attempt
        if run.phase is not Phase.RUNNING or attempt is None or attempt.step is None:
            return
        if attempt.number != self._attempt or self._step is None:
            self._attempt, self._step = attempt.number, (attempt.step, now)
            self._known, self._taken_over = attempt.interval or 0.0, True

    def hang_limit(self) -> float:
        """Seconds without a step after which ranks are taken to hang.

        Twice the longest interval seen keeps a step that saves a checkpoint from being one.
        """
        typical = self.typical() or 0.0
        return max(
            self._policy.hang_floor_s, self._policy.hang_factor * typical, 2.0 * self._longest
        )

    def check(self, now: float, run: Run) -> list[Event]:
        """What has become true by the passing of time. Call it a few times a second."""
        if self._checked is not None and now - self._checked > MAX_TICK_S:
            # The engine was stopped or starved; nobody else was silent meanwhile.
            away = now - self._checked
            self._heard = {name: min(now, at + away) for name, at in self._heard.items()}
            if self._step is not None:
                self._step = (self._step[0], min(now, self._step[1] + away))
        self._checked = now
        self._take_over(now, run)
        return [*self._silences(now, run), *self._lateness(now, run)]

    def _silences(self, now: float, run: Run) -> list[Event]:
        watched = [n for n in run.pool.values() if n.state in WATCHED]
        for node in watched:
            self._heard.setdefault(node.name, now)
        # Beats come once a second, not all at once: when this engine is cut off, its agents fall
        # silent one after the other within that second. So the others must have been heard lately.
        lately = max(LATELY_FLOOR_S, self._policy.silent_s - BEAT_S)
        silent = [n for n in watched if now - self._heard[n.name] > self._policy.silent_s]
        quiet = [n for n in watched if now - self._heard[n.name] > lately]
        down = {name for alloc in run.allocations.values() for name in alloc.down}
        unexplained = [n for n in quiet if n.name not in down]
        explained = len(quiet) - len(unexplained)
        someone = any(n.name not in down for n in silent)
        self.isolated = someone and 2 * len(unexplained) >= len(watched) - explained
        if self.isolated:
            return []
        return [
            NodeSilent(at=now, node=n.name, last_heard=self._heard[n.name])
            for n in silent
            if n.state is NodeState.READY
        ]

    def _lateness(self, now: float, run: Run) -> list[Event]:
        attempt = run.attempt
        if (
            self.isolated
            or self._step is None
            or attempt is None
            or attempt.number != self._attempt
            or run.phase is not Phase.RUNNING
        ):
            return []
        step, at = self._step
        late: list[Event] = []
        limit = self.overdue_limit()
        suspects = frozenset(
            n.name
            for n in run.pool.values()
            if n.state is NodeState.SUSPECT and n.name in run.slots
        )
        told = (step, suspects)
        if suspects and limit is not None and now - at > limit and told != self._told_overdue:
            self._told_overdue = told
            late.append(StepOverdue(at=now, last_step=step, last_at=at, limit_s=limit))
        limit = self.hang_limit()
        if now - at > limit and self._told_stalled != attempt.number:
            self._told_stalled = attempt.number
            late.append(Stalled(at=now, last_step=step, last_at=at, limit_s=limit))
        return late
