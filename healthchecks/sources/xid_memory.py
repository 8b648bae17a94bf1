"""What is remembered of GPU errors in the kernel's log: by board, code and action, and bounded.

The table of codes (healthchecks/sources/xid.py) is imported where there are lines of it alone.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from healthchecks.frame.check import Status
from healthchecks.frame.context import Ctx
from healthchecks.sources import kernel_log
from healthchecks.sources.recovery_actions import CURED_BY_DRIVER_START, NONE
from supervisor.host.terminal import one_line

if TYPE_CHECKING:
    from healthchecks.sources.xid import XidEvent

EPISODE_S = 300.0  # lines nearer than this are one incident
TOGETHER_S = 600.0  # an error and what it drags along
STRIKES_S = 28 * 86400.0  # how long a recurring fault is counted against a GPU
_SUBSTRINGS = (  # what sources/xid.py reads
    *("Xid (", "fallen off the bus", "NVRM: loading NVIDIA", "RmInitAdapter failed"),
    *("rm_init_adapter failed", "requiring os reboot", "WPR2 already up"),
)
_MAX_TRACES = 128
_MAX_EPISODES = 32
_KEPT_LONGER = ("row remapped", "restart the application, once")  # beyond a boot, for recurrence


@dataclass(slots=True, kw_only=True)
class Trace:
    """All lines of one GPU, one code and one action."""

    device: str
    code: int
    name: str
    act: str  # of xid.Act
    meaning: str
    fix: str
    first: float
    last: float
    count: int = 0
    recovery: int | None = None  # of Xid 154: the newest
    episodes: list[float] = field(default_factory=list)  # when each began
    board: str = ""  # UUID or serial number of the GPU, once known: it may move, or be replaced
    who: str = ""  # the process that the newest line names, and its job

    @property
    def key(self) -> str:
        return f"{self.board or self.device} {self.name} {self.act}"

    def row(self) -> dict[str, Any]:
        """As it is kept: an agent of superv 0.1 may read it, which knows no boards."""
        row = asdict(self)
        del row["board"], row["who"]
        return row

    @property
    def tag(self) -> str:
        return f"{self.device} {self.name} {self.first} {self.last}"

    def add(self, event: XidEvent, line: kernel_log.KernelLine, who: str = "") -> None:
        self.count += line.count
        self.first = min(self.first, line.at)
        if line.last >= self.last:
            self.last = line.last
            self.meaning, self.fix = event.xid.meaning, event.xid.advice()
            self.recovery, self.who = event.recovery, who or self.who
        merged = _episodes([*self.episodes, line.at, *line.times])
        self.episodes = merged[-_MAX_EPISODES:]

    def join(self, other: Trace) -> None:
        """Take in what was seen of the same board under its address."""
        self.count += other.count
        self.first = min(self.first, other.first)
        if other.last >= self.last:
            self.last, self.recovery = other.last, other.recovery
            self.meaning, self.fix = other.meaning, other.fix
            self.who = other.who or self.who
        self.episodes = _episodes([*self.episodes, *other.episodes])[-_MAX_EPISODES:]


def _episodes(times: list[float]) -> list[float]:
    """When each incident began: a time is of the last one where it is within EPISODE_S of it."""
    found: list[float] = []
    before = float("-inf")
    for at in sorted(times):
        if at - before > EPISODE_S:
            found.append(at)
        before = at
    return found


class Traces:
    """What is remembered of the log. Bounded; what recurs over weeks is kept beyond a boot."""

    def __init__(self, ctx: Ctx, window_s: float) -> None:
        self._ctx = ctx
        self._window_s = window_s
        rows = [*(ctx.memory.get("traces") or []), *(ctx.memory.get("recurring") or [])]
        traces, boards_of = [Trace(**row) for row in rows], ctx.memory.get("boards_of") or {}
        processes = ctx.memory.get("processes") or {}
        for trace in traces:
            trace.board = boards_of.get(trace.tag, "")
            trace.who = processes.get(trace.tag, "")
        self.all = {trace.key: trace for trace in traces}
        handles = ctx.remembered("gpu.handle")
        boards: dict[str, str] = handles.get("boards") or {}
        self._boards = {bdf.rpartition(".")[0]: board for bdf, board in boards.items() if board}
        self._boards_at = float(handles.get("boards_at") or 0.0)
        self._asked = ctx.remembered("gpu.recovery_action").get("asked") or {}
        self.loaded = float(ctx.memory.get("loaded") or 0.0)  # when the driver started last

    def read(self) -> kernel_log.LogRead:
        """Take in what is new. Raises Unknown."""
        look = kernel_log.read(self._ctx, *_SUBSTRINGS)
        if not look.lines:
            return look
        from healthchecks.sources.xid import driver_loaded, parse  # 4 ms, for nodes that need it

        for line in sorted(look.lines, key=lambda line: line.last):
            if driver_loaded(line.text):
                self.loaded = max(self.loaded, line.last)
            elif (event := parse(line.text)) is not None:
                fresh = _fresh(event, line)
                who = _process(self._ctx, event)
                self.all.setdefault(fresh.key, fresh).add(event, line, who)
        return look

    def settle(self) -> None:
        """Know traces by the board, as far as the driver has told since; a moved one moves."""
        places = {board: device for device, board in self._boards.items()}
        settled: dict[str, Trace] = {}
        for trace in self.all.values():
            if not trace.board and trace.last <= self._boards_at:
                trace.board = self._boards.get(trace.device, "")
            trace.device = places.get(trace.board, trace.device)
            if (same := settled.setdefault(trace.key, trace)) is not trace:
                same.join(trace)
        self.all = settled

    def present(self) -> list[Trace]:
        """Those of what is there now: one of each GPU, code and action, the oldest first."""
        found: dict[tuple[str, str, str], Trace] = {}
        for trace in self.all.values():
            if not self.replaced(trace) and not self.unplaced(trace):
                one = replace(trace, episodes=[*trace.episodes])
                known = found.setdefault((one.device, one.name, one.act), one)
                if known is not one:
                    known.join(one)
        return sorted(found.values(), key=lambda trace: trace.first)

    def unplaced(self, trace: Trace) -> bool:
        """Whether it is of another boot, and nobody has said in this one which board is where."""
        return bool(trace.board) and not self._boards and trace.act in _KEPT_LONGER

    def replaced(self, trace: Trace) -> bool:
        """Whether another board is there now."""
        return bool(trace.board) and self._boards.get(trace.device, trace.board) != trace.board

    def keep(self) -> None:
        """Forget what is over, and write the rest to the check's memory."""
        now = self._ctx.now
        for key, trace in [*self.all.items()]:
            if trace.act in _KEPT_LONGER:
                trace.episodes = [at for at in trace.episodes if at > now - STRIKES_S]
                if not trace.episodes:
                    del self.all[key]
            elif not lasts(trace) and trace.last < now - self._window_s:
                del self.all[key]
        kept = sorted(self.all.values(), key=lambda t: (lasts(t), t.last))[-_MAX_TRACES:]
        self.all = {trace.key: trace for trace in kept}
        rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for trace in kept:
            rows[trace.act in _KEPT_LONGER].append(trace.row())
        self._ctx.memory.put("traces", rows[False])
        self._ctx.memory.put("recurring", rows[True], lasting=True)
        boards_of = {trace.tag: trace.board for trace in kept if trace.board}
        self._ctx.memory.put("boards_of", boards_of, lasting=True)
        processes = {trace.tag: trace.who for trace in kept if trace.who}
        self._ctx.memory.put("processes", processes, lasting=True)
        self._ctx.memory.put("loaded", self.loaded)

    def recovery(self, device: str) -> Trace | None:
        """The newest Xid 154 of a GPU: the driver's own word, which overrides the table."""
        from healthchecks.sources.xid import Act

        words = [t for t in self.all.values() if t.device == device and t.act == Act.RECOVERY]
        return max((t for t in words if not self.replaced(t)), key=lambda t: t.last, default=None)

    def cured(self, trace: Trace) -> bool:
        """A later word of the driver that nothing is left to do, in the log or by NVML (field
        230, as gpu.recovery_action last read it), or its later start.
        """
        from healthchecks.sources.xid import Act

        if trace.act not in (Act.RESET, Act.RECOVERY):
            return False
        action, at = self._asked.get(f"{trace.device}.0", (None, 0.0))
        if action == NONE and at > trace.last:
            return True
        if trace.act == Act.RECOVERY and trace.recovery not in CURED_BY_DRIVER_START:
            return trace.recovery == NONE
        later = self.recovery(trace.device)
        if later is not None and later.recovery == NONE and later.last > trace.last:
            return True
        return self.loaded > trace.last

    def alone(self, trace: Trace) -> bool:
        """No other error on this node within minutes."""
        from healthchecks.sources.xid import Act

        return not any(
            other.act not in (Act.SOLO, Act.IGNORE)
            and not self.replaced(other)
            and other.first - TOGETHER_S < trace.last < other.last + TOGETHER_S
            for other in self.all.values()
        )

    def episodes(self, act: str) -> dict[str, list[float]]:
        """When incidents of this action began, for each GPU."""
        times: dict[str, list[float]] = {}
        for trace in self.all.values():
            if trace.act == act and not self.replaced(trace):
                times.setdefault(trace.device, []).extend(trace.episodes)
        return {device: _episodes(found) for device, found in times.items()}


_JOB = re.compile(r"/(?:slurm[^/\n]*/.*?)?job_(\d+)(?:/|$)", re.MULTILINE)  # cgroup v1, v2


def _process(ctx: Ctx, event: XidEvent) -> str:
    """Program, number and, while the process lives, its Slurm job (by its control group)."""
    if not event.pid:
        return ""
    job = None
    if ctx.maybe(f"proc/{event.pid}/comm") == event.program.strip():  # no other that came later
        job = _JOB.search(ctx.maybe(f"proc/{event.pid}/cgroup") or "")
    name = f"{one_line(event.program)}, " if event.program else ""
    return f"{name}pid {event.pid}" + (f" of Slurm job {job[1]}" if job else "")


def _fresh(event: XidEvent, line: kernel_log.KernelLine) -> Trace:
    return Trace(
        device=event.device,
        code=event.code,
        name=event.name,
        act=event.xid.act.value,
        meaning=event.xid.meaning,
        fix=event.xid.advice(),
        first=line.at,
        last=line.last,
    )


def lasts(trace: Trace) -> bool:
    """A fault that time does not cure."""
    from healthchecks.sources.xid import RULES, Act

    return RULES[Act(trace.act)].status is Status.FAIL
