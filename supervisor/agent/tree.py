"""Finds and ends the processes of a rank, whatever they forked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from supervisor.host import procfs
from supervisor.host.procfs import Stat
from supervisor.proc import exited

MAX_SCANS = 4
WAITED = 256  # processes that are waited for at a time
MARK = "SUPERV_MARK"  # run/node/attempt, in the environment of every rank
CHECKS = "checks"  # in its place, of health checks that an agent runs


def find(
    mark: str,
    roots: frozenset[int] = frozenset(),
    ended: frozenset[int] = frozenset(),
    exclude_pids: frozenset[int] = frozenset(),
) -> set[int]:
    """Living processes whose mark begins so, and all that descend from them or from `roots`.

    `ended` are leaders of sessions that are gone; what they left in their sessions is found, too.

    A process that replaced its environment is found through its parent or its session. Those in
    `exclude_pids` are left out, but not what descends from them with a mark of its own.

    What is found by parent or session is not asked for its environment: that takes the memory
    map's lock, which a rank may hold while it sleeps in a hung file system.
    """
    table = _table()
    gone = ended - table.keys()
    first = {pid for pid, one in table.items() if pid in roots or one.session in gone}
    found = _family(table, first - exclude_pids, exclude_pids)
    begin = f"{MARK}={mark}"
    marked = {p for p in table.keys() - found - exclude_pids if procfs.environ_has(p, begin)}
    found = _family(table, found | marked, exclude_pids)
    return {pid for pid in found if table[pid].alive}


def _table() -> dict[int, Stat]:
    """Every process by its pid.

    One that ended while this was looking may have forked another after its number had passed: then
    it looks again, but not forever on a node where processes come and go.
    """
    table: dict[int, Stat] = {}
    for _ in range(MAX_SCANS):
        pids = procfs.pids()
        table = {pid: found for pid in pids if (found := procfs.stat(pid)) is not None}
        if len(table) == len(pids):
            break
    return table


def _family(table: dict[int, Stat], first: set[int], exclude_pids: frozenset[int]) -> set[int]:
    """These processes, what descends from them, and who shares a session with one of them."""
    found = set(first)
    sessions = set(first)  # a rank leads a session of its own
    grew = True
    while grew:
        more = {
            pid
            for pid, one in table.items()
            if pid not in found
            and pid not in exclude_pids
            and (one.parent in found or one.session in sessions)
        }
        grew = bool(more)
        found |= more
    return found


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
