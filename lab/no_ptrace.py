"""Becomes a command that can't trace others, nor its children: no_ptrace.py PROGRAM ARGUMENT...

What sites reach with Yama, which not every kernel has, is reached here with a seccomp filter: the
calls that debuggers and stack samplers use answer EPERM. Reading /proc/PID/mem stays possible.
"""

import ctypes
import errno
import os
import struct
import sys

# Numbers of the calls: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h;
# of the architectures: include/uapi/linux/audit.h.
CALLS = {  # ptrace, process_vm_readv, process_vm_writev, pidfd_getfd
    "x86_64": (0xC000003E, (101, 310, 311, 438)),
    "aarch64": (0xC00000B7, (117, 270, 271, 438)),
}
# Offsets in struct seccomp_data, and classic BPF (include/uapi/linux/{seccomp,filter}.h).
NUMBER, ARCH = 0, 4
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.EPERM
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


def program() -> bytes:
    """The filter: FAIL for the calls of this architecture, ALLOW for all else."""
    arch, calls = CALLS[os.uname().machine]
    steps = [(LOAD, 0, 0, ARCH), (JUMP_IF_EQUAL, 0, len(calls) + 1, arch), (LOAD, 0, 0, NUMBER)]
    for i, call in enumerate(calls):
        steps.append((JUMP_IF_EQUAL, len(calls) - i, 0, call))
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, FAIL)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def main() -> None:
    code = ctypes.create_string_buffer(program())
    length = (len(code) - 1) // 8
    head = ctypes.create_string_buffer(struct.pack("@HP", length, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    # Without no_new_privs, which root may do: slurmstepd has to become the user.
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, head, 0, 0) != 0:
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


main()
