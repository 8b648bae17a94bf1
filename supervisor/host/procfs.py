"""What /proc tells of processes: read and parsed here and nowhere else. Field order: proc(5).

Processes come and go while somebody looks: one that is gone, and one that may not be read, is None
and no error; only where the reader itself is out of descriptors or memory, OSError says so. A pid
is used again; a pid with its start time names a process until the next boot. `root` is
where the proc file system is, or a recorded tree of files that looks like one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = "/proc"
GONE = "ZX"  # states of what has ended: a zombie that waits for its parent, and X on its way out
_STAT_BYTES = 4096  # more than any stat line: 52 numbers and a name of at most 64 bytes
_NONE_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of the reader's own
_EXEC_TRIES, _EXEC_S = 100, 0.001  # an execve is over within milliseconds


class Stat(NamedTuple):
    """One line of /proc/PID/stat, as far as somebody needs it."""

    pid: int
    name: str  # of the program, or what the process called itself; 15 bytes, 63 of kernel threads
    state: str  # R running, S sleeping, D uninterruptible, T stopped, Z zombie …
    parent: int
    session: int
    started: int  # clock ticks after boot

    @property
    def alive(self) -> bool:
        """Whether it has not ended: a zombie has."""
        return self.state not in GONE


def parse_stat(line: bytes) -> Stat:
    """Raises ValueError or IndexError for a line that is none. A name may hold blanks and ")"."""
    left, _, right = line.rpartition(b")")
    number, _, name = left.partition(b" (")
    fields = right.split(maxsplit=20)
    return Stat(
        int(number),
        name.decode(errors="replace"),
        fields[0].decode(),
        int(fields[1]),
        int(fields[3]),
        int(fields[19]),
    )


def stat(pid: int, root: str = ROOT) -> Stat | None:
    """The process as it is now, a zombie too; None where it is gone or may not be read."""
    line = _read(f"{root}/{pid}/stat", _STAT_BYTES)
    return parse_stat(line) if line else None


def pids(root: str = ROOT) -> list[int]:
    """Of every process that can be seen."""
    with os.scandir(root) as entries:
        return [int(entry.name) for entry in entries if entry.name.isdecimal()]


def processes(root: str = ROOT) -> Iterator[Stat]:
    """Every process that can be seen, but those that end meanwhile."""
    for pid in pids(root):
        if (found := stat(pid, root)) is not None:
            yield found


def state(pid: int, root: str = ROOT) -> str | None:
    """The letter of `Stat.state`; None where the process is gone."""
    found = stat(pid, root)
    return None if found is None else found.state


def start_time(pid: int, root: str = ROOT) -> int | None:
    """Clock ticks after boot at which it started, a zombie too; None where the process is gone."""
    found = stat(pid, root)
    return None if found is None else found.started


def alive(pid: int, started: int, root: str = ROOT) -> bool:
    """Whether the process that started then has not ended: neither a zombie nor another's pid."""
    found = stat(pid, root)
    return found is not None and found.started == started and found.alive


def name(pid: int, root: str = ROOT) -> str:
    """What the kernel calls it; empty where it is gone."""
    return (_read(f"{root}/{pid}/comm") or b"").decode(errors="replace").strip()


def processor_s(pid: int, root: str = ROOT) -> tuple[float, float]:
    """Seconds that its first thread ran, and that it was ready to run and waited for a processor.

    Linux, Documentation/scheduler/sched-stats.rst: the wait that is under way is not counted yet.
    Zeros where the process is gone, or the kernel was built without CONFIG_SCHED_INFO.
    """
    words = (_read(f"{root}/{pid}/schedstat") or b"0 0").split()
    return int(words[0]) / 1e9, int(words[1]) / 1e9


def argv(pid: int, root: str = ROOT) -> tuple[str, ...]:
    """Its command line; empty for the kernel's own, for what has ended, and where unreadable."""
    for _ in range(_EXEC_TRIES):
        if line := _read(f"{root}/{pid}/cmdline"):
            return tuple(line.decode(errors="replace").removesuffix("\0").split("\0"))
        # In the middle of an execve the line is empty as well, but the program is known.
        try:
            Path(f"{root}/{pid}/exe").readlink()
        except OSError:
            return ()
        time.sleep(_EXEC_S)
    return ()


