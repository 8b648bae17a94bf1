"""A folder as seen through a FUSE mount that can be broken: passthrough.py FOLDER SOCKET.

Mounts over FOLDER what lies there, in the mount namespace it is started in. SOCKET takes one JSON
object a connection, {"mode": "ok|hung|stale|slow|readonly", "delay_s": 3.0}, and answers with one
when the mode is in force. The mount ends with this process, whatever mode it is in.

Nothing here may touch FOLDER by its path once it is mounted: it would wait for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy  # type: ignore[import-untyped]

MODES = ("ok", "hung", "stale", "slow", "readonly")
# A request that nobody reads can still be interrupted, as a hung NFS server's can't: so there are
# threads to take many more than anybody is going to have waiting.
MAX_THREADS = 512
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2  # utimensat(2)
_libc = ctypes.CDLL(None)


class Gate:
    """What every request passes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._mode, self._delay_s = "ok", 0.0

    def set(self, mode: str, delay_s: float) -> None:
        with self._changed:
            self._mode, self._delay_s = mode, delay_s
            self._changed.notify_all()

    def enter(self, *, writes: bool) -> None:
        """Returns when the request may be carried out; raises OSError if it is refused."""
        with self._changed:
            while self._mode == "hung":
                self._changed.wait()
            mode, delay_s = self._mode, self._delay_s
        if mode == "slow":
            time.sleep(delay_s)
        if mode == "stale":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if mode == "readonly" and writes:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class Passthrough(mfusepy.Operations):  # type: ignore[misc]
    """The folder itself; every request is carried out with its sender's uid and gid."""

    use_ns = True

    def __init__(self, folder: str, ready: threading.Event) -> None:
        self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._ready = ready
        self.gate = Gate()

    def init(self, path: str) -> None:
        self._ready.set()

    def _at(self, path: str, *, writes: bool = False) -> str:
        """The path below the folder, once the gate is passed."""
        self.gate.enter(writes=writes)
        uid, gid, _ = mfusepy.fuse_get_context()
        _libc.setfsgid(gid)  # of this thread alone, see setfsuid(2)
        _libc.setfsuid(uid)
        return path.lstrip("/") or "."

    # --- looking ---

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        seen = os.stat(self._at(path), dir_fd=self._root, follow_symlinks=False)
        names = ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "rdev", "blocks", "blksize")
        found = {f"st_{name}": getattr(seen, f"st_{name}") for name in names}
        times = {f"st_{t}time": getattr(seen, f"st_{t}time_ns") for t in "amc"}
        return found | times

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        try:
            with os.scandir(fd) as entries:
                inodes = {entry.name: entry.inode() for entry in entries}
            here = os.fstat(fd).st_ino  # readers skip what has the inode 0
        finally:
            os.close(fd)
        return [(n, {"st_ino": i}, 0) for n, i in {".": here, "..": here, **inodes}.items()]

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path), dir_fd=self._root)

    def statfs(self, path: str) -> dict[str, int]:
        self.gate.enter(writes=False)
        seen = os.fstatvfs(self._root)
        names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail")
        return {f"f_{name}": getattr(seen, f"f_{name}") for name in (*names, "namemax")}

    # --- files ---

    def open(self, path: str, flags: int) -> int:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        kept = flags & ~(os.O_APPEND | os.O_CREAT | os.O_EXCL)  # the kernel has seen to these
        return os.open(self._at(path, writes=writes), kept, dir_fd=self._root)

    def create(self, path: str, mode: int, flags: int) -> int:
        kept = flags & ~os.O_APPEND | os.O_CREAT
        return os.open(self._at(path, writes=True), kept, mode, dir_fd=self._root)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.gate.enter(writes=False)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self.gate.enter(writes=True)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        fd = os.open(self._at(path, writes=True), os.O_WRONLY, dir_fd=self._root)
        try:
            os.ftruncate(fd, length)
        finally:
            os.close(fd)
        return 0

    def flush(self, path: str, fh: int) -> int:
        self.gate.enter(writes=False)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self.gate.enter(writes=True)
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)  # nobody waits for this one
        return 0

    # --- names and attributes ---

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._at(path, writes=True), mode, dir_fd=self._root)
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        os.mknod(self._at(path, writes=True), mode, dev, dir_fd=self._root)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._at(path, writes=True), dir_fd=self._root)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path, writes=True), dir_fd=self._root)
        return 0

    def rename(self, old: str, new: str) -> int:
        source, target = self._at(old, writes=True), new.lstrip("/")
        os.rename(source, target, src_dir_fd=self._root, dst_dir_fd=self._root)
        return 0

    def link(self, target: str, source: str) -> int:
        there = self._at(source, writes=True)
        os.link(
            *(there, target.lstrip("/")),
            src_dir_fd=self._root,
            dst_dir_fd=self._root,
            follow_symlinks=False,
        )
        return 0

    def symlink(self, target: str, source: str) -> int:
        os.symlink(source, self._at(target, writes=True), dir_fd=self._root)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path, writes=True), stat.S_IMODE(mode), dir_fd=self._root)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        at = self._at(path, writes=True)
        ids = [-1 if i == 2**32 - 1 else i for i in (uid, gid)]
        os.chown(at, ids[0], ids[1], dir_fd=self._root, follow_symlinks=False)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        at = self._at(path, writes=True)
        seen = os.stat(at, dir_fd=self._root, follow_symlinks=False)
        now = time.time_ns()
        special = [{UTIME_NOW: now, UTIME_OMIT: t} for t in (seen.st_atime_ns, seen.st_mtime_ns)]
        atime, mtime = times or (now, now)
        ns = (special[0].get(atime, atime), special[1].get(mtime, mtime))
        os.utime(at, ns=ns, dir_fd=self._root, follow_symlinks=False)
        return 0


def obey(listener: socket.socket, gate: Gate) -> None:
    """Take orders for as long as the mount is there."""
    while True:
        caller, _ = listener.accept()
        with caller, contextlib.suppress(OSError, ValueError):  # it has gone meanwhile
            order = json.loads(caller.recv(4096))
            gate.set(order["mode"], order["delay_s"])
            caller.sendall(json.dumps(order).encode())


def main(folder: str, where: str) -> None:
    ready = threading.Event()
    operations = Passthrough(folder, ready)
    os.umask(0)  # the kernel has applied the sender's

    def serve() -> None:
        ready.wait()
        # Under its name it listens: who sees a socket that does not yet is refused.
        new = Path(f"{where}.new")
        new.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(new))
        new.chmod(0o600)
        listener.listen()
        new.rename(where)
        obey(listener, operations.gate)

    threading.Thread(target=serve, daemon=True).start()
    mfusepy.FUSE(
        operations,
        folder,
        foreground=True,
        allow_other=True,
        default_permissions=True,
        fsname="superv-lab",
        subtype="lab",
        max_threads=MAX_THREADS,
        # Nothing is remembered: every stat asks, and finds the mount as it is.
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        use_ino=True,
    )


main(sys.argv[1], sys.argv[2])
