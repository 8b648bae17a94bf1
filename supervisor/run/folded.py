"""What a journal folds into, kept beside it: a journal of months opens in a second.

The journal is the truth, and this is never needed. It counts where this very code wrote it, it is
whole, and the journal begins with the bytes that it was folded from; else all is folded again.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import msgspec

from supervisor import core, signatures
from supervisor.core.actions import ACTIONS
from supervisor.core.persistent import Names, PersistentSet
from supervisor.core.types import Evidence, EvidenceLog, Exits, Node, Orders, Pool, RankExit, Run
from supervisor.host import private

FORMAT = 1
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A run, and the part of a journal that it comes of."""

    run: Run | None = None
    n: int = 0  # records
    epoch: int = 0
    length: int = 0  # bytes
    crc: int = 0  # of these bytes, CRC-32
    newest_at: float = 0.0  # no event of them is later


class _Header(msgspec.Struct, frozen=True):
    """The first line; the run follows."""

    format: int
    code: str
    n: int
    epoch: int
    length: int
    crc: int
    newest_at: float
    size: int  # of what follows, in bytes
    check: str  # … and its SHA-256


def path_of(journal: Path) -> Path:
    return journal.with_suffix(".folded")


def write(journal: Path, folded: Folded) -> int:
    """Keep it; returns how large it is. Raises ValueError where it could not be read, OSError."""
    body = msgspec.json.encode(folded.run, enc_hook=_plain)
    if _run(body) != folded.run:
        raise ValueError("the run does not read as it was written")
    header = _Header(
        format=FORMAT,
        code=code(),
        n=folded.n,
        epoch=folded.epoch,
        length=folded.length,
        crc=folded.crc,
        newest_at=folded.newest_at,
        size=len(body),
        check=hashlib.sha256(body).hexdigest(),
    )
    private.write(path_of(journal), msgspec.json.encode(header) + b"\n" + body)
    return len(body)


def read(journal: Path) -> Folded:
    """What was kept of the journal; the beginning of it where nothing was, or does not count.

    Raises StaleError, which says why it does not count.
    """
    try:
        first, _, body = path_of(journal).read_bytes().partition(b"\n")
    except FileNotFoundError:
        return Folded()
    except OSError as error:
        raise StaleError(f"can't be read: {error.strerror or error}") from None
    try:
        header = msgspec.json.decode(first, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise StaleError("is damaged") from None
    if header.format != FORMAT or not header.code or header.code != code():
        raise StaleError("was written by another version of superv")
    if len(body) != header.size or hashlib.sha256(body).hexdigest() != header.check:
        raise StaleError("is damaged")
    if not _begins_with(journal, header.length, header.crc):
        raise StaleError("belongs to other lines than the journal's")
    try:
        run = _run(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError) as error:
        raise StaleError(f"means nothing to this superv: {error}") from None
    return Folded(
        run=run,
        n=header.n,
        epoch=header.epoch,
        length=header.length,
        crc=header.crc,
        newest_at=header.newest_at,
    )


class StaleError(Exception):
    """What was kept does not count; the text says why."""


def _begins_with(journal: Path, length: int, crc: int) -> bool:
    """Whether the journal begins with so many bytes of that checksum."""
    found, left = 0, length
    with journal.open("rb") as lines:
        while left > 0:
            data = lines.read(min(left, CHUNK))
            if not data:
                return False
            found, left = zlib.crc32(data, found), left - len(data)
    return found == crc


@functools.cache
def code() -> str:
    """Names the code that folds: another one may fold the same events into something else."""
    digest = hashlib.sha256()
    sources = sorted(Path(core.__path__[0]).glob("*.py"))
    known = sorted(Path(signatures.__path__[0]).glob("*.yaml"))
    for source in (*sources, *known, Path(__file__)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest() if sources else ""


# --- a run as JSON --------------------------------------------------------------------------------


def _run(body: bytes) -> Run:
    return msgspec.json.decode(body, type=Run, dec_hook=_read)


def _plain(value: Any) -> Any:
    if isinstance(value, Orders):
        return [[type(action).__name__, action] for action in value.values()]
    if isinstance(value, Pool | Exits):
        return list(value.values())
    return list(value)  # a set or a list


def _read(kind: Any, data: Any) -> Any:
    return _READERS[get_origin(kind) or kind](data)


_READERS: dict[Any, Callable[[Any], Any]] = {
    Names: Names,
    PersistentSet: PersistentSet,
    EvidenceLog: lambda data: EvidenceLog(msgspec.convert(data, list[Evidence])),
    Exits: lambda data: Exits((one.rank, one) for one in msgspec.convert(data, list[RankExit])),
    Orders: lambda data: Orders(
        (one.key, one) for one in (msgspec.convert(value, ACTIONS[kind]) for kind, value in data)
    ),
    Pool: lambda data: Pool((one.name, one) for one in msgspec.convert(data, list[Node])),
}
