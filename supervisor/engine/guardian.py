"""Starts a run's next engine when one has ended that should not have: a small process beside it.

    python -I -S guardian.py RUN_DIR FD

FD is one end of a socket pair; the other is the engine's. Before it ends as it should the engine
says there that it is over. Without that word the end of the line is the engine's death, whatever
killed it, and the next one is started with a line of its own: at once, then after growing pauses,
and without an end, because disks have room again and file systems come back. Whether there may be
another engine the journal's lock decides: one that finds a living one, or a run that has ended,
ends with 0, and so does this process. Where somebody has the lock and does not listen, be it an
engine that is just beginning or one that is about to die, it ends with BUSY: one is tried later.

Standard library only, and little of it: it takes 4 MB (PSS) for as long as the run lives.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import sys
import time

OVER = b"over"
PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # before a start; the last one repeats
HEALTHY_S = 600.0  # an engine that lived for so long is no part of a row of failures
ENV = "/usr/bin/env"
READY_FD, LINE_FD = 3, 4  # in the engine that is started
ABOVE_FD = 10  # what is handed to an engine lies above the descriptors that it will have
BUSY = os.EX_TEMPFAIL  # an engine's code: another process has the journal, and does not listen


class EngineLog:
    """The engine's own log; opened for each line, because it is rotated."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path, flags, 0o600)

    def say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            fd = self.open()
        except OSError:
            return  # nobody ends for want of a log
        try:
            os.write(fd, f"{stamp} WARNING guardian: {text}\n".encode())
        except OSError:
            pass
        finally:
            os.close(fd)


def was_over(line: socket.socket) -> bool:
    """Wait for the engine's end; whether it said that it is over."""
    said = b""
    while True:
        try:
            data = line.recv(64)
        except OSError:
            data = b""
        if not data:
            return said.startswith(OVER)
        said = (said + data)[:64]


def start(run: str, log: EngineLog) -> tuple[int, socket.socket]:
    """Start an engine; returns its pid and our end of its line. Raises OSError."""
    ours, theirs = socket.socketpair()
    high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, ABOVE_FD)
    theirs.close()
    try:
        low = log.open()
    except OSError:
        low = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    to = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, ABOVE_FD)
    os.close(low)
    argv = [sys.executable, "-m", "supervisor.engine.process", run, str(READY_FD), str(LINE_FD)]
    argv = [ENV, "--chdir=/", *argv]  # see supervisor.proc: what hangs on storage is the child
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_DUP2, high, LINE_FD),
        (os.POSIX_SPAWN_DUP2, to, 1),
        (os.POSIX_SPAWN_DUP2, to, 2),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, READY_FD, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        pid = os.posix_spawn(ENV, argv, os.environ, file_actions=actions, setsid=True)
    except OSError:
        ours.close()
        raise
    finally:
        os.close(high)
        os.close(to)
    return pid, ours


def is_gone(run: str) -> bool:
    """Whether a run's folder was taken away. One that can't be looked at just now is not gone:
    permissions, mounts and servers come back."""
    try:
        return not stat.S_ISDIR(os.stat(run).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def how(status: int) -> str:
    """An end by waitpid's status, in words."""
    if os.WIFSIGNALED(status):
        return f"was ended by signal {os.WTERMSIG(status)}"
    if os.waitstatus_to_exitcode(status) == BUSY:
        return "found that another process has the journal, and does not listen"
    return f"ended with code {os.waitstatus_to_exitcode(status)}"


def guard(run: str, line: socket.socket) -> None:
    """Until a run is over, or somebody else has its engine."""
    log, tries, ended = EngineLog(f"{run}/engine.log"), 0, "is gone"
    if was_over(line):
        return
    while True:
        pause = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
        log.say(f"the engine {ended}; the next one starts in {pause:.0f} s")
        time.sleep(pause)
        if is_gone(run):
            return
        tries, began = tries + 1, time.monotonic()
        try:
            pid, line = start(run, log)
        except OSError as error:
            ended = f"could not be started: {error.strerror or error}"
            continue
        over = was_over(line)
        line.close()
        _, status = os.waitpid(pid, 0)
        if over or status == 0:
            return
        ended = how(status)
        if time.monotonic() - began >= HEALTHY_S:
            tries = 0


def _heed_not(number: int, frame: object) -> None:
    """A terminal that goes away is no reason to end. A handler is not inherited by engines."""


if __name__ == "__main__":
    for quiet in (signal.SIGHUP, signal.SIGINT):
        signal.signal(quiet, _heed_not)
    guard(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
