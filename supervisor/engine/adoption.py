"""Takes up a run whose journal is lost: what its agents, Slurm and the run's folder still know.

Agents are sent the keys again, with this engine's address, and say hello every second until they
are answered. Nobody is answered here, so nothing changes on the nodes: once it is known which
node's ranks have which slot, a new journal begins with that, and the engine goes on with it as with
any other. The journal before it is kept beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath

import msgspec

from supervisor.channel import delivery, wire
from supervisor.channel.router import Channel
from supervisor.checkpoints.storage import Storage
from supervisor.config import Job, Site
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.adoption import allocation, places
from supervisor.core.errors import TransientError, UserError
from supervisor.core.machine import step
from supervisor.core.nodeset import compress
from supervisor.core.ports import JobState, JobStatus, Launcher
from supervisor.core.types import Checkpoint, Run
from supervisor.engine import fleet_recorder
from supervisor.engine.clock import clock
from supervisor.engine.lost_run import active_jobs
from supervisor.engine.node_addresses import NodeAddresses
from supervisor.engine.registration import ANY_EPOCH, Admitted, Registration
from supervisor.engine.wiring import run_spec
from supervisor.host.terminal import one_line
from supervisor.run import folder
from supervisor.run.journal import Journal, LostJournalError, readable

logger = logging.getLogger(__name__)

AGENTS_S = 60.0  # agents that are there have found the new address and said hello by then
QUIET_S = 20.0  # … and where none has for so long, the others are silent
RESEND_S = 10.0  # keys that did not get through are sent again after this
STORAGE_S = 60.0


@dataclass(slots=True)
class Heard:
    """What the agents have said so far."""

    hellos: dict[str, wire.Hello] = field(default_factory=dict)  # by node
    keys: dict[str, str] = field(default_factory=dict)  # by node: a hash of the agent's own key

    @property
    def attempt(self) -> int | None:
        """The newest attempt that an agent holds ranks of, or has held."""
        return max((h.attempt for h in self.hellos.values() if h.attempt), default=None)

    def slots(self, ranks_per_node: int) -> dict[int, str]:
        """Which node's ranks have which slot, as the agents of the newest attempt say."""
        return {
            int(h.facts["first_rank"]) // ranks_per_node: node
            for node, h in self.hellos.items()
            if h.attempt == self.attempt and h.facts.get("first_rank", "").isdigit()
        }


