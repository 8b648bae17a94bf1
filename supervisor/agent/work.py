"""The ranks of this node: cleared for, started, stopped, looked at, as ordered; their ends told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from supervisor.agent import code, stacks, tree
from supervisor.agent import node as this_node
from supervisor.agent.notes import Notes
from supervisor.agent.progress import Progress
from supervisor.agent.ranks import TAIL_SHOWN, CantStart, Ended, Ranks, adopt
from supervisor.agent.warm import Starter
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.types import Evidence, RankExit
from supervisor.wire import Job

PRELOAD_S = 3.0  # at a launch other agents may still start on the same machine, and come first
FOR_GOOD = 1 << 62  # beyond every attempt


class Work:
    """What this node does for the run. `report` takes events that must not get lost.

    Nothing is started while something is cleared away, and an attempt that was once stopped is
    never started: whichever order comes late or twice, nothing runs after "stopped" was reported,
    and no order for an older attempt touches a newer one.
    """

    def __init__(
        self,
        node_dir: Path,
        keys_path: Path,
        node: str,
        run_id: str,
        address: str,
        *,
        report: Callable[[ev.Event], None],
        on_step: Callable[[], None],
        note: Notes,
    ) -> None:
        self._dir, self._node, self._run_id = node_dir, node, run_id
        self._keys_path = keys_path
        self._code: asyncio.Task[str] | None = None  # what keeps ranks from it, once it is done
        self._report, self._note = report, note
        self._mark = f"{run_id}/{node}/"
        self._address = address
        self._starter: Starter | None = None
        self._ordered = asyncio.Event()  # ranks are wanted here
        self._asking: asyncio.Future[list[Evidence]] | None = None  # for stacks, now
        self._over = 0  # the highest attempt that was stopped, or made way for another
        self._clearing = 0  # how many are at it
        self._clear = asyncio.Event()
        self._clear.set()
        self._starting: tuple[int, asyncio.Task[None]] | None = None  # attempt
        self._answer: ev.Event | None = None  # what was reported of the current attempt's start
        self._last_port: int | None = None
        self._why_ended = ""  # said with the ends of ranks that this agent ended by itself
        self.job: Job | None = None
        self.ranks: Ranks | None = None
        self.progress = Progress(node_dir, node, report=report, on_step=on_step, note=note)

    @property
    def attempt(self) -> int | None:
        return self.ranks.attempt if self.ranks else None

    @property
    def alive(self) -> int:
        return self.ranks.alive if self.ranks else 0

    # --- life ---------------------------------------------------------------------------------

    async def take_over(self) -> None:
        """Adopt what an agent before this one left running, and end what it can't answer for."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self.job = msgspec.json.decode((self._dir / "job.json").read_bytes(), type=Job)
        found = adopt(self._dir, self._node, self._run_id, lambda end: self._ended(found, end))
        self.ranks = found
        if self.ranks is None or not self.ranks.alive:
            left = await tree.end(self._find, 0)
            if left:
                self._note(f"processes {sorted(left)} of an older attempt can't be killed")
        if self.ranks is not None:
            self._note(f"adopted {self.alive} ranks of attempt {self.ranks.attempt}")
            if self.job is not None:
                self._follow_adopted(self.ranks, self.job)

    def employ(self, job: Job) -> None:
        """The engine says how ranks are started. Kept on disk for an agent that comes after."""
        digest, job = job.code, code.at_home(job, self._dir)
        if job != self.job:
            adopted = self.ranks if self.job is None else None
            self.job = job
            try:
                part = self._dir / "job.part"
                part.touch(mode=0o600)
                part.write_bytes(msgspec.json.encode(job))
                part.replace(self._dir / "job.json")
            except OSError as error:
                self._note(f"the job can't be kept for an agent that comes after: {error}")
            if adopted is not None:
                self._follow_adopted(adopted, job)
        if self._code is None:
            self._code = asyncio.ensure_future(self._get_ready(digest, job))

    async def _get_ready(self, digest: str, job: Job) -> str:
        """Unpack the trainer's code, then preload from it; returns why there is none.

        Preloading waits for the first order, but not for long: spares get none.
        """
        problem = await code.arrive(self._keys_path, digest, self._dir) if digest else ""
        if problem:
            self._note(problem)
        elif job.preload:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PRELOAD_S):
                    await self._ordered.wait()
            self._starter = Starter(job, self._dir, self._mark, self._note)
            try:
                self._starter.start()
            except OSError as error:  # no room for its files: ranks start cold
                self._note(f"no starter: {error}")
                self._starter = None
        return problem

    def _follow_adopted(self, ranks: Ranks, job: Job) -> None:
        ranks.spare = self._spared
        self.progress.begin(ranks, job, min(ranks.ranks))
        self.progress.follow(ranks, job)
        ranks.watch()

    def _spared(self) -> frozenset[int]:
        return self._starter.pids if self._starter is not None else frozenset()

    def _find(self) -> set[int]:
        """All processes of the run on this node but for the starter."""
        if self.ranks is not None:
            return self.ranks.find()
        return tree.find(self._mark, spare=self._spared())

    async def _end_ranks(self, attempt: int, grace_s: float) -> set[int]:
        """End all ranks up to an attempt's; returns the pids that can't be killed."""
        self._over = max(self._over, attempt)
        self._clearing += 1
        self._clear.clear()
        try:
            if self._starting is not None and self._starting[0] <= attempt:
                self._starting[1].cancel()
                await asyncio.wait({self._starting[1]})
            if self.ranks is not None:
                return await self.ranks.stop(grace_s)
            return await tree.end(self._find, grace_s)
        finally:
            self._clearing -= 1
            if not self._clearing:
                self._clear.set()

    async def leave(self, grace_s: float) -> None:
        """End the ranks and the starter for good."""
        if self._code is not None:
            self._code.cancel()
        await self._end_ranks(FOR_GOOD, grace_s)
        if self._starter is not None:
            self._starter.stop()
        await asyncio.to_thread(code.forget, self._dir)

    async def stop_orphans(self, why: str, grace_s: float) -> None:
        """End the ranks and tell how they ended: nobody ordered it."""
        if self.ranks is not None:
            self._why_ended = why
            await self.ranks.end(grace_s)

    # --- orders -------------------------------------------------------------------------------

    async def prepare(self, order: do.Prepare) -> None:
        assert self.job is not None and self._code is not None
        if order.attempt <= (self.attempt or 0):
            self._note(f"order {order.key} comes late: attempt {self.attempt} is here")
            return
        self._ordered.set()
        problems: list[str] = []
        port = 0
        left = await self._end_ranks(order.attempt - 1, 0)
        if problem := await asyncio.shield(self._code):
            problems.append(problem)
        if self._starter is not None:
            await self._starter.freshen()
        if left:
            pids = ", ".join(str(pid) for pid in sorted(left))
            problems.append(f"processes {pids} of an older attempt can't be killed")
        try:
            port = this_node.free_port(*self.job.rank_ports, self._address, self._last_port)
        except OSError as error:
            problems.append(str(error))
        self._last_port = port
        self._report(
            ev.Prepared(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                port=port,
                problems=tuple(problems),
            )
        )

    async def start(self, order: do.Start) -> None:
        now = self.attempt or 0
        if order.attempt < now or order.attempt <= self._over:
            self._note(f"order {order.key} comes late: nothing is started")
        elif order.attempt == now:
            self._report(self._answer or self._started(order, "an earlier agent started them"))
        else:
            task = asyncio.current_task()
            assert task is not None
            self._starting = order.attempt, task
            try:
                await self._clear.wait()
                await self._start(order)
            except asyncio.CancelledError:
                self._note(f"order {order.key} was overtaken by a stop")
                raise
            finally:
                self._starting = None

    async def _start(self, order: do.Start) -> None:
        assert self.job is not None
        ranks = Ranks(
            self._dir, self._node, self._run_id, order.attempt, lambda end: self._ended(ranks, end)
        )
        ranks.spare = self._spared
        self.ranks, self._answer, self._why_ended = ranks, None, ""
        try:
            self.progress.begin(ranks, self.job, order.slot * self.job.ranks_per_node)
            why_cold = await ranks.start(self.job, order, self._node, self._starter)
        except (OSError, CantStart) as error:
            self._answer = ev.StartFailed(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                why=f"the trainer can't be started: {error}",
            )
        else:
            self._answer = self._started(order, why_cold)
            self.progress.follow(ranks, self.job)
        self._report(self._answer)

    def _started(self, order: do.Start, why_cold: str) -> ev.RanksStarted:
        return ev.RanksStarted(
            at=time.time(),
            key=order.key,
            node=self._node,
            attempt=order.attempt,
            warm=not why_cold,
            why_cold=why_cold,
            by_choice=self.job is not None and not self.job.preload,
        )

    async def stop(self, order: do.Stop) -> None:
        left: set[int] = set()
        if self._asking is not None:  # ranks that hang are asked where before they are ended
            await asyncio.wait({self._asking})
        if order.attempt >= (self.attempt or 0):  # an older one's ranks were gone before this one's
            left = await self._end_ranks(order.attempt, order.grace_s)
        self._report(
            ev.RanksStopped(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                stuck=tuple(sorted(left)),
            )
        )

    async def collect(self, order: do.Collect) -> None:
        """What can be read at once: how the ranks stand."""
        seen: list[Evidence] = []
        if self.ranks is not None and self.ranks.attempt == order.attempt:
            seen = self.progress.standing(self.ranks)
            if order.stacks:
                hooked = {
                    rank: (self.ranks.ranks[rank].pid, self.ranks.stacks_file(rank))
                    for rank in self.progress.hooked(self.ranks)
                }
                self._asking = asyncio.ensure_future(stacks.ask(self._node, hooked))
                try:
                    seen += await self._asking
                finally:
                    self._asking = None
            for rank in self.ranks.ranks.values():
                if rank.alive and (state := tree.state(rank.pid)) in ("D", "T", "t"):
                    meaning = {"D": "in uninterruptible sleep"}.get(state, "stopped by a signal")
                    text = f"rank {rank.rank} on {self._node} (pid {rank.pid}) is {meaning}"
                    seen.append(
                        Evidence(node=self._node, at=time.time(), source="agent", text=text)
                    )
        self._report(
            ev.Collected(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                evidence=tuple(seen),
            )
        )

    # --- ends ---------------------------------------------------------------------------------

    def _ended(self, ranks: Ranks | None, ended: Ended) -> None:
        """A rank ended; told at once, unless it was ordered."""
        if ranks is None or ranks is not self.ranks or ranks.stopping:
            return
        at = time.time()
        lines = self.progress.last_lines(ended.rank)
        first = sum(1 for rank in ranks.ranks.values() if not rank.alive) == 1
        shown = [line[:300] for line in lines[-TAIL_SHOWN if first else -1 :]]
        said = [line for line in (ranks.error(ended.rank), self._why_ended) if line]
        self._report(
            ev.RankExited(
                at=at,
                attempt=ranks.attempt,
                exit=RankExit(
                    node=self._node,
                    rank=ended.rank,
                    code=ended.code,
                    signal=ended.signal,
                    at=at,
                    tail=(*shown, *said),
                ),
            )
        )
