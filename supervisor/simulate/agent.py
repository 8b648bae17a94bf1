"""A simulated agent: the same messages at the same times as supervisor.agent, without processes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supervisor import __version__
from supervisor.agent.agent import ENGINE_GONE_S, HEARTBEAT_S, LEAVE_GRACE_S, STEP_HEARTBEAT_S
from supervisor.agent.engine_client import REPEAT_S
from supervisor.agent.rank_supervisor import FOR_GOOD, LOOK_AGAIN_S
from supervisor.channel import wire
from supervisor.channel.identity import routing_id
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.check_status import Status
from supervisor.core.types import Fault, ProbeOutcome, RankExit

if TYPE_CHECKING:
    from supervisor.simulate.nodes import SimulatedNode, SimulatedRanks

KILL_S = 5.0  # ranks that outlive SIGKILL for so long are reported as stuck
CHECKS_S = (1.0, 5.0)  # what health checks take


class SimulatedAgent:
    """One agent's life on one node."""

    def __init__(self, node: SimulatedNode, job: str, life: str) -> None:
        self.node, self.job, self.life = node, job, life
        self.world, self.loop = node.world, node.world.loop
        self.identity = routing_id(life, node.own_key)
        self.rng = self.world.rng("agent", life)
        self.alive = True
        self.welcome = False
        self.epoch = 0
        self.configured: wire.RankJob | None = None
        self.last_heard: float | None = None
        self.step_at = self.loop.time()  # when ranks here last made a step
        self._seq = 0
        self._reports: deque[wire.AgentReport] = deque()
        self._sent_at: float | None = None
        self._orders: set[str] = set()
        self._taken = 0  # orders; a look that began before the newest of them is over
        self._stopped_through = 0
        self._start_report: ev.Event | None = None
        self._starting: tuple[int, asyncio.TimerHandle] | None = None
        self._step_timer: asyncio.TimerHandle | None = None
        self._inbox: list[bytes] = []
        self._waits: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._ending = False
        self._orphaned = False
        self._endpoint = ""
        self._health: tuple[Status, tuple[Fault, ...]] | None = None
        self._beat: tuple[tuple[Any, ...], bytes] | None = None

    # --- life ---------------------------------------------------------------------------------

    def begin(self) -> None:
        self.adopt()
        self.keys_came()
        self.loop.call_later(self.rng.uniform(0.0, HEARTBEAT_S), self._second)
        self.later(self.rng.uniform(*CHECKS_S), self.check_health)

    def die(self) -> None:
        self.alive = False
        self.world.network.hang_up(self)

    def adopt(self) -> None:
        """Ranks that an agent before this one has left running."""
        ranks = self.node.ranks
        if ranks is not None:
            ends, ranks.unseen_ends = ranks.unseen_ends, []
            ranks.stopping = False
            for number, code in ends:
                self.rank_exited(ranks, number, code)

    def keys_came(self) -> None:
        endpoint = self.node.keys.get(self.job, "")
        if endpoint and endpoint != self._endpoint:
            self._endpoint = endpoint
            self.welcome = False
            self.world.network.dial(self)

    @property
    def listens(self) -> bool:
        """Whether it has its keys: before that it opens no port."""
        return bool(self._endpoint)

    def later(self, delay: float, work: Callable[..., None], *args: Any) -> None:
        """Do something after a while, if it still lives then and is not standing still."""
        self.loop.call_later(delay, self._due, work, args)

    def _due(self, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.node.still:
            self._waits.append((work, args))
        else:
            work(*args)

    def thaw(self) -> None:
        """It went on after it had stood still: what came meanwhile is there."""
        waits, self._waits = self._waits, []
        for work, args in waits:
            work(*args)
        inbox, self._inbox = self._inbox, []
        for data in inbox:
            self.receive(data)

    def _second(self) -> None:
        if not self.alive:
            return
        self.loop.call_later(HEARTBEAT_S, self._second)
        if self.node.still or not self._endpoint:
            return
        self._heartbeat()
        self._repeat()
        if self.last_heard is None or self.loop.time() - self.last_heard > ENGINE_GONE_S:
            self._without_engine()
        else:
            self._orphaned = False

    def _without_engine(self) -> None:
        self.keys_came()
        ranks = self.node.ranks
        if self.configured is None or ranks is None or not ranks.alive or self._orphaned:
            return
        quiet = self.loop.time() - max(self.last_heard or 0.0, self.step_at)
        if quiet > self.configured.engine_lost_timeout_s:
            self._orphaned = True
            self.world.say(f"{self.node.name}: no engine and no step: the agent stops its ranks")
            self.later(LEAVE_GRACE_S, self._stop_orphans)

    def _stop_orphans(self) -> None:
        ranks = self.node.ranks
        if ranks is not None and ranks.alive and not self.node.uninterruptible:
            count = self.world.spec.ranks_per_node
            numbers = [ranks.slot * count + i for i in range(ranks.alive)]
            self.node.kill_ranks()
            for number in numbers:
                self.rank_exited(ranks, number, None)

    # --- messages -----------------------------------------------------------------------------

    def _send(self, message: wire.ToEngine) -> None:
        self.world.network.to_engine(self, wire.pack(message))

    def _heartbeat(self) -> None:
        if not self.welcome:
            self._hello()
            return
        ranks = self.node.ranks
        attempt = ranks.attempt if ranks is not None else None
        step, loss = self.world.training.heard(self.node)
        said = (attempt, ranks.alive if ranks is not None else 0, step)
        if self._beat is None or self._beat[0] != said:
            beat = wire.Heartbeat(
                agent=self.life, attempt=attempt, ranks=said[1], step=step, loss=loss
            )
            self._beat = said, wire.pack(beat)
        self.world.network.to_engine(self, self._beat[1])

    def _hello(self) -> None:
        ranks = self.node.ranks
        self._send(
            wire.Hello(
                run_id=self.world.spec.run_id,
                node=self.node.name,
                job_id=self.job,
                address=self.node.address,
                port=7000,
                agent=self.life,
                version=__version__,
                epoch=self.epoch,
                attempt=ranks.attempt if ranks is not None else None,
                ranks=ranks.alive if ranks is not None else 0,
            )
        )

    def report(self, event: ev.Event) -> None:
        """Reports go one at a time, the next one when the last is acknowledged."""
        self._seq += 1
        said = wire.AgentReport(agent=self.life, seq=self._seq, event=wire.plain(event))
        self._reports.append(said)
        if self._sent_at is None:
            self._repeat()

    def _repeat(self) -> None:
        if not self._reports or not self.welcome:
            return
        now = self.loop.time()
        if self._sent_at is None or now - self._sent_at > REPEAT_S:
            self._sent_at = now
            self._send(self._reports[0])

    def receive(self, data: bytes) -> None:
        """Something came from an engine."""
        if not self.alive:
            return
        if self.node.still:
            self._inbox.append(data)
            return
        message = wire.unpack_for_agent(data)
        if isinstance(message, wire.Refused):
            self.world.say(f"agent on {self.node.name} was refused: {message.why}")
            self.node.end_agent(again=True)
            return
        if message.epoch < self.epoch:
            return
        self.epoch = message.epoch
        self.last_heard = self.loop.time()
        match message:
            case wire.Ack():
                if message.seq is not None and self._reports:
                    self._acknowledged(message.seq)
            case wire.Welcome():
                if message.agent == self.life:
                    self.configured = message.job
                    self.welcome, self._sent_at = True, None
                    self._repeat()
            case wire.ReRegister():
                self.welcome = False
                self._hello()
            case wire.Command():
                self._order(wire.action_from(message.action))

    def _acknowledged(self, seq: int) -> None:
        if seq == self._reports[0].seq:
            self._reports.popleft()
            self._sent_at = None
            self._repeat()

    def new_step(self) -> None:
        """Its ranks made a step: it is told at once."""
        self.step_at = self.loop.time()
        if self._step_timer is None:
            self._step_timer = self.loop.call_later(STEP_HEARTBEAT_S, self._tell_step)

    def _tell_step(self) -> None:
        self._step_timer = None
        if self.alive and not self.node.still and self._endpoint:
            self._heartbeat()

    # --- orders -------------------------------------------------------------------------------

    def _order(self, order: act.Action) -> None:
        if self.configured is None or self._ending or order.key in self._orders:
            return
        self._orders.add(order.key)
        match order:
            case act.Prepare():
                self._prepare(order)
            case act.Start():
                self._start(order)
            case act.Stop():
                self._stop(order)
            case act.Collect():
                self._answer_later(
                    0.2,
                    ev.Collected(at=0.0, key=order.key, node=self.node.name, attempt=order.attempt),
                )
            case act.Probe():
                self.later(self.rng.uniform(0.01, 0.3), self._probe, order)
            case act.Leave():
                self.later(0.1, self.leave, "told to leave", 0.0)

    def _answer_later(self, delay: float, event: ev.Event) -> None:
        self.later(self.rng.uniform(0.0, delay), self._answer, event)

    def _answer(self, event: ev.Event) -> None:
        self._orders.discard(getattr(event, "key", ""))
        self.report(event)

    def _end_ranks(self, attempt: int) -> int | None:
        """End ranks up to an attempt's; the pid of one that can't be ended."""
        self._stopped_through = max(self._stopped_through, attempt)
        if self._starting is not None and self._starting[0] <= attempt:
            self._starting[1].cancel()
            self._starting = None
        ranks = self.node.ranks
        if ranks is None or not ranks.alive or ranks.attempt > attempt:
            return None
        if self.node.uninterruptible:
            ranks.killed = True
            return 4000 + ranks.attempt
        self.node.kill_ranks()
        return None

    def _prepare(self, order: act.Prepare) -> None:
        ranks = self.node.ranks
        now = ranks.attempt if ranks is not None else 0
        if order.attempt <= now:
            self._orders.discard(order.key)
            return
        self._taken += 1
        stuck = ranks is not None and ranks.alive and self.node.uninterruptible
        self.later(KILL_S if stuck else self.rng.uniform(0.05, 0.5), self._prepared, order)

    def _prepared(self, order: act.Prepare) -> None:
        left = self._end_ranks(order.attempt - 1)
        problems = (f"processes {left} of an older attempt can't be killed",) if left else ()
        self._answer(
            ev.Prepared(
                at=0.0,
                key=order.key,
                node=self.node.name,
                attempt=order.attempt,
                port=self.rng.randint(30000, 30999),
                problems=problems,
                stuck=(left,) if left else (),
            )
        )
        if left:
            self._look_again(self._taken, LOOK_AGAIN_S[0], self._prepared, order)

    def _look_again(
        self, taken: int, pause: float, look: Callable[..., None], order: act.AgentCommand
    ) -> None:
        def again() -> None:
            if taken != self._taken:
                return
            if self.node.uninterruptible:
                self._look_again(taken, min(2 * pause, LOOK_AGAIN_S[1]), look, order)
            else:
                look(order)

        self.later(pause, again)

    def _start(self, order: act.Start) -> None:
        ranks = self.node.ranks
        now = ranks.attempt if ranks is not None else 0
        if order.attempt < now or order.attempt <= self._stopped_through:
            self._orders.discard(order.key)
        elif ranks is not None and order.attempt == now:
            again = self._start_report or self._started(order)
            self._answer(again)
        elif self._starting is None:
            self._taken += 1
            timer = self.loop.call_later(
                self.rng.uniform(0.1, 1.0), self._due, self._start_now, (order,)
            )
            self._starting = order.attempt, timer

    def _start_now(self, order: act.Start) -> None:
        self._starting = None
        if self.node.ranks is not None and self.node.ranks.attempt >= order.attempt:
            return
        self.step_at = self.loop.time()
        self.node.start_ranks(order)
        self._start_report = self._started(order)
        self._answer(self._start_report)

    def _started(self, order: act.Start) -> ev.Event:
        return ev.RanksStarted(
            at=0.0, key=order.key, node=self.node.name, attempt=order.attempt, warm=True
        )

    def _stop(self, order: act.Stop) -> None:
        ranks = self.node.ranks
        if order.attempt >= (ranks.attempt if ranks is not None else 0):
            self._taken += 1
        delay = self.rng.uniform(0.05, 0.5)
        if ranks is not None and ranks.alive and ranks.attempt <= order.attempt:
            self.world.held.stop_ordered(self.node, order)
            ranks.stopping = True
            self._stopped_through = max(self._stopped_through, order.attempt)
            if self.node.uninterruptible:
                delay = order.grace_s + KILL_S
        self.later(delay, self._stopped, order)

    def _stopped(self, order: act.Stop) -> None:
        left = self._end_ranks(order.attempt)
        self._answer(
            ev.RanksStopped(
                at=0.0,
                key=order.key,
                node=self.node.name,
                attempt=order.attempt,
                stuck=(left,) if left else (),
            )
        )
        if left:
            self._look_again(self._taken, LOOK_AGAIN_S[0], self._stopped, order)

    def _probe(self, order: act.Probe) -> None:
        target = self.world.node(order.target)
        there = self.world.network.reaches(self.node.name, target.name)
        back = self.world.network.reaches(target.name, self.node.name)
        if not (target.power and there and back):
            self.later(1.5, self._probed, order, ProbeOutcome.UNREACHABLE)
        elif target.agent is None or not target.agent.listens:
            self._probed(order, ProbeOutcome.REFUSED)
        else:  # the kernel answers for an agent that stands still, but not for a VM that does
            outcome = ProbeOutcome.UNREACHABLE if target.paused else ProbeOutcome.REACHED
            self._probed(order, outcome)

    def _probed(self, order: act.Probe, outcome: ProbeOutcome) -> None:
        self._answer(
            ev.Probed(
                at=0.0, key=order.key, node=self.node.name, target=order.target, outcome=outcome
            )
        )

    def leave(self, reason: str, grace_s: float) -> None:
        if self._ending:
            return
        self._ending = True
        self._end_ranks(FOR_GOOD)
        self.report(ev.AgentLeft(at=0.0, node=self.node.name, agent=self.life, reason=reason))
        self.later(2.0, self.node.agent_left, self.job)

    # --- what it sees -------------------------------------------------------------------------

    def rank_exited(self, ranks: SimulatedRanks, number: int, code: int | None) -> None:
        now = self.world.now() + self.node.clock_off
        self.report(
            ev.RankExited(
                at=now,
                attempt=ranks.attempt,
                exit=RankExit(node=self.node.name, rank=number, code=code, signal=None, at=now),
            )
        )

    def resumed(self, attempt: int, step: int) -> None:
        self.report(ev.Resumed(at=0.0, attempt=attempt, node=self.node.name, step=step))

    def check_health(self) -> None:
        """The checks' result, when it is new."""
        if not self.world.spec.preflight:
            return
        self.later(30.0, self.check_health)
        problem = self.node.problem
        faults = (Fault(check="gpu.ecc", status=Status.FAIL, text=problem),) if problem else ()
        found = (Status.FAIL if problem else Status.OK, faults)
        if found != self._health and self.welcome:
            self._health = found
            self.report(
                ev.HealthSeen(
                    at=0.0, node=self.node.name, agent=self.life, status=found[0], faults=faults
                )
            )
        elif not self.welcome:
            self._health = None
