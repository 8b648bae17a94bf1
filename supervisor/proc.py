"""The only module that starts processes.

Every call has a deadline. A child that does not end is killed and then abandoned: nothing here
ever waits for a process in uninterruptible sleep (a hung NFS mount, a stuck driver). Children that
were abandoned are reaped when they end, without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_OUTPUT = 8 * 1024 * 1024  # bytes kept of a child's output
_abandoned: list[subprocess.Popen[bytes]] = []


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


def _start(
    argv: Sequence[str],
    *,
    stdin: bytes | None,
    env: Mapping[str, str] | None,
    cwd: str,
) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start a child in a session of its own; its output goes to memory files, never to a pipe."""
    out, err = os.memfd_create("out"), os.memfd_create("err")
    feed = os.memfd_create("in")
    try:
        if stdin is not None:
            os.write(feed, stdin)
            os.lseek(feed, 0, os.SEEK_SET)
        child = subprocess.Popen(  # the one place where processes are started
            list(argv),
            stdin=feed if stdin is not None else subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except BaseException:
        os.close(out)
        os.close(err)
        raise
    finally:
        os.close(feed)
    return child, out, err


def _read(fd: int) -> str:
    size = os.fstat(fd).st_size
    data = os.pread(fd, MAX_OUTPUT, max(0, size - MAX_OUTPUT))
    os.close(fd)
    return data.decode(errors="replace")


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's session and leave it to be reaped later."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    _abandoned.append(child)
    reap()


def reap() -> int:
    """Collect abandoned children that have ended; returns how many are still there."""
    _abandoned[:] = [child for child in _abandoned if child.poll() is None]
    return len(_abandoned)


def stuck(argv: Sequence[str]) -> bool:
    """Whether an abandoned child of this command is still there."""
    reap()
    return any(child.args == list(argv) for child in _abandoned)


def _missing(argv: Sequence[str], error: OSError, began: float) -> Completed:
    return Completed(
        argv=tuple(argv),
        rc=127 if isinstance(error, FileNotFoundError) else 126,
        out="",
        err=f"{argv[0]}: {error.strerror}",
        took_s=time.monotonic() - began,
    )


async def run(
    argv: Sequence[str],
    *,
    deadline_s: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> Completed:
    """Run a command to its end or its deadline; a missing program answers with rc 127."""
    began = time.monotonic()
    try:
        child, out, err = _start(argv, stdin=stdin, env=env, cwd=cwd)
    except OSError as error:
        return _missing(argv, error, began)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await exited(child.pid)
        rc = child.poll()
    finally:
        if child.poll() is None:
            _kill(child)
    return Completed(
        argv=tuple(argv), rc=rc, out=_read(out), err=_read(err), took_s=time.monotonic() - began
    )


def run_sync(
    argv: Sequence[str],
    *,
    deadline_s: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> Completed:
    """`run` for callers without an event loop."""
    return asyncio.run(run(argv, deadline_s=deadline_s, stdin=stdin, env=env, cwd=cwd))


async def exited(pid: int) -> None:
    """Return when the process has ended. Pushed by the kernel through a pidfd; reaps nothing."""
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
    """Start a long-lived child in a session of its own, both outputs on one descriptor."""
    return subprocess.Popen(
        list(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stdout,
        env=dict(env),
        cwd=cwd,
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )
