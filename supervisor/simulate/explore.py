"""Every order of up to so many events in a small world, over the pure core.

Three nodes, two slots. States that differ in times and words alone are one. In each the invariants
are held, and from each, in a world that answers well from then on, the run has to train again.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.actions import Action
from supervisor.core.diagnose import has_trained
from supervisor.core.invariants import violations
from supervisor.core.machine import transition
from supervisor.core.policy import Policy
from supervisor.core.ports import JobState
from supervisor.core.types import (
    HAS_RANKS,
    AllocationState,
    Checkpoint,
    NodeState,
    Phase,
    ProbeOutcome,
    RankExit,
    Run,
    RunSpec,
)

NODES = ("n1", "n2", "n3")
HOME = "/ckpt"
ROUNDS = 150  # of a well world; a run that does not train by then never does
WORDS = frozenset({"reason", "why", "text", "evidence", "remedy", "fingerprint", "phase_times"})

Trace = tuple[ev.Event, ...]


def spec(**policy: Any) -> RunSpec:
    return RunSpec(
        name="small",
        run_id="0123456789ab",
        nodes=2,
        spares=1,
        ranks_per_node=1,
        checkpoint_dir=HOME,
        policy=Policy(backoff_s=(5.0,), **policy),
    )


@dataclass(frozen=True, slots=True)
class WrongEnd:
    """What went wrong, and the events that led there."""

    what: str
    trace: Trace


def shape(value: Any) -> Any:
    """A run without its times and words: what decisions can differ by."""
    if isinstance(value, float):
        return None
    if isinstance(value, str):
        return re.sub(r"\d+\.\d+|life-\d+", "", value)
    if isinstance(value, Mapping):
        return tuple((shape(key), shape(one)) for key, one in sorted(value.items()))
    if isinstance(value, Set):
        return frozenset(shape(one) for one in value)
    if isinstance(value, tuple):
        return tuple(shape(one) for one in value)
    if is_dataclass(value):
        named = (f.name for f in fields(value) if f.name not in WORDS)
        return (type(value).__name__, *(shape(getattr(value, name)) for name in named))
    return value


# --- one step -------------------------------------------------------------------------------------


def take(run: Run | None, event: ev.Event) -> tuple[Run, str]:
    """The run after an event, and which invariant that broke."""
    made = transition(run, event)
    broken = violations(run, event, made.run, made.actions) if run is not None else ()
    wrong = (*broken, *made.run.violations)
    return made.run, wrong[0].text if wrong else ""


def now(run: Run) -> float:
    """A second after the newest thing that the run remembers."""
    times = [run.since, *(node.since for node in run.pool.values())]
    if run.attempt is not None:
        times += [t for t in (run.attempt.step_at, run.attempt.started_at) if t is not None]
    if run.incidents:
        times.append(run.incidents[-1].confirmed_at)
    times += [c.verified_at for c in run.lineage]
    return max(times) + 1.0


# --- what may happen ------------------------------------------------------------------------------


def answers(run: Run, action: Action, at: float) -> Iterator[ev.Event]:
    """How an action can end, well first."""
    key = action.key
    match action:
        case act.Submit():
            job = str(100 + run.allocations_requested)
            yield ev.Submitted(at=at, key=key, job_id=job, job_name=action.job_name)
        case act.SendKeys():
            yield ev.KeysSent(at=at, key=key, job_id=action.job_id)
        case act.Prepare(node=node, attempt=attempt):
            said: dict[str, Any] = {
                "at": at,
                "key": key,
                "node": node,
                "attempt": attempt,
                "port": 30000,
            }
            yield ev.Prepared(**said)
            yield ev.Prepared(**said, problems=("processes 7 of …",), stuck=(7,))
            yield ev.Prepared(**said, problems=("no port is free",))
        case act.Start(node=node, attempt=attempt):
            yield ev.RanksStarted(at=at, key=key, node=node, attempt=attempt)
            yield ev.StartFailed(at=at, key=key, node=node, attempt=attempt, why="no python")
        case act.Stop(node=node, attempt=attempt):
            yield ev.RanksStopped(at=at, key=key, node=node, attempt=attempt)
            yield ev.RanksStopped(at=at, key=key, node=node, attempt=attempt, stuck=(7,))
        case act.Collect(node=node, attempt=attempt):
            yield ev.Collected(at=at, key=key, node=node, attempt=attempt)
        case act.Probe(node=node, target=target):
            for outcome in ProbeOutcome:
                yield ev.Probed(at=at, key=key, node=node, target=target, outcome=outcome)
        case act.Leave(node=node):
            agent = run.pool[node].agent
            yield ev.AgentLeft(at=at, node=node, agent=agent, reason="told to leave")
        case act.Scan():
            yield ev.Scanned(at=at, key=key, found=(*run.lineage, *saved(run, at)))
            yield ev.Waiting(at=at, key=key, why="storage did not answer")
        case act.KeepLogs(attempt=attempt, slots=slots):
            yield ev.LogsKept(at=at, key=key, attempt=attempt, ranks=len(slots))
        case act.Discard() | act.Quarantine():
            yield ev.CheckpointRetired(at=at, key=key, path=action.path)
        case _:
            yield ev.Done(at=at, key=key)


def saved(run: Run, at: float) -> Iterator[Checkpoint]:
    """What the attempt has saved: its newest step."""
    attempt = run.attempt
    if attempt is not None and attempt.step is not None and attempt.save_dir is not None:
        path = f"{attempt.save_dir}/step-{attempt.step}"
        if path not in {c.path for c in run.lineage} | run.retired.keys():
            yield Checkpoint(step=attempt.step, path=path, attempt=attempt.number, verified_at=at)


def joined(run: Run, node: str, at: float, *, ranks: bool) -> ev.Event:
    number = run.attempt.number if run.attempt is not None else None
    return ev.AgentJoined(
        at=at,
        node=node,
        job_id=live_job(run),
        address="10.0.0.1",
        port=7000,
        agent=f"life-{int(at)}",
        attempt=number if ranks else None,
        ranks=1 if ranks else 0,
    )


def live_job(run: Run) -> str:
    return run.live_jobs[-1] if run.live_jobs else "0"


def may_come(run: Run) -> Iterator[ev.Event]:
    """Whatever may happen next."""
    at = now(run)
    for action in run.pending.values():
        yield from answers(run, action, at)
    if run.deadline is not None:
        yield ev.DeadlineExpired(at=max(at, run.deadline.at), kind=run.deadline.kind)
    yield from _of_nodes(run, at)
    yield from _of_ranks(run, at)
    yield from _of_slurm(run, at)
    yield ev.EngineStarted(at=at, epoch=run.epoch + 1, host="login", endpoint=run.endpoint)


def _of_nodes(run: Run, at: float) -> Iterator[ev.Event]:
    attempt = run.attempt
    for node in run.pool.values():
        if node.state is NodeState.READY:
            yield ev.HeartbeatLost(at=at, node=node.name, last_heard=at - 3.0)
        if node.state in (NodeState.SUSPECT, NodeState.LOST):
            yield ev.HeartbeatRegained(at=at, node=node.name)
        yield ev.AgentLeft(at=at, node=node.name, agent=node.agent, reason="SIGTERM from outside")
        if run.live_jobs:
            yield joined(run, node.name, at, ranks=False)
            if attempt is not None and node.name in attempt.started:
                yield joined(run, node.name, at, ranks=True)


def _of_ranks(run: Run, at: float) -> Iterator[ev.Event]:
    attempt = run.attempt
    if attempt is None or run.phase not in HAS_RANKS or not attempt.started:
        return
    step = attempt.step or (attempt.resume.step if attempt.resume else 0)
    if set(attempt.started) >= set(attempt.slots):
        yield ev.Progress(at=at, attempt=attempt.number, step=step + 1)
    for rank, node in enumerate(attempt.slots):
        if node in attempt.started:
            gone = RankExit(node=node, rank=rank, code=1, signal=None, at=at)
            yield ev.RankExited(at=at, attempt=attempt.number, exit=gone)
    if run.phase is Phase.RUNNING:
        late: dict[str, Any] = {"at": at, "last_step": step, "last_at": at - 60.0, "limit_s": 60.0}
        yield ev.HangDetected(**late)
        if any(run.pool[n].state is NodeState.SUSPECT for n in attempt.slots if n in run.pool):
            yield ev.StepOverdue(**late)


def _of_slurm(run: Run, at: float) -> Iterator[ev.Event]:
    for job in run.live_jobs:
        seen: dict[str, Any] = {"at": at, "job_id": job}
        running: dict[str, Any] = {**seen, "state": JobState.RUNNING, "raw": "RUNNING"}
        if run.allocations[job].nodes:
            yield ev.AllocationSeen(**running, nodes=NODES, down=("n2",))
            yield ev.AllocationSeen(**running, nodes=("n1", "n3"))
        yield ev.AllocationSeen(**running, nodes=NODES)
        yield ev.AllocationSeen(**seen, state=JobState.ENDED, raw="TIMEOUT")


# --- a world that is well -------------------------------------------------------------------------


def well(run: Run) -> ev.Event | None:
    """What a world does that works: it answers, nodes come and are heard, ranks train."""
    at = now(run)
    for action in run.pending.values():
        return next(answers(run, action, at))
    for job in run.live_jobs:
        allocation = run.allocations[job]
        if allocation.cancelled:
            return ev.AllocationSeen(
                at=at, job_id=job, state=JobState.CANCELLED, raw="CANCELLED by 0"
            )
        if allocation.state is AllocationState.REQUESTED or set(allocation.nodes) != {*NODES}:
            raw: dict[str, Any] = {"state": JobState.RUNNING, "raw": "RUNNING", "nodes": NODES}
            return ev.AllocationSeen(at=at, job_id=job, **raw)
        for name in allocation.nodes:
            node = run.pool.get(name)
            if node is None or node.state is NodeState.LEFT:
                return joined(run, name, at, ranks=False)
            if node.state in (NodeState.SUSPECT, NodeState.LOST):
                return ev.HeartbeatRegained(at=at, node=name)
            if node.unprepared is not None:  # its agent has looked again
                said: dict[str, Any] = {"node": name, "attempt": node.unprepared, "port": 30000}
                return ev.Prepared(at=at, key=names.prepare_key(node.unprepared, name), **said)
    attempt = run.attempt
    if (
        run.phase is Phase.STARTING
        and attempt is not None
        and set(attempt.started) >= set(attempt.slots)
    ):
        step = attempt.resume.step if attempt.resume else 0
        return ev.Progress(at=at, attempt=attempt.number, step=step + 1)
    if run.deadline is not None:
        return ev.DeadlineExpired(at=max(at, run.deadline.at), kind=run.deadline.kind)
    return None


class Explorer:
    """Looks at everything that can be reached, once."""

    def __init__(self, may_end: frozenset[Phase] = frozenset({Phase.DONE, Phase.STOPPED})) -> None:
        self._may_end = may_end
        self._trains: set[int] = set()  # states from which the run is known to train again
        self.states = 0
        self.steps = 0

    def explore(self, begin: Trace, depth: int) -> WrongEnd | None:
        """The first thing that is wrong within so many events after `begin`."""
        run: Run | None = None
        for event in begin:
            run, wrong = take(run, event)
            assert not wrong, wrong
        assert run is not None
        seen = {hash(shape(run))}
        waiting: deque[tuple[Run, Trace]] = deque([(run, ())])
        while waiting:
            run, trace = waiting.popleft()
            if (finding := self.look(run, trace)) or len(trace) == depth:
                if finding:
                    return finding
                continue
            for event in may_come(run):
                after, wrong = take(run, event)
                self.steps += 1
                if wrong:
                    return WrongEnd(wrong, (*trace, event))
                key = hash(shape(after))
                if key not in seen:
                    seen.add(key)
                    waiting.append((after, (*trace, event)))
        return None

    def look(self, run: Run, trace: Trace) -> WrongEnd | None:
        """Whether the run trains again, once the world is well."""
        self.states += 1
        passed: list[int] = []
        way: list[ev.Event] = []
        for _ in range(ROUNDS):
            key = hash(shape(run))
            if key in self._trains or run.phase is Phase.RUNNING or run.phase in self._may_end:
                self._trains.update((*passed, key))
                return None
            if run.ended and not has_trained(run):
                return None  # a launch that comes to nothing is told to who launched
            if run.ended:
                return WrongEnd(f"{run.phase.value}: {run.reason}", (*trace, *way))
            passed.append(key)
            event = well(run)
            if event is None:
                return WrongEnd(f"nothing ends {run.phase.value}: {run.reason}", (*trace, *way))
            way.append(event)
            run, wrong = take(run, event)
            self.steps += 1
            if wrong:
                return WrongEnd(wrong, (*trace, *way))
        return WrongEnd(f"{run.phase.value} forever: {run.reason}", (*trace, *way))


def beginnings() -> dict[Phase, Trace]:
    """The events that bring a run of a well world into each of its phases."""
    launched = ev.Launched(at=1000.0, spec=spec())
    started = ev.EngineStarted(at=1001.0, epoch=1, host="login", endpoint="tcp://10.0.0.1:5555")
    run, _ = take(None, launched)
    run, _ = take(run, started)
    trace: list[ev.Event] = [launched, started]
    found = {run.phase: tuple(trace)}
    while run.phase is not Phase.RUNNING:
        following = well(run)
        assert following is not None
        run, _ = take(run, following)
        trace.append(following)
        found.setdefault(run.phase, tuple(trace))
    number = 1
    for step in (2, 3):
        progress = ev.Progress(at=now(run), attempt=number, step=step)
        run, _ = take(run, progress)
        trace.append(progress)
    checkpoint = next(saved(run, now(run)))
    scanned = ev.Scanned(at=now(run), key="look", found=(replace(checkpoint),))
    run, _ = take(run, scanned)
    trace.append(scanned)
    found[Phase.RUNNING] = tuple(trace)
    assert run.attempt is not None
    gone = RankExit(node=run.attempt.slots[0], rank=0, code=1, signal=None, at=now(run))
    coming: ev.Event | None = ev.RankExited(at=now(run), attempt=number, exit=gone)
    while coming is not None and (run.phase not in found or run.phase is Phase.RUNNING):
        run, _ = take(run, coming)
        trace.append(coming)
        found.setdefault(run.phase, tuple(trace))
        coming = well(run)
    return found
