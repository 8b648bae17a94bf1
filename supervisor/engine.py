"""The engine's loop: an event → step → journal → do.

It owns no decision and no wording: `supervisor.core` decides, `supervisor.effects` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor import wire
from supervisor.channel import Channel
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.errors import TransientError, UserError
from supervisor.core.machine import step
from supervisor.core.people import objection
from supervisor.core.status import status
from supervisor.core.story import tell
from supervisor.core.types import Phase, Run
from supervisor.core.watch import Watch
from supervisor.effects import Effects
from supervisor.journal import Journal
from supervisor.questions import Questions

TICK_S = 0.25
POLL_S = 20.0  # how often Slurm is asked while nothing is expected of it
POLL_PENDING_S = (0.1, 15.0)  # while a job waits in the queue: from, to
POLL_ENDING_S = 1.0
JOURNAL_STEP_S = 1.0  # steps are journaled at most this often, but for the first of an attempt
LOOK_S = 20.0  # how often new checkpoints are looked for while the ranks run
REPORTABLE = (
    ev.AgentLeft,
    ev.Probed,
    ev.Prepared,
    ev.RanksStarted,
    ev.StartFailed,
    ev.RankExited,
    ev.RanksStopped,
    ev.Resumed,
    ev.Marks,
    ev.Collected,
    ev.HealthSeen,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Something worth telling a person, as it happened."""

    at: float
    text: str


