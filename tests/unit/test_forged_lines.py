"""What users can make the kernel write, and that no check takes it for a fault.

A program's name (comm) is 15 bytes of anything; the name of a file, a control group or a mount
option is longer. The kernel prints them in its own lines, with its own facility. Here every part of
every line that a check looks for is put in the place of such a name, in every such line.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from healthchecks.accelerators.amd_wordings import AMD_PATTERNS
from healthchecks.checks.disk import _PATTERNS as DISK
from healthchecks.checks.kernel import _KERNEL_PATTERNS, _NIC_PATTERNS
from healthchecks.checks.memory import _MEMORY_PATTERNS as MEMORY
from healthchecks.checks.nfs_stats import _LOST, _SERVER, _STATE
from healthchecks.frame.check import Result, Status
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.registry import registered
from healthchecks.sources import kernel_log
from healthchecks.sources.kernel_patterns import KernelLogPattern, device_in
from healthchecks.sources.wordings_disk import DISK_PATTERNS
from healthchecks.sources.wordings_pcie import PCIE_PATTERNS
from healthchecks.sources.wordings_storage import STORAGE_PATTERNS
from healthchecks.sources.xid import driver_loaded, parse

COMM = 15
PATTERNS = (
    *(*DISK, *_KERNEL_PATTERNS, *_NIC_PATTERNS, *MEMORY, *AMD_PATTERNS),
    *(*DISK_PATTERNS, *PCIE_PATTERNS, *STORAGE_PATTERNS),
)

# Lines of Linux 4.18 to 6.12. {c}: a program's name; {f}: of a file, a control group, an option.
TEMPLATES = {
    # arch/x86/mm/fault.c show_signal_msg, arch/*/mm/fault.c; mm/memory.c print_vma_addr
    "segfault": "{c}[4242]: segfault at 0 ip 000055d4c0de sp 00007ffd error 4 in {f}[55d4+1000]",
    "segfault likely": "{c}[42]: segfault at 0 ip 0 sp 0 error 6 in {f}[0,0+1] likely on CPU 3",
    "trap": "traps: {c}[4242] general protection fault ip:401136 sp:7ffd error:0 in {f}[401000+1]",
    "trap invalid": "traps: {c}[4242] trap invalid opcode ip:401136 sp:7ffd error:0 in {f}[4+1]",
    "arm64": "{c}[4242]: unhandled exception: DABT (lower EL), ESR 0x92000006, level 2 in {f}[4+1]",
    "frame": "{c}[4242] bad frame in rt_sigreturn frame:0 ip:0 sp:0 orax:0 in {f}[4+1]",
    "signal": "{c}: potentially unexpected fatal signal 11.",  # kernel/signal.c
    "oom": "{c} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    "oom-kill": "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={f},mems_allowed=0,"
    "oom_memcg=/{f},task_memcg=/{f},task={c},pid=4242,uid=1000",
    "killed": "Memory cgroup out of memory: Killed process 4242 ({c}) total-vm:1kB, anon-rss:1kB",
    "killed by all": "Out of memory: Killed process 4242 ({c}) total-vm:1kB, anon-rss:1kB",
    "reaped": "oom_reaper: reaped process 4242 ({c}), now anon-rss:0kB, file-rss:0kB",
    "dump": "CPU: 3 PID: 4242 Comm: {c} Not tainted 6.8.0 #1",
    "task row": "[   4242]  1000  4242     1000      100    45056        0             0 {c}",
    "allocation": "{c}: page allocation failure: order:9, mode:0x40dc0(GFP_KERNEL), "
    "nodemask=(null),cpuset={f},mems_allowed=0",
    "vmalloc": "{c}: vmalloc error: size 4096, failed to allocate pages, mode:0xcc2,cpuset={f}",
    "hung owner": "INFO: task {c}:4242 is blocked on a mutex likely owned by task {c}:4243.",
    "split lock": "x86/split lock detection: #AC: {c}/4242 took a split_lock trap at address: 0x4",
    "bus lock": "x86/split lock detection: #DB: {c}/4242 took a bus_lock trap at address: 0x4",
    "argv": "process '{f}' launched '{f}' with NULL argv: empty string added",
    "stack": "process '{c}' started with executable stack",
    "capabilities": "capability: warning: `{c}' uses 32-bit capabilities (legacy support in use)",
    "syscall": "{c} uses obsolete (PF_INET,SOCK_PACKET)",
    "caches": "{c} (4242): drop_caches: 3",
    "deepest": "{c} (4242) used greatest stack depth: 10000 bytes left",
    "beyond": "{c}: attempt to access beyond end of device",
    "audit": 'audit: type=1326 audit(1.1:1): auid=1000 uid=1000 comm="{c}" exe="{f}" sig=31',
    "ext4": "EXT4-fs error (device sda1): ext4_lookup:1853: inode #12: comm {c}: bad {f}",
    "overlay": "overlayfs: failed to resolve '{f}': -2",  # by mounts in a user namespace
    "tmpfs": "tmpfs: Unknown parameter '{f}'",
    "fuse": "fuse: Unknown parameter '{f}'",
    "cgroup": "cgroup: fork rejected by pids controller in /{f}",
    "netdev": "{d}: entered promiscuous mode",  # by devices in a user namespace
    "bridge": "br0: port 1({d}) entered blocking state",
    "neighbour": "neighbour: arp_cache: {d} overflow",
    "bond": "{d}: (slave {d}): Enslaving as an active interface with an up link",
    "tun": "tun: {c}: {f}",
    "mce": "Memory failure: 0x1: Sending SIGBUS to {c}:4242 due to hardware memory corruption",
    "lockup": "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [{c}:4242]",
    "hung": "INFO: task {c}:4242 blocked for more than 122 seconds.",
}
TRUE = {  # whatever the name is
    "mce": "page_lost",
    "lockup": "soft_lockup",
    "hung": "hung_task",
    "killed": "oom",
    "killed by all": "oom",
    "ext4": "fs_error",
}

BDF = "0000:3b:00"
LINES = [
    *(wording.example for pattern in PATTERNS for wording in pattern.wordings),
    f"NVRM: Xid (PCI:{BDF}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    f"NVRM: Xid (PCI:{BDF}): 48, pid=1, name=a, An uncorrectable double bit error (DBE)",
    f"NVRM: Xid (PCI:{BDF}): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset)",
    f"NVRM: GPU {BDF}.0: GPU has fallen off the bus.",
    f"NVRM: The NVIDIA GPU {BDF}.0\nNVRM: (PCI ID: 10de:2330) installed in this system has\nNVRM: "
    "fallen off the bus and is not responding to commands.",
    "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
    "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
    "mlx5_core 0000:9a:00.0 ib4: Link down",
    "mlx5_core 0000:9a:00.0: firmware version: 28.43.2026",
    "nfs: server 10.0.0.5 not responding, still trying",
    "NFS: __nfs4_reclaim_open_state: Lock reclaim failed!",
    "NFS: state manager: check lease failed on NFSv4 server 10.0.0.5 with error 13",
]


def _takes(pattern: KernelLogPattern, text: str) -> bool:
    cleared = bool(pattern.cleared_regex) and bool(re.match(pattern.cleared_regex, text))
    return cleared or device_in(pattern, text) is not None


READERS: dict[str, Callable[[str], object]] = {
    "xid": parse,
    "driver start": driver_loaded,
    "nfs server": _SERVER.match,
    "nfs locks": _LOST.match,
    "nfs leases": _STATE.match,
}
_REGEXES = [w.regex for p in PATTERNS for w in p.wordings] + [p.cleared_regex for p in PATTERNS]
_ANY = re.compile("|".join(f"(?:{regex})" for regex in _REGEXES if regex))  # saves most of the time


def taken(text: str) -> set[str]:
    """Who takes this line for a fault, or for a cure."""
    found = {name for name, reader in READERS.items() if reader(text)}
    if _ANY.match(text):
        found |= {pattern.name for pattern in PATTERNS if _takes(pattern, text)}
    return found


@functools.cache
def forged(kind: str) -> set[str]:
    """The lines that a template makes with all the names."""
    return {TEMPLATES[kind].format(**names) for names in hostile()}


def hostile() -> Iterator[dict[str, str]]:
    """Names cut out of the lines: a beginning as the program's, and all that follows as the file's.

    A network device's name has 15 bytes too, without blanks, slashes and colons.
    """
    for line in LINES:
        for end in range(COMM + 1):
            rest = line[end:]
            device = re.sub(r"[\s/:]", "_", line[:end])
            for file in (rest, line, rest[1:], f"]: {rest}"):
                yield {"c": line[:end], "f": file, "d": device}
                yield {"c": "\n" + line[: COMM - 1], "f": "\n" + file, "d": device}
        for begin in range(1, len(line)):
            yield {"c": line[begin : begin + COMM], "f": line[begin:], "d": "eth0"}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_no_name_that_a_user_chose_makes_a_fault(kind: str) -> None:
    true = {TRUE[kind]} if kind in TRUE else set()
    for line in forged(kind):
        assert taken(line) <= true, line


@pytest.mark.parametrize("line", LINES)
def test_the_drivers_own_lines_are_taken_and_begin_with_no_programs_name(line: str) -> None:
    assert taken(line) or "Link down" in line
    assert not kernel_log.program_first(line)


@pytest.mark.parametrize(
    "kind", [kind for kind, text in TEMPLATES.items() if text.startswith("{c}") and kind != "tun"]
)
def test_a_line_that_begins_with_a_programs_name_reaches_no_check(kind: str) -> None:
    """A second wall: no reader is asked, whatever its pattern."""
    for line in forged(kind):
        assert kernel_log.program_first(line), line


def test_every_pattern_is_of_the_lines_beginning_and_says_more_than_a_name_holds() -> None:
    for pattern in PATTERNS:
        for wording in pattern.wordings:
            assert wording.source, pattern.name
            alone = replace(pattern, wordings=(wording,))
            assert device_in(alone, wording.example) is not None, wording.example
            assert device_in(pattern, f"x{wording.example}") is None, wording.example
            assert device_in(pattern, wording.example[:COMM]) is None, wording.example


def test_a_programs_name_in_the_drivers_own_line_changes_nothing() -> None:
    for name in ("154, GPU recove", "): 79, ", "pid=1, name=", "fallen off the "):
        event = parse(f"NVRM: Xid (PCI:{BDF}): 13, pid=7, name={name}, Graphics Exception")
        assert event is not None and (event.code, event.recovery) == (13, None)


CRASH = """
import ctypes, os, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.CDLL(None).prctl(15, os.environb[b"NAME"])
ctypes.string_at(0)
"""


def _ring(after: int) -> list[str]:
    """Texts of the kernel's log after a record, as it stands."""
    found = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:
                continue
            if int(record.split(",")[1]) > after:
                found.append(record)
    finally:
        os.close(fd)


