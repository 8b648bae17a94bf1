"""A thin client of Slurm's command line tools: it asks and reads, and decides nothing.

Every call has a deadline. A call that fails or does not answer is TransientError: not an answer,
never "gone". The formats asked for are squeue's and sinfo's `--format`, which are the same in all
versions since 20.11; `--json` changes its shape between versions.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from launchers.slurm_answers import UNCONFIGURED, is_away
from supervisor import proc
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress, expand
from supervisor.core.ports import JobState, JobStatus
from supervisor.host import trusted

DEADLINE_S = 30.0

# Job states: squeue(1) and sacct(1), JOB STATE CODES. COMPLETING hides how the job ended, and its
# nodes are not free yet: it counts as running until it has a final state.
_WORDS = {
    JobState.PENDING: (
        "PENDING EXPEDITING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD"
    ),
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

_OUT_OF_SERVICE = ("fail", "failing", "error", "inval", "future", "maint", "down", "unknown")
_MISSED = re.compile(r"REQUEST_FILE_BCAST\(([^)]+)\): (.+)")
_NO_SUCH_JOB = "invalid job id specified"
_NODE_FORMAT = "%N|%P|%T|%C|%G|%E"  # CPUs: allocated/idle/other/total
_NODE = re.compile(r"([^|]+)\|([^|]*)\|([^|]+)\|\d+/(\d+)/\d+/\d+\|([^|]*)\|(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition with all its nodes, whatever their state."""

    name: str
    default: bool
    nodes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmNode:
    """A node as Slurm sees it at this moment."""

    name: str
    state: str  # as sinfo writes it, with its suffixes: idle, mixed~, down*, drained …
    partitions: tuple[str, ...] = ()  # the default one first
    gres: str = ""  # all that it has
    idle_cpus: int = 0
    reason: str = ""  # of a drain or a death
    complete: frozenset[str] = frozenset()  # of a drained one: sinfo's StateComplete, in parts

    @property
    def word(self) -> str:
        """The state without its suffixes (sinfo(1), NODE STATE CODES)."""
        return re.sub(r"[^a-z_].*", "", self.state)

    @property
    def answers(self) -> bool:
        """Whether its slurmd answers, as far as Slurm knows."""
        return not self.down and self.word != "unknown"

    @property
    def in_service(self) -> bool:
        """Whether jobs may run there by and by, now in use or powered off."""
        return self.answers and not self.drains and self.word not in _OUT_OF_SERVICE

    @property
    def down(self) -> bool:
        """DOWN, or not answering (`*`). DRAIN is a person's wish, not a death, and may hide one."""
        said = {self.word, *self.complete}
        return "*" in self.state or not said.isdisjoint(("down", "not_responding"))

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

    Raises UserError where root would read a slurm.conf of a user's: it names plugins to load.
    """
    if (conf := environ.get("SLURM_CONF")) and (why := trusted.problem(conf, sticky=True)):
        raise UserError(f"SLURM_CONF: {conf} is not used as root: {why}")
    kept = {"PATH", "HOME", "USER", "LOGNAME", "SLURM_CONF"}
    chosen = {name: value for name, value in environ.items() if name in kept}
    if "PATH" in chosen and os.geteuid() == 0:  # sudo may keep a user's: root runs no sinfo of his
        chosen["PATH"] = ":".join(trusted.folders(environ)[0]) or os.defpath
    return {"PATH": os.defpath, **chosen, "LC_ALL": "C.UTF-8", "TZ": "UTC0"}


def lines(text: str) -> list[str]:
    """Slurm ends lines with LF alone; str.splitlines knows ten other ends, which names may hold."""
    return text.removesuffix("\n").split("\n") if text else []


def marked_rows(text: str, mark: str) -> list[str]:
    """The rows of a table whose every row begins with `mark|`, without it.

    A job's name is its user's choice, and may hold line ends: what has no mark belongs to the row
    before. Raises TransientError where the first line has none.
    """
    start = f"{mark}|"
    if text and not text.startswith(start):
        line = text.partition("\n")[0]
        raise TransientError(f"Slurm's list of jobs has a line that can't be read: {line!r}")
    return text.removeprefix(start).removesuffix("\n").split(f"\n{start}") if text else []


def _expanded(hosts: str) -> tuple[str, ...]:
    """Raises TransientError where Slurm's list of nodes is none: "(null)", half a bracket."""
    try:
        return expand(hosts)
    except ValueError as error:
        raise TransientError(f"Slurm named nodes that can't be read: {error}") from None


