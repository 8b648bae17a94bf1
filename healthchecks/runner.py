"""Runs checks on this node: children, deadlines, single flight, concurrency, timing, memory.

One hung call costs its deadline: the child is killed and, where it can't be, left behind and
remembered; while it is there nobody is sent after it. Everything that hangs at once costs the
longest deadline, not the sum: checks that share what hangs are not tried one after another.
"""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthchecks import state as kept
from healthchecks.check import Check, Result, Status
from healthchecks.context import Ctx, Memory
from healthchecks.lane import Lane, Probe, look
from healthchecks.registry import settings_for
from healthchecks.report import Finding, Report
from healthchecks.state import State, Stuck

MOST_CHILDREN = 16
SUITE_S = 60.0  # of the whole run; Slurm kills a HealthCheckProgram at 60 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to run."""

    checks: Sequence[Check]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by check
    tags: tuple[str, ...] = ()
    root: Path = Path("/")
    node: str = ""  # this machine's short name where empty
    folder: Path | None = None  # of the state between runs; None: nothing is kept
    deadline_s: float = SUITE_S


def run(order: Order) -> Report:
    """Run the checks and return what they found.

    Raises UserError for settings that do not fit their check; whatever else goes wrong is in the
    report.
    """
    options = {c.name: settings_for(c, order.settings.get(c.name, {})) for c in order.checks}
    name = order.node or socket.gethostname().partition(".")[0]
    base = Ctx(
        root=order.root,
        node=name,
        now=time.time(),
        boot_id=_boot_id(order.root),
        memory=Memory({}, 0.0),
    )
    if order.folder is None:
        return _Run(order, base, State(boot_id=base.boot_id)).report(options)
    try:
        with kept.locked(order.folder, name) as ours:
            state = kept.load(order.folder, name, base.boot_id)
            notes = [state.problem] if state.problem else []
            if not ours:
                notes.append("another run of checks holds the state: nothing of this one is kept")
            report = _Run(order, base, state).report(options, notes)
            if ours:
                kept.save(order.folder, name, state, report)
            return report
    except OSError as error:
        note = f"no state is kept: {error.filename or order.folder}: {error.strerror or error}"
        return _Run(order, base, State(boot_id=base.boot_id)).report(options, [note])