def executable(pid: int, root: str = ROOT) -> str | None:
    """The file that it runs, also one that was replaced since; None where that may not be seen."""
    try:
        return str(Path(f"{root}/{pid}/exe").readlink()).removesuffix(" (deleted)")
    except OSError:
        return None


def open_files(pid: int, root: str = ROOT) -> dict[str, int]:
    """What its descriptors lead to, and one of them; empty where that may not be seen.

    The kernel adds " (deleted)" to a path that leads there no more.
    """
    found: dict[str, int] = {}
    try:
        with os.scandir(f"{root}/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    found.setdefault(str(Path(entry.path).readlink()), int(entry.name))
    except OSError as error:
        if error.errno in _NONE_LEFT:
            raise
    return found


def children(pid: int, root: str = ROOT) -> set[int]:
    """Pids of its children, ended ones too. A kernel without CONFIG_PROC_CHILDREN costs a scan."""
    found: set[int] = set()
    try:
        with os.scandir(f"{root}/{pid}/task") as tasks:
            lists = [_read(f"{root}/{pid}/task/{task.name}/children") for task in tasks]
    except OSError as error:
        if error.errno in _NONE_LEFT:
            raise
        return found
    if any(line is None for line in lists) and not any(lists):
        return {one.pid for one in processes(root) if one.parent == pid}
    for line in lists:
        found.update(int(word) for word in (line or b"").split())
    return found


def catches(pid: int, number: int, root: str = ROOT) -> bool:
    """Whether the process has a handler for a signal (proc(5), status: SigCgt)."""
    for line in (_read(f"{root}/{pid}/status") or b"").splitlines():
        name, _, mask = line.partition(b":")
        if name == b"SigCgt":
            return bool(int(mask, 16) >> (number - 1) & 1)
    return False


def cgroups(pid: int, root: str = ROOT) -> list[str]:
    """The lines of its cgroup file, "NUMBER:CONTROLLERS:PATH"; cgroups(7)."""
    return (_read(f"{root}/{pid}/cgroup") or b"").decode(errors="replace").split("\n")


def mounts(kind: str, root: str = ROOT) -> list[tuple[str, str]]:
    """Mounts of a type that this process sees: what of the file system, and where. proc(5)."""
    found = []
    for line in (_read(f"{root}/self/mountinfo") or b"").decode(errors="replace").split("\n"):
        words = line.split()
        if "-" in words and words[words.index("-") + 1 : words.index("-") + 2] == [kind]:
            found.append((words[3], words[4]))
    return found


def mount_of(path: str, root: str = ROOT) -> tuple[str, str, str]:
    """Where what a path lies on is mounted, its type, and what of; empty where that is not known.

    By the path's text alone: nothing is touched, and links are not followed.
    """
    found = ("", "", "")
    for line in (_read(f"{root}/self/mountinfo") or b"").split(b"\n"):
        words = line.split()
        if len(words) < 9 or b"-" not in words[5:]:
            continue
        point, more = _octal(words[4]), words[words.index(b"-", 5) + 1 :]
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(found[0]) and len(more) >= 2:  # the last one hides others
            found = (point, _octal(more[0]), _octal(more[1]))
    return found


def _octal(word: bytes) -> str:
    """A word of mountinfo, where blanks are written as \\040."""
    plain = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8) & 0xFF]), word)
    return plain.decode(errors="replace")


