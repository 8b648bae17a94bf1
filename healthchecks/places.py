"""What Slurm says of nodes, and the way to ask each of them that follows from it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from launchers.slurm import Slurm
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress, expand

# sinfo(1), NODE STATE CODES, long and without suffix.
FREE = {"idle", "planned"}
BUSY = {"allocated", "completing", "draining", "blocked"}
AWAY = {"powered_down", "powering_down", "powering_up", "power_up", "power_down"}
_SUFFIX = {"~": "powered down", "#": "powering up", "!": "powering down", "%": "powering down"}
_SUFFIX |= {"@": "about to reboot", "^": "rebooting"}


class Way(StrEnum):
    """How a node was asked."""

    SRUN = "srun"
    SSH = "ssh"
    AGENT = "agent"  # of the run that has the node
    NONE = "none"  # left alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node as Slurm sees it at this moment."""

    name: str
    state: str  # as sinfo writes it, with its suffix
    partitions: tuple[str, ...]  # the default one first
    gres: str  # all that it has
    idle_cpus: int
    reason: str = ""  # of a drain or a death

    @property
    def word(self) -> str:
        return re.sub(r"[^a-z_].*", "", self.state)

    @property
    def answers(self) -> bool:
        """Whether its slurmd answers, as far as Slurm knows."""
        return "*" not in self.state and self.word not in ("down", "unknown")


def way(place: Place) -> tuple[Way | None, str]:
    """How to ask a node, and why; None: others use a part of it, the rest may be free."""
    for suffix, words in _SUFFIX.items():
        if suffix in place.state:
            return Way.NONE, words
    word = place.word
    if word in AWAY:
        return Way.NONE, word.replace("_", " ")
    if word in BUSY:
        return Way.NONE, word
    if not place.answers and word != "down":
        return Way.SSH, "it does not respond"
    if word in FREE:
        return Way.SRUN, ""
    if word == "mixed":
        return (None, "") if place.idle_cpus else (Way.NONE, "all of its cores are in use")
    return Way.SSH, word


async def look_up(
    slurm: Slurm, nodes: Sequence[str], partition: str | None = None
) -> dict[str, Place]:
    """The nodes, or all of a partition. Raises UserError for an unknown partition."""
    argv = ["sinfo", "--noheader", "--Node", "--format=%N|%P|%T|%C|%G|%E"]
    argv += [f"--nodes={compress(nodes)}"] if nodes else []
    argv += [f"--partition={partition}"] if partition else ["--all"]  # not both
    done = await slurm.run(*argv)
    if done.rc != 0:
        raise TransientError(done.why())
    found = parse_places(done.out)
    if partition and not found and not nodes:
        known = ", ".join(sorted(p.name for p in await slurm.partitions()))
        raise UserError(f"no partition {partition!r} with nodes; there: {known}")
    return found


def parse_places(text: str) -> dict[str, Place]:
    """Read lines of `sinfo --Node --format=%N|%P|%T|%C|%G|%E`: one for each node and partition."""
    found: dict[str, Place] = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) != 6:
            raise TransientError(f"Slurm's list of nodes has a line that can't be read: {line!r}")
        name, partition, state, cpus, gres, reason = fields
        earlier = found[name].partitions if name in found else ()
        one = (partition.rstrip("*"),)
        found[name] = Place(
            name=name,
            state=state.lower(),
            partitions=(*one, *earlier) if partition.endswith("*") else (*earlier, *one),
            gres="" if gres in ("(null)", "") else re.sub(r"\([^)]*\)", "", gres),
            idle_cpus=int(cpus.split("/")[1]),
            reason="" if reason.strip() in ("none", "(null)") else reason.strip(),
        )
    return found


async def gpus_used(slurm: Slurm, nodes: Sequence[str]) -> set[str]:
    """Those of the nodes on which a GPU is in use; all of them where Slurm does not say."""
    if not nodes:
        return set()
    argv = ("sinfo", "--noheader", "--Node", f"--nodes={compress(nodes)}")
    try:
        done = await slurm.run(*argv, "--Format=NodeList:128,GresUsed:256")
    except TransientError:
        return set(nodes)
    if done.rc != 0:
        return set(nodes)
    rows = (line.split(maxsplit=1) for line in done.out.splitlines() if line.strip())
    return {row[0] for row in rows if re.search(r"gpu(:[\w-]+)?:[1-9]", " ".join(row[1:]))}


_RUN = re.compile(r"superv-(?P<run>.+)-[0-9a-f]{6}-\d+")  # an allocation's name: core/placement.py


async def holders(slurm: Slurm, nodes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By node: the user's own run that holds it (or nothing), and who holds it in words.

    Nodes of which Slurm does not say it are left out.
    """
    argv = ["squeue", "--noheader", "--all", "--states=RUNNING,COMPLETING,SUSPENDED,CONFIGURING"]
    argv += ["--format=%i|%U|%u|%N|%j", f"--nodelist={compress(nodes)}"]
    try:
        done = await slurm.run(*argv)
    except TransientError:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for line in done.out.splitlines():
        job, uid, user, held, name = line.split("|", 4)
        named = _RUN.fullmatch(name)
        mine = named is not None and uid == str(os.getuid())
        run = named["run"] if named and mine else ""
        text = f"busy: job {job} of {user}"
        if named:
            text = f"in run {named['run']} of {user} (job {job}): its agents watch it"
        for node in expand(held):
            found.setdefault(node, (run, text))
    return found
