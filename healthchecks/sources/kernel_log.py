"""The kernel's log, as /dev/kmsg gives it: what is new since a check last looked.

A record is `priority,number,microseconds since boot,flags;text`, its continuation lines begin with
a blank (Documentation/ABI/testing/dev-kmsg of the kernel). The device gives one record a read, and
EPIPE where the ring has gone round meanwhile; a plain file of records, as the lab binds over it,
may be appended to, emptied and begun again.

Only the kernel's own records count: what programs write through the device has another facility
(the kernel sees to that), and is passed over. The kernel itself prints what users chose, though:
the name of a program that crashes (15 bytes of anything), of a file, a control group, a network
device. So every pattern is held against the whole line from its beginning, and lines that begin
with a program's name are given to no check that looks for words.

A node in trouble writes the same line a hundred thousand times (NVIDIA/NVSentinel#1120: 800,000
lines, 29 of them different), so lines of the same text are one `KernelLine`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from stat import S_ISREG

from healthchecks.frame.check import NoRight
from healthchecks.frame.context import Ctx

KERNEL = 0  # the facility of what the kernel itself wrote
MAX_BYTES = 128 << 20  # of a plain file: its end; the ring of the kernel is far smaller
MAX_TEXTS = 50_000  # that differ, in one look
MAX_TIMES = 256  # kept for each text
_MARK = "kernel_log"
_PATH = "dev/kmsg"
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
# Formats of the kernel that begin with a program's name (TASK_COMM_LEN is 16, one of them zero):
# show_unhandled_signal of the architectures ("NAME[PID]: segfault at"), signal frames ("NAME[PID]
# bad frame in"), print_fatal_signal, warn_alloc, dump_header of the OOM killer, fs/drop_caches.c,
# check_stack_usage, mm/vmscan.c, block/bdev.c, net/socket.c. BeeGFS names a program second; no
# name has room for its words, too.
_PROGRAM_FIRST = re.compile(
    r"\A(?!beegfs: .{0,15}\(\d+\): (?:Messaging|Retrying) )"
    r".{0,15}(?:\[\d+\]| ?\(\d+\)(?=[: ]|\Z)| \(pid |: page allocation |: vmalloc |: vmap |"
    r": potentially unexpected fatal signal | invoked oom-killer|"
    r": attempt to access beyond|: unhandled |: used | uses | tried | is using )",
    re.DOTALL,
)
_cached: tuple[object, bytes] = (None, b"")  # one read serves all checks of one run's child


@dataclass(slots=True, kw_only=True)
class KernelLine:
    """A text that the kernel wrote since the last look, once or many times."""

    text: str
    seq: int  # of the newest
    level: int = 6  # syslog's: 0 emergency … 4 warning … 7 debug
    count: int = 0
    at: float = 0.0  # of the oldest, seconds since the epoch
    last: float = 0.0  # of the newest: compare these where one line takes another back
    times: list[float] = field(default_factory=list)  # of the newest MAX_TIMES, oldest first


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRead:
    """What one reading found."""

    lines: list[KernelLine]  # by the time of their oldest
    begins: float | None  # when the oldest record that the log still has was written
    first: bool  # nobody looked before in this boot: everything in the log is new
    lost: int  # records overwritten since the last look, and those beyond MAX_TEXTS


def new_lines(ctx: Ctx, *substrings: str, level: int = 7) -> list[KernelLine]:
    """What the kernel wrote since this check last looked in this boot; at first all it still has.

    With `substrings` only lines that contain one of them, exactly as written, and that do not begin
    with a program's name; with `level` only those of that level or a more urgent one. The place is
    kept in `ctx.memory`, so a check may look once in a run only, and keeps what it needs later
    itself. What is older than a repair (`ctx.repaired`) is left out. Raises NoRight where the log
    may not be read.
    """
    return read(ctx, *substrings, level=level).lines


def read(ctx: Ctx, *substrings: str, level: int = 7) -> LogRead:
    """As `new_lines`, with what is known of the log itself."""
    blob = _blob(ctx)
    mark = ctx.memory.get(_MARK)
    begin, lost = 0, 0
    oldest, newest = _first(blob), _last(blob)
    if mark is not None and oldest is not None:
        seq, stamp = mark
        found = blob.rfind(b",%d,%d," % (seq, stamp))
        if found >= 0:
            begin = _line_end(blob, found)
        elif oldest[0] > seq:
            lost = oldest[0] - seq - 1
    if newest is not None:
        ctx.memory.put(_MARK, list(newest))
    booted = ctx.now - float(ctx.text("proc/uptime").split()[0])
    records = _matching(blob, begin, [n.encode() for n in substrings])
    lines, beyond = _folded(records, booted, level, ctx.repaired)
    if substrings:
        lines = [line for line in lines if not program_first(line.text)]
    return LogRead(
        lines=lines,
        begins=booted + oldest[1] / 1e6 if oldest is not None else None,
        first=mark is None,
        lost=lost + beyond,
    )


def program_first(text: str) -> bool:
    """Whether a line begins with the name that a program gave itself: its words say nothing."""
    return _PROGRAM_FIRST.match(text) is not None


def _blob(ctx: Ctx) -> bytes:
    """All records that the log holds, a line each."""
    global _cached
    path = ctx.path(_PATH)
    ctx.announce(f"read {path}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        detail = f": there is no /{_PATH}, as in a container that was given none"
        raise NoRight("the kernel's log", detail) from None
    except PermissionError:
        detail = f" (/{_PATH}; sysctl kernel.dmesg_restrict=0 opens it to all users)"
        raise NoRight("the kernel's log", detail) from None
    try:
        stat = os.fstat(fd)
        key = (str(path), ctx.now, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if _cached[0] != key:
            _cached = (key, _whole_file(fd, stat.st_size) if S_ISREG(stat.st_mode) else _ring(fd))
    finally:
        os.close(fd)
        ctx.announce("")
    return _cached[1]


def _whole_file(fd: int, size: int) -> bytes:
    os.lseek(fd, max(0, size - MAX_BYTES), os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 24):
        parts.append(part)
    blob = b"".join(parts)
    if size > MAX_BYTES:
        blob = blob[blob.find(b"\n") + 1 :]
    return blob[: blob.rfind(b"\n") + 1]  # a line that is being written counts next time


def _ring(fd: int) -> bytes:
    records = []
    size = 0
    while size < MAX_BYTES:
        try:
            record = os.read(fd, 8192)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno == errno.EPIPE:  # overwritten meanwhile: goes on at the oldest
                continue
            raise
        if not record:
            break
        records.append(record)
        size += len(record)
    return b"".join(records)


def _head(line: bytes) -> tuple[int, int] | None:
    """Number and microseconds of a record; None for anything else."""
    fields = line.partition(b";")[0].split(b",")
    try:
        return int(fields[1]), int(fields[2])
    except (IndexError, ValueError):
        return None


def _first(blob: bytes) -> tuple[int, int] | None:
    begin = 0
    while begin < len(blob):
        end = _line_end(blob, begin)
        if (head := _head(blob[begin:end])) is not None:
            return head
        begin = end
    return None


def _last(blob: bytes) -> tuple[int, int] | None:
    end = len(blob)
    while end > 0:
        begin = blob.rfind(b"\n", 0, end - 1) + 1
        if (head := _head(blob[begin:end])) is not None:
            return head
        end = begin
    return None


def _line_end(blob: bytes, at: int) -> int:
    end = blob.find(b"\n", at)
    return len(blob) if end < 0 else end + 1


def _matching(blob: bytes, begin: int, substrings: list[bytes]) -> Iterator[bytes]:
    if not substrings:
        yield from blob[begin:].splitlines()
        return
    any_of = b"|".join(re.escape(n) for n in substrings)
    for match in re.finditer(any_of, blob[begin:]):
        start = blob.rfind(b"\n", 0, begin + match.start()) + 1
        yield blob[start : _line_end(blob, start) - 1]


def _folded(
    records: Iterator[bytes], booted: float, level: int, since: float
) -> tuple[list[KernelLine], int]:
    """One KernelLine for each text, and how many records had a text beyond MAX_TEXTS."""
    found: dict[bytes, KernelLine] = {}
    newest, beyond = -1, 0
    for record in records:
        head, semicolon, text = record.partition(b";")
        fields = head.split(b",", 3)
        if not semicolon or len(fields) < 3 or record[:1] == b" ":
            continue
        try:
            facility, urgency = divmod(int(fields[0]), 8)
            seq, at = int(fields[1]), booted + int(fields[2]) / 1e6
        except ValueError:
            continue
        if facility != KERNEL or seq == newest or urgency > level:  # two substrings in one line
            continue
        if at < since:
            continue
        newest = seq
        line = found.get(text)
        if line is None and len(found) >= MAX_TEXTS:
            beyond += 1
            continue
        if line is None:
            shown = _ESCAPED.sub(lambda m: bytes([int(m[1], 16)]), text)
            line = found[text] = KernelLine(
                text=shown.decode(errors="replace"), seq=seq, at=at, level=urgency
            )
        line.seq, line.last = seq, at
        line.count += 1
        line.times.append(at)
        if len(line.times) >= 2 * MAX_TIMES:
            del line.times[:-MAX_TIMES]
    for line in found.values():
        del line.times[:-MAX_TIMES]
    return list(found.values()), beyond
