"""An event loop whose time passes only when nothing is left to do: waiting costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

EPOCH = 1_700_000_000.0  # what the simulated clocks say at the beginning, seconds since 1970


class NothingHappensError(Exception):
    """Nobody waits for a time, and nobody else can wake them."""


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop over a selector that never waits."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed = 0.0
        self._selector = self
        self.set_task_factory(_owned_task)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._elapsed

    def select(self, timeout: float | None) -> tuple[()]:
        """What a selector does while it waits: here the next timer's time comes at once."""
        if timeout is None:
            raise NothingHappensError
        if timeout > 0:
            self._elapsed = self._scheduled[0].when()  # type: ignore[attr-defined]
        return ()

    def _process_events(self, events: tuple[()]) -> None:
        """There are no descriptors."""

    def _write_to_self(self) -> None:
        """Nobody is asleep."""

    def pass_over(self, until: float) -> None:
        """Let time pass in which nothing is done; timers of that time are due at once then."""
        self._elapsed = max(self._elapsed, until)


# Whose tasks are being made: a process of the simulated world, which can be killed.
OWNER: ContextVar[set[asyncio.Task[Any]] | None] = ContextVar("OWNER", default=None)


def _owned_task(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any
) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, **more)
    owner = OWNER.get()
    if owner is not None:
        owner.add(task)
        task.add_done_callback(owner.discard)
    return task


def owned(owner: set[asyncio.Task[Any]], begin: Callable[[], None]) -> None:
    """Call a function; the tasks that come of it, and theirs, are the owner's."""
    token = OWNER.set(owner)
    try:
        begin()
    finally:
        OWNER.reset(token)
