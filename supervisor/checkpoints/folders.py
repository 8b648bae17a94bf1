"""Folders that others may write to: opened name by name, never through what another user put there.

Every operation is on a name in a directory that is open. Who swaps a folder on the way for another
one, or for a link, changes where a path leads, and not what is open. What belongs to another user,
is a link, or is the root of a mount, is refused and named: its owner could change it under us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DEPTH = 64  # of folders within a checkpoint; DCP makes none
MAX_PASSES = 5  # over a folder that is filled while it is emptied


class RefusedError(Exception):
    """Something on the way is not to be trusted; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Folder:
    """An open directory."""

    fd: int
    path: str  # for messages
    owners: frozenset[int]  # uids that its entries may belong to
    mount: int

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    @property
    def identity(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino

    def enter(self, name: str, *, our_links: bool = False) -> Folder:
        """Open a folder in this one; with `our_links` also through a link that is not another's.

        Raises FileNotFoundError, RefusedError, OSError.
        """
        with _pinned(self, name) as (fd, mode):
            if stat.S_ISLNK(mode) and our_links:
                target = os.readlink("", dir_fd=fd)
                there = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
                return Folder(there, f"{self.path}/{name}", self.owners, _mount(there))
            if stat.S_ISLNK(mode):
                raise RefusedError(f"{self.path}/{name} is a link: not touched")
            if not stat.S_ISDIR(mode):
                where = f"{self.path}/{name}"
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), where)
            there = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            return Folder(there, f"{self.path}/{name}", self.owners, self.mount)

    def names(self) -> list[str]:
        return os.listdir(self.fd)  # noqa: PTH208 - of a descriptor

    def check(self, name: str) -> None:
        """Raises FileNotFoundError, RefusedError where an entry is a mount or another user's."""
        with _pinned(self, name):
            pass

    def open_file(self, name: str) -> int:
        """A descriptor to read a regular file in this folder.

        A link is followed where it is not another user's. A FIFO, a socket or a device is not
        opened. Raises FileNotFoundError, RefusedError, OSError.
        """
        with _pinned(self, name) as (fd, mode):
            if stat.S_ISLNK(mode):
                target = os.readlink("", dir_fd=fd)
                with _closing(os.open(target, os.O_PATH | os.O_CLOEXEC, dir_fd=self.fd)) as there:
                    return _readable(there, name)
            return _readable(fd, name)

    def make(self, name: str, mode: int = 0o777) -> Folder:
        """Open a folder in this one that is made where there is none. Raises as `enter` does."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=self.fd)
        return self.enter(name)


def open_home(path: str) -> Folder:
    """The folder that a user configured, by whatever links its path leads through.

    Raises RefusedError where it belongs to another user than us and root, and OSError.
    """
    home = open_given(path)
    try:
        owner = os.fstat(home.fd).st_uid
        ours = {os.geteuid(), 0}
        if owner not in ours:
            ours.add(_owner_of_new(home.fd))  # a server may give our files to another uid
        if owner not in ours:
            raise RefusedError(f"{path} belongs to uid {owner}, neither to you nor to root")
        return Folder(home.fd, path, frozenset(ours), home.mount)
    except BaseException:
        os.close(home.fd)
        raise


def open_given(path: str) -> Folder:
    """A folder that a user named. What is in it may also belong to its owner. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    owners = frozenset({os.geteuid(), 0, os.fstat(fd).st_uid})
    return Folder(fd, path, owners, _mount(fd))


def move(name: str, source: Folder, target: Folder) -> Folder:
    """Move a folder between two open ones and open it there.

    Raises RefusedError where another one had taken its name meanwhile (it is put back).
    """
    with source.enter(name) as before:
        os.rename(name, name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
        there = None
        with contextlib.suppress(RefusedError, FileNotFoundError):
            there = target.enter(name)
            if there.identity == before.identity:
                return there
            os.close(there.fd)
    with contextlib.suppress(OSError):
        os.rename(name, name, src_dir_fd=target.fd, dst_dir_fd=source.fd)
    raise RefusedError(f"{source.path}/{name} was swapped for another one: not touched")


def remove(name: str, parent: Folder) -> None:
    """Delete a folder of ours and all that is in it; done again, it goes on.

    Nothing is followed, and no mount crossed. A folder of another user below it goes only when it
    is empty. Raises RefusedError and OSError, which name what is in the way.
    """
    with parent.enter(name) as folder:
        _empty(folder, 0)
    os.rmdir(name, dir_fd=parent.fd)


def _empty(folder: Folder, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RefusedError(f"{folder.path}: more than {MAX_DEPTH} folders within each other")
    with contextlib.suppress(PermissionError):  # root's
        os.fchmod(folder.fd, 0o700)  # from here on nobody else adds to it
    for _ in range(MAX_PASSES):
        if not (names := folder.names()):
            return
        refused: Exception | None = None
        for name in names:
            try:
                _unlink(name, folder, depth)
            except FileNotFoundError:
                pass
            except (RefusedError, OSError) as error:
                refused = error
        if refused is not None:
            raise refused


def _unlink(name: str, folder: Folder, depth: int) -> None:
    """Delete one entry without asking what it is: a look at a dead mount could hang."""
    try:
        os.unlink(name, dir_fd=folder.fd)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=folder.fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise OSError(error.errno, error.strerror, f"{folder.path}/{name}") from None
            with folder.enter(name) as below:
                _empty(below, depth + 1)
            os.rmdir(name, dir_fd=folder.fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{folder.path}/{name}") from None


@contextlib.contextmanager
def _pinned(folder: Folder, name: str) -> Iterator[tuple[int, int]]:
    """The entry itself, held without being opened, and its mode. Raises RefusedError, OSError.

    That it is no mount comes first: to ask one of another user for its owner may hang, or fail.
    """
    where = f"{folder.path}/{name}"
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
    except FileNotFoundError:
        raise
    except ValueError:  # half a character, or a NUL
        raise RefusedError(f"{where} is no name of a file") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, where) from None
    with _closing(fd):
        if _mount(fd) != folder.mount:
            raise RefusedError(f"{where} is a mount: not touched")
        status = os.fstat(fd)
        if status.st_uid not in folder.owners:
            what = "is a link that belongs" if stat.S_ISLNK(status.st_mode) else "belongs"
            raise RefusedError(f"{where} {what} to uid {status.st_uid}: not touched")
        yield fd, status.st_mode


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _readable(pinned: int, name: str) -> int:
    if not stat.S_ISREG(os.fstat(pinned).st_mode):
        raise RefusedError(f"{name} is not a regular file")
    return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _mount(fd: int) -> int:
    """The number of the mount that a descriptor is on; bind mounts of one device differ."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        for line in lines:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return 0


def _owner_of_new(folder: int) -> int:
    """Whose a file is that we make in there: a server that squashes root says nobody's."""
    name = f".superv-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError:
        return os.geteuid()
    with _closing(fd):
        os.unlink(name, dir_fd=folder)
        return os.fstat(fd).st_uid
