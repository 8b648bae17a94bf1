"""Agents as processes of this machine: several "nodes" on one computer, without Slurm or root.

For trials and tests. Each node has a name (local-1, local-2, …), a loopback address and a directory
of its own; nodes share the machine's cores, memory and GPUs. A job is the processes that carry its
id in their environment (SLURM_JOB_ID, as with Slurm), and a small file that remembers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path

from sbatch_templates import render
from supervisor import proc
from supervisor.config import load_site
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress
from supervisor.core.ports import JobState, JobStatus, LaunchSpec, Plan, Shortage
from supervisor.host import private, procfs

START_S = 20.0  # the script only forks
GRACE_S = 15.0  # an agent that is told to end gives its ranks 10 s
KILL_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJob:
    """What is remembered of a job, in ID.json."""

    name: str
    nodes: tuple[str, ...]
    script: str
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalProcess:
    pid: int
    parent: int
    state: str  # R, S, D, T, Z …
    job: str
    node: str


class Local:
    """The launcher for a machine without Slurm."""

    programs: tuple[str, ...] = ()

    def __init__(self, *, folder: Path | None = None) -> None:
        """`folder` keeps the jobs' files; by default it is in site.yaml's node_dir."""
        self._folder = folder
        self._seen: dict[str, LocalJob] = {}  # jobs whose files were there

    def plan(self, spec: LaunchSpec) -> Plan:
        """See Launcher.plan. Names that another job has at submission are passed over then."""
        if spec.slurm:
            raise UserError(f"slurm: {min(spec.slurm)}: has no effect with launcher: local")
        names = (name for n in count(1) if (name := f"local-{n}") not in spec.exclude)
        script = render(
            "local_agents.sh",
            agent_loop=render("agent_loop.sh"),
            agent_argv=spec.agent_argv,
            folder=spec.folder,
        )
        argv = ("sh", "-s", *islice(names, spec.nodes))
        return Plan(job_name=spec.job_name, argv=argv, script=script)

    async def submit(self, plan: Plan) -> str:
        """See Launcher.submit."""
        taken: set[str] = set()
        live = jobs_alive()
        for job, record in self._records().items():
            if job in live:
                if record.name == plan.job_name:
                    return job
                taken.update(record.nodes)
        wanted = self._wanted(plan)
        highest = max(int(name.rpartition("-")[2]) for name in (*wanted, *taken, "local-0"))
        more = (f"local-{n}" for n in count(highest + 1))
        free = [name for name in wanted if name not in taken]
        nodes = (*free, *islice(more, len(wanted) - len(free)))
        job = f"local-{secrets.token_hex(3)}"
        record = LocalJob(name=plan.job_name, nodes=nodes, script=plan.script)
        self._write(job, record)
        await self._begin(job, record, plan)
        return job

    async def _begin(self, job: str, record: LocalJob, plan: Plan) -> None:
        """Start the agents of a new job. Raises TransientError, UserError."""
        await _start(job, record.script, record.nodes)

    async def _again(self, job: str, record: LocalJob, node: str, folder: str) -> None:
        """Start one more agent on a node of a job. Raises TransientError."""
        await _start(job, record.script, (node,))

    async def find(self, name_prefix: str, *, past: bool = True) -> list[JobStatus]:
        """See Launcher.find."""
        live = jobs_alive()
        return [
            _status(job, record, job in live)
            for job, record in self._records().items()
            if record.name.startswith(name_prefix)
        ]

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        """See Launcher.poll. No node is ever `down`: whoever asks is the machine that they are."""
        try:
            records, live = self._records(), jobs_alive()
        except (OSError, UserError) as error:
            return {job: JobStatus.unknown(job, str(error)) for job in jobs}
        return {
            job: _status(job, records[job], job in live)
            if job in records
            else JobStatus.forgotten(job, f"{self._home()} knows no such job")
            for job in jobs
        }

    async def shortage(self, spec: LaunchSpec) -> Shortage:
        """See Launcher.shortage: a machine has as many nodes as are asked for."""
        return Shortage(lacking=0)

    async def cancel(self, job: str) -> None:
        """See Launcher.cancel. Returns when no process of the job is left."""
        record = self._records().get(job)
        if record is None:
            return
        self._write(job, replace(record, cancelled=True))
        there = processes(job)
        for process in there.values():
            if process.state in "Tt":  # frozen: it would not hear anything else
                _signal(process.pid, signal.SIGKILL)
            elif process.parent not in there:  # it tells those that it started
                _signal(process.pid, signal.SIGTERM)
        await _gone(there, GRACE_S)
        end = asyncio.get_running_loop().time() + KILL_S
        while there := processes(job):
            if asyncio.get_running_loop().time() > end:
                pids = ", ".join(map(str, sorted(there)))
                raise TransientError(f"job {job}: processes {pids} can't be killed")
            for pid in there:
                _signal(pid, signal.SIGKILL)
            await _gone(there, 1.0)

    async def send_file(
        self, job: str, content: bytes, path: str, *, replace: bool = False
    ) -> None:
        """See Launcher.send_file. The nodes share the machine's files: there is one."""
        if job not in jobs_alive():
            raise TransientError(f"job {job} does not run: nobody is there to read {path}")
        part = Path(f"{path}.{secrets.token_hex(4)}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(content)
            if replace:
                part.replace(path)
            else:
                os.link(part, path)  # refuses a name that is taken
        except OSError as error:
            raise TransientError(f"{path}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)

    async def start_agent(
        self, job: str, node: str, agent_argv: tuple[str, ...], folder: str
    ) -> None:
        """See Launcher.start_agent. The command is the one that the job was submitted with."""
        record = self._records().get(job)
        if record is None or node not in record.nodes or job not in jobs_alive():
            state = "unknown" if record is None else _status(job, record, job in jobs_alive()).raw
            on = compress(record.nodes) if record else "no node"
            raise TransientError(f"no agent can be started on {node}: job {job} is {state} on {on}")
        await self._again(job, record, node, folder)

    @staticmethod
    def _wanted(plan: Plan) -> tuple[str, ...]:
        """The names of nodes in a plan; some may be another job's by now."""
        return plan.argv[2:]

    # --- what is remembered -------------------------------------------------------------------

    def _home(self) -> Path:
        return self._folder or load_site(os.environ).node_dir / f"superv-{os.getuid()}-local"

    def _records(self) -> dict[str, LocalJob]:
        """All jobs that are remembered. Raises UserError where somebody else could write there."""
        home = self._home()
        found: dict[str, LocalJob] = {}
        if home.exists():
            _check(home)
            for path in home.glob("*.json"):
                kept = json.loads(path.read_bytes())
                found[path.stem] = LocalJob(**{**kept, "nodes": tuple(kept["nodes"])})
        lost = self._seen.keys() - found.keys()
        for job in lost & jobs_alive() if lost else ():  # a cleaner took what is known of them
            found[job] = self._seen[job]
            self._write(job, found[job])
        self._seen = dict(found)
        return found

    def _write(self, job: str, record: LocalJob) -> None:
        home = self._home()
        self._seen[job] = record
        try:
            private.make(home.parent)
            _check(home)
            private.write(home / f"{job}.json", json.dumps(asdict(record)).encode())
        except OSError as error:
            raise UserError(f"{error.filename or home}: {error.strerror}") from None


def _check(home: Path) -> None:
    """Make the jobs' folder, or see that it is the user's alone and stays where it is.

    Raises UserError, OSError.
    """
    if why := private.problem(home.parent, inside=True):
        raise UserError(f"node_dir: {why}; set node_dir in site.yaml to another one")
    private.folder(home)


def _status(job: str, record: LocalJob, lives: bool) -> JobStatus:
    state, raw = (JobState.RUNNING, "RUNNING") if lives else (JobState.ENDED, "COMPLETED")
    if record.cancelled and not lives:
        state, raw = JobState.CANCELLED, "CANCELLED"
    return JobStatus(job_id=job, job_name=record.name, state=state, raw=raw, nodes=record.nodes)


# --- processes ------------------------------------------------------------------------------------


def environment(environ: Mapping[str, str], job: str) -> dict[str, str]:
    """What agents, and through them ranks, are given: an allow-list, as with Slurm.

    Gloo would look for the address of the machine's name; ranks meet on the loopback instead.
    """
    kept = {"PATH", "HOME", "USER", "LOGNAME"}
    chosen = {name: value for name, value in environ.items() if name in kept}
    own = {"LC_ALL": "C.UTF-8", "TZ": "UTC0", "GLOO_SOCKET_IFNAME": "lo", "SLURM_JOB_ID": job}
    return {"PATH": os.defpath, **chosen, **own}


async def _start(job: str, script: str, nodes: Collection[str]) -> None:
    done = await proc.run(
        ("sh", "-s", *nodes),
        deadline_s=START_S,
        stdin=script.encode(),
        env=environment(os.environ, job),
    )
    if done.rc != 0:
        raise TransientError(f"agents of {compress(nodes)} were not started: {done.why()}")


def processes(job: str | None = None) -> dict[int, LocalProcess]:
    """This user's living processes of a job, or of all local jobs, by pid."""
    found = {}
    for pid in procfs.pids():
        if not procfs.environ_has(pid, f"SLURM_JOB_ID={job or 'local-'}"):
            continue  # it ended meanwhile, or is somebody else's
        values, stat = procfs.environ(pid) or {}, procfs.stat(pid)
        its = values.get("SLURM_JOB_ID", "")
        if its.startswith("local-") and job in (None, its) and stat is not None and stat.alive:
            found[pid] = LocalProcess(
                pid=pid,
                parent=stat.parent,
                state=stat.state,
                job=its,
                node=values.get("SLURMD_NODENAME", ""),
            )
    return found


def jobs_alive() -> frozenset[str]:
    return frozenset(process.job for process in processes().values())


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _gone(pids: Collection[int], seconds: float) -> None:
    """Wait until the processes have ended, or for so long."""
    waits = [asyncio.ensure_future(proc.exited(pid)) for pid in pids]
    if waits:
        await asyncio.wait(waits, timeout=seconds)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
