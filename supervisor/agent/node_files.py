"""The agent's folder on its node: held against cleaners, and made again where they took it.

Temporary folders are cleaned: by age (systemd-tmpfiles, tmpwatch, tmpreaper), or bluntly, by a
job's epilog or a person. A lock on the folder keeps systemd-tmpfiles away (tmpfiles.d(5): what has
a BSD file lock is skipped, with all below it), fresh times keep the others; against the rest only
noticing and putting back helps. Running processes keep what they have open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from supervisor.core.errors import UserError
from supervisor.host import private, procfs

LOCK = "agent.lock"


class NodeFiles:
    """The allocation's private folder, an agent's own folder in it, and small files of both.

    `home` is None for allocations of superv 0.1, which had no folder that is theirs alone.
    """

    def __init__(self, home: Path | None, folder: Path, lock: int) -> None:
        self.home, self.folder = home, folder
        self._lock = lock
        self._held: int | None = None  # the home, with a lock on it
        self._kept: dict[Path, Callable[[], bytes]] = {}
        self._leaving = False
        self._hold()

    def keep(self, path: Path, content: Callable[[], bytes]) -> None:
        """Put this file back where it is missing."""
        self._kept[path] = content

    def write(self, path: Path, data: bytes) -> None:
        """Write a file and keep it. Raises OSError, and keeps it all the same."""
        self._kept[path] = lambda: data
        private.write(path, data)

    def let_go(self) -> None:
        """Put nothing back any more: the agent leaves."""
        self._leaving = True

    def restore(self) -> list[str]:
        """Make again what is missing; returns its names.

        Raises UserError where somebody else has the folder's name by now, OSError where there is
        no room. Nothing is ever put into a folder that others may enter.
        """
        if self._leaving:
            return []
        found = [self._folder(path) for path in (self.home, self.folder) if path is not None]
        self._hold()
        found.append(self._relock())
        for path, content in self._kept.items():
            if not self._whole(path, content):
                if path.is_symlink():
                    path.unlink()
                private.write(path, content())
                found.append(path.name)
        return [name for name in found if name]

    def _whole(self, path: Path, content: Callable[[], bytes]) -> bool:
        """What is in the agent's own folder nobody else writes: its size tells enough."""
        try:
            there = path.lstat()
        except FileNotFoundError:
            return False
        own = path.parent == self.folder
        return stat.S_ISREG(there.st_mode) and (not own or there.st_size == len(content()))

    def touch(self) -> None:
        """Make all of it look used. When code was changed stays, Python goes by it; and when
        something was delivered: the newest counts."""
        shallow: list[Path] = []
        with contextlib.suppress(OSError):
            shallow = [] if self.home is None else [self.home, *self.home.iterdir()]
        deep = [Path(top, name) for top, _, names in os.walk(self.folder) for name in ("", *names)]
        now, code = time.time_ns(), self.folder / "code"
        for path in (*shallow, *deep):
            with contextlib.suppress(OSError):
                found = path.lstat()
                delivered = path.parent == self.home and not stat.S_ISDIR(found.st_mode)
                dated = delivered or path.is_relative_to(code)
                changed = found.st_mtime_ns if dated else now
                if found.st_uid == os.getuid():
                    os.utime(path, ns=(now, changed), follow_symlinks=False)

    def _folder(self, path: Path) -> str:
        if os.path.lexists(path):
            private.folder(path)
            if stat.S_IMODE(path.lstat().st_mode) == 0o700:
                return ""
            path.chmod(0o700)  # it was closed to its owner
            return path.name
        private.make(path.parent)
        private.folder(path)
        return path.name

    def _hold(self) -> None:
        """Lock the folder that is there now. One agent of those that share it is enough."""
        if self.home is None:
            return
        if self._held is not None:
            if _same(self.home, self._held):
                return
            os.close(self._held)
            self._held = None
        fd = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
        else:
            self._held = fd

    def _relock(self) -> str:
        """Have the lock that a second agent would look for."""
        if _same(self.folder / LOCK, self._lock):
            return ""
        fd = _locked(self.folder)
        if fd is None:
            return ""  # a second agent that is about to see that this one lives
        os.close(self._lock)
        self._lock = fd
        return LOCK


def take(folder: Path) -> int | None:
    """Make an agent's folder on this node and lock it; None where another agent has it.

    Raises UserError where it can't be made or is not to be trusted.
    """
    try:
        private.folder(folder)
        lock = _locked(folder)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    if lock is not None and _another(folder):  # whose lock somebody has removed
        os.close(lock)
        return None
    return lock


def _locked(folder: Path) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(folder / LOCK, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _same(path: Path, fd: int) -> bool:
    try:
        there, held = os.lstat(path), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _another(folder: Path) -> bool:
    """Whether a living process holds a lock of this folder that was removed."""
    me, gone = os.getpid(), f"{folder / LOCK} (deleted)"
    own = procfs.stat(me)
    name = own.name if own is not None else ""
    return any(
        one.pid != me and one.name == name and one.alive and gone in procfs.open_files(one.pid)
        for one in procfs.processes()
    )
