"""What is this user's alone, in places that he shares with others.

A folder is made, or seen to be his, before anything is put in it; after that nobody else can put
anything at a name in it. A file is put at a name whole, or not at all: what stands there is
replaced, and never followed or filled.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import secrets
import stat
from pathlib import Path

from supervisor.core.errors import UserError
from supervisor.host import announced, trusted


def folder(path: Path) -> None:
    """Make the folder, or see that it is a folder of the user's that nobody else may enter.

    Raises UserError where it is somebody else's, a link or open to others, OSError where it can't
    be made.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise UserError(f"{path}: must be a directory of mode 0700, owned by you") from None


def make(path: Path) -> None:
    """Make a folder and those above it that are missing; others may write to none of them.

    Raises OSError.
    """
    for place in (*reversed(path.parents), path):
        try:
            place.mkdir(mode=0o755)
        except OSError:
            if not place.is_dir():
                raise


def problem(path: Path, *, inside: bool = False) -> str:
    """Why another user may change what lies at a path, in one line; empty where none may.

    Looks at each folder on the way, and behind each link on it. A sticky folder of root's or the
    user's, as /tmp, does no harm to what is his in there: with `inside` the path may lead to one.
    What is not there yet is nobody's.
    """
    return trusted.walk(
        path, lambda at, found, last: _changeable(at, found, last=last and not inside)
    )


def _changeable(path: Path, found: os.stat_result, *, last: bool) -> str:
    """`last`: what is asked for itself. A sticky bit protects what lies in a folder, not more."""
    if not _mine(found):
        return f"{path} belongs to uid {found.st_uid}, you are {os.geteuid()}"
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):  # its mode says nothing
        return ""
    by_group = mode & stat.S_IWGRP and not _alone_in(found.st_gid, found.st_uid)
    if (by_group or mode & stat.S_IWOTH) and (last or not mode & stat.S_ISVTX):
        return f"{path} has mode {mode:04o}: others may write there"
    return ""


def _mine(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _alone_in(gid: int, uid: int) -> bool:
    """Whether a group is its user's private one: many systems give new folders to it, mode 0775."""
    if uid == gid == 0:
        return True
    try:
        name, group = pwd.getpwuid(uid).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == name and not set(group.gr_mem) - {name}


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a file there, whole or not at all; `mode` is cut by the umask. Raises OSError.

    A link of the user's or root's is followed, as /dev/stdout is one: its target is replaced.
    """
    with announced.at("writing it", path):
        _write(path, data, mode)


def _write(path: Path, data: bytes, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) and found.st_nlink == 1 and _mine(found):
            path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(part, flags, mode), "wb") as file:
            file.write(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