def _boot_id(root: Path) -> str:
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class _Run:
    """One run of checks."""

    def __init__(self, order: Order, base: Ctx, state: State) -> None:
        self._order = order
        self._base = base
        self._state = state
        self._found: dict[str, Finding] = {}  # by probe name
        self._queue: list[Lane] = []
        self._lanes: dict[int, Lane] = {}  # by pipe

    def report(self, options: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> Report:
        began, cpu = time.monotonic(), _cpu()
        probes = self._probes(options)
        self._share_out(probes)
        try:
            self._work(began + self._order.deadline_s)
        finally:  # also where the user interrupts
            for lane in [*self._lanes.values()]:
                self._give_up(lane, "the run of checks ended first", retry=False)
            self._state.stuck = [s for s in self._state.stuck if s.still_there()]
        order = {probe.name: index for index, probe in enumerate(probes)}
        return Report(
            node=self._base.node,
            at=self._base.now,
            findings=sorted(self._found.values(), key=lambda f: order.get(f.name, -1)),
            tags=self._order.tags,
            boot_id=self._base.boot_id,
            took_s=time.monotonic() - began,
            cpu_s=_cpu() - cpu,
            notes=tuple(notes),
        )

    def _probes(self, options: Mapping[str, Mapping[str, Any]]) -> list[Probe]:
        """Every check on each of its targets; a check without a target is answered here."""
        probes = []
        for check in self._order.checks:
            given = options[check.name]
            if check.each is None:
                probes.append(Probe(check=check, on="", options=given))
                continue
            asked: list[str] = []

            def ask(ctx: Ctx, _check: Check = check, _into: list[str] = asked, **k: Any) -> Result:
                assert _check.each is not None
                _into += _check.each(ctx, **k)
                return Result(status=Status.SKIP, seen="nothing here that it applies to")

            chooser = Probe(check=_with_look(check, ask), on="", options=given)
            result = look(chooser, self._base)
            if asked:
                probes += [Probe(check=check, on=target, options=given) for target in asked]
            else:
                self._answer(Probe(check=check, on="", options=given), result)
        return probes

    def _share_out(self, probes: Sequence[Probe]) -> None:
        """Lanes: one for the host, one for each other resource; what is stuck gets none."""
        lanes: dict[str, list[Probe]] = {}
        stuck = {s.resource: s for s in self._state.stuck}
        for probe in probes:
            if earlier := stuck.get(probe.resource):
                self._answer(probe, _stuck_result(probe, earlier, self._base.now))
            else:
                key = "host" if probe.resource.startswith("host:") else probe.resource
                lanes.setdefault(key, []).append(probe)
        self._queue = [Lane(waiting=group) for group in lanes.values()]

    def _work(self, end: float) -> None:
        while self._queue or self._lanes:
            while self._queue and len(self._lanes) < MOST_CHILDREN and time.monotonic() < end:
                self._start(self._queue.pop(0))
            due = min([end, *(lane.due() for lane in self._lanes.values())])
            pipes = list(self._lanes)
            ready = select.select(pipes, [], [], max(0.0, due - time.monotonic()))[0]
            for pipe in ready:
                self._take(self._lanes[pipe])
            now = time.monotonic()
            for lane in [*self._lanes.values()]:
                if now >= end:
                    self._give_up(lane, "the deadline of the whole run came first", retry=False)
                elif now >= lane.due():
                    self._give_up(lane, "", retry=True)
            if now >= end:
                for lane in self._queue:
                    self._none(lane.waiting, "the deadline of the whole run came first")
                self._queue = []

    def _start(self, lane: Lane) -> None:
        try:
            lane.start(self._base, self._state.memories)
        except OSError as error:
            self._none(lane.waiting, f"no process could be made for it: {error.strerror}")
            return
        self._lanes[lane.pipe] = lane

    def _take(self, lane: Lane) -> None:
        pipe = lane.pipe
        found, ended = lane.read()
        for finding, memory in found:
            self._found[finding.name] = finding
            self._state.memories[finding.name] = memory
        if not ended and lane.waiting:
            return
        del self._lanes[pipe]
        lane.over()
        if lane.waiting:  # it died of its probe
            self._answer(
                lane.waiting.pop(0),
                Result(status=Status.UNKNOWN, seen="the probe's process ended without an answer"),
            )
            self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        if lane.waiting:
            self._queue.append(Lane(waiting=lane.waiting))

    def _give_up(self, lane: Lane, why: str, *, retry: bool) -> None:
        """End a lane whose probe does not answer."""
        self._lanes.pop(lane.pipe, None)
        probe, rest = lane.waiting[0], lane.waiting[1:]
        where = lane.where()
        took = time.monotonic() - lane.began
        gone = lane.end()
        if not gone:
            self._state.stuck.append(
                Stuck(
                    resource=probe.resource,
                    check=probe.name,
                    pid=lane.pid,
                    started=lane.started,
                    since=self._base.now,
                    what=where,
                )
            )
        if why:
            self._answer(probe, Result(status=Status.UNKNOWN, seen=f"{why} ({where})"), took)
        else:
            self._answer(probe, _hung_result(probe, took, where), took)
        lane.waiting = rest
        if not retry:
            self._none(rest, why)
        elif probe.resource.startswith("host:"):
            self._go_on(lane)
        else:
            self._none(rest, f"not tried: {probe.name} got no answer")

    def _none(self, probes: Sequence[Probe], why: str) -> None:
        for probe in probes:
            self._answer(probe, Result(status=Status.UNKNOWN, seen=why))

    def _answer(self, probe: Probe, result: Result, took_s: float = 0.0) -> None:
        self._found[probe.name] = Finding(
            check=probe.check.name, on=probe.on, result=result, took_s=took_s
        )


def _with_look(check: Check, ask: Any) -> Check:
    from dataclasses import replace

    return replace(check, look=ask, each=None)


def _hung_result(probe: Probe, took_s: float, where: str) -> Result:
    text = f"no answer within {took_s:.1f} s"
    return Result(
        status=probe.check.hung,
        seen=f"{text}: {where}" if where else text,
        expected=f"an answer within {probe.check.deadline_s:g} s",
        fix=probe.check.hung_fix,
    )


def _stuck_result(probe: Probe, stuck: Stuck, now: float) -> Result:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stuck.since))
    text = f"stuck since {since} ({max(0.0, now - stuck.since):.0f} s)"
    if probe.name != stuck.check:
        return Result(
            status=Status.UNKNOWN, seen=f"not tried: {stuck.check} is {text}: {stuck.what}"
        )
    return Result(
        status=probe.check.hung,
        seen=f"{text}: {stuck.what}",
        expected=f"an answer within {probe.check.deadline_s:g} s",
        fix=probe.check.hung_fix,
    )


def _cpu() -> float:
    both = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)
