"""Carries actions out: each becomes calls of a port, and its result comes back as an event.

Nothing is decided here. What the world does not answer is tried again, with a Waiting event that
says so, for as long as the run still wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.channel import delivery, wire
from supervisor.channel.router import Channel
from supervisor.checkpoints.storage import Storage
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.actions import Action
from supervisor.core.errors import RefusalError, TooFewNodesError, TransientError, UserError
from supervisor.core.ports import JobState, Launcher, LaunchSpec
from supervisor.core.types import Run
from supervisor.engine.checkpoint_looks import CheckpointLooks
from supervisor.engine.rank_logs import RankLogs
from supervisor.engine.slurm_looks import SlurmLooks
from supervisor.host.shortage import shortage

REMOVE_S = 600.0  # a child that deletes terabytes
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # pauses between tries; the last one repeats
RESEND_S = 2.0  # an order without an answer is sent again after this


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What does not change while the run lives."""

    slurm: dict[str, str]
    agent_argv: tuple[str, ...]
    folder: Callable[[str], str]  # by the job's name: its private folder on each of its nodes
    paths_of_0_1: tuple[str, str]  # key file and agent's directory where a job has no such folder
    required: tuple[str, ...]  # keys of a whole checkpoint
    code: tuple[Path, str] | None = None  # the trainer's packed code, and its digest


