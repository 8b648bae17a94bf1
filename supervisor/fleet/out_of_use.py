"""Nodes that can't be used whatever checks say: by the word of Slurm, or of this user's runs."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launchers.slurm import Slurm, client_env
from launchers.slurm_answers import AwayError
from launchers.slurm_rows import SlurmNode
from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import natural_sort_key
from supervisor.core.status import state_word
from supervisor.core.types import ENDED, NodeState, Phase

SLURM = "Slurm"
SLURM_S = 5.0  # a command of Slurm that says nothing for so long: its word is not known
_UNFIT = (NodeState.LOST, NodeState.UNUSABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfUse:
    """Somebody's word that a node can't be used."""

    node: str
    by: str  # Slurm, or `run NAME`
    state: str  # Slurm's, as sinfo writes it: down*, drained; or lost, unusable, excluded
    since: float | None  # seconds since the epoch; None: it is not said
    why: str
    drained: bool = False  # by a person, or by superv: somebody has seen to it

    def document(self) -> dict[str, Any]:
        """As the JSON documents have it."""
        keys = ("node", "by", "state", "since", "why")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmWord:
    """What Slurm says. All empty where this machine belongs to no cluster."""

    nodes: tuple[OutOfUse, ...] = ()
    cluster: str = ""
    problem: str = ""  # why its word is not known
    fix: str = ""


def asked() -> SlurmWord:
    """Ask Slurm which nodes get no jobs, and why; takes SLURM_S or little more."""
    try:
        env = client_env(os.environ)
        if shutil.which("sinfo", path=env["PATH"]) is None:
            return SlurmWord()
        return asyncio.run(_asked(Slurm(deadline_s=SLURM_S, env=env)))
    except AwayError as error:
        if "configuration source" in error.seen and "SLURM_CONF" not in os.environ:
            return SlurmWord()  # there is no slurm.conf: client commands alone make no cluster
        return SlurmWord(problem=error.seen, fix=error.fix)
    except (TransientError, UserError) as error:
        return SlurmWord(problem=str(error), fix="see what `sinfo` says here")


async def _asked(slurm: Slurm) -> SlurmWord:
    there, cluster = await asyncio.gather(
        slurm.settled_nodes(), slurm.cluster(), return_exceptions=True
    )
    if isinstance(there, BaseException):
        raise there
    name = "" if isinstance(cluster, BaseException) else cluster
    out = [node for node, seen in there.items() if not seen.in_service]
    since = await slurm.reasons_since(out)
    return SlurmWord(
        nodes=tuple(_of_slurm(there[node], since.get(node)) for node in out), cluster=name
    )


def _of_slurm(seen: SlurmNode, since: float | None) -> OutOfUse:
    return OutOfUse(
        node=seen.name,
        by=SLURM,
        state=seen.state,
        since=since,
        why=seen.given_reason or ("its slurmd does not answer" if seen.down else ""),
        drained=seen.drains and not seen.down,
    )


def of_runs(statuses: Iterable[Mapping[str, Any]]) -> Iterator[OutOfUse]:
    """What runs hold lost, unusable or excluded, by their status documents (docs/status.md).

    A held run's exclusions last; what it saw of its nodes ended with its job.
    """
    for told in statuses:
        phase = told["phase"]
        held = phase == Phase.HELD and not told.get("replaced")
        if phase is None or (phase in ENDED and not held):
            continue
        found = {row["node"]: ("excluded", row) for row in told["excluded"]}
        for row in told["unusable"]:
            if row["state"] in _UNFIT and not held:
                found.setdefault(row["node"], (state_word(row["state"]), row))
        name = told.get("run", told["name"])
        for node in sorted(found, key=natural_sort_key):
            state, row = found[node]
            yield OutOfUse(
                node=node, by=f"run {name}", state=state, since=row["since"], why=row["reason"]
            )


def by_node(words: Iterable[OutOfUse]) -> dict[str, list[OutOfUse]]:
    """All that is said of each node, Slurm's word first."""
    found: dict[str, list[OutOfUse]] = {}
    for word in sorted(words, key=lambda w: (natural_sort_key(w.node), w.by != SLURM)):
        found.setdefault(word.node, []).append(word)
    return found


def known(words: Collection[OutOfUse], nodes: Collection[str]) -> list[OutOfUse]:
    """Runs' words, and Slurm's of these nodes and of those that runs name: a cluster may have
    others that nobody looks at."""
    ours = {*nodes, *(word.node for word in words if word.by != SLURM)}
    return [word for word in words if word.node in ours]
