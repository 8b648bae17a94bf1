"""Slurm as seen from the engine's machine: its tools, the settings that matter, the partition."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from healthchecks.frame.report import Finding
from launchers.pyslurm_client import PyslurmClient
from launchers.slurm import Slurm
from launchers.slurm_answers import AwayError
from launchers.slurm_rows import Partition
from supervisor.config import Job
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress
from supervisor.doctor.finding import fail, ok, unknown, warn

ASK_S = 10.0
TOOLS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun", "sbcast")
ASK = "see what `scontrol show config` says here"
PYSLURM_FIX = (
    "build pyslurm for this Slurm (docs/pyslurm.md), or drop pyslurm_python from site.yaml"
)
OLDEST = (20, 11)  # srun --overlap came with it
TESTED = ("22.05", "24.11", "26.05")  # docs/slurm-versions.md: what was tried on each


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A line of `scontrol show config`, and what superv has to do with it."""

    key: str
    why: str
    problem: Callable[[str], str] = lambda value: ""  # empty: none
    fix: str = ""


def at_least(least: int, what: str) -> Callable[[str], str]:
    """A problem where the number that the value begins with is smaller."""

    def problem(value: str) -> str:
        number = re.match(r"\d+", value)
        return what if number is None or int(number[0]) < least else ""

    return problem


def has(word: str, what: str) -> Callable[[str], str]:
    return lambda value: what if word.lower() in value.lower() else ""


# Meanings: slurm.conf(5) of 22.05.
SETTINGS = (
    Setting(
        key="SlurmdTimeout",
        why="Slurm takes a silent node for dead after this; superv's agents need seconds",
        problem=at_least(1, "Slurm never takes a node for dead: allocations keep lost nodes"),
        fix="set SlurmdTimeout, for example to 300",
    ),
    Setting(
        key="KillWait",
        why="at the end of a job an agent has this long to stop its ranks",
        problem=at_least(15, "an agent gives its ranks 10 s to end, and may be killed before"),
        fix="set KillWait to 30",
    ),
    Setting(
        key="UnkillableStepTimeout",
        why="a node on which a process can't be killed (hung storage) is drained after this",
        problem=at_least(60, "a node is drained where storage hangs for this long only"),
        fix="set UnkillableStepTimeout to 120 or more",
    ),
    Setting(
        key="MinJobAge",
        why="an ended job is remembered for so long; after that only accounting knows it",
        problem=at_least(60, "an engine that was away for longer can't tell how its job ended"),
        fix="set MinJobAge to 300",
    ),
    Setting(
        key="MaxStepCount",
        why="every agent that is started again is a step of the job",
        problem=at_least(1000, "a job of months may run out of steps"),
        fix="set MaxStepCount to 40000",
    ),
    Setting(
        key="PrologFlags",
        why="how prologs run when an allocation begins",
        problem=has("Serial", "prologs run one after the other: many nodes begin slowly"),
        fix="leave Serial out of PrologFlags",
    ),
    Setting(
        key="ProctrackType",
        why="how Slurm finds a job's processes",
        problem=lambda value: (
            "" if "cgroup" in value else "a process that detaches itself outlives its job"
        ),
        fix="set ProctrackType to proctrack/cgroup; until then superv's agents sweep by themselves",
    ),
    Setting(key="TaskPlugin", why="the agent step asks for a whole node, unbound"),
    Setting(key="SelectType", why="superv asks for whole nodes (exclusive)"),
    Setting(key="JobRequeue", why="no effect: superv submits with --no-requeue"),
    Setting(key="PropagateResourceLimits", why="no effect: superv submits with --propagate=NONE"),
    Setting(
        key="AccountingStorageType",
        why="it tells how a job ended that slurmctld has forgotten",
        problem=lambda value: (
            "without accounting a job that slurmctld forgot is UNKNOWN"
            if value in ("", "(null)") or value.endswith("/none")
            else ""
        ),
        fix="run slurmdbd, or let no engine be away for longer than MinJobAge",
    ),
)


