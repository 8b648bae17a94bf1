"""A mount that hangs as a dead NFS server's does: `python hung_fuse.py FOLDER COMMAND…`.

Mounts FOLDER through raw /dev/fuse in a mount namespace of its own, answers INIT only, and runs
COMMAND there. A process that touches anything below the folder sleeps uninterruptibly (state D, no
signal ends it) from the moment its request was read. When COMMAND ends the connection is cut, which
frees every sleeper. Exit code 77: this machine has no /dev/fuse, or does not let us mount.

The numbers are those of linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading

HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node id, uid, gid, pid, padding
FUSE_INIT = 26


def swallow(fd: int) -> None:
    """Read requests for ever; answer INIT, nothing else."""
    while True:
        try:
            request = os.read(fd, 1 << 18)
        except OSError:
            return
        _, opcode, unique, *_ = HEADER.unpack_from(request)
        if opcode == FUSE_INIT:
            major, minor, readahead, _ = struct.unpack_from("=IIII", request, HEADER.size)
            body = struct.pack("=IIIIHHII", major, minor, readahead, 0, 12, 9, 4096, 1) + bytes(32)
            os.write(fd, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)


def main(folder: str, command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    private = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, private, None):  # CLONE_NEWNS
        return 77
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 77
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options.encode()):
        return 77
    threading.Thread(target=swallow, args=(fd,), daemon=True).start()
    code = subprocess.run(command).returncode
    libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH
    os._exit(code)  # closes the descriptor: the connection ends, and every sleep with it


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
