"""Write and read shards as a checkpoint does: several writers at once, past the client's cache.

A shard has no name while it is written: it is unlinked as soon as it is open (NFS renames it to
.nfsXXXX until it is closed), so that it goes with this process however that ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from healthchecks.probes import shared_files

PAGE = 4096
_STAMP = 3  # bytes that differ in every page of every block; more would cost a fast link its speed


@dataclass(slots=True, kw_only=True)
class Side:
    """What was moved one way, by all writers together."""

    began: float = 0.0  # seconds since the epoch
    took_s: float = 0.0
    moved: int = 0  # bytes
    blocks: list[float] = field(default_factory=list)  # seconds that each block took

    @property
    def rate(self) -> float:
        """B/s."""
        return self.moved / self.took_s if self.took_s > 0 else 0.0

    def percentile(self, share: float) -> float:
        """Seconds; of the blocks, nearest rank."""
        ordered = sorted(self.blocks)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Shards:
    """Open, nameless files of one node in one directory. Raises OSError."""

    def __init__(self, folder: Path, mount: Path, node: str, count: int) -> None:
        """Raises Unknown where the directory is a link, or not on this mount."""
        self.direct = True
        self._fds: list[int] = []
        try:
            with shared_files.entered(folder, mount) as there:
                for number in range(count):
                    self._fds.append(self._open(there, f".superv-shard-{node}-{number}"))
        except BaseException:
            self.close()
            raise

    def _open(self, folder: int, name: str) -> int:
        if self.direct:
            try:
                return _nameless(folder, name, os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.direct = False  # this file system can't; it is said in what was seen
        return _nameless(folder, name, 0)

    def close(self) -> None:
        while self._fds:
            with suppress(OSError):
                os.close(self._fds.pop())

    def write(self, size: int, block: int, until: float) -> Side:
        """Write up to `size` bytes into each, then sync. `until`: monotonic, begin no block later.

        Every page is different, so that storage that finds duplicates stores all of it.
        """
        noise = os.urandom(block)

        def one(fd: int, blocks: list[float]) -> int:
            with mmap.mmap(-1, block) as buffer:
                buffer[:] = noise
                moved = 0
                while moved < size and time.monotonic() < until:
                    for offset in range(_STAMP):
                        buffer[offset::PAGE] = os.urandom(block // PAGE)
                    began = time.monotonic()
                    moved += os.pwritev(fd, [buffer], moved)
                    blocks.append(time.monotonic() - began)
                os.fsync(fd)
            return moved

        return self._all(one)

    def read(self, block: int, until: float) -> Side:
        """Read what was written, past this node's cache."""

        def one(fd: int, blocks: list[float]) -> int:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with mmap.mmap(-1, block) as buffer:
                moved = 0
                while time.monotonic() < until:
                    began = time.monotonic()
                    got = os.preadv(fd, [buffer], moved)
                    if got == 0:
                        break
                    moved += got
                    blocks.append(time.monotonic() - began)
            return moved

        return self._all(one)

    def _all(self, one: Callable[[int, list[float]], int]) -> Side:
        """Do it with every file at once, each in a thread of its own. Raises the first OSError."""
        side = Side(began=time.time())
        moved = [0] * len(self._fds)
        blocks: list[list[float]] = [[] for _ in self._fds]
        errors: list[OSError] = []

        def work(number: int, fd: int) -> None:
            try:
                moved[number] = one(fd, blocks[number])
            except OSError as error:
                errors.append(error)

        began = time.monotonic()
        threads = [
            threading.Thread(target=work, args=(number, fd), daemon=True)
            for number, fd in enumerate(self._fds)
        ]
        for thread in threads:
            thread.start()
        _join(threads)
        side.took_s = time.monotonic() - began
        if errors:
            raise errors[0]
        side.moved = sum(moved)
        side.blocks = [took for taken in blocks for took in taken]
        return side


def _nameless(folder: int, name: str, direct: int) -> int:
    """A new file without a name, that takes a page."""
    fd, name = shared_files.make(folder, name, direct)
    try:
        os.unlink(name, dir_fd=folder)
        with mmap.mmap(-1, PAGE) as page:
            os.pwritev(fd, [page], 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _join(threads: Sequence[threading.Thread]) -> None:
    """A signal is to be seen at once, and join without a limit would not let it through."""
    for thread in threads:
        while thread.is_alive():
            thread.join(0.5)