def _looked(check: str, records: list[str], root: Path) -> Result:
    (root / "dev").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/uptime").write_text(Path("/proc/uptime").read_text())
    (root / "proc/vmstat").write_text("oom_kill 0\n")
    (root / "dev/kmsg").write_text("".join(records))
    memory = Memory({}, time.time())
    ctx = Ctx(root=root, node="n1", now=time.time(), boot_id="b", memory=memory)
    try:
        return registered()[check].run(ctx)
    except Exception as skipped:  # Skip: nothing was found and there is no such device
        return Result(status=Status.SKIP, seen=str(skipped))


@pytest.mark.parametrize(
    "name", ["NVRM: Xid (PCI:", "hard LOCKUP", "EDAC MC0: 1 UE ", "Oops: 0 [#1]"]
)
def test_a_program_that_crashes_under_a_drivers_words(name: str, tmp_path: Path) -> None:
    """The kernel's own line of this machine, where it may be read and writes such lines at all."""
    try:
        before = _ring(-1)
    except OSError:
        pytest.skip("/dev/kmsg may not be read here")
    last = int(before[-1].split(",")[1]) if before else -1
    env = {**os.environ, "NAME": name}
    ended = subprocess.run([sys.executable, "-c", CRASH], env=env, check=False)
    assert ended.returncode == -signal.SIGSEGV
    records = [record for record in _ring(last) if "segfault" in record and name in record]
    if not records:
        pytest.skip("this kernel writes nothing of crashes (debug.exception-trace=0)")
    assert records[0].startswith("6,") and f";{name}[" in records[0]
    for check in ("xid", "kernel", "mem.poison"):
        result = _looked(check, records, tmp_path / check)
        assert result.status in (Status.OK, Status.SKIP), result
    assert ctypes  # the child's
