"""What Slurm's commands print about jobs, partitions and nodes, as values. Text in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from supervisor.core.errors import TransientError
from supervisor.core.nodeset import expand
from supervisor.core.ports import JobState, JobStatus

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
NODE_FORMAT = "%N|%P|%T|%C|%G|%E"  # CPUs: allocated/idle/other/total
# What slurmctld adds to the reason that a node has, behind ` : `: set_node_reason in node_mgr.c,
# called in ping_nodes.c and power_save.c (24.11.5, 26.05.3). A person's replaces all of it.
_ADDED = (
    *("Not responding", "ResumeTimeout reached"),
    *("reboot issued", "reboot complete", "reboot timed out"),
)
_WITH_REASON = ("drain", "down", "fail", "error", "inval", "reboot", "maint")
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
    reason: str = ""  # as Slurm has it
    complete: frozenset[str] = frozenset()  # of a drained one: sinfo's StateComplete, in parts

    @property
    def word(self) -> str:
        """The state without its suffixes (sinfo(1), NODE STATE CODES)."""
        return re.sub(r"[^a-z_].*", "", self.state)

    @property
    def given_reason(self) -> str:
        """Why somebody drained the node, without what slurmctld has added; else why it is out.

        Empty where it is in service: Slurm 24.11 without accounting keeps the reason of a drain
        that was lifted, and adds to it when the node dies.
        """
        if not self.down and not self.word.startswith(_WITH_REASON):
            return ""
        given = given_reason(self.reason)
        if self.drains or given == self.reason:
            return given
        return self.reason.rpartition(" : ")[2].strip()

    @property
    def answers(self) -> bool:
        """Whether its slurmd answers, as far as Slurm knows."""
        return not self.down and self.word != "unknown"

    @property
    def passing(self) -> bool:
        """Whether this state may be gone in a moment: `idle*` after a drain was lifted, unknown
        after a reconfiguration (22.05 to 26.05, under a second)."""
        return ("*" in self.state and self.word != "down") or self.word == "unknown"

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
    def silent(self) -> bool:
        """Not responding at this moment. A drained node that was silent and is back is not, and is
        still down (`down+drain`) until its drain is lifted."""
        return "*" in self.state or "not_responding" in self.complete

    @property
    def drains(self) -> bool:
        """Drained, or about to be once its job has ended."""
        return self.state.startswith("drain")


def given_reason(reason: str) -> str:
    """A reason without what slurmctld has added to it.

    >>> given_reason("superv: gpu.count: 7 of 8 GPUs : Not responding : reboot issued")
    'superv: gpu.count: 7 of 8 GPUs'
    """
    parts = reason.split(" : ")
    while len(parts) > 1 and parts[-1].strip() in _ADDED:
        parts.pop()
    return " : ".join(parts)


def state_of(raw: str) -> JobState:
    """What a state's first word means: `CANCELLED by 1000`, `COMPLETED+` are known; new ones not.

    >>> state_of("CANCELLED by 1000"), state_of("HIBERNATING")
    (<JobState.CANCELLED: 'cancelled'>, <JobState.UNKNOWN: 'unknown'>)
    """
    words = raw.split()
    return _STATES.get(words[0].rstrip("+").upper() if words else "", JobState.UNKNOWN)


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


def expanded(hosts: str) -> tuple[str, ...]:
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
                nodes=expanded(named),
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
        nodes.setdefault(name, set()).update(expanded(hosts))
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


def parse_time(text: str) -> float | None:
    """A time of Slurm's client, which is asked for UTC, in seconds since the epoch.

    None where it says none: N/A, Unknown, NONE.
    """
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


# What sinfo writes behind a word for a flag of the complete state, the first that holds
# (node_state_string in slurm_protocol_defs.c, 24.11.5).
_SUFFIXES = (
    *(("maintenance", "$"), ("reboot_requested", "@"), ("reboot_issued", "^")),
    *(("powering_up", "#"), ("power_down", "!"), ("powering_down", "%"), ("powered_down", "~")),
    ("not_responding", "*"),
)
_IN_USE = ("allocated", "mixed")


def node_of_complete(
    *,
    name: str,
    complete: str,
    partitions: tuple[str, ...],
    gres: str,
    idle_cpus: int,
    reason: str,
) -> SlurmNode:
    """A node by its complete state, as libslurm writes it: IDLE+DRAIN+NOT_RESPONDING.

    >>> node_of_complete(name="n1", complete="MIXED+DRAIN+NOT_RESPONDING", partitions=("main",),
    ...     gres="gpu:8", idle_cpus=0, reason="fan").state
    'draining*'
    """
    base, *rest = complete.lower().split("+")
    flags = {*rest}
    used = base in _IN_USE or "completing" in flags
    if "drain" in flags:
        word = "draining" if used else "drained"
    elif "fail" in flags:
        word = "failing" if used else "fail"
    elif "maintenance" in flags and base not in (*_IN_USE, "down"):
        word = "maint"
    elif "invalid_reg" in flags:
        word = "inval"
    else:
        usually = {"completing", "reserved", "planned", "blocked"} if base == "idle" else set()
        word = next(iter(sorted(usually & flags)), base)
    suffix = next((sign for flag, sign in _SUFFIXES if flag in flags), "")
    return SlurmNode(
        name=name,
        state=word + suffix,
        partitions=partitions,
        gres=gres,
        idle_cpus=0 if "drain" in flags or base == "down" else idle_cpus,  # as sinfo counts
        reason=reason,
        complete=frozenset((base, *flags)) if "drain" in flags and suffix != "*" else frozenset(),
    )
