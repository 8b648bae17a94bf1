"""What people repaired, in the fleet record: from then on what checks saw before says nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from healthchecks.frame.repairs import ALL
from supervisor.core.setting import REPAIRS
from supervisor.fleet.database import Database
from supervisor.fleet.types import Repair

_SINCE_VERSION = 3  # of the record
MOST = 64  # kept of each node
Settings = Mapping[str, Mapping[str, Any]]


class Repairs:
    """The repairs of one record. Every method raises TransientError where it does not answer."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def tell(self, node: str, at: float, checks: Collection[str], note: str, who: str) -> None:
        """Of all of the node where no check, or group of checks, is named."""
        with self._db.transaction():
            self._put(node, at, " ".join(checks), note, who, accepts=False)

    def begin_acceptance(self, nodes: Collection[str], now: float, who: str) -> None:
        """`superv accept` begins: it goes by the repairs that people told of since the last one.

        Where nobody told of any, all of the node is repaired as of now.
        """
        with self._db.transaction():
            for node in nodes:
                last = self._db.rows(
                    "SELECT accepts FROM repair WHERE node = ? ORDER BY id DESC LIMIT 1", node
                )
                if not last or last[0][0]:
                    self._put(node, now, ALL, "superv accept", who, accepts=True)
                else:  # the next acceptance has a repair of its own
                    self._db.execute(
                        "UPDATE repair SET accepts = 1 WHERE id ="
                        " (SELECT MAX(id) FROM repair WHERE node = ?)",
                        node,
                    )

    def _put(
        self, node: str, at: float, checks: str, note: str, who: str, *, accepts: bool
    ) -> None:
        self._db.execute(
            "INSERT INTO repair (node, at, checks, note, who, accepts) VALUES (?, ?, ?, ?, ?, ?)",
            *(node, at, checks, note, who, accepts),
        )
        self._db.execute(
            "DELETE FROM repair WHERE node = ? AND id NOT IN"
            " (SELECT id FROM repair WHERE node = ? ORDER BY id DESC LIMIT ?)",
            *(node, node, MOST),
        )

    def of(self, node: str, since: float) -> list[Repair]:
        """Newest first."""
        if self._db.version < _SINCE_VERSION:
            return []
        rows = self._db.rows(
            "SELECT node, at, checks, note, who FROM repair WHERE node = ? AND at >= ?"
            " ORDER BY id DESC",
            node,
            since,
        )
        return [
            Repair(node=name, at=at, checks=tuple(checks.split()), note=note, who=who)
            for name, at, checks, note, who in rows
        ]

    def newest(self) -> dict[str, dict[str, float]]:
        """As orders to nodes have them: by node and by check, group of checks or ALL."""
        if self._db.version < _SINCE_VERSION:
            return {}
        found: dict[str, dict[str, float]] = {}
        for node, at, checks in self._db.rows("SELECT node, at, checks FROM repair ORDER BY id"):
            for name in checks.split() or [ALL]:
                found.setdefault(node, {})[name] = max(at, found.get(node, {}).get(name, at))
        return found


def with_repairs(settings: Settings, path: Path) -> dict[str, Mapping[str, Any]]:
    """An order's settings, with what the record at `path` knows of repairs.

    Raises UserError, TransientError.
    """
    with closing(Database(path, write=False)) as db:
        return {**settings, REPAIRS: Repairs(db).newest()}
