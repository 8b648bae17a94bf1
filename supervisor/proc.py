"""The only module that starts processes.

Every call has a deadline. A child that does not end is killed and then abandoned: nothing here
ever waits for a process in uninterruptible sleep (a hung NFS mount, a stuck driver). Children that
were abandoned are reaped when they end, without waiting.

Python starts a child by vfork: the whole interpreter stands still until the child has entered its
working directory and found its program, forever where either is on storage that hangs. So what is
executed is /usr/bin/env, on local disk; it enters the directory and becomes the program, and what
hangs is the child. A program or directory that is not there shows as env's exit code 127 or 125.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_OUTPUT = 8 * 1024 * 1024  # bytes kept of a child's output, from its end
FLOOD = 64 * 1024 * 1024  # a child that has written more than this is killed
FLOOD_POLL_S = 0.1
_children: weakref.WeakSet[subprocess.Popen[bytes]] = weakref.WeakSet()
_abandoned: list[tuple[tuple[str, ...], subprocess.Popen[bytes]]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A child that ended, or that was given up at its deadline (rc is None)."""

    argv: tuple[str, ...]
    rc: int | None  # negative: ended by that signal; None: still there when the deadline passed
    out: str
    err: str
    took_s: float

    @property
    def timed_out(self) -> bool:
        return self.rc is None

    def why(self) -> str:
        """One line that says how it failed."""
        name = Path(self.argv[0]).name
        if self.rc is None:
            return f"{name} did not answer within {self.took_s:.1f} s"
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return f"{name} ended with {self.rc}: {lines[-1] if lines else 'no output'}"


def _through_env(argv: Sequence[str], cwd: str) -> list[str]:
    if "=" in argv[0]:  # env would take it for a variable
        return ["/bin/sh", "-c", 'cd -- "$0" && exec "$@"', cwd, *argv]
    # A shell in the background leaves SIGINT and SIGQUIT ignored; children get them back.
    return ["/usr/bin/env", "--default-signal=INT,QUIT", "-C", cwd, "--", *argv]


