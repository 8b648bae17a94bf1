"""A thin client of Slurm's command line tools: it asks and reads, and decides nothing.

Every call has a deadline. A call that fails or does not answer is TransientError: not an answer,
never "gone". The formats asked for are squeue's and sinfo's `--format`, which are the same in all
versions since 20.11; `--json` changes its shape between versions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from supervisor import proc
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress, expand
from supervisor.core.ports import JobState, JobStatus

DEADLINE_S = 30.0

# Job states: squeue(1) and sacct(1), JOB STATE CODES. COMPLETING hides how the job ended, and its
# nodes are not free yet: it counts as running until it has a final state.
_WORDS = {
    JobState.PENDING: "PENDING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD",
    JobState.RUNNING: (
        "RUNNING CONFIGURING COMPLETING RESIZING SUSPENDED STOPPED SIGNALING STAGE_OUT"
    ),
    JobState.CANCELLED: "CANCELLED",
    JobState.ENDED: (
        "COMPLETED FAILED TIMEOUT NODE_FAIL OUT_OF_MEMORY PREEMPTED BOOT_FAIL DEADLINE"
        " LAUNCH_FAILED RECONFIG_FAIL REVOKED"
    ),
}
_STATES = {word: state for state, words in _WORDS.items() for word in words.split()}

# sbatch's refusals (slurm/slurm_errno.h, and its own checks of options): text → option to mend.
_REFUSALS = (
    ("partition", "partition"),
    ("node name", "nodelist or exclude"),
    ("--time", "time"),
    ("time limit", "time"),
    ("(gres)", "gres"),
    ("qos", "qos"),
    ("account", "account"),
    ("feature", "constraint"),
    ("--mem", "mem"),
    ("memory", "mem"),
    ("reservation", "reservation"),
    ("license", "licenses"),
    ("dependency", "dependency"),
    ("node configuration", "gres, constraint, mem or cpus-per-task"),
    ("node count", "nodes (of the job itself)"),
    ("policy", "account, qos or time"),
)

# Not an answer: slurmctld or munge was not reached, or had no time.
_UNANSWERED = (
    *("socket timed out", "unable to contact", "connection refused", "connection failure"),
    *("zero bytes were transmitted", "transport endpoint", "temporarily unable", "standby mode"),
    *("connection timed out", "connection reset", "no route to host", "network is unreachable"),
    *("resource temporarily unavailable", "try again", "munge", "protocol authentication error"),
    *("unexpected message", "insane message length", "send/recv operation on socket"),
)
_UNCONFIGURED = "could not establish a configuration source"
_MISSED = re.compile(r"REQUEST_FILE_BCAST\(([^)]+)\): (.+)")
_NO_SUCH_JOB = "invalid job id specified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition with all its nodes, whatever their state."""

    name: str
    default: bool
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node as Slurm sees it."""

    name: str
    state: (
        str  # sinfo's long word without suffix: idle, allocated, mixed, drained, draining, down …
    )
    answers: bool  # False: Slurm says that it does not respond
    reason: str = ""  # of a drain or a death

    @property
    def drains(self) -> bool:
        """Drained, or about to be once its job has ended."""
        return self.state.startswith("drain")


def state_of(raw: str) -> JobState:
    """What a state's first word means: `CANCELLED by 1000`, `COMPLETED+` are known; new ones not.

    >>> state_of("CANCELLED by 1000"), state_of("HIBERNATING")
    (<JobState.CANCELLED: 'cancelled'>, <JobState.UNKNOWN: 'unknown'>)
    """
    words = raw.split()
    return _STATES.get(words[0].rstrip("+").upper() if words else "", JobState.UNKNOWN)


def client_env(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands, and so of the job: an allow-list.

    SBATCH_*, SQUEUE_* and SLURM_* variables would change requests and formats behind the back of
    what a plan shows; whoever sets them writes them under `slurm:` instead.
    """
    kept = {"PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF"}
    chosen = {name: value for name, value in environ.items() if name in kept}
    return {"PATH": os.defpath, **chosen, "LC_ALL": "C.UTF-8", "TZ": "UTC0"}


