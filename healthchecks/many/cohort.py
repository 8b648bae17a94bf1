"""What only the comparison of many reports shows: nodes that differ from others of their hardware.

Pure. A node's hardware class is its GPU model, without one its CPU model; counts and versions are
not part of it, so that a node that lost a GPU is still compared with its fellows. Each fact that a
check reports is compared within a class: outliers differ from what at least two thirds of at least
three nodes say. Where no value has two thirds, nobody is named. A pinned profile comes before the
cohort.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from healthchecks.frame.check import Check, Result
from healthchecks.frame.report import Finding, Report
from healthchecks.many import storage_width
from healthchecks.many.causes import FindingCause, causes_of, gaps_of, urgency
from supervisor.core.check_status import Status, worst
from supervisor.core.errors import UserError
from supervisor.core.nodeset import compress

MIN_NODES = 3  # nodes that report a fact before anybody is an outlier
SHARE = 2 / 3  # of them that must agree

# Facts that name a node's hardware class, the telling one first: (check, fact).
CLASS_FACTS = (("versions", "gpu"), ("accel.versions", "gpu"), ("cpu.layout", "model"))

Golden = Mapping[str, Mapping[str, str]]  # finding's name → fact → value


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedReports:
    """Reports with what only their comparison shows."""

    reports: Mapping[str, Report]
    causes: tuple[FindingCause, ...]  # worst first, then the widest
    hardware_classes: Mapping[str, tuple[str, ...]]  # → nodes; "" where nothing names it
    notes: tuple[str, ...] = ()  # what could not be compared

    @property
    def status(self) -> Status:
        return worst([*(c.status for c in self.causes), *(r.status for r in self.reports.values())])

    @property
    def compared(self) -> frozenset[str]:
        """Nodes that were compared with enough others of their hardware to be outliers."""
        return frozenset(
            n for alike in self.hardware_classes.values() if len(alike) >= MIN_NODES for n in alike
        )


def judge(
    reports: Mapping[str, Report], checks: Mapping[str, Check], golden: Golden | None = None
) -> ComparedReports:
    """Compare the reports, and group what they found by cause.

    `checks` are the registered ones: their `cohort` says what a difference means; facts of a check
    without it are not compared. A node's own findings stay as they are; a difference is one more
    finding of the same check, on `cohort` or on `golden`.
    """
    classes = hardware_classes(reports)
    more: dict[str, list[Finding]] = {}
    split: list[FindingCause] = []
    notes: list[str] = []
    for hardware, nodes in classes.items():
        group = {node: reports[node] for node in nodes}
        ours = golden if golden and _is_of(golden, hardware) else {}
        for name in _compared(group, checks):
            comparison = _Comparison(
                name, group, checks[_check(name)], hardware, ours.get(name, {})
            )
            for node, finding in comparison.outliers():
                more.setdefault(node, []).append(finding)
            split += comparison.split(len(reports))
        if len(nodes) < MIN_NODES and len(classes) > 1:
            notes.append(
                f"{compress(nodes)}: fewer than {MIN_NODES} of their kind ({hardware or '?'})"
            )
    whole, *slow = storage_width.judge(reports)
    for item in slow:
        if item.compared:
            found = Finding(check=storage_width.CHECK, on="cohort", result=item.result)
            more.setdefault(item.node, []).append(found)
    if whole.result.status is Status.OK:
        notes.append(f"{storage_width.CHECK}: {whole.result.seen}")
    elif whole.result.status is not Status.SKIP:
        split.append(_of_all(whole.result, len(reports)))
    notes += gaps_of(reports)
    judged = {
        node: replace(report, findings=(*report.findings, *more.get(node, ())))
        for node, report in reports.items()
    }
    causes = sorted([*causes_of(judged), *split], key=urgency)
    return ComparedReports(
        reports=judged, causes=tuple(causes), hardware_classes=classes, notes=tuple(notes)
    )


def _of_all(result: Result, of: int) -> FindingCause:
    return FindingCause(
        check=storage_width.CHECK,
        status=result.status,
        nodes=(),
        of=of,
        seen=((result.seen, ()),),
        expected=result.expected,
        fix=result.fix,
        checks=(storage_width.CHECK,),
    )


# --- hardware classes ---


def hardware_classes(reports: Mapping[str, Report]) -> dict[str, tuple[str, ...]]:
    """Nodes by class. One that reports no model joins the only class that fits what it reports."""
    models = {
        node: tuple(_fact(report, *place) for place in CLASS_FACTS)
        for node, report in reports.items()
    }
    classes: dict[str, list[str]] = {}
    gpus = {node: next(filter(None, told[:-1]), "") for node, told in models.items()}
    for node, (*_, cpu) in models.items():
        hardware = gpus[node]
        if not hardware:
            alike = {g for n, g in gpus.items() if g and (models[n][-1] == cpu or not cpu)}
            hardware = alike.pop() if len(alike) == 1 else cpu
        if not hardware and len(cpus := {c for *_, c in models.values() if c}) == 1:
            hardware = cpus.pop()
        classes.setdefault(hardware, []).append(node)
    return {hardware: tuple(nodes) for hardware, nodes in sorted(classes.items())}


def _fact(report: Report, check: str, fact: str) -> str:
    return next((f.result.facts.get(fact, "") for f in report.findings if f.check == check), "")


def _is_of(golden: Golden, hardware: str) -> bool:
    """Whether the pinned profile is of this class; one that names none is of every class."""
    pinned = [golden.get(check, {}).get(fact, "") for check, fact in CLASS_FACTS]
    return not any(pinned) or hardware in pinned


# --- differences ---


def _check(name: str) -> str:
    return name.partition("[")[0]


def _compared(reports: Mapping[str, Report], checks: Mapping[str, Check]) -> list[str]:
    """Names of the findings that report facts of checks that are compared."""
    names = {
        f.name: None
        for report in reports.values()
        for f in report.findings
        if f.result.facts and f.check in checks and checks[f.check].cohort is not None
    }
    return list(names)


@dataclass(slots=True)
class _Comparison:
    """The facts of one check, on one target, over the nodes of a kind."""

    name: str
    reports: Mapping[str, Report]
    check: Check
    hardware: str
    golden: Mapping[str, str]
    own: dict[str, Finding] = field(init=False)  # by node: its finding of this name
    ran: list[str] = field(init=False)  # nodes on which the check was run at all

    def __post_init__(self) -> None:
        self.own = {
            node: f for node, r in self.reports.items() for f in r.findings if f.name == self.name
        }
        self.ran = [
            node
            for node, r in self.reports.items()
            if any(f.check == self.check.name for f in r.findings)
        ]

    def facts(self) -> list[str]:
        names = {fact: None for f in self.own.values() for fact in f.result.facts}
        return list({**names, **dict.fromkeys(self.golden)})

    def reported(self, fact: str) -> dict[str, str]:
        return {n: f.result.facts[fact] for n, f in self.own.items() if fact in f.result.facts}

    def lacking(self, fact: str) -> list[str]:
        return [node for node in self.ran if fact not in self._facts(node)]

    def _facts(self, node: str) -> Mapping[str, str]:
        return self.own[node].result.facts if node in self.own else {}

    def outliers(self) -> Iterator[tuple[str, Finding]]:
        """Nodes that differ from the cohort or from the pinned profile."""
        for against in ("cohort", "golden"):
            differ: dict[str, list[tuple[str, str]]] = {}  # node → (seen, expected)
            for fact in self.facts():
                if (fact in self.golden) != (against == "golden"):
                    continue
                right, words = self._right(fact)
                if right is None:
                    continue
                usual = against == "golden" or self._is_usual(fact)
                for node in self.ran:
                    value = self._facts(node).get(fact)
                    if value is None and not usual:
                        continue
                    if value != right and self._may_be_named(node, lacks=value is None):
                        seen = f"{fact} {value}" if value is not None else self._without(node, fact)
                        differ.setdefault(node, []).append((seen, f"{fact} {right}{words}"))
            for node, pairs in differ.items():
                yield node, self._finding(against, pairs)

    def _right(self, fact: str) -> tuple[str | None, str]:
        """What the fact should be (None: nobody knows), and who says so."""
        if fact in self.golden:
            return self.golden[fact], ", as pinned"
        values = self.reported(fact)
        value, count = Counter(values.values()).most_common(1)[0]
        enough = len(values) >= MIN_NODES and count >= SHARE * len(values)
        if not enough or len(values) < SHARE * (len(values) + len(self._silent(fact))):
            return None, ""
        of = f" ({self.hardware})" if self.hardware else ""
        return value, f", as {count} of the {len(self.reports)} nodes of its kind{of}"

    def _is_usual(self, fact: str) -> bool:
        """Whether most nodes have such a thing at all, so one without it is an outlier."""
        values = len(self.reported(fact))
        return values >= SHARE * (values + len(self.lacking(fact)))

    def _may_be_named(self, node: str, *, lacks: bool) -> bool:
        """Whether a difference says more of the node than its own finding does."""
        own = self.own.get(node)
        if own is None:  # the target is not there, or the check does not apply
            return all(s is not Status.UNKNOWN for s in self._statuses(node))
        if own.status is Status.UNKNOWN:
            return not lacks
        return own.status is not Status.FAIL

    def _statuses(self, node: str) -> list[Status]:
        return [f.status for f in self.reports[node].findings if f.check == self.check.name]

    def _without(self, node: str, fact: str) -> str:
        own = self.own.get(node)
        if own is None:
            return f"{self.name} is not there"
        if own.status is Status.SKIP:
            return f"no {fact}: {own.result.seen}"
        return f"no {fact}"

    def _finding(self, against: str, pairs: Sequence[tuple[str, str]]) -> Finding:
        target = self.name.partition("[")[2].removesuffix("]")
        assert self.check.cohort is not None
        return Finding(
            check=self.check.name,
            on=f"{target} {against}".strip(),
            result=Result(
                status=self.check.cohort,
                seen=_some(list(dict.fromkeys(seen for seen, _ in pairs))),
                expected=_some([expected for _, expected in pairs]),
                fix=f"compare with another node: superv check {self.check.name}; where the "
                "difference is meant, pin the profile again or give these nodes a run of their own",
            ),
        )

    def split(self, of: int) -> list[FindingCause]:
        """Facts of which nobody can say what is right."""
        texts = []
        for fact in self.facts():
            if fact in self.golden:
                continue
            values = self.reported(fact)
            if self._right(fact)[0] is not None:
                continue
            if len(set(values.values())) > 1:
                texts.append(f"{fact} is {_values_text(values)}")
            elif len(values) > 1 and (
                silent := [n for n in self._silent(fact) if self._is_well(n)]
            ):
                texts.append(
                    f"{fact} is reported by {len(values)} nodes, and not by {compress(silent)}"
                )
        if not texts:
            return []
        return [
            FindingCause(
                check=self.name,
                status=Status.UNKNOWN,
                nodes=(),
                of=of,
                seen=(
                    (f"nodes of one kind differ, and none is in the majority: {_some(texts)}", ()),
                ),
                expected=f"one value on {SHARE:.0%} of at least {MIN_NODES} nodes",
                fix="decide which is right, then pin it: superv preflight NODES --pin FILE",
                checks=(self.check.name,),
            )
        ]

    def _is_well(self, node: str) -> bool:
        return node in self.own and self.own[node].status in (Status.OK, Status.WARN)

    def _silent(self, fact: str) -> list[str]:
        """Nodes that should report the fact and do not; not those where it has no place."""
        return [
            node
            for node in self.lacking(fact)
            if (node in self.own and self.own[node].status is not Status.SKIP)
            or Status.UNKNOWN in self._statuses(node)
        ]


def _values_text(values: Mapping[str, str]) -> str:
    nodes: dict[str, list[str]] = {}
    for node, value in values.items():
        nodes.setdefault(value, []).append(node)
    parts = sorted(nodes.items(), key=lambda item: -len(item[1]))
    return _some([f"{value} on {compress(names)}" for value, names in parts], " and ")


def _some(texts: Sequence[str], glue: str = "; ", most: int = 4) -> str:
    more = f"{glue}{len(texts) - most} more" if len(texts) > most else ""
    return glue.join(texts[:most]) + more


# --- the pinned profile ---


def pin(reports: Mapping[str, Report], checks: Mapping[str, Check]) -> dict[str, dict[str, str]]:
    """The profile that the majority of these nodes has; facts without a majority are left out.

    Raises UserError where the nodes are of several kinds, or where nothing can be pinned.
    """
    classes = hardware_classes({node: r for node, r in reports.items() if _has_facts(r)})
    if len(classes) > 1:
        listed = "; ".join(
            f"{hardware or 'unknown'}: {compress(nodes)}" for hardware, nodes in classes.items()
        )
        raise UserError(f"these nodes are of several kinds ({listed}); pin one kind at a time")
    found: dict[str, dict[str, str]] = {}
    for hardware, nodes in classes.items():
        group = {node: reports[node] for node in nodes}
        for name in sorted(_compared(group, checks)):
            comparison = _Comparison(name, group, checks[_check(name)], hardware, {})
            for fact in comparison.facts():
                right, _ = comparison._right(fact)
                if right is not None:
                    found.setdefault(name, {})[fact] = right
    if not found:
        raise UserError(
            f"nothing to pin: no fact is the same on two thirds of at least {MIN_NODES} nodes"
        )
    return found


def _has_facts(report: Report) -> bool:
    return any(f.result.facts for f in report.findings)
