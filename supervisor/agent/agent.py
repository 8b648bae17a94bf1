"""What runs on a node: registers, beats, carries out orders, reports what happens to ranks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from supervisor import __version__, wire
from supervisor.agent import node as this_node
from supervisor.agent import tree
from supervisor.agent.link import Link
from supervisor.agent.ranks import (
    TAIL_SHOWN,
    Ended,
    Ranks,
    adopt,
    attempt_dir,
    log_file,
    state_file,
)
from supervisor.agent.states import States
from supervisor.agent.tail import Tail, read_chunk
from supervisor.agent.warm import Starter
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.types import Evidence, RankExit

BEAT_S = 1.0
STEP_BEAT_S = 0.05  # new steps are told at once, but not more often than this
ENGINE_GONE_S = 5.0  # without a word for so long there is no engine
LEAVE_GRACE_S = 10.0  # for ranks when Slurm or a person ends the job
PROBE_S = 1.5  # a peer that does not answer a connection within this is unreachable
FLUSH_S = 2.0  # how long a leaving agent waits for its last reports to be taken
ALREADY_RUNNING = 75  # exit code: an agent of this run is on the node already
REFUSED = 76  # exit code: the engine does not take this agent


class Agent:
    """One agent's life."""

    def __init__(self, keys_path: Path, keys: wire.Keys, node_dir: Path, job_id: str) -> None:
        self._keys_path, self._keys = keys_path, keys
        self._dir = node_dir
        self._job_id = job_id
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._agent = os.urandom(6).hex()
        self._link = Link(keys, self._agent)
        self._address = this_node.address_towards(keys.endpoint)
        self._port = 0
        self._epoch = self._read_epoch()
        self._job: wire.Job | None = None
        self._ranks: Ranks | None = None
        self._tail: Tail | None = None
        self._starter: Starter | None = None
        self._states: States | None = None
        self._marks_told = False
        self._why_cold = ""  # why the attempt's ranks were not forked; empty where they were
        self._step: int | None = None
        self._loss: float | None = None
        self._resumed_told = False
        self._progressed = time.monotonic()
        self._beat_soon: asyncio.TimerHandle | None = None
        self._last_port: int | None = None
        self._welcome = False
        self._leaving: asyncio.Future[int] | None = None
        self._orphaned = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._orders: dict[str, asyncio.Task[None]] = {}

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """Live until told to leave; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._leaving = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminated, signal.Signals(number).name)
        server = await asyncio.start_server(self._echo, host=self._address, port=0)
        self._port = server.sockets[0].getsockname()[1]
        self._ranks = adopt(self._dir, self._node, self._keys.run_id, self._ended)
        if self._ranks is None:
            await self._sweep()
        else:
            self.note(f"adopted {self._ranks.alive} ranks of attempt {self._ranks.attempt}")
        self._background(self._listen())
        self._background(self._pulse())
        self._hello()
        code = await self._leaving
        deadline = loop.time() + FLUSH_S
        while self._link.unacknowledged and loop.time() < deadline:
            await asyncio.sleep(0.02)
        server.close()
        for task in self._tasks:
            task.cancel()
        self._link.close()
        return code

    def note(self, text: str) -> None:
        """A line in the agent's own log, on node-local disk."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
        sys.stdout.write(f"{stamp} {self._node} {text}\n")
        sys.stdout.flush()

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and self._leaving is not None and not self._leaving.done():
            self._leaving.set_exception(error)  # a bug: end loudly, the loop starts a new agent

    async def _echo(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Peers that probe this node only want the connection."""
        writer.close()

    async def _sweep(self) -> None:
        mark = f"{self._keys.run_id}/{self._node}/"
        left = await tree.end(lambda: tree.find(mark), 0)
        if left:
            self.note(f"processes {sorted(left)} of an older attempt can't be killed")

    def _terminated(self, name: str) -> None:
        """Slurm or a person ends the job."""
        self.note(f"{name}: stopping the ranks and leaving")
        self._background(self._leave(f"{name} from outside", LEAVE_GRACE_S))

    async def _leave(self, reason: str, grace_s: float) -> None:
        if self._ranks is not None:
            await self._ranks.stop(grace_s)
        self._link.report(
            ev.AgentLeft(at=time.time(), node=self._node, agent=self._agent, reason=reason)
        )
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(0)

    # --- engine -------------------------------------------------------------------------------

    def _hello(self) -> None:
        problems, facts = this_node.problems(os.environ)
        self._link.send(
            wire.Hello(
                run_id=self._keys.run_id,
                node=self._node,
                job_id=self._job_id,
                address=self._address,
                port=self._port,
                agent=self._agent,
                version=__version__,
                epoch=self._epoch,
                problems=problems,
                attempt=self._ranks.attempt if self._ranks else None,
                ranks=self._ranks.alive if self._ranks else 0,
                facts=facts,
            )
        )

    async def _listen(self) -> None:
        async for message in self._link.messages():
            match message:
                case wire.Welcome() if message.agent == self._agent:
                    self._welcomed(message)
                case wire.WhoAreYou():
                    if self._obeys(message.epoch):
                        self._hello()
                case wire.Ack():
                    self._link.acknowledged(message)
                case wire.Do():
                    if self._obeys(message.epoch):
                        self._order(message.action)
                case wire.Fetch():
                    self._background(self._fetch(message))
                case wire.Refused():
                    self.note(f"refused by the engine: {message.why}")
                    assert self._leaving is not None
                    if not self._leaving.done():
                        self._leaving.set_result(REFUSED)

    def _obeys(self, epoch: int) -> bool:
        """Only the engine of the highest epoch seen gives orders."""
        if epoch < self._epoch:
            self.note(f"an engine of epoch {epoch} is not obeyed; {self._epoch} was seen")
            return False
        if epoch > self._epoch:
            self._epoch = epoch
            part = self._dir / "epoch.part"
            part.write_text(str(epoch))
            part.replace(self._dir / "epoch")
        return True

    def _read_epoch(self) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self._dir / "epoch").read_text())
        return 0

    def _welcomed(self, message: wire.Welcome) -> None:
        if not self._obeys(message.epoch):
            return
        first = self._job is None
        self._job = message.job
        self._welcome = True
        if first and message.job.preload:
            mark = f"{self._keys.run_id}/{self._node}/"
            self._starter = Starter(message.job, self._dir, mark, self.note)
            self._starter.start()
        if first and self._ranks is not None:  # adopted
            self._ranks.spare = self._starter_pid
            numbers = self._ranks.ranks
            self._watch_states(self._ranks, message.job, min(numbers))
            self._follow(self._ranks, message.job)
            self._ranks.watch()
        self._link.repeat(everything=True)

    def _spared(self) -> frozenset[int]:
        """Processes with the run's mark that are not ranks."""
        pid = self._starter_pid()
        return frozenset() if pid is None else frozenset({pid})

    def _starter_pid(self) -> int | None:
        return self._starter.pid if self._starter is not None else None

    async def _pulse(self) -> None:
        """Beat, repeat, and notice that there is no engine."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._beat()
            self._link.repeat()
            word = self._link.last_word
            if word is None or time.monotonic() - word > ENGINE_GONE_S:
                self._without_engine()
            else:
                self._orphaned = False

    def _beat(self) -> None:
        self._beat_soon = None
        if not self._welcome:
            self._hello()
            return
        self._link.send(
            wire.Beat(
                agent=self._agent,
                attempt=self._ranks.attempt if self._ranks else None,
                ranks=self._ranks.alive if self._ranks else 0,
                step=self._step,
                loss=self._loss,
                phase=self._phase(),
            )
        )

    def _without_engine(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            keys = wire.read_keys(str(self._keys_path))
            if keys.endpoint != self._keys.endpoint:
                self.note(f"the engine moved to {keys.endpoint}")
                self._keys, self._welcome = keys, False
                self._link.redial(keys)
                self._hello()
        limit = self._job.orphan_s if self._job else float("inf")
        word = self._link.last_word or 0.0
        quiet = time.monotonic() - max(word, self._progressed)
        if quiet > limit and not self._orphaned and self._ranks and self._ranks.alive:
            self._orphaned = True
            self.note(f"no engine and no step for {quiet:.0f} s: stopping the ranks")
            self._background(self._stop_orphans(self._ranks))

    async def _stop_orphans(self, ranks: Ranks) -> None:
        await ranks.stop(LEAVE_GRACE_S)

    # --- orders -------------------------------------------------------------------------------

    def _order(self, plain: dict[str, object]) -> None:
        """Begin an order; one that is under way already is not begun again."""
        try:
            action = wire.action_from(plain)
        except wire.WireError as error:
            self.note(f"order not understood: {error}")
            return
        if action.key in self._orders:
            return
        begin: dict[type, Callable[[Any], Coroutine[Any, Any, None]]] = {
            do.Prepare: self._prepare,
            do.Start: self._start,
            do.Stop: self._stop,
            do.Collect: self._collect,
            do.Probe: self._probe,
            do.Leave: self._told_to_leave,
        }
        task = self._background(begin[type(action)](action))
        self._orders[action.key] = task
        task.add_done_callback(lambda _: self._orders.pop(action.key, None))

    async def _prepare(self, order: do.Prepare) -> None:
        problems: list[str] = []
        port = 0
        if self._job is None:
            return
        if self._ranks is not None and self._ranks.attempt < order.attempt:
            left = await self._ranks.stop(0)
        else:
            mark = f"{self._keys.run_id}/{self._node}/"
            left = await tree.end(lambda: tree.find(mark, spare=self._spared()), 0)
        if self._starter is not None:
            await self._starter.freshen()
        if left:
            pids = ", ".join(str(pid) for pid in sorted(left))
            problems.append(f"processes {pids} of an older attempt can't be killed")
        try:
            port = this_node.free_port(*self._job.rank_ports, self._address, self._last_port)
        except OSError as error:
            problems.append(str(error))
        self._last_port = port
        self._link.report(
            ev.Prepared(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                port=port,
                problems=tuple(problems),
            )
        )

    async def _start(self, order: do.Start) -> None:
        assert self._job is not None
        now = self._ranks.attempt if self._ranks else 0
        if now > order.attempt:
            return
        if now < order.attempt:
            ranks = Ranks(self._dir, self._node, self._keys.run_id, order.attempt, self._ended)
            ranks.spare = self._starter_pid
            self._step = self._loss = None
            self._resumed_told = self._marks_told = False
            self._progressed = time.monotonic()
            self._ranks = ranks
            why_cold = ""
            try:
                self._watch_states(ranks, self._job, order.slot * self._job.ranks_per_node)
                why_cold = await ranks.start(self._job, order, self._node, self._starter)
            except OSError as error:
                why = f"{error.filename or self._job.fresh[0]}: {error.strerror}"
                self._link.report(
                    ev.StartFailed(
                        at=time.time(),
                        key=order.key,
                        node=self._node,
                        attempt=order.attempt,
                        why=f"the trainer can't be started: {why}",
                    )
                )
                return
            self._why_cold = why_cold
            self._follow(ranks, self._job)
        self._link.report(
            ev.RanksStarted(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                warm=not self._why_cold,
                why_cold=self._why_cold,
            )
        )

    async def _stop(self, order: do.Stop) -> None:
        if self._ranks is not None:
            left = await self._ranks.stop(order.grace_s)
        else:
            mark = f"{self._keys.run_id}/{self._node}/"
            left = await tree.end(lambda: tree.find(mark, spare=self._spared()), order.grace_s)
        self._link.report(
            ev.RanksStopped(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                stuck=tuple(sorted(left)),
            )
        )

    async def _collect(self, order: do.Collect) -> None:
        """What can be read at once: how the ranks stand."""
        seen: list[Evidence] = []
        if self._ranks is not None and self._ranks.attempt == order.attempt:
            seen = self._standing(self._ranks)
            for rank in self._ranks.ranks.values():
                if rank.alive and (state := tree.state(rank.pid)) in ("D", "T", "t"):
                    meaning = {"D": "in uninterruptible sleep"}.get(state, "stopped by a signal")
                    text = f"rank {rank.rank} on {self._node} (pid {rank.pid}) is {meaning}"
                    seen.append(
                        Evidence(node=self._node, at=time.time(), source="agent", text=text)
                    )
        self._link.report(
            ev.Collected(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                evidence=tuple(seen),
            )
        )

    async def _probe(self, order: do.Probe) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(order.address, order.port)
            writer.close()
            outcome = "reached"
        except ConnectionRefusedError:
            outcome = "refused"
        except OSError:  # TimeoutError and "no route to host" among them
            outcome = "unreachable"
        self._link.report(
            ev.Probed(
                at=time.time(),
                key=order.key,
                node=self._node,
                target=order.target,
                outcome=outcome,
            )
        )

    async def _told_to_leave(self, order: do.Leave) -> None:
        await self._leave("told to leave", 0)

    # --- ranks --------------------------------------------------------------------------------

    def _follow(self, ranks: Ranks, job: wire.Job) -> None:
        loop = asyncio.get_running_loop()
        if self._tail is not None:
            loop.remove_reader(self._tail.fd)
            self._tail.close()
        self._tail = Tail(job.log_cap, self._reader(ranks, job))
        loop.add_reader(self._tail.fd, self._tail.ready)
        for rank in ranks.ranks:
            self._tail.add(rank, str(log_file(self._dir, ranks.attempt, rank)))

    def _reader(self, ranks: Ranks, job: wire.Job) -> Callable[[int, str], None]:
        stepped = re.compile(job.step_pattern)
        resumed = re.compile(job.resumed_pattern) if job.resumed_pattern else None

        def read(rank: int, line: str) -> None:
            if found := stepped.search(line):
                self._stepped(int(found["step"]), found.groupdict().get("loss"))
            elif resumed is not None and not self._resumed_told and (found := resumed.search(line)):
                groups = found.groupdict()
                step = int(groups["step"]) if groups.get("step") else int(groups["next"]) - 1
                self._tell_resumed(ranks.attempt, step)

        return read

    def _watch_states(self, ranks: Ranks, job: wire.Job, first: int) -> None:
        """Follow what the hooks of the local ranks tell, from number `first` on."""
        if not job.hook:
            return
        loop = asyncio.get_running_loop()
        if self._states is None:
            self._states = States(self._dir / "bell", self._state_told)
            loop.add_reader(self._states.fd, self._states.ready)
        self._states.forget()
        attempt_dir(self._dir, ranks.attempt).mkdir(mode=0o700, exist_ok=True)
        for rank in range(first, first + job.ranks_per_node):
            self._states.follow(rank, state_file(self._dir, ranks.attempt, rank))

    def _state_told(self, rank: int) -> None:
        """A hook told a new step or phase of its rank."""
        assert self._states is not None
        state, ranks = self._states.state(rank), self._ranks
        if state is None or ranks is None or self._job is None:
            return
        if state.resumed >= 0 and not self._resumed_told:
            self._tell_resumed(ranks.attempt, state.resumed)
        if state.step > 0:
            self._stepped(state.step, None)
        if state.first_step and not self._marks_told and rank == min(ranks.ranks, default=-1):
            self._marks_told = True
            times = {**state.first, "first step": state.first_step}
            told = tuple((name, at) for name, at in times.items() if at)
            self._link.report(
                ev.Marks(at=time.time(), attempt=ranks.attempt, node=self._node, marks=told)
            )

    def _phase(self) -> str:
        """Of the local rank that is furthest behind, as its hook told."""
        if self._states is None or self._ranks is None:
            return ""
        states = [s for rank in self._ranks.ranks if (s := self._states.state(rank)) is not None]
        return min(states, key=lambda s: (s.step, s.changed)).phase if states else ""

    def _standing(self, ranks: Ranks) -> list[Evidence]:
        """Where each local rank stands, as its hook told."""
        told = []
        for rank in ranks.ranks.values():
            state = self._states.state(rank.rank) if self._states is not None else None
            if rank.alive and state is not None:
                text = (
                    f"rank {rank.rank} on {self._node} is in phase {state.phase} since "
                    f"{max(0.0, time.time() - state.changed):.1f} s, {state.step} its last step"
                )
                told.append(Evidence(node=self._node, at=state.changed, source="hook", text=text))
        return told

    def _tell_resumed(self, attempt: int, step: int) -> None:
        self._resumed_told = True
        self._link.report(ev.Resumed(at=time.time(), attempt=attempt, node=self._node, step=step))

    def _stepped(self, step: int, loss: str | None) -> None:
        value: float | None = None
        with contextlib.suppress(TypeError, ValueError):
            value = float(loss) if loss is not None else None
        if value is not None and value != -1.0:  # what pipeline stages without a loss print
            self._loss = value
        if self._step is None or step > self._step:
            self._step = step
            self._progressed = time.monotonic()
            if self._beat_soon is None:
                loop = asyncio.get_running_loop()
                self._beat_soon = loop.call_later(STEP_BEAT_S, self._beat)

    def _ended(self, ended: Ended) -> None:
        """A rank ended; told at once, unless it was this agent that ended it."""
        ranks = self._ranks
        if ranks is None or ranks.stopping:
            return
        at = time.time()
        lines = self._tail.drain(ended.rank) if self._tail else []
        error = ranks.error(ended.rank)
        first = sum(1 for rank in ranks.ranks.values() if not rank.alive) == 1
        shown = [line[:300] for line in lines[-TAIL_SHOWN if first else -1 :]]
        self._link.report(
            ev.RankExited(
                at=at,
                attempt=ranks.attempt,
                exit=RankExit(
                    node=self._node,
                    rank=ended.rank,
                    code=ended.code,
                    signal=ended.signal,
                    at=at,
                    tail=tuple([*shown, error] if error else shown),
                ),
            )
        )

    async def _fetch(self, order: wire.Fetch) -> None:
        """A piece of a rank's log; waits a while for more where there is none yet."""
        path = str(log_file(self._dir, order.attempt, order.rank))
        deadline = time.monotonic() + order.wait_s
        while True:
            try:
                offset, data = read_chunk(path, order.offset, order.limit)
            except OSError as error:
                self._link.send(
                    wire.Chunk(key=order.key, offset=0, data=b"", error=f"{path}: {error.strerror}")
                )
                return
            if data or time.monotonic() > deadline:
                self._link.send(wire.Chunk(key=order.key, offset=offset, data=data))
                return
            await asyncio.sleep(0.2)
