"""What ranks wrote, kept in the run's folder when their attempt has ended.

RUN/logs/aNNNN/ has rankN.log, the end of what that rank wrote or all of it, and index.json, which
says what is there and what could not be had. Storage may hang: a child writes it
(`python -m supervisor.run.kept_logs FOLDER`, a Parcel on standard input), whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from supervisor.core import names
from supervisor.core.errors import UserError

ATTEMPTS = 10  # the newest that are kept, as on the nodes
MAX_BYTES = 256_000_000  # of all that is kept of a run; the newest attempt stays in any case
INDEX = "index.json"
DEADLINE_S = 6.0  # for the child that writes


class KeptRank(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rank's log."""

    node: str
    bytes: int = 0
    whole: bool = False  # from its beginning on, but for a hole in the middle where it was long
    how: str = ""  # it ended badly, and first: how
    missing: str = ""  # why its log could not be had


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of an attempt."""

    attempt: int
    at: float  # seconds since the epoch
    ranks: dict[int, KeptRank]
    first: tuple[int, ...] = ()  # the ranks that ended badly, as far as they came first


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt's logs on their way to the child that writes them."""

    index: Index
    logs: dict[int, bytes]  # by rank


def log_of(home: Path, attempt: int, rank: int) -> Path:
    return home / names.attempt(attempt) / f"rank{rank}.log"


def write(home: Path, parcel: Parcel) -> None:
    """Put an attempt's logs in place, and remove those that are too old. Raises OSError.

    What is kept of it already goes for what is better alone: its nodes may be gone meanwhile.
    """
    home.mkdir(mode=0o700, exist_ok=True)
    parcel = _with_kept(home, parcel)
    older = [number for number in attempts(home) if number < parcel.index.attempt]
    while True:
        try:
            _put(home, parcel)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not older:
                raise
            shutil.rmtree(home / names.attempt(older.pop(0)))  # the newest tells most
        else:
            break
    _prune(home)


def _put(home: Path, parcel: Parcel) -> None:
    """Whole or not at all. Raises OSError."""
    final = home / names.attempt(parcel.index.attempt)
    part = home / f".{final.name}.{os.urandom(4).hex()}"
    part.mkdir(mode=0o700)
    try:
        for rank, data in parcel.logs.items():
            _new(part / f"rank{rank}.log", data)
        _new(part / INDEX, msgspec.json.encode(parcel.index))
        if final.exists():  # an engine before this one has asked for them
            shutil.rmtree(final)
        part.rename(final)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _with_kept(home: Path, parcel: Parcel) -> Parcel:
    """The parcel, with what is kept already of ranks whose logs could not be had now."""
    new, ranks, logs = parcel.index, {}, {}
    try:
        old = index_of(home, new.attempt)
    except (OSError, UserError):
        return parcel
    for rank, one in old.ranks.items():
        if not one.missing and (rank not in new.ranks or new.ranks[rank].missing):
            path = log_of(home, new.attempt, rank)
            ranks[rank], logs[rank] = one, path.read_bytes() if path.exists() else b""
    index = msgspec.structs.replace(new, ranks={**new.ranks, **ranks}, first=new.first or old.first)
    return Parcel(index=index, logs={**parcel.logs, **logs})


def _new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)


def _prune(home: Path) -> None:
    """Remove the oldest attempts beyond the bounds, and what a child that was killed left."""
    total = 0
    for place, number in enumerate(reversed(attempts(home))):
        folder = home / names.attempt(number)
        total += sum(path.stat().st_size for path in folder.iterdir())
        if place and (place >= ATTEMPTS or total > MAX_BYTES):
            shutil.rmtree(folder, ignore_errors=True)
    for path in home.glob(".a*"):
        shutil.rmtree(path, ignore_errors=True)


def attempts(home: Path) -> list[int]:
    """The attempts that are kept, in order."""
    if not home.is_dir():
        return []
    found = (names.attempt_of(path.name) for path in home.iterdir())
    return sorted(number for number in found if number is not None)


def index_of(home: Path, attempt: int) -> Index:
    """What is kept of an attempt. Raises UserError where it is damaged, OSError."""
    path = home / names.attempt(attempt) / INDEX
    try:
        return msgspec.json.decode(path.read_bytes(), type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); the logs lie beside it") from None


def indexes(home: Path) -> Mapping[int, Index]:
    """By attempt, in order. Raises UserError, OSError."""
    return {number: index_of(home, number) for number in attempts(home)}


if __name__ == "__main__":
    write(Path(sys.argv[1]), msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Parcel))
