"""Asks about checkpoints through expendable children: storage may hang, its callers may not.

A small process (`python -m supervisor.checkpoints serve`) forks one child for each question and
touches no storage itself, so a question costs a fork and not the start of an interpreter. A child
that does not answer by its deadline is killed and left; while it is still there, nobody is sent to
the same path again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess  # noqa: TID251 - for the type of a child only; supervisor.proc starts it
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from supervisor import proc
from supervisor.checkpoints import REQUIRED, Scan
from supervisor.core.errors import TransientError


@dataclass(frozen=True, slots=True)
class _Stuck:
    pidfd: int
    since: float  # Unix time in s


_stuck: dict[str, _Stuck] = {}  # by path: children that were given up and may hang there still


def _still_stuck(path: str) -> _Stuck | None:
    stuck = _stuck.get(path)
    if stuck is None:
        return None
    gone, _, _ = select.select([stuck.pidfd], [], [], 0)
    if not gone:
        return stuck
    os.close(stuck.pidfd)
    del _stuck[path]
    return None


class Storage:
    """Forks a child for each question. Belongs to one event loop; use it as a context manager."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._server: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None

    async def __aenter__(self) -> Storage:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that forks; children that hang are left behind."""
        if self._link is not None:
            self._link.close()
        if self._server is not None:
            proc.give_up(self._server)
        self._link = self._server = None

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        try:
            # The child imports this very package, wherever this interpreter found it.
            self._server = proc.spawn(
                (self._python, "-m", "supervisor.checkpoints", "serve", str(theirs.fileno())),
                env=os.environ,
                cwd=str(Path(__file__).parents[1]),
                stdout=errors,
                pass_fds=(theirs.fileno(),),
            )
        finally:
            theirs.close()
            os.close(errors)
        self._link = ours
        return ours

    async def scan(
        self,
        directory: str,
        *,
        deadline_s: float,
        required: Sequence[str] = REQUIRED,
        above: int = -1,
    ) -> Scan:
        """`checkpoints.scan` of an absolute path; raises as `ask` does."""
        question = {"command": "scan", "path": directory, "required": required, "above": above}
        return msgspec.convert(await self.ask(question, deadline_s=deadline_s), Scan)

    async def verify(
        self, path: str, *, deadline_s: float, required: Sequence[str] = REQUIRED
    ) -> Scan:
        """`checkpoints.verify` of an absolute path: the one entry of `found`; raises as `ask`."""
        question = {"command": "verify", "path": path, "required": required}
        return msgspec.convert(await self.ask(question, deadline_s=deadline_s), Scan)

    async def ask(self, question: dict[str, Any], *, deadline_s: float) -> Any:
        """Put a question to a child; its answer as plain data.

        Raises TransientError where the storage did not answer by the deadline or can't be listed,
        and while an earlier child still hangs on the same path.
        """
        path = question["path"]
        if stuck := _still_stuck(path):
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stuck.since))
            raise TransientError(f"storage at {path} has not answered since {since}")
        began = time.time()
        ours, theirs = os.pipe()
        try:
            try:
                self._send(question, theirs)
            finally:
                os.close(theirs)
            said = await _read_all(ours, deadline_s)
        finally:
            os.close(ours)
        pid, _, answer = said.data.partition(b"\n")
        if not said.ended:
            if pid.isdigit():
                _give_up(path, int(pid), began)
            raise TransientError(f"storage at {path} did not answer within {deadline_s:g} s")
        if not answer:
            raise TransientError(f"storage at {path}: the child that looked ended without a word")
        told = json.loads(answer)
        if "error" in told:
            raise TransientError(f"storage at {path}: {told['error']}")
        return told["answer"]

    def _send(self, question: dict[str, Any], answer_to: int) -> None:
        """Hand the question over, to a new process where the old one has died."""
        data = json.dumps(question).encode()
        if self._link is not None:
            with contextlib.suppress(OSError):
                socket.send_fds(self._link, [data], [answer_to])
                return
            self.close()
        socket.send_fds(self._start(), [data], [answer_to])


@dataclass(frozen=True, slots=True)
class _Said:
    data: bytes
    ended: bool  # the child closed its end


async def _read_all(fd: int, deadline_s: float) -> _Said:
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    ended: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(fd, 1 << 20)
            if data:
                parts.append(data)
            elif not ended.done():
                ended.set_result(None)

    loop.add_reader(fd, readable)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), deadline_s)
    finally:
        loop.remove_reader(fd)
    return _Said(b"".join(parts), ended.done())


def _give_up(path: str, pid: int, began: float) -> None:
    """Kill a child that hangs, and remember it for as long as it is there."""
    with contextlib.suppress(ProcessLookupError):
        _stuck[path] = _Stuck(os.pidfd_open(pid), began)
        os.kill(pid, signal.SIGKILL)


async def ask_once(
    command: str, path: str, *, deadline_s: float, required: Sequence[str] = REQUIRED
) -> Scan:
    """`scan` or `verify` an absolute path, for callers with a single question."""
    async with Storage() as storage:
        if command == "verify":
            return await storage.verify(path, deadline_s=deadline_s, required=required)
        return await storage.scan(path, deadline_s=deadline_s, required=required)
