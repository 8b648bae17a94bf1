"""What runs on a node: registers, sends heartbeats, passes orders on, and outlives its engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from supervisor import __version__
from supervisor.agent import node as this_node
from supervisor.agent.engine_client import EngineClient
from supervisor.agent.file_watch import FileWatch
from supervisor.agent.health import HealthWatch
from supervisor.agent.mailbox import Mailbox, Mailbox01, forget_job
from supervisor.agent.node_files import NodeFiles
from supervisor.agent.rank_supervisor import RankSupervisor, unfit
from supervisor.agent.ranks import logs_there
from supervisor.agent.tail import read_chunk
from supervisor.channel import identity, wire
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.secret import without
from supervisor.core.signs_of_life import Signs
from supervisor.core.types import ProbeOutcome
from supervisor.host import log
from supervisor.host.log import counted
from supervisor.host.shortage import lasting, passes

logger = logging.getLogger(__name__)


HEARTBEAT_S = 1.0
STEP_HEARTBEAT_S = 0.05  # new steps are sent at once, but not more often than this
ENGINE_GONE_S = 5.0  # without a word for so long there is no engine
LEAVE_GRACE_S = 10.0  # for ranks when Slurm or a person ends the job
LOOK_AT_NODE_S = 60.0  # cores, memory, devices and limits may change under an agent
LOOK_AT_PROBLEMS_S = 2.0  # … and what keeps ranks away may be over
# A peer whose host does not answer a connection within this is unreachable; one that does not close
# it within as long again is mute.
PROBE_S = 1.0
FLUSH_S = 2.0  # how long a leaving agent waits for its last reports to be taken
ALREADY_RUNNING = 75  # exit code: an agent of this run is on the node already
REFUSED = 76  # exit code: the engine does not take this agent


class Agent:
    """One agent's life."""

    def __init__(
        self,
        mailbox: Mailbox | Mailbox01,
        keys: wire.Keys,
        files: NodeFiles,
        job_id: str,
        memory: str,
    ) -> None:
        self._mailbox, self._keys = mailbox, keys
        self._files, self._dir = files, files.folder
        self._job_id = job_id
        self._memory = memory
        self._node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        self._agent = os.urandom(6).hex()
        log.hide(keys.secret_key)
        log.start(self._dir / "agent.log", source=self._node)
        own_key = _own_key(self._dir)
        files.keep(self._dir / identity.FILE, own_key.encode)
        self._keep_keys()
        log.hide(own_key)
        self._engine = EngineClient(keys, self._agent, own_key)
        self._address = this_node.address_towards(keys.endpoint)
        self._port = 0
        self._epoch = self._read_epoch()
        self._ranks = RankSupervisor(
            files,
            mailbox,
            self._node,
            keys.run_id,
            self._address,
            report=self._report,
            on_step=self._new_step,
        )
        self._file_watch = FileWatch(
            self._node, files, self._ranks, report=self._report, background=self._background
        )
        self._health = HealthWatch(
            self._node,
            self._agent,
            busy=lambda: self._ranks.alive > 0,
            report=self._report,
            send=self._engine.send,
        )
        self._next_heartbeat: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Future[int] | None = None
        self._ending = False
        self._orphaned = False
        self._job_problem = ""
        self._problems: tuple[str, ...] = ()  # as the engine was told last
        self._node_seen = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._orders: dict[str, asyncio.Task[None]] = {}

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> int:
        """Live until told to leave; returns the exit code. Raises where there is a bug."""
        loop = asyncio.get_running_loop()
        self._leaving = loop.create_future()
        loop.set_exception_handler(lambda _, context: self._loop_error(context))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminated, signal.Signals(number).name)
        logger.info(f"agent {self._agent} of run {self._keys.run_id}; memory is {self._memory}")
        server = await asyncio.start_server(self._accept_probe, host=self._address, port=0)
        self._port = server.sockets[0].getsockname()[1]
        await self._ranks.adopt_ranks()
        for part in (self._listen, self._every_second, self._register, self._health.live):
            self._background(lasting(part))
        code = await self._leaving
        deadline = loop.time() + FLUSH_S
        while self._engine.unacknowledged and loop.time() < deadline:
            await asyncio.sleep(0.02)
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._engine.close()
        return code

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not passes(error, "an order"):  # the engine gives it again until it is answered
            self._end(error)

    def _loop_error(self, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        if passes(error, context["message"]):
            return
        if context.keys() & {"handle", "task", "future"}:
            self._end(error)
        else:  # a peer's connection, or no descriptor for one
            text = f"{context['message']}: {error}"
            logger.warning(text, extra=counted(text))

    def _end(self, how: int | BaseException) -> None:
        """End with a code, or loudly where there is a bug: the next agent adopts the ranks."""
        assert self._leaving is not None
        if self._leaving.done():
            return
        if isinstance(how, int):
            self._leaving.set_result(how)
        else:
            self._leaving.set_exception(how)

    async def _accept_probe(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Peers that probe this node want to see that somebody closes the connection again."""
        writer.close()

    def _terminated(self, name: str) -> None:
        """Slurm or a person ends the job."""
        logger.info(f"{name}: stopping the ranks and leaving")
        self._background(self._leave(f"{name} from outside", LEAVE_GRACE_S))

    async def _leave(self, reason: str, grace_s: float) -> None:
        if self._ending:
            return
        self._ending = True
        self._files.let_go()
        await self._ranks.leave(grace_s)
        self._engine.report(
            ev.AgentLeft(at=time.time(), node=self._node, agent=self._agent, reason=reason)
        )
        forget_job(self._dir)
        logger.info(f"left: {reason}")
        self._end(0)

    # --- engine -------------------------------------------------------------------------------

    async def _register(self) -> None:
        await self._engine.connected()
        if not self._engine.welcome:
            self._send_hello()

    def _send_hello(self) -> None:
        facts = self._look_at_node()
        self._engine.send(
            wire.Hello(
                run_id=self._keys.run_id,
                node=self._node,
                job_id=self._job_id,
                address=self._address,
                port=self._port,
                agent=self._agent,
                version=__version__,
                epoch=self._epoch,
                problems=self._problems,
                attempt=self._ranks.attempt,
                ranks=self._ranks.alive,
                facts={
                    **facts,
                    **self._ranks.facts,
                    **self._health.facts,
                    "memory": self._memory,
                },
            )
        )

    def _look_at_node(self) -> dict[str, str]:
        """Take note of what keeps ranks from this node; returns what was looked at."""
        found, facts = this_node.problems(os.environ)
        others = (self._file_watch.problem, self._job_problem)
        self._problems = (*found, *(problem for problem in others if problem))
        self._node_seen = time.monotonic()
        return facts

    def _look_at_node_again(self) -> None:
        """What was found may be over, or new: the engine is told when it changes."""
        bad = self._problems or self._file_watch.problem or self._job_problem
        pause = LOOK_AT_PROBLEMS_S if bad else LOOK_AT_NODE_S
        if time.monotonic() - self._node_seen < pause or not self._engine.welcome:
            return
        before = self._problems
        self._look_at_node()
        if self._problems != before:
            self._report(
                ev.ProblemsSeen(
                    at=time.time(), node=self._node, agent=self._agent, problems=self._problems
                )
            )

    async def _listen(self) -> None:
        async for message in self._engine.messages():
            if isinstance(message, wire.Refused):
                logger.error(f"refused by the engine: {message.why}")
                self._end(REFUSED)
                continue
            if not self._obeys(message.epoch):
                continue
            self._engine.mark_heard()
            match message:
                case wire.Welcome():
                    if message.agent == self._agent:
                        self._welcomed(message.job)
                case wire.ReRegister():
                    self._engine.welcome = False
                    self._send_hello()
                case wire.Ack():
                    self._engine.acknowledged(message)
                case wire.Command():
                    self._order(message.action)
                case wire.Fetch():
                    self._background(self._fetch(message))
                case wire.HealthQuery():
                    self._background(self._health.answer(message))

    def _welcomed(self, job: wire.RankJob) -> None:
        """An answer that can't be used is a problem of this node: what is known already stays."""
        why = unfit(job)
        self._job_problem = f"the engine's answer can't be used: {why}" if why else ""
        if not why:
            self._ranks.configure(job)
            self._health.configure(job.health)
        self._engine.welcomed(joins_exits=job.newer_than_0_1)

    def _obeys(self, epoch: int) -> bool:
        """Only the engine of the highest epoch seen is listened to."""
        if epoch < self._epoch:
            text = f"an engine of epoch {epoch} is not obeyed; {self._epoch} was seen"
            logger.warning(text, extra=counted(text))
            return False
        if epoch > self._epoch:
            self._epoch = epoch
            try:
                self._files.write(self._dir / "epoch", str(epoch).encode())
            except OSError as error:
                logger.warning(
                    f"epoch {epoch} can't be kept for an agent that comes after: {error}"
                )
        return True

    def _read_epoch(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self._dir / "epoch").read_text())
        return 0

    def _keep_keys(self) -> None:
        """For an agent that comes after, should a cleaner take them."""
        if isinstance(self._mailbox, Mailbox):
            data = msgspec.json.encode(self._keys)
            self._files.keep(self._mailbox.kept_keys, lambda: data)

    async def _every_second(self) -> None:
        """Send a heartbeat, repeat reports, read what no push brought, miss the engine."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._send_heartbeat()
            if not self._ending:
                self._file_watch.look()
            self._ranks.orphans.look()
            self._look_at_node_again()
            self._engine.repeat()
            self._ranks.progress.catch_up()
            word = self._engine.last_heard
            if word is None or time.monotonic() - word > ENGINE_GONE_S:
                self._without_engine()
            else:
                self._orphaned = False

    def _new_step(self) -> None:
        if self._next_heartbeat is None:
            loop = asyncio.get_running_loop()
            self._next_heartbeat = loop.call_later(STEP_HEARTBEAT_S, self._send_heartbeat)

    def _report(self, event: ev.Event) -> None:
        """A step that was seen before the event is sent before it."""
        if self._next_heartbeat is not None:
            self._next_heartbeat.cancel()
            self._send_heartbeat()
        self._engine.report(event, secrets=self._ranks.secrets)
        if isinstance(event, ev.RankExited) and not event.exit.clean:
            self._health.rank_ended()

    def _send_heartbeat(self) -> None:
        self._next_heartbeat = None
        if not self._engine.welcome:
            self._send_hello()
            return
        self._engine.send(
            wire.Heartbeat(
                agent=self._agent,
                attempt=self._ranks.attempt,
                ranks=self._ranks.alive,
                step=self._ranks.progress.step,
                loss=self._ranks.progress.loss,
                phase=self._ranks.progress.phase(),
                signs=self._signs(),
            )
        )

    def _signs(self) -> Signs | None:
        job = self._ranks.job
        if job is None or not job.newer_than_0_1 or self._ranks.attempt is None:
            return None
        signs = self._ranks.progress.signs()
        if signs.unread is None:
            return signs
        rank, line, pattern = signs.unread  # a line that a rank wrote may hold a secret
        shown = (rank, without(self._ranks.secrets, line), pattern)
        return replace(signs, unread=shown)

    def _without_engine(self) -> None:
        """Look for another address of the engine, and end ranks that nobody leads any more."""
        try:
            keys = self._mailbox.keys()
            if not keys.run_id:  # an engine without its journal has yet to hear whose ranks we hold
                keys = msgspec.structs.replace(keys, run_id=self._keys.run_id)
            if keys != self._keys:
                logger.info(f"the engine moved to {keys.endpoint}")
                self._keys = keys
                self._keep_keys()
                self._engine.reconnect(keys)
                self._background(self._register())
        except FileNotFoundError:
            pass
        except (UserError, OSError) as error:  # it may be half written
            logger.warning(str(error), extra=counted(str(error)))
        if self._ranks.job is None or not self._ranks.alive or self._orphaned:
            return
        quiet = time.monotonic() - max(self._engine.last_heard or 0.0, self._ranks.progress.at)
        if quiet > self._ranks.job.engine_lost_timeout_s:
            self._orphaned = True
            why = f"superv: no engine and no step for {quiet:.0f} s: the ranks are stopped"
            logger.error(why)
            self._background(self._ranks.stop_orphans(why, LEAVE_GRACE_S))

    # --- orders -------------------------------------------------------------------------------

    def _order(self, plain: dict[str, object]) -> None:
        """Begin an order; one that is under way already is not begun again."""
        begin: dict[type, Callable[[Any], Coroutine[Any, Any, None]]] = {
            act.Prepare: self._ranks.prepare,
            act.Start: self._ranks.start,
            act.Stop: self._ranks.stop,
            act.Collect: self._ranks.collect,
            act.Probe: self._probe,
            act.Leave: self._leave_ordered,
        }
        try:
            action = wire.action_from(plain)
        except wire.WireError as error:
            self._refuse_order(f"not understood: {error}")
            return
        if type(action) not in begin:
            self._refuse_order(f"not understood: {type(action).__name__} is none for an agent")
        elif self._ranks.job is None or self._ending:
            self._refuse_order(f"{action.key} came before a welcome or while leaving")
        elif action.key not in self._orders:
            task = self._background(begin[type(action)](action))
            self._orders[action.key] = task
            task.add_done_callback(lambda _: self._orders.pop(action.key, None))

    def _refuse_order(self, why: str) -> None:
        logger.warning(f"order {why}", extra=counted(why))

    async def _probe(self, order: act.Probe) -> None:
        try:
            async with asyncio.timeout(PROBE_S):
                reader, writer = await asyncio.open_connection(order.address, order.port)
            outcome = await self._answers(reader)
            writer.close()
        except ConnectionRefusedError:
            outcome = ProbeOutcome.REFUSED
        except (OSError, OverflowError):  # TimeoutError and "no route to host" among them
            outcome = ProbeOutcome.UNREACHABLE
        self._engine.report(
            ev.Probed(
                at=time.time(),
                key=order.key,
                node=self._node,
                target=order.target,
                outcome=outcome,
            )
        )

    async def _answers(self, reader: asyncio.StreamReader) -> ProbeOutcome:
        """Whether the agent itself is there: a kernel takes connections for a process that is
        stopped, too."""
        try:
            async with asyncio.timeout(PROBE_S):
                await reader.read(1)
        except TimeoutError:
            job = self._ranks.job
            if job is not None and job.newer_than_0_1:
                return ProbeOutcome.MUTE
        except OSError:  # it closed the connection hard
            pass
        return ProbeOutcome.REACHED

    async def _leave_ordered(self, order: act.Leave) -> None:
        """The run has ended. Where a job ends (SIGTERM), the run may need the keys once more."""
        self._mailbox.forget()
        await self._leave("told to leave", 0)

    async def _fetch(self, order: wire.Fetch) -> None:
        """A piece of a rank's log; waits a while for more where there is none yet."""
        path = self._ranks.progress.log_path(order.attempt, order.rank)
        limit = min(order.limit, wire.MAX_MESSAGE // 2)
        deadline = time.monotonic() + order.wait_s
        while True:
            try:
                offset, data = read_chunk(path, order.offset, limit)
            except OSError as error:
                why = f"{path}: {error.strerror}{logs_there(self._dir, order.rank)}"
                self._engine.send(wire.Chunk(key=order.key, offset=0, data=b"", error=why))
                return
            if data or time.monotonic() > deadline:
                self._engine.send(wire.Chunk(key=order.key, offset=offset, data=data))
                return
            await asyncio.sleep(0.2)


def _own_key(node_dir: Path) -> str:
    """The key by which the engine knows this node's agents."""
    try:
        return identity.own_key(node_dir)
    except OSError as error:
        logger.warning(f"{error}: the agent after this one is not known as the same at once")
        return identity.new_key()