class Adoption:
    """Of one run."""

    def __init__(
        self,
        run_dir: folder.RunDir,
        job: Job,
        site: Site,
        keys: folder.ServerKeys,
        channel: Channel,
        launcher: Launcher,
        bind: Callable[[], str],
    ) -> None:
        self._dir, self._job, self._site, self._keys = run_dir, job, site, keys
        self._channel, self._launcher, self._bind = channel, launcher, bind
        self.endpoint = bind()
        self._before, self._epoch = readable(run_dir.journal)
        self._run_id = self._before.spec.run_id if self._before else keys.run_id
        self._jobs: list[JobStatus] = []
        self._heard = Heard()

    async def journal(self, who: str) -> Journal:
        """A new journal that begins with the run as it is. Raises UserError, TransientError."""
        name, why = self._dir.path.name, ""
        try:
            self._dir.load()
        except LostJournalError as error:
            why = error.problem
        with _held(self._dir):
            self._jobs = await active_jobs(self._launcher, self._dir)
            if not self._jobs:
                raise UserError(self._nothing_left())
            for job in self._jobs:
                if job.state is JobState.UNKNOWN:  # ranks may be there, and agents that know more
                    said = job.reason or job.raw
                    raise TransientError(f"job {job.job_id} of run {name}: {said}; try again")
            if any(job.state is JobState.RUNNING for job in self._jobs):
                await self._hear()
                if not self._heard.hellos:
                    raise UserError(
                        f"no agent of run {name} answered within {AGENTS_S:.0f} s; its ranks may "
                        f"go on: see to the nodes of job {self._jobs[-1].job_id}, or end it with "
                        f"`superv stop {name}`"
                    )
            if not why and not self._is_old():
                raise UserError(
                    f"the journal of run {name} is whole; `superv attach {name}` goes on with it"
                )
            why = why or "it was older than the agents"
            return _begun(self._dir, await self._adopted(who, why), self._epochs())

    def _is_old(self) -> bool:
        """Whether agents have been further than the journal."""
        attempt = self._before.attempt if self._before is not None else None
        number = attempt.number if attempt is not None else 0
        return self._epochs() > self._epoch or (self._heard.attempt or 0) > number

    def _nothing_left(self) -> str:
        home = self._job.checkpoints
        where = f"`superv checkpoints list {home.dir}` shows what is there; " if home else ""
        return (
            f"run {self._dir.path.name} has no job any more, so there are no ranks to adopt; "
            f"{where}`superv launch {self._job.path} --from CHECKPOINT` goes on from one"
        )

    def _epochs(self) -> int:
        """The highest that an agent may have obeyed."""
        return max(self._epoch, *(h.epoch for h in self._heard.hellos.values()), 0)

    # --- what agents know ---------------------------------------------------------------------

    async def _hear(self) -> None:
        """Until every slot's node is known, or whoever has not said hello by then will not."""
        there = {job.job_id: allocation(job) for job in self._adopted_jobs()}
        run = Run(spec=run_spec(self._job, ""), allocations=there)
        registration = Registration(
            self._channel,
            NodeAddresses(),
            epoch=ANY_EPOCH,
            run=lambda: replace(run, spec=replace(run.spec, run_id=self._run_id)),
            clock=clock,
        )
        loop = asyncio.get_running_loop()
        until = loop.time() + AGENTS_S
        moved, known = False, bool(self._run_id)
        sending = asyncio.ensure_future(self._keep_sending())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until) as wait:
                    while not self._complete():
                        received = await self._channel.receive()
                        hello = received.message
                        if not isinstance(hello, wire.Hello):
                            # Only who knows this address already does not say hello first.
                            if not moved:
                                moved, self.endpoint = True, self._bind()
                                sending.cancel()
                                sending = asyncio.ensure_future(self._keep_sending())
                            continue
                        if not self._run_id and self._is_ours(hello.run_id):
                            self._run_id = hello.run_id
                        answer = registration.judge(received, hello)
                        if isinstance(answer, Admitted):
                            if hello.node not in self._heard.hellos:
                                wait.reschedule(min(until, loop.time() + QUIET_S))
                            self._heard.hellos.setdefault(hello.node, hello)
                            self._heard.keys.setdefault(hello.node, received.speaker.key)
                        else:
                            logger.warning(f"hello of {one_line(hello.node, 64)}: {answer}")
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if not known and self._run_id:  # what was sent did not name the run
            await self._send_keys()

    def _is_ours(self, run_id: str) -> bool:
        return any(names.run_of(j.job_name) == (self._job.name, run_id[:6]) for j in self._jobs)

    def _complete(self) -> bool:
        """Whether all have said hello, or those of all slots have: spares may come later."""
        if self._heard.hellos.keys() >= set(self._nodes()):
            return True
        return len(self._heard.slots(self._job.trainer.ranks_per_node)) == self._job.nodes

    def _nodes(self) -> list[str]:
        return [n for job in self._jobs if job.state is JobState.RUNNING for n in job.nodes]

    def _adopted_jobs(self) -> list[ev.AdoptedJob]:
        """The jobs as the run's; their folders' names follow from its keys."""
        secret, home = self._keys.server_secret, self._site.node_dir
        return [
            ev.AdoptedJob(
                job_id=job.job_id,
                job_name=job.job_name,
                raw=job.raw,
                nodes=job.nodes if job.state is JobState.RUNNING else (),
                reason=job.reason,
                folder=delivery.folder(home, delivery.nonce(secret, job.job_name)),
            )
            for job in self._jobs
        ]

    async def _keep_sending(self) -> None:
        """Have the agents find this engine: again and again, where that did not get through."""
        while True:
            await self._send_keys()
            await asyncio.sleep(RESEND_S)

    async def _send_keys(self) -> None:
        keys = wire.Keys(
            wire=wire.WIRE,
            run_id=self._run_id,
            endpoint=self.endpoint,
            server_key=self._keys.server_public,
            public_key=self._keys.client_public,
            secret_key=self._keys.client_secret,
        )
        for job in self._adopted_jobs():
            if not job.nodes:
                continue
            path = f"{job.folder}/{delivery.new_name(delivery.KEY)}"
            try:
                await self._launcher.send_file(job.job_id, msgspec.json.encode(keys), path)
            except TransientError as error:
                logger.warning(f"keys for job {job.job_id}: {error}")

    # --- what comes of it ---------------------------------------------------------------------

    async def _adopted(self, who: str, why: str) -> ev.Adopted:
        now, attempt, before = clock(), self._heard.attempt, self._before
        slots: tuple[str, ...] = ()
        resume: Checkpoint | None = None
        lineage = before.lineage if before is not None else ()
        first = 1
        if attempt is None:
            first = await self._first_attempt()
        else:
            slots, resume = self._placed(attempt), self._resumed(attempt, now)
            older = [c for c in lineage if resume is not None and c.step < resume.step]
            lineage = (*older, resume) if resume is not None else ()
        run_id = self._run_id or self._jobs[-1].job_name.rsplit("-", 2)[1] + secrets.token_hex(3)
        hellos = self._heard.hellos
        whole = self._job.trainer.ranks_per_node
        return ev.Adopted(
            at=now,
            who=who,
            why=why,
            spec=run_spec(self._job, run_id, first),
            endpoint=self.endpoint,
            jobs=tuple(self._adopted_jobs()),
            attempt=attempt,
            slots=slots,
            resume=resume,
            agents=tuple(
                ev.AdoptedAgent(
                    node=node,
                    job_id=hellos[node].job_id,
                    address=hellos[node].address,
                    port=hellos[node].port,
                    agent=hellos[node].agent,
                    key=self._heard.keys[node],
                )
                for node in slots
                if node in hellos
                and (hellos[node].attempt, hellos[node].ranks) == (attempt, whole)
                and not hellos[node].problems
            ),
            lineage=lineage,
            excluded=tuple(before.excluded.values()) if before is not None else (),
            operator_excluded=fleet_recorder.operator_exclusions(
                self._site.fleet, now, self._site.claims_dir
            ),
        )

    def _placed(self, attempt: int) -> tuple[str, ...]:
        """Which node has which slot; where some have not said so, as far as it can be told."""
        before = self._before.attempt if self._before is not None else None
        found = places(
            self._job.nodes,
            self._heard.slots(self._job.trainer.ranks_per_node),
            before.slots if before is not None and before.number == attempt else (),
            self._nodes(),
            self._heard.hellos.keys(),
        )
        if found.open:
            name = self._dir.path.name
            raise UserError(
                f"{compress(found.silent)} do not answer, and which of them has slot "
                f"{', '.join(map(str, found.open))} can't be told; its ranks may go on: once their "
                f"agents answer, `superv attach {name} --adopt` again; `superv stop {name}` ends it"
            )
        if found.nodes.keys() != set(range(self._job.nodes)):
            there = f"{self._job.nodes} slots and {len(found.nodes)} nodes"
            raise UserError(f"{self._dir.job_file}: the run has {there}; is it this job's file?")
        return tuple(found.nodes[slot] for slot in range(self._job.nodes))

    def _resumed(self, attempt: int, now: float) -> Checkpoint | None:
        """What the attempt resumed from; it is verified before anything resumes from it again."""
        if self._job.checkpoints is None:
            return None
        for hello in self._heard.hellos.values():
            if hello.attempt != attempt or not hello.facts.get("resume_step", "").isdigit():
                continue
            path = PurePath(hello.facts.get("resume_path", ""))
            if not path.name:
                return None
            ours = path.parent.parent == PurePath(self._job.checkpoints.dir)
            saved_by = names.attempt_of(path.parent.name) if ours else None
            step_seen = int(hello.facts["resume_step"])
            return Checkpoint(
                step=step_seen, path=str(path), attempt=saved_by or 0, verified_at=now
            )
        before = self._before.attempt if self._before is not None else None
        if before is not None and before.number == attempt:
            return before.resume
        name = self._dir.path.name
        raise UserError(
            f"the agents of run {name} are of an older superv, and do not say what attempt "
            f"{attempt} resumed from; end it with `superv stop {name}`, then `superv launch "
            f"{self._job.path} --from CHECKPOINT`"
        )

    async def _first_attempt(self) -> int:
        """The next attempt's number where no agent knows of one. Raises UserError."""
        if self._job.checkpoints is None:
            return 1
        question = {"command": "home", "path": str(self._job.checkpoints.dir)}
        async with Storage() as storage:
            _, first = await storage.ask(question, deadline_s=STORAGE_S)
        if first > 1 and self._before is None:
            name = self._dir.path.name
            raise UserError(
                f"no agent of run {name} holds ranks, and nothing says which checkpoint is the "
                f"run's newest; end it with `superv stop {name}`, then `superv launch "
                f"{self._job.path} --from CHECKPOINT`"
            )
        return int(first)


