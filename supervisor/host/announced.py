"""What a process is at in storage, written where another can read it while this one hangs.

A call into a dead mount never returns and can't be ended. So a command works in a child, and says
on its board what it is about to touch; its parent (supervisor/cli/expendable.py) names that and
leaves. The board is memory: it is read through /proc as long as the child is there, by later
commands too, which then don't go where it hangs. In a process without a board nothing is announced.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from supervisor.core.errors import TransientError
from supervisor.host import procfs

NAME = "superv-board"
OWN_DEADLINE = "superv-late-ok"  # what a thread calls itself that somebody else gives up in time
_HALF = 8192  # bytes: the child writes into the first half, its parent into the second
_HEAD = struct.Struct("H")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageStep:
    """A step that touches storage."""

    what: str = ""  # "reading site.yaml"
    path: str = ""
    instead: str = ""  # what its user can set to have it elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """A process of this user that was left behind in a call that does not return."""

    pid: int
    since: float  # seconds since the epoch
    argv: tuple[str, ...]
    at: StorageStep
    path: str  # what the kernel says that it waits for, else what it announced


class Board:
    """Shared memory between a child and its parent. The child never waits for it."""

    def __init__(self) -> None:
        """Raises OSError where there is no memory or descriptor for it."""
        made = os.memfd_create(NAME, os.MFD_CLOEXEC)
        # Not in the place of an output that is closed.
        self._fd = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(made)
        os.ftruncate(self._fd, 2 * _HALF)
        self._memory = mmap.mmap(self._fd, 2 * _HALF)

    def announce(self, step: StorageStep) -> None:
        self._put(0, asdict(step))

    def read(self) -> StorageStep:
        """What was announced last; nothing where the child is about to write."""
        try:
            return StorageStep(**_got(self._memory, 0))
        except (ValueError, TypeError):
            return StorageStep()

    def give_up(self, stuck: LeftBehind) -> None:
        """For the commands that come later."""
        self._put(_HALF, asdict(stuck))

    def close(self) -> None:
        self._memory.close()
        os.close(self._fd)

    def _put(self, at: int, row: Mapping[str, object]) -> None:
        data = json.dumps(row).encode()
        if len(data) > _HALF - _HEAD.size:  # a path of 4096 bytes and more arguments
            data = b"{}"
        _HEAD.pack_into(self._memory, at, 0)
        self._memory[at + _HEAD.size : at + _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, at, len(data))


def _got(memory: mmap.mmap | bytes, at: int) -> dict[str, str]:
    """Raises ValueError where nothing whole was written."""
    (size,) = _HEAD.unpack_from(memory, at)
    row = json.loads(bytes(memory[at + _HEAD.size : at + _HEAD.size + size]))
    if not isinstance(row, dict):
        raise ValueError("no mapping")
    return row


_board: Board | None = None
_stuck: Mapping[str, LeftBehind] = {}
_now = StorageStep()


def announce_on(board: Board, stuck: Iterator[LeftBehind] | list[LeftBehind]) -> None:
    """From here on `at` announces; where an earlier process of the user is stuck it refuses."""
    global _board, _stuck
    _board, _stuck = board, {one.at.path: one for one in stuck if one.at.path}


@contextlib.contextmanager
def at(what: str, path: Path | str, *, instead: str = "") -> Iterator[None]:
    """Say that this process is about to touch a path.

    Raises TransientError where an earlier command of this user still hangs there: another would
    hang beside it, and cron would start one every half hour.
    """
    global _now
    if _board is None:
        yield
        return
    if (earlier := _stuck.get(str(path))) is not None and procfs.state(earlier.pid) == "D":
        raise TransientError(refusal(earlier))
    before, _now = _now, StorageStep(what=what, path=str(path), instead=instead)
    _board.announce(_now)
    try:
        yield
    finally:
        _now = before
        _board.announce(before)


def refusal(stuck: LeftBehind) -> str:
    """Why it is not tried again, in one line."""
    from supervisor.host.terminal import date_time

    return (
        f"{place(stuck.path)} does not answer: process {stuck.pid} of an earlier superv has hung "
        f"there since {date_time(stuck.since)}{f' ({stuck.at.what})' if stuck.at.what else ''}; "
        f"not tried again until it is gone{way_out(stuck.at)}"
    )


def place(path: str) -> str:
    """A path and the mount that it lies on, as far as that can be told without touching it."""
    if not path:
        return "storage"
    point, kind, source = procfs.mount_of(path)
    return f"{path} (on {point}, {kind} of {source})" if point else path


def way_out(step: StorageStep) -> str:
    return f"; bring the mount back{f', or set {step.instead}' if step.instead else ''}"


def find_stuck() -> list[LeftBehind]:
    """Processes of this user that were given up and are still there. Touches /proc alone."""
    try:
        return list(_find())
    except FileNotFoundError:  # a place without /proc
        return []


def _find() -> Iterator[LeftBehind]:
    for process in procfs.processes():
        # Killed in another thread than its first, that one is a zombie.
        if process.state not in "DZ" or procfs.real_uid(process.pid) != os.getuid():
            continue
        for tid in procfs.threads(process.pid):
            if procfs.state(tid) == "D":
                yield from _given_up(tid)
                break


def _given_up(pid: int) -> Iterator[LeftBehind]:
    for path, fd in procfs.open_files(pid).items():
        if path.startswith(f"/memfd:{NAME}"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, struct.error):
                yield _stuck_of(pid, fd)


def _stuck_of(pid: int, fd: int) -> LeftBehind:
    """Raises OSError, ValueError, KeyError, TypeError where it was not given up."""
    with open(f"/proc/{pid}/fd/{fd}", "rb") as board:
        row = _got(board.read(2 * _HALF), _HALF)
    return LeftBehind(
        pid=pid,
        since=float(row["since"]),
        argv=tuple(row["argv"]),
        at=StorageStep(**row["at"]),  # type: ignore[arg-type]
        path=row["path"],
    )


def has_own_deadline() -> None:
    """Of this thread: somebody gives it up in time, so a hang of it is not the command's."""
    with contextlib.suppress(OSError), open("/proc/thread-self/comm", "w") as comm:
        comm.write(OWN_DEADLINE)
