"""The fleet record: what every node was found to be, over weeks, and who excluded it and why.

One SQLite file on local disk. A node's state is the fold of what its checks last said: a check that
was not run does not change what it said before, and "unknown" cures nothing. Decides nothing.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from healthchecks.check import Result, Status
from healthchecks.report import Finding, Report
from supervisor.core.errors import TransientError, UserError
from supervisor.fleet_rows import (
    Change,
    Drain,
    Excluded,
    Metrics,
    NodeHealth,
    Standing,
    at_a_glance,
    blame,
    change_of,
    finding_of,
    since_then,
)

__all__ = ["Change", "Drain", "Excluded", "Fleet", "Metrics", "NodeHealth", "Standing", "blame"]

DAY_S = 86_400.0
STRIKES_OVER_S = 28 * DAY_S  # repeat offenders are counted over four weeks
KEEP_S = 92 * DAY_S  # looks and changes older than this are dropped
SKEW_S = 120.0  # a node's clock may be so far off
WAIT_S = 10.0  # another writer is done by then

_TABLES = """
CREATE TABLE IF NOT EXISTS look (
  id INTEGER PRIMARY KEY, node TEXT NOT NULL, at REAL NOT NULL, origin TEXT NOT NULL,
  tags TEXT NOT NULL, status TEXT NOT NULL, took_s REAL NOT NULL, metrics BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS look_by_node ON look (node, at);
CREATE TABLE IF NOT EXISTS standing (
  node TEXT NOT NULL, finding TEXT NOT NULL, chk TEXT NOT NULL, status TEXT NOT NULL,
  row TEXT NOT NULL, since REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (node, finding));
CREATE TABLE IF NOT EXISTS change (
  id INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL, at REAL NOT NULL, origin TEXT NOT NULL,
  finding TEXT NOT NULL, chk TEXT NOT NULL, was TEXT NOT NULL, status TEXT NOT NULL,
  blame TEXT NOT NULL, seen TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS change_by_node ON change (node, at);
CREATE TABLE IF NOT EXISTS exclusion (
  id INTEGER PRIMARY KEY, node TEXT NOT NULL, since REAL NOT NULL, until REAL,
  reason TEXT NOT NULL, who TEXT NOT NULL, lifted REAL, lifted_by TEXT);
CREATE TABLE IF NOT EXISTS drain (
  id INTEGER PRIMARY KEY, node TEXT NOT NULL, at REAL NOT NULL, reason TEXT NOT NULL, lifted REAL);
CREATE TABLE IF NOT EXISTS told (reader TEXT PRIMARY KEY, id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS baseline (
  node TEXT PRIMARY KEY, at REAL NOT NULL, row TEXT NOT NULL);
"""


def _connected(path: Path, *, write: bool) -> sqlite3.Connection:
    """Raises UserError, and TransientError where another writer holds it for too long."""
    if not write and not path.exists():
        raise UserError(f"{path}: no fleet record yet; superv sweep or superv preflight makes it")
    link: sqlite3.Connection | None = None
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            link = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            link.executescript(_TABLES)
        else:
            uri = f"{path.absolute().as_uri()}?mode=ro"
            link = sqlite3.connect(uri, uri=True, timeout=WAIT_S)
        return link
    except (sqlite3.Error, OSError) as error:
        if link is not None:
            link.close()
        if "locked" in str(error):
            raise TransientError(f"{path}: {error}") from error
        raise UserError(f"{path}: the fleet record can't be opened: {error}") from error


_CHANGE = "node, at, origin, finding, was, status, seen"


class Fleet:
    """The record. Every method raises TransientError where the file does not answer."""

    def __init__(self, path: Path, *, write: bool = True) -> None:
        """Open the record; `write` makes it where there is none. Raises UserError too."""
        self.path = path
        self._db = _connected(path, write=write)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _change(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has done so itself where the disk is full
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise TransientError(f"{self.path}: {error}") from error

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise TransientError(f"{self.path}: {error}") from error

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
        newest = 0.0
        with self._change():
            for told in reports:
                report = told
                if now is not None and abs(told.at - now) > SKEW_S:
                    report = replace(told, at=now)
                newest = max(newest, report.at)
                self._look(report, origin)
                changes += self._fold(report, origin, compared=report.node in compared)
            for table in ("look", "change"):
                self._db.execute(f"DELETE FROM {table} WHERE at < ?", (newest - KEEP_S,))  # noqa: S608
        return changes

    def _look(self, report: Report, origin: str) -> None:
        metrics = {
            f"{f.name}.{name}": [m.value, m.unit]
            for f in report.findings
            for name, m in f.result.metrics.items()
        }
        packed = zlib.compress(json.dumps(metrics).encode())
        self._db.execute(
            "INSERT INTO look (node, at, origin, tags, status, took_s, metrics)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                report.node,
                report.at,
                origin,
                ",".join(report.tags),
                report.status.value,
                report.took_s,
                packed,
            ),
        )

    def _fold(self, report: Report, origin: str, *, compared: bool) -> list[Change]:
        before = {s.finding.name: s for s in self.standing(report.node)}
        asked = {f.check for f in report.findings}
        now = {f.name: f for f in report.findings}
        changes = []
        for name, finding in now.items():
            old = before.get(name)
            if old is not None and old.at > report.at:
                continue  # an older report that came late
            same = old is not None and old.finding.status is finding.status
            since = old.since if same and old is not None else report.at
            self._db.execute(
                "INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    report.node,
                    name,
                    finding.check,
                    finding.status.value,
                    json.dumps(finding.document()),
                    since,
                    report.at,
                ),
            )
            if not same and not (old is None and finding.status in (Status.OK, Status.SKIP)):
                changes.append(self._changed(report, origin, old, finding))
        dark = {f.check for f in report.findings if not f.on and f.status is Status.UNKNOWN}
        for name, old in before.items():  # a target that is no more: a mount taken away
            if old.finding.check in dark:
                continue  # the check could not tell its targets
            if not compared and old.finding.on.endswith(("cohort", "golden")):
                continue
            if old.finding.check in asked and name not in now and old.at <= report.at:
                if old.finding.status in (Status.FAIL, Status.WARN, Status.UNKNOWN):
                    gone = Result(status=Status.OK, seen="no longer found")
                    cured = replace(old.finding, result=gone)
                    changes.append(self._changed(report, origin, old, cured))
                self._db.execute(
                    "DELETE FROM standing WHERE node = ? AND finding = ?", (report.node, name)
                )
        return changes

    def _changed(
        self, report: Report, origin: str, old: Standing | None, finding: Finding
    ) -> Change:
        change = Change(
            node=report.node,
            at=report.at,
            origin=origin,
            finding=finding.name,
            was=old.finding.status if old else None,
            status=finding.status,
            seen=finding.result.seen,
        )
        self._db.execute(
            "INSERT INTO change (node, at, origin, finding, chk, was, status, blame, seen)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                change.node,
                change.at,
                origin,
                change.finding,
                finding.check,
                change.was.value if change.was else "",
                change.status.value,
                blame(finding).value,
                change.seen,
            ),
        )
        return change

    def strike(self, node: str, origin: str, why: str, at: float) -> None:
        """A run named the node as the cause of an incident; told again, it counts once."""
        with self._change():
            self._db.execute(
                "INSERT INTO change (node, at, origin, finding, chk, was, status, blame, seen)"
                " SELECT ?, ?, ?, 'run', ?, '', 'FAIL', 'node', ? WHERE NOT EXISTS"
                " (SELECT 1 FROM change WHERE node = ? AND at = ? AND chk = ?)",
                (node, at, origin, f"{origin} {at:.0f}", why, node, at, f"{origin} {at:.0f}"),
            )

    def standing(self, node: str | None = None) -> list[Standing]:
        """What every check says at present, of one node or of all."""
        where, values = ("WHERE node = ?", (node,)) if node is not None else ("", ())
        rows = self._rows(f"SELECT node, row, since, at FROM standing {where}", *values)  # noqa: S608
        return [
            Standing(node=name, finding=finding_of(json.loads(row)), since=since, at=at)
            for name, row, since, at in rows
        ]

    def changes(self, since: float, node: str | None = None) -> list[Change]:
        """Newest first."""
        rows = self._rows(
            f"SELECT {_CHANGE} FROM change"  # noqa: S608
            " WHERE at >= ? AND (? IS NULL OR node = ?) ORDER BY at DESC, id DESC",
            since,
            node,
            node,
        )
        return [change_of(row) for row in rows]

    def untold(self, reader: str) -> list[Change]:
        """What has changed since this reader last asked, whoever found it; what came and went
        meanwhile is left out. Oldest first.
        """
        with self._change():
            rows = self._rows(
                f"SELECT {_CHANGE} FROM change WHERE id >"  # noqa: S608
                " COALESCE((SELECT id FROM told WHERE reader = ?), 0) ORDER BY id",
                reader,
            )
            self._db.execute(
                "INSERT OR REPLACE INTO told SELECT ?, COALESCE(MAX(id), 0) FROM change", (reader,)
            )
        return since_then([change_of(row) for row in rows])

    def series(self, since: float, node: str | None = None) -> list[tuple[str, float, Metrics]]:
        """Measurements: (node, at, {"check.metric": [value, unit]}), oldest first."""
        rows = self._rows(
            "SELECT node, at, metrics FROM look WHERE at >= ? AND (? IS NULL OR node = ?)"
            " ORDER BY at",
            since,
            node,
            node,
        )
        return [(name, at, json.loads(zlib.decompress(packed))) for name, at, packed in rows]

    def samples(
        self, since: float, until: float, most: int
    ) -> Iterator[tuple[str, float, Metrics]]:
        """As `series`, thinned evenly over the time: at most `most` looks of a node and suite."""
        from msgspec.json import decode

        width = max(until - since, 1.0) / most
        rows = self._rows(
            "SELECT node, at, metrics FROM look WHERE id IN (SELECT MAX(id) FROM look"
            " WHERE at > ? AND at <= ? GROUP BY node, tags, CAST((? - at) / ? AS INTEGER))"
            " ORDER BY at",
            since,
            until,
            until,
            width,
        )
        for name, at, packed in rows:
            yield name, at, decode(zlib.decompress(packed))

    def looks(self, node: str, since: float) -> list[tuple[float, tuple[str, ...], Status]]:
        """(at, tags, worst status) of the looks at a node, newest first."""
        rows = self._rows(
            "SELECT at, tags, status FROM look WHERE node = ? AND at > ? ORDER BY at DESC",
            node,
            since,
        )
        return [(at, tuple(tags.split(",")), Status(status)) for at, tags, status in rows]

    def passes(self, node: str, since: float, *, unknown: bool = False) -> int:
        """How many of the newest looks with the preflight suite, after `since`, found no fault.

        With `unknown` also those in which something could not be measured.
        """
        good = (Status.OK, Status.WARN, *((Status.UNKNOWN,) if unknown else ()))
        count = 0
        for _, tags, status in self.looks(node, since):
            if "preflight" in tags:
                if status not in good:
                    break
                count += 1
        return count

    def strikes(self, now: float) -> dict[str, int]:
        """By node: how often it failed by itself, or a run named it, within 28 days.

        A check counts once a day.
        """
        rows = self._rows(
            "SELECT node, COUNT(DISTINCT chk || CAST(at / ? AS INTEGER)) FROM change"
            " WHERE at >= ? AND status = 'FAIL' AND blame = 'node' GROUP BY node",
            DAY_S,
            now - STRIKES_OVER_S,
        )
        return dict(rows)

    def struck(self, now: float) -> list[tuple[str, str, int]]:
        """The strikes one by one: node, check (`run …` where a run named it), day of the epoch."""
        rows = self._rows(
            "SELECT DISTINCT node, chk, CAST(at / ? AS INTEGER) FROM change"
            " WHERE at >= ? AND status = 'FAIL' AND blame = 'node' ORDER BY at",
            DAY_S,
            now - STRIKES_OVER_S,
        )
        return [(node, check, day) for node, check, day in rows]

    def nodes(self, now: float) -> list[NodeHealth]:
        """Every node that was ever looked at or excluded, by name."""
        from supervisor.core.placement import natural

        standing: dict[str, list[Standing]] = {}
        for item in self.standing():
            standing.setdefault(item.node, []).append(item)
        excluded, drains = self.exclusions(now), self.drains()
        strikes = self.strikes(now)
        names = sorted({*standing, *excluded, *drains}, key=natural)
        return [
            at_a_glance(
                name, standing.get(name, []), strikes.get(name, 0), excluded.get(name),
                drains.get(name),
            )
            for name in names
        ]  # fmt: skip

    # --- what people and runs decided ----------------------------------------------------------

    def exclude(self, node: str, reason: str, who: str, now: float, until: float | None) -> None:
        """Keep a node out of new runs; a second exclusion takes the place of the first."""
        with self._change():
            self._lift(node, who, now)
            self._db.execute(
                "INSERT INTO exclusion (node, since, until, reason, who) VALUES (?, ?, ?, ?, ?)",
                (node, now, until, reason, who),
            )

    def include(self, node: str, who: str, now: float) -> None:
        with self._change():
            self._lift(node, who, now)

    def _lift(self, node: str, who: str, now: float) -> None:
        self._db.execute(
            "UPDATE exclusion SET lifted = ?, lifted_by = ? WHERE node = ? AND lifted IS NULL",
            (now, who, node),
        )

    def exclusions(self, now: float) -> dict[str, Excluded]:
        """Those in force, by node."""
        rows = self._rows(
            "SELECT node, since, until, reason, who FROM exclusion"
            " WHERE lifted IS NULL AND (until IS NULL OR until > ?) ORDER BY id",
            now,
        )
        return {
            node: Excluded(node=node, since=since, until=until, reason=reason, who=who)
            for node, since, until, reason, who in rows
        }

    def past_exclusions(self, node: str, since: float) -> list[tuple[Excluded, float | None]]:
        """All of a node, newest first, each with when it was lifted."""
        rows = self._rows(
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
        rows = self._rows(
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
        with self._change():
            self._db.execute(
                "INSERT INTO drain (node, at, reason) VALUES (?, ?, ?)", (node, now, reason)
            )

    def forget(self, node: str) -> None:
        """A node that is no more: everything about it goes, its history too."""
        with self._change():
            for table in ("look", "standing", "change", "exclusion", "drain", "baseline"):
                self._db.execute(f"DELETE FROM {table} WHERE node = ?", (node,))  # noqa: S608

    def undrained(self, node: str, now: float) -> None:
        with self._change():
            self._db.execute(
                "UPDATE drain SET lifted = ? WHERE node = ? AND lifted IS NULL", (now, node)
            )

    def drains(self) -> dict[str, Drain]:
        """superv's own drains that it has not lifted, by node."""
        rows = self._rows("SELECT node, at, reason FROM drain WHERE lifted IS NULL ORDER BY id")
        return {n: Drain(node=n, at=at, reason=reason) for n, at, reason in rows}

    def accept(self, report: Report) -> None:
        """Take a report's figures as the node's baseline."""
        with self._change():
            self._db.execute(
                "INSERT OR REPLACE INTO baseline VALUES (?, ?, ?)",
                (report.node, report.at, json.dumps(report.document())),
            )

    def accepted(self, node: str) -> float | None:
        """When the node was last accepted; None where it never was."""
        rows = self._rows("SELECT at FROM baseline WHERE node = ?", node)
        return rows[0][0] if rows else None

    def baseline(self, node: str) -> Report | None:
        """What was measured when the node was last accepted; None where it never was."""
        from healthchecks.report import parse

        rows = self._rows("SELECT row FROM baseline WHERE node = ?", node)
        return parse(rows[0][0]) if rows else None
