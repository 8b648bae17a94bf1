"""What a node's ranks tell of themselves: by their hooks' shared memory, and by their log lines."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

from supervisor.agent.notes import Notes
from supervisor.agent.ranks import Ranks, attempt_dir, log_file, state_file
from supervisor.agent.states import States
from supervisor.agent.tail import Tail
from supervisor.core.events import Event, Marks, Resumed
from supervisor.core.types import Evidence
from supervisor.wire import Job

MAX_STEP = 1 << 53  # a number beyond it is none that a trainer counts to


class Progress:
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
        note: Notes,
    ) -> None:
        self._dir, self._node = node_dir, node
        self._report, self._on_step, self._note = report, on_step, note
        self._ranks: Ranks | None = None
        self._tail: Tail | None = None
        self._states: States | None = None
        self._marks_told = False
        self._resumed_told = False
        self.step: int | None = None
        self.loss: float | None = None
        self.at = time.monotonic()  # of the last new step, or of the attempt's beginning

    def begin(self, ranks: Ranks, job: Job, first: int) -> None:
        """Another attempt; its local ranks are numbered from `first` on. Raises OSError."""
        self._ranks = ranks
        self.step = self.loss = None
        self._marks_told = self._resumed_told = False
        self.at = time.monotonic()
        if not job.hook:
            return
        if self._states is None:
            self._states = States(self._dir / "bell", self._state_told)
            asyncio.get_running_loop().add_reader(self._states.fd, self._states.ready)
        self._states.forget()
        attempt_dir(self._dir, ranks.attempt).mkdir(mode=0o700, exist_ok=True)
        for rank in range(first, first + job.ranks_per_node):
            self._states.follow(rank, state_file(self._dir, ranks.attempt, rank))

    # --- log lines ----------------------------------------------------------------------------

    def follow(self, ranks: Ranks, job: Job) -> None:
        """Read the ranks' logs from now on."""
        loop = asyncio.get_running_loop()
        if self._tail is not None:
            if self._tail.fd >= 0:
                loop.remove_reader(self._tail.fd)
            self._tail.close()
        self._tail = Tail(job.log_cap, self._reader(ranks, job), self._note.once)
        for rank in ranks.ranks:
            try:
                self._tail.add(rank, str(log_file(self._dir, ranks.attempt, rank)))
            except OSError as error:  # the rank runs all the same
                self._note.once(f"log of rank {rank} can't be read: {error}")
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

    def last_lines(self, rank: int) -> list[str]:
        return self._tail.drain(rank) if self._tail is not None else []

    def _reader(self, ranks: Ranks, job: Job) -> Callable[[int, str], None]:
        stepped = re.compile(job.step_pattern)
        resumed = re.compile(job.resumed_pattern) if job.resumed_pattern else None

        def read(rank: int, line: str) -> None:
            if found := stepped.search(line):
                groups = found.groupdict()
                if (step := _step(groups.get("step"))) is None:
                    self._note.once(f"progress.step: no step in {line[:200]!r}")
                else:
                    self._stepped(step, groups.get("loss"))
            elif resumed is not None and not self._resumed_told and (found := resumed.search(line)):
                groups = found.groupdict()
                step, after = _step(groups.get("step")), _step(groups.get("next"))
                if step is None and after:
                    step = after - 1
                if step is None:
                    self._note.once(f"progress.resumed: no step in {line[:200]!r}")
                else:
                    self._tell_resumed(ranks.attempt, step)

        return read

    def _stepped(self, step: int, loss: str | None) -> None:
        value = _number(loss)
        if value is not None and value != -1.0:  # what pipeline stages without a loss print
            self.loss = value
        if self.step is None or step > self.step:
            self.step = step
            self.at = time.monotonic()
            self._on_step()

    def _tell_resumed(self, attempt: int, step: int) -> None:
        self._resumed_told = True
        self._report(Resumed(at=time.time(), attempt=attempt, node=self._node, step=step))

    # --- hooks --------------------------------------------------------------------------------

    def _state_told(self, rank: int) -> None:
        """A hook told a new step or phase of its rank."""
        assert self._states is not None
        state, ranks = self._states.state(rank), self._ranks
        if state is None or ranks is None:
            return
        if state.resumed >= 0 and not self._resumed_told:
            self._tell_resumed(ranks.attempt, state.resumed)
        if state.step > 0:
            self._stepped(state.step, None)
        if state.first_step and not self._marks_told and rank == min(ranks.ranks, default=-1):
            self._marks_told = True
            times = {**state.first, "first step": state.first_step}
            told = tuple((name, at) for name, at in times.items() if at)
            self._report(Marks(at=time.time(), attempt=ranks.attempt, node=self._node, marks=told))

    def phase(self) -> str:
        """Of the local rank that is furthest behind, as its hook told."""
        if self._states is None or self._ranks is None:
            return ""
        states = [s for rank in self._ranks.ranks if (s := self._states.state(rank)) is not None]
        return min(states, key=lambda s: (s.step, s.changed)).phase if states else ""

    def hooked(self, ranks: Ranks) -> list[int]:
        """Living ranks whose hook has told something."""
        told = self._states
        return [r.rank for r in ranks.ranks.values() if r.alive and told and told.state(r.rank)]

    def standing(self, ranks: Ranks) -> list[Evidence]:
        """Where each local rank stands, as its hook told."""
        told = []
        for rank in ranks.ranks.values():
            state = self._states.state(rank.rank) if self._states is not None else None
            if rank.alive and state is not None:
                text = (
                    f"rank {rank.rank} on {self._node} is in phase {state.phase} since "
                    f"{max(0.0, time.time() - state.changed):.1f} s, {state.step} its last step"
                )
                told.append(Evidence(node=self._node, at=state.changed, source="hook", text=text))
        return told


def _step(text: str | None) -> int | None:
    """What a user's pattern captured may be anything."""
    if text is None or not text.isdecimal() or len(text) > 16:
        return None
    return number if (number := int(text)) < MAX_STEP else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