def _start(
    argv: Sequence[str],
    *,
    stdin: bytes | None,
    env: Mapping[str, str] | None,
    cwd: str,
    out: int,
    err: int,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own."""
    reap()
    with open(os.memfd_create("in"), "w+b") as feed:
        if stdin is not None:
            feed.write(stdin)
            feed.seek(0)  # flushes
        child = subprocess.Popen(  # the one place where short-lived processes are started
            _through_env(argv, cwd),
            stdin=feed if stdin is not None else subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    _children.add(child)
    return child


def _read(fd: int) -> str:
    """The end of what was written, as whole lines where it is not all of it."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, MAX_OUTPUT, max(0, size - MAX_OUTPUT))
    if size > MAX_OUTPUT:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def _kill(argv: Sequence[str], child: subprocess.Popen[bytes]) -> None:
    """Kill the child's session and leave it to be reaped later."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    _abandoned.append((tuple(argv), child))


def give_up(child: subprocess.Popen[bytes]) -> None:
    """Kill a child that `spawn` started, its process group with it, and never wait for it."""
    _kill(("",), child)
    reap()


def reap() -> int:
    """Collect abandoned children that have ended; returns how many are still there."""
    _abandoned[:] = [(argv, child) for argv, child in _abandoned if child.poll() is None]
    return len(_abandoned)


def children() -> frozenset[int]:
    """Pids of what was started here and has not been reaped."""
    return frozenset(child.pid for child in _children if child.returncode is None)


def stuck(argv: Sequence[str]) -> bool:
    """Whether an abandoned child of this command is still there."""
    reap()
    return any(command == tuple(argv) for command, _ in _abandoned)


class Runner(Protocol):
    """`run`, or what stands in for the programs of a simulated machine."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed: ...


async def run(
    argv: Sequence[str],
    *,
    deadline_s: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> Completed:
    """Run a command to its end or its deadline.

    A program that is not there answers with rc 127, a directory that can't be entered with 125.
    Output goes to memory files, never to a pipe that somebody else may keep open; a child that
    floods them is killed.
    """
    with _started(argv, stdin=stdin, env=env, cwd=cwd) as running:
        if running.child is not None:
            running.flooded = await _ended_or_flooded(running, running.began + deadline_s)
        return running.completed()


def run_sync(
    argv: Sequence[str],
    *,
    deadline_s: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> Completed:
    """`run` for callers without an event loop; health checks have no time to import asyncio."""
    with _started(argv, stdin=stdin, env=env, cwd=cwd) as running:
        if running.child is not None:
            running.flooded = _ended_or_flooded_sync(running, running.began + deadline_s)
        return running.completed()


@dataclass(slots=True, kw_only=True)
class _Running:
    """A child and where its output goes; no child where none could be made."""

    argv: Sequence[str]
    began: float  # monotonic
    out: int = -1
    err: int = -1
    child: subprocess.Popen[bytes] | None = None
    why: str = ""  # there is no child
    flooded: bool = False

    def floods(self) -> bool:
        return sum(os.fstat(fd).st_size for fd in (self.out, self.err)) > FLOOD

    def completed(self) -> Completed:
        """How it went so far."""
        if self.child is None:
            return Completed(argv=tuple(self.argv), rc=126, out="", err=self.why, took_s=0.0)
        rc, more = self.child.poll(), ""
        if self.flooded:
            rc, more = -signal.SIGKILL, f"\nended by superv: it wrote more than {FLOOD >> 20} MiB\n"
        return Completed(
            argv=tuple(self.argv),
            rc=rc,
            out=_read(self.out),
            err=_read(self.err) + more,
            took_s=time.monotonic() - self.began,
        )


@contextlib.contextmanager
def _started(
    argv: Sequence[str], *, stdin: bytes | None, env: Mapping[str, str] | None, cwd: str
) -> Iterator[_Running]:
    """Start a child; one that is still there at the end is killed, and abandoned."""
    running = _Running(argv=argv, began=time.monotonic())
    try:
        try:
            running.out = os.memfd_create("out")
            running.err = os.memfd_create("err")
            running.child = _start(
                argv, stdin=stdin, env=env, cwd=cwd, out=running.out, err=running.err
            )
        except OSError as error:  # too long arguments; no descriptor, memory or process is left
            running.why = f"{argv[0]}: {error.strerror}"
        yield running
    finally:
        if running.child is not None and running.child.poll() is None:
            _kill(argv, running.child)
        for fd in (running.out, running.err):
            if fd >= 0:
                os.close(fd)


async def _ended_or_flooded(running: _Running, deadline: float) -> bool:
    """Wait for the child's end or the deadline; True at once where it writes without end."""
    import asyncio

    assert running.child is not None
    end = asyncio.ensure_future(exited(running.child.pid))
    try:
        while (left := deadline - time.monotonic()) > 0:
            done, _ = await asyncio.wait({end}, timeout=min(left, FLOOD_POLL_S))
            if done and (end.exception() is None or running.child.poll() is not None):
                return False
            if done:  # no descriptor is left to be told by: look again and again
                await asyncio.sleep(min(left, FLOOD_POLL_S))
            if running.floods():
                return True
        return False
    finally:
        end.cancel()


def _ended_or_flooded_sync(running: _Running, deadline: float) -> bool:
    """The same for callers without an event loop."""
    assert running.child is not None
    try:
        fd = os.pidfd_open(running.child.pid)
    except ProcessLookupError:
        return False
    except OSError:  # no descriptor is left to be told by: look again and again
        while running.child.poll() is None and not running.floods():
            if (left := deadline - time.monotonic()) <= 0:
                return False
            time.sleep(min(left, FLOOD_POLL_S))
        return running.child.poll() is None
    try:
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            if ended.poll(1000 * min(left, FLOOD_POLL_S)):
                return False
            if running.floods():
                return True
        return False
    finally:
        os.close(fd)


async def exited(pid: int) -> None:
    """Return when the process has ended. Pushed by the kernel through a pidfd; reaps nothing."""
    import asyncio

    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not gone.done():
            gone.set_result(None)

    loop.add_reader(fd, ready)
    try:
        await gone
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    stdout: int,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a long-lived child in a session of its own, both outputs on one descriptor.

    Raises OSError where no process can be made. A program or directory that is not there shows as
    the child's end, with 127 or 125 and a line of its output.
    """
    child = subprocess.Popen(
        _through_env(argv, cwd),
        stdin=stdin,
        stdout=stdout,
        stderr=stdout,
        env=dict(env),
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
    _children.add(child)
    return child
