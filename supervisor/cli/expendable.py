"""A command's work in a child that may hang, and a parent that never does.

$HOME, state_dir, fleet_file, a file that is named, a folder of PATH: each may lie on a mount whose
server is gone, and a call into it never returns. The parent touches none. It passes on output and
signals, and leaves where a thread of the child has been in one call into storage for too long:
one line names the path and the step. What is slow and moves goes on, for as long as it takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import sys
import time
from pathlib import Path
from typing import NoReturn

from supervisor.core.errors import TransientError, UserError
from supervisor.host import announced, procfs
from supervisor.host.announced import Board, LeftBehind

STORAGE_S = 15.0  # in one call without a sign of life: a server that restarts answers sooner
TIMEOUT_VARIABLE = "SUPERV_STORAGE_TIMEOUT_S"
# Slurm waits for a Prolog while a job waits; it lets the job begin whatever it could not see.
PROLOG_S = 3.0
HUNG_CODE = {"sweep": 4, "prolog": 0}  # as they end where they could not do their work
LOGGED = ("prolog", "healthcheck")  # slurmd throws away what they print
_LOOKS = 5  # that must find the call unchanged, however slow the machine
_POLL_S, _POLL_LATER_S = 0.1, 0.5  # how soon a signal is passed on; later: who watches for days
_SOON_S = 10.0
_LET_END_S = 1.0  # after Ctrl-C, where it hangs
_PATH = "looking into PATH"
_PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_BY_KERNEL = 128  # SI_KERNEL: the terminal sends it to the child as well
# Waits for a server that a signal may end (state S), by the kernel's function; D is one anyway.
_SERVERS = ("request_wait_answer", "fuse_", "nfs", "rpc_", "nlmclnt", "cifs", "ceph")


def in_a_child(command: str) -> None:
    """Return in a child; the parent never returns, and ends as the child does.

    Raises UserError for a setting that is none, OSError where no process can be made.
    """
    try:
        _fork(command)
    except TransientError as error:
        _say(command, str(error))
        _end(HUNG_CODE.get(command, 1))
    except (UserError, OSError) as error:
        if command != "prolog":  # any other exit code than 0 drains the node
            raise
        _say(command, f"the node was not looked at, the job may begin: {error}")
        _end(0)


def _fork(command: str) -> None:
    """Raises TransientError too, where an earlier one is stuck in this very command."""
    limit_s = _limit_s(command)
    stuck = announced.find_stuck()
    argv = tuple(sys.argv[1:])
    for one in stuck:
        if one.argv == argv and not one.at.path:
            raise TransientError(announced.refusal(one))
    for one in stuck:
        if one.at.what == _PATH:
            _leave_out(one.at.path, "an earlier superv hangs there")
    while True:
        watched = _Watched(command, argv, limit_s)
        if watched.start(stuck):
            return
        hung = watched.follow()
        if hung.at.what != _PATH:
            _say(command, watched.text(hung))
            _end(128 + watched.interrupted if watched.interrupted else HUNG_CODE.get(command, 1))
        _leave_out(hung.at.path, f"it has not answered for {limit_s:g} s")


def _limit_s(command: str) -> float:
    given = os.environ.get(TIMEOUT_VARIABLE)
    if given is None:
        return PROLOG_S if command == "prolog" else STORAGE_S
    try:
        limit_s = float(given)
    except ValueError:
        limit_s = 0.0
    if not 0.5 <= limit_s <= 3600:
        raise UserError(f"{TIMEOUT_VARIABLE}={given}: expected 0.5 to 3600 seconds")
    return limit_s


def _leave_out(folder: str, why: str) -> None:
    there = os.environ.get("PATH", "").split(":")
    kept = [part for part in there if part != folder]
    if kept == there:
        return
    os.environ["PATH"] = ":".join(kept)
    where = announced.place(folder)
    _print(f"superv: note: {where} is left out of PATH: {why}")


def _say(command: str, text: str) -> None:
    if command in LOGGED:
        import syslog

        syslog.openlog("superv", 0, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR, f"{command}: {text}"[:1000])
    from supervisor.host.terminal import show_cursor

    with contextlib.suppress(OSError):
        show_cursor()
    _print(f"superv: {text}")


def _print(text: str) -> None:
    from supervisor.host.terminal import printable

    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def _end(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # some schedulers start a program without
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    os._exit(code)  # the interpreter's own end might touch what hangs


class _Watched:
    """A child, and what is seen of it."""

    def __init__(self, command: str, argv: tuple[str, ...], limit_s: float) -> None:
        self._command, self._argv, self._limit_s = command, argv, limit_s
        self._board = Board()
        self._pid = 0
        self.interrupted = 0  # the signal that a person sent
        self._pipes: dict[int, int] = {}  # the child's output: where it comes from, where it goes
        self._reader_gone = False
        self._same: dict[int, tuple[int, float, int]] = {}  # thread: switches, since, looks
        self._told = False
        self._hung_s = 0.0

    # --- the child ---

    def start(self, stuck: list[LeftBehind]) -> bool:
        """Fork; True in the child."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED)
        theirs = self._make_pipes()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid:
            for fd in set(theirs.values()):
                os.close(fd)
            return False
        for into, fd in theirs.items():
            os.dup2(fd, into)
        for fd in (*set(theirs.values()), *self._pipes):
            os.close(fd)
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED)
        announced.announce_on(self._board, stuck)
        for folder in dict.fromkeys(os.environ.get("PATH", "").split(":")):
            if folder.startswith("/"):
                with announced.at(_PATH, folder), contextlib.suppress(OSError):
                    Path(folder).stat()
        return True

    def _make_pipes(self) -> dict[int, int]:
        """Where output goes to a pipe, whoever reads that must not wait for a child that hangs."""
        theirs: dict[int, int] = {}
        same: dict[tuple[int, int], int] = {}
        for fd in (1, 2):
            try:
                found = os.fstat(fd)
            except OSError:  # closed
                continue
            if not (stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)):
                continue
            key = (found.st_dev, found.st_ino)
            if key not in same:
                out, same[key] = os.pipe()
                self._pipes[out] = fd
            theirs[fd] = same[key]
        return theirs

    # --- its parent ---

    def follow(self) -> LeftBehind:
        """Pass on what the child writes until it ends, and end alike; returns where it hangs."""
        ended = os.pidfd_open(self._pid)
        polled = select.poll()
        for fd in (ended, *self._pipes):
            polled.register(fd, select.POLLIN)
        began, looked = time.monotonic(), 0.0
        while True:
            wait_s = _POLL_S if time.monotonic() - began < _SOON_S else _POLL_LATER_S
            ready = [fd for fd, _ in polled.poll(1000 * wait_s)]
            for fd in ready:
                if fd != ended and not self._pass_on(fd):
                    polled.unregister(fd)
            if ended in ready:
                self._drain(polled)
                self._end_alike()
            self._take_signals()
            now = time.monotonic()
            limit_s = min(self._limit_s, _LET_END_S) if self.interrupted else self._limit_s
            if now - looked >= min(0.5, limit_s / (2 * _LOOKS)):
                looked = now
                if (tid := self._hung(now, limit_s)) is not None:
                    os.close(ended)
                    return self._give_up(tid)

    def _pass_on(self, fd: int) -> bool:
        """One piece; False where no more comes, or nobody reads it."""
        data = os.read(fd, 1 << 16)
        try:
            if data:
                _write(self._pipes[fd], data)
                return True
        except BrokenPipeError:
            self._reader_gone |= self._pipes[fd] == 1
        del self._pipes[fd]
        os.close(fd)
        return False

    def _drain(self, polled: select.poll) -> None:
        """What is still in the pipes; a grandchild may keep them open forever."""
        while ready := [fd for fd, _ in polled.poll(0) if fd in self._pipes]:
            for fd in ready:
                if not self._pass_on(fd):
                    polled.unregister(fd)

    def _end_alike(self) -> NoReturn:
        _, status = os.waitpid(self._pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status)
        if code < 0 and self._command == "prolog" and not self.interrupted:
            _say(self._command, f"ended by signal {-code} (memory?): the job may begin")
            _end(0)
        if code < 0:
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left its own
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
            os.kill(os.getpid(), -code)
        _end(141 if code == 0 and self._reader_gone else code if code >= 0 else 128 - code)

    def _take_signals(self) -> None:
        """Give the child what was sent to this process alone."""
        while (found := signal.sigtimedwait(_PASSED, 0)) is not None:
            if found.si_code != _BY_KERNEL:
                os.kill(self._pid, found.si_signo)  # not reaped yet
            if signal.getsignal(found.si_signo) is not signal.SIG_IGN:
                self.interrupted = found.si_signo

    def _hung(self, now: float, limit_s: float) -> int | None:
        """The thread that has been in one call into storage for too long."""
        same = {}
        for thread, switches in procfs.waiting_threads(self._pid, _SERVERS):
            if thread.name == announced.OWN_DEADLINE:
                continue
            before, since, looks = self._same.get(thread.pid, (-1, now, 0))
            same[thread.pid] = (
                (switches, since, looks + 1) if before == switches else (switches, now, 1)
            )
        self._same = same
        longest = max((now - since for _, since, _ in same.values()), default=0.0)
        if longest >= self._limit_s / 3 and not self._told and os.isatty(2):
            self._told = True
            _print(f"superv: waits for storage: {self._where(next(iter(same)))}")
        for tid, (_, since, looks) in same.items():
            if now - since >= limit_s and looks >= _LOOKS:
                self._hung_s = now - since
                return tid
        return None

    def _where(self, tid: int) -> str:
        step = self._board.read()
        path = procfs.waits_for(self._pid, tid) or step.path
        return f"{announced.place(path)}{f' ({step.what})' if step.what else ''}"

    def _give_up(self, tid: int) -> LeftBehind:
        step = self._board.read()
        stuck = LeftBehind(
            pid=self._pid,
            since=time.time(),
            argv=self._argv,
            at=step,
            path=procfs.waits_for(self._pid, tid) or step.path,
        )
        self._board.give_up(stuck)
        self._board.close()
        os.kill(self._pid, signal.SIGKILL)  # ends it when the mount is back
        for fd in self._pipes:
            os.close(fd)
        return stuck

    def text(self, hung: LeftBehind) -> str:
        """One line: what hangs, in which step, and what to do."""
        step = hung.at.what or "a call into storage"
        if hung.at.path not in ("", hung.path):
            step += f" ({hung.at.path})"
        return (
            f"{announced.place(hung.path)} does not answer: {step} has hung for "
            f"{self._hung_s:.0f} s{announced.way_out(hung.at)}; process {hung.pid} stays until "
            "then, and superv does not try it again beside that"
        )


def _write(fd: int, data: bytes) -> None:
    """All of it. Raises BrokenPipeError."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # whoever shares the pipe has made it so
            select.select([], [fd], [])


def _die_with(parent: int) -> None:
    """A parent that is killed takes its child along, as one process would end."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
