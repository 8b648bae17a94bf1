"""The files to look at: found below what was named, opened without harm, read in pieces.

What can't be read costs one line each: a FIFO, a device or a socket is not opened, a link is
followed once and never out of a folder into a loop, a binary file is passed over, gzip is unpacked.
"""

from __future__ import annotations

import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

PIECE = 4 << 20  # bytes read at once
MAX_FILES = 20_000
MAX_DEPTH = 12
LONGEST = 1 << 20  # bytes of a line that has no end; the rest of it is passed over
_GZIP = b"\x1f\x8b"
_SKIPPED = {".py", ".pt", ".pth", ".distcp", ".safetensors", ".bin", ".npy", ".so", ".whl", ".png"}
_RANK_NAME = re.compile(r"(?:^|[^a-z])(?:rank|global_rank)[-_.]?(\d{1,6})(?=\D|$)", re.IGNORECASE)
_TORCHRUN = re.compile(
    r"attempt_(\d+)/(\d+)/(?:stdout|stderr)\.log$|attempt_(\d+)/(\d+)/error\.json$"
)
_KERNEL_NAME = re.compile(r"(?:^|[^a-z])(?:dmesg|kmsg|kern(?:el)?|messages|syslog|journal)", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLog:
    """A file to look at, and what its name tells."""

    path: str
    size: int
    mtime: float
    rank: int | None = None
    local: int | None = None
    node: str = ""
    kernel: bool = False


@dataclass(slots=True)
class FoundLogs:
    """What there is to look at, and what can't be."""

    files: list[JobLog] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(one.size for one in self.files)


def find(paths: Iterable[str], nodes: Iterable[str] = (), *, kernel: bool = False) -> FoundLogs:
    """Look for log files at the paths, and below those that are folders."""
    found = FoundLogs()
    seen: set[tuple[int, int]] = set()
    names = tuple(nodes)
    for given in paths:
        node, path = _named(given, names) if kernel else ("", given)
        _take(Path(path), found, seen, names, kernel=kernel, node=node, depth=0, asked=True)
    return found


def _named(given: str, nodes: tuple[str, ...]) -> tuple[str, str]:
    """`n7=dmesg.txt` says whose kernel log it is."""
    node, equals, path = given.partition("=")
    return (node, path) if equals and "/" not in node and not Path(given).exists() else ("", given)


def _take(
    path: Path,
    found: FoundLogs,
    seen: set[tuple[int, int]],
    nodes: tuple[str, ...],
    *,
    kernel: bool,
    node: str,
    depth: int,
    asked: bool,
) -> None:
    try:
        info = path.stat()
    except OSError as error:
        found.problems.append(f"{path}: {error.strerror or error}")
        return
    key = (info.st_dev, info.st_ino)
    if key in seen:
        return
    seen.add(key)
    if stat.S_ISDIR(info.st_mode):
        if depth >= MAX_DEPTH:
            found.problems.append(f"{path}: deeper than {MAX_DEPTH} folders; passed over")
            return
        try:
            entries = sorted(path.iterdir())
        except OSError as error:
            found.problems.append(f"{path}: {error.strerror or error}")
            return
        for entry in entries:
            if len(found.files) >= MAX_FILES:
                found.problems.append(f"{path}: more than {MAX_FILES} files; the rest passed over")
                return
            _take(entry, found, seen, nodes, kernel=kernel, node=node, depth=depth + 1, asked=False)
        return
    if not stat.S_ISREG(info.st_mode):
        found.problems.append(f"{path}: no plain file; passed over")
        return
    if not asked and path.suffix in _SKIPPED:
        return
    found.files.append(_described(path, info, nodes, kernel=kernel, node=node))


def _described(
    path: Path, info: os.stat_result, nodes: tuple[str, ...], *, kernel: bool, node: str
) -> JobLog:
    name = path.name
    rank = _RANK_NAME.search(name)
    torchrun = _TORCHRUN.search(str(path))
    parts = {part for part in re.split(r"[^\w-]|_", str(path)) if part}
    known = [one for one in nodes if one in parts or one in name or one in str(path.parent)]
    is_kernel = kernel or bool(_KERNEL_NAME.search(name))
    if is_kernel and not node and not known:
        stem = re.sub(r"\.(?:log|txt|gz|out)\b", "", name)
        rest = [p for p in re.split(r"[._]|-(?=\D)|(?<=\D{4})-", stem) if p]
        rest = [p for p in rest if not _KERNEL_NAME.match(p) and p not in ("log", "txt")]
        node = rest[-1] if rest else ""
    return JobLog(
        path=str(path),
        size=info.st_size,
        mtime=info.st_mtime,
        rank=int(rank[1]) if rank else None,
        local=int(torchrun[2] or torchrun[4]) if torchrun else None,
        node=node or (max(known, key=len) if known else ""),
        kernel=is_kernel,
    )


class NotText(ValueError):
    """A file that is no text."""


def pieces(one: JobLog) -> Iterator[bytes]:
    """Whole lines of a file, some megabytes at a time. Raises OSError and NotText.

    A line longer than LONGEST is cut.
    """
    with _opened(one.path) as plain, _unpacked(plain) as stream:
        rest = b""
        first = True
        skipping = False
        while True:
            try:
                data = stream.read(PIECE)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                if first:
                    raise NotText(f"damaged gzip: {error}") from error
                data = b""  # what could be unpacked counts
            if first and _is_binary(data[:65536]):
                raise NotText("no text")
            first = False
            if not data:
                break
            if skipping:
                end = data.find(b"\n")
                if end < 0:
                    continue
                data, skipping = data[end + 1 :], False
            data = rest + data
            cut = data.rfind(b"\n") + 1
            if cut:
                yield data[:cut]
            rest = data[cut:]
            if len(rest) > LONGEST:
                yield rest[:LONGEST] + b"\n"
                rest, skipping = b"", True
        if rest:
            yield rest + b"\n"


def _opened(path: str) -> IO[bytes]:
    # Not blocking: a FIFO put in its place meanwhile must not hold us.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotText("no plain file")
    return os.fdopen(fd, "rb", buffering=0)


def _unpacked(stream: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """The file's bytes, unpacked where it is gzip's."""
    if os.pread(stream.fileno(), 2, 0) == _GZIP:
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    return nullcontext(stream)


def _is_binary(data: bytes) -> bool:
    """Whether it is no text. Holes of a log that was capped are zeros, and count for nothing."""
    data = data.replace(b"\0", b"")
    if not data:
        return False
    odd = sum(data.count(bytes([byte])) for byte in (*range(1, 9), *range(14, 27), *range(28, 32)))
    if odd > len(data) * 0.05:
        return True
    text = data.decode(errors="replace")
    return text.count("\ufffd") > len(text) * 0.3
