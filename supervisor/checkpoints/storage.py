"""Asks about checkpoints through expendable children: storage may hang, its callers may not.

A small process (`supervisor.checkpoints.child`) forks one child for each question and touches no
storage itself, so a question costs a fork and not the start of an interpreter. A child that does
not answer by its deadline is killed and left; while it is still there, nobody is sent to the same
path again.

Each checkpoint is looked into by a child of its own. Where its metadata ends the reader twice (by
overflowing C's stack, or computing forever), that checkpoint is unusable. A child that was killed
(by the kernel, for want of memory, or by a person) says nothing of the checkpoint.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from supervisor import proc
from supervisor.checkpoints.dcp import (
    REQUIRED,
    CheckpointReport,
    CheckpointScan,
    CheckpointState,
    Listing,
    report,
)
from supervisor.core.errors import TransientError
from supervisor.host.shortage import shortage
from supervisor.host.terminal import date_time


@dataclass(frozen=True, slots=True)
class _Stuck:
    pidfd: int
    since: float  # Unix time in s


# Signals that the content of a file sends its reader. Not SIGBUS: code on a dead mount is one, too.
CONDEMNING = {signal.SIGSEGV, signal.SIGABRT, signal.SIGXCPU}
COMPUTES = 0.05  # of its deadline in CPU time: a child that uses this much does not hang


class ReaderDiedError(TransientError):
    """The child that looked died by a signal."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(f"storage at {path}: the child that looked {_by(number)}")
        self.number = number


