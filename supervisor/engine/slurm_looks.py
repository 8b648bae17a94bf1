"""What Slurm is asked while a run lives: its jobs, their twins, and whether they can be granted.

Nothing is decided here. What is seen becomes events, once it has lasted where a single look may
be wrong: slurmctld has just started, a reconfiguration shows all nodes as unknown, a node that was
resumed does not respond for a moment (`idle*`, 0.1 to 0.6 s on 22.05 to 26.05).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import JobState, JobStatus, Launcher, LaunchSpec, Shortage
from supervisor.core.types import AllocationState, Phase, Run

LOOKS = 3  # a job is forgotten after so many looks, …
FORGOTTEN_S = 30.0  # … over so long, with none of its agents heard for so long
SHORTAGE_EVERY_S = 30.0  # a shortage counts when the look after says the same
TWINS_EVERY_S = 30.0
START_MOVED_S = 300.0  # an expected start is told anew where it has moved so far, …
START_MOVED_SHARE = 0.1  # … and by so much of the wait for it
LOOK_AGAIN_S = 2.0  # a node is down once looks so far apart say so, and none between says otherwise
DOUBT_S = 600.0  # a submission that was not answered may still become a job within this
DOUBT_AT_THE_END_S = 60.0  # so long a run that has ended is kept for it


class SlurmLooks:
    """The looks of one engine at one run's jobs."""

    def __init__(
        self,
        launcher: Launcher,
        run: Callable[[], Run],
        now: Callable[[], float],
        spec: Callable[[], LaunchSpec | None],
    ) -> None:
        """`spec` is the newest request for nodes."""
        self._launcher, self._run, self._now, self._spec = launcher, run, now, spec
        self.heard_at: Callable[[str], float | None] = lambda job: None  # any agent of a job, last
        self._seen: dict[str, tuple[object, ...]] = {}  # what was last said of a job
        self._forgotten: dict[str, tuple[int, float]] = {}  # looks since a time
        self._down: dict[
            tuple[str, str], float
        ] = {}  # by job and node: since when every look says so
        self._doubt = now()  # an engine before this one may have left a submission unanswered
        self._in_doubt = False  # this one has
        self._twins_looked = self._shortage_looked = 0.0
        self._shortage: Shortage | None = None  # as of the look before

    def doubt(self) -> None:
        """A submission was not answered: it may become a job later."""
        self._doubt, self._in_doubt = self._now(), True

    @property
    def expects_twin(self) -> bool:
        """Whether the engine of an ended run is still needed to cancel one."""
        return self._in_doubt and self._now() - self._doubt < DOUBT_AT_THE_END_S

    @property
    def doubtful(self) -> bool:
        """Whether a node was down at one look only: to be looked at after LOOK_AGAIN_S."""
        now = self._now()
        return any(now - since < LOOK_AGAIN_S for since in self._down.values())

    def repeat(self) -> None:
        """What was said of jobs may not have been taken: say it again at the next look."""
        self._seen.clear()

    async def events(self) -> AsyncIterator[ev.Event]:
        """Ask Slurm; yields what changed."""
        if jobs := self._run().live_jobs:
            for job, status in (await self._launcher.poll(jobs)).items():
                if (seen := self._allocation_seen(job, status)) is not None:
                    yield seen
        async for twin in self._twins():
            yield twin
        async for lacking in self._shortages():
            yield lacking

    def _allocation_seen(self, job: str, status: JobStatus) -> ev.AllocationSeen | None:
        if status.state is JobState.UNKNOWN:
            return None
        if status.state is not JobState.FORGOTTEN:
            self._forgotten.pop(job, None)
        elif not self._lasts(job):
            return None
        known = self._run().allocations[job]
        shut = (known.down, known.drained)  # no answer changes nothing
        if status.nodes_read:
            shut = (self._lasting(job, status.down, known.down), status.drained)
        seen = (status.state, status.raw, status.nodes, shut, status.reason)
        if self._seen.get(job) == seen and not self._moved(known.starts_at, status.starts_at):
            return None
        self._seen[job] = seen
        return ev.AllocationSeen(
            at=self._now(),
            job_id=job,
            state=status.state,
            raw=status.raw,
            nodes=status.nodes,
            down=shut[0],
            drained=shut[1],
            reason=status.reason,
            means=status.means,
            do=status.do,
            starts_at=status.starts_at,
        )

    def _moved(self, before: float | None, now: float | None) -> bool:
        """Whether the expected start is another one: Slurm moves it a little at every round."""
        if before is None or now is None:
            return before is not now
        return abs(now - before) > max(START_MOVED_S, START_MOVED_SHARE * abs(now - self._now()))

    def _lasting(self, job: str, down: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
        """Of the nodes that are down at this look, those that were so at one before."""
        now = self._now()
        for key in [key for key in self._down if key[0] == job and key[1] not in down]:
            del self._down[key]
        for name in down:
            self._down.setdefault((job, name), now)
        long = [n for n in down if n in known or now - self._down[job, n] >= LOOK_AGAIN_S]
        return tuple(long)

    def _lasts(self, job: str) -> bool:
        """Whether Slurm has not known the job for long enough, and none of its agents is heard."""
        now = self._now()
        looks, since = self._forgotten.get(job, (0, now))
        self._forgotten[job] = looks + 1, since
        heard = self.heard_at(job)
        silent = heard is None or now - heard >= FORGOTTEN_S
        return looks + 1 >= LOOKS and now - since >= FORGOTTEN_S and silent

    async def _twins(self) -> AsyncIterator[ev.Event]:
        """Jobs of this run that its journal does not have: their submission's answer was lost."""
        run, now = self._run(), self._now()
        wanted = run.phase is Phase.PENDING or now - self._doubt < DOUBT_S
        if not wanted or now - self._twins_looked < TWINS_EVERY_S:
            return
        self._twins_looked = now
        prefix = names.allocations_of(run.spec.name)
        try:
            there = await self._launcher.find(prefix, past=False)
        except (TransientError, UserError):
            return
        run = self._run()
        asked = {a.job_name for a in run.pending.values() if isinstance(a, act.Submit)}
        for job in there:
            ours = names.run_of(job.job_name) == (run.spec.name, run.spec.run_id[:6])
            active = job.state in (JobState.PENDING, JobState.RUNNING) and job.raw != "COMPLETING"
            known = job.job_id in run.live_jobs or job.job_name in asked  # its answer is on the way
            if ours and active and not known:
                yield ev.StrayJobSeen(at=self._now(), job_id=job.job_id, job_name=job.job_name)

    async def _shortages(self) -> AsyncIterator[ev.Event]:
        """Whether the job that waits can be granted as things are."""
        run, now, spec = self._run(), self._now(), self._spec()
        waiting = [
            job
            for job in run.allocations.values()
            if job.state is AllocationState.REQUESTED and not job.cancelled
        ]
        if spec is None or run.ended or not waiting:
            self._shortage = None
            return
        if now - self._shortage_looked < SHORTAGE_EVERY_S:
            return
        self._shortage_looked = now
        try:
            found = await self._launcher.shortage(spec)
        except (TransientError, UserError):
            return
        before, self._shortage = self._shortage, found
        job = waiting[-1]
        new = found.lacking != job.lacking or (
            found.lacking > 0 and found != self._told(job.job_id)
        )
        if before == found and new:
            self._seen[f"lacking {job.job_id}"] = (found,)
            yield ev.NodesLacking(
                at=self._now(),
                job_id=job.job_id,
                lacking=found.lacking,
                excluded=found.excluded,
            )

    def _told(self, job: str) -> object:
        return self._seen.get(f"lacking {job}", (None,))[0]
