"""Reports folded into the record: what each check says of a node now, and what changed by that."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

from healthchecks.frame.check import Result
from healthchecks.frame.report import Finding, Report
from supervisor.core.check_status import Status
from supervisor.fleet.database import Database
from supervisor.fleet.types import Change, CurrentFinding, blame, finding_of


def current_findings(db: Database, node: str | None, odd: dict[str, str]) -> list[CurrentFinding]:
    """What every check says at present, of one node or of all; rows that are `odd` are put there.

    One that a fault of disk or memory, or another program, has spoilt hides no other.
    """
    where, values = ("WHERE node = ?", (node,)) if node is not None else ("", ())
    query = f"SELECT node, finding, row, since, at FROM standing {where}"  # noqa: S608
    found = []
    for name, what, row, since, at in db.rows(query, *values):
        try:
            finding, times = finding_of(json.loads(row)), (float(since), float(at))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            odd[f"{what} of {name}"] = f"{error!r:.200}"
            continue
        found.append(CurrentFinding(node=name, finding=finding, since=times[0], at=times[1]))
    return found


def keep_report(db: Database, report: Report, origin: str) -> None:
    """Its measurements and its worst status, for the node's history."""
    metrics = {
        f"{f.name}.{name}": [m.value, m.unit]
        for f in report.findings
        for name, m in f.result.metrics.items()
    }
    db.execute(
        "INSERT INTO look (node, at, origin, tags, status, took_s, metrics)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        report.node,
        report.at,
        origin,
        ",".join(report.tags),
        report.status.value,
        report.took_s,
        zlib.compress(json.dumps(metrics).encode()),
    )


def fold(
    db: Database,
    report: Report,
    origin: str,
    *,
    compared: bool,
    odd: dict[str, str],
    now: float | None = None,
) -> list[Change]:
    """Take the report's findings for current; returns what that changes.

    What is later than `now` was recorded by a clock that has been set back since: it is no newer.
    """
    before = {
        s.finding.name: replace(s, at=report.at) if now is not None and s.at > now else s
        for s in current_findings(db, report.node, odd)
    }
    changes = []
    for name, finding in {f.name: f for f in report.findings}.items():
        old = before.get(name)
        if old is not None and old.at > report.at:
            continue  # an older report that came late
        if old is not None and finding.gap is not None and old.finding.gap is None:
            continue  # it says nothing: what was known stands
        same = old is not None and old.finding.status is finding.status
        since = old.since if same and old is not None else report.at
        db.execute(
            "INSERT OR REPLACE INTO standing VALUES (?, ?, ?, ?, ?, ?, ?)",
            report.node,
            name,
            finding.check,
            finding.status.value,
            json.dumps(finding.document()),
            since,
            report.at,
        )
        new = old is None or old.finding.gap is not None
        if not same and not (new and (finding.gap or finding.status in (Status.OK, Status.SKIP))):
            changes.append(_changed(db, report, origin, old, finding))
    for old in _gone(before, report, compared=compared):
        if old.finding.not_fine:
            cured = replace(old.finding, result=Result(status=Status.OK, seen="no longer found"))
            changes.append(_changed(db, report, origin, old, cured))
        db.execute(
            "DELETE FROM standing WHERE node = ? AND finding = ?", report.node, old.finding.name
        )
    return changes


def _gone(
    before: dict[str, CurrentFinding], report: Report, *, compared: bool
) -> list[CurrentFinding]:
    """Findings whose target is no more (a mount taken away), by a check that could tell its own."""
    asked = {f.check for f in report.findings}
    dark = {f.check for f in report.findings if not f.on and f.status is Status.UNKNOWN}
    now = {f.name for f in report.findings}
    return [
        old
        for name, old in before.items()
        if old.finding.check in asked - dark
        and name not in now
        and old.at <= report.at
        and (compared or not old.finding.on.endswith(("cohort", "golden")))
    ]


def _changed(
    db: Database, report: Report, origin: str, old: CurrentFinding | None, finding: Finding
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
    db.execute(
        "INSERT INTO change (node, at, origin, finding, chk, was, status, blame, seen)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        change.node,
        change.at,
        origin,
        change.finding,
        finding.check,
        change.was.value if change.was else "",
        change.status.value,
        blame(finding).value,
        change.seen,
    )
    return change
