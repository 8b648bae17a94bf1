"""Removes what allocations left on a node: private folders, with the logs of agents and ranks.

Keys and code go when a run ends. The rest stays for people to read, and goes when it is old.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from pathlib import Path

from supervisor.channel import delivery
from supervisor.host import procfs

KEPT_S = 30 * 86_400.0  # since something was written there: what a person asks about is newer


def in_use(folder: Path) -> bool:
    """Whether a living process names the folder as its own, or an agent has locked it."""
    mark = f"{delivery.VARIABLE}={folder}"
    if any(procfs.environ_has(pid, mark) for pid in procfs.pids()):
        return True
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove_old(home: Path, before: float) -> list[Path]:
    """Remove the folders beside `home` in which nothing was written since `before`; which it were.

    Seconds since the epoch. One that is in use stays, whatever its age.
    """
    removed = []
    for old in delivery.older(home):
        with contextlib.suppress(OSError):
            if _newest(old) < before and not in_use(old):
                _remove(old)
                removed.append(old)
    return removed


def remove(folder: str, *, dry_run: bool = False) -> bool:
    """Remove a run's folder from this machine; whether it was there.

    Only a folder of this user's with the name of one, that nobody uses. Raises OSError.
    """
    path = Path(folder)
    if not path.is_absolute() or not delivery.is_ours(path):
        return False
    if in_use(path):
        return False
    if not dry_run:
        _remove(path)
    return True


def _remove(folder: Path) -> None:
    """With copies of code in it, which are read-only. Raises OSError."""
    for top, _, _ in os.walk(folder):
        Path(top).chmod(0o700)
    shutil.rmtree(folder)


def _newest(folder: Path) -> float:
    """When something was last written in it: two levels tell, and cost little."""
    times = [folder.lstat().st_mtime]
    for path in folder.iterdir():
        found = path.lstat()
        times.append(found.st_mtime)
        if stat.S_ISDIR(found.st_mode):
            times += [inner.lstat().st_mtime for inner in path.iterdir()]
    return max(times)
