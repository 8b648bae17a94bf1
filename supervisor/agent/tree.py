"""Finds and ends the processes of a rank, whatever they forked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from supervisor.proc import exited

LOOKS = 4
WAITED = 256  # processes that are waited for at a time
MARK = "SUPERV_MARK"  # run/node/attempt, in the environment of every rank


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process started; with the pid it names it for ever."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def state(pid: int) -> str | None:
    """R, S, D, Z …; None where there is no such process."""
    fields = _stat(pid)
    return None if fields is None else fields[0]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(4096).rpartition(b")")[2].decode().split()
    except OSError:
        return None


def find(
    mark: str,
    roots: frozenset[int] = frozenset(),
    ended: frozenset[int] = frozenset(),
    spare: frozenset[int] = frozenset(),
) -> set[int]:
    """Living processes whose mark begins so, and all that descend from them or from `roots`.

    `ended` are leaders of sessions that are gone; what they left in their sessions is found, too.

    A process that replaced its environment is found through its parent or its session. Those in
    `spare` are left out, but not what descends from them with a mark of its own.

    What is found by parent or session is not asked for its environment: that takes the memory
    map's lock, which a rank may hold while it sleeps in a hung file system.
    """
    table = _table()
    gone = ended - table.keys()
    first = {pid for pid, (_, session, _) in table.items() if pid in roots or session in gone}
    found = _family(table, first - spare, spare)
    needle = f"{MARK}={mark}".encode()
    marked: set[int] = set()
    for pid in table.keys() - found - spare:
        with contextlib.suppress(OSError):
            if any(part.startswith(needle) for part in _environ(pid)):
                marked.add(pid)
    found = _family(table, found | marked, spare)
    return {pid for pid in found if table[pid][2] not in "ZX"}


def _table() -> dict[int, tuple[int, int, str]]:
    """Parent, session and state of every process.

    One that ended while this was looking may have forked another after its number had passed: then
    it looks again, but not for ever on a node where processes come and go.
    """
    table: dict[int, tuple[int, int, str]] = {}
    for _ in range(LOOKS):
        table.clear()
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        for pid in pids:
            if (fields := _stat(pid)) is not None:
                table[pid] = (int(fields[1]), int(fields[3]), fields[0])
        if len(table) == len(pids):
            break
    return table


def _family(
    table: dict[int, tuple[int, int, str]], first: set[int], spare: frozenset[int]
) -> set[int]:
    """These processes, what descends from them, and who shares a session with one of them."""
    found = set(first)
    sessions = set(first)  # a rank leads a session of its own
    grew = True
    while grew:
        more = {
            pid
            for pid, (parent, session, _) in table.items()
            if pid not in found and pid not in spare and (parent in found or session in sessions)
        }
        grew = bool(more)
        found |= more
    return found


def _environ(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def end(look: Callable[[], set[int]], grace_s: float, kill_s: float = 5.0) -> set[int]:
    """SIGTERM, grace, SIGKILL to everything that `look` finds, until it finds nothing.

    Returns the pids that are still there `kill_s` after SIGKILL (uninterruptible sleep).
    """
    left = look()
    if grace_s > 0 and left:
        _signal(left, signal.SIGTERM)
        left = await _wait(look, left, grace_s)
    deadline = asyncio.get_running_loop().time() + kill_s
    while left and asyncio.get_running_loop().time() < deadline:
        _signal(left, signal.SIGKILL)
        left = await _wait(look, left, min(1.0, kill_s))
    return left


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


async def _wait(look: Callable[[], set[int]], pids: set[int], seconds: float) -> set[int]:
    """Wait until `look` finds nothing more (pushed by pidfds), but not longer; what is left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while pids and (left := deadline - loop.time()) > 0:
        # Not all at once: a rank may have hundreds of helpers, an agent 1024 descriptors.
        waits = [asyncio.ensure_future(exited(pid)) for pid in sorted(pids)[:WAITED]]
        try:
            await asyncio.wait(waits, timeout=left)
        finally:
            for wait in waits:
                wait.cancel()
            ends = await asyncio.gather(*waits, return_exceptions=True)
        if any(isinstance(end, OSError) for end in ends):  # no descriptor left
            await asyncio.sleep(0.05)
        pids = look()
    return pids