class Effects:
    """Performs actions of one run. `take` is given the events that come of them."""

    def __init__(
        self,
        *,
        setup: Setup,
        launcher: Launcher,
        channel: Channel,
        key_file: Callable[[], bytes],
        run: Callable[[], Run],
        apply: Callable[[ev.Event], None],
        now: Callable[[], float],
        failed: Callable[[BaseException], None],
        storage: Storage | None = None,
        logs: RankLogs | None = None,
    ) -> None:
        """`failed` is told of a fault of superv's own in carrying an action out.

        Without `logs` nothing is kept of what ranks write.
        """
        self._setup = setup
        self._failed = failed
        self._launcher = launcher
        self._channel = channel
        self._key_file = key_file
        self._run = run
        self._apply = apply
        self._storage = storage or Storage()
        self._logs = logs
        self.looks = CheckpointLooks(self._storage, setup.required, run, now)
        self._now = now
        self.slurm = SlurmLooks(launcher, run, now, self._request)
        self._tasks: set[asyncio.Task[object]] = set()
        self._under_way: set[str] = set()
        self._retiring = asyncio.Lock()
        self._sent: dict[str, float] = {}  # when an order was last sent
        self._unanswered: deque[tuple[str, float]] = deque()  # orders as they were sent
        self.polled = asyncio.Event()  # set when somebody wants a poll now

    def perform(self, action: Action) -> None:
        """Begin an action; one that is under way is not begun again."""
        if isinstance(action, act.AgentCommand):
            self._order(action)
            return
        if action.key in self._under_way:
            return
        self._under_way.add(action.key)
        task = self._background(PERFORM[type(action)](self, action))
        task.add_done_callback(lambda _: self._under_way.discard(action.key))

    def _background(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._storage.close()

    async def _until(self, key: str, attempt: Callable[[], Awaitable[ev.Event]]) -> None:
        """Try until the world answers or the run does not want it any more.

        What a person would have to fix (a command that is not on PATH) is the world's too: PATH
        may lead to a file system that is away, and no engine ends for that.
        """
        tries = 0
        while key in self._run().pending:
            try:
                event = await attempt()
            except Exception as error:
                known = isinstance(error, TransientError | UserError)
                why = str(error) if known else shortage(error)
                if not why:
                    raise
                self._apply(ev.Waiting(at=self._now(), key=key, why=why))
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
                continue
            self._apply(event)
            return

    # --- Slurm --------------------------------------------------------------------------------

    def spec(self, action: act.Submit) -> LaunchSpec:
        return LaunchSpec(
            job_name=action.job_name,
            nodes=action.nodes,
            min_nodes=action.min_nodes,
            slurm=self._setup.slurm,
            exclude=action.exclude,
            agent_argv=self._setup.agent_argv,
            folder=self._setup.folder(action.job_name),
        )

    def _request(self) -> LaunchSpec | None:
        request = self._run().request
        return self.spec(request) if request is not None else None

    async def _submit(self, action: act.Submit) -> None:
        async def attempt() -> ev.Event:
            try:
                await self._refuse_a_namesake()
                job_id = await self._launcher.submit(self._launcher.plan(self.spec(action)))
                await self._give_way(job_id)
            except TransientError:
                self.slurm.doubt()
                raise
            except UserError as error:
                few = error if isinstance(error, TooFewNodesError) else None
                return ev.SubmitRefused(
                    at=self._now(),
                    key=action.key,
                    why=str(error),
                    definite=isinstance(error, RefusalError),
                    lacking=few.lacking if few else 0,
                    excluded=few.excluded if few else (),
                )
            return ev.Submitted(
                at=self._now(),
                key=action.key,
                job_id=job_id,
                job_name=action.job_name,
                folder=self._setup.folder(action.job_name),
            )

        await self._until(action.key, attempt)
        self.polled.set()

    async def _refuse_a_namesake(self, older_than: str = "") -> None:
        """Two runs of one name would share a checkpoint directory. Raises UserError."""
        spec = self._run().spec
        ours = spec.name, spec.run_id[:6]
        try:
            there = await self._launcher.find(names.allocations_of(spec.name))
        except TransientError:
            return  # what lists past jobs may be down for long; whoever submits asks again
        for job in there:
            found = names.run_of(job.job_name)
            namesake = found is not None and found[0] == spec.name and found != ours
            active = job.state in (JobState.PENDING, JobState.RUNNING) and job.raw != "COMPLETING"
            if namesake and active and _is_older(job.job_id, older_than):
                raise RefusalError(
                    f"name: another run is called {spec.name}: its job {job.job_id} "
                    f"({job.job_name}) is {job.raw}; it was launched with another state_dir or on "
                    "another machine: stop it there, or choose another name"
                )

    async def _give_way(self, job_id: str) -> None:
        """Of two runs of one name that were launched at one moment the older job's goes on.

        Raises UserError where that is the other one; this one's job is cancelled then.
        """
        try:
            await self._refuse_a_namesake(older_than=job_id)
        except UserError:
            await self._launcher.cancel(job_id)
            raise

    async def _cancel(self, action: act.Cancel) -> None:
        async def attempt() -> ev.Event:
            await self._launcher.cancel(action.job_id)
            return ev.Done(at=self._now(), key=action.key)

        await self._until(action.key, attempt)
        self.polled.set()

    async def _poll_now(self, action: act.Poll) -> None:
        async def attempt() -> ev.Event:
            await self.poll()
            if self.slurm.doubtful:
                self.polled.set()  # the next look is near
            return ev.Done(at=self._now(), key=action.key)

        await self._until(action.key, attempt)

    async def poll(self) -> None:
        """Ask Slurm about the run's jobs; what changed becomes events."""
        async for event in self.slurm.events():
            self._apply(event)

    async def _send_keys(self, action: act.SendKeys) -> None:
        async def attempt() -> ev.Event:
            await self._deliver_all(action.job_id)
            return ev.KeysSent(at=self._now(), key=action.key, job_id=action.job_id)

        await self._until(action.key, attempt)

    async def _deliver_all(self, job_id: str) -> None:
        """Code and keys. Raises TransientError where nodes did not get them; the others have."""
        missed: TransientError | None = None
        if self._setup.code is not None:
            packed, digest = self._setup.code
            try:
                await self._deliver(job_id, packed.read_bytes(), digest)
            except TransientError as error:
                missed = error  # most nodes may have it, and wait for their keys
        await self._deliver(job_id, self._key_file(), delivery.KEY)
        if missed is not None:
            raise missed

    async def _deliver(self, job_id: str, content: bytes, kind: str) -> None:
        """Send a file to the job's nodes, under a name that was never used before.

        Agents of superv 0.1 look at one name only: there what was sent before is replaced.
        """
        if folder := self._run().allocations[job_id].folder:
            path = f"{folder}/{delivery.new_name(kind)}"
            await self._launcher.send_file(job_id, content, path)
            return
        key = self._setup.paths_of_0_1[0]
        path = key if kind == delivery.KEY else wire.code_path(key, kind)
        await self._launcher.send_file(job_id, content, path, replace=True)

    async def _start_agent(self, action: act.StartAgent) -> None:
        async def attempt() -> ev.Event:
            folder, argv = self._run().allocations[action.job_id].folder, self._setup.agent_argv
            if not folder:
                argv = (*argv, *self._setup.paths_of_0_1)
            await self._launcher.start_agent(action.job_id, action.node, argv, folder)
            with contextlib.suppress(TransientError):  # a cleaner may have taken what was sent
                await self._deliver_all(action.job_id)
            return ev.Done(at=self._now(), key=action.key)

        await self._until(action.key, attempt)

    # --- agents -------------------------------------------------------------------------------

    def _order(self, order: act.AgentCommand) -> None:
        now = self._sent[order.key] = self._now()
        self._unanswered.append((order.key, now))
        self._background(self._channel.order(order))

    def resend(self) -> None:
        """Send orders again that have had no answer for a while."""
        pending, now = self._run().pending, self._now()
        while self._unanswered and now - self._unanswered[0][1] > RESEND_S:
            key, at = self._unanswered.popleft()
            if self._sent.get(key) != at:
                continue  # it was sent once more since
            action = pending.get(key)
            if isinstance(action, act.AgentCommand):
                self._order(action)
            else:
                del self._sent[key]

    def resend_to(self, node: str) -> None:
        """Send the node's agent, which is new, what it has not answered."""
        pending = self._run().pending
        for key in pending.group(("node", node)):
            action = pending[key]
            if isinstance(action, act.AgentCommand):
                self._order(action)

    async def _keep_logs(self, action: act.KeepLogs) -> None:
        if self._logs is not None:
            kept = await self._logs.keep(action)
        else:
            kept = ev.LogsKept(at=self._now(), key=action.key, attempt=action.attempt, ranks=0)
        if action.key in self._run().pending:
            self._apply(kept)

    # --- checkpoints --------------------------------------------------------------------------

    async def _scan(self, action: act.Scan) -> None:
        async def attempt() -> ev.Event:
            return await self.looks.for_restart(action)

        await self._until(action.key, attempt)

    async def _retire(self, action: act.Discard | act.Quarantine) -> None:
        """Retention and quarantine: by a child, one at a time: storage has better things to do."""
        command = "discard" if isinstance(action, act.Discard) else "quarantine"

        async def attempt() -> ev.Event:
            async with self._retiring:
                question = {"command": command, "path": action.path, "home": action.home}
                problem = str(await self._storage.ask(question, deadline_s=REMOVE_S))
            return ev.CheckpointRetired(
                at=self._now(), key=action.key, path=action.path, problem=problem
            )

        await self._until(action.key, attempt)


# What the engine does itself; an AgentCommand is sent to its node's agent.
PERFORM: dict[type[Action], Callable[[Effects, Any], Coroutine[Any, Any, None]]] = {
    act.Submit: Effects._submit,
    act.Cancel: Effects._cancel,
    act.Poll: Effects._poll_now,
    act.SendKeys: Effects._send_keys,
    act.StartAgent: Effects._start_agent,
    act.KeepLogs: Effects._keep_logs,
    act.Scan: Effects._scan,
    act.Discard: Effects._retire,
    act.Quarantine: Effects._retire,
}


def _is_older(job_id: str, other: str) -> bool:
    """Whether a job was submitted before another (empty: any was): Slurm counts them up."""
    return not other or (job_id.isdigit() and other.isdigit() and int(job_id) < int(other))