def waiting_threads(pid: int, servers: tuple[str, ...], root: str = ROOT) -> list[tuple[Stat, int]]:
    """Threads that wait for storage, and how often each has gone to sleep so far.

    They are in uninterruptible sleep, or in a kernel function whose name begins as one of
    `servers`. One with the same count later has been in one call all the time.
    """
    found = []
    for tid in threads(pid, root):
        one = stat(tid, f"{root}/{pid}/task")
        if one is None or one.state not in "DS":
            continue
        where = (_read(f"{root}/{pid}/task/{tid}/wchan") or b"").decode(errors="replace")
        if one.state == "D" or where.startswith(servers):
            status = _read(f"{root}/{pid}/task/{tid}/status") or b""
            sleeps = re.search(rb"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
            found.append((one, int(sleeps[1]) if sleeps else 0))
    return found


def unkillable(begin: str, root: str = ROOT) -> list[Stat]:
    """This user's processes whose name begins so, that were killed and can't end (SIGKILL waits).

    They sleep uninterruptibly in a call that does not return.
    """
    found = []
    for one in processes(root):
        if one.state != "D" or not one.name.startswith(begin):
            continue
        status = _read(f"{root}/{one.pid}/status") or b""
        waiting = re.findall(rb"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)", status, re.MULTILINE)
        killed = any(int(mask, 16) & 1 << 8 for mask in waiting)
        if killed and real_uid(one.pid, root) == os.getuid():
            found.append(one)
    return found


def age_s(started: int, root: str = ROOT) -> float:
    """Seconds since something that `Stat.started` tells of."""
    uptime = (_read(f"{root}/uptime") or b"0").split()[0]
    return max(0.0, float(uptime) - started / os.sysconf("SC_CLK_TCK"))


def threads(pid: int, root: str = ROOT) -> list[int]:
    """Its threads; none where it is gone."""
    try:
        with os.scandir(f"{root}/{pid}/task") as entries:
            return [int(entry.name) for entry in entries]
    except OSError as error:
        if error.errno in _NONE_LEFT:
            raise
        return []


def waits_for(pid: int, tid: int, root: str = ROOT) -> str:
    """The path of the system call that a thread is in; empty where that can't be told.

    By the call's arguments: a pointer to a path, or a descriptor. Only a call is looked into: a
    page fault may hold the lock that reading another's memory takes.
    """
    words = (_read(f"{root}/{pid}/task/{tid}/syscall") or b"").split()
    if len(words) < 7 or words[0].startswith(b"-"):
        return ""
    first, *rest = (int(word, 16) for word in words[1:5])
    with contextlib.suppress(OSError):
        link = os.readlink(f"{root}/{pid}/fd/{first}") if first < 1 << 20 else ""  # noqa: PTH115
        if link.startswith("/"):
            return link
    for pointer in (first, *rest):
        if pointer < 1 << 16:
            continue
        with contextlib.suppress(OSError, OverflowError):
            with open(f"{root}/{pid}/mem", "rb", buffering=0) as memory:
                memory.seek(pointer)
                text = memory.read(4096 - pointer % 4096).partition(b"\0")[0]
            if text.startswith(b"/"):
                return os.fsdecode(text)
    return ""


def real_uid(pid: int, root: str = ROOT) -> int | None:
    """Who started it, whatever rights it has taken since; None where it is gone."""
    # By LF alone: a process may call itself "x\rUid:\t0".
    for line in (_read(f"{root}/{pid}/status") or b"").split(b"\n"):
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return None


def environ(pid: int, root: str = ROOT) -> dict[str, str] | None:
    """The environment that it was started with; None where it is gone or may not be read.

    Reading takes the lock of the process's memory map: it waits for a process that sleeps in a
    hung file system with that lock.
    """
    block = _read(f"{root}/{pid}/environ")
    if block is None:
        return None
    words = block.decode(errors="replace").split("\0")
    return dict(word.split("=", 1) for word in words if "=" in word)


def environ_has(pid: int, start: str, root: str = ROOT) -> bool:
    """Whether a variable of its environment begins so, as "NAME=" or "NAME=begin".

    False where it may not be read. Waits as `environ` does.
    """
    block, word = _read(f"{root}/{pid}/environ"), os.fsencode(start)
    return block is not None and (block.startswith(word) or b"\0" + word in block)


def lockers(path: Path, root: str = ROOT) -> list[int]:
    """Pids of other processes of this machine that hold fcntl locks on a file; proc_locks(5)."""
    try:
        info = path.stat()
    except OSError:
        return []
    device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    rows = (line.split() for line in (_read(f"{root}/locks") or b"").decode().split("\n"))
    found = {row[-4] for row in rows if len(row) == 8 and row[1] == "POSIX" and row[-3] == device}
    return sorted({int(pid) for pid in found if pid.isdecimal()} - {0, os.getpid()})


def boot_id(root: str = ROOT) -> str | None:
    """Another one after every boot; None where the kernel tells none."""
    line = _read(f"{root}/sys/kernel/random/boot_id")
    return line.decode(errors="replace").strip() if line else None


def _read(path: str, size: int | None = None) -> bytes | None:
    """All of a file, or what one call gives; None where it can't be read.

    Raises OSError where it is this process that has no descriptor or memory left.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall() if size is None else file.read(size)
    except OSError as error:  # ProcessLookupError where the process ended after the open
        if error.errno in _NONE_LEFT:
            raise
        return None
