"""Reads what hooks tell of their ranks: shared memory, with a datagram when it changed."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from supervisor.agent.starter import MAGIC, PHASES, STATE


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A rank as its hook told last. Times are the node's clock; 0 where it was not reached."""

    phase: str
    step: int
    resumed: int  # the step it resumed from; -1 until it knows
    changed: float
    first: dict[str, float]  # when each phase was entered first
    first_step: float  # when its first step was done


class States:
    """The states of an attempt's local ranks; `on_change(rank)` is called when one was told."""

    def __init__(self, bell: Path, on_change: Callable[[int], None]) -> None:
        self._on_change = on_change
        self._maps: dict[int, mmap.mmap] = {}
        bell.unlink(missing_ok=True)
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.setblocking(False)
        self._bell.bind(str(bell))
        self.fd = self._bell.fileno()

    def follow(self, rank: int, path: Path) -> None:
        """Make the file that the rank's hook will map, or open the one that it maps already."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, STATE.size)
            self._maps[rank] = mmap.mmap(fd, STATE.size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def ready(self) -> None:
        """The bell's descriptor is readable."""
        told: set[int] = set()
        with contextlib.suppress(BlockingIOError, ValueError):  # whatever a rank wrote there
            while True:
                told.add(int(self._bell.recv(16)))
        for rank in told & self._maps.keys():
            self._on_change(rank)

    def state(self, rank: int) -> State | None:
        """None while the hook has told nothing."""
        memory = self._maps.get(rank)
        if memory is None:
            return None
        magic, phase, step, resumed, changed, *times = STATE.unpack(memory[:])
        if magic != MAGIC or phase >= len(PHASES):
            return None
        return State(
            phase=PHASES[phase],
            step=step,
            resumed=resumed,
            changed=changed,
            first=dict(zip(PHASES, times, strict=False)),
            first_step=times[len(PHASES)],
        )

    def close(self) -> None:
        self.forget()
        self._bell.close()

    def forget(self) -> None:
        """Another attempt begins: its ranks have files of their own."""
        for memory in self._maps.values():
            memory.close()
        self._maps.clear()
