"""What Slurm says of nodes, and the way to ask each of them that follows from it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import StrEnum

from launchers.slurm import Slurm
from launchers.slurm_rows import SlurmNode
from supervisor.core import names
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import compress, expand

# sinfo(1), NODE STATE CODES, long and without suffix.
FREE = {"idle", "planned"}
BUSY = {"allocated", "completing", "draining", "blocked"}
AWAY = {"powered_down", "powering_down", "powering_up", "power_up", "power_down"}
_SUFFIX = {"~": "powered down", "#": "powering up", "!": "powering down", "%": "powering down"}
_SUFFIX |= {"@": "about to reboot", "^": "rebooting"}


class Transport(StrEnum):
    """How a node was asked."""

    SRUN = "srun"
    SSH = "ssh"
    AGENT = "agent"  # of the run that has the node
    NONE = "none"  # left alone


def transport_for(node: SlurmNode) -> tuple[Transport | None, str]:
    """How to ask a node, and why; None: others use a part of it, the rest may be free."""
    for suffix, words in _SUFFIX.items():
        if suffix in node.state:
            return Transport.NONE, words
    word = node.word
    if word in AWAY:
        return Transport.NONE, word.replace("_", " ")
    if word in BUSY:
        return Transport.NONE, word
    if not node.answers and word != "down":
        return Transport.SSH, "it does not respond"
    if word in FREE:
        return Transport.SRUN, ""
    if word == "mixed":
        return (None, "") if node.idle_cpus else (Transport.NONE, "all of its cores are in use")
    return Transport.SSH, word


async def look_up(
    slurm: Slurm, nodes: Sequence[str], partition: str | None = None
) -> dict[str, SlurmNode]:
    """The nodes, or all of a partition. Raises UserError for an unknown partition."""
    found = await slurm.settled_nodes(nodes, partition=partition)
    if partition and not found and not nodes:
        known = ", ".join(sorted(p.name for p in await slurm.partitions()))
        raise UserError(f"no partition {partition!r} with nodes; there: {known}")
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


async def holders(slurm: Slurm, nodes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """By node: the user's own run that holds it (or nothing), and who holds it in words.

    Nodes of which Slurm does not say it are left out.
    """
    argv = ["--states=RUNNING,COMPLETING,SUSPENDED,CONFIGURING", f"--nodelist={compress(nodes)}"]
    try:
        rows = await slurm.queue("%i|%U|%u|%N|%j", *argv)
    except TransientError:
        return {}
    found: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row.count("|") < 4:
            continue
        job, uid, user, held, name = row.split("|", 4)
        named = names.run_of(name)
        mine = named is not None and uid == str(os.getuid())
        run = named[0] if named and mine else ""
        text = f"busy: job {job} of {user}"
        if named:
            text = f"in run {named[0]} of {user} (job {job}): its agents watch it"
        for node in expand(held):
            found.setdefault(node, (run, text))
    return found
