"""A folder as slow or stale storage shows it: `python slow_fuse.py SOURCE FOLDER FAULT COMMAND…`.

Mounts a read-only view of SOURCE on FOLDER through raw /dev/fuse, in a mount namespace of its own,
and runs COMMAND there. FAULT is `slow=S`: each read takes S seconds; `pause=FILE`: the first read
of this file takes 4 s; or `stale`: as an NFS client that believes its cache, a folder does not show
its `.metadata` until it has been opened by its path once more.

Exit code 77: this machine has no /dev/fuse, or does not let us mount.

The numbers are those of linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from hung_fuse import FUSE_INIT, HEADER

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ = 1, 2, 3, 5, 14, 15
RELEASE, FLUSH, OPENDIR, READDIR, RELEASEDIR = 18, 25, 27, 28, 29
SILENT = {FORGET, 42}  # no answer is expected


class SlowView:
    def __init__(self, source: str, fault: str) -> None:
        self.paths = [Path(), Path(source)]  # by node id; the root is 1
        self.slow = float(fault.removeprefix("slow=")) if fault.startswith("slow=") else 0.0
        self.pause = fault.partition("pause=")[2]
        self.stale = fault == "stale"
        self.opened: dict[int, int] = {}

    def attributes(self, path: Path) -> bytes:
        at = path.lstat()
        times = at.st_atime_ns, at.st_mtime_ns, at.st_ctime_ns
        whole, rest = zip(*(divmod(t, 10**9) for t in times), strict=True)
        return struct.pack(
            "=6Q10I", at.st_ino, at.st_size, at.st_blocks, *whole, *rest,
            at.st_mode, at.st_nlink, at.st_uid, at.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Raises OSError."""
        path = self.paths[node]
        if opcode == LOOKUP:
            there = path / body.rstrip(b"\0").decode()
            if self.stale and there.name == ".metadata" and self.opened.get(node, 0) < 2:
                raise FileNotFoundError(errno.ENOENT, "stale")
            attributes = self.attributes(there)
            if there not in self.paths:
                self.paths.append(there)
            return struct.pack("=4Q2I", self.paths.index(there), 0, 0, 0, 0, 0) + attributes
        if opcode == GETATTR:
            return struct.pack("=Q2I", 0, 0, 0) + self.attributes(path)
        if opcode == READLINK:
            return os.fsencode(path.readlink())
        if opcode in (OPEN, OPENDIR):
            self.opened[node] = self.opened.get(node, 0) + 1
            return struct.pack("=Q2I", 0, 1, 0)  # FOPEN_DIRECT_IO: each read comes here
        if opcode in (READ, READDIR):
            _, offset, size = struct.unpack_from("=QQI", body)
            return (
                self.entries(path, offset, size)
                if opcode == READDIR
                else self.read(path, offset, size)
            )
        if opcode in (RELEASE, RELEASEDIR, FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "not here")

    def read(self, path: Path, offset: int, size: int) -> bytes:
        time.sleep(self.slow)
        if path.name == self.pause:
            self.pause = ""
            time.sleep(4)
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def entries(self, path: Path, offset: int, size: int) -> bytes:
        said = b""
        for number, one in list(enumerate(sorted(path.iterdir()), 1))[offset:]:
            name = os.fsencode(one.name)
            kind = stat.S_IFMT(one.lstat().st_mode) >> 12
            entry = struct.pack("=QQII", one.lstat().st_ino, number, len(name), kind) + name
            entry += bytes(-len(entry) % 8)
            if len(said) + len(entry) > size:
                break
            said += entry
        return said


def serve(fd: int, view: SlowView) -> None:
    while True:
        try:
            request = os.read(fd, 1 << 18)
        except OSError:
            return
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        body, error = b"", 0
        if opcode in SILENT:
            continue
        if opcode == FUSE_INIT:
            major, minor, readahead, _ = struct.unpack_from("=IIII", request, HEADER.size)
            body = struct.pack("=IIIIHHII", major, minor, readahead, 0, 12, 9, 4096, 1) + bytes(32)
        else:
            try:
                body = view.answer(opcode, node, request[HEADER.size :])
            except OSError as why:
                error = why.errno or errno.EIO
        try:
            os.write(fd, struct.pack("=IiQ", 16 + len(body), -error, unique) + body)
        except OSError as gone:
            if gone.errno != errno.ENOENT:  # whoever asked was killed meanwhile
                raise


def main(source: str, folder: str, fault: str, command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, private, None):  # CLONE_NEWNS
        return 77
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 77
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"slow", os.fsencode(folder), b"fuse", 0, options.encode()):
        return 77
    threading.Thread(target=serve, args=(fd, SlowView(source, fault)), daemon=True).start()
    code = subprocess.run(command).returncode
    libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], sys.argv[4:]))
