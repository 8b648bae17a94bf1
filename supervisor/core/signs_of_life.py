"""What the ranks of the current attempt show of themselves, by node, as heartbeats bring it.

Steps are the strongest sign of life, and plausible ones alone say where the run is. Beside them:
any rank's next step, new verified checkpoints, lines that still come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.core.events import Event, HookTroubled, LinesUnread
from supervisor.core.step_count import RECENT_S, StepVote
from supervisor.core.types import Phase, Run

UNREAD_EVERY_S = 60.0  # that lines come without a step is told again so often
LINES_RECENT_S = 60.0  # lines of the last minute still come
UNREAD_FACTOR = 8  # ranks whose lines come, none of them understood, have so many times the limit
BEHIND_FACTOR = 3.0  # a rank is behind where the run has made so many times its steps …
BEHIND_STEPS = 10  # … and so many more


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What a node's ranks show of themselves beside their step."""

    hook: bool = False  # the step is from inside of the ranks, not from their lines
    advances: int = 0  # plausible new steps that any of them has told, since they were started
    lines: int = 0  # that they have written, since they were started
    per_epoch: bool = False  # their lines count each epoch from its beginning
    slowest: tuple[int, int] | None = None  # of those that tell steps: a rank and its step
    unread: tuple[int, str, str] | None = None  # a rank, a line without a step, what would fit it
    finite: int | None = None  # the newest step whose loss was finite, by their lines
    hook_trouble: tuple[int, str] | None = None  # a rank, and what is amiss with its hook
    target: int | None = None  # the step that training ends with, as hooks or lines say


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank that is far behind the run."""

    rank: int
    node: str
    step: int
    run_step: int
    factor: float  # the run has made so many times its steps


class SignsOfLife:
    """One per engine; begun again with every attempt."""

    def __init__(self) -> None:
        self._attempt = 0
        self._begin(0)

    def _begin(self, attempt: int) -> None:
        self._attempt = attempt
        self._signs: dict[str, Signs] = {}  # by node
        self._vote = StepVote()
        self._unread: tuple[str, tuple[int, str, str]] | None = None  # by the first such node
        self._unread_told = float("-inf")
        self._finite: int | None = None
        self.target: int | None = None  # the step that training ends with, where ranks say it
        self._hook_trouble: tuple[str, tuple[int, str]] | None = None  # by the first such node
        self._newest: str | None = None  # verified checkpoint, by path
        self._saved_at = float("-inf")  # when another one was seen
        self.advanced_at = float("-inf")  # any rank's last new step
        self.lines_at = float("-inf")  # any rank's last line

    @property
    def step(self) -> int | None:
        return self._vote.step

    @property
    def hook(self) -> bool:
        return self._vote.hooks

    @property
    def finite_step(self) -> int | None:
        """The newest step whose loss was finite, as lines of some node say."""
        return self._finite

    def per_epoch(self, node: str) -> bool:
        known = self._signs.get(node)
        return known is not None and known.per_epoch

    def heard(
        self,
        node: str,
        attempt: int,
        step: int | None,
        signs: Signs | None,
        at: float,
        rhythm: float,
    ) -> bool:
        """A heartbeat of a node of the attempt; returns whether the run has made a step.

        `signs` is None from agents of 0.1. `rhythm` is the typical time between steps, in seconds.
        """
        if attempt != self._attempt:
            self._begin(attempt)
        before = self._signs.get(node, Signs())
        if signs is not None:
            self._signs[node] = signs
            if signs.advances > before.advances:
                self.advanced_at = at
            if signs.lines > before.lines:
                self.lines_at = at
            if signs.unread is not None and (self._unread is None or self._unread[0] == node):
                self._unread = node, signs.unread
            if signs.finite is not None:
                self._finite = max(signs.finite, self._finite or 0)
            self.target = signs.target or self.target
            if signs.per_epoch and not signs.hook:
                self.target = None
            if signs.hook_trouble is not None and self._hook_trouble is None:
                self._hook_trouble = node, signs.hook_trouble
        if step is None:
            return False
        hook = signs is not None and signs.hook
        recent = max(RECENT_S, 3.0 * rhythm)
        moved = self._vote.heard(node, step, at, hook=hook, recent_s=recent)
        if moved:
            self.advanced_at = at
        return moved

    def tellers(self) -> Iterable[str]:
        """Nodes that tell of the run's steps."""
        return [who for who in self._vote.reporters if isinstance(who, str)]

    def look(self, now: float, run: Run) -> None:
        """A few times a second: whether another checkpoint was verified."""
        newest = run.lineage[-1].path if run.lineage else ""
        if newest != self._newest and self._newest is not None:
            self._saved_at = now
        self._newest = newest

    def unread(self, now: float, run: Run) -> list[Event]:
        """That lines come and no step is understood, again and again while it is so."""
        attempt = run.attempt
        if (
            self._unread is None
            or attempt is None
            or attempt.number != self._attempt
            or run.phase not in (Phase.STARTING, Phase.RUNNING)
            or not (attempt.step is None or attempt.by_checkpoint)
            or now - self._unread_told < UNREAD_EVERY_S
            or now - self.lines_at > LINES_RECENT_S
        ):
            return []
        self._unread_told = now
        node, (rank, line, pattern) = self._unread
        return [
            LinesUnread(
                at=now,
                attempt=self._attempt,
                node=node,
                rank=rank,
                line=line,
                pattern=pattern,
            )
        ]

    def hook_troubled(self, now: float, run: Run) -> list[Event]:
        """That something is amiss with the hook, once an attempt."""
        attempt = run.attempt
        if (
            self._hook_trouble is None
            or attempt is None
            or attempt.number != self._attempt
            or attempt.hook_trouble is not None
            or run.phase not in (Phase.STARTING, Phase.RUNNING)
        ):
            return []
        node, (rank, text) = self._hook_trouble
        return [HookTroubled(at=now, attempt=self._attempt, node=node, rank=rank, text=text)]

    def alive_at(self, now: float, run: Run, step_at: float, hang_limit_s: float) -> float:
        """When something was last seen of the attempt that no hanging one shows.

        A verified checkpoint is as good as a step. Where lines alone told steps and still come,
        they may be worded otherwise by now: twice hang_limit_s. Where checkpoints alone tell them,
        the time between two is as long as the first step's, and lines that come stretch it.
        `step_at` is when this engine heard of the newest step: the journal's times are another's.
        """
        attempt = run.attempt
        if attempt is None or attempt.number != self._attempt:
            return float("-inf")
        seen = max(self.advanced_at, self._saved_at)
        lines = now - self.lines_at <= LINES_RECENT_S
        if attempt.by_checkpoint:
            limit = run.spec.policy.first_step_timeout_s * (UNREAD_FACTOR if lines else 1)
        else:
            limit = 2.0 * hang_limit_s if lines and attempt.log_steps else 0.0
        return now if now - max(seen, step_at) < limit else seen

    def stragglers(self, run: Run) -> Iterable[Straggler]:
        """The slowest rank of each node, where it is far behind the run."""
        attempt, step = run.attempt, self._vote.step
        if attempt is None or step is None or attempt.number != self._attempt:
            return
        first = attempt.resume.step if attempt.resume else 0
        for node, signs in self._signs.items():
            if signs.slowest is None:
                continue
            rank, own = signs.slowest
            factor = max(0, step - first) / max(1, own - first)
            if step - own >= BEHIND_STEPS and factor >= BEHIND_FACTOR:
                yield Straggler(rank=rank, node=node, step=own, run_step=step, factor=factor)
