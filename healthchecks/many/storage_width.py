"""Compares what the nodes saw when all of them wrote and read at once: storage.width's reports.

settings = together({"storage.width": {"dir": "/shared/run"}}, time.time())
… run the check with these settings on every node at once, through srun or ssh …
for judged in judge(reports): …
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from healthchecks.frame.check import Metric, Result
from healthchecks.frame.report import Finding, Report
from supervisor.core.check_status import WORST_FIRST, Status

CHECK = "storage.width"
SLOW, VERY_SLOW = 0.7, 0.5  # of the median node; superv's own
MIN_NODES = 3  # below that there is no telling who differs
TOGETHER = 0.5  # of a node's time has to overlap with that of the middle of them
QUEUE = 80.0  # %; the cluster of arXiv 2605.09370 had 93.1
LEAD_S = 15.0  # all nodes have begun their checks by then
_GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthFinding:
    """What the comparison says of one node, or of all."""

    node: str  # empty: of all
    result: Result
    compared: bool = False  # only the comparison says so; else it is the node's own result


def together(settings: Mapping[str, Mapping[str, Any]], now: float) -> dict[str, Mapping[str, Any]]:
    """The settings, so that all nodes begin at one time."""
    given = settings.get(CHECK, {})
    if not given.get("dir") or "start_at" in given:
        return dict(settings)
    return {**settings, CHECK: {**given, "start_at": now + LEAD_S}}


def judge(reports: Mapping[str, Report]) -> list[WidthFinding]:
    """First what holds for all, then each node that stands out, worst first.

    `reports` by node. Throughput in all counts from the first node's start to the last one's end.
    """
    findings = {
        node: finding
        for node, report in reports.items()
        for finding in report.findings
        if finding.check == CHECK and finding.status is not Status.SKIP
    }
    if not findings:
        nothing = Result(status=Status.SKIP, seen=f"no node ran {CHECK}")
        return [WidthFinding(node="", result=nothing)]
    measured = {n: f for n, f in findings.items() if "write_throughput" in f.result.metrics}
    outliers = [
        WidthFinding(node=node, result=finding.result)
        for node, finding in findings.items()
        if node not in measured
    ]
    for node, finding in measured.items():
        slow = _node(node, measured) if len(measured) >= MIN_NODES else None
        if slow is not None:
            outliers.append(slow)
        elif finding.status is not Status.OK:
            outliers.append(WidthFinding(node=node, result=finding.result))
    outliers.sort(key=lambda j: (WORST_FIRST.index(j.result.status), j.node))
    return [_all(findings, measured), *outliers]


def _value(finding: Finding, name: str) -> float | None:
    metric = finding.result.metrics.get(name)
    return metric.value if metric is not None else None


def _values(measured: Mapping[str, Finding], name: str) -> list[float]:
    return [v for f in measured.values() if (v := _value(f, name)) is not None]


def _node(node: str, measured: Mapping[str, Finding]) -> WidthFinding | None:
    """A node that is slower than the median of them."""
    seen, worst = [], 1.0
    for way in ("write", "read"):
        mine = _value(measured[node], f"{way}_throughput")
        usual = median(_values(measured, f"{way}_throughput"))
        if mine is None or not usual or mine >= SLOW * usual:
            continue
        seen.append(
            f"{way}s {mine / _GB:.2f} GB/s, {100 * mine / usual:.0f} % of the median node's "
            f"{usual / _GB:.2f}"
        )
        worst = min(worst, mine / usual)
    if not seen:
        return None
    result = Result(
        status=Status.FAIL if worst < VERY_SLOW else Status.WARN,
        seen="; ".join(seen),
        expected=f"at least {100 * SLOW:.0f} % of the median",
        fix="this node alone is slow: compare its nfs.options, storage link (roce.*, nic.*) and "
        "MTU with another's",
        metrics=measured[node].result.metrics,
    )
    return WidthFinding(node=node, result=result, compared=True)


def _all(findings: Mapping[str, Finding], measured: Mapping[str, Finding]) -> WidthFinding:
    """Totals, whether they went at once, and where the time went."""
    metrics = {"nodes": Metric(value=len(measured))}
    seen = [f"{len(measured)} of {len(findings)} nodes measured"]
    if len(measured) < MIN_NODES:
        seen.append(f"too few to say which is slow (at least {MIN_NODES})")
    status, fixes = Status.OK, []
    for way in ("write", "read"):
        total = _total(measured, way)
        if total is None:
            continue
        metrics[f"{way}_total"] = Metric(value=total, unit="B/s")
        rates = _values(measured, f"{way}_throughput")
        metrics[f"{way}_median"] = Metric(value=median(rates), unit="B/s")
        seen.append(
            f"{way} {total / _GB:.2f} GB/s in all, {median(rates) / _GB:.2f} the median node"
        )
        shares = _values(measured, f"{way}_queue_share")
        if shares:
            metrics[f"{way}_queue_share"] = Metric(value=median(shares), unit="%")
            if median(shares) >= QUEUE:
                status = Status.WARN
                seen.append(
                    f"{median(shares):.1f} % of a {way}'s time is spent in the clients' own queues"
                )
                fixes.append(
                    "more connections or slots per client: nconnect, tcp_max_slot_table_entries, "
                    "max_session_slots (nfs.options)"
                )
        if (apart := _apart(measured, way)) is not None:
            status = Status.UNKNOWN
            seen.append(f"{way}s were not at once: {apart}")
            fixes.append("give all nodes the same start_at, later; write more (size, limit_s)")
    if not measured or len(measured) < len(findings):
        status = Status.UNKNOWN
        fixes.append("look at the nodes that were not measured")
    result = Result(
        status=status,
        seen="; ".join(seen),
        expected="all nodes measured at once, their time spent at the server"
        if status is not Status.OK
        else "",
        fix="; ".join(dict.fromkeys(fixes)),
        metrics=metrics,
    )
    return WidthFinding(node="", result=result)


def _total(measured: Mapping[str, Finding], way: str) -> float | None:
    """B/s from the first start to the last end."""
    begins = _values(measured, f"{way}_began")
    spans = _values(measured, f"{way}_took")
    ends = [began + took for began, took in zip(begins, spans, strict=True)]
    if not ends or max(ends) <= min(begins):
        return None
    return sum(_values(measured, f"{way}_bytes")) / (max(ends) - min(begins))


def _apart(measured: Mapping[str, Finding], way: str) -> str | None:
    """The node whose work overlapped least with the others' middle; None where all was at once."""
    if len(measured) < 2:
        return None
    spans = {}
    for node, finding in measured.items():
        began, took = _value(finding, f"{way}_began"), _value(finding, f"{way}_took")
        if began is None or not took:
            return None
        spans[node] = (began, began + took)
    begins = median(b for b, _ in spans.values())
    ends = median(e for _, e in spans.values())
    for node, (began, end) in sorted(spans.items()):
        common = min(end, ends) - max(began, begins)
        if common < TOGETHER * min(end - began, ends - begins):
            return f"{node} began {began - begins:+.1f} s from the middle of them"
    return None
