"""The brake on superv's drains: how many of the cluster's nodes may be out by its hand at once.

Many nodes that fail at once have a shared cause (storage, power, a driver's update, a forged line
of a log), which no drain repairs. Counted is what Slurm shows, so every sweep, node and user counts
the same. A Prolog must not call Slurm: the HealthCheckProgram leaves it what was counted last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from launchers.slurm_rows import SlurmNode
from supervisor.config import DrainRule
from supervisor.core.nodeset import compress
from supervisor.host.terminal import date_time

FRESH_S = 900.0  # an older count says nothing about now
COUNT_AGAIN_S = 600.0  # so every node asks Slurm that often at most, but before it drains
# Reasons: superv's own, and Slurm's for a Prolog that failed (node_mgr.c; agent.c, at a launch).
_MARKS = ("superv:", "prolog error", "prolog/epilog failure")
_FILE = "brake.json"
_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Brake:
    """What was counted."""

    at: float  # seconds since the epoch
    count: int  # nodes that superv, or a Prolog that failed, has drained
    total: int  # nodes of the cluster
    limit: int
    nodes: tuple[str, ...] = ()  # which, as far as they are shown

    def holds(self, more: int = 1) -> bool:
        """Whether so many more drains would be too many."""
        return self.count + more > self.limit

    def text(self) -> str:
        """Why it holds, and until when."""
        which = f" ({compress(self.nodes)})" if self.nodes else ""
        return (
            f"the drain brake holds: {self.count} of {self.total} nodes are drained by superv or a "
            f"failed Prolog{which}, {self.limit} may be (drain: max_percent, max_nodes); look for "
            "what they share; it lifts by itself when fewer are"
        )


def counted(states: Mapping[str, SlurmNode], rule: DrainRule, now: float) -> Brake:
    """The brake as Slurm's nodes show it."""
    ours = sorted(n for n, node in states.items() if node.drains and _by_superv(node.given_reason))
    return Brake(
        at=now,
        count=len(ours),
        total=len(states),
        limit=limit(len(states), rule),
        nodes=tuple(ours[:64]),
    )


def limit(total: int, rule: DrainRule) -> int:
    return max(rule.max_nodes, int(total * rule.max_percent / 100))


def too_many(states: Mapping[str, SlurmNode], rule: DrainRule, drained: Iterable[str]) -> list[str]:
    """Which of the nodes drained just now are to be given back: others drained meanwhile too.

    Everybody who asks comes to the same answer: the first by name stay.
    """
    brake = counted(states, rule, 0.0)
    stay = sorted({*brake.nodes, *drained})[: brake.limit]
    return [] if brake.count <= brake.limit else [node for node in drained if node not in stay]


def _by_superv(reason: str) -> bool:
    return reason.strip().lower().startswith(_MARKS)


def leave(folder: Path, brake: Brake) -> None:
    """For the node's Prolog. Raises OSError."""
    new = folder / f"{_FILE}.new"
    new.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
        json.dump({"schema": _SCHEMA, **asdict(brake)}, file)
    new.replace(folder / _FILE)


def left(folder: Path, now: float) -> tuple[Brake | None, str]:
    """What was counted last on this node, where it is fresh; else why there is nothing."""
    path = folder / _FILE
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            row = json.load(file)
        nodes = tuple(str(node) for node in row["nodes"])
        numbers = {key: int(row[key]) for key in ("count", "total", "limit")}
        brake = Brake(at=float(row["at"]), nodes=nodes, **numbers)
        if row["schema"] != _SCHEMA:
            return None, f"{path} is of schema {row['schema']!r}, not of {_SCHEMA}"
    except FileNotFoundError:
        return None, f"nobody has counted superv's drains yet (superv healthcheck leaves {path})"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{path} can't be read: {error}"
    if not -60.0 < now - brake.at <= FRESH_S:
        when = date_time(brake.at)
        return None, f"superv's drains were counted at {when} last ({path}): see superv healthcheck"
    return brake, ""
