"""What a node does slower than when it was accepted, by the speeds of the deep checks."""

from __future__ import annotations

from collections.abc import Mapping

from healthchecks.frame.check import Metric
from healthchecks.frame.registry import registered
from healthchecks.frame.report import Finding
from supervisor.fleet.record import Fleet
from supervisor.fleet.types import CurrentFinding
from supervisor.host.terminal import one_line
from supervisor.report.model import Slower, names

SHARE = 0.95  # of the baseline; less is shown. Repeated runs differ by less (superv's proposal)
_SPEEDS = ("FLOP/s", "B/s")


def slower_than_accepted(
    fleet: Fleet, standing: Mapping[str, Mapping[str, CurrentFinding]]
) -> tuple[Slower, ...]:
    """The slowest against its baseline first."""
    found = []
    for node, items in standing.items():
        baseline = fleet.baseline(node)
        if baseline is None:
            continue
        before = {f.name: _speeds(f) for f in baseline.findings}
        for name, item in items.items():
            if item.at <= baseline.at:
                continue
            for what, now in _speeds(item.finding).items():
                then = before.get(name, {}).get(what)
                if then is not None and now.value < SHARE * then.value:
                    found.append(
                        Slower(
                            node=names([node]),
                            what=one_line(f"{name} {what}", 80),
                            unit=now.unit,
                            value=now.value,
                            at=item.at,
                            accepted=then.value,
                            accepted_at=baseline.at,
                        )
                    )
    return tuple(sorted(found, key=lambda s: s.value / s.accepted))


def _speeds(finding: Finding) -> dict[str, Metric]:
    check = registered().get(finding.check)
    if check is None or "deep" not in check.tags:
        return {}
    return {n: m for n, m in finding.result.metrics.items() if m.unit.endswith(_SPEEDS)}
