"""Follows the ranks' log files, pushed by inotify; finds their lines; keeps them capped."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import re
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_libc = ctypes.CDLL(None, use_errno=True)
IN_MODIFY = 0x2
FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x1 | 0x2
HEAD = 1024 * 1024  # bytes at the beginning of a capped log that are kept
TAIL_LINES = 40
MAX_LINE = 4096  # a longer line is cut
_ANSI = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


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

    `on_line(rank, line)` is called for every whole line, without ANSI colours.
    """

    def __init__(self, cap: int, on_line: Callable[[int, str], None]) -> None:
        self._cap = cap
        self._on_line = on_line
        self._logs: dict[int, Log] = {}  # by inotify watch
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self.problem = ""  # why a log can't be capped, if so

    def add(self, rank: int, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        watch = _libc.inotify_add_watch(self.fd, os.fsencode(path), IN_MODIFY)
        if watch < 0:
            raise OSError(ctypes.get_errno(), f"inotify_add_watch {path}")
        log = Log(rank=rank, path=path, fd=fd)
        self._logs[watch] = log
        self._catch_up(log)

    def ready(self) -> None:
        """The inotify descriptor is readable."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        touched: set[int] = set()
        while data:
            watch, _, _, length = struct.unpack_from("iIII", data)
            touched.add(watch)
            data = data[16 + length :]
        for watch in touched:
            if watch in self._logs:
                self._catch_up(self._logs[watch])

    def drain(self, rank: int) -> list[str]:
        """Read what a rank wrote last; returns its last lines."""
        for log in self._logs.values():
            if log.rank == rank:
                self._catch_up(log)
                if log.rest:
                    self._line(log, log.rest)
                    log.rest = b""
                return list(log.lines)
        return []

    def _catch_up(self, log: Log) -> None:
        size = os.fstat(log.fd).st_size
        if size - log.read_to > self._cap:  # fell far behind a flood: the middle is skipped
            log.read_to, log.rest = size - self._cap // 2, b""
        while log.read_to < size:
            data = os.pread(log.fd, 1024 * 1024, log.read_to)
            if not data:
                break
            log.read_to += len(data)
            *whole, log.rest = (log.rest + data).split(b"\n")
            for line in whole:
                self._line(log, line)
            if len(log.rest) > MAX_LINE:
                log.rest = log.rest[:MAX_LINE]
        self._trim(log, size)

    def _line(self, log: Log, raw: bytes) -> None:
        text = _ANSI.sub(b"", raw[:MAX_LINE]).decode(errors="replace").rstrip("\r")
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
            self.problem = f"{log.path} can't be capped: {errno.errorcode.get(ctypes.get_errno())}"
        log.punched_to = until

    def close(self) -> None:
        for log in self._logs.values():
            os.close(log.fd)
        os.close(self.fd)


def read_chunk(path: str, offset: int, limit: int) -> tuple[int, bytes]:
    """Up to `limit` bytes of a log from `offset` (negative: from the end), holes skipped.

    Returns where the data really begins, and the data. Raises FileNotFoundError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        if start < size:
            start = os.lseek(fd, start, os.SEEK_DATA)
            hole = os.lseek(fd, start, os.SEEK_HOLE)
            limit = min(limit, hole - start)
        return start, os.pread(fd, limit, start)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size, b""
        raise
    finally:
        os.close(fd)
