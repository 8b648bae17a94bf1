"""What holds whatever happens: random worlds that answer well, badly, twice, late or not at all."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario import Scenario, rebuilt

from supervisor.channel.wire import event_from, plain
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.check_status import Status
from supervisor.core.machine import step
from supervisor.core.node_life import spares, usable, usable_count
from supervisor.core.types import Fault, NodeState, Phase, Run

CAUSES = 9  # all that open_incident is called with, but wrong-step, which holds at once
OWN = Fault(check="gpu.count", status=Status.FAIL, text="7 of 8 GPUs")
SHARED = Fault(check="nfs.alive[/shared]", status=Status.FAIL, text="no answer", node_fault=False)
DARK = Fault(check="ecc.mode", status=Status.UNKNOWN, text="no answer")
ODD = Fault(check="cpu.steal", status=Status.WARN, text="3 % stolen")
LOOKS = [
    (Status.OK, ()),
    (Status.FAIL, (OWN,)),
    (Status.WARN, (ODD,)),
    (Status.UNKNOWN, (DARK,)),
    (Status.FAIL, (SHARED, DARK)),
    (Status.OK, ()),
    (Status.FAIL, (OWN, SHARED)),
]


class World(Scenario):
    """A world in which anything happens; every event is followed by a look at the invariants."""

    mirror: Run | None = None
    logs_come = False

    def __init__(self, **more: Any) -> None:
        self.unconfirmed: dict[str, int] = {}  # nodes that may have ranks, and of which attempt
        self.starts_seen: list[tuple[int, int]] = []  # attempt and slot, as first ordered
        super().__init__(**more)

    def take(self, kind: type[ev.Event], /, *, after: float = 1.0, **fields: Any) -> list[Action]:
        before = self.run
        actions = super().take(kind, after=after, **fields)
        event = self.events[-1]
        journaled = msgspec.json.decode(msgspec.json.encode(plain(event)))
        self.mirror, again = step(self.mirror, event_from(journaled))
        assert self.mirror == self.run and list(again) == actions, "the rebuilt run differs"
        self._confirm(event)
        if before is not None:
            self._check(before, event, actions)
        return actions

    def _confirm(self, event: ev.Event) -> None:
        """Forget ranks that are gone, and those on nodes that were given up."""
        if isinstance(event, ev.RanksStopped | ev.Prepared):
            self.unconfirmed.pop(event.node, None)
        for name in list(self.unconfirmed):
            node = self.run.pool.get(name)
            joined = isinstance(event, ev.AgentJoined) and event.node == name
            if node is None or joined or node.state is not NodeState.READY:
                self.unconfirmed.pop(name)

    def _check(self, before: Run, event: ev.Event, actions: list[Action]) -> None:
        """What `supervisor.core.invariants` can't see in one step, or does not hold so strictly."""
        run = self.run
        assert usable_count(run) == len(usable(run)), "what is counted is not what is there"
        assert not (before.ended and isinstance(event, ev.AllocationSeen) and actions)
        if len(run.slots) == len(before.slots):
            stay = [n for n in before.slots if n and n in run.slots]
            assert all(before.slots.index(n) == run.slots.index(n) for n in stay), "slots moved"
        for name in () if run.ended else spares(run):
            assert run.pool[name].health is not Status.FAIL, f"{name} fails, and is a spare"
        if isinstance(event, ev.HealthSeen | ev.OperatorExclusionsChanged):
            begun = before.attempt is not None and before.attempt.step is not None
            if begun and before.phase in (Phase.STARTING, Phase.RUNNING):
                assert run.phase is before.phase and actions == [], "steps were stopped"
        if not isinstance(event, ev.EngineStarted):
            self._check_starts([a for a in actions if isinstance(a, act.Start)])

    def _check_starts(self, starts: list[act.Start]) -> None:
        for start in starts:
            old = {n: a for n, a in self.unconfirmed.items() if a < start.attempt}
            assert not old, f"attempt {start.attempt} starts while {old} may live"
        if starts:
            self._check_order(starts)
        self.unconfirmed.update({s.node: s.attempt for s in starts})

    def _check_order(self, starts: list[act.Start]) -> None:
        """All at once, or slot 0's and then all others', each node's once."""
        attempt = self.run.attempt
        assert attempt is not None
        self.starts_seen.extend((s.attempt, s.slot) for s in starts)
        ordered = [slot for number, slot in self.starts_seen if number == attempt.number]
        if attempt.slot0_first and not attempt.started:
            assert ordered == [0]
        else:
            assert ordered == list(range(self.run.spec.nodes))

    # --- what may happen ----------------------------------------------------------------------

    def _pending(self, n: int) -> Action | None:
        pending = list(self.run.pending.values())
        return pending[n % len(pending)] if pending else None

    def _node(self, n: int) -> str:
        return self.names()[n % (self.size + 2)]

    def answer_well(self, n: int) -> None:
        if (action := self._pending(n)) is not None:
            self._answer(action)

    def _answer(self, action: Action, **more: Any) -> None:
        if not isinstance(action, act.Leave) or action.node in self.run.pool:
            self.reply(action, **more)

    def answer_all(self, n: int) -> None:
        for action in list(self.run.pending.values()):
            if action.key in self.run.pending:
                self._answer(action)

    def answer_badly(self, n: int) -> None:
        match self._pending(n):
            case act.Prepare() as order:
                self.reply(order, problems=("no port is free",))
            case act.Start(key=key, node=node, attempt=attempt):
                self.take(ev.StartFailed, key=key, node=node, attempt=attempt, why="no python")
            case act.Stop() as order:
                self.reply(order, stuck=(4711,))
            case act.Probe() as order:
                self.reply(order, outcome=("unreachable", "refused")[n % 2])
            case act.Scan() as order:
                self.corrupt.update(c.path for c in self.disk[-1:])
                self.reply(order)
            case act.Submit(key=key) | act.SendKeys(key=key) | act.Cancel(key=key):
                self.take(ev.Waiting, key=key, why="slurmctld does not answer")

    def repeat(self, n: int) -> None:
        """An event of some time ago comes again."""
        event = self.events[-1 - n % min(len(self.events), 40)]
        if isinstance(event, ev.Launched | ev.StopRequested):
            return
        fields = {f: getattr(event, f) for f in event.__dataclass_fields__ if f != "at"}
        if isinstance(event, ev.Scanned):
            fields["rejected"] = ()  # only looks come late, and they reject nothing
        self.take(type(event), **fields)

    def pass_time(self, n: int) -> None:
        if self.run.deadline is not None:
            self.expire_deadline()

    def silence(self, n: int) -> None:
        self.silent(self._node(n))

    def heard(self, n: int) -> None:
        self.take(ev.HeartbeatRegained, node=self._node(n))

    def late(self, n: int) -> None:
        self.take(ev.StepOverdue, last_step=1, last_at=self.now, limit_s=1.0)

    def stall(self, n: int) -> None:
        self.take(ev.HangDetected, last_step=1, last_at=self.now, limit_s=300.0)

    def rank_exit(self, n: int) -> None:
        if self.run.attempt is not None:
            self.exit(n % self.run.spec.nodes, (1, 0, None)[n % 3], clock=(n % 5) - 2.0)

    def train(self, n: int) -> None:
        if self.run.attempt is not None:
            self.progress((self.run.attempt.step or self.run.best_step) + 1 + n % 3)

    def resume(self, n: int) -> None:
        attempt = self.run.attempt
        if attempt is not None:
            promised = attempt.resume.step if attempt.resume else 0
            node = attempt.slots[n % len(attempt.slots)]
            wrong = n % 8 == 0
            self.take(ev.Resumed, attempt=attempt.number, node=node, step=promised + wrong)

    def keep(self, n: int) -> None:
        attempt = self.run.attempt
        if self.run.phase is Phase.RUNNING and attempt.step is not None and attempt.save_dir:
            self.save(attempt.step)

    def look_again(self, n: int) -> None:
        attempt = self.run.attempt
        if attempt is not None and attempt.save_dir is not None:
            scan = act.Scan(
                key="look", attempt=attempt.number, directory=attempt.save_dir, known=()
            )
            self.take(ev.Scanned, key="look", found=self.scan_result(scan)["found"])

    def rot(self, n: int) -> None:
        if self.disk:
            self.corrupt.add(self.disk[n % len(self.disk)].path)

    def register(self, n: int) -> None:
        if not self.run.live_jobs:
            return
        attempt = self.run.attempt
        held = {"attempt": attempt.number, "ranks": 1} if attempt and n % 2 else {}
        self.join(self._node(n // 2), problems=("7 of 8 GPUs",) if n % 7 == 0 else (), **held)

    def goodbye(self, n: int) -> None:
        node = self.run.pool.get(self._node(n))
        if node is not None:
            self.take(ev.AgentLeft, node=node.name, agent=node.agent, reason="terminated")

    def health(self, n: int) -> None:
        node = self.run.pool.get(self._node(n))
        if node is not None:
            status, faults = LOOKS[(n // 8) % len(LOOKS)]
            agent = node.agent if n % 11 else "a former life"
            self.take(ev.HealthSeen, node=node.name, agent=agent, status=status, faults=faults)

    def bar(self, n: int) -> None:
        names = {self._node(n): "bad link", self._node(n // 8): "fan"} if n % 3 else {}
        self.take(ev.OperatorExclusionsChanged, operator_excluded=names)

    def include(self, n: int) -> None:
        self.take(ev.IncludeRequested, who="ann", nodes=(self._node(n), self._node(n // 8)))

    def quarantine(self, n: int) -> None:
        if self.run.lineage:
            step = self.run.lineage[n % len(self.run.lineage)].step
            fields = {"step": step, "reason": "a spike", "and_later": n % 2 == 0}
            self.take(ev.QuarantineRequested, who="ann", **fields)

    def slurm(self, n: int) -> None:
        if not self.run.allocations:
            return
        nodes = tuple(self.names()[: self.size])
        down = (self._node(n),) if n % 3 == 0 else ()
        if n % 32 == 1:
            self.seen("ended", "TIMEOUT")
        elif n % 64 == 2:
            self.seen("cancelled", "CANCELLED by 1000")
        else:
            taken_out = n // 8 % (2 * len(nodes))  # half the time nobody
            here = nodes[:taken_out] + nodes[taken_out + 1 :]
            self.seen("running", nodes=here, down=down)

    def cut_off(self, n: int) -> None:
        silent = tuple(self.names()[n % 3 : self.size])
        self.take(ev.EngineIsolated, since=self.now - n % 4, silent=silent)

    def back(self, n: int) -> None:
        self.take(ev.IsolationEnded, why="agents are heard again")

    def restart(self, n: int) -> None:
        where = f"tcp://10.0.0.{1 + n % 2}:5555"
        self.take(ev.EngineStarted, epoch=self.run.epoch + 1, host="login", endpoint=where)

    def stop(self, n: int) -> None:
        if n % 8 == 0:
            self.take(ev.StopRequested, who="kim", now=n % 16 == 0)

    def everybody_works(self, n: int) -> None:
        """A good stretch: what brings a random world to the later phases."""
        if self.run.isolated_since is not None:
            self.back(n)
        phase = self.run.phase
        self.answer_all(n)
        if phase is Phase.PENDING and self.run.live_jobs:
            self.seen("running", nodes=tuple(self.names()[: self.size]))
        elif phase is Phase.GATHERING:
            here = {n.name for n in self.run.pool.values() if n.state is NodeState.READY}
            for name in self.names()[: self.size]:
                if name not in here and self.run.phase is Phase.GATHERING:
                    self.join(name)
            for node in [n for n in self.run.pool.values() if n.health not in ("OK", "WARN")]:
                if self.run.spec.preflight and self.run.phase is Phase.GATHERING:
                    self.checked(node.name)
        elif phase is Phase.STARTING and not self.run.ended:
            self.first_step()
        elif phase is Phase.BACKOFF:
            self.pass_time(n)


MOVES = [
    World.answer_well,
    World.answer_all,
    World.answer_badly,
    World.repeat,
    World.pass_time,
    World.silence,
    World.heard,
    World.late,
    World.stall,
    World.rank_exit,
    World.train,
    World.resume,
    World.keep,
    World.look_again,
    World.rot,
    World.register,
    World.goodbye,
    World.health,
    World.health,
    World.bar,
    World.quarantine,
    World.include,
    World.slurm,
    World.restart,
    World.cut_off,
    World.back,
    World.stop,
    *[World.everybody_works] * 8,
]
moves = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 255)), min_size=20, max_size=80)
quick = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)


@quick
@given(
    moves,
    st.integers(1, 5),
    st.integers(0, 3),
    st.sampled_from(["/ckpt", None]),
    st.sampled_from([(0.0,), (5.0,)]),
    st.booleans(),
)
def test_the_invariants_hold_whatever_happens(script, nodes, spares, home, backoff, preflight):
    world = World(nodes=nodes, spares=spares, home=home, backoff_s=backoff, preflight=preflight)
    for move, n in script:
        move(world, n)
    assert rebuilt(world.events) == world.run