def parse_jobs(rows: Iterable[str]) -> list[JobStatus]:
    """Read rows of squeue's `%i|%T|%r|%N|%j`, or the same fields of sacct."""
    jobs: list[JobStatus] = []
    for line in rows:
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
                nodes=_expanded(named),
                reason="" if reason == "None" else reason,
            )
        )
    return jobs


def parse_partitions(text: str) -> list[Partition]:
    """Read lines of `sinfo --format=%P|%N`; a partition has a line for each group of its nodes."""
    nodes: dict[str, set[str]] = {}
    default = ""
    for line in lines(text):
        name, _, hosts = line.partition("|")
        if name.endswith("*"):
            default = name = name[:-1]
        nodes.setdefault(name, set()).update(_expanded(hosts))
    return [
        Partition(name=name, default=name == default, nodes=frozenset(members))
        for name, members in nodes.items()
    ]


def parse_nodes(text: str) -> dict[str, SlurmNode]:
    """Read lines of `sinfo --Node --format=%N|%P|%T|%C|%G|%E`: one for each node and partition."""
    found: dict[str, SlurmNode] = {}
    for line in lines(text):
        match = _NODE.fullmatch(line)
        if match is None:
            raise TransientError(f"Slurm's list of nodes has a line that can't be read: {line!r}")
        name, partition, state, idle, gres, reason = match.groups()
        earlier = found[name].partitions if name in found else ()
        one = (partition.rstrip("*"),)
        found[name] = SlurmNode(
            name=name,
            state=state.lower(),
            partitions=(*one, *earlier) if partition.endswith("*") else (*earlier, *one),
            gres="" if gres == "(null)" else re.sub(r"\([^)]*\)", "", gres),
            idle_cpus=int(idle),
            reason="" if reason.strip() in ("none", "(null)") else reason.strip(),
        )
    return found