def parse_jobs(text: str) -> list[JobStatus]:
    """Read lines of `squeue --format=%i|%T|%r|%N|%j`, or the same fields of sacct."""
    jobs: list[JobStatus] = []
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) != 5:
            raise TransientError(f"Slurm's list of jobs has a line that can't be read: {line!r}")
        job_id, raw, reason, nodes, name = fields
        named = nodes if nodes not in {"", "(null)", "None assigned"} else ""
        jobs.append(
            JobStatus(
                job_id=job_id,
                job_name=name,
                state=state_of(raw),
                raw=raw,
                nodes=expand(named),
                reason="" if reason == "None" else reason,
            )
        )
    return jobs


def parse_partitions(text: str) -> list[Partition]:
    """Read lines of `sinfo --format=%P|%N`; a partition has a line for each group of its nodes."""
    nodes: dict[str, set[str]] = {}
    default = ""
    for line in text.splitlines():
        name, _, hosts = line.partition("|")
        if name.endswith("*"):
            default = name = name[:-1]
        nodes.setdefault(name, set()).update(expand(hosts))
    return [
        Partition(name=name, default=name == default, nodes=frozenset(members))
        for name, members in nodes.items()
    ]


def parse_nodes(text: str) -> dict[str, NodeStatus]:
    """Read lines of `sinfo --Node --format=%N|%T|%E`; a node has a line for each partition."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition("|")
        raw, _, reason = rest.partition("|")
        found[name] = NodeStatus(
            name=name,
            state=re.sub(r"[^a-z_].*", "", raw.lower()),
            answers="*" not in raw,
            reason="" if reason.strip() == "none" else reason.strip(),
        )
    return found


def parse_down(text: str) -> frozenset[str]:
    """Nodes that are DOWN or don't answer, of `sinfo --Node --format=%N|%T`.

    A state may carry suffixes (sinfo(1), NODE STATE CODES); `*` says that the node does not
    answer. DRAIN is a person's wish, not a death.
    """
    down: set[str] = set()
    for line in text.splitlines():
        node, _, state = line.partition("|")
        if state.startswith("down") or "*" in state:
            down.add(node)
    return frozenset(down)


def refusal(error: str, argv: Sequence[str]) -> UserError:
    """What sbatch said on standard error, as one line that names the option to mend."""
    lines = error.strip().splitlines() or ["it did not say why"]
    message = next((line for line in reversed(lines) if "error:" in line), lines[0])
    lower = message.lower()
    said = message.removeprefix("sbatch: ").removeprefix("error: ")
    said = said.removeprefix("Batch job submission failed: ").strip()
    option = next((option for text, option in _REFUSALS if text in lower), None)
    given = [word for word in argv if option and word.startswith(tuple(_dashed(option)))]
    where = f"slurm: {option}" if option else "slurm"
    shown = f" (given: {' '.join(given)})" if given else ""
    return UserError(f"{where}: Slurm refused the job: {said}{shown}; mend it and launch again")


def _dashed(options: str) -> list[str]:
    return [f"--{word}=" for word in options.replace(",", " ").split() if word not in {"or", "of"}]


class Slurm:
    """The commands superv uses, each with a deadline in seconds."""

    def __init__(
        self, *, deadline_s: float = DEADLINE_S, env: Mapping[str, str] | None = None
    ) -> None:
        self.deadline_s = deadline_s
        self.env = client_env(os.environ if env is None else env)
        self._accounting: bool | None = None

    async def run(self, *argv: str, stdin: bytes | None = None) -> proc.Completed:
        """Run one command. TransientError: no answer. UserError: Slurm is not usable from here."""
        done = await self._run(*argv, stdin=stdin)
        lost = done.rc is None or done.rc < 0
        if lost or (done.rc != 0 and any(words in done.err.lower() for words in _UNANSWERED)):
            raise TransientError(done.why())
        return done

    async def _run(self, *argv: str, stdin: bytes | None = None) -> proc.Completed:
        done = await proc.run(argv, deadline_s=self.deadline_s, stdin=stdin, env=self.env)
        if done.rc == 127:
            raise UserError(f"{argv[0]} is not on PATH here: superv needs Slurm's client commands")
        if _UNCONFIGURED in done.err.lower():
            raise UserError(
                f"{argv[0]} finds no slurm.conf here: set SLURM_CONF or use a login node"
            )
        return done

    async def _ask(self, *argv: str) -> str:
        done = await self.run(*argv)
        if done.rc != 0:
            raise TransientError(done.why())
        return done.out

    async def jobs(
        self, *, name: str | None = None, ids: Collection[str] | None = None
    ) -> list[JobStatus]:
        """This user's jobs in slurmctld's memory: ended ones stay there for MinJobAge (300 s)."""
        argv = ["squeue", "--noheader", "--all", "--states=all", "--format=%i|%T|%r|%N|%j"]
        argv += [f"--user={os.getuid()}"] if ids is None else [f"--jobs={','.join(ids)}"]
        argv += [f"--name={name}"] if name is not None else []
        done = await self.run(*argv)
        if done.rc != 0 and _NO_SUCH_JOB in done.err.lower():
            return []
        if done.rc != 0:
            raise TransientError(done.why())
        return parse_jobs(done.out)

    async def accounting(self) -> bool:
        """Whether this cluster has accounting, and so sacct."""
        if self._accounting is None:
            text = await self._ask("scontrol", "show", "config")
            line = next(row for row in text.splitlines() if row.startswith("AccountingStorageType"))
            self._accounting = not line.endswith("/none") and "(null)" not in line
        return self._accounting

    async def past_jobs(self, *, ids: Collection[str] | None = None) -> list[JobStatus]:
        """This user's jobs of the last 30 days from accounting. Empty without accounting."""
        if not await self.accounting():
            return []
        argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
        argv += ["--format=JobIDRaw,State,Reason,NodeList,JobName"]
        argv += ["--starttime=now-30days", f"--user={os.getuid()}"]
        argv += [f"--jobs={','.join(ids)}"] if ids is not None else []
        return parse_jobs(await self._ask(*argv))

    async def partitions(self) -> list[Partition]:
        """All partitions with all their nodes."""
        return parse_partitions(await self._ask("sinfo", "--noheader", "--all", "--format=%P|%N"))

    async def nodes(self, names: Iterable[str] = ()) -> dict[str, NodeStatus]:
        """The nodes of these names, or all, with state and reason; unknown names are left out."""
        argv = ["sinfo", "--noheader", "--all", "--Node", "--format=%N|%T|%E"]
        wanted = compress(names)
        return parse_nodes(await self._ask(*argv, *([f"--nodes={wanted}"] if wanted else [])))

    async def drain(self, node: str, reason: str) -> str:
        """Drain a node; returns why not where Slurm refuses (no rights)."""
        return await self._update(node, "State=DRAIN", f"Reason={reason}")

    async def resume(self, node: str) -> str:
        """Lift a node's drain; returns why not where Slurm refuses."""
        return await self._update(node, "State=RESUME")

    async def _update(self, node: str, *settings: str) -> str:
        done = await self.run("scontrol", "update", f"NodeName={node}", *settings)
        return "" if done.rc == 0 else done.why()

    async def down(self, nodes: Iterable[str]) -> frozenset[str]:
        """Those of the nodes that Slurm reports DOWN or not answering."""
        wanted = compress(nodes)
        if not wanted:
            return frozenset()
        argv = ["sinfo", "--noheader", "--all", "--Node", "--format=%N|%T", f"--nodes={wanted}"]
        return parse_down(await self._ask(*argv))

    async def cancel(self, job: str) -> None:
        """End a job; one that is gone is no error."""
        done = await self.run("scancel", job)
        gone = (_NO_SUCH_JOB, "already completing or completed")
        if done.rc != 0 and not any(words in done.err.lower() for words in gone):
            raise TransientError(done.why())

    async def broadcast(self, job: str, source: str, path: str) -> None:
        """Copy a local file to every node of a running job, with its mode.

        Raises TransientError that names the nodes that did not get it; the others have it.
        """
        done = await self._run("sbcast", "--force", f"--jobid={job}", source, path)
        if done.rc == 0:
            return
        missed = _MISSED.findall(done.err)
        if not missed:
            raise TransientError(done.why())
        named = compress(node for node, _ in missed)
        raise TransientError(f"sbcast of {path} in job {job}: not on {named}: {missed[0][1]}")
