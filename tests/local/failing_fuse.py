"""A mount that answers every request with one error: `python failing_fuse.py FOLDER ERRNO`.

Prints "mounted", then serves until it is killed, which ends the mount's connection. The numbers are
those of linux/fuse.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node id, uid, gid, pid, padding
FUSE_FORGET, FUSE_INIT, FUSE_INTERRUPT, FUSE_BATCH_FORGET = 2, 26, 36, 42


def main(folder: str, error: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"failing", os.fsencode(folder), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount", folder)
    print("mounted", flush=True)
    while True:
        request = os.read(fd, 1 << 20)
        _, opcode, unique, *_ = HEADER.unpack_from(request)
        if opcode == FUSE_INIT:
            major, minor, readahead, _ = struct.unpack_from("=IIII", request, HEADER.size)
            body = struct.pack("=IIIIHHII", major, minor, readahead, 0, 12, 9, 4096, 1) + bytes(32)
            os.write(fd, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
        elif opcode not in (FUSE_FORGET, FUSE_INTERRUPT, FUSE_BATCH_FORGET):
            os.write(fd, struct.pack("=IiQ", 16, -error, unique))


main(sys.argv[1], int(sys.argv[2]))