def _by(number: int) -> str:
    """How a signal ended a child."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    why = {"SIGKILL": ", perhaps for want of memory", "SIGXCPU": " (its limit of CPU time)"}
    return f"was ended by {name}{why.get(name, '')}"


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
    """Forks a child for each question. Belongs to one event loop; use it as a context manager.

    `progress` is told how many shards of a verification are, and of how many.
    """

    def __init__(
        self,
        python: str = sys.executable,
        *,
        progress: Callable[[int, int], None] = lambda shards, of: None,
    ) -> None:
        self._python = python
        self._progress = progress
        self._server: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._cut_off: dict[tuple[str, bool], Any] = {}  # by path: how far a verification had come

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
                (self._python, "-m", "supervisor.checkpoints.child", str(theirs.fileno())),
                env=os.environ,
                cwd=str(Path(__file__).parents[2]),
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
    ) -> CheckpointScan:
        """The checkpoints under an absolute path with a step > above, each verified.

        Raises as `ask` does.
        """
        there = await self.list(directory, deadline_s=deadline_s, above=above)
        found = [
            await self.verify(path, deadline_s=deadline_s, required=required)
            for path in there.paths
        ]
        return CheckpointScan(
            directory=directory, exists=there.exists, found=(*found, *there.refused)
        )

    async def list(self, directory: str, *, deadline_s: float, above: int = -1) -> Listing:
        """`dcp.listing` of an absolute path; raises as `ask` does."""
        question = {"command": "list", "path": directory, "above": above}
        return msgspec.convert(await self.ask(question, deadline_s=deadline_s), Listing)

    async def fingerprint(self, path: str, *, deadline_s: float) -> str:
        """`dcp.fingerprint` of an absolute path; raises as `ask` does."""
        question = {"command": "fingerprint", "path": path}
        return str(await self.ask(question, deadline_s=deadline_s))

    async def verify(
        self,
        path: str,
        *,
        deadline_s: float,
        required: Sequence[str] = REQUIRED,
        deep: bool = False,
    ) -> CheckpointReport:
        """`dcp.verify` of an absolute path; raises as `ask` does.

        One that was cut off is gone on with: shards that were good are not looked at again.
        """
        question = {"command": "verify", "path": path, "required": required, "deep": deep}
        try:
            return msgspec.convert(
                await self.ask(question, deadline_s=deadline_s), CheckpointReport
            )
        except ReaderDiedError as first:
            if first.number not in CONDEMNING:
                raise
        try:
            return msgspec.convert(
                await self.ask(question, deadline_s=deadline_s), CheckpointReport
            )
        except ReaderDiedError as again:
            if again.number not in CONDEMNING:
                raise
            why = f".metadata can't be read: its reader {_by(again.number)}, twice"
            return report(path, CheckpointState.UNUSABLE, why)

    async def ask(self, question: dict[str, Any], *, deadline_s: float) -> Any:
        """Put a question to a child; its answer as plain data.

        The deadline is for each sign of life: a child that comes forward is not cut off. Raises
        TransientError where the storage did not answer by then or can't be listed, and while an
        earlier child still hangs on the same path.
        """
        try:
            return await self._ask(question, deadline_s=deadline_s)
        except Exception as error:
            if why := shortage(error):
                raise TransientError(f"storage at {question['path']}: {why}") from None
            raise

    async def _ask(self, question: dict[str, Any], *, deadline_s: float) -> Any:
        path = question["path"]
        work = path, question.get("deep", False)
        if stuck := _still_stuck(path):
            since = date_time(stuck.since)
            raise TransientError(f"storage at {path} has not answered since {since}")
        kept = self._cut_off.pop(work, None) if question["command"] == "verify" else None
        if kept is not None:
            question = {**question, "done": kept}
        began = time.time()
        ours, theirs = os.pipe()
        try:
            try:
                self._send(question, theirs)
            finally:
                os.close(theirs)
            said = await _read_all(ours, deadline_s, self._progress)
        finally:
            os.close(ours)
        head, _, end = said.data.rpartition(b"\nexit ")
        pid, _, lines = (head or said.data).partition(b"\n")
        answer = lines.strip().rpartition(b"\n")[2]
        if answer.startswith(b"~"):
            answer = b""
        if not said.ended:
            if question["command"] == "verify" and (kept := _last_progress(lines) or kept):
                self._cut_off[work] = kept
            if pid.isdigit():
                _give_up(path, int(pid), began)
            raise TransientError(f"storage at {path} did not answer within {deadline_s:g} s")
        code = int(end or b"1")  # the process that forks may have gone, too
        if code < 0:
            raise ReaderDiedError(path, -code)
        if code or not answer:
            raise TransientError(f"storage at {path}: the child that looked ended without a word")
        reply = json.loads(answer)
        if "error" in reply:
            raise TransientError(f"storage at {path}: {reply['error']}")
        return reply["answer"]

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


async def _read_all(fd: int, deadline_s: float, progress: Callable[[int, int], None]) -> _Said:
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    ended: asyncio.Future[None] = loop.create_future()
    signs = 0

    def readable() -> None:
        nonlocal signs
        with contextlib.suppress(BlockingIOError):
            data = os.read(fd, 1 << 20)
            if data:
                parts.append(data)
                signs += data.count(b"~")
                if come := _last_progress(data):
                    progress(come["shards"], come["of"])
            elif not ended.done():
                ended.set_result(None)

    loop.add_reader(fd, readable)
    used = 0.0
    try:
        while not ended.done():
            heard = signs
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ended), deadline_s)
            before, used = used, _cpu_time(b"".join(parts))
            if signs == heard and used - before < COMPUTES * deadline_s:
                break  # it waits for the storage; one that computes has a limit of its own
    finally:
        loop.remove_reader(fd)
    return _Said(b"".join(parts), ended.done())


def _last_progress(lines: bytes) -> Any:
    """How far a child says that it has come; None where it says nothing."""
    whole = lines.rpartition(b"\n")[0].split(b"\n")
    last = next((line for line in reversed(whole) if line.startswith(b"~{")), None)
    return None if last is None else json.loads(last[1:])


def _cpu_time(said: bytes) -> float:
    """What a child has used so far, in s; 0 where it is not there."""
    pid = said.partition(b"\n")[0]
    if not pid.isdigit():
        return 0.0
    with contextlib.suppress(OSError):
        return time.clock_gettime(~int(pid) << 3 | 2)  # a process's clock: clock_getcpuclockid(3)
    return 0.0


def _give_up(path: str, pid: int, began: float) -> None:
    """Kill a child that hangs, and remember it for as long as it is there."""
    with contextlib.suppress(OSError):  # it has ended, or no descriptor is left
        _stuck[path] = _Stuck(os.pidfd_open(pid), began)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def scan_once(
    directory: str, *, deadline_s: float, required: Sequence[str] = REQUIRED
) -> CheckpointScan:
    """`Storage.scan`, for callers with a single question."""
    async with Storage() as storage:
        return await storage.scan(directory, deadline_s=deadline_s, required=required)


async def verify_once(
    path: str,
    *,
    deadline_s: float,
    required: Sequence[str] = REQUIRED,
    deep: bool = False,
    progress: Callable[[int, int], None] = lambda shards, of: None,
) -> CheckpointReport:
    """`Storage.verify`, for callers with a single question."""
    async with Storage(progress=progress) as storage:
        return await storage.verify(path, deadline_s=deadline_s, required=required, deep=deep)
