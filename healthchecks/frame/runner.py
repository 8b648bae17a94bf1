"""Runs checks on this node: children, deadlines, single flight, concurrency, timing, memory.

One hung call costs its deadline: the child is killed and, where it can't be, left behind and
remembered; while it is there nobody is sent after it. Everything that hangs at once costs the
longest deadline, not the sum: checks that share what hangs are not tried one after another.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from healthchecks.frame import repairs
from healthchecks.frame import state as kept
from healthchecks.frame.check import Check, Result, Status, Unknown
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import (
    NAME,
    SIGNALS,
    CheckCall,
    Lane,
    probe_name,
    process_state,
    run_probe,
    terminate,
)
from healthchecks.frame.registry import settings_for
from healthchecks.frame.report import Finding, Report, gap_notes
from healthchecks.frame.state import KeptState, Stuck
from healthchecks.frame.switches import OFF, of_node, switches_for
from supervisor.core.setting import PORT_ROLES
from supervisor.host import procfs
from supervisor.host.terminal import date_time

MAX_CHILDREN = 64
RUN_ENDED = "the deadline of the whole run came first"
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
    end = time.monotonic() + order.deadline_s
    node = order.node or socket.gethostname().partition(".")[0]
    settings = of_node(order.settings, node, os.environ.get("SLURM_JOB_PARTITION", ""))
    order = replace(order, settings=settings)
    options = {c.name: settings_for(c, settings.get(c.name, {})) for c in order.checks}
    base = Ctx(
        root=order.root.absolute(),
        node=node,
        now=time.time(),
        boot_id=procfs.boot_id(f"{order.root}/proc") or "",
        memory=Memory({}, 0.0),
        site={PORT_ROLES: order.settings.get(PORT_ROLES, {})},
    )
    told = repairs.told(order.settings, node)
    with _held(order, base) as (state, notes):
        repairs.take_in(state, told, base.now)
        base = replace(base, remembers=order.folder is not None and not notes)
        report = _Run(order, base, state).report(options, end)
        if order.tags:
            state.last[",".join(order.tags)] = report.document()
    kept_in = "a look that keeps no memory" if order.folder is None or notes else str(order.folder)
    off = [f.name for f in report.findings if f.result.seen.startswith(OFF)]
    notes += [f"{len(off)} switched off, not looked at: {', '.join(off)}"] if off else []
    return replace(report, notes=(*notes, *gap_notes(report.findings, kept_in)))


@contextmanager
def _held(order: Order, base: Ctx) -> Iterator[tuple[KeptState, list[str]]]:
    """The node's state, and what keeps it from being kept.

    Saved also where the user interrupts: the next run has to know what is stuck.
    """
    state, notes, ours = KeptState(boot_id=base.boot_id), list[str](), False
    folder, name = order.folder, base.node
    if folder is None:
        yield state, notes
        return
    with ExitStack() as stack:
        try:
            wait_s = min(kept.LOCK_S, order.deadline_s / 4)
            ours = stack.enter_context(kept.locked(folder, name, wait_s))
            state = kept.load(folder, name, base.boot_id)
            if state.problem:
                notes.append(state.problem)
            if not ours:
                notes.append("another run of checks holds the state: nothing of this one is kept")
        except OSError as error:
            notes.append(_unkept(folder, error))
        try:
            yield state, notes
        finally:
            try:
                if ours:
                    kept.save(folder, name, state)
            except OSError as error:
                notes.append(_unkept(folder, error))


def _unkept(folder: Path, error: OSError) -> str:
    return f"no state is kept: {error.filename or folder}: {error.strerror or error}"


def enough_s(checks: Iterable[Check]) -> float:
    """How long a run may take: SUITE_S, or what its deep checks may take one after another."""
    return max(SUITE_S, sum(c.deadline_s for c in checks if "deep" in c.tags))


class _Run:
    """One run of checks."""

    def __init__(self, order: Order, base: Ctx, state: KeptState) -> None:
        self._order = order
        self._base = base
        self._state = state
        self._found: dict[str, Finding] = {}  # by probe name
        self._queue: list[Lane] = []
        self._lanes: list[Lane] = []

    def report(self, options: Mapping[str, Mapping[str, Any]], end: float) -> Report:
        began, cpu = time.monotonic(), _cpu()
        probes = self._probes(options)
        self._share_out(probes)
        try:
            self._work(end)
        finally:  # also where the user interrupts
            with _uninterrupted():
                self._give_up(self._lanes, "the run of checks ended first")
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
        )

    def _probes(self, options: Mapping[str, Mapping[str, Any]]) -> list[CheckCall]:
        """Every check on each of its targets; a check without a target is answered here."""
        probes = []
        for check in self._order.checks:
            given = options[check.name]
            switches = switches_for(check, self._order.settings.get(check.name, {}))
            if not switches.enabled:
                off = Result(status=Status.SKIP, seen=f"{OFF} ({check.name}: {switches.text()})")
                self._answer(CheckCall(check=check, on="", options=given), off)
                continue
            since = repairs.since(self._state, check.name)
            if check.targets is None:
                probes.append(
                    CheckCall(check=check, on="", options=given, switches=switches, repaired=since)
                )
                continue
            asked: list[str] = []

            def ask(ctx: Ctx, _check: Check = check, _into: list[str] = asked, **k: Any) -> Result:
                assert _check.targets is not None
                _into += _check.targets(ctx, **k)
                return Result(status=Status.SKIP, seen="nothing here that it applies to")

            chooser = CheckCall(check=_choosing_targets(check, ask), on="", options=given)
            result = run_probe(chooser, self._base)
            if asked:
                for on in dict.fromkeys(asked):
                    call = CheckCall(
                        check=check, on=on, options=given, switches=switches, repaired=since
                    )
                    if switches.ignores(on):
                        seen = f"{OFF} ({check.name}: {switches.text()})"
                        self._answer(call, Result(status=Status.SKIP, seen=seen))
                    else:
                        probes.append(call)
            else:
                self._answer(CheckCall(check=check, on="", options=given), result)
        return probes

    def _share_out(self, probes: Sequence[CheckCall]) -> None:
        """Lanes: one for the host, one for each other resource; what is stuck gets none."""
        lanes: dict[str, list[CheckCall]] = {}
        stuck = {s.resource: s for s in self._state.stuck}
        known = {s.pid for s in self._state.stuck}
        # Of this user's runs that kept no state, or were killed before they could.
        there = procfs.unkillable(NAME) if self._base.live else []
        others = {p.name: p for p in there if p.pid not in known}
        for probe in probes:
            if (orphan := others.pop(probe_name(probe.resource), None)) is not None:
                stuck[probe.resource] = self._left(probe, orphan)
            if earlier := stuck.get(probe.resource):
                self._answer(probe, _stuck_result(probe, earlier, self._base))
            else:
                key = "host" if probe.resource.startswith("host:") else probe.resource
                lanes.setdefault(key, []).append(probe)
        self._queue = [Lane(waiting=group) for group in lanes.values()]

    def _left(self, probe: CheckCall, orphan: procfs.Stat) -> Stuck:
        """What an earlier run left behind, remembered from now on."""
        one = Stuck(
            resource=probe.resource,
            check="a probe of an earlier run",  # which one, nobody has kept
            pid=orphan.pid,
            started=orphan.started,
            since=self._base.now - procfs.age_s(orphan.started),
            what=process_state(orphan.pid),
        )
        self._state.stuck.append(one)
        return one

    def _work(self, end: float) -> None:
        while self._queue or self._lanes:
            while self._queue and len(self._lanes) < MAX_CHILDREN and time.monotonic() < end:
                self._start(self._queue.pop(0))
            if self._lanes:
                wake = min([end, *(lane.wake() for lane in self._lanes)])
                left = max(0.0, wake - time.monotonic())
                for lane in select.select(self._lanes, [], [], left)[0]:
                    self._take(lane)
            now = time.monotonic()
            if now < end:
                late = [lane for lane in self._lanes if now >= lane.due()]
                self._give_up([lane for lane in late if not lane.waits_for_a_processor()])
                continue
            self._give_up(self._lanes, RUN_ENDED)
            for lane in self._queue:
                self._none(lane.waiting, RUN_ENDED)
            self._queue = []

    def _start(self, lane: Lane) -> None:
        with _uninterrupted():
            try:
                lane.start(self._base, self._state.memories)
            except OSError as error:
                self._none(lane.waiting, f"no process could be made for it: {error.strerror}")
                return
            self._lanes.append(lane)

    def _take(self, lane: Lane) -> None:
        answers, ended = lane.read()
        for answer in answers:
            self._found[answer.finding.name] = answer.finding
            self._state.memories.pop(answer.finding.name, None)
            if any(answer.memory.values()):
                self._state.memories[answer.finding.name] = answer.memory
        if not ended and lane.waiting:
            return
        self._end([lane], by_itself=not lane.garbage)
        if lane.waiting:
            died = Result(status=Status.UNKNOWN, seen=lane.death())
            self._answer(lane.waiting[0], died, time.monotonic() - lane.began)
            if rest := lane.waiting[1:]:
                self._queue.append(Lane(waiting=rest))

    def _give_up(self, lanes: Sequence[Lane], why: str = "") -> None:
        """End lanes whose probes do not answer; `why` where that is not what they are ended for."""
        now = time.monotonic()
        seen = [(x, x.where(), x.limit(), x.starved(), x.over()) for x in lanes]
        self._end(lanes)
        for lane, where, (since, allowed_s), starved, over in seen:
            if not lane.waiting:
                continue
            probe, rest = lane.waiting[0], lane.waiting[1:]
            if why:
                given_up = Result(status=Status.UNKNOWN, seen=f"{why} ({where})")
                self._answer(probe, given_up, now - lane.began)
                self._none(rest, why)
                continue
            hung = Result(
                status=probe.check.on_timeout,
                seen=f"no answer within {now - since:.1f} s" + (f": {where}" if where else ""),
                expected=f"an answer within {allowed_s:g} s",
                fix=probe.check.timeout_fix,
                shared=_shared(probe, self._base),
            )
            if over:  # it hangs nowhere: what it left behind holds its answers
                hung = Result(status=Status.UNKNOWN, seen=lane.death())
            self._answer(probe, _starved(lane) if starved else hung, now - lane.began)
            if probe.resource.startswith("host:"):  # what hung one may hang others: each alone now
                self._queue += [Lane(waiting=[other]) for other in rest]
            else:
                self._none(rest, f"not tried: {probe.name} got no answer")

    def _end(self, lanes: Sequence[Lane], *, by_itself: bool = False) -> None:
        """Let children go; those that can't be killed are remembered as stuck."""
        first = (0,) if by_itself else ()
        for lane in terminate(lanes, *first, signal.SIGTERM, signal.SIGKILL):
            self._state.stuck.append(
                Stuck(
                    resource=lane.present.resource,
                    check=lane.present.name,
                    pid=lane.pid,
                    started=lane.started,
                    since=self._base.now,
                    what=lane.where(),
                )
            )
        self._lanes = [lane for lane in self._lanes if lane not in lanes]

    def _none(self, probes: Sequence[CheckCall], why: str) -> None:
        for probe in probes:
            self._answer(probe, Result(status=Status.UNKNOWN, seen=why))

    def _answer(self, probe: CheckCall, result: Result, took_s: float = 0.0) -> None:
        self._found[probe.name] = Finding(
            check=probe.check.name, on=probe.on, result=result, took_s=took_s
        )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals that would end the run wait: no child may be made, or let go, unseen."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _starved(lane: Lane) -> Result:
    return Result(
        status=Status.UNKNOWN,
        seen=f"no answer: the probe waited for a processor for {lane.waited_s:.1f} s",
        expected="a node with CPU time to spare",
        fix="look at what runs on the node (top); ask again when it is less busy",
    )


def _choosing_targets(check: Check, ask: Any) -> Check:
    return replace(check, run=ask, targets=None)


def _shared(probe: CheckCall, ctx: Ctx) -> str:
    """What a probe that hangs waits for, as far as its check can tell without touching it."""
    if probe.check.timeout_shared is None:
        return ""
    try:
        return probe.check.timeout_shared(ctx, probe.on, **probe.options)
    except (OSError, Unknown):
        return ""


def _stuck_result(probe: CheckCall, stuck: Stuck, ctx: Ctx) -> Result:
    since = date_time(stuck.since)
    text = f"stuck since {since} ({max(0.0, ctx.now - stuck.since):.0f} s)"
    if probe.name != stuck.check:
        return Result(
            status=Status.UNKNOWN, seen=f"not tried: {stuck.check} is {text}: {stuck.what}"
        )
    return Result(
        status=probe.check.on_timeout,
        seen=f"{text}: {stuck.what}",
        expected=f"an answer within {probe.check.deadline_s:g} s",
        fix=probe.check.timeout_fix,
        shared=_shared(probe, ctx),
    )


def _cpu() -> float:
    both = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)
