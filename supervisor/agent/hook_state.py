"""Reads what hooks say of their ranks: shared memory, with a datagram when it changed."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from supervisor.agent.starter import MAGIC, MORE, PHASES, STATE


@dataclass(frozen=True, slots=True, kw_only=True)
class HookState:
    """A rank as its hook said last. Times are the node's clock; 0 where it was not reached."""

    phase: str
    step: int
    resumed: int  # the step it resumed from; -1 until it knows
    changed: float
    first: dict[str, float]  # when each phase was entered first
    first_step: float  # when its first step was done
    detail: str = ""  # the span within the phase, where the trainer tells
    trouble: str = ""  # what is amiss with the hook itself
    target: int = 0  # the step that training ends with


class HookStates:
    """The states of an attempt's local ranks; `on_change(rank)` is called when one has changed."""

    def __init__(self, notify_socket: Path, on_change: Callable[[int], None]) -> None:
        self._on_change = on_change
        self._path = notify_socket
        self._maps: dict[int, mmap.mmap] = {}
        self._paths: dict[int, Path] = {}
        self._before: dict[int, mmap.mmap] = {}  # of a file that was removed under its rank
        notify_socket.unlink(missing_ok=True)
        self._notify_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify_socket.setblocking(False)
        # Through a descriptor: a socket's path has 107 bytes, and folders may lie deep.
        folder = os.open(notify_socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._notify_socket.bind(f"/proc/self/fd/{folder}/{notify_socket.name}")
            notify_socket.chmod(0o600)
        finally:
            os.close(folder)
        self.fd = self._notify_socket.fileno()

    def follow(self, rank: int, path: Path) -> None:
        """Make the file that the rank's hook will map, or open the one that it maps already."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, STATE.size + MORE.size)  # a rank of an older agent's writes less
            self._maps[rank] = mmap.mmap(fd, STATE.size + MORE.size, prot=mmap.PROT_READ)
            self._paths[rank] = path
        finally:
            os.close(fd)

    @property
    def gone(self) -> bool:
        """Whether somebody has removed the socket: hooks can't be heard."""
        return not self._path.exists()

    def taken_from(self, before: HookStates) -> None:
        """Go on with what another one followed. A rank finds its new file with its next word."""
        for rank, path in before._paths.items():
            self.follow(rank, path)
        self._before = {**before._before, **before._maps}
        before._maps, before._before = {}, {}

    def ready(self) -> None:
        """A datagram came: the descriptor is readable."""
        heard: set[int] = set()
        with contextlib.suppress(BlockingIOError, ValueError):  # whatever a rank wrote there
            while True:
                heard.add(int(self._notify_socket.recv(16)))
        for rank in heard & self._maps.keys():
            self._on_change(rank)

    def state(self, rank: int) -> HookState | None:
        """None while the hook has said nothing."""
        return _read(self._maps.get(rank)) or _read(self._before.get(rank))

    def close(self) -> None:
        self.forget()
        self._notify_socket.close()

    def forget(self) -> None:
        """Another attempt begins: its ranks have files of their own."""
        for memory in (*self._maps.values(), *self._before.values()):
            memory.close()
        self._maps.clear()
        self._before.clear()
        self._paths.clear()


def _read(memory: mmap.mmap | None) -> HookState | None:
    if memory is None:
        return None
    magic, phase, step, resumed, changed, *times = STATE.unpack(memory[: STATE.size])
    detail, trouble, target = MORE.unpack(memory[STATE.size :])
    if magic != MAGIC or phase >= len(PHASES):
        return None
    return HookState(
        phase=PHASES[phase],
        step=step,
        resumed=resumed,
        changed=changed,
        first=dict(zip(PHASES, times, strict=False)),
        first_step=times[len(PHASES)],
        detail=_text(detail),
        trouble=_text(trouble),
        target=target,
    )


def _text(field: bytes) -> str:
    text = field.rstrip(b"\0").decode(errors="ignore")  # a longer one was cut
    return "".join(c for c in text if c.isprintable())
