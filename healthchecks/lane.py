"""An expendable child that runs probes one after another, and what its parent knows of it.

The child is a fork: what it touches may hang for ever without anybody waiting. It says in shared
memory what it is doing and since when, so that the parent knows which call hung even when the child
can't be killed. The state of a process in uninterruptible sleep is read from /proc.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from healthchecks.check import Check, Result, Skip, Status, Unknown
from healthchecks.context import Ctx, Memory
from healthchecks.report import Finding
from healthchecks.state import start_time

_HEAD = struct.Struct("dH")  # when the call began (monotonic; 0: none), length of its text
_ROOM = 512
_GRACE_S = 0.1  # a child may end its own commands before it is killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One check on one target."""

    check: Check
    on: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.check.name}[{self.on}]" if self.on else self.check.name

    @property
    def resource(self) -> str:
        """What hangs with it; probes of "host" hang alone."""
        resource = self.check.resource
        if self.on:
            return f"{resource}:{self.on}"
        return f"host:{self.check.name}" if resource == "host" else resource


@dataclass(slots=True)
class Lane:
    """A child, and the probes that it has not answered yet."""

    waiting: list[Probe]
    pid: int = 0
    started: int = 0  # see start_time
    began: float = 0.0  # monotonic: when the present probe began
    pipe: int = -1
    notes: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, _ROOM))
    buffered: bytes = b""

    def start(self, base: Ctx, memories: Mapping[str, dict[str, Any]]) -> None:
        """Fork. Raises OSError where no process can be made."""
        out, into = os.pipe()
        os.set_blocking(out, False)
        self.notes.seek(0)
        self.notes.write(bytes(_HEAD.size))
        sys.stdout.flush()
        sys.stderr.flush()
        limit_s = sum(p.check.deadline_s for p in self.waiting) + 1.0
        self.pid = os.fork()
        if self.pid == 0:
            _child(self.waiting, base, memories, self.notes, into, limit_s)
        os.close(into)
        self.pipe = out
        self.started = start_time(self.pid) or 0
        self.began = time.monotonic()

    def due(self) -> float:
        """When the present probe is over its time (monotonic)."""
        check = self.waiting[0].check
        at = self.began + check.deadline_s
        call_began, _ = self.call()
        if check.call_deadline_s is not None and call_began:
            at = min(at, call_began + check.call_deadline_s)
        return at

    def call(self) -> tuple[float, str]:
        """The call that the child announced last: when it began (0: none under way), and what."""
        began, size = _HEAD.unpack_from(self.notes)
        text = self.notes[_HEAD.size : _HEAD.size + size].decode(errors="replace")
        return began, text

    def read(self) -> tuple[list[tuple[Finding, dict[str, Any]]], bool]:
        """Findings that arrived, with each check's new memory; and whether the child has ended."""
        ended = False
        while True:
            try:
                data = os.read(self.pipe, 65536)
            except BlockingIOError:
                break
            if not data:
                ended = True
                break
            self.buffered += data
        *lines, self.buffered = self.buffered.split(b"\n")
        found = []
        for line in lines:
            row = json.loads(line)
            probe = self.waiting.pop(0)
            found.append((_finding(probe, row), row["memory"]))
            self.began = time.monotonic()
        return found, ended

    def end(self) -> bool:
        """Kill the child and its session; True where it is gone, False where it can't be killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
            if number == signal.SIGKILL:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, number)
            until = time.monotonic() + _GRACE_S
            while time.monotonic() < until:
                if self._reaped():
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.pid, signal.SIGKILL)  # what it may have started
                    self._close()
                    return True
                time.sleep(0.002)
        self._close()
        return False

    def over(self) -> None:
        """The child has ended by itself."""
        until = time.monotonic() + 1.0
        while not self._reaped() and time.monotonic() < until:
            time.sleep(0.001)
        self._close()

    def _reaped(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return True

    def _close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def where(self) -> str:
        """What a process that does not answer is at, in words."""
        text = self.call()[1]
        state = place(self.pid)
        return "; ".join(part for part in (f"at {text}" if text else "", state) if part)


def place(pid: int) -> str:
    """State and kernel function of a process, as far as /proc tells."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        where = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return ""
    words = {"D": "uninterruptible sleep", "S": "sleeping", "R": "running"}.get(state, state)
    return f"process {pid} is {words}" + (f" in {where}" if where not in ("", "0") else "")


def _finding(probe: Probe, row: dict[str, Any]) -> Finding:
    from healthchecks.report import result_from

    return Finding(
        check=probe.check.name, on=probe.on, result=result_from(row), took_s=row["took_s"]
    )


def _child(
    probes: Sequence[Probe],
    base: Ctx,
    memories: Mapping[str, dict[str, Any]],
    notes: mmap.mmap,
    pipe: int,
    limit_s: float,
) -> None:
    """Never returns. Ends by itself even where its parent is gone."""
    code = 1
    try:
        gc.disable()
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        # Neither the state's lock nor a sibling's pipe may live on in a child that hangs.
        os.dup2(pipe, 3)
        os.closerange(4, 4096)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)

        def doing(text: str) -> None:
            data = text.encode()[: _ROOM - _HEAD.size]
            notes[_HEAD.size : _HEAD.size + len(data)] = data
            _HEAD.pack_into(notes, 0, time.monotonic() if data else 0.0, len(data))

        for probe in probes:
            doing("")
            memory = Memory(memories.get(probe.name, {}), base.now)
            began = time.monotonic()
            result = look(probe, replace(base, memory=memory, doing=doing))
            took = time.monotonic() - began
            row = Finding(check=probe.check.name, result=result, took_s=took).document()
            os.write(3, json.dumps(row | {"memory": memory.data}).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def look(probe: Probe, ctx: Ctx) -> Result:
    """Call the check; whatever it raises becomes a result."""
    try:
        if probe.on:
            return probe.check.look(ctx, probe.on, **probe.options)
        return probe.check.look(ctx, **probe.options)
    except Skip as why:
        return Result(status=Status.SKIP, seen=str(why))
    except Unknown as why:
        return Result(status=Status.UNKNOWN, seen=str(why))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Result(status=Status.UNKNOWN, seen=f"{where}{error.strerror or error}")
    except Exception as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        line = f" ({last.tb_frame.f_code.co_name}, line {last.tb_lineno})" if last else ""
        return Result(
            status=Status.UNKNOWN,
            seen=f"the check itself failed: {type(error).__name__}: {error}{line}",
            fix="report this as a fault of superv",
        )
