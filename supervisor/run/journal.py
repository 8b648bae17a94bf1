"""A run's journal: events and the actions they led to, one checksummed JSON line each.

A line is on disk before its actions are done. The run is what folding the events gives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from supervisor.channel.wire import WireError, action_from, event_from, plain
from supervisor.core.actions import Action
from supervisor.core.errors import UserError
from supervisor.core.events import Event
from supervisor.core.machine import step
from supervisor.core.types import Run
from supervisor.run import folded
from supervisor.run.folded import Folded

logger = logging.getLogger(__name__)

KEEP_EVERY = 1000  # records; folding so many takes 0.05 s
KEEP_GROWTH = 4  # times what was kept last: no more than a fifth of what is written is that


class JournalError(UserError):
    """The journal is damaged where no crash can have damaged it."""


class LostJournalError(UserError):
    """A run whose journal does not tell it: gone, empty, damaged, or nobody may read it."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem, self.fix = problem, fix


class Busy(UserError):
    """Another engine holds the journal."""


class UnfitError(UserError):
    """What was to be journaled could not be read back: nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line."""

    n: int
    epoch: int
    event: Event
    actions: tuple[Action, ...]


class _Written(msgspec.Struct):
    """A record as JSON. Numbers in it are checked by what they are converted to."""

    n: int
    epoch: int
    event: dict[str, Any]
    actions: list[dict[str, Any]]


def _line(record: Record) -> bytes:
    body = msgspec.json.encode(
        {
            "n": record.n,
            "epoch": record.epoch,
            "event": plain(record.event),
            "actions": [plain(action) for action in record.actions],
        }
    )
    return b'{"crc":"%08x",' % zlib.crc32(body) + body[1:] + b"\n"


def _fit_line(record: Record) -> bytes:
    """The line of a record that can be read again. Raises UnfitError.

    Half a character of UTF-16, NaN in a field that needs a number, or an integer over 64 bits would
    be written here and stop every engine after this one.
    """
    try:
        line = _line(record)
        if _parse(line[:-1]) is not None:
            return line
        why = "it does not read as it was written"
    except (ValueError, TypeError, OverflowError, RecursionError, WireError) as error:
        why = str(error)
    raise UnfitError(f"{type(record.event).__name__} can't be journaled: {why}")


