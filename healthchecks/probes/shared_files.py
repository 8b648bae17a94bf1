"""Files in folders that other users may write to, or swap: through a descriptor, in one folder.

A path leads where whoever may rename a folder on it wants. So a folder is opened once, by its own
name and no link's, and on the mount that is asked about; what is made in it is new and ours. That
somebody else was there first says nothing about the node.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from healthchecks.frame.check import Unknown

_OTHERS = {errno.ELOOP, errno.ENOTDIR}  # what a link, or a file where a folder was, makes of a name


@contextmanager
def entered(folder: Path, mount: Path) -> Iterator[int]:
    """The folder, open. Raises Unknown where it is a link or on another mount, and OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with _opened(folder, flags) as fd:
        _same_mount(fd, folder, mount)
        yield fd


@contextmanager
def existing(path: Path, mount: Path, flags: int) -> Iterator[int]:
    """A regular file, open to read: a FIFO may wait, and a device do anything when it is opened.

    Raises Unknown where it is none, a link, or on another mount, and OSError.
    """
    with _opened(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) as pinned:
        _same_mount(pinned, path, mount)
        if not stat.S_ISREG(os.fstat(pinned).st_mode):
            raise Unknown(f"{path} is no regular file")
        again = Path(f"/proc/self/fd/{pinned}")
        with _opened(again, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags) as fd:
            yield fd


def make(folder: int, name: str, flags: int = 0) -> tuple[int, str]:
    """A new file in an open folder, to write and read, and what it is called there.

    What a process of ours left at the name goes. Where somebody else has taken it, another is used.
    Raises OSError.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)
    try:
        return _new(folder, name, flags), name
    except FileExistsError:
        name = f"{name}-{secrets.token_hex(8)}"
        return _new(folder, name, flags), name


def _new(folder: int, name: str, flags: int) -> int:
    try:
        return os.open(name, flags, 0o600, dir_fd=folder)
    except FileExistsError:
        raise
    except OSError:  # a file system without direct reads has made it all the same
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
        raise


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in _OTHERS:
            raise Unknown(f"{path} is a link, or behind what is no folder") from None
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def _same_mount(fd: int, path: Path, mount: Path) -> None:
    with _opened(mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) as root:
        if _mount(fd) != _mount(root):
            raise Unknown(f"{path} leads to another mount than {mount}")


def _mount(fd: int) -> int:
    """The number of the mount that a descriptor is on; bind mounts of one device differ."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        for line in lines:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return 0
