"""A simulated Slurm: what its commands print, and what it does to jobs and nodes meanwhile."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.core.nodeset import compress, expand
from supervisor.proc import Completed

if TYPE_CHECKING:
    from supervisor.simulate.nodes import SimulatedNode
    from supervisor.simulate.world import SimulatedWorld

DOWN_AFTER_S = (60.0, 300.0)  # until slurmctld misses a node (SlurmdTimeout)
BOOT_S = (20.0, 90.0)  # until slurmd answers again on a node that is powered on
AGAIN_S = (1.0, 30.0)  # the batch script's rounds: sbatch_templates/allocation.sh.j2
FORGET_S = 300.0  # MinJobAge
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
UNSURE = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
UNCONFIGURED = "squeue: fatal: Could not establish a configuration source"
ENDS = ("COMPLETED", "CANCELLED", "TIMEOUT", "FAILED", "NODE_FAIL")


@dataclass(slots=True)
class SimulatedJob:
    number: int
    name: str
    wanted: int
    exclude: frozenset[str]
    state: str = "PENDING"
    reason: str = "Resources"
    nodes: list[str] = field(default_factory=list)
    ended_at: float | None = None
    least: int = 0  # nodes that it would do with
    forgotten: bool = False

    @property
    def job_id(self) -> str:
        return str(self.number)

    @property
    def active(self) -> bool:
        return self.ended_at is None


class SimulatedSlurm:
    """slurmctld and its daemons. `command` stands in for supervisor.proc.run."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world
        self._rng = world.rng("slurm")
        self.jobs: dict[str, SimulatedJob] = {}
        self.down: set[str] = set()
        self.drained: dict[str, str] = {}  # by node: why
        self.taken: set[str] = set()  # other people's jobs have these
        self.away = 0  # slurmctld is not reached, by how many faults
        self.hangs = 0
        self.unsure = 0  # what is submitted is accepted, and the answer is lost
        self.odd = 0  # a configless client without its server
        self.new_word = 0  # states that this superv does not know
        self.commands = 0
        self._numbers = 100

    # --- nodes --------------------------------------------------------------------------------

    def node_off(self, node: SimulatedNode) -> None:
        self._world.later(self._rng.uniform(*DOWN_AFTER_S), self._missed, node)

    def _missed(self, node: SimulatedNode) -> None:
        if not node.power and node.name not in self.down:
            self.down.add(node.name)
            self._take_out(node.name)

    def node_on(self, node: SimulatedNode) -> None:
        self._world.later(self._rng.uniform(*BOOT_S), self._booted, node)

    def _booted(self, node: SimulatedNode) -> None:
        """Its slurmd registers again. A node that has rebooted is in no job any more."""
        if node.power:
            node.slurmd = True
            self._take_out(node.name)
            self.down.discard(node.name)
            self.schedule()

    def _take_out(self, name: str) -> None:
        for job in self.jobs.values():
            if job.active and name in job.nodes:
                job.nodes.remove(name)
                if not job.nodes:
                    self.end(job.job_id, "NODE_FAIL")

    def free(self, name: str) -> bool:
        used = any(job.active and name in job.nodes for job in self.jobs.values())
        return not (used or name in self.down or name in self.drained or name in self.taken)

    # --- jobs ---------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Start what waits and fits, the oldest first."""
        if self.away or self.hangs:
            return
        for job in self.jobs.values():
            if job.state != "PENDING":
                continue
            if any(
                other.active
                and other.name == job.name
                and other is not job
                and other.number < job.number
                for other in self.jobs.values()
            ):
                job.reason = "Dependency"
                continue
            names = [
                node.name
                for node in self._world.nodes
                if node.slurmd and self.free(node.name) and node.name not in job.exclude
            ]
            job.reason = "Resources"
            if len(names) >= (job.least or job.wanted):
                job.state, job.nodes, job.reason = "RUNNING", names[: job.wanted], ""
                self._world.say(f"slurm starts job {job.job_id} on {compress(job.nodes)}")
                for name in job.nodes:
                    node = self._world.node(name)
                    self._world.later(self._rng.uniform(0.3, 3.0), self._start_loop, job, node)

    def _start_loop(self, job: SimulatedJob, node: SimulatedNode) -> None:
        if job.active and node.name in job.nodes and job.job_id not in node.left:
            node.start_loop(job.job_id)

    def look_after(self) -> None:
        """What slurmctld and batch scripts do every now and then: jobs begin, steps begin again."""
        if any(job.state == "PENDING" for job in self.jobs.values()):
            self.schedule()
        for job in self.jobs.values():
            if job.state == "RUNNING":
                for name in job.nodes:
                    self._start_loop(job, self._world.node(name))

    def agent_left(self, job_id: str) -> None:
        """The batch script ends with the last of its agents."""
        job = self.jobs[job_id]
        if job.active and all(job_id in self._world.node(name).left for name in job.nodes):
            self.end(job_id, "COMPLETED")

    def forget(self) -> None:
        """slurmctld comes back without its state: jobs are unknown, slurmds end them."""
        for job in self.jobs.values():
            job.forgotten = True
            if job.active:
                self.end(job.job_id, "RUNNING")

    def end(self, job_id: str, word: str) -> None:
        job = self.jobs.get(job_id)
        if job is None or not job.active:
            return
        job.state, job.ended_at = word, self._world.loop.time()
        self._world.say(f"slurm: job {job_id} is {word}")
        for node in self._world.nodes:
            if node.power and job_id in node.loops | node.left:
                node.end_job(job_id)
        self._world.later(0.5, self.schedule)

    # --- commands -----------------------------------------------------------------------------

    async def command(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run one of Slurm's commands on the engine's machine."""
        self.commands += 1
        name = argv[0] if argv[0] != "setsid" else "srun"
        if self.hangs:
            await asyncio.sleep(deadline_s)
            return _said(argv, None, "", "", deadline_s)
        await asyncio.sleep(0.02)
        if self.odd:
            return _said(argv, 1, "", UNCONFIGURED.replace("squeue", name), 0.02)
        if self.away:
            await asyncio.sleep(min(8.0, deadline_s))
            return _said(argv, 1, "", AWAY, 8.0)
        rc, out, err = getattr(self, f"_{name}")(tuple(argv), dict(env or {}))
        return _said(argv, rc, out, err, 0.02)

    def _squeue(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        ids, name = _option(argv, "--jobs"), _option(argv, "--name")
        known = [job for job in self.jobs.values() if not self._forgotten(job)]
        chosen = [
            job
            for job in known
            if (not ids or job.job_id in ids.split(",")) and (not name or job.name == name)
        ]
        if ids and not chosen:
            return 1, "", "slurm_load_jobs error: Invalid job id specified"
        return 0, "".join(self._row(job, env["SQUEUE_FORMAT"]) for job in chosen), ""

    def _forgotten(self, job: SimulatedJob) -> bool:
        ended = job.ended_at is not None and self._world.loop.time() - job.ended_at > FORGET_S
        return ended or job.forgotten

    def _row(self, job: SimulatedJob, form: str) -> str:
        fields = {
            "%i": job.job_id,
            "%T": "HIBERNATING" if self.new_word and job.active else job.state,
            "%r": job.reason or "None",
            "%N": compress(job.nodes),
            "%j": job.name,
        }
        return re.sub("%[iTrNj]", lambda found: fields[found[0]], form) + "\n"

    def _sacct(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        ids = _option(argv, "--jobs")
        rows = [
            f"{job.job_id}|{job.state}|{job.reason or 'None'}|"
            f"{compress(job.nodes) or 'None assigned'}|{job.name}\n"
            for job in self.jobs.values()
            if not ids or job.job_id in ids.split(",")
        ]
        return 0, "".join(rows), ""

    def _sinfo(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        if "--Node" not in argv:
            return 0, f"train*|{compress(node.name for node in self._world.nodes)}\n", ""
        wanted = expand(_option(argv, "--nodes"))
        rows = [
            f"{node.name}|train*|{self._word(node.name)}|0/8/0/8|(null)|"
            f"{self.drained.get(node.name, 'none')}\n"
            for node in self._world.nodes
            if not wanted or node.name in wanted
        ]
        return 0, "".join(rows), ""

    def _word(self, name: str) -> str:
        used = not self.free(name) and name not in self.down
        if name in self.down:
            return "down*"
        if name in self.drained:
            return "draining" if used else "drained"
        return "allocated" if used else "idle"

    def _scontrol(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        kind = "slurmdbd" if self._world.plan.accounting else "none"
        return 0, f"AccountingStorageType   = accounting_storage/{kind}\n", ""

    def _sbatch(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        self._numbers += 1
        least, _, most = _option(argv, "--nodes").partition("-")
        job = SimulatedJob(
            number=self._numbers,
            name=_option(argv, "--job-name"),
            wanted=int(most or least),
            least=int(least),
            exclude=frozenset(expand(_option(argv, "--exclude"))),
        )
        self.jobs[job.job_id] = job
        self._world.held.submitted(job)
        self._world.later(self._rng.uniform(0.1, 2.0), self.schedule)
        if self.unsure:
            return 1, "", UNSURE
        return 0, f"{job.job_id}\n", ""

    def _scancel(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        self._world.later(0.2, self.end, argv[-1], "CANCELLED")
        return 0, "", ""

    def _sbcast(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        job = self.jobs.get(_option(argv, "--jobid"))
        if job is None or job.state != "RUNNING":
            return 1, "", "sbcast: error: Job is not running"
        missed = []
        for name in job.nodes:
            node = self._world.node(name)
            if not node.slurmd:
                missed.append(f"sbcast: error: REQUEST_FILE_BCAST({name}): Socket timed out")
            elif job.job_id not in node.loops:
                missed.append(
                    f"sbcast: error: REQUEST_FILE_BCAST({name}): No such file or directory"
                )
            else:
                node.deliver(job.job_id, self._world.host.endpoint)
        return (1, "", "\n".join(missed)) if missed else (0, "", "")

    def _srun(self, argv: tuple[str, ...], env: dict[str, str]) -> tuple[int, str, str]:
        """A step that starts an agent on one node, and outlives its srun."""
        job, name = self.jobs.get(_option(argv, "--jobid")), _option(argv, "--nodelist")
        if job is not None and name in job.nodes:
            self._world.later(0.5, self._start_loop, job, self._world.node(name))
        return 0, "", ""


def _option(argv: tuple[str, ...], name: str) -> str:
    return next((word.partition("=")[2] for word in argv if word.startswith(f"{name}=")), "")


def _said(argv: Sequence[str], rc: int | None, out: str, err: str, took_s: float) -> Completed:
    return Completed(argv=tuple(argv), rc=rc, out=out, err=err, took_s=took_s)
