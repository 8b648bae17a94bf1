"""What is behind the findings of many nodes: one dead server is one cause, and not sixty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.frame.check import Gap
from healthchecks.frame.report import Finding, Report
from supervisor.core.check_status import WORST_FIRST, Status, worst
from supervisor.core.nodeset import compress

COMMON = 3  # nodes with the same finding are one cause; fewer where they are most of the fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingCause:
    """One thing that is wrong, and every node that shows it."""

    check: str  # name of the finding, with its target; the first where several checks show it
    status: Status
    nodes: tuple[str, ...]  # none where nodes disagree and nobody can be named
    of: int  # reports that were judged
    seen: tuple[tuple[str, tuple[str, ...]], ...]  # text, nodes that say so; the commonest first
    expected: str = ""
    fix: str = ""
    shared: str = ""  # as "nfs server 10.0.0.5"
    checks: tuple[str, ...] = ()  # all that show it
    common: bool = False  # many nodes show it: look for one thing behind it, not at each node

    @property
    def title(self) -> str:
        """What it is, without the nodes: a server, a check, or several that fail alike."""
        if self.shared or len(self.checks) < COMMON:
            return self.shared or self.check
        return f"{len(self.checks)} checks ({', '.join(self.checks[:2])} …)"

    def document(self) -> dict[str, Any]:
        """A row of `causes`, see docs/preflight.md."""
        return {
            "check": self.check,
            "status": self.status.value,
            "nodes": list(self.nodes),
            "of": self.of,
            "shared": self.shared,
            "common": self.common,
            "checks": list(self.checks),
            "seen": [{"text": text, "nodes": list(nodes)} for text, nodes in self.seen],
            "expected": self.expected,
            "fix": self.fix,
        }


def causes_of(reports: Mapping[str, Report]) -> list[FindingCause]:
    """What was found, grouped: by what is shared, and by check where many nodes show the same."""
    groups: dict[tuple[str, str, str], list[tuple[str, Finding]]] = {}
    for node, report in reports.items():
        texts = Counter(f.result.seen for f in report.having(Status.UNKNOWN))
        for finding in report.findings:
            if finding.not_fine:
                shared, text = finding.result.shared, finding.result.seen
                # Checks that can't ask for one reason are one thing: a lost GPU, a hung driver.
                one = finding.status is Status.UNKNOWN and texts[text] >= COMMON
                name = text if one else finding.name
                key = (shared, "", "") if shared else ("", name, finding.status.value)
                groups.setdefault(key, []).append((node, finding))
    causes = []
    for (shared, _, _), members in groups.items():
        nodes = dict.fromkeys(node for node, _ in members)
        many = len(nodes) >= COMMON or (len(nodes) > 1 and 2 * len(nodes) > len(reports))
        if shared or many:
            causes.append(_cause(members, len(reports), shared=shared, common=many))
            continue
        for node in nodes:
            own = [member for member in members if member[0] == node]
            causes.append(_cause(own, len(reports)))
    return causes


def gaps_of(reports: Mapping[str, Report]) -> list[str]:
    """What was not measured though nothing is wrong: once for each reason, and what to do."""
    apart: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for node, report in reports.items():
        for finding in report.gaps():
            why = finding.result.fix
            if finding.gap is Gap.NOT_YET:
                why = "no earlier look to compare with: look again"
            elif finding.gap is Gap.TOOL:
                why = f"{finding.result.seen}; {why}"
            nodes, checks = apart.setdefault(why, ({}, {}))
            nodes[node], checks[finding.check] = None, None
    return [
        f"not measured on {compress(nodes)} ({', '.join(checks)}): {why}"
        for why, (nodes, checks) in apart.items()
    ]


def _cause(
    members: Sequence[tuple[str, Finding]], of: int, *, shared: str = "", common: bool = False
) -> FindingCause:
    status = worst(f.status for _, f in members)
    # What could not be measured hides no warning about the same server.
    told = (status, Status.WARN) if status is Status.UNKNOWN else (status,)
    telling = [(node, f) for node, f in members if f.status in told]
    by_text: dict[str, list[str]] = {}
    for node, finding in telling:
        by_text.setdefault(finding.result.seen, []).append(node)
    texts = sorted(by_text.items(), key=lambda item: -len(item[1]))
    return FindingCause(
        check=_commonest(f.name for _, f in telling),
        status=status,
        nodes=tuple(dict.fromkeys(node for node, _ in members)),
        of=of,
        seen=tuple((text, tuple(nodes)) for text, nodes in texts),
        expected=_commonest(f.result.expected for _, f in telling),
        fix=_commonest(f.result.fix for _, f in telling),
        shared=shared,
        checks=tuple(dict.fromkeys(f.check for _, f in members)),
        common=common,
    )


def _commonest(texts: Iterable[str]) -> str:
    return Counter(texts).most_common(1)[0][0]


def urgency(cause: FindingCause) -> tuple[int, int, str]:
    """To sort by: the worst first, then the widest."""
    return WORST_FIRST.index(cause.status), -len(cause.nodes), cause.check
