"""What Slurm offers a new job: partitions with their nodes and GPUs, and the user's account."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass

from launchers.slurm import Slurm
from supervisor.core.errors import TransientError, UserError

ASK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedPartition:
    """A partition, as far as a job file asks."""

    name: str
    default: bool
    nodes: int
    gres: str  # of most of its nodes, as `gpu:8`; empty: none
    time: str  # the longest; empty: no limit

    @property
    def gpus(self) -> int:
        """GPUs of a node; 0 where Slurm knows of none."""
        found = re.search(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)", self.gres)
        return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What was answered; `why` says why nothing was."""

    partitions: Sequence[OfferedPartition] = ()
    account: str = ""
    why: str = ""


async def ask(*, deadline_s: float = ASK_S) -> Offered:
    """Ask this machine's Slurm. Never raises for a Slurm that is away."""
    slurm = Slurm(deadline_s=deadline_s)
    try:
        done = await slurm.run("sinfo", "--noheader", "--format=%P|%D|%G|%l|%a")
    except (UserError, TransientError) as error:
        return Offered(why=str(error))
    if done.rc != 0:
        return Offered(why=done.why())
    return Offered(partitions=parse(done.out), account=await _account(slurm))


def parse(rows: str) -> list[OfferedPartition]:
    """Rows of sinfo: a partition may have several, one for each kind of its nodes."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    limits: dict[str, str] = {}
    defaults = set()
    for row in rows.splitlines():
        cells = row.split("|")
        if len(cells) != 5 or not cells[1].isdecimal() or cells[4] != "up":
            continue
        name = cells[0].removesuffix("*")
        if cells[0].endswith("*"):
            defaults.add(name)
        gres = re.sub(r"\([^)]*\)", "", cells[2])
        kinds.setdefault(name, []).append((int(cells[1]), "" if gres == "null" else gres))
        limits[name] = "" if cells[3] in ("infinite", "n/a") else cells[3]
    return [
        OfferedPartition(
            name=name,
            default=name in defaults,
            nodes=sum(count for count, _ in kind),
            gres=max(kind)[1],
            time=limits[name],
        )
        for name, kind in kinds.items()
    ]


async def _account(slurm: Slurm) -> str:
    """The user's default account; empty where there is no accounting, or it does not answer."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        argv = ("sacctmgr", "--noheader", "--parsable2", "show", "user", user)
        done = await slurm.run(*argv, "format=DefaultAccount")
    except (KeyError, UserError, TransientError):
        return ""
    return done.out.strip().splitlines()[0] if done.rc == 0 and done.out.strip() else ""