class Slurm:
    """The commands superv uses, each with a deadline in seconds."""

    def __init__(
        self,
        *,
        deadline_s: float = DEADLINE_S,
        env: Mapping[str, str] | None = None,
        run: proc.Runner = proc.run,
    ) -> None:
        self.deadline_s = deadline_s
        self._command = run
        self.env = client_env(os.environ if env is None else env)
        self._accounting: bool | None = None

    async def run(
        self, *argv: str, stdin: bytes | None = None, more_env: Mapping[str, str] | None = None
    ) -> proc.Completed:
        """Run one command. TransientError: no answer. UserError: Slurm is not usable from here."""
        done = await self._run(*argv, stdin=stdin, more_env=more_env)
        lost = done.rc is None or done.rc < 0
        if lost or (done.rc != 0 and is_away(done.err)):
            hint = ""
            if UNCONFIGURED in done.err.lower():
                hint = " (where that lasts, set SLURM_CONF or use a login node)"
            raise TransientError(done.why() + hint)
        return done

    async def _run(
        self, *argv: str, stdin: bytes | None = None, more_env: Mapping[str, str] | None = None
    ) -> proc.Completed:
        env = self.env if not more_env else {**(self.env or os.environ), **more_env}
        done = await self._command(argv, deadline_s=self.deadline_s, stdin=stdin, env=env)
        if done.rc == 127 and not is_away(done.err):
            left_out = trusted.folders(os.environ)[1] if os.geteuid() == 0 else []
            why = f" ({'; '.join(left_out)})" if left_out else ""
            raise UserError(
                f"{argv[0]} is not on PATH here: superv needs Slurm's client commands{why}"
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
        argv = ["--states=all"]
        argv += [f"--user={os.getuid()}"] if ids is None else [f"--jobs={','.join(ids)}"]
        argv += [f"--name={name}"] if name is not None else []
        return parse_jobs(await self.queue("%i|%T|%r|%N|%j", *argv))

    async def queue(self, fields: str, *options: str) -> list[str]:
        """Rows of squeue; fields are divided by `|`, and one that may hold anything comes last.

        Each row begins with a mark that nobody knows before: it is not in the arguments, which all
        users of this machine can see. So no user's job can be named to look like rows of others.
        """
        mark = secrets.token_hex(8)
        done = await self.run(
            *("squeue", "--noheader", "--all", *options),
            more_env={"SQUEUE_FORMAT": f"{mark}|{fields}"},
        )
        if done.rc != 0 and _NO_SUCH_JOB in done.err.lower():
            return []
        if done.rc != 0:
            raise TransientError(done.why())
        return marked_rows(done.out, mark)

    async def accounting(self) -> bool:
        """Whether this cluster has accounting, and so sacct."""
        if self._accounting is None:
            text = await self._ask("scontrol", "show", "config")
            found = [row for row in text.splitlines() if row.startswith("AccountingStorageType")]
            if not found:
                raise TransientError("scontrol show config does not say AccountingStorageType")
            self._accounting = not found[0].endswith("/none") and "(null)" not in found[0]
        return self._accounting

    async def past_jobs(self, *, ids: Collection[str] | None = None) -> list[JobStatus]:
        """This user's jobs of the last 30 days from accounting. Empty without accounting."""
        if not await self.accounting():
            return []
        argv = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
        argv += ["--format=JobIDRaw,State,Reason,NodeList,JobName"]
        argv += ["--starttime=now-30days", f"--user={os.getuid()}"]
        argv += [f"--jobs={','.join(ids)}"] if ids is not None else []
        return parse_jobs(lines(await self._ask(*argv)))

    async def partitions(self) -> list[Partition]:
        """All partitions with all their nodes."""
        return parse_partitions(await self._ask("sinfo", "--noheader", "--all", "--format=%P|%N"))

    async def nodes(
        self, names: Iterable[str] = (), *, partition: str | None = None
    ) -> dict[str, SlurmNode]:
        """The nodes of these names, or of a partition, or all; unknown names are left out."""
        argv = ["sinfo", "--noheader", "--Node", f"--format={_NODE_FORMAT}"]
        argv += [f"--partition={partition}"] if partition else ["--all"]  # not both
        wanted = compress(names)
        found = parse_nodes(await self._ask(*argv, *([f"--nodes={wanted}"] if wanted else [])))
        if drained := [name for name, node in found.items() if node.drains and not node.down]:
            # A node that died and was drained then is `drained`: only its complete state says both.
            argv = ["sinfo", "--noheader", "--all", "--Node", f"--nodes={compress(drained)}"]
            rows = (await self._ask(*argv, "--Format=NodeList:256,StateComplete:256")).splitlines()
            for name, state in (row.split() for row in rows if len(row.split()) == 2):
                if name in found:
                    parts = frozenset(state.lower().split("+"))
                    found[name] = replace(found[name], complete=parts)
        return found

    async def drain(self, node: str, reason: str) -> str:
        """Drain a node; returns why not where Slurm refuses (no rights)."""
        return await self._update(node, "State=DRAIN", f"Reason={reason}")

    async def resume(self, node: str) -> str:
        """Lift a node's drain; returns why not where Slurm refuses."""
        return await self._update(node, "State=RESUME")

    async def _update(self, node: str, *settings: str) -> str:
        done = await self.run("scontrol", "update", f"NodeName={node}", *settings)
        return "" if done.rc == 0 else done.why()

    async def nodes_of(self, names: Collection[str]) -> dict[str, SlurmNode]:
        """The nodes of these names alone."""
        return await self.nodes(names) if names else {}

    async def cancel(self, job: str) -> None:
        """End a job; one that is gone is no error."""
        done = await self.run("scancel", job)
        gone = (_NO_SUCH_JOB, "already completing or completed")
        if done.rc != 0 and not any(words in done.err.lower() for words in gone):
            raise TransientError(done.why())

    async def broadcast(self, job: str, source: str, path: str, *, replace: bool = False) -> None:
        """Copy a local file to a new name on every node of a running job, with its mode.

        `replace`: the name may be taken, as in jobs of superv 0.1. Without --force slurmd refuses
        a name that is taken: with it, it opens the file that is there, whoever made it, fills it
        and gives it to the user (22.05 to 26.05).
        Raises TransientError that names the nodes that did not get it; the others have it.
        """
        force = ("--force",) if replace else ()
        done = await self._run("sbcast", *force, f"--jobid={job}", source, path)
        if done.rc == 0:
            return
        missed = _MISSED.findall(done.err)
        if not missed:
            raise TransientError(done.why())
        named = compress(node for node, _ in missed)
        raise TransientError(f"sbcast of {path} in job {job}: not on {named}: {missed[0][1]}")
