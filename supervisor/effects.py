"""Carries actions out: each becomes calls of a port, and its result comes back as an event.

Nothing is decided here. What the world does not answer is tried again, with a Waiting event that
says so, for as long as the run still wants it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.channel import Channel
from supervisor.checkpoints import Report, State
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import JobState, Launcher, LaunchSpec
from supervisor.core.types import Checkpoint, Rejected, Run
from supervisor.storage import Storage

STORAGE_S = 60.0  # a child that looks at checkpoints gets this long
REMOVE_S = 600.0  # one that deletes terabytes
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # pauses between tries; the last one repeats
RESEND_S = 2.0  # an order without an answer is sent again after this


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What does not change while the run lives."""

    slurm: dict[str, str]
    agent_argv: tuple[str, ...]
    log_path: str
    keys_path: str  # node-local
    required: tuple[str, ...]  # keys of a whole checkpoint
    code: tuple[Path, str] | None = None  # the trainer's packed code: here, and on the nodes


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
        take: Callable[[ev.Event], None],
        now: Callable[[], float],
    ) -> None:
        self._setup = setup
        self._launcher = launcher
        self._channel = channel
        self._key_file = key_file
        self._run = run
        self._take = take
        self._storage = Storage()
        self._now = now
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: set[str] = set()
        self._putting_away = asyncio.Lock()
        self._sent: dict[str, float] = {}  # when an order was last sent
        self._seen: dict[str, tuple[object, ...]] = {}  # what was last told of a job
        self.polled = asyncio.Event()  # set when somebody wants a poll now

    def perform(self, action: Action) -> None:
        """Begin an action; one that is under way is not begun again."""
        if isinstance(action, do.Order):
            self._background(self._order(action))
            return
        if action.key in self._under_way:
            return
        work: dict[type[Action], Callable[[Any], Coroutine[Any, Any, None]]] = {
            do.Submit: self._submit,
            do.Cancel: self._cancel,
            do.Poll: self._poll_now,
            do.SendKeys: self._send_keys,
            do.StartAgent: self._start_agent,
            do.Scan: self._scan,
            do.Discard: self._put_away,
            do.Quarantine: self._put_away,
        }
        self._under_way.add(action.key)
        task = self._background(work[type(action)](action))
        task.add_done_callback(lambda _: self._under_way.discard(action.key))

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # reaches the loop's exception handler, which ends the engine

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._storage.close()

    async def _until(self, key: str, attempt: Callable[[], Awaitable[ev.Event]]) -> None:
        """Try until the world answers or the run does not want it any more."""
        tries = 0
        while key in self._run().pending:
            try:
                event = await attempt()
            except TransientError as error:
                self._take(ev.Waiting(at=self._now(), key=key, why=str(error)))
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
                continue
            self._take(event)
            return

    # --- Slurm --------------------------------------------------------------------------------

    def spec(self, action: do.Submit) -> LaunchSpec:
        return LaunchSpec(
            job_name=action.job_name,
            nodes=action.nodes,
            slurm=self._setup.slurm,
            exclude=action.exclude,
            agent_argv=self._setup.agent_argv,
            log_path=self._setup.log_path,
        )

    async def _submit(self, action: do.Submit) -> None:
        async def attempt() -> ev.Event:
            try:
                await self._refuse_a_namesake()
                job_id = await self._launcher.submit(self._launcher.plan(self.spec(action)))
            except UserError as error:
                return ev.SubmitRefused(at=self._now(), key=action.key, why=str(error))
            return ev.Submitted(
                at=self._now(), key=action.key, job_id=job_id, job_name=action.job_name
            )

        await self._until(action.key, attempt)
        self.polled.set()

    async def _refuse_a_namesake(self) -> None:
        """Two runs of one name would share a checkpoint directory. Raises UserError."""
        spec = self._run().spec
        ours = f"superv-{spec.name}-{spec.run_id[:6]}-"
        try:
            there = await self._launcher.find(f"superv-{spec.name}-")
        except TransientError:
            return  # what lists past jobs may be down for long; whoever submits asks again
        for job in there:
            namesake = re.fullmatch(rf"superv-{spec.name}-[0-9a-f]{{6}}-\d+", job.job_name)
            active = job.state in (JobState.PENDING, JobState.RUNNING) and job.raw != "COMPLETING"
            if namesake and active and not job.job_name.startswith(ours):
                raise UserError(
                    f"name: another run is called {spec.name}: its job {job.job_id} "
                    f"({job.job_name}) is {job.raw}; it was launched with another state_dir or on "
                    "another machine: stop it there, or choose another name"
                )

    async def _cancel(self, action: do.Cancel) -> None:
        async def attempt() -> ev.Event:
            await self._launcher.cancel(action.job_id)
            return ev.Done(at=self._now(), key=action.key)

        await self._until(action.key, attempt)
        self.polled.set()

    async def _poll_now(self, action: do.Poll) -> None:
        await self.poll()
        self._take(ev.Done(at=self._now(), key=action.key))

    async def poll(self) -> None:
        """Ask for all live jobs; tell what changed."""
        jobs = self._run().live_jobs
        if not jobs:
            return
        for job_id, status in (await self._launcher.poll(jobs)).items():
            if status.state is JobState.UNKNOWN:
                continue
            told = (status.state, status.raw, status.nodes, status.down, status.reason)
            if self._seen.get(job_id) == told:
                continue
            self._seen[job_id] = told
            self._take(
                ev.AllocationSeen(
                    at=self._now(),
                    job_id=job_id,
                    state=status.state.value,
                    raw=status.raw,
                    nodes=status.nodes,
                    down=status.down,
                    reason=status.reason,
                )
            )

    async def _send_keys(self, action: do.SendKeys) -> None:
        async def attempt() -> ev.Event:
            missed: TransientError | None = None
            if self._setup.code is not None:
                packed, path = self._setup.code
                try:
                    await self._launcher.send_file(action.job_id, packed.read_bytes(), path)
                except TransientError as error:
                    missed = error  # most nodes may have it, and wait for their keys
            await self._launcher.send_file(action.job_id, self._key_file(), self._setup.keys_path)
            if missed is not None:
                raise missed
            return ev.KeysSent(at=self._now(), key=action.key, job_id=action.job_id)

        await self._until(action.key, attempt)

    async def _start_agent(self, action: do.StartAgent) -> None:
        async def attempt() -> ev.Event:
            await self._launcher.start_agent(action.job_id, action.node, self._setup.agent_argv)
            return ev.Done(at=self._now(), key=action.key)

        await self._until(action.key, attempt)

    # --- agents -------------------------------------------------------------------------------

    async def _order(self, order: do.Order) -> None:
        self._sent[order.key] = self._now()
        await self._channel.order(order)

    def resend(self, node: str | None = None) -> None:
        """Send orders without an answer again: those of a node now, else those that are old."""
        pending = self._run().pending
        self._sent = {key: at for key, at in self._sent.items() if key in pending}
        for key, action in pending.items():
            if not isinstance(action, do.Order):
                continue
            old = self._now() - self._sent.get(key, 0.0) > RESEND_S
            if action.node == node if node is not None else old:
                self._background(self._order(action))

    # --- checkpoints --------------------------------------------------------------------------

    async def _scan(self, action: do.Scan) -> None:
        async def attempt() -> ev.Event:
            return await self.look(action)

        await self._until(action.key, attempt)

    async def look(self, action: do.Scan) -> ev.Scanned:
        """Verify the attempt's checkpoints, and older ones until one is good.

        Raises TransientError where storage does not answer.
        """
        required = self._setup.required
        scan = await self._storage.scan(action.directory, deadline_s=STORAGE_S, required=required)
        found: list[Checkpoint] = []
        rejected: list[Rejected] = []
        self._sort(scan.found, action.attempt, found, rejected)
        here = {report.path for report in scan.found}
        for step, path, attempt in reversed(action.known):
            if path in here:
                continue
            if found:
                break
            asked = await self._storage.verify(path, deadline_s=STORAGE_S, required=required)
            self._sort(asked.found, attempt, found, rejected, step=step)
        return ev.Scanned(
            at=self._now(), key=action.key, found=tuple(found), rejected=tuple(rejected)
        )

    def _sort(
        self,
        reports: tuple[Report, ...],
        attempt: int,
        found: list[Checkpoint],
        rejected: list[Rejected],
        step: int | None = None,
    ) -> None:
        for report in reports:
            number = report.step if step is None else step
            if report.state is State.UNKNOWN:
                raise TransientError(f"{report.path}: {report.reason}")
            if report.verified:
                at = self._now()
                found.append(
                    Checkpoint(
                        step=number,
                        path=report.path,
                        attempt=attempt,
                        verified_at=at,
                        bytes=report.bytes,
                    )
                )
            else:
                rejected.append(
                    Rejected(
                        step=number,
                        path=report.path,
                        why=report.reason,
                        incomplete=report.state is State.INCOMPLETE,
                    )
                )

    async def _put_away(self, action: do.Discard | do.Quarantine) -> None:
        """Retention and quarantine: by a child, one at a time: storage has better things to do."""
        command = "discard" if isinstance(action, do.Discard) else "quarantine"

        async def attempt() -> ev.Event:
            async with self._putting_away:
                question = {"command": command, "path": action.path, "home": action.home}
                problem = str(await self._storage.ask(question, deadline_s=REMOVE_S))
            return ev.PutAway(at=self._now(), key=action.key, path=action.path, problem=problem)

        await self._until(action.key, attempt)
