"""A run's journal: events and the actions they led to, one checksummed JSON line each.

A line is on disk before its actions are done. The run is what folding the events gives.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from supervisor.core.actions import Action
from supervisor.core.errors import UserError
from supervisor.core.events import Event
from supervisor.core.machine import step
from supervisor.core.types import Run
from supervisor.wire import WireError, action_from, event_from, plain


class JournalError(UserError):
    """The journal is damaged where no crash can have damaged it."""


class Busy(UserError):
    """Another engine holds the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line."""

    n: int
    epoch: int
    event: Event
    actions: tuple[Action, ...]


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


def _parse(line: bytes) -> Record | None:
    """The record in a line, or None where the line is damaged.

    Raises WireError where the line is whole and means nothing to this superv.
    """
    prefix = len(b'{"crc":"00000000",')
    body = b"{" + line[prefix:]
    if line[:prefix] != b'{"crc":"%08x",' % zlib.crc32(body):
        return None
    data: dict[str, Any] = msgspec.json.decode(body)
    return Record(
        n=data["n"],
        epoch=data["epoch"],
        event=event_from(data["event"]),
        actions=tuple(action_from(action) for action in data["actions"]),
    )


def read(path: Path) -> Iterator[Record]:
    """The records of a journal; a torn last line is left out.

    Raises JournalError naming the line where anything before the end is damaged, or was written by
    a superv that knows more than this one.
    """
    number = 0
    with path.open("rb") as lines:
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
            yield record


def rebuild(records: Iterator[Record]) -> Run | None:
    """Fold a journal into the run; None where it is empty."""
    run: Run | None = None
    for record in records:
        run, _ = step(run, record.event)
    return run


class Journal:
    """A journal open for writing; only one process at a time can have it.

    Raises Busy where another process has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Busy(f"{path}: another engine has this run") from None
        self._n = 0
        self.epoch = 0
        self.run: Run | None = None
        try:
            self._load()
        except BaseException:
            os.close(self._fd)  # with it goes the lock
            raise

    def _load(self) -> None:
        for record in read(self.path):
            self._n, self.epoch = record.n, max(self.epoch, record.epoch)
            self.run, _ = step(self.run, record.event)
        size = os.fstat(self._fd).st_size
        self.torn = size - self._good_bytes()  # bytes of a half-written last line, cut off now
        if self.torn:
            os.ftruncate(self._fd, size - self.torn)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # a new journal's name has to outlive a crash too
        finally:
            os.close(directory)

    def _good_bytes(self) -> int:
        """Length of the file up to and including its last good line."""
        length = 0
        with self.path.open("rb") as lines:
            for _ in range(self._n):
                length += len(lines.readline())
        return length

    def append(self, event: Event, actions: Sequence[Action], *, epoch: int) -> Record:
        """Write one record. On disk before this returns where there is anything to do about it."""
        self._n += 1
        record = Record(n=self._n, epoch=epoch, event=event, actions=tuple(actions))
        data = _line(record)
        written = os.write(self._fd, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, "No space left on device (a line was cut)")
        if actions:
            os.fdatasync(self._fd)
        return record

    def close(self) -> None:
        os.close(self._fd)
