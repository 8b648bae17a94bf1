"""The fleet record: what every node was found to be, over weeks, and who excluded it and why.

One SQLite file on local disk. A node's state is the fold of what its checks last said: a check that
was not run does not change what it said before, and "unknown" cures nothing. Decides nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from healthchecks.frame.report import Report
from supervisor.core.check_status import Status
from supervisor.core.errors import UserError
from supervisor.core.nodeset import natural_sort_key
from supervisor.fleet.database import Database
from supervisor.fleet.fold import current_findings, fold, keep_report
from supervisor.fleet.repairs import Repairs
from supervisor.fleet.types import (
    Change,
    CurrentFinding,
    Drain,
    Excluded,
    Metrics,
    NodeHealth,
    change_of,
    since_then,
    summarise,
)

DAY_S = 86_400.0
STRIKES_OVER_S = 28 * DAY_S  # repeat offenders are counted over four weeks
KEEP_S = 92 * DAY_S  # reports and changes older than this are dropped
FORGET_LEAST = 10  # rows in one go
SKEW_S = 120.0  # a node's clock may be so far off

ROW_ERRORS = (ValueError, KeyError, TypeError, AttributeError, zlib.error, UserError)
_OF_NODES = ("look", "standing", "change", "exclusion", "drain", "baseline", "repair")
_LAST = "(SELECT MAX(id) FROM look)"
_CHANGE = "node, at, origin, finding, was, status, seen"


class Fleet:
    """The record. Every method raises TransientError where the file does not answer."""

    def __init__(self, path: Path, *, write: bool = True, whole: bool = False) -> None:
        """Open the record; `write` makes it where there is none. Raises UserError too.

        `whole`: read all of it, and set it aside where it is damaged (TransientError says so).
        """
        self.path = path
        self._db = Database(path, write=write, whole=whole)
        self._odd: dict[str, str] = {}  # rows that can't be read: where, why

    @property
    def repairs(self) -> Repairs:
        return Repairs(self._db)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def notes(self) -> list[str]:
        """What was left out of the answers so far, in a line; nothing where all was read."""
        if not self._odd:
            return []
        where, why = next(iter(self._odd.items()))
        return [
            f"{self.path}: {len(self._odd)} rows can't be read and are left out, the first: "
            f"{where}: {why}"
        ]

    # --- what was seen -------------------------------------------------------------------------

    def record(
        self,
        reports: Iterable[Report],
        origin: str,
        *,
        compared: Collection[str] = (),
        now: float | None = None,
    ) -> list[Change]:
        """Take in reports; returns what changed by them.

        `now`: this machine's time, where the reports are fresh; one that is far from it comes from
        a node whose clock is wrong, and counts as of now. Else one report from the year 2040 would
        make all others old.
        `compared`: the nodes whose reports were compared with others of their kind. What only
        comparison found (`driver[cohort]`, `driver[golden]`) is taken back by comparison only.
        """
        changes = []
        newest, count = 0.0, 0
        with self._db.transaction():
            for report in reports:
                if now is not None and abs(report.at - now) > SKEW_S:
                    report = replace(report, at=now)
                newest = max(newest, report.at)
                keep_report(self._db, report, origin)
                changes += fold(
                    self._db, report, origin, compared=report.node in compared, odd=self._odd,
                    now=None if now is None else now + SKEW_S,
                )  # fmt: skip
                count += 1
            for table in ("look", "change"):
                self._forget_old(table, newest, count)
        return changes

    def _forget_old(self, table: str, now: float, count: int) -> None:
        """Drop what came before the oldest row that is kept: twice as many as were put in, at most.

        By arrival, not by clocks alone: one that was years ahead for a week costs the record the
        oldest two weeks, and not everything.
        """
        kept = f"SELECT MIN(id) FROM {table} WHERE at BETWEEN ? AND ?"  # noqa: S608
        self._db.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table}"  # noqa: S608
            f" WHERE id < ({kept}) ORDER BY id LIMIT ?)",
            *(now - KEEP_S, now + SKEW_S, 2 * max(count, FORGET_LEAST)),
        )

    def strike(self, node: str, origin: str, why: str, at: float) -> None:
        """A run named the node as the cause of an incident; told again, it counts once."""
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO change (node, at, origin, finding, chk, was, status, blame, seen)"
                " SELECT ?, ?, ?, 'run', ?, '', 'FAIL', 'node', ? WHERE NOT EXISTS"
                " (SELECT 1 FROM change WHERE node = ? AND at = ? AND chk = ?)",
                *(node, at, origin, f"{origin} {at:.0f}", why, node, at, f"{origin} {at:.0f}"),
            )

    def current_findings(self, node: str | None = None) -> list[CurrentFinding]:
        """What every check says at present, of one node or of all."""
        return current_findings(self._db, node, self._odd)

    def changes(self, since: float, node: str | None = None) -> list[Change]:
        """Newest first."""
        rows = self._db.rows(
            f"SELECT {_CHANGE} FROM change"  # noqa: S608
            " WHERE at >= ? AND (? IS NULL OR node = ?) ORDER BY id DESC",
            since,
            node,
            node,
        )
        return self._changes(rows)

    def _changes(self, rows: Iterable[Sequence[Any]]) -> list[Change]:
        found = []
        for row in rows:
            with self._set_aside(f"a change of {row[0]}"):
                found.append(change_of(row))
        return found

    @contextmanager
    def _set_aside(self, where: str) -> Iterator[None]:
        """A row that a fault of disk or memory, or another program, has spoilt hides no other."""
        try:
            yield
        except ROW_ERRORS as error:
            self._odd[where] = f"{error!r:.200}"

    def unreported_changes(self, reader: str) -> list[Change]:
        """What has changed since this reader last asked, whoever found it; what came and went
        meanwhile is left out. Oldest first.
        """
        with self._db.transaction():
            rows = self._db.rows(
                f"SELECT {_CHANGE} FROM change WHERE id >"  # noqa: S608
                " COALESCE((SELECT id FROM told WHERE reader = ?), 0) ORDER BY id",
                reader,
            )
            self._db.execute(
                "INSERT OR REPLACE INTO told SELECT ?, COALESCE(MAX(id), 0) FROM change", reader
            )
        return since_then(self._changes(rows))

    def series(self, since: float, node: str | None = None) -> list[tuple[str, float, Metrics]]:
        """Measurements: (node, at, {"check.metric": [value, unit]}), oldest first."""
        rows = self._db.rows(
            "SELECT node, at, metrics FROM look WHERE at >= ? AND (? IS NULL OR node = ?)"
            " ORDER BY at",
            since,
            node,
            node,
        )
        found = []
        for name, at, packed in rows:
            with self._set_aside(f"a report of {name} at {at}"):
                found.append((name, at, json.loads(zlib.decompress(packed))))
        return found

    def samples(
        self, since: float, until: float, most: int
    ) -> Iterator[tuple[str, float, Metrics]]:
        """As `series`, thinned evenly over the time: at most `most` reports of a node and suite."""
        from msgspec.json import decode

        width = max(until - since, 1.0) / most
        rows = self._db.rows(
            "SELECT node, at, metrics FROM look WHERE id IN (SELECT MAX(id) FROM look"
            " WHERE at > ? AND at <= ? GROUP BY node, tags, CAST((? - at) / ? AS INTEGER))"
            " ORDER BY at",
            since,
            until,
            until,
            width,
        )
        for name, at, packed in rows:
            values = None
            with self._set_aside(f"a report of {name} at {at}"):
                values = decode(zlib.decompress(packed))
            if values is not None:
                yield name, at, values

    def report_history(
        self, node: str, since: float, after: int | None = None
    ) -> list[tuple[float, tuple[str, ...], Status]]:
        """(at, tags, worst status) of a node's reports, the last that came first."""
        rows = self._db.rows(
            "SELECT at, tags, status FROM look WHERE node = ? AND at > ? AND id > ?"
            " ORDER BY id DESC",
            node,
            since,
            after or 0,
        )
        found = []
        for at, tags, status in rows:
            with self._set_aside(f"a report of {node} at {at}"):
                found.append((at, tuple(tags.split(",")), Status(status)))
        return found

    def passes(
        self, node: str, since: float, *, unknown: bool = False, after: int | None = None
    ) -> int:
        """How many of the newest reports of the preflight suite, after `since`, found no fault.

        With `unknown` also those in which something could not be measured; `after`: those alone
        that came after this report.
        """
        good = (Status.OK, Status.WARN, *((Status.UNKNOWN,) if unknown else ()))
        count = 0
        for _, tags, status in self.report_history(node, since, after):
            if "preflight" in tags:
                if status not in good:
                    break
                count += 1
        return count

    def strikes(self, now: float) -> dict[str, int]:
        """By node: how often it failed by itself, or a run named it, within 28 days.

        A check counts once a day.
        """
        rows = self._db.rows(
            "SELECT node, COUNT(DISTINCT chk || CAST(at / ? AS INTEGER)) FROM change"
            " WHERE at >= ? AND status = 'FAIL' AND blame = 'node' GROUP BY node",
            DAY_S,
            now - STRIKES_OVER_S,
        )
        return dict(rows)

    def strike_details(self, now: float) -> list[tuple[str, str, int]]:
        """The strikes one by one: node, check (`run …` where a run named it), day of the epoch."""
        rows = self._db.rows(
            "SELECT DISTINCT node, chk, CAST(at / ? AS INTEGER) FROM change"
            " WHERE at >= ? AND status = 'FAIL' AND blame = 'node' ORDER BY at",
            DAY_S,
            now - STRIKES_OVER_S,
        )
        return [(node, check, day) for node, check, day in rows]

    def nodes(self, now: float) -> list[NodeHealth]:
        """Every node that was ever checked or excluded, by name."""
        standing: dict[str, list[CurrentFinding]] = {}
        for item in self.current_findings():
            standing.setdefault(item.node, []).append(item)
        excluded, drains = self.exclusions(now), self.drains()
        strikes = self.strikes(now)
        names = sorted({*standing, *excluded, *drains}, key=natural_sort_key)
        return [
            summarise(
                name, standing.get(name, []), strikes.get(name, 0), excluded.get(name),
                drains.get(name),
            )
            for name in names
        ]  # fmt: skip

    # --- what people and runs decided ----------------------------------------------------------

    def exclude(self, node: str, reason: str, who: str, now: float, until: float | None) -> None:
        """Keep a node out of new runs; a second exclusion takes the place of the first."""
        with self._db.transaction():
            self._lift(node, who, now)
            self._db.execute(
                "INSERT INTO exclusion (node, since, until, reason, who, look)"  # noqa: S608
                f" VALUES (?, ?, ?, ?, ?, {_LAST})",
                *(node, now, until, reason, who),
            )

    def include(self, node: str, who: str, now: float) -> None:
        with self._db.transaction():
            self._lift(node, who, now)

    def _lift(self, node: str, who: str, now: float) -> None:
        self._db.execute(
            "UPDATE exclusion SET lifted = ?, lifted_by = ? WHERE node = ? AND lifted IS NULL",
            *(now, who, node),
        )

    def exclusions(self, now: float) -> dict[str, Excluded]:
        """Those in force, by node."""
        rows = self._db.rows(
            f"SELECT node, since, until, reason, who, {self._look} FROM exclusion"  # noqa: S608
            " WHERE lifted IS NULL AND (until IS NULL OR until > ?) ORDER BY id",
            now,
        )
        return {
            node: Excluded(node=node, since=since, until=until, reason=reason, who=who, look=look)
            for node, since, until, reason, who, look in rows
        }

    @property
    def _look(self) -> str:
        """The column that records had before superv 0.2 have not, where nobody has written yet."""
        return "look" if self._db.version >= 2 else "NULL"

    def passes_since(self, out: Excluded) -> int:
        """`passes` since a node was excluded: by what came later, whatever clocks said."""
        if out.look is None:
            return self.passes(out.node, out.since)
        return self.passes(out.node, float("-inf"), after=out.look)

    def past_exclusions(self, node: str, since: float) -> list[tuple[Excluded, float | None]]:
        """All of a node, newest first, each with when it was lifted."""
        rows = self._db.rows(
            "SELECT node, since, until, reason, who, lifted FROM exclusion"
            " WHERE node = ? AND since >= ? ORDER BY id DESC",
            node,
            since,
        )
        return [
            (Excluded(node=n, since=s, until=u, reason=r, who=w), lifted)
            for n, s, u, r, w, lifted in rows
        ]

    def ended_exclusions(self, since: float, now: float) -> list[tuple[Excluded, float]]:
        """Those that were lifted or ran out between `since` and `now`, newest first, with when."""
        rows = self._db.rows(
            "SELECT node, since, until, reason, who, MIN(COALESCE(lifted, until), COALESCE(until,"
            " lifted)) AS ended FROM exclusion WHERE ended >= ? AND ended <= ? ORDER BY ended DESC",
            since,
            now,
        )
        return [
            (Excluded(node=n, since=s, until=u, reason=r, who=w), ended)
            for n, s, u, r, w, ended in rows
        ]

    def drained(self, node: str, reason: str, now: float) -> None:
        """superv is about to drain the node."""
        with self._db.transaction():
            self._db.execute(
                f"INSERT INTO drain (node, at, reason, look) VALUES (?, ?, ?, {_LAST})",  # noqa: S608
                *(node, now, reason),
            )

    def forget(self, node: str) -> None:
        """A node that is no more: everything about it goes, its history too."""
        with self._db.transaction():
            for table in _OF_NODES:
                self._db.execute(f"DELETE FROM {table} WHERE node = ?", node)  # noqa: S608

    def undrained(self, node: str, now: float) -> None:
        with self._db.transaction():
            self._db.execute(
                "UPDATE drain SET lifted = ? WHERE node = ? AND lifted IS NULL", now, node
            )

    def drains(self) -> dict[str, Drain]:
        """superv's own drains that it has not lifted, by node."""
        rows = self._db.rows(
            f"SELECT node, at, reason, {self._look} FROM drain"  # noqa: S608
            " WHERE lifted IS NULL ORDER BY id"
        )
        return {n: Drain(node=n, at=at, reason=r, look=look) for n, at, r, look in rows}

    def accept(self, report: Report) -> None:
        """Take a report's figures as the node's baseline."""
        with self._db.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO baseline VALUES (?, ?, ?)",
                *(report.node, report.at, json.dumps(report.document())),
            )

    def accepted(self, node: str) -> float | None:
        """When the node was last accepted; None where it never was."""
        rows = self._db.rows("SELECT at FROM baseline WHERE node = ?", node)
        return rows[0][0] if rows else None

    def baseline(self, node: str) -> Report | None:
        """What was measured when the node was last accepted; None where it never was."""
        from healthchecks.frame.report import parse

        rows = self._db.rows("SELECT row FROM baseline WHERE node = ?", node)
        for (text,) in rows:
            with self._set_aside(f"the baseline of {node}"):
                return parse(text)
        return None
