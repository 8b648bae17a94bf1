"""The engine's loop: an event → step → journal → do.

It owns no decision and no wording: `supervisor.core` decides, `supervisor.engine.effects` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisor import __version__
from supervisor.channel import wire
from supervisor.channel.router import Channel, Received
from supervisor.core import events as ev
from supervisor.core.attention import EngineView, Unanswered
from supervisor.core.errors import UserError
from supervisor.core.failure_detector import MAX_TICK_S, RETURN_S, FailureDetector
from supervisor.core.machine import step
from supervisor.core.operator_requests import objection
from supervisor.core.status import status
from supervisor.core.story import describe
from supervisor.core.transition import due
from supervisor.core.types import HAS_RANKS, Phase, Run
from supervisor.engine.agent_rpc import AgentRpc
from supervisor.engine.effects import Effects
from supervisor.engine.node_addresses import NodeAddresses
from supervisor.engine.registration import Refuse, Registration, Wait
from supervisor.engine.slurm_looks import LOOK_AGAIN_S
from supervisor.engine.wiring import repaired_since, with_repairs
from supervisor.host.log import Tally, counted, where
from supervisor.host.shortage import lasting, passes
from supervisor.host.terminal import one_line
from supervisor.run.journal import Journal, UnfitError

logger = logging.getLogger(__name__)


TICK_S = 0.25
POLL_S = 20.0  # how often Slurm is asked while nothing is expected of it
POLL_PENDING_S = (0.1, 15.0)  # while a job waits in the queue: from, to
POLL_ENDING_S = 1.0
ASK_SLURM_S = 2.0  # how often an agent whose job is not known to run makes it ask
SYNC_S = 0.005  # reports that come within this share one write to disk
JOURNAL_STEP_S = 1.0  # steps are journaled at most this often, but for the first of an attempt
SCAN_EVERY_S = 20.0  # how often new checkpoints are looked for while the ranks run


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
        job: wire.RankJob,
        now: Callable[[], float],
        addresses: NodeAddresses | None = None,
    ) -> None:
        assert journal.run is not None, "a run is launched before its engine starts"
        self.run: Run = journal.run
        self._journal = journal
        self._channel = channel
        self._job = job
        self._now = now
        self._failure_detector = FailureDetector(self.run.spec.policy)
        self._waits: dict[str, Unanswered] = {}  # by key of the action that is tried again
        self._epoch = journal.epoch + 1
        self._effects: Effects | None = None
        self._listeners: set[asyncio.Queue[Line]] = set()
        self.agent_rpc = AgentRpc(channel, self._epoch, lambda: self.run, now)
        self.on_health_report: Callable[[str, str], None] = lambda node, report: None
        self.job_file = ""  # where the job's file lies, as far as that is known
        self._journaled_step = 0.0
        self._unjournaled: ev.Progress | None = None  # the newest step that was heard of
        self._registration = Registration(
            channel,
            addresses or NodeAddresses(),
            epoch=self._epoch,
            run=lambda: self.run,
            clock=now,
        )
        self._shown = Tally()  # lines that anybody could make come without end
        self._slurm_asked = float("-inf")
        self._rank_phases: dict[str, str] = {}  # by node, as the last heartbeats said
        self._acks: list[tuple[bytes, wire.Ack]] = []  # of reports that are not on disk yet
        self._acks_wait = asyncio.Event()
        self._over = asyncio.Event()
        self._failure: BaseException | None = None
        self._newer: set[str] = set()  # nodes whose agents a newer engine has led

    # --- the loop -----------------------------------------------------------------------------

    def start(
        self, effects: Effects, endpoint: str, host: str, request: ev.Event | None = None
    ) -> None:
        """Take the run over, with what a person asked of it when it had ended.

        Raises UserError where the journal can't be written.
        """
        self._effects = effects
        effects.slurm.heard_at = self._heard_at
        asyncio.get_running_loop().set_exception_handler(self._broken)
        self._channel.epoch = self._epoch
        self.apply(
            ev.EngineStarted(at=self._now(), epoch=self._epoch, host=host, endpoint=endpoint)
        )
        if request is not None:
            self._over.clear()  # set, because the run had ended with nothing left to do
            self.apply(replace(request, at=self._now()))

    async def run_until_ended(self) -> None:
        """Until the run has ended; a bug or a full disk ends the engine, never the run."""
        assert self._effects is not None
        work = [
            asyncio.ensure_future(lasting(part))
            for part in (
                self._listen,
                self._acknowledge,
                self._tick,
                self._poll,
                self._scan_checkpoints,
            )
        ]
        for task in work:
            task.add_done_callback(self._part_over)
        await self._over.wait()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await self._send_acks()
        await self._effects.close()
        if self._failure is not None:
            raise self._failure

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody waits for went wrong: a callback, a client's connection, a lost future.

        The engine's own parts and actions tell `fail`; for the rest no engine ends.
        """
        error, what = context.get("exception"), str(context["message"])
        if not passes(error, what):
            text = f"event loop: {what}: {where(error)}" if error else f"event loop: {what}"
            logger.error(text, extra=counted(text))

    def _part_over(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """A fault of superv's own, or no room for the journal: this engine ends."""
        if self._failure is None:
            self._failure = error
        self._over.set()

    def apply(self, event: ev.Event) -> None:
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
            self._journal.append(event, actions, epoch=self._epoch, run=after)
        except OSError as error:
            raise self._journal_fails(error) from None
        self.run = after
        if isinstance(event, ev.Waiting):
            self._waited(event)
        for text in describe(before, event, after):
            self._tell(Line(at=event.at, text=text))
        assert self._effects is not None
        for action in actions:
            self._effects.perform(action)
        if after.violations is not before.violations:
            self._effects.slurm.repeat()
        over = after.ended and not before.ended
        if over or isinstance(event, ev.AllocationSeen):
            self._effects.polled.set()  # how often Slurm is asked depends on this
        if over:
            self.apply(ev.RunEnded(at=event.at, phase=after.phase, reason=after.reason))
        self._end_if_over()

    def _end_if_over(self) -> None:
        assert self._effects is not None
        waits = self.run.live_jobs or self.run.pending or self._effects.slurm.expects_twin
        if self.run.ended and not waits:
            self._over.set()

    def _journal_fails(self, error: OSError) -> UserError:
        """The journal can't be written: this engine ends."""
        failure = self._failure = UserError(
            f"{self._journal.path}: can't be written: {error.strerror or error}; this engine "
            f"ends and the ranks go on; make room, then `superv attach {self.run.spec.name}`"
        )
        self._show(Line(at=self._now(), text=str(failure)))
        self._over.set()
        return failure

    def sync(self) -> None:
        """All that was journaled is on disk; raises UserError where it can't be."""
        try:
            self._journal.sync()
        except OSError as error:
            raise self._journal_fails(error) from None

    async def _tick(self) -> None:
        """What becomes true by the passing of time."""
        assert self._effects is not None
        before, back = self._now(), 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now()
            if now - before > MAX_TICK_S:  # this engine stood still: what came meanwhile is heard
                back = now + RETURN_S  # before any deadline counts
            before = now
            for event in self._failure_detector.check(now, self.run):
                self.apply(event)
            if now - self._journaled_step >= JOURNAL_STEP_S:  # the next step may be far off
                self._journal_progress()
            if now >= back and (kind := due(self.run, now)) is not None:
                self.apply(ev.DeadlineExpired(at=now, kind=kind))
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
            elif self._effects.slurm.doubtful:
                wait = LOOK_AGAIN_S
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
            self._end_if_over()

    async def _scan_checkpoints(self) -> None:
        """Verify new checkpoints while the ranks run, so that the newest good one is known."""
        assert self._effects is not None
        while True:
            await asyncio.sleep(SCAN_EVERY_S)
            if self.run.phase in (Phase.STARTING, Phase.RUNNING):
                async for seen in self._effects.looks.beside():
                    self.apply(seen)
                self._failure_detector.written_at = self._effects.looks.written_at

    # --- agents -------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            received = await self._channel.receive()
            identity, message = received.identity, received.message
            match message:
                case wire.Hello():
                    await self._hello(received, message)
                case wire.Heartbeat():
                    await self._heartbeat(identity, message)
                case wire.AgentReport():
                    await self._report(identity, message)
                case wire.Chunk():
                    peer = self._channel.peer(identity)
                    if peer is not None:
                        self.agent_rpc.answered(peer.node, message)
                case wire.HealthReport():
                    self._health_report(identity, message)

    async def _hello(self, received: Received, hello: wire.Hello) -> None:
        identity = received.identity
        answer = self._registration.judge(received, hello)
        if isinstance(answer, Wait):
            if answer.poll:
                self._ask_slurm()
            if answer.ask:  # it says hello: that it lives is all that is wanted
                await self._channel.answer(answer.ask, wire.ReRegister(epoch=self._epoch))
            return
        if isinstance(answer, Refuse):
            text = f"agent on {one_line(hello.node, 64)} refused: {answer.why}"
            if answer.rival:
                text += f" (the newcomer spoke from {received.address or 'somewhere'})"
            if answer.newer:
                self._led_by_newer(hello, answer.why)
            key = f"agent refused: {answer.why}"
            if answer.rival and self._shown.note(key):
                self._show(Line(at=self._now(), text=text))
            logger.warning(text, extra=counted(key))
            await self._channel.answer(identity, wire.Refused(why=answer.why))
            return
        if answer.note:
            logger.warning(answer.note, extra=counted(answer.note))
        now = self._now()
        known = self.run.pool.get(hello.node)
        self._channel.admit(identity, hello)
        await self._channel.answer(
            identity, wire.Welcome(epoch=self._epoch, agent=hello.agent, job=self._job)
        )
        for event in self._failure_detector.heard(hello.node, now, self.run):
            self.apply(event)
        if known is None or known.agent != hello.agent or known.job_id != hello.job_id:
            if hello.version != __version__:
                theirs = one_line(hello.version)
                logger.warning(
                    f"the agent on {hello.node} is superv {theirs}, this engine {__version__}; "
                    "both go on, and understand each other"
                )
            self.apply(
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
                    key=received.speaker.key,
                )
            )
        self._known_health(hello)
        assert self._effects is not None
        self._effects.resend_to(hello.node)

    def _led_by_newer(self, hello: wire.Hello, why: str) -> None:
        """Where most agents of a job have been further than the journal, it is an old one.

        Another engine may have a newer one; or lines were cut off, and what is to be done by them
        would be done again.
        """
        self._newer.add(hello.node)
        nodes = self.run.allocations[hello.job_id].nodes
        if 2 * len(self._newer.intersection(nodes)) > len(nodes):
            name = self.run.spec.name
            failure = UserError(
                f"{self._journal.path}: older than the run's agents ({why}): lines are missing, or "
                f"another engine leads them; `superv attach {name} --adopt` takes the run up as "
                "its agents know it"
            )
            self._show(Line(at=self._now(), text=str(failure)))
            self.fail(failure)

    def _known_health(self, hello: wire.Hello) -> None:
        """What the agent said of its node to an engine whose journal was lost since."""
        node, text = self.run.pool.get(hello.node), hello.facts.get("health", "")
        if not text or node is None or node.health is not None:
            return
        try:
            seen = wire.event_from({**json.loads(text), "at": self._now()})
        except (ValueError, TypeError, wire.WireError) as error:
            _log_dropped(hello.node, str(error))
            return
        if isinstance(seen, ev.HealthSeen) and seen.reporter == hello.node:
            self.apply(replace(seen, agent=hello.agent))

    def _ask_slurm(self) -> None:
        """Poll soon; however many agents want it, seldom."""
        assert self._effects is not None
        if self._now() - self._slurm_asked > ASK_SLURM_S:
            self._slurm_asked = self._now()
            self._effects.polled.set()

    async def _heartbeat(self, identity: bytes, heartbeat: wire.Heartbeat) -> None:
        peer = self._channel.peer(identity)
        if peer is None:
            await self._channel.answer(identity, wire.ReRegister(epoch=self._epoch))
            return
        now = self._now()
        await self._channel.answer(identity, wire.Ack(epoch=self._epoch))
        for event in self._failure_detector.heard(peer.node, now, self.run):
            self.apply(event)
        attempt = self.run.attempt
        if attempt is None or heartbeat.attempt != attempt.number:
            return
        self._rank_phases[peer.node] = heartbeat.phase
        detector, signs = self._failure_detector, self._failure_detector.signs
        detector.in_phase(peer.node, heartbeat.attempt, heartbeat.phase)
        rhythm = detector.rhythm.step or 0.0
        number, said = heartbeat.attempt, heartbeat.signs
        if not signs.heard(peer.node, number, heartbeat.step, said, now, rhythm):
            return
        assert signs.step is not None
        if detector.stepped(number, signs.step, now):
            loss = heartbeat.loss
            self._unjournaled = ev.Progress(
                at=now,
                attempt=number,
                step=signs.step,
                loss=loss if loss is not None and math.isfinite(loss) else None,
                loss_not_finite=loss is not None and not math.isfinite(loss),
                interval=detector.rhythm.step,
                slow=detector.rhythm.slow,
                save=detector.rhythm.save,
                log=not signs.hook,
                per_epoch=signs.per_epoch(peer.node),
                finite_step=signs.finite_step,
            )
            if attempt.step is None or now - self._journaled_step >= JOURNAL_STEP_S:
                self._journal_progress()

    def _journal_progress(self) -> None:
        """Take the newest step that was heard of: at times, and before anything else is taken."""
        progress, self._unjournaled = self._unjournaled, None
        if progress is not None:
            self._journaled_step = progress.at
            self.apply(progress)

    async def _report(self, identity: bytes, report: wire.AgentReport) -> None:
        peer = self._channel.peer(identity)
        if peer is None or peer.agent != report.agent:
            await self._channel.answer(identity, wire.ReRegister(epoch=self._epoch))
            return
        for heard in self._failure_detector.heard(peer.node, self._now(), self.run):
            self.apply(heard)
        try:
            event = wire.event_from({**report.event, "at": self._now()})
        except wire.WireError as error:
            _log_dropped(peer.node, str(error))
            await self._acknowledged(identity, report.seq)
            return
        if not isinstance(event, ev.AgentEvent) or event.reporter != peer.node:
            _log_dropped(peer.node, f"it may not tell {type(event).__name__}")
        elif report.seq > peer.last_seq:
            peer.last_seq = report.seq
            try:
                self.apply(event)
            except UnfitError as error:  # the next one is journaled as if this had not been
                _log_dropped(peer.node, str(error))
        await self._acknowledged(identity, report.seq)

    async def _acknowledged(self, identity: bytes, seq: int) -> None:
        """Acknowledge a report as soon as it is on disk: its agent forgets it then."""
        self._acks.append((identity, wire.Ack(epoch=self._epoch, seq=seq)))
        if self._journal.synced:
            await self._send_acks()
        else:
            self._acks_wait.set()

    async def _acknowledge(self) -> None:
        """Put what agents have reported on disk: once for all that comes within a moment."""
        while True:
            await self._acks_wait.wait()
            await asyncio.sleep(SYNC_S)
            self._acks_wait.clear()
            await self._send_acks()

    async def _send_acks(self) -> None:
        if self._acks and self._failure is None:
            self.sync()
        acks, self._acks = self._acks, []
        for identity, ack in acks if self._failure is None else ():
            await self._channel.answer(identity, ack)

    def _health_report(self, identity: bytes, report: wire.HealthReport) -> None:
        """A health report; nobody waits for one that comes late, but it is recorded."""
        peer = self._channel.peer(identity)
        if peer is None or peer.agent != report.agent:
            return
        self.agent_rpc.answered(peer.node, report)
        if report.report:
            self.on_health_report(peer.node, report.report)

    def _heard_at(self, job_id: str) -> float | None:
        """When an agent of the job was last heard; by this engine, or it has just begun."""
        nodes = [node.name for node in self.run.pool.values() if node.job_id == job_id]
        return self._failure_detector.last_heard(nodes)

    # --- people -------------------------------------------------------------------------------

    def _tell(self, line: Line) -> None:
        logger.info(line.text)
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
        self.apply(ev.StopRequested(at=self._now(), who=who, now=now))
        self.sync()

    def include(self, who: str, nodes: Collection[str]) -> None:
        """Use nodes again that the run has excluded; others are let be."""
        self.apply(ev.IncludeRequested(at=self._now(), who=who, nodes=tuple(nodes)))
        self.sync()

    def quarantine(self, who: str, step: int, reason: str, *, and_later: bool | None) -> None:
        """Raises UserError where the person has to say more, or something else."""
        if why := objection(self.run, step, and_later=and_later):
            raise UserError(why)
        later = bool(and_later)
        self.apply(
            ev.QuarantineRequested(
                at=self._now(), who=who, step=step, reason=reason, and_later=later
            )
        )
        self.sync()

    @property
    def failed(self) -> bool:
        """Whether this engine is ending, and takes no event any more."""
        return self._failure is not None

    def now(self) -> float:
        return self._now()

    def view(self) -> EngineView:
        """What this engine knows beside the journal."""
        return EngineView(
            stragglers=tuple(self._failure_detector.signs.stragglers(self.run)),
            waits=self._waits,
            journal_problem=self._journal.problem(),
            pid=os.getpid(),
            steps_per_s=self._failure_detector.rate.per_s(),
            target_step=self._failure_detector.signs.target,
        )

    def status(self) -> dict[str, Any]:
        phases: dict[str, list[str]] = {}
        for node in self.run.slots if self.run.phase in HAS_RANKS else ():
            if phase := self._rank_phases.get(node, ""):
                phases.setdefault(phase, []).append(node)
        return {
            **status(self.run, self._now(), self.view(), self.job_file),
            "isolated": self.run.isolated_since is not None,
            "rank_phases": sorted(phases),
            "rank_phase_nodes": phases,
        }

    def _waited(self, event: ev.Waiting) -> None:
        """Keep since when the world has not answered; what was answered is forgotten."""
        before = self._waits.get(event.key)
        since = before.since if before is not None else event.at
        kept = {key: wait for key, wait in self._waits.items() if key in self.run.pending}
        self._waits = {**kept, event.key: Unanswered(since=since, why=event.why)}

    def operator_exclusions_read(self, nodes: dict[str, str]) -> None:
        """People keep these nodes out of runs, and why; read again and again."""
        if nodes != dict(self.run.operator_excluded) and not self.run.ended:
            self.apply(ev.OperatorExclusionsChanged(at=self._now(), operator_excluded=nodes))

    async def repairs_read(self, repairs: Mapping[str, Mapping[str, float]]) -> None:
        """When nodes were repaired, by check; read again and again. Those of which that is news
        look again at once; agents that come later hear of it with all else."""
        job = with_repairs(self._job, repairs)
        news = repaired_since(self._job, job)
        self._job = job
        for peer in filter(None, map(self._channel.of, sorted(news))):
            again = wire.Welcome(epoch=self._epoch, agent=peer.agent, job=job)
            await self._channel.send(peer.node, again)


def _log_dropped(node: str, why: str) -> None:
    text = f"report of {node} dropped: {why}"
    logger.warning(text, extra=counted(text))