def _parse(line: bytes) -> Record | None:
    """The record in a line, or None where the line is damaged.

    Raises WireError where the line is whole and means nothing to this superv.
    """
    prefix = len(b'{"crc":"00000000",')
    body = b"{" + line[prefix:]
    if line[:prefix] != b'{"crc":"%08x",' % zlib.crc32(body):
        return None
    try:
        data = msgspec.json.decode(body, type=_Written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a record: {error}") from None
    return Record(
        n=data.n,
        epoch=data.epoch,
        event=event_from(data.event),
        actions=tuple(action_from(action) for action in data.actions),
    )


def read(path: Path) -> Iterator[Record]:
    """The records of a journal; a torn last line is left out.

    Raises JournalError naming the line where anything before the end is damaged, or was written by
    a superv that knows more than this one.
    """
    return (record for record, _ in _lines(path, Folded()))


def _lines(path: Path, start: Folded) -> Iterator[tuple[Record, bytes]]:
    """The records after those that are folded already, each with its line."""
    number = start.n
    with path.open("rb") as lines:
        lines.seek(start.length)
        for line in lines:
            try:
                record = _parse(line[:-1]) if line.endswith(b"\n") else None
            except WireError as error:
                raise JournalError(
                    f"{path}:{number + 1}: {error}; written by another superv; use that one"
                ) from None
            if record is None:
                if line.endswith(b"\n") and lines.read(1):
                    raise JournalError(f"{path}:{number + 1}: damaged line; its checksum is wrong")
                return
            number += 1
            if record.n != number:
                raise JournalError(
                    f"{path}:{number}: line {record.n} stands here; lines are missing"
                )
            yield record, line


def fold(path: Path) -> Folded:
    """The run as the journal tells it. Raises JournalError, OSError."""
    state = _kept(path)
    run, n, epoch, length, crc = state.run, state.n, state.epoch, state.length, state.crc
    newest_at = state.newest_at
    for record, line in _lines(path, state):
        run = _fold(run, record)
        n, epoch = record.n, max(epoch, record.epoch)
        newest_at = max(newest_at, record.event.at)
        length, crc = length + len(line), zlib.crc32(line, crc)
    return Folded(run=run, n=n, epoch=epoch, length=length, crc=crc, newest_at=newest_at)


def _kept(path: Path) -> Folded:
    """What was kept of the journal, where it counts; else its beginning. Raises OSError."""
    try:
        return folded.read(path)
    except folded.StaleError as why:
        logger.info(f"{folded.path_of(path)} {why}: the whole journal is folded again")
        return Folded()


def rebuild(records: Iterator[Record]) -> Run | None:
    """Fold a journal into the run; None where it is empty. Raises JournalError."""
    run: Run | None = None
    for record in records:
        run = _fold(run, record)
    return run


def readable(path: Path) -> tuple[Run | None, int]:
    """The run as far as a damaged journal tells it, and the highest epoch in there."""
    run, epoch = None, 0
    with contextlib.suppress(JournalError, OSError):
        state = _kept(path)
        run, epoch = state.run, state.epoch
        for record, _ in _lines(path, state):
            run, epoch = _fold(run, record), max(epoch, record.epoch)
    return run, epoch


def _fold(run: Run | None, record: Record) -> Run | None:
    """The run after one more record. Raises JournalError where nothing can follow from it."""
    try:
        return step(run, record.event)[0]
    except Exception as error:
        what = f"record {record.n}, {type(record.event).__name__}"
        raise JournalError(
            f"{what}, does not follow from what stands before it ({type(error).__name__}); "
            "the journal was changed, or written by another superv"
        ) from error


class Disk:
    """What the journal's lines are put on."""

    def write(self, fd: int, data: bytes) -> int:
        """Append; returns how many bytes there was room for. Raises OSError."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """What was written outlives a power failure from here on. Raises OSError."""
        os.fdatasync(fd)


class Journal:
    """A journal open for writing; only one process at a time can have it.

    Raises Busy where another process has it.
    """

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Busy(f"{path}: another engine has this run") from None
        self._n = 0
        self._length = 0  # bytes of the good lines
        self._crc = 0  # of these
        self._kept = (0, 0, 0)  # what is kept of it: records, bytes of them, and its own size
        self.synced = True  # all records are on disk, and not in the system's memory alone
        self._spoilt = False  # a failed append may have left something behind them
        self.epoch = 0
        self.newest_at = 0.0  # no event is later
        self.run: Run | None = None
        try:
            self._load()
        except BaseException:
            os.close(self._fd)  # with it goes the lock
            raise

    def _load(self) -> None:
        state = fold(self.path)
        self.run, self._n, self.epoch = state.run, state.n, state.epoch
        self._length, self._crc, self.newest_at = state.length, state.crc, state.newest_at
        # bytes of a half-written last line, cut off now
        self.torn = os.fstat(self._fd).st_size - self._length
        if self.torn:
            self._cut()
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # a new journal's name has to outlive a crash too
        finally:
            os.close(directory)

    def append(
        self, event: Event, actions: Sequence[Action], *, epoch: int, run: Run | None = None
    ) -> Record:
        """Write one record. On disk before this returns where there is anything to do about it.

        `run` is what the journal folds into with it; at times that is kept, too.
        Raises UnfitError where it could not be read again, OSError where it can't be written.
        Either way the journal is as it was, and the next record follows the one before.
        """
        record = Record(n=self._n + 1, epoch=epoch, event=event, actions=tuple(actions))
        data = _fit_line(record)
        if self._spoilt:
            self._cut()
        try:
            if self._disk.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, "No space left on device (a line was cut)")
            if actions:
                self._disk.sync(self._fd)
        except BaseException:
            self._spoilt = True
            with contextlib.suppress(OSError):  # then the next append, or the next engine, does it
                self._cut()
            raise
        self._n, self._length = record.n, self._length + len(data)
        self._crc, self.epoch = zlib.crc32(data, self._crc), max(self.epoch, epoch)
        self.synced = bool(actions)
        self.newest_at = max(self.newest_at, event.at)
        if run is not None:
            self._keep(run)
        return record

    def _keep(self, run: Run) -> None:
        """Keep what the journal folds into, where it has grown enough to be worth that."""
        records, length, size = self._kept
        if self._n - records < KEEP_EVERY or self._length - length < KEEP_GROWTH * size:
            return
        state = Folded(
            run=run,
            n=self._n,
            epoch=self.epoch,
            length=self._length,
            crc=self._crc,
            newest_at=self.newest_at,
        )
        try:
            self.sync()  # what is kept must not know more than the journal
            size = folded.write(self.path, state)
        except (OSError, ValueError) as error:
            logger.warning(f"what the journal folds into can't be kept: {error}")
        self._kept = self._n, self._length, size

    def problem(self) -> str:
        """What has become of the file that nobody else should touch; empty: it is as it was."""
        try:
            there = self.path.stat()
        except OSError as error:
            return f"{self.path} is gone ({error.strerror})"
        ours = os.fstat(self._fd)
        if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            return f"{self.path} is another file than the one that the engine writes"
        if ours.st_size < self._length:
            return f"{self.path} was cut short"
        return ""

    def sync(self) -> None:
        """All records outlive a power failure from here on. Raises OSError."""
        if not self.synced:
            self._disk.sync(self._fd)
            self.synced = True

    def _cut(self) -> None:
        """Take what a failed append left off the end. Raises OSError."""
        os.ftruncate(self._fd, self._length)
        self._spoilt = False

    def close(self) -> None:
        os.close(self._fd)
