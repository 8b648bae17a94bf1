"""What a run of checks says: one document for a node, read by scripts, Nagios and other nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from healthchecks.frame.check import AS_ROOT, REGISTERED, Blame, Gap, Metric, Result
from supervisor.core.check_status import NOT_FINE, Status, worst
from supervisor.core.errors import UserError
from supervisor.host.terminal import printable

SCHEMA = 1
NAGIOS = {Status.OK: 0, Status.SKIP: 0, Status.WARN: 1, Status.FAIL: 2, Status.UNKNOWN: 3}
NAGIOS_UNITS = ("s", "%", "B", "c")
NAGIOS_WORD = {Status.FAIL: "CRITICAL", Status.WARN: "WARNING", Status.SKIP: "OK"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check on one target of a node."""

    check: str
    result: Result
    on: str = ""  # the target, where the check has several: a mount point, a peer
    took_s: float = 0.0
    blame: str = ""  # as another node's report had it; empty: as the check says

    @property
    def status(self) -> Status:
        return self.result.status

    @property
    def gap(self) -> Gap | None:
        """Why it is UNKNOWN, where nothing is wrong: it is counted apart."""
        return self.result.gap

    @property
    def not_fine(self) -> bool:
        """Whether a person should look."""
        return self.status in NOT_FINE and self.gap is None

    @property
    def name(self) -> str:
        return f"{self.check}[{self.on}]" if self.on else self.check

    def whose(self) -> str:
        """Whose a failure is: node, shared (a server, a switch) or user."""
        if self.result.shared:
            return Blame.SHARED.value
        check = REGISTERED.get(self.check)
        return self.blame or (check.blame.value if check else Blame.NODE.value)

    def by_users(self) -> bool:
        """Whether users can bring it about: it drains nobody."""
        check = REGISTERED.get(self.check)
        return self.result.by_users or (check is not None and check.by_users)

    def document(self) -> dict[str, Any]:
        result = self.result
        found: dict[str, Any] = {"check": self.check}
        if self.on:
            found["on"] = self.on
        found |= {
            "status": result.status.value,
            "seen": result.seen,
            "expected": result.expected,
            "fix": result.fix,
            "metrics": {n: {"value": m.value, "unit": m.unit} for n, m in result.metrics.items()},
        }
        if result.facts:
            found["facts"] = dict(result.facts)
        if result.devices:
            found["devices"] = list(result.devices)
        if result.shared:
            found["shared"] = result.shared
        if result.gap is not None:
            found["gap"] = result.gap.value
        if result.status in NOT_FINE:
            found["blame"] = self.whose()
            if (check := REGISTERED.get(self.check)) is not None and not check.drains:
                found["drains"] = False
            if self.by_users():
                found["by_users"] = True
            if result.corroborated:
                found["corroborated"] = True
        return found | {"took_s": round(self.took_s, 4)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of one run of checks on one node."""

    node: str
    at: float  # seconds since the epoch
    findings: Sequence[Finding]
    tags: tuple[str, ...] = ()
    boot_id: str = ""
    took_s: float = 0.0
    cpu_s: float = 0.0  # of the runner and of its children that ended
    notes: tuple[str, ...] = field(default=())  # what kept the run from being a full one

    @property
    def status(self) -> Status:
        """The worst; UNKNOWN for what was not measured (`gaps`) only where nothing else was."""
        measured = worst(f.status for f in self.findings if f.gap is None)
        return Status.UNKNOWN if measured is Status.SKIP and self.gaps() else measured

    def having(self, *statuses: Status) -> list[Finding]:
        """Those with one of these; not what was only not measured."""
        return [f for f in self.findings if f.status in statuses and f.gap is None]

    def gaps(self, *kinds: Gap) -> list[Finding]:
        """What was not measured, though nothing is wrong: for these reasons, or any."""
        return [f for f in self.findings if f.gap is not None and (not kinds or f.gap in kinds)]

    def document(self) -> dict[str, Any]:
        """The JSON document of docs/checks.md."""
        return {
            "schema": SCHEMA,
            "node": self.node,
            "at": round(self.at, 3),
            "status": self.status.value,
            "tags": list(self.tags),
            "boot_id": self.boot_id,
            "took_s": round(self.took_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "notes": list(self.notes),
            "results": [f.document() for f in self.findings],
        }


def from_document(document: Mapping[str, Any]) -> Report:
    """The report that `Report.document` wrote. Raises UserError for anything else."""
    try:
        if document["schema"] != SCHEMA:
            raise UserError(
                f"a health report of schema {document['schema']!r}; this superv reads {SCHEMA}: "
                "install one version everywhere"
            )
        return Report(
            node=str(document["node"]),
            at=float(document["at"]),
            tags=tuple(document.get("tags", ())),
            boot_id=str(document.get("boot_id", "")),
            took_s=float(document.get("took_s", 0.0)),
            cpu_s=float(document.get("cpu_s", 0.0)),
            notes=tuple(document.get("notes", ())),
            findings=tuple(_finding(row) for row in document["results"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"not a health report of superv: {error!r}") from error


def _finding(row: Mapping[str, Any]) -> Finding:
    return Finding(
        check=str(row["check"]),
        on=str(row.get("on", "")),
        took_s=float(row.get("took_s", 0.0)),
        blame=str(row.get("blame", "")),
        result=result_from(row),
    )


def result_from(row: Mapping[str, Any]) -> Result:
    """The Result in a row of `results`. Raises KeyError, TypeError, ValueError."""
    return Result(
        status=Status(row["status"]),
        seen=str(row["seen"]),
        expected=str(row.get("expected", "")),
        fix=str(row.get("fix", "")),
        metrics={
            str(n): Metric(value=float(m["value"]), unit=str(m.get("unit", "")))
            for n, m in row.get("metrics", {}).items()
        },
        facts={str(k): str(v) for k, v in row.get("facts", {}).items()},
        devices=tuple(str(d) for d in row.get("devices", ())),
        shared=str(row.get("shared", "")),
        by_users=row.get("by_users") is True,
        corroborated=row.get("corroborated") is True,
        gap=next((g for g in Gap if g.value == row.get("gap")), None),
    )


def parse(text: str) -> Report:
    """Raises UserError for text that is no report."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UserError(f"not a health report of superv: {error}") from error
    if not isinstance(document, dict):
        raise UserError("not a health report of superv: not an object")
    return from_document(document)


def exit_code(report: Report) -> int:
    """0: nothing failed; 1: something did; 3: nothing failed, but something is unknown.

    2 is the user's mistake, as everywhere.
    """
    return {Status.FAIL: 1, Status.UNKNOWN: 3}.get(report.status, 0)


def nagios(report: Report) -> tuple[str, int]:
    """One line with performance data, further lines of text, and the exit code.

    Nagios Plugin Development Guidelines, "Plugin Output for Nagios": `|` parts the performance
    data, `'label'=value[UOM]`, with UOM one of s, %, B, c or nothing.
    """
    status = report.status
    bad = report.having(*NOT_FINE)
    word = NAGIOS_WORD.get(status, status.value)
    head = "; ".join(f"{f.name} {f.status.value}: {f.result.seen}" for f in bad[:3])
    if len(bad) > 3:
        head += f"; and {len(bad) - 3} more"
    if not bad:
        count, apart = len(report.having(Status.OK)), report.gaps()
        head = f"{count} checks passed" if count else "no check applies to this node"
        if apart:
            names = ", ".join(f.name for f in apart[:3])
            head += f"; {len(apart)} not measured ({names}{' …' if apart[3:] else ''})"
    perf = [
        f"'{_label(f'{f.name}.{name}')}'={_amount(m)}"
        for f in report.findings
        for name, m in f.result.metrics.items()
    ]
    line = f"{word}: {_plain(head)}" + (f" | {' '.join(perf)}" if perf else "")
    rest = [_plain(f"{f.status.value} {f.name}: {f.result.seen}") for f in bad[3:]]
    return "\n".join([line, *rest]), NAGIOS[status]


def _amount(metric: Metric) -> str:
    """Plugins may write digits, a sign and a point only, and few units."""
    from decimal import Decimal

    unit = metric.unit if metric.unit in NAGIOS_UNITS else ""
    return format(Decimal(f"{metric.value:.10g}"), "f") + unit


def _plain(text: str) -> str:
    return printable(text.replace("|", "/").replace("\n", " "))


def _label(text: str) -> str:
    return _plain(text).replace("'", "").replace("=", "-")


def gap_notes(findings: Iterable[Finding], memory: str) -> list[str]:
    """What was not measured though nothing is wrong, once for each reason, and what to do.

    `memory`: where earlier looks are remembered, in words.
    """
    apart: dict[str, list[str]] = {}
    for finding in findings:
        if finding.gap is Gap.NOT_YET:
            why = f"they compare with an earlier look, and {memory} has none yet: look again"
            apart.setdefault(why, []).append(finding.name)
        elif finding.gap is Gap.RIGHTS:
            apart.setdefault(finding.result.fix or AS_ROOT, []).append(finding.name)
        elif finding.gap is Gap.TOOL:
            why = f"{finding.result.seen}; {finding.result.fix}"
            apart.setdefault(why, []).append(finding.name)
    return [f"not measured ({', '.join(names)}): {why}" for why, names in apart.items()]
