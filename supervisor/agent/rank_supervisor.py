"""The ranks of this node: started, stopped and inspected as ordered; their ends are reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from supervisor.agent import code, gpus, stacks, tree
from supervisor.agent import node as this_node
from supervisor.agent.mailbox import Mailbox, Mailbox01
from supervisor.agent.node_files import NodeFiles
from supervisor.agent.orphans import Orphans
from supervisor.agent.progress import RankProgress
from supervisor.agent.ranks import TAIL_SHOWN, CantStart, RankEnd, Ranks, adopt
from supervisor.agent.warm import HOOKS, Starter
from supervisor.channel.wire import RankJob
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.last_words import telling
from supervisor.core.secret import secret_values, without
from supervisor.core.types import Evidence, RankExit
from supervisor.host import log, procfs
from supervisor.host.log import counted

logger = logging.getLogger(__name__)


PRELOAD_S = 3.0  # at a launch other agents may still start on the same machine, and come first
FOR_GOOD = 1 << 62  # beyond every attempt
LOOK_AGAIN_S = (1.0, 30.0)  # after what kept an order from being carried out: from, to


class RankSupervisor:
    """What this node does for the run. `report` takes events that must not get lost.

    Nothing is started while something is cleared away, and an attempt that was once stopped is
    never started: whichever order comes late or twice, nothing runs after "stopped" was reported,
    and no order for an older attempt touches a newer one.
    """

    def __init__(
        self,
        files: NodeFiles,
        mailbox: Mailbox | Mailbox01,
        node: str,
        run_id: str,
        address: str,
        *,
        report: Callable[[ev.Event], None],
        on_step: Callable[[], None],
    ) -> None:
        self.on_restored: Callable[[list[str]], None] = lambda names: None
        self._dir, self._node, self._run_id = files.folder, node, run_id
        self._files, self._mailbox = files, mailbox
        self._copy: code.CodeCopy | None = None  # of the trainer's code
        self._code: asyncio.Task[str] | None = None  # what keeps ranks from it, once it is done
        self._code_came_late = False
        self._left: dict[int, int] = {}  # that an agent before this one could not end: pid → start
        self._repairing = asyncio.Lock()
        self._report = report
        self._mark = f"{run_id}/{node}/"
        self._address = address
        self._starter: Starter | None = None
        self._ordered = asyncio.Event()  # ranks are wanted here
        self._stack_dump: asyncio.Future[list[Evidence]] | None = None  # for stacks, now
        self._stopped_through = 0  # the highest attempt that was stopped, or made way for another
        self._stops_under_way = 0  # how many are at it
        self._no_stop_under_way = asyncio.Event()
        self._no_stop_under_way.set()
        self._starting: tuple[int, asyncio.Task[None]] | None = None  # attempt
        self._start_report: ev.Event | None = None  # of the current attempt
        self._last_port: int | None = None
        self._orders = 0  # taken so far: a look that began before the newest of them is over
        self._look: asyncio.Task[None] | None = None
        self._end_reason = ""  # said with the ends of ranks that this agent ended by itself
        self.job: RankJob | None = None
        self.ranks: Ranks | None = None
        self.orphans = Orphans(
            files, run_id, node, ranks=self._rank_pids, others=self._starter_pids
        )
        self.progress = RankProgress(files.folder, node, report=report, on_step=on_step)

    @property
    def attempt(self) -> int | None:
        return self.ranks.attempt if self.ranks else None

    @property
    def alive(self) -> int:
        """Ranks that run here, or whatever of them could not be ended."""
        ranks = self.ranks.alive if self.ranks else 0
        return ranks or sum(procfs.alive(pid, at) for pid, at in self._left.items())

    @property
    def facts(self) -> dict[str, str]:
        return self.ranks.facts if self.ranks else {}

    @property
    def secrets(self) -> frozenset[str]:
        """Texts that nothing shows which leaves this node, nor its log."""
        return secret_values(self.job.env, self.job.secret) if self.job else frozenset()

    # --- life ---------------------------------------------------------------------------------

    async def adopt_ranks(self) -> None:
        """Adopt what an agent before this one left running, and end what it can't answer for."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self.job = msgspec.json.decode((self._dir / "job.json").read_bytes(), type=RankJob)
        log.hide(*self.secrets)
        self.orphans.cgroups.remove_stale()
        found = adopt(self._dir, self._node, self._run_id, lambda end: self._ended(found, end))
        self.ranks = found
        if found is not None:
            found.exclude_pids, found.orphans = self._starter_pids, self.orphans.find
        if self.ranks is None or self.ranks.stopping or not self.ranks.alive:
            left = await tree.end(self._find, 0)
            self._left = {pid: procfs.start_time(pid) or 0 for pid in left}
            if left:
                logger.error(f"processes {sorted(left)} of an older attempt can't be killed")
        if self.ranks is not None and not self.ranks.stopping:
            unseen = ""
            if not self.orphans.complete:
                unseen = "; what they cut loose while no agent was here is not known"
            logger.info(f"adopted {self.alive} ranks of attempt {self.ranks.attempt}{unseen}")
            if self.job is not None:
                self._follow_adopted(self.ranks, self.job)

    def configure(self, job: RankJob) -> None:
        """The engine says how ranks are started. Kept on disk for an agent that comes after."""
        digest, job = job.code, code.localize(job, self._dir)
        if job != self.job:
            new = self.job is None and self.ranks is not None and not self.ranks.stopping
            adopted = self.ranks if new else None
            self.job = job
            log.hide(*self.secrets)
            try:
                self._files.write(self._dir / "job.json", msgspec.json.encode(job))
            except OSError as error:
                logger.warning(f"the job can't be kept for an agent that comes after: {error}")
            if adopted is not None:
                self._follow_adopted(adopted, job)
        if self._code is None:
            if digest:
                self._copy = code.CodeCopy(
                    lambda: self._mailbox.archives(digest), digest, self._dir
                )
            self._code = asyncio.ensure_future(self._prepare_code(job))

    def receive_again(self) -> None:
        """Where the trainer's code did not come, or had no room, it may by now."""
        if self._code is not None and self._code.done() and self._code.result():
            assert self.job is not None
            self._code = asyncio.ensure_future(self._prepare_code(self.job))

    async def _prepare_code(self, job: RankJob) -> str:
        """Unpack the trainer's code, then preload from it; returns why there is none.

        Preloading waits for the first order, but not for long: spares get none.
        """
        problem = "" if self._copy is None else await self._copy.receive()
        if problem:
            logger.error(problem, extra=counted(problem))
            self._report(ev.FilesMissing(at=time.time(), node=self._node, why=problem))
            self._code_came_late = True
            return problem
        if self._code_came_late:
            self._code_came_late = False
            self.on_restored(["the trainer's code"])
        if self._copy is not None and self._copy.archive and isinstance(self._mailbox, Mailbox):
            self._files.keep(self._copy.archive, self._copy.packed)
        if job.preload:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PRELOAD_S):
                    await self._ordered.wait()
            self._starter = Starter(job, self._dir, self._mark)
            self._starter.start()
        return ""

    def restore(self) -> list[str]:
        """Make again what somebody removed of the node's files, but for the trainer's code.

        Raises OSError, UserError.
        """
        found = self._files.restore()
        found += self.ranks.restore() if self.ranks is not None else []
        found += self.progress.restore()
        return found + (self._starter.restore() if self._starter is not None else [])

    async def repair_code(self) -> list[str]:
        """The same for the trainer's code. Raises OSError, ValueError."""
        async with self._repairing:
            if self._copy is None:
                return []
            return await asyncio.to_thread(self._copy.repair)

    def _follow_adopted(self, ranks: Ranks, job: RankJob) -> None:
        ranks.exclude_pids, ranks.orphans = self._starter_pids, self.orphans.find
        self.progress.begin(ranks, job, min(ranks.ranks))
        self.progress.follow(ranks, job)
        ranks.watch()

    def _rank_pids(self) -> frozenset[int]:
        if self.ranks is None:
            return frozenset()
        return frozenset(rank.pid for rank in self.ranks.ranks.values() if rank.alive)

    def _starter_pids(self) -> frozenset[int]:
        return self._starter.pids if self._starter is not None else frozenset()

    def _find(self) -> set[int]:
        """All processes of the run on this node but for the starter."""
        if self.ranks is not None:
            return self.ranks.find()
        return tree.find(self._mark, self.orphans.find(), exclude_pids=self._starter_pids())

    async def _end_ranks(self, attempt: int, grace_s: float) -> set[int]:
        """End all ranks up to an attempt's; returns the pids that can't be killed."""
        self._stopped_through = max(self._stopped_through, attempt)
        self._stops_under_way += 1
        self._no_stop_under_way.clear()
        try:
            if self._starting is not None and self._starting[0] <= attempt:
                self._starting[1].cancel()
                await asyncio.wait({self._starting[1]})
            if self.ranks is not None:
                return await self.ranks.stop(grace_s)
            return await tree.end(self._find, grace_s)
        finally:
            self.orphans.cgroups.remove()
            self._stops_under_way -= 1
            if not self._stops_under_way:
                self._no_stop_under_way.set()

    async def leave(self, grace_s: float) -> None:
        """End the ranks and the starter for good."""
        self._orders += 1
        if self._look is not None:
            self._look.cancel()
        if self._code is not None:
            self._code.cancel()
        await self._end_ranks(FOR_GOOD, grace_s)
        if self._starter is not None:
            self._starter.stop()
        async with self._repairing:
            self._copy = None
            await asyncio.to_thread(code.remove, self._dir)

    async def stop_orphans(self, why: str, grace_s: float) -> None:
        """End the ranks and tell how they ended: nobody ordered it."""
        if self.ranks is not None:
            self._end_reason = why
            await self.ranks.end(grace_s)

    # --- orders -------------------------------------------------------------------------------

    async def prepare(self, order: act.Prepare) -> None:
        assert self.job is not None and self._code is not None
        if order.attempt <= (self.attempt or 0):
            logger.info(f"order {order.key} comes late: attempt {self.attempt} is here")
            return
        self._ordered.set()
        self._orders += 1
        await self._answer(lambda: self._prepared(order))

    async def _answer(self, look: Callable[[], Awaitable[ev.Prepared | ev.RanksStopped]]) -> None:
        """Report; where that is bad news, look again until it is good, and report that as well.

        Ranks that sleep in a hung file system end when it answers again. Nobody but this agent
        sees that, and without a word of it the node would be lost to the run.
        """
        order = self._orders
        report = await look()
        self._report(report)
        if _bad(report) and order == self._orders:
            self._look = asyncio.ensure_future(self._look_again(order, look))

    async def _look_again(
        self, order: int, look: Callable[[], Awaitable[ev.Prepared | ev.RanksStopped]]
    ) -> None:
        pause, longest = LOOK_AGAIN_S
        while True:
            await asyncio.sleep(pause)
            if order != self._orders:
                return  # there is a newer order, and an answer of its own
            pause = min(2 * pause, longest)
            self.receive_again()
            try:
                report = await look()
            except OSError as error:
                text = f"can't look again whether the node is free: {error}"
                logger.warning(text, extra=counted(text))
                continue
            if _bad(report):
                continue
            if order == self._orders:
                logger.info(f"order {report.key} is carried out after all")
                self._report(report)
            return

    async def _prepared(self, order: act.Prepare) -> ev.Prepared:
        assert self.job is not None and self._code is not None
        problems: list[str] = []
        port = 0
        ranks = {one.pid for one in self.ranks.ranks.values()} if self.ranks else set()
        left = await self._end_ranks(order.attempt - 1, 0)
        mine, foreign = await gpus.until_free(lambda: ranks | self._find())
        problems += [f"{one.text()}, and is one of an older attempt" for one in mine]
        for one in foreign:
            text = f"{one.text()}, and is none of this run"
            logger.warning(text, extra=counted(text))
        if problem := await asyncio.shield(self._code) or await self._put_back():
            problems.append(problem)
        if self._starter is not None:
            await self._starter.reload_if_changed()
        if left:
            pids = ", ".join(str(pid) for pid in sorted(left))
            problems.append(f"processes {pids} of an older attempt can't be killed")
        try:
            port = this_node.free_port(*self.job.rank_ports, self._address, self._last_port)
        except OSError as error:
            problems.append(str(error))
        self._last_port = port
        return ev.Prepared(
            at=time.time(),
            key=order.key,
            node=self._node,
            attempt=order.attempt,
            port=port,
            problems=tuple(problems),
            stuck=tuple(sorted(left)),
            # Engines of 0.1 refuse what they don't know.
            foreign=tuple(one.text() for one in foreign) if self.job.newer_than_0_1 else (),
        )

    async def _put_back(self) -> str:
        """Have all files that ranks need here; returns what keeps this from being so."""
        try:
            found = [*self.restore(), *await self.repair_code()]
        except (OSError, UserError, ValueError) as error:
            return f"files of superv on this node are gone and can't be restored: {error}"
        if found:
            self.on_restored(found)
        return ""

    async def start(self, order: act.Start) -> None:
        now = self.attempt or 0
        if order.attempt < now or order.attempt <= self._stopped_through:
            logger.info(f"order {order.key} comes late: nothing is started")
        elif order.attempt == now:
            self._report(
                self._start_report or self._started(order, "an earlier agent started them")
            )
        else:
            self._orders += 1
            task = asyncio.current_task()
            assert task is not None
            self._starting = order.attempt, task
            try:
                await self._no_stop_under_way.wait()
                await self._start(order)
            except asyncio.CancelledError:
                logger.info(f"order {order.key} was overtaken by a stop")
                raise
            finally:
                self._starting = None

    async def _start(self, order: act.Start) -> None:
        assert self.job is not None
        ranks = Ranks(
            self._dir, self._node, self._run_id, order.attempt, lambda end: self._ended(ranks, end)
        )
        ranks.exclude_pids, ranks.orphans = self._starter_pids, self.orphans.find
        ranks.cgroup = self.orphans.cgroups.make(order.attempt)
        self.ranks, self._start_report, self._end_reason = ranks, None, ""
        try:
            if problem := await self._put_back():
                raise CantStart(problem)
            first = order.slot * self.job.ranks_per_node
            self.progress.begin(ranks, self.job, first, order.resume_step or 0)
            why_cold = await ranks.start(self.job, order, self._node, self._starter)
        except (OSError, CantStart) as error:
            self._start_report = ev.StartFailed(
                at=time.time(),
                key=order.key,
                node=self._node,
                attempt=order.attempt,
                why=f"the trainer can't be started: {error}",
            )
        else:
            self._start_report = self._started(order, why_cold)
            self.progress.follow(ranks, self.job)
        self._report(self._start_report)

    def _started(self, order: act.Start, why_cold: str) -> ev.RanksStarted:
        return ev.RanksStarted(
            at=time.time(),
            key=order.key,
            node=self._node,
            attempt=order.attempt,
            warm=not why_cold,
            why_cold=why_cold,
            by_choice=self.job is not None and not self.job.preload,
        )

    async def stop(self, order: act.Stop) -> None:
        if order.attempt >= (self.attempt or 0):
            self._orders += 1
        await self._answer(lambda: self._stopped(order))

    async def _stopped(self, order: act.Stop) -> ev.RanksStopped:
        left: set[int] = set()
        if self._stack_dump is not None:  # ranks that hang are asked where before they are ended
            await asyncio.wait({self._stack_dump})
        if order.attempt >= (self.attempt or 0):  # an older one's ranks were gone before this one's
            left = await self._end_ranks(order.attempt, order.grace_s)
        return ev.RanksStopped(
            at=time.time(),
            key=order.key,
            node=self._node,
            attempt=order.attempt,
            stuck=tuple(sorted(left)),
        )

    async def collect(self, order: act.Collect) -> None:
        """What can be read at once: how the ranks stand."""
        seen: list[Evidence] = []
        if self.ranks is not None and self.ranks.attempt == order.attempt:
            seen = self.progress.rank_positions(self.ranks)
            if order.stacks:
                hooked = {
                    rank: (self.ranks.ranks[rank].pid, self.ranks.stacks_file(rank))
                    for rank in self.progress.ranks_with_hook(self.ranks)
                }
                self._stack_dump = asyncio.ensure_future(stacks.dump(self._node, hooked))
                try:
                    seen += await self._stack_dump
                finally:
                    self._stack_dump = None
            for rank in self.ranks.ranks.values():
                if rank.alive and (state := procfs.state(rank.pid)) in ("D", "T", "t"):
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

    def _ended(self, ranks: Ranks | None, ended: RankEnd) -> None:
        """A rank ended; reported at once, unless it was ordered."""
        if ranks is None or ranks is not self.ranks or ranks.stopping:
            return
        at = time.time()
        lines = self.progress.last_lines(ended.rank)
        first = sum(1 for rank in ranks.ranks.values() if not rank.alive) == 1
        last = lines[-TAIL_SHOWN if first else -1 :]
        if (told := telling(lines)) and told not in last:
            last = [told, *last]
        shown = [without(self.secrets, line)[:300] for line in last]
        said = [line for line in (ranks.error(ended.rank), self._end_reason) if line]
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


def unfit(job: RankJob) -> str:
    """Why ranks can't be started so, in one line: an engine of another version may mean it well."""
    if job.hook and job.hook not in HOOKS:
        return f"there is no hook {job.hook!r} in this version"
    first, last = job.rank_ports
    if not 0 < first <= last < 1 << 16:
        return f"{first}-{last} is no range of ports"
    if job.ranks_per_node < 1:
        return f"{job.ranks_per_node} ranks on a node"
    return ""


def _bad(report: ev.Prepared | ev.RanksStopped) -> bool:
    """Whether something keeps the node from running ranks."""
    return bool(report.problems if isinstance(report, ev.Prepared) else report.stuck)
