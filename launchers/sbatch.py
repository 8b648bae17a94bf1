"""Agents through `sbatch`: one job is one allocation, with an agent step over all of its nodes."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launchers.slurm import Slurm
from launchers.slurm_answers import refusal
from launchers.slurm_reasons import explained
from launchers.slurm_rows import Partition
from sbatch_templates import render
from supervisor.channel.delivery import VARIABLE
from supervisor.config.slurm import OPTIONS, OWNED
from supervisor.core.errors import RefusalError, TooFewNodesError, TransientError, UserError
from supervisor.core.nodeset import compress, expand, natural_sort_key
from supervisor.core.ports import JobState, JobStatus, LaunchSpec, Plan, Shortage
from supervisor.host import private
from supervisor.proc import Completed

# The script's PATH: where srun, squeue and scancel usually are. Local folders only: a login PATH
# may lead to a file system that hangs.
SCRIPT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/opt/slurm/bin"

# Of the node everything, unless the user asks for something else.
_DEFAULTS = {"exclusive": "true", "mem": "0"}
_AGENT_STEP = (
    *("--job-name=superv-agent", "--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0"),
    # No --cpus-per-task (it implies --exact) and no --gres: a step that asks for neither gets all
    # CPUs and GPUs that the job has on its nodes (srun(1); seen on 22.05).
    *("--ntasks-per-node=1", "--cpu-bind=none", "--mem=0", "--mpi=none", "--propagate=NONE"),
    *("--export=ALL", "--input=none", "--label"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ALIVE = (JobState.PENDING, JobState.RUNNING)
_PLANNED_S = 15.0  # backfill plans at every 30 s (bf_interval): before, Slurm knows no start
_NO_FOLDER = "No such file or directory"
_FOLDER_S = 20.0  # the step that makes the folder has begun everywhere well within this
_FOLDER_PAUSE_S = 0.1
_COMPLETING_S, _COMPLETING_PAUSE_S = 10.0, 0.5  # epilogs take seconds
_RANGE = re.compile(r"--nodes=\d+-(\d+)")
_STEP_START_S = 30  # srun's time to start one step: --immediate 10 s and a dead node's 12 s

_log = logging.getLogger(__name__)


class Sbatch:
    """The launcher for a cluster where a Run has jobs of its own."""

    programs: tuple[str, ...] = ("sbatch", "squeue", "scontrol", "scancel")

    def __init__(self, *, slurm: Slurm | None = None, path: str = SCRIPT_PATH) -> None:
        self._slurm = slurm or Slurm()
        self._path = path
        self._waits: dict[str, float] = {}  # since when jobs were seen to wait, by the loop's clock

    def plan(self, spec: LaunchSpec) -> Plan:
        """See Launcher.plan. Raises UserError on an option that can't be given to sbatch."""
        if not _NAME.fullmatch(spec.job_name):
            raise UserError(
                f"job name {spec.job_name!r}: use letters, digits, '.', '_' and '-', at most 128"
            )
        options = _options(spec.slurm)
        least = spec.min_nodes or spec.nodes
        nodes = f"{least}-{spec.nodes}" if least < spec.nodes else str(spec.nodes)
        argv = ["sbatch", "--parsable", f"--job-name={spec.job_name}", f"--nodes={nodes}"]
        # With tasks for a node, sbatch asks for those of the least nodes, and gets no more of them.
        argv += ["--ntasks-per-node=1"] if least == spec.nodes else []
        argv += ["--no-kill", "--no-requeue"]
        argv += ["--dependency=singleton"]  # of two jobs of one name, one may run
        # No output: the script's own log lies in its own folder.
        argv += ["--export=ALL", "--propagate=NONE", "--chdir=/", "--output=/dev/null"]
        argv += [_word(name, value) for name, value in options.items() if value != "false"]
        argv += [f"--exclude={compress(spec.exclude)}"] if spec.exclude else []
        script = render(
            "allocation.sh",
            path=self._path,
            loop=render("agent_loop.sh"),
            folder=spec.folder,
            agent_argv=spec.agent_argv,
            step_options=_AGENT_STEP,
        )
        return Plan(job_name=spec.job_name, argv=tuple(argv), script=script)

    async def submit(self, plan: Plan) -> str:
        """See Launcher.submit.

        Nodes to exclude that Slurm does not know (any more) are left out, with a warning in the
        log: sbatch would refuse the whole job for one that was taken out of the cluster.
        """
        if job := await self._active(plan.job_name):
            return job
        argv = _checked(plan.argv, await self._slurm.partitions())
        await self._until_free(argv)
        try:
            done = await self._slurm.run(*argv, stdin=plan.script.encode(), more_env=plan.env)
        except TransientError as error:  # the reply may be lost, and the job there
            if job := await self._active(plan.job_name):
                return job
            raise TransientError(f"{error}; no job {plan.job_name} is in the queue") from error
        if done.rc != 0:
            raise self._refusal(done, argv)
        job = done.out.strip().partition(";")[0]
        if not job.isdigit():
            raise TransientError(f"sbatch answered {done.out.strip()!r} instead of a job's id")
        return job

    def _refusal(self, done: Completed, argv: Sequence[str]) -> UserError:
        """What a submission that failed has said."""
        return refusal(done.err, argv)

    async def _until_free(self, argv: Sequence[str]) -> None:
        """Wait a little for nodes whose job has just ended, where a range of nodes is asked for:
        of a range Slurm grants what is free at that moment, and no more later."""
        size = next((found[1] for w in argv if (found := _RANGE.fullmatch(w))), "")
        if not size:
            return
        partition = next((w.partition("=")[2] for w in argv if w.startswith("--partition=")), None)
        clock = asyncio.get_running_loop().time
        end = clock() + _COMPLETING_S
        while clock() < end:
            try:
                words = [n.word for n in (await self._slurm.nodes(partition=partition)).values()]
            except TransientError:
                return
            if "completing" not in words or words.count("idle") >= int(size):
                return
            await asyncio.sleep(_COMPLETING_PAUSE_S)

    async def _active(self, job_name: str) -> str | None:
        """The active job of that name. Where a lost reply made two, the older one stays."""
        jobs = await self._slurm.jobs(name=job_name)
        active = [
            job
            for job in jobs
            if job.state in {JobState.PENDING, JobState.RUNNING} and job.raw != "COMPLETING"
        ]
        if odd := [job for job in jobs if job.state is JobState.UNKNOWN]:
            raise TransientError(f"job {odd[0].job_id} ({job_name}) is in state {odd[0].raw!r}")
        active.sort(key=lambda job: natural_sort_key(job.job_id))
        for twin in active[1:]:
            _log.warning("cancelling job %s: a twin of %s", twin.job_id, active[0].job_id)
            await self._slurm.cancel(twin.job_id)
        return active[0].job_id if active else None

    async def find(self, name_prefix: str, *, past: bool = True) -> list[JobStatus]:
        """See Launcher.find. `down` is left empty: poll tells it."""
        earlier = await self._slurm.past_jobs() if past else []
        jobs = {job.job_id: job for job in earlier}
        jobs |= {job.job_id: job for job in await self._slurm.jobs()}
        return [job for job in jobs.values() if job.job_name.startswith(name_prefix)]

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        """See Launcher.poll: squeue, sinfo for the nodes, sacct for jobs that squeue forgot."""
        if not jobs:
            return {}
        try:
            seen = {job.job_id: job for job in await self._slurm.jobs(ids=jobs)}
        except (TransientError, UserError) as error:
            return {job: JobStatus.unknown(job, str(error)) for job in jobs}
        if missing := [job for job in jobs if job not in seen]:
            seen |= await self._past(missing)
        seen |= await self._queued([j for j in seen.values() if j.state is JobState.PENDING])
        running = [job for job in seen.values() if job.state is JobState.RUNNING]
        try:
            nodes = await self._slurm.nodes_of({node for job in running for node in job.nodes})
        except (TransientError, UserError) as error:
            seen |= {job.job_id: _nodes_unknown(job, str(error)) for job in running}
        else:
            for job in running:
                there = [nodes[name] for name in job.nodes if name in nodes]
                down = tuple(node.name for node in there if node.down)
                drained = tuple(node.name for node in there if node.drains)
                seen[job.job_id] = replace(job, down=down, drained=drained)
        return {job: seen[job] for job in jobs}

    async def _queued(self, waiting: Sequence[JobStatus]) -> dict[str, JobStatus]:
        """Jobs that wait, with what their reason means and when Slurm expects their start."""
        now = asyncio.get_running_loop().time()
        self._waits = {job.job_id: self._waits.get(job.job_id, now) for job in waiting}
        planned = [job for job, since in self._waits.items() if now - since >= _PLANNED_S]
        try:
            starts = await self._slurm.starts(planned)
        except (TransientError, UserError):  # why it waits is known all the same
            starts = {}
        found = {}
        for job in waiting:
            why, start = explained(job.reason, job.job_id), starts.get(job.job_id)
            found[job.job_id] = replace(job, means=why.means, do=why.do, starts_at=start)
        return found

    async def _past(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        try:
            past = {job.job_id: job for job in await self._slurm.past_jobs(ids=jobs)}
            why = "neither squeue nor accounting knows the job"
            if not await self._slurm.accounting():
                why = "squeue forgot the job, and this cluster has no accounting"
        except (TransientError, UserError) as error:
            return {job: JobStatus.unknown(job, str(error)) for job in jobs}
        # Accounting calls jobs running without end whose end it was not told (runaway jobs).
        ended = {job: s for job, s in past.items() if s.state not in _ALIVE}
        return {job: ended.get(job) or JobStatus.forgotten(job, why) for job in jobs}

    async def shortage(self, spec: LaunchSpec) -> Shortage:
        """See Launcher.shortage: of several partitions the one that lacks least counts."""
        asked = [name for name in _options(spec.slurm).get("partition", "").split(",") if name]
        if not asked:
            asked = [one.name for one in await self._slurm.partitions() if one.default]
        least, found = spec.min_nodes or spec.nodes, []
        for partition in asked:
            nodes = await self._slurm.nodes(partition=partition)
            service = {name for name, node in nodes.items() if node.in_service}
            out = tuple(sorted(service & {*spec.exclude}))
            found.append(Shortage(lacking=max(0, least - len(service) + len(out)), excluded=out))
        return min(found, key=lambda one: one.lacking, default=Shortage(lacking=0))

    async def cancel(self, job: str) -> None:
        """See Launcher.cancel.

        A cancel that was not answered may still happen: it waits in slurmctld's socket. Agents get
        SIGTERM and at once SIGKILL (srun kills its tasks when Slurm signals the batch script's
        processes, srun among them), so whoever wants a clean end tells the agents first.
        """
        await self._slurm.cancel(job)

    async def send_file(
        self, job: str, content: bytes, path: str, *, replace: bool = False
    ) -> None:
        """See Launcher.send_file. The nodes that began a moment ago may not have the folder yet.

        The error names the nodes that did not get the file; all others have it, under this or
        another new name.
        """
        if why := private.problem(Path(tempfile.gettempdir()), inside=True):
            raise TransientError(f"TMPDIR: {why}: a key could be swapped there before it is sent")
        clock = asyncio.get_running_loop().time
        end = clock() + _FOLDER_S
        pause = _FOLDER_PAUSE_S
        with tempfile.NamedTemporaryFile(prefix="superv-") as local:  # mode 0600; sbcast keeps it
            local.write(content)
            local.flush()
            while True:
                try:
                    await self._slurm.broadcast(job, local.name, path, replace=replace)
                    return
                except TransientError as error:
                    if replace or _NO_FOLDER not in str(error) or clock() > end:
                        raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
                path = f"{path.rpartition('.')[0]}.{secrets.token_hex(8)}"

    async def start_agent(
        self, job: str, node: str, agent_argv: tuple[str, ...], folder: str
    ) -> None:
        """See Launcher.start_agent.

        The step lives on without its srun. So srun gets a session of its own and a SIGKILL after
        its time to start the step: no process stays behind that a later SIGTERM could turn
        against the step (srun kills its tasks on SIGTERM).
        """
        status = (await self.poll([job]))[job]
        if status.state is not JobState.RUNNING or node not in status.nodes:
            where = (
                f"job {job} is {status.raw or 'unknown'} on {compress(status.nodes) or 'no node'}"
            )
            raise TransientError(f"no agent can be started on {node}: {where} {status.reason}")
        argv = ["setsid", "--fork", "timeout", "--signal=KILL", str(_STEP_START_S), "srun"]
        argv += [f"--jobid={job}", *_AGENT_STEP, "--output=none", "--error=none", "--immediate=10"]
        argv += ["--nodes=1", "--ntasks=1", f"--nodelist={node}", "--chdir=/"]
        argv += ["env", f"PATH={self._path}", "sh", "-c", render("agent_loop.sh"), "superv-agent"]
        await self._slurm.run(*argv, *agent_argv, more_env={VARIABLE: folder} if folder else None)


def _nodes_unknown(job: JobStatus, why: str) -> JobStatus:
    return replace(job, reason=f"nodes unknown: {why}", nodes_read=False)


def _options(given: Mapping[str, str]) -> dict[str, str]:
    """The user's sbatch options over the defaults. Raises UserError on one that can't be given."""
    for name in given:
        if name not in OPTIONS:
            why = OWNED.get(
                name, "no sbatch option that superv passes on; see docs/configuration.md"
            )
            raise UserError(f"slurm: {name if name in OWNED else repr(name)}: {why}")
    return {**_DEFAULTS, **given}


def _word(name: str, value: str) -> str:
    return f"--{name}" if value == "true" else f"--{name}={value}"


def _value(argv: tuple[str, ...], option: str) -> str:
    return next((word.partition("=")[2] for word in argv if word.startswith(f"{option}=")), "")


def _checked(argv: tuple[str, ...], partitions: list[Partition]) -> tuple[str, ...]:
    """The argv without unknown nodes to exclude, nor spares that no partition has.

    Raises UserError on what sbatch would accept and never start (an unknown partition it refuses,
    but without saying which are valid).
    """
    known = {partition.name: partition for partition in partitions}
    asked = [name for name in _value(argv, "--partition").split(",") if name]
    if unknown := [name for name in asked if name not in known]:
        raise RefusalError(
            f"slurm: partition: {unknown[0]!r} is unknown; valid: {', '.join(sorted(known))}"
        )
    everywhere: set[str] = set().union(*(partition.nodes for partition in partitions))
    excluded = expand(_value(argv, "--exclude"))
    stays = [node for node in excluded if node in everywhere]
    if gone := [node for node in excluded if node not in everywhere]:
        _log.warning("not excluding %s: Slurm does not know it", compress(gone))
    rest = [word for word in argv if not word.startswith("--exclude=")]
    argv = (*rest, f"--exclude={compress(stays)}") if stays else tuple(rest)
    chosen = [known[name] for name in asked] or [one for one in partitions if one.default]
    most = max((len(partition.nodes.difference(stays)) for partition in chosen), default=0)
    least, _, wanted = _value(argv, "--nodes").rpartition("-")
    least = least or wanted
    if not chosen or int(wanted) <= most:
        return argv
    names = ", ".join(partition.name for partition in chosen)
    if int(least) > most:
        raise TooFewNodesError(
            f"nodes and spares: {least} nodes are asked for, but partition {names} has {most}"
            f" that are not excluded; ask for fewer",
            lacking=int(least) - most,
            excluded=tuple(stays),
        )
    _log.warning("asking for %d nodes: partition %s has no more for spares", most, names)
    nodes = f"--nodes={least}-{most}" if most > int(least) else f"--nodes={least}"
    return tuple(nodes if word.startswith("--nodes=") else word for word in argv)
