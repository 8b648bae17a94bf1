"""The shard files of a checkpoint: long enough, not blank, and, where that is asked, whole.

What a shard holds is known from its metadata: pieces, each of which torch.save wrote as a zip file
of its own, or an extension made something else of (torch/distributed/checkpoint/filesystem.py and
_extension.py, torch 2.13).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.checkpoints import numbers
from supervisor.checkpoints.folders import Folder
from supervisor.checkpoints.metadata import BadError, Form, Piece

if TYPE_CHECKING:
    import zipfile

MAX_PROBES = 4096  # pieces looked at in one checkpoint; every shard's first and last always are
READ_AT_ONCE = 1 << 20  # bytes

ZIP_END_SIZE = 22
# What a piece of each form begins with, and what its last ZIP_END_SIZE bytes do.
ZIP = b"PK\x03\x04", b"PK\x05\x06"
ZSTD = b"\x28\xb5\x2f\xfd", b""  # RFC 8878, 3.1.1: the magic number of a frame
BLANK = bytes(ZIP_END_SIZE)


@dataclass(frozen=True, slots=True)
class Whole:
    """What reading a shard from end to end has found."""

    pieces: int = 0
    not_compared: int = 0  # of them: without a checksum, or of a form that is not known here

    def __add__(self, other: Whole) -> Whole:
        return Whole(self.pieces + other.pieces, self.not_compared + other.not_compared)


def check_shard(
    folder: Folder,
    file: str,
    pieces: list[Piece],
    probes: int,
    alive: Callable[[], None],
    learned: Collection[str] = (),
) -> int:
    """One shard file is there, long enough, and not blank; returns its size in bytes.

    With no `probes` only its size is looked at. Of the tensors that are `learned`, a sample of the
    numbers is finite. Raises BadError, RefusedError, OSError.
    """
    needed = max(piece.offset + piece.length for piece in pieces)
    try:
        fd = folder.open_file(file)
    except FileNotFoundError as error:
        raise BadError(f"{file} is missing ({needed} bytes expected)") from error
    try:
        size = os.fstat(fd).st_size
        if size < needed:
            raise BadError(f"{file} is truncated: {size} bytes, {needed} expected")
        ends = []
        for piece in _probed(pieces, probes) if probes else ():
            ends.append(_check_piece(fd, file, piece, piece.fqn in learned))
            alive()
        if needed and ends and not any(ends):
            raise BadError(f"{file} holds nothing but zeros wherever it was looked at")
    finally:
        os.close(fd)
    return size


def _probed(pieces: list[Piece], most: int) -> Iterator[Piece]:
    """The first and the last piece, and others evenly between them."""
    most = max(2, most)
    if len(pieces) <= most:
        yield from pieces
    else:
        yield from (pieces[i * (len(pieces) - 1) // (most - 1)] for i in range(most))


def _check_piece(fd: int, file: str, piece: Piece, learned: bool) -> bool:
    """The piece begins and ends as its form does: a hole or lost tail reads as zeros.

    Returns whether there is anything but zeros: of an unknown form that is all one can say.
    """
    edge = min(piece.length, numbers.EDGE if learned else ZIP_END_SIZE)
    head = os.pread(fd, edge, piece.offset)
    tail = os.pread(fd, edge, piece.offset + piece.length - edge)
    start, end = head[:ZIP_END_SIZE], tail[-ZIP_END_SIZE:]
    if piece.form is not Form.OTHER:
        first, last = ZIP if piece.form is Form.ZIP else ZSTD
        where, name = f"{file}: {piece.fqn} at {piece.offset}", piece.form.value
        if not start.startswith(first):
            found = start[: len(first)].hex()
            raise BadError(f"{where} begins with {found}, expected {first.hex()} ({name})")
        if not end.startswith(last):
            found = end[: len(last)].hex()
            raise BadError(f"{where} ends with {found}, expected {last.hex()} ({name})")

    def read(count: int, at: int) -> bytes:
        return os.pread(fd, count, piece.offset + at)

    if learned and piece.form is Form.ZIP and numbers.not_finite(head, tail, piece.length, read):
        raise BadError(f"{piece.fqn} holds NaN or infinity (in {file})")
    return start.strip(b"\0") != b"" or end.strip(b"\0") != b"" or not piece.length


# --- from end to end


def read_shard(folder: Folder, file: str, pieces: list[Piece], alive: Callable[[], None]) -> Whole:
    """Read all pieces, and compare what carries a checksum. Raises as `check_shard` does."""
    whole = Whole()
    fd = folder.open_file(file)
    try:
        for piece in pieces:
            compared = piece.form is Form.ZIP and _read_zip(fd, file, piece, alive)
            if not compared:
                _read(fd, piece.offset, piece.length, alive)
            whole += Whole(1, 0 if compared else 1)
    finally:
        os.close(fd)
    return whole


def _read(fd: int, offset: int, length: int, alive: Callable[[], None]) -> None:
    """Storage may refuse what lies in there."""
    end = offset + length
    while offset < end and (part := os.pread(fd, min(READ_AT_ONCE, end - offset), offset)):
        offset += len(part)
        alive()


def _read_zip(fd: int, file: str, piece: Piece, alive: Callable[[], None]) -> bool:
    """Compare the records of one piece with their checksums; False where it was saved without."""
    import zipfile

    where = f"{file}: {piece.fqn} at {piece.offset}"
    try:
        with zipfile.ZipFile(_Window(fd, piece.offset, piece.length)) as records:
            listed = records.infolist()
            if sum(one.file_size for one in listed) > piece.length:
                raise BadError(f"{where} claims to hold more than its {piece.length} bytes")
            # torch.serialization.set_crc32_options(False) writes 0; data has it once in 2^32 times.
            compared = [one for one in listed if one.CRC or not one.file_size]
            for record in compared:
                _read_record(records, record, alive)
            return len(compared) == len(listed)
    except (BadError, OSError):
        raise
    except Exception as error:  # zipfile raises BadZipFile, and much else for what is damaged
        raise BadError(f"{where} is damaged: {error or type(error).__name__}") from error


def _read_record(
    records: zipfile.ZipFile, record: zipfile.ZipInfo, alive: Callable[[], None]
) -> None:
    if record.compress_type:
        raise BadError(f"{record.filename} is compressed, which torch.save never does")
    with records.open(record) as content:  # which compares at the end
        while content.read(READ_AT_ONCE):
            alive()


class _Window:
    """A part of an open file, as a file to read from."""

    def __init__(self, fd: int, begin: int, length: int) -> None:
        self._fd, self._begin, self._length = fd, begin, length
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if origin + offset < 0:
            raise ValueError("a seek before the beginning")
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        data = os.pread(self._fd, left if size < 0 else min(size, left), self._begin + self._at)
        self._at += len(data)
        return data
