"""What runs on a node: registers, beats, passes orders on, and outlives its engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from supervisor import __version__, wire
from supervisor.agent import node as this_node
from supervisor.agent.health import Health
from supervisor.agent.link import Link
from supervisor.agent.notes import Notes
from supervisor.agent.ranks import log_file
from supervisor.agent.tail import read_chunk
from supervisor.agent.work import Work
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.errors import UserError

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

    def __init__(
        self, keys_path: Path, keys: wire.Keys, node_dir: Path, job_id: str, memory: str
    ) -> None:
        self._keys_path, self._keys = keys_path, keys
        self._dir = node_dir
        self._job_id = job_id
        self._memory = memory
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._agent = os.urandom(6).hex()
        self._note = Notes(node_dir / "agent.log", self._node)
        self._link = Link(keys, self._agent, self._note.once)
        self._address = this_node.address_towards(keys.endpoint)
        self._port = 0
        self._epoch = self._read_epoch()
        self._work = Work(
            node_dir,
            keys_path,
            self._node,
            keys.run_id,
            self._address,
            report=self._report,
            on_step=self._new_step,
            note=self._note,
        )
        self._health = Health(
            self._node,
            self._agent,
            busy=lambda: self._work.alive > 0,
            report=self._report,
            send=self._link.send,
            note=self._note.once,
        )
        self._beat_soon: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Future[int] | None = None
        self._ending = False
        self._orphaned = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._orders: dict[str, asyncio.Task[None]] = {}

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """Live until told to leave; returns the exit code. Raises where there is a bug."""
        loop = asyncio.get_running_loop()
        self._leaving = loop.create_future()
        loop.set_exception_handler(lambda _, context: self._broken(context))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminated, signal.Signals(number).name)
        self._note(f"agent {self._agent} of run {self._keys.run_id}; memory is {self._memory}")
        server = await asyncio.start_server(self._echo, host=self._address, port=0)
        self._port = server.sockets[0].getsockname()[1]
        await self._work.take_over()
        for work in (self._listen(), self._pulse(), self._greet(), self._health.live()):
            self._background(work)
        code = await self._leaving
        deadline = loop.time() + FLUSH_S
        while self._link.unacknowledged and loop.time() < deadline:
            await asyncio.sleep(0.02)
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._link.close()
        return code

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _broken(self, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if context.keys() & {"handle", "task", "future"}:
            self._end(error)
        else:  # a peer's connection, or no descriptor for one
            self._note.once(f"{context['message']}: {error}")

    def _end(self, how: int | BaseException) -> None:
        """End with a code, or loudly where there is a bug: the next agent adopts the ranks."""
        assert self._leaving is not None
        if self._leaving.done():
            return
        if isinstance(how, int):
            self._leaving.set_result(how)
        else:
            self._leaving.set_exception(how)

    async def _echo(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Peers that probe this node only want the connection."""
        writer.close()

    def _terminated(self, name: str) -> None:
        """Slurm or a person ends the job."""
        self._note(f"{name}: stopping the ranks and leaving")
        self._background(self._leave(f"{name} from outside", LEAVE_GRACE_S))

    async def _leave(self, reason: str, grace_s: float) -> None:
        if self._ending:
            return
        self._ending = True
        await self._work.leave(grace_s)
        self._link.report(
            ev.AgentLeft(at=time.time(), node=self._node, agent=self._agent, reason=reason)
        )
        self._note(f"left: {reason}")
        self._end(0)

    # --- engine -------------------------------------------------------------------------------

    async def _greet(self) -> None:
        await self._link.dialled()
        if not self._link.welcome:
            self._hello()

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
                attempt=self._work.attempt,
                ranks=self._work.alive,
                facts={**facts, "memory": self._memory},
            )
        )

    async def _listen(self) -> None:
        async for message in self._link.messages():
            if isinstance(message, wire.Refused):
                self._note(f"refused by the engine: {message.why}")
                self._end(REFUSED)
                continue
            if not self._obeys(message.epoch):
                continue
            self._link.heard()
            match message:
                case wire.Welcome():
                    if message.agent == self._agent:
                        self._work.employ(message.job)
                        self._link.welcomed()
                        self._health.employ(message.job.health)
                case wire.WhoAreYou():
                    self._link.welcome = False
                    self._hello()
                case wire.Ack():
                    self._link.acknowledged(message)
                case wire.Do():
                    self._order(message.action)
                case wire.Fetch():
                    self._background(self._fetch(message))
                case wire.Look():
                    self._background(self._health.asked(message))

    def _obeys(self, epoch: int) -> bool:
        """Only the engine of the highest epoch seen is listened to."""
        if epoch < self._epoch:
            self._note.once(f"an engine of epoch {epoch} is not obeyed; {self._epoch} was seen")
            return False
        if epoch > self._epoch:
            self._epoch = epoch
            try:
                part = self._dir / "epoch.part"
                part.write_text(str(epoch))
                part.replace(self._dir / "epoch")
            except OSError as error:
                self._note(f"epoch {epoch} can't be kept for an agent that comes after: {error}")
        return True

    def _read_epoch(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self._dir / "epoch").read_text())
        return 0

    async def _pulse(self) -> None:
        """Beat, repeat, read what no push told of, and notice that there is no engine."""
        while True:
            await asyncio.sleep(BEAT_S)
            self._beat()
            self._link.repeat()
            self._work.progress.catch_up()
            word = self._link.last_word
            if word is None or time.monotonic() - word > ENGINE_GONE_S:
                self._without_engine()
            else:
                self._orphaned = False

    def _new_step(self) -> None:
        if self._beat_soon is None:
            loop = asyncio.get_running_loop()
            self._beat_soon = loop.call_later(STEP_BEAT_S, self._beat)

    def _report(self, event: ev.Event) -> None:
        """A step that was seen before the event is told before it."""
        if self._beat_soon is not None:
            self._beat_soon.cancel()
            self._beat()
        self._link.report(event)
        if isinstance(event, ev.RankExited) and not event.exit.clean:
            self._health.rank_ended()

    def _beat(self) -> None:
        self._beat_soon = None
        if not self._link.welcome:
            self._hello()
            return
        self._link.send(
            wire.Beat(
                agent=self._agent,
                attempt=self._work.attempt,
                ranks=self._work.alive,
                step=self._work.progress.step,
                loss=self._work.progress.loss,
                phase=self._work.progress.phase(),
            )
        )

    def _without_engine(self) -> None:
        """Look for another address of the engine, and end ranks that nobody leads any more."""
        try:
            keys = wire.read_keys(str(self._keys_path))
            if keys != self._keys:
                self._note(f"the engine moved to {keys.endpoint}")
                self._keys = keys
                self._link.redial(keys)
                self._background(self._greet())
        except FileNotFoundError:
            pass
        except (UserError, OSError) as error:  # it may be half written
            self._note.once(str(error))
        if self._work.job is None or not self._work.alive or self._orphaned:
            return
        quiet = time.monotonic() - max(self._link.last_word or 0.0, self._work.progress.at)
        if quiet > self._work.job.orphan_s:
            self._orphaned = True
            why = f"superv: no engine and no step for {quiet:.0f} s: the ranks are stopped"
            self._note(why)
            self._background(self._work.stop_orphans(why, LEAVE_GRACE_S))

    # --- orders -------------------------------------------------------------------------------

    def _order(self, plain: dict[str, object]) -> None:
        """Begin an order; one that is under way already is not begun again."""
        begin: dict[type, Callable[[Any], Coroutine[Any, Any, None]]] = {
            do.Prepare: self._work.prepare,
            do.Start: self._work.start,
            do.Stop: self._work.stop,
            do.Collect: self._work.collect,
            do.Probe: self._probe,
            do.Leave: self._told_to_leave,
        }
        try:
            action = wire.action_from(plain)
        except wire.WireError as error:
            self._note.once(f"order not understood: {error}")
            return
        if type(action) not in begin:
            self._note.once(f"order not understood: {type(action).__name__} is none for an agent")
        elif self._work.job is None or self._ending:
            self._note.once(f"order {action.key} came before a welcome or while leaving")
        elif action.key not in self._orders:
            task = self._background(begin[type(action)](action))
            self._orders[action.key] = task
            task.add_done_callback(lambda _: self._orders.pop(action.key, None))

    async def _probe(self, order: do.Probe) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                _, writer = await asyncio.open_connection(order.address, order.port)
            writer.close()
            outcome = "reached"
        except ConnectionRefusedError:
            outcome = "refused"
        except (OSError, OverflowError):  # TimeoutError and "no route to host" among them
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
        """The run has ended. Where a job ends (SIGTERM), the run may need the keys once more."""
        with contextlib.suppress(OSError):
            self._keys_path.unlink(missing_ok=True)
        await self._leave("told to leave", 0)

    async def _fetch(self, order: wire.Fetch) -> None:
        """A piece of a rank's log; waits a while for more where there is none yet."""
        path = str(log_file(self._dir, order.attempt, order.rank))
        limit = min(order.limit, wire.MAX_MESSAGE // 2)
        deadline = time.monotonic() + order.wait_s
        while True:
            try:
                offset, data = read_chunk(path, order.offset, limit)
            except OSError as error:
                self._link.send(
                    wire.Chunk(key=order.key, offset=0, data=b"", error=f"{path}: {error.strerror}")
                )
                return
            if data or time.monotonic() > deadline:
                self._link.send(wire.Chunk(key=order.key, offset=offset, data=data))
                return
            await asyncio.sleep(0.2)
