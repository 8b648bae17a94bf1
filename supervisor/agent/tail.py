"""Follows the ranks' log files, pushed by inotify; finds their lines; keeps them capped."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
IN_MODIFY = 0x2
FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x1 | 0x2
HEAD = 1024 * 1024  # bytes at the beginning of a capped log that are kept
PIECE = 256 * 1024  # bytes read of one log before others have their turn
BEHIND = 8 * 1024 * 1024  # a reader further behind than this skips to half of it
TAIL_LINES = 40
MAX_LINE = 4096  # bytes; a longer line is cut
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
_ENDS = re.compile(rb"[\r\n]+")  # progress bars end their lines with \r


@dataclass(slots=True)
class Log:
    """One rank's log file as far as it was read."""

    rank: int
    path: str
    fd: int
    read_to: int = 0
    punched_to: int = HEAD
    rest: bytes = b""  # the beginning of a line whose end has not come
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


class Tail:
    """Follows the logs of one attempt's local ranks.

    `on_line(rank, line)` is called for every whole line that is not empty, without ANSI colours.
    `problem(text)` is told, once each, what keeps a log from being pushed or capped.
    """

    def __init__(
        self, cap: int, on_line: Callable[[int, str], None], problem: Callable[[str], None]
    ) -> None:
        self._cap = cap
        self._on_line = on_line
        self._problem = problem
        self._logs: dict[int, Log] = {}  # by rank
        self._watches: dict[int, Log] = {}  # by inotify watch
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:  # this user's instances are used up: `catch_up` once a second still works
            problem(f"logs are read once a second: no inotify ({_errno()})")

    def add(self, rank: int, path: str) -> None:
        """Raises OSError where the log can't be opened."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        log = self._logs[rank] = Log(rank=rank, path=path, fd=fd)
        if self.fd < 0:
            return
        watch = _libc.inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY)
        if watch < 0:
            self._problem(f"{path} is read once a second: no inotify watch ({_errno()})")
        else:
            self._watches[watch] = log

    def ready(self) -> bool:
        """The inotify descriptor is readable; returns whether there is more to read at once."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        touched: set[int] = set()
        while data:
            watch, _, _, length = struct.unpack_from("iIII", data)
            touched.add(watch)
            data = data[16 + length :]
        if -1 in touched:  # IN_Q_OVERFLOW: changes were lost, of whichever log
            return self.catch_up()
        return any([self._read(self._watches[w]) for w in touched if w in self._watches])

    def catch_up(self) -> bool:
        """Read a piece of every log; returns whether there is more."""
        return any([self._read(log) for log in self._logs.values()])

    def path_of(self, rank: int, path: str) -> str:
        """`path`, or the log that is open here where nothing stands there any more."""
        log = self._logs.get(rank)
        return path if log is None or Path(path).exists() else f"/proc/self/fd/{log.fd}"

    def drain(self, rank: int) -> list[str]:
        """Read what a rank wrote last; returns its last lines."""
        log = self._logs.get(rank)
        if log is None:
            return []
        while self._read(log):
            pass
        if log.rest:
            self._line(log, log.rest)
            log.rest = b""
        return list(log.lines)

    def _read(self, log: Log) -> bool:
        """Read a piece of a log; returns whether there is more."""
        size = os.fstat(log.fd).st_size
        if size - log.read_to > BEHIND:  # a flood, or an agent that has just come: skip the middle
            log.read_to, log.rest = size - BEHIND // 2, b""
        data = os.pread(log.fd, min(PIECE, size - log.read_to), log.read_to)
        log.read_to += len(data)
        *whole, log.rest = _ENDS.split(log.rest + data)
        log.rest = log.rest[: MAX_LINE + 1]
        for line in whole:
            if line:
                self._line(log, line)
        self._trim(log, size)
        return bool(data) and log.read_to < size

    def _line(self, log: Log, raw: bytes) -> None:
        text = _ANSI.sub(b"", raw[:MAX_LINE]).decode(errors="replace")
        log.lines.append(text)
        self._on_line(log.rank, text)

    def _trim(self, log: Log, size: int) -> None:
        """Give the middle of a log that is over its cap back to the file system."""
        if size - log.punched_to <= self._cap:
            return
        until = size - self._cap // 2
        done = _libc.fallocate(
            log.fd,
            FALLOC_KEEP_SIZE_PUNCH_HOLE,
            ctypes.c_long(log.punched_to),
            ctypes.c_long(until - log.punched_to),
        )
        if done != 0:
            self._problem(f"{log.path} grows without limit: it can't be capped ({_errno()})")
        log.punched_to = until

    def close(self) -> None:
        for log in self._logs.values():
            os.close(log.fd)
        if self.fd >= 0:
            os.close(self.fd)


def _errno() -> str:
    return os.strerror(ctypes.get_errno())


def read_chunk(path: str, offset: int, limit: int) -> tuple[int, bytes]:
    """Up to `limit` bytes of a log from `offset` (negative: from the end), holes skipped.

    Returns where the data really begins, and the data. Raises FileNotFoundError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        if start < size:
            try:
                start = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return size, b""  # nothing but a hole up to the end
            limit = min(limit, os.lseek(fd, start, os.SEEK_HOLE) - start)
        return start, os.pread(fd, max(0, limit), start)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