@contextlib.contextmanager
def _held(run_dir: folder.RunDir) -> Iterator[None]:
    """Keep engines from the journal that is to be replaced. Raises UserError where one has it."""
    try:
        fd = os.open(run_dir.journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # nobody has what is not there, or what may not be opened
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            f"{run_dir.journal}: another engine has it; see {run_dir.log}, and end that one first"
        ) from None
    finally:
        os.close(fd)


def _begun(run_dir: folder.RunDir, event: ev.Adopted, epoch: int) -> Journal:
    """A journal that begins with the event, in place of the lost one, which is kept beside it."""
    mark = secrets.token_hex(4)
    part = run_dir.path / f".journal.{mark}"
    aside = run_dir.path / f"journal.lost.{mark}"
    try:
        journal = Journal(part)
        journal.append(event, (), epoch=epoch)
        journal.run, journal.epoch = step(None, event)[0], epoch
        with contextlib.suppress(FileNotFoundError):
            run_dir.journal.rename(aside)
        os.link(part, run_dir.journal)  # refuses where somebody else was faster
    except OSError as error:
        raise UserError(
            f"{run_dir.journal}: can't be written: {error.strerror or error}; make room, then "
            f"`superv attach {run_dir.path.name} --adopt` again"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    journal.path = run_dir.journal
    return journal
