"""What a node's ranks say of themselves: by their hooks' shared memory, and by their log lines."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from supervisor.agent.hook_state import HookStates
from supervisor.agent.ranks import Ranks, attempt_dir, log_file, notify_socket, state_file
from supervisor.agent.tail import Tail
from supervisor.channel.wire import RankJob
from supervisor.core.events import Event, PhaseTimes, Resumed
from supervisor.core.signs_of_life import Signs
from supervisor.core.step_count import StepCounter, StepVote
from supervisor.core.step_lines import UnreadLines, epoch, number
from supervisor.core.types import Evidence
from supervisor.host.log import counted

logger = logging.getLogger(__name__)


CLAIMS_S = 0.2  # ranks that resume together say so together
UNREAD_S = 60.0  # so long after the first line without a step something is said of it
UNREAD_LINES = 3
LINE_SHOWN = 200  # characters of it
TELLS = 3  # a rank that has told so many steps by lines is expected to tell more


class RankProgress:
    """Steps, losses, phases and last lines of the current attempt's local ranks.

    `on_step` is called when the node has a new step; `report` takes what must not get lost.
    """

    def __init__(
        self,
        node_dir: Path,
        node: str,
        *,
        report: Callable[[Event], None],
        on_step: Callable[[], None],
    ) -> None:
        self._dir, self._node = node_dir, node
        self._report, self._on_step = report, on_step
        self._ranks: Ranks | None = None
        self._tail: Tail | None = None
        self._states: HookStates | None = None
        self.at = time.monotonic()  # of the last new step, or of the attempt's beginning
        self._forget(0)

    def _forget(self, promised: int) -> None:
        """Another attempt begins, from this step."""
        self._promised = promised
        self._phase_times_sent = False
        self._counters: dict[int, StepCounter] = {}  # by rank: what lines tell
        self._hooked: dict[int, int] = {}  # by rank: what hooks tell
        self._by_lines, self._by_hooks = StepVote(), StepVote()
        self._hook_advances = 0
        self._resumed_at: dict[int, int] = {}  # by rank: what lines tell
        self._resumed_told: dict[tuple[int, bool], int] = {}  # how many ranks, by step and source
        self._resumed_soon: asyncio.TimerHandle | None = None
        self._unread: dict[int, UnreadLines] = {}  # by rank
        self._unread_since: float | None = None
        self._lines = 0
        self.step: int | None = None
        self.loss: float | None = None
        self._total: int | None = None  # how far lines count
        self._finite: int | None = None  # the newest step whose loss was finite
        self.at = time.monotonic()

    def begin(self, ranks: Ranks, job: RankJob, first: int, promised: int = 0) -> None:
        """Another attempt; its local ranks are numbered from `first` on. Raises OSError."""
        self._ranks = ranks
        if self._resumed_soon is not None:
            self._resumed_soon.cancel()
        self._forget(promised)
        if not job.hook:
            return
        if self._states is None:
            self._states = HookStates(notify_socket(self._dir), self._hook_changed)
            asyncio.get_running_loop().add_reader(self._states.fd, self._states.ready)
        self._states.forget()
        attempt_dir(self._dir, ranks.attempt).mkdir(mode=0o700, exist_ok=True)
        for rank in range(first, first + job.ranks_per_node):
            self._states.follow(rank, state_file(self._dir, ranks.attempt, rank))

    def restore(self) -> list[str]:
        """Where somebody removed what hooks and agent meet at, make it again. Raises OSError."""
        before = self._states
        if before is None or self._ranks is None or not before.gone:
            return []
        attempt_dir(self._dir, self._ranks.attempt).mkdir(mode=0o700, exist_ok=True)
        asyncio.get_running_loop().remove_reader(before.fd)
        self._states = HookStates(notify_socket(self._dir), self._hook_changed)
        self._states.taken_from(before)
        before.close()
        asyncio.get_running_loop().add_reader(self._states.fd, self._states.ready)
        return [notify_socket(self._dir).name]

    # --- log lines ----------------------------------------------------------------------------

    def follow(self, ranks: Ranks, job: RankJob) -> None:
        """Read the ranks' logs from now on."""
        loop = asyncio.get_running_loop()
        if self._tail is not None:
            if self._tail.fd >= 0:
                loop.remove_reader(self._tail.fd)
            self._tail.close()
        self._tail = Tail(job.log_cap, self._reader(ranks, job), _problem)
        for rank in ranks.ranks:
            try:
                self._tail.add(rank, ranks.log_path(rank))
            except OSError as error:  # the rank runs all the same
                _problem(f"log of rank {rank} can't be read: {error}")
        if self._tail.fd >= 0:
            loop.add_reader(self._tail.fd, self._logs_changed)
        self.catch_up()

    def _logs_changed(self) -> None:
        assert self._tail is not None
        if self._tail.ready():
            asyncio.get_running_loop().call_soon(self.catch_up)

    def catch_up(self) -> None:
        """Read what is new in the logs, a piece at a time so that nothing else waits for it."""
        if self._tail is not None and self._tail.catch_up():
            asyncio.get_running_loop().call_soon(self.catch_up)

    def log_path(self, attempt: int, rank: int) -> str:
        """Where a rank's log can be read, also where somebody has removed it."""
        path = log_file(self._dir, attempt, rank)
        if self._ranks is None or self._ranks.attempt != attempt or self._tail is None:
            return str(path)
        return self._tail.path_of(rank, str(path))

    def last_lines(self, rank: int) -> list[str]:
        return self._tail.drain(rank) if self._tail is not None else []

    def _reader(self, ranks: Ranks, job: RankJob) -> Callable[[int, str], None]:
        stepped = re.compile(job.step_pattern)
        resumed = re.compile(job.resumed_pattern) if job.resumed_pattern else None

        def read(rank: int, line: str) -> None:
            if ranks is not self._ranks:
                return
            self._lines += 1
            if found := stepped.search(line):
                groups = found.groupdict()
                if (step := number(groups.get("step"))) is None:
                    _problem(f"progress.step: no step in {line[:200]!r}")
                else:
                    self._total = number(groups.get("total")) or self._total
                    short = (self._total or self._promised) < self._promised
                    self._line_tells(rank, step, groups.get("loss"), epoch(line), short)
            elif resumed is not None and (found := resumed.search(line)):
                groups = found.groupdict()
                step, after = number(groups.get("step")), number(groups.get("next"))
                if step is None and after:
                    step = after - 1
                if step is None:
                    _problem(f"progress.resumed: no step in {line[:200]!r}")
                else:
                    self._claimed(ranks.attempt, rank, step)
            elif self.step is None:
                if self._unread_since is None:
                    self._unread_since = time.monotonic()
                self._unread.setdefault(rank, UnreadLines()).add(line)

        return read

    def _line_tells(
        self, rank: int, step: int, loss: str | None, epoch: int | None, short: bool
    ) -> None:
        counter = self._counters.get(rank)
        if counter is None:
            counter = self._counters[rank] = StepCounter(resumed_from=self._promised)
        counter.per_epoch = counter.per_epoch or short  # it counts less far than was resumed
        if not counter.see(step, time.monotonic(), epoch):
            return
        assert counter.step is not None
        self._by_lines.heard(rank, counter.step, counter.at)
        value = _number(loss)
        # -1 is what pipeline stages without a loss print.
        if value not in (None, -1.0) and counter.step >= (self._by_lines.step or 0):
            self.loss = value
        if value is not None and value != -1.0 and math.isfinite(value):
            self._finite = max(counter.step, self._finite or 0)
        if not self._hooked:
            self._advanced(self._by_lines)

    def _told(self) -> list[StepCounter]:
        return [counter for counter in self._counters.values() if counter.advances]

    def _advanced(self, vote: StepVote) -> None:
        """A rank made a step."""
        self.at = time.monotonic()
        self._unread.clear()
        if vote.step != self.step:
            self.step = vote.step
            self._on_step()

    def _claimed(self, attempt: int, rank: int, step: int) -> None:
        """A rank's line says where it resumed; the first one counts."""
        if self._resumed_at.setdefault(rank, step) != step or self._resumed_soon is not None:
            return
        loop = asyncio.get_running_loop()
        self._resumed_soon = loop.call_later(CLAIMS_S, self._report_claims, attempt)

    def _report_claims(self, attempt: int) -> None:
        self._resumed_soon = None
        for step, count in Counter(self._resumed_at.values()).items():
            self._report_resumed(attempt, step, count, log=True)

    def _report_resumed(self, attempt: int, step: int, ranks: int, *, log: bool) -> None:
        if ranks <= self._resumed_told.get((step, log), 0):
            return
        self._resumed_told[step, log] = ranks
        self._report(
            Resumed(
                at=time.time(),
                attempt=attempt,
                node=self._node,
                step=step,
                log=log,
                others=ranks - 1,
            )
        )

    def signs(self) -> Signs:
        """What the ranks show of themselves beside their step."""
        told = self._told()
        positions = [(step, rank) for rank, step in self._hooked.items()] or [
            (c.step, rank)
            for rank, c in self._counters.items()
            if c.step is not None and c.advances >= TELLS
        ]
        step, rank = min(positions, default=(None, 0))
        return Signs(
            hook=bool(self._hooked),
            advances=self._hook_advances + sum(c.advances for c in told),
            lines=self._lines,
            per_epoch=any(c.per_epoch for c in told),
            slowest=None if step is None else (rank, step),
            unread=self._unread_line(),
            finite=self._finite,
            hook_trouble=self._hook_trouble(),
            target=self._target(),
        )

    def _target(self) -> int | None:
        """The step that training ends with. A count that begins again with each epoch is none."""
        if self._states is not None and self._ranks is not None:
            told = [s.target for rank in self._ranks.ranks if (s := self._states.state(rank))]
            if most := max(told, default=0):
                return most
        ended = self._total is None or self._total < (self.step or 0)
        return None if ended or any(c.per_epoch for c in self._told()) else self._total

    def _hook_trouble(self) -> tuple[int, str] | None:
        """What is amiss with the hook: in its own words, or that it tells nothing at all."""
        if self._states is None or self._ranks is None:
            return None
        told = {rank: self._states.state(rank) for rank in self._ranks.ranks}
        for rank, state in told.items():
            if state is not None and state.trouble:
                return rank, state.trouble
        silent = [rank for rank, c in self._counters.items() if c.advances >= TELLS]
        # By their memory: an agent that has adopted them has not heard of a step yet.
        if silent and not any(state is not None and state.step for state in told.values()):
            return min(
                silent
            ), "lines tell steps, and the hook none: what it enters is never called"
        return None

    def _unread_line(self) -> tuple[int, str, str] | None:
        """A line without a step, where there have been some for a while and none with one."""
        since = self._unread_since
        if self.step is not None or since is None or time.monotonic() - since < UNREAD_S:
            return None
        many = {rank: u for rank, u in self._unread.items() if u.count >= UNREAD_LINES}
        if not many:
            return None
        rank = min(many, key=lambda rank: (not many[rank].pattern, rank))
        return rank, many[rank].line[:LINE_SHOWN], many[rank].pattern

    # --- hooks --------------------------------------------------------------------------------

    def _hook_changed(self, rank: int) -> None:
        """A hook wrote a new step or phase of its rank."""
        assert self._states is not None
        state, ranks = self._states.state(rank), self._ranks
        if state is None or ranks is None:
            return
        if state.resumed >= 0:
            self._report_resumed(ranks.attempt, state.resumed, 1, log=False)
        if state.step > self._hooked.get(rank, 0):
            self._hooked[rank] = state.step
            self._hook_advances += 1
            self._by_hooks.heard(rank, state.step, time.monotonic())
            self._advanced(self._by_hooks)
        if state.first_step and not self._phase_times_sent and rank == min(ranks.ranks, default=-1):
            self._phase_times_sent = True
            reached = {**state.first, "first step": state.first_step}
            times = tuple((name, at) for name, at in reached.items() if at)
            self._report(
                PhaseTimes(
                    at=time.time(), attempt=ranks.attempt, node=self._node, phase_times=times
                )
            )

    def phase(self) -> str:
        """Of the local rank that is furthest behind, as its hook says."""
        if self._states is None or self._ranks is None:
            return ""
        states = [s for rank in self._ranks.ranks if (s := self._states.state(rank)) is not None]
        return min(states, key=lambda s: (s.step, s.changed)).phase if states else ""

    def ranks_with_hook(self, ranks: Ranks) -> list[int]:
        """Living ranks whose hook has said something."""
        states = self._states
        alive = [rank.rank for rank in ranks.ranks.values() if rank.alive]
        return [rank for rank in alive if states is not None and states.state(rank)]

    def rank_positions(self, ranks: Ranks) -> list[Evidence]:
        """Where each local rank stands, as its hook says."""
        seen = []
        for rank in ranks.ranks.values():
            state = self._states.state(rank.rank) if self._states is not None else None
            if rank.alive and state is not None:
                span = f" ({state.detail})" if state.detail else ""
                text = (
                    f"rank {rank.rank} on {self._node} is in phase {state.phase}{span} since "
                    f"{max(0.0, time.time() - state.changed):.1f} s, {state.step} its last step"
                )
                seen.append(Evidence(node=self._node, at=state.changed, source="hook", text=text))
        return seen


def _problem(text: str) -> None:
    """What keeps logs from being read, or a step from being found in them."""
    logger.warning(text, extra=counted(text))


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