async def look(job: Job | None, *, deadline_s: float = ASK_S) -> list[Finding]:
    """Tools, settings and the job's partition."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    fix = "use a login node, put Slurm's commands on PATH, or write launcher: local for a trial"
    if missing:
        return [fail("slurm", f"not on PATH: {', '.join(missing)}", fix)]
    slurm = Slurm(deadline_s=deadline_s)
    try:
        done = await slurm.run("scontrol", "show", "config")
        partitions = await slurm.partitions()
    except UserError as error:
        return [fail("slurm", str(error), fix)]
    except AwayError as error:
        return [unknown("slurm", error.seen, f"{error.fix}; ask again")]
    except TransientError as error:
        return [unknown("slurm", str(error), f"{ASK}; ask again")]
    if done.rc != 0:
        return [unknown("slurm", done.why(), f"{ASK}; ask again")]
    config = parse(done.out)
    found = [_version(config.get("SLURM_VERSION", ""))]
    found += [judge(setting, config) for setting in SETTINGS]
    found += await _partition(slurm, job, partitions)
    return found


async def reader(python: str, *, deadline_s: float = ASK_S) -> Finding:
    """Whether pyslurm of site.yaml's `pyslurm_python` reads this Slurm."""
    check = "pyslurm"
    try:
        with contextlib.closing(PyslurmClient(python, deadline_s=deadline_s)) as client:
            version = await client.version()
            nodes = len(await client.nodes())
    except (TransientError, UserError) as error:
        return fail(check, str(error), PYSLURM_FIX)
    return ok(check, f"{version} reads this Slurm ({nodes} nodes)")


def parse(text: str) -> dict[str, str]:
    """Keys and values of `scontrol show config`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _version(version: str) -> Finding:
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) != 2:
        return unknown("slurm", f"it answers, but reports no version ({version!r})")
    if numbers < OLDEST:
        text = f"Slurm {version}: superv needs srun --overlap, which came with 20.11"
        return fail("slurm", text, "use a newer Slurm")
    tested = "tested on" if version.startswith(TESTED) else "not tested on it, but on"
    return ok("slurm", f"Slurm {version} answers (superv is {tested} {', '.join(TESTED)})")


def judge(setting: Setting, config: dict[str, str]) -> Finding:
    """What a setting's value means."""
    check = setting.key
    if setting.key not in config:
        return unknown(check, f"not reported by this Slurm; {setting.why}")
    value = config[setting.key]
    problem = setting.problem(value)
    if problem:
        return warn(check, f"{value}: {problem}", setting.fix)
    return ok(check, f"{value}: {setting.why}")


async def _partition(slurm: Slurm, job: Job | None, partitions: list[Partition]) -> list[Finding]:
    known = {partition.name: partition for partition in partitions}
    names = job.slurm.get("partition", "") if job else ""
    asked = [name for name in names.split(",") if name] or [p.name for p in partitions if p.default]
    check, valid = "partition", ", ".join(sorted(known)) or "none"
    if not asked:
        text = f"no partition is asked for and none is the default; there: {valid}"
        return [fail(check, text, "write slurm: {partition: …} into the job file")]
    if unheard := [name for name in asked if name not in known]:
        text = f"{unheard[0]!r} is unknown; there: {valid}"
        return [fail(check, text, "fix slurm.partition in the job file")]
    found = []
    wanted, least = (job.nodes + job.spares, job.nodes) if job else (1, 1)
    for name in asked:
        nodes = known[name].nodes
        if len(nodes) < least:
            text = f"{name} has {len(nodes)} nodes, the job needs {least}"
            found.append(fail(check, text, "ask for fewer nodes, or another partition"))
            continue
        if len(nodes) < wanted:
            text = f"{name} has {len(nodes)} nodes, the job wants {wanted}: it gets fewer spares"
            found.append(warn(check, text, "ask for fewer spares, or another partition"))
            continue
        found.append(await _usable(slurm, name, len(nodes), wanted))
    return found


async def _usable(slurm: Slurm, name: str, size: int, wanted: int) -> Finding:
    """How many of a partition's nodes could run something."""
    try:
        nodes = await slurm.settled_nodes(partition=name)
    except (TransientError, UserError) as error:
        return unknown("partition", f"{name}: {error}")
    good = ("idle", "mixed", "allocated", "completing", "reserved", "planned")
    bad = [n.name for n in nodes.values() if not n.word.startswith(good) or not n.answers]
    text = f"{name}: {size} nodes, {size - len(bad)} usable, {wanted} wanted"
    if size - len(bad) < wanted:
        fix = f"see `sinfo -R -n {compress(bad)}`; the job waits until they are back"
        return warn("partition", text, fix)
    return ok("partition", text + (f" (not {compress(bad)})" if bad else ""))


def step_options(job: Job | None) -> list[str]:
    """The job's options that decide whether and where a probe's step may run."""
    chosen = ("partition", "account", "qos", "reservation", "constraint")
    given = dict(job.slurm) if job else {}
    return [f"--{name}={given[name]}" for name in chosen if name in given]
