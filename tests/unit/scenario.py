"""A run played by hand: a world that answers every action well, until the test says otherwise.

What a story says and orders from event to event stands in transcripts/. What is here brings a run
to a point, for tests of what a transcript shows badly: tables, late answers, properties.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from supervisor.channel.wire import event_from, plain
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.check_status import Status
from supervisor.core.invariants import violations
from supervisor.core.machine import transition
from supervisor.core.node_states import STATES
from supervisor.core.phases import LEADS_TO
from supervisor.core.policy import Policy
from supervisor.core.transition import Transition
from supervisor.core.types import (
    Checkpoint,
    Fault,
    Incident,
    NodeState,
    Phase,
    RankExit,
    Rejected,
    Run,
    RunSpec,
)

HOME = "/ckpt"


def spec(
    nodes: int = 2,
    spares: int = 1,
    ranks: int = 1,
    home: str | None = HOME,
    preflight: bool = False,
    keep: int = 0,
    keep_every: int = 0,
    **policy: Any,
):
    return RunSpec(
        name="moe",
        run_id="0123456789ab",
        nodes=nodes,
        spares=spares,
        ranks_per_node=ranks,
        checkpoint_dir=home,
        policy=Policy(**policy),
        preflight=preflight,
        keep=keep,
        keep_every=keep_every,
        shows_work=home is not None,
    )


class Scenario:
    """The run, everything that happened to it and all that it ordered."""

    logs_come = True  # at once, whenever they are ordered

    def __init__(
        self,
        nodes: int = 2,
        spares: int = 1,
        *,
        ranks: int = 1,
        home: str | None = HOME,
        seed: Checkpoint | None = None,
        preflight: bool = False,
        operator_excluded: dict[str, str] | None = None,
        **policy: Any,
    ) -> None:
        self.now = 1000.0
        self.events: list[ev.Event] = []
        self.ordered: list[Action] = []
        self.disk: list[Checkpoint] = [seed] if seed else []
        self.corrupt: set[str] = set()
        self._jobs = 0
        self._lives = 0
        self.run: Run = None  # type: ignore[assignment]
        wanted = spec(nodes, spares, ranks, home, preflight, **policy)
        self.take(ev.Launched, spec=wanted, seed=seed, operator_excluded=operator_excluded or {})
        self.take(ev.EngineStarted, epoch=1, host="login", endpoint="tcp://10.0.0.1:5555")

    # --- what happens -------------------------------------------------------------------------

    def take(self, kind: type[ev.Event], /, *, after: float = 1.0, **fields: Any) -> list[Action]:
        """Let an event happen `after` seconds; returns what it made the run order."""
        self.now += after
        made_here = kind(at=self.now, **fields)
        event = event_from(plain(made_here))
        assert event == made_here
        made = self.fold(event)
        self.run = made.run
        self.events.append(event)
        self.ordered.extend(made.actions)
        for order in made.actions if self.logs_come else ():
            if isinstance(order, act.KeepLogs):
                self.reply(order)
        return made.actions

    def fold(self, event: ev.Event) -> Transition:
        return checked(self.run, event)

    def expire_deadline(self) -> list[Action]:
        """Nothing happens until the deadline."""
        deadline = self.run.deadline
        assert deadline is not None, f"{self.run.phase} has no deadline"
        return self.take(
            ev.DeadlineExpired, after=max(0.0, deadline.at - self.now), kind=deadline.kind
        )

    def answer(self, *kinds: type[Action], but: str = "") -> None:
        """Answer pending actions of these kinds well, except those to the node `but`."""
        for action in list(self.run.pending.values()):
            wanted = isinstance(action, kinds) and getattr(action, "node", "") != (but or None)
            if wanted and action.key in self.run.pending:
                self.reply(action)

    def reply(self, action: Action, **more: Any) -> list[Action]:
        kind, fields = self._result(action)
        return self.take(kind, **{**fields, **more})

    def _result(self, action: Action) -> tuple[type[ev.Event], dict[str, Any]]:
        key = action.key
        match action:
            case act.Submit():
                self._jobs += 1
                job = str(100 + self._jobs)
                return ev.Submitted, {"key": key, "job_id": job, "job_name": action.job_name}
            case act.SendKeys():
                return ev.KeysSent, {"key": key, "job_id": action.job_id}
            case act.Prepare():
                node, number = action.node, action.attempt
                return ev.Prepared, {"key": key, "node": node, "attempt": number, "port": 30000}
            case act.Start():
                return ev.RanksStarted, {"key": key, "node": action.node, "attempt": action.attempt}
            case act.Stop():
                return ev.RanksStopped, {"key": key, "node": action.node, "attempt": action.attempt}
            case act.Collect():
                return ev.Collected, {"key": key, "node": action.node, "attempt": action.attempt}
            case act.Probe():
                fields = {"key": key, "node": action.node, "target": action.target}
                return ev.Probed, {**fields, "outcome": "reached"}
            case act.Leave():
                agent = self.run.pool[action.node].agent
                return ev.AgentLeft, {"node": action.node, "agent": agent, "reason": "told to"}
            case act.Discard() | act.Quarantine():
                self.disk = [c for c in self.disk if c.path != action.path]
                return ev.CheckpointRetired, {"key": key, "path": action.path}
            case act.Scan():
                return ev.Scanned, {"key": key, **self.scan_result(action)}
            case act.KeepLogs():
                kept = len(action.slots) * self.run.spec.ranks_per_node
                return ev.LogsKept, {
                    "after": 0.0,
                    "key": key,
                    "attempt": action.attempt,
                    "ranks": kept,
                }
        return ev.Done, {"key": key}

    def scan_result(self, scan: act.Scan) -> dict[str, Any]:
        """Like supervisor.engine.effects: the attempt's own, then older ones until one is good."""
        here = [c for c in self.disk if c.path.startswith(f"{scan.directory}/")]
        found = [c for c in here if c.path not in self.corrupt]
        bad = [c for c in here if c.path in self.corrupt]
        for number, path, attempt in reversed(scan.known):
            if found:
                break
            if path in {c.path for c in here}:
                continue
            again = Checkpoint(step=number, path=path, attempt=attempt, verified_at=self.now)
            (bad if path in self.corrupt else found).append(again)
        rejected = [Rejected(step=c.step, path=c.path, why="a shard is too short") for c in bad]
        return {"found": tuple(found), "rejected": tuple(rejected)}

    def scan_found(self) -> dict[str, Any]:
        """What the engine's look at the attempt's checkpoints finds."""
        attempt = self.run.attempt
        assert attempt is not None and attempt.save_dir is not None
        scan = act.Scan(key="look", attempt=attempt.number, directory=attempt.save_dir, known=())
        return {**self.scan_result(scan), "rejected": ()}

    def save(self, number: int) -> str:
        """The ranks save a checkpoint of this step; nobody has looked at it yet."""
        attempt = self.run.attempt
        assert attempt is not None and attempt.save_dir is not None
        path = f"{attempt.save_dir}/step-{number}"
        at = self.now
        self.disk = [c for c in self.disk if c.path != path]  # a trainer overwrites its own
        self.disk.append(Checkpoint(step=number, path=path, attempt=attempt.number, verified_at=at))
        return path

    def grant(self) -> None:
        self.answer(act.Submit)
        spec = self.run.spec
        nodes = [n for n in self.names() if n not in self.run.excluded]
        self.seen("running", nodes=tuple(nodes[: spec.nodes + spec.spares]))
        self.answer(act.SendKeys)

    def names(self) -> list[str]:
        return [f"n{i}" for i in range(1, 20)]

    def seen(self, state: str, raw: str = "", **more: Any) -> list[Action]:
        """What Slurm says of the newest job."""
        job = list(self.run.allocations)[-1]
        return self.take(
            ev.AllocationSeen, job_id=job, state=state, raw=raw or state.upper(), **more
        )

    def join(self, node: str, **more: Any) -> list[Action]:
        """A new agent registers."""
        self._lives += 1
        job = list(self.run.allocations)[-1]
        who = {"agent": f"life-{self._lives}", "address": f"10.0.1.{node[1:]}", "port": 7000}
        return self.take(ev.AgentJoined, **{"node": node, "job_id": job, **who, **more})

    def gather(self) -> None:
        self.grant()
        for node in list(self.run.allocations.values())[-1].nodes:
            self.join(node)

    def register(self) -> None:
        """Every node's agent comes and, where that is waited for, says that its node is well."""
        for node in self.names()[: self.size]:
            self.join(node)
        for node in self.names()[: self.size] if self.run.spec.preflight else ():
            self.checked(node)

    def checked(self, node: str, status: str = "OK", *faults: Fault) -> list[Action]:
        """The node's health checks said something."""
        agent = self.run.pool[node].agent
        return self.take(
            ev.HealthSeen, node=node, agent=agent, status=Status(status), faults=faults
        )

    def start(self) -> None:
        """From CHECKING: all nodes are free, the ranks start."""
        self.answer(act.Prepare)
        self.answer(act.Start)  # of a relaunch only slot 0's
        self.answer(act.Start)

    def progress(
        self, number: int, loss: float | None = 2.5, after: float = 1.0, **more: Any
    ) -> list[Action]:
        assert self.run.attempt is not None
        number_of = self.run.attempt.number
        return self.take(
            ev.Progress, after=after, attempt=number_of, step=number, loss=loss, **more
        )

    def first_step(self) -> None:
        attempt = self.run.attempt
        assert attempt is not None
        promised = attempt.resume.step if attempt.resume else 0
        self.take(ev.Resumed, attempt=attempt.number, node=attempt.slots[0], step=promised)
        self.progress(promised + 1)

    def to(self, phase: Phase) -> Scenario:
        """Drive a new run to the phase with a world that works."""
        way = {
            Phase.PENDING: lambda: None,
            Phase.GATHERING: self.grant,
            Phase.CHECKING: self.register,
            Phase.STARTING: self.start,
            Phase.RUNNING: self.first_step,
            Phase.STOPPING: lambda: self.exit(0),
            Phase.TRIAGE: lambda: self.answer(act.Stop, act.Collect),
            Phase.BACKOFF: lambda: self.answer(act.Scan),
        }
        for at, go in way.items():
            go()
            assert self.run.phase is at, f"{self.run.phase}: {self.run.reason}, not {at}"
            if at is phase:
                return self
        raise AssertionError(phase)

    @property
    def size(self) -> int:
        return self.run.spec.nodes + self.run.spec.spares

    def exit(
        self, rank: int, code: int | None = 1, *, clock: float = 0.0, **more: Any
    ) -> list[Action]:
        """A rank ends; `clock` is how far its node's clock is off."""
        attempt = self.run.attempt
        assert attempt is not None
        node = attempt.slots[rank // self.run.spec.ranks_per_node]
        fields = {"node": node, "rank": rank, "code": code, "signal": None, **more}
        gone = RankExit(at=self.now + 1 + clock, **fields)
        return self.take(ev.RankExited, attempt=attempt.number, exit=gone)

    def finish_stop_and_scan(self) -> None:
        """The ranks are stopped and the checkpoints looked at; a backoff passes."""
        self.answer(act.Collect, act.Stop)
        self.answer(act.Scan)
        if self.run.phase is Phase.BACKOFF:
            self.expire_deadline()

    def recover_to_first_step(self) -> None:
        """All of a recovery, up to the first new step."""
        self.finish_stop_and_scan()
        assert self.run.phase is Phase.CHECKING, f"{self.run.phase}: {self.run.reason}"
        self.start()
        self.first_step()

    def silent(self, node: str) -> list[Action]:
        return self.take(ev.HeartbeatLost, node=node, last_heard=self.now - 2.0)

    def probed(self, target: str, outcome: str) -> None:
        for action in list(self.run.pending.values()):
            if isinstance(action, act.Probe) and action.target == target:
                self.reply(action, outcome=outcome)

    def overdue(self) -> list[Action]:
        attempt = self.run.attempt
        assert attempt is not None and attempt.step is not None and attempt.step_at is not None
        last = {"last_step": attempt.step, "last_at": attempt.step_at}
        silent = tuple(sorted(self.run.pool.group(NodeState.SUSPECT)))
        return self.take(ev.StepOverdue, limit_s=1.0, suspects=silent, **last)

    def lose(self, node: str) -> None:
        """A node with a slot goes silent, and the next step is overdue."""
        self.silent(node)
        self.overdue()

    # --- what is asked of it ------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        return self.run.phase

    @property
    def incident(self) -> Incident:
        return self.run.incidents[-1]

    @property
    def slots(self) -> str:
        return " ".join(self.run.slots)

    @property
    def starts(self) -> list[act.Start]:
        return [a for a in self.ordered if isinstance(a, act.Start)]

    def state(self, node: str) -> NodeState:
        return self.run.pool[node].state


def kinds(actions: list[Action]) -> list[str]:
    return sorted(type(a).__name__ for a in actions)


def rebuilt(events: list[ev.Event]) -> Run:
    """The run as the journal of these events gives it."""
    run: Run | None = None
    for event in events:
        run = checked(run, event_from(plain(event))).run
    assert run is not None
    return run


def checked(before: Run | None, event: ev.Event) -> Transition:
    """A step, and a look at every invariant, at the whole run: none is broken or refused."""
    made = transition(before, event)
    for source, target in pairwise(made.phases):
        told = isinstance(event, ev.RunEnded)  # by the journal, in whatever phase
        assert told or target in LEADS_TO[source], f"{source} leads to {target}: {event}"
    for name, node in made.run.pool.items():
        old = before.pool.get(name) if before is not None else None
        if old is not None and old.state is not node.state:
            assert node.state in STATES[old.state].leads_to, f"{name}: {old.state}, {event}"
    if before is not None:
        broken = violations(before, event, made.run, made.actions)
        assert not broken, [v.text for v in broken]
    assert made.run.violations == (), [v.text for v in made.run.violations]
    return made
