"""An expendable child that runs probes one after another, and what its parent knows of it.

The child is a fork: what it touches may hang forever without anybody waiting. It says in shared
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
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from healthchecks.frame.check import Check, Result, Skip, Status, Unknown, ignoring
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.report import Finding
from healthchecks.frame.switches import Switches
from supervisor.host import procfs

NAME = "probe-"  # of a child that probes; the kernel keeps 15 bytes
_HEAD = struct.Struct("dH")  # when the call began (monotonic; 0: none), length of its text
_ROOM = 512
_CHUNK = 1 << 16
_MAX_ANSWER = 1 << 22  # bytes
_GRACE_S = 0.2  # a child may end its own commands before it is killed
_BUSY_S = 3.0  # where it waits for a processor
_MOST_WAITED = 2  # deadlines that a probe may wait for a processor, beside its own
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that end a run of checks


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCall:
    """One check on one target."""

    check: Check
    on: str
    options: Mapping[str, Any]
    switches: Switches = field(default_factory=Switches)
    repaired: float = 0.0  # what is older does not count: seconds since the epoch

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """What a child said of one probe."""

    probe: CheckCall
    finding: Finding
    memory: dict[str, Any]


@dataclass(slots=True, eq=False)
class Lane:
    """A child, and the probes that it has not answered yet."""

    waiting: list[CheckCall]
    present: CheckCall = field(init=False)  # what it is at, or answered last
    pid: int = 0
    started: int = 0  # clock ticks after boot
    began: float = 0.0  # monotonic: when the present probe began
    processor: tuple[float, float] = (0.0, 0.0)  # run and waited (s) until then
    waited_s: float = 0.0  # for a processor, by the present probe, as far as it was looked at
    pipe: int = -1
    announced: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, _ROOM))
    buffered: bytes = b""
    garbage: str = ""  # why what the child wrote is no answer
    ending: str = ""  # how the child ended, in words, once it has

    def __post_init__(self) -> None:
        self.present = self.waiting[0]

    def start(self, base: Ctx, memories: Mapping[str, dict[str, Any]]) -> None:
        """Fork. Raises OSError where no process can be made. Call it with SIGNALS blocked."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        limit_s = (1 + _MOST_WAITED) * sum(p.check.deadline_s for p in self.waiting) + 1.0
        out, into = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(out)
            os.close(into)
            raise
        if self.pid == 0:
            _child(self.waiting, base, memories, self.announced, into, limit_s)
        os.close(into)
        os.set_blocking(out, False)
        self.pipe = out
        self.started = procfs.start_time(self.pid) or 0
        self._begin()

    def _begin(self) -> None:
        self.began, self.waited_s = time.monotonic(), 0.0
        self.processor = procfs.processor_s(self.pid)

    def fileno(self) -> int:
        return self.pipe

    def limit(self) -> tuple[float, float]:
        """Since when (monotonic) and how long the present probe may take, or its present call."""
        check = self.present.check
        limits = [(self.began, check.deadline_s)]
        call_began, _ = self.call()
        if check.call_deadline_s is not None and call_began:
            limits.append((call_began, check.call_deadline_s))
        return min(limits, key=sum)

    def due(self) -> float:
        """When that is over (monotonic). What waits for a processor hangs nowhere meanwhile."""
        return sum(self.limit()) + self.waited_s

    def waits_for_a_processor(self) -> bool:
        """Look what of the present probe's time was such waiting; whether that moves `due`."""
        ran_s, waited_s = (
            now - before
            for now, before in zip(procfs.processor_s(self.pid), self.processor, strict=True)
        )
        if procfs.state(self.pid) == "R":  # the wait that is under way is in no figure yet
            waited_s = time.monotonic() - self.began - ran_s
        before_s, self.waited_s = self.waited_s, min(waited_s, self._most_waited_s())
        return self.waited_s > before_s + _GRACE_S / 10

    def starved(self) -> bool:
        """Whether it waited for a processor for so long that nothing else can be said of it."""
        return self.waited_s >= self._most_waited_s()

    def over(self) -> bool:
        """Whether the process has ended, though something else may keep its pipe open."""
        return procfs.state(self.pid) in (None, "Z", "X")

    def _most_waited_s(self) -> float:
        return _MOST_WAITED * self.limit()[1]

    def wake(self) -> float:
        """When to look at it again (monotonic): a call that begins later says so to nobody."""
        call_s = self.present.check.call_deadline_s
        return self.due() if call_s is None else min(self.due(), time.monotonic() + call_s)

    def call(self) -> tuple[float, str]:
        """The call that the child announced last: when it began (0: none under way), and what."""
        began, size = _HEAD.unpack_from(self.announced)
        text = self.announced[_HEAD.size : _HEAD.size + size].decode(errors="replace")
        return began, text

    def read(self) -> tuple[list[ProbeAnswer], bool]:
        """Answers that arrived, and whether no more will: the child ended, or wrote garbage."""
        try:
            data = os.read(self.pipe, _CHUNK)  # one at a time: a child may never stop writing
        except BlockingIOError:
            return [], False
        *lines, self.buffered = (self.buffered + data).split(b"\n")
        answers = []
        try:
            for line in lines:
                answers.append(_answer(self.waiting[0], json.loads(line)))
                self.waiting = self.waiting[1:]
                self.present = self.waiting[0] if self.waiting else self.present
                self._begin()
            if len(self.buffered) > _MAX_ANSWER:
                raise ValueError(f"more than {_MAX_ANSWER} bytes")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            self.garbage = f"the probe's process wrote what is no answer: {error!r}"
        return answers, not data or bool(self.garbage)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self._kill_session()

    def gone(self) -> bool:
        """Whether the child has ended; then it and what it started are cleared away."""
        if self.ending:
            return True
        try:
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None:
                return False
            self._kill_session()  # before the pid is free to be another's
            os.waitpid(self.pid, os.WNOHANG)
            self.ending = _ending(end.si_code, end.si_status)
        except ChildProcessError:
            self.ending = "ended"
        self.close()
        return True

    def _kill_session(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def where(self) -> str:
        """What a process that does not answer is at, in words."""
        text = self.call()[1]
        parts = (f"at {text}" if text else "", process_state(self.pid))
        return "; ".join(part for part in parts if part)

    def death(self) -> str:
        """How a child ended that did not answer, in words."""
        text = self.call()[1]
        at = f" at {text}" if text else ""
        return (
            self.garbage or f"the probe's process {self.ending or 'ended'}{at}, without an answer"
        )


def terminate(lanes: Iterable[Lane], *numbers: int) -> list[Lane]:
    """Signal children, all of them with one number after another; returns those that don't end."""
    left = [lane for lane in lanes if not lane.gone()]
    for number in numbers:
        for lane in left:
            lane.signal(number)
        sent = time.monotonic()
        while left := [lane for lane in left if not lane.gone()]:
            waited = time.monotonic() - sent
            # One that could run has not had its turn yet: the machine is busy.
            if waited > _GRACE_S and not (
                waited < _BUSY_S and any(procfs.state(lane.pid) == "R" for lane in left)
            ):
                break
            time.sleep(0.002)
    for lane in left:
        lane.close()
    return left


def _ending(code: int, status: int) -> str:
    if code == os.CLD_EXITED:
        return f"exited with {status}"
    with suppress(ValueError):
        return f"was ended by signal {status} ({signal.Signals(status).name})"
    return f"was ended by signal {status}"


def process_state(pid: int) -> str:
    """State and kernel function of a process, as far as /proc tells."""
    letter = procfs.state(pid) or ""
    try:
        where = Path(f"/proc/{pid}/wchan").read_text().strip()
    except OSError:
        return ""
    words = {"D": "uninterruptible sleep", "S": "sleeping", "R": "running"}.get(letter, letter)
    return f"process {pid} is {words}" + (f" in {where}" if where not in ("", "0") else "")


def _answer(probe: CheckCall, row: dict[str, Any]) -> ProbeAnswer:
    from healthchecks.frame.report import result_from

    finding = Finding(
        check=probe.check.name, on=probe.on, result=result_from(row), took_s=float(row["took_s"])
    )
    return ProbeAnswer(probe=probe, finding=finding, memory=dict(row["memory"]))


def _child(
    probes: Sequence[CheckCall],
    base: Ctx,
    memories: Mapping[str, dict[str, Any]],
    announced: mmap.mmap,
    pipe: int,
    limit_s: float,
) -> None:
    """Never returns. Ends by itself even where its parent is gone."""
    code = 1
    try:
        gc.disable()
        os.setsid()
        os.chdir("/")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends commands under way
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        # Neither the state's lock nor a sibling's pipe may live on in a child that hangs.
        os.dup2(pipe, 3)
        os.closerange(4, 4096)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)

        def announce(text: str) -> None:
            data = text.encode()[: _ROOM - _HEAD.size]
            announced[_HEAD.size : _HEAD.size + len(data)] = data
            _HEAD.pack_into(announced, 0, time.monotonic() if data else 0.0, len(data))

        for probe in probes:
            announce("")
            with suppress(OSError), open("/proc/self/comm", "w") as comm:
                comm.write(probe_name(probe.resource))
            os.write(3, _line(probe, base, memories, announce))
        code = 0
    finally:
        os._exit(code)


