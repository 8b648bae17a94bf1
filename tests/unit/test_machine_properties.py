"""What holds whatever happens: random worlds that answer well, badly, twice, late or not at all."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenario import Play, rebuilt

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.machine import step
from supervisor.core.types import Fault, NodeState, Phase, Run
from supervisor.wire import event_from, plain

AFTER_THE_END = (do.Leave, do.Cancel)
RESTART_AFTER_THE_END = (*AFTER_THE_END, do.Submit, do.SendKeys)
CAUSES = 9  # all that open_incident is called with, but wrong-step, which holds at once
OWN = Fault(check="gpu.count", status="FAIL", text="7 of 8 GPUs")
SHARED = Fault(check="nfs.alive[/shared]", status="FAIL", text="no answer", own=False)
DARK = Fault(check="ecc.mode", status="UNKNOWN", text="no answer")
ODD = Fault(check="cpu.steal", status="WARN", text="3 % stolen")
LOOKS = [
    ("OK", ()),
    ("FAIL", (OWN,)),
    ("WARN", (ODD,)),
    ("UNKNOWN", (DARK,)),
    ("FAIL", (SHARED, DARK)),
    ("OK", ()),
    ("FAIL", (OWN, SHARED)),
]


class World(Play):
    """A world in which anything happens; every event is followed by a look at the invariants."""

    mirror: Run | None = None

    def __init__(self, **more: Any) -> None:
        self.unconfirmed: dict[str, int] = {}  # nodes that may have ranks, and of which attempt
        self.starts_seen: list[tuple[int, int]] = []  # attempt and slot, as first ordered
        super().__init__(**more)

    def take(self, kind: type[ev.Event], *, after: float = 1.0, **fields: Any) -> list[Action]:
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
        run = self.run
        if run.ended:
            allowed = (
                RESTART_AFTER_THE_END if isinstance(event, ev.EngineStarted) else AFTER_THE_END
            )
            assert all(isinstance(a, allowed) for a in actions), (event, actions)
            assert not before.ended or run.phase is before.phase, "an ended run goes on"
            assert not isinstance(event, ev.AllocationSeen) or not actions
        else:
            waits_for_slurm = run.phase is Phase.PENDING and run.live_jobs
            assert run.deadline or run.pending or run.phase is Phase.RUNNING or waits_for_slurm, (
                f"nothing will ever happen in {run.phase}"
            )
        if run.attempt and (not before.attempt or before.attempt.number != run.attempt.number):
            newest = run.lineage[-1] if run.lineage else None
            assert run.attempt.resume == newest, "not the newest verified checkpoint"
            assert not before.attempt or run.attempt.number == before.attempt.number + 1
        if len(run.slots) == len(before.slots):
            stay = [n for n in before.slots if n and n in run.slots]
            assert all(before.slots.index(n) == run.slots.index(n) for n in stay), "slots moved"
        for name in run.excluded.keys() - before.excluded.keys():
            assert name in {e.node for e in run.incidents[-1].evidence}, f"{name} was not named"
        assert {a.attempt for a in run.pending.values() if isinstance(a, do.Start)} <= {
            run.attempt.number if run.attempt else 0
        }
        self._check_health(before, event, actions)
        if not isinstance(event, ev.EngineStarted):
            self._check_starts([a for a in actions if isinstance(a, do.Start)])

    def _check_health(self, before: Run, event: ev.Event, actions: list[Action]) -> None:
        """A check stops no steps, unknown takes nobody away, what fails is no spare."""
        run = self.run
        for name in () if run.ended else run.spares:
            assert run.pool[name].health != "FAIL", f"{name} fails, and is a spare"
            assert name not in run.barred
        for name in run.excluded.keys() - before.excluded.keys():
            assert run.incidents[-1].verdict.culprits.index(name) < 2, "blame freezes at three"
        if isinstance(event, ev.HealthSeen | ev.BarredSeen):
            assert run.excluded == before.excluded
            begun = before.attempt is not None and before.attempt.step is not None
            if begun and before.phase in (Phase.STARTING, Phase.RUNNING):
                assert run.phase is before.phase and actions == [], "steps were stopped"
        if isinstance(event, ev.HealthSeen) and event.status in ("UNKNOWN", "WARN"):
            pool = run.pool.values()
            new = [n for n in pool if n.state is not before.pool[n.name].state]
            assert all(n.state is NodeState.READY for n in new), "not known to fail, and not used"
            assert event.status == "WARN" or not new, "unknown cures nothing"
        if isinstance(event, ev.Prepared):
            for start in (a for a in actions if isinstance(a, do.Start)):
                assert run.pool[start.node].health != "FAIL" and start.node not in run.barred
                assert run.pool[start.node].health or not run.spec.preflight

    def _check_starts(self, starts: list[do.Start]) -> None:
        run = self.run
        for start in starts:
            assert run.phase in (Phase.STARTING, Phase.RUNNING) and run.attempt is not None
            assert start.attempt == run.attempt.number and run.slots[start.slot] == start.node
            assert start.node not in run.excluded and start.node not in run.attempt.started
            assert run.pool[start.node].state not in (NodeState.LOST, NodeState.LEFT)
            assert start.resume_path == (run.attempt.resume.path if run.attempt.resume else None)
            old = {n: a for n, a in self.unconfirmed.items() if a < start.attempt}
            assert not old, f"attempt {start.attempt} starts while {old} may live"
        if starts:
            self._check_order(starts)
        self.unconfirmed.update({s.node: s.attempt for s in starts})

    def _check_order(self, starts: list[do.Start]) -> None:
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
        if not isinstance(action, do.Leave) or action.node in self.run.pool:
            self.reply(action, **more)

    def answer_all(self, n: int) -> None:
        for action in list(self.run.pending.values()):
            if action.key in self.run.pending:
                self._answer(action)

    def answer_badly(self, n: int) -> None:
        match self._pending(n):
            case do.Prepare() as order:
                self.reply(order, problems=("no port is free",))
            case do.Start(key=key, node=node, attempt=attempt):
                self.take(ev.StartFailed, key=key, node=node, attempt=attempt, why="no python")
            case do.Stop() as order:
                self.reply(order, stuck=(4711,))
            case do.Probe() as order:
                self.reply(order, outcome=("unreachable", "refused")[n % 2])
            case do.Scan() as order:
                self.rotten.update(c.path for c in self.disk[-1:])
                self.reply(order)
            case do.Submit(key=key) | do.SendKeys(key=key) | do.Cancel(key=key):
                self.take(ev.Waiting, key=key, why="slurmctld does not answer")

    def repeat(self, n: int) -> None:
        """An event of some time ago comes again."""
        event = self.events[-1 - n % min(len(self.events), 40)]
        if isinstance(event, ev.Launched | ev.StopAsked):
            return
        fields = {f: getattr(event, f) for f in event.__dataclass_fields__ if f != "at"}
        if isinstance(event, ev.Scanned):
            fields["rejected"] = ()  # only looks come late, and they reject nothing
        self.take(type(event), **fields)

    def pass_time(self, n: int) -> None:
        if self.run.deadline is not None:
            self.due()

    def silence(self, n: int) -> None:
        self.silent(self._node(n))

    def heard(self, n: int) -> None:
        self.take(ev.NodeHeard, node=self._node(n))

    def late(self, n: int) -> None:
        self.take(ev.StepOverdue, last_step=1, last_at=self.now, limit_s=1.0)

    def stall(self, n: int) -> None:
        self.take(ev.Stalled, last_step=1, last_at=self.now, limit_s=300.0)

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
            scan = do.Scan(key="look", attempt=attempt.number, directory=attempt.save_dir, known=())
            self.take(ev.Scanned, key="look", found=self.look(scan)["found"])

    def rot(self, n: int) -> None:
        if self.disk:
            self.rotten.add(self.disk[n % len(self.disk)].path)

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
        self.take(ev.BarredSeen, barred=names)

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
            self.seen("running", nodes=nodes, down=down)

    def restart(self, n: int) -> None:
        where = f"tcp://10.0.0.{1 + n % 2}:5555"
        self.take(ev.EngineStarted, epoch=self.run.epoch + 1, host="login", endpoint=where)

    def stop(self, n: int) -> None:
        if n % 8 == 0:
            self.take(ev.StopAsked, who="kim", now=n % 16 == 0)

    def everybody_works(self, n: int) -> None:
        """A good stretch: what brings a random world to the later phases."""
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
    World.slurm,
    World.restart,
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


FAULTS = {
    "exit": lambda w, n: w.exit(n % w.run.spec.nodes),
    "lost": lambda w, n: w.lose(w.run.slots[n % len(w.run.slots)]),
    "stall": lambda w, n: w.stall(n),
    "ranks-lost": lambda w, n: w.join(w.run.slots[n % len(w.run.slots)]),
    "left": lambda w, n: w.goodbye(int(w.run.slots[n % len(w.run.slots)][1:]) - 1),
    "ended": lambda w, n: w.seen("ended", "TIMEOUT"),
    "ill": lambda w, n: (w.checked(w.run.slots[n % len(w.run.slots)], "FAIL", OWN), w.exit(0)),
    "flapping": lambda w, n: (
        w.checked(w.run.slots[0], "FAIL", SHARED),
        w.exit(0),
        w.checked(w.run.slots[0]),
    ),
    "stuck": lambda w, n: (w.exit(0), w.answer_badly(0)),
    "heard": lambda w, n: (
        w.lose(w.run.slots[0]),
        w.heard(int(w.run.incidents[-1].evidence[0].node[1:]) - 1),
    ),
}
EARLY = {
    "start-failed": lambda w, n: w.answer_badly(n),
    "no-step": lambda w, n: w.pass_time(n),
    "ill-at-once": lambda w, n: (
        w.checked(w.run.slots[n % len(w.run.slots)], "FAIL", OWN),
        w.checked(w.run.slots[n % len(w.run.slots)]),
    ),
    "all-ill": lambda w, n: [w.checked(name, "FAIL", OWN) for name in w.run.slots],
}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*FAULTS, *EARLY]), st.integers(0, 7)), min_size=1, max_size=8
    ),
    st.integers(2, 4),
)
def test_every_run_of_faults_ends(faults, nodes):
    """Faults for ever, in a world that is otherwise fine and never has a new checkpoint."""
    limit = 2
    world = World(
        nodes=nodes, spares=2, backoff_s=(1.0,), restarts_without_progress=limit, preflight=True
    )
    turn = 0
    for _ in range(2000):
        if world.run.ended:
            break
        name, n = faults[turn % len(faults)]
        pending_start = any(isinstance(a, do.Start) for a in world.run.pending.values())
        if world.phase is Phase.RUNNING and name in FAULTS:
            FAULTS[name](world, n)
            turn += 1
        elif world.phase is Phase.STARTING and pending_start and name in EARLY:
            EARLY[name](world, n)
            turn += 1
        elif world.phase is Phase.RUNNING:
            world.stall(n)
            turn += 1
        else:
            world.everybody_works(n)
            stuck_silent = world.phase in (Phase.STOPPING, Phase.GATHERING)
            if stuck_silent and world.run.deadline:
                world.pass_time(n)
    assert world.phase is Phase.HELD, f"{world.phase} after {turn} faults: {world.run.reason}"
    rounds = {s.attempt for s in world.starts}
    assert len(rounds) <= 1 + CAUSES * limit
    assert (
        "restarts for" in world.run.reason
        or "usable" in world.run.reason
        or ("can't be started" in world.run.reason)
    )