class Engine:
    """Drives one run until it has ended and its nodes are given back."""

    def __init__(
        self,
        *,
        journal: Journal,
        channel: Channel,
        job: wire.Job,
        now: Callable[[], float],
        note: Callable[[str], None],
    ) -> None:
        assert journal.run is not None, "a run is launched before its engine starts"
        self.run: Run = journal.run
        self._journal = journal
        self._channel = channel
        self._job = job
        self._now = now
        self._note = note
        self._watch = Watch(self.run.spec.policy)
        self._epoch = journal.epoch + 1
        self._effects: Effects | None = None
        self._listeners: set[asyncio.Queue[Line]] = set()
        self.questions = Questions(channel, self._epoch, lambda: self.run, now)
        self.record: Callable[[str, str], None] = lambda node, report: None  # takes health reports
        self._journaled_step = 0.0
        self._unjournaled: ev.Progress | None = None  # the newest step that was heard of
        self._rank_phases: dict[str, str] = {}  # by node, as beats told last
        self._over = asyncio.Event()
        self._failure: BaseException | None = None

    # --- the loop -----------------------------------------------------------------------------

    def begin(self, effects: Effects, endpoint: str, host: str) -> None:
        """Take the run over. Raises UserError where the journal can't be written."""
        self._effects = effects
        asyncio.get_running_loop().set_exception_handler(self._broken)
        self._channel.epoch = self._epoch
        self.take(ev.EngineStarted(at=self._now(), epoch=self._epoch, host=host, endpoint=endpoint))

    async def live(self) -> None:
        """Until the run has ended; a bug or a full disk ends the engine, never the run."""
        assert self._effects is not None
        work = [
            asyncio.ensure_future(part())
            for part in (self._listen, self._tick, self._poll, self._look)
        ]
        for task in work:
            task.add_done_callback(self._part_over)
        await self._over.wait()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._effects.close()
        if self._failure is not None:
            raise self._failure

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])
        self._over.set()

    def _part_over(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self._over.set()

    def take(self, event: ev.Event) -> None:
        """Fold an event into the run, journal it, then do what it calls for.

        What can't be journaled is not done, and not acknowledged: the engine ends.
        """
        if self._failure is not None:
            return
        if not isinstance(event, ev.Progress):
            self._journal_progress()
        before = self.run
        after, actions = step(before, event)
        try:
            self._journal.append(event, actions, epoch=self._epoch)
        except OSError as error:
            self._failure = UserError(
                f"{self._journal.path}: can't be written: {error.strerror or error}; this engine "
                f"ends and the ranks go on; make room, then `superv attach {before.spec.name}`"
            )
            self._show(Line(at=event.at, text=str(self._failure)))
            self._over.set()
            raise self._failure from None
        self.run = after
        for text in tell(before, event, after):
            self._tell(Line(at=event.at, text=text))
        assert self._effects is not None
        for action in actions:
            self._effects.perform(action)
        if (after.ended and not before.ended) or isinstance(event, ev.AllocationSeen):
            self._effects.polled.set()  # how often Slurm is asked depends on this
        if after.ended and not after.live_jobs and not after.pending:
            self._over.set()

    async def _tick(self) -> None:
        """What becomes true by the passing of time."""
        assert self._effects is not None
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now()
            for event in self._watch.check(now, self.run):
                self.take(event)
            deadline = self.run.deadline
            if deadline is not None and now >= deadline.at:
                self.take(ev.Due(at=now, what=deadline.what))
            self._effects.resend()

    async def _poll(self) -> None:
        """Ask Slurm as often as the phase calls for, and at once when somebody asks."""
        assert self._effects is not None
        wait = POLL_PENDING_S[0]
        while True:
            if self.run.ended:
                wait = POLL_ENDING_S
            elif self.run.phase is Phase.PENDING:
                wait = min(wait * 1.5, POLL_PENDING_S[1])
            elif any(self.run.allocations[job].raw == "COMPLETING" for job in self.run.live_jobs):
                wait = POLL_ENDING_S  # how it ended is known in a moment: perhaps by a person
            else:
                wait = POLL_S
            # Not wait_for: in Python 3.11 it loses a cancel that comes when the event is set.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._effects.polled.wait()
            if self._effects.polled.is_set():
                self._effects.polled.clear()
                wait = POLL_PENDING_S[0]
            await self._effects.poll()

    async def _look(self) -> None:
        """Verify new checkpoints while the ranks run, so that the newest good one is known."""
        assert self._effects is not None
        while True:
            await asyncio.sleep(LOOK_S)
            attempt = self.run.attempt
            if self.run.phase is not Phase.RUNNING or attempt is None or not attempt.save_dir:
                continue
            look = do.Scan(key="look", attempt=attempt.number, directory=attempt.save_dir, known=())
            try:
                seen = await self._effects.look(look)
            except TransientError as error:
                self._note(str(error))
                continue
            known = {c.path for c in self.run.lineage}
            new = tuple(c for c in seen.found if c.path not in known)
            if new:
                self.take(ev.Scanned(at=self._now(), key="look", found=new))

    # --- agents -------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            identity, message = await self._channel.receive()
            match message:
                case wire.Hello():
                    await self._hello(identity, message)
                case wire.Beat():
                    await self._beat(identity, message)
                case wire.Report():
                    await self._report(identity, message)
                case wire.Chunk():
                    peer = self._channel.peer(identity)
                    if peer is not None:
                        self.questions.answered(peer.node, message)
                case wire.Looked():
                    self._looked(identity, message)

    async def _hello(self, identity: bytes, hello: wire.Hello) -> None:
        why = ""
        if hello.run_id != self.run.spec.run_id:
            why = f"this is the engine of run {self.run.spec.run_id}, not of {hello.run_id}"
        elif hello.epoch > self._epoch:
            why = f"this engine has epoch {self._epoch}; a newer one has {hello.epoch}"
        elif hello.job_id not in self.run.allocations:
            why = f"job {hello.job_id} is none of this run's"
        elif self.run.allocations[hello.job_id].state == "ended":
            why = f"job {hello.job_id} has ended"
        if why:
            self._note(f"agent on {hello.node} refused: {why}")
            await self._channel.answer(identity, wire.Refused(why=why))
            return
        now = self._now()
        known = self.run.pool.get(hello.node)
        self._channel.admit(identity, hello)
        await self._channel.answer(
            identity, wire.Welcome(epoch=self._epoch, agent=hello.agent, job=self._job)
        )
        for event in self._watch.heard(hello.node, now, self.run):
            self.take(event)
        if known is None or known.agent != hello.agent or known.job_id != hello.job_id:
            self.take(
                ev.AgentJoined(
                    at=now,
                    node=hello.node,
                    job_id=hello.job_id,
                    address=hello.address,
                    port=hello.port,
                    agent=hello.agent,
                    problems=hello.problems,
                    attempt=hello.attempt,
                    ranks=hello.ranks,
                )
            )
        assert self._effects is not None
        self._effects.resend(hello.node)

    async def _beat(self, identity: bytes, beat: wire.Beat) -> None:
        peer = self._channel.peer(identity)
        if peer is None:
            await self._channel.answer(identity, wire.WhoAreYou(epoch=self._epoch))
            return
        now = self._now()
        await self._channel.answer(identity, wire.Ack(epoch=self._epoch))
        for event in self._watch.heard(peer.node, now, self.run):
            self.take(event)
        attempt = self.run.attempt
        if attempt is None or beat.attempt != attempt.number:
            return
        self._rank_phases[peer.node] = beat.phase
        if beat.step is None:
            return
        if self._watch.stepped(beat.attempt, beat.step, now):
            self._unjournaled = ev.Progress(
                at=now,
                attempt=beat.attempt,
                step=beat.step,
                loss=beat.loss,
                interval=self._watch.typical(),
            )
            if attempt.step is None or now - self._journaled_step >= JOURNAL_STEP_S:
                self._journal_progress()

    def _journal_progress(self) -> None:
        """Take the newest step that was heard of: at times, and before anything else is taken."""
        progress, self._unjournaled = self._unjournaled, None
        if progress is not None:
            self._journaled_step = progress.at
            self.take(progress)

    async def _report(self, identity: bytes, report: wire.Report) -> None:
        peer = self._channel.peer(identity)
        if peer is None or peer.agent != report.agent:
            await self._channel.answer(identity, wire.WhoAreYou(epoch=self._epoch))
            return
        try:
            event = wire.event_from({**report.event, "at": self._now()})
        except wire.WireError as error:
            self._note(f"report of {peer.node} dropped: {error}")
            await self._channel.answer(identity, wire.Ack(epoch=self._epoch, seq=report.seq))
            return
        of = event.exit.node if isinstance(event, ev.RankExited) else getattr(event, "node", "")
        if not isinstance(event, REPORTABLE) or of != peer.node:
            self._note(f"report of {peer.node} dropped: it may not tell {type(event).__name__}")
        elif report.seq > peer.last_seq:
            peer.last_seq = report.seq
            self.take(event)
        await self._channel.answer(identity, wire.Ack(epoch=self._epoch, seq=report.seq))

    def _looked(self, identity: bytes, looked: wire.Looked) -> None:
        """A health report; nobody waits for one that comes late, but it is recorded."""
        peer = self._channel.peer(identity)
        if peer is None or peer.agent != looked.agent:
            return
        self.questions.answered(peer.node, looked)
        if looked.report:
            self.record(peer.node, looked.report)

    # --- people -------------------------------------------------------------------------------

    def _tell(self, line: Line) -> None:
        self._note(line.text)
        self._show(line)

    def _show(self, line: Line) -> None:
        for listener in self._listeners:
            if listener.full():
                listener.get_nowait()  # a reader that can't keep up loses the oldest
            listener.put_nowait(line)

    def listen(self) -> asyncio.Queue[Line]:
        queue: asyncio.Queue[Line] = asyncio.Queue(maxsize=1000)
        self._listeners.add(queue)
        return queue

    def unlisten(self, queue: asyncio.Queue[Line]) -> None:
        self._listeners.discard(queue)

    def stop(self, who: str, *, now: bool) -> None:
        self.take(ev.StopAsked(at=self._now(), who=who, now=now))

    def quarantine(self, who: str, step: int, reason: str, *, and_later: bool | None) -> None:
        """Raises UserError where the person has to say more, or something else."""
        if why := objection(self.run, step, and_later=and_later):
            raise UserError(why)
        later = bool(and_later)
        self.take(
            ev.QuarantineAsked(at=self._now(), who=who, step=step, reason=reason, and_later=later)
        )

    def status(self) -> dict[str, Any]:
        slots = self.run.slots
        phases = sorted({self._rank_phases.get(node, "") for node in slots} - {""})
        return {
            **status(self.run, self._now()),
            "isolated": self._watch.isolated,
            "rank_phases": phases,
        }

    def barred(self, nodes: dict[str, str]) -> None:
        """People keep these nodes out of runs, and why; told again and again."""
        if nodes != dict(self.run.barred) and not self.run.ended:
            self.take(ev.BarredSeen(at=self._now(), barred=nodes))