def probe_name(resource: str) -> str:
    """What a child calls itself while it is at a resource: a later run knows it by that alone."""
    return f"{NAME}{zlib.crc32(resource.encode()):08x}"


def _line(
    probe: CheckCall,
    base: Ctx,
    memories: Mapping[str, dict[str, Any]],
    announce: Callable[[str], None],
) -> bytes:
    """Call the check; what it found, and remembers, as one line."""
    remembered = memories.get(probe.name, {})
    memory = Memory(remembered, base.now)
    began = time.monotonic()
    ctx = replace(base, memory=memory, announce=announce, repaired=probe.repaired, others=memories)
    result = run_probe(probe, ctx)
    took = time.monotonic() - began

    def line(result: Result, memory: Mapping[str, Any]) -> bytes:
        row = Finding(check=probe.check.name, result=result, took_s=took).document()
        return json.dumps(row | {"memory": memory}, allow_nan=False).encode() + b"\n"

    try:
        return line(result, memory.data)
    except Exception as error:  # not a Result, a metric that is NaN, a set put into the memory
        return line(_broken(error), remembered)


def run_probe(probe: CheckCall, ctx: Ctx) -> Result:
    """Call the check; whatever it raises becomes a result."""
    on = (probe.on,) if probe.on else ()
    gpus = ctx.remembered("gpu.handle").get("names") or {}  # gpu3: serial number, UUID, address
    try:
        with ignoring(lambda name: any(map(probe.switches.ignores, (name, *gpus.get(name, ()))))):
            return probe.check.run(ctx, *on, **probe.options)
    except Skip as why:
        return Result(status=Status.SKIP, seen=str(why))
    except Unknown as why:
        return Result(status=Status.UNKNOWN, seen=str(why), fix=why.fix, gap=why.gap)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return Result(status=Status.UNKNOWN, seen=f"{where}{error.strerror or error}")
    except Exception as error:
        return _broken(error)


def _broken(error: Exception) -> Result:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    line = f" ({last.tb_frame.f_code.co_name}, line {last.tb_lineno})" if last else ""
    return Result(
        status=Status.UNKNOWN,
        seen=f"the check itself failed: {type(error).__name__}: {error}{line}",
        fix="report this as a fault of superv",
    )
