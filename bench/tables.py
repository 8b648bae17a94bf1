"""Tables of a file of samples: median and spread, and whether targets are met."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from statistics import median, quantiles
from typing import Any

SCALE = {"ms": 1e3, "s": 1.0, "MB": 1.0, "%": 1.0}
DIGITS = {"ms": 1, "s": 2, "MB": 1, "%": 2}


def values(measured: dict[str, Any], case: str, key: str) -> list[float]:
    """All samples of one quantity in one case."""
    samples = [s for s in measured["samples"] if s["case"] == case]
    return [s["values"][key] for s in samples if key in s["values"]]


def middle_half(found: list[float]) -> float:
    """The interquartile range."""
    if len(found) < 2:
        return 0.0
    low, _, high = quantiles(found, n=4, method="inclusive")
    return high - low


def limit(measured: dict[str, Any], target: dict[str, Any]) -> float | None:
    """What a median may be; None where the case that it is a share of was not measured."""
    if not target["of"]:
        return float(target["at_most"])
    base = values(measured, target["of"], target["key"])
    return target["at_most"] * median(base) if base else None


def verdicts(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool | None]]:
    """Every target: the measurement's name, the target, and whether it is met (None: unknown)."""
    for name, measured in document["measurements"].items():
        for target in measured["targets"]:
            found = values(measured, target["case"], target["key"])
            most = limit(measured, target)
            yield name, target, None if not found or most is None else median(found) <= most


def table(name: str, measured: dict[str, Any]) -> Iterator[str]:
    yield f"{name}: {measured['about']}"
    for how in ("not_measured", "wrong", "broken"):
        if how in measured:
            yield f"  {how.replace('_', ' ')}: {measured[how]}"
    cases = list(dict.fromkeys(s["case"] for s in measured["samples"]))
    if not cases:
        yield ""
        return
    shown = [c for c in measured["columns"] if any(values(measured, k, c["key"]) for k in cases)]
    width = max(len(case) for case in cases)
    wide = max(len(column["title"]) for column in shown)
    head = f"  {'':<{width}}  {'':<{wide}} {'n':>2} {'median':>7}  {'min-max':>12} {'IQR':>6}"
    yield f"{head} {'':<3}target"
    for case in cases:
        for column in shown:
            found = values(measured, case, column["key"])
            if found:
                head = f"  {case:<{width}}  {column['title']:<{wide}}"
                yield f"{head} {_row(measured, case, column, found)}".rstrip()
    yield from ("  load average meanwhile:", *_loads(measured, cases))
    yield ""


def _loads(measured: dict[str, Any], cases: list[str]) -> list[str]:
    lines = []
    for case in cases:
        loads = sorted(s["load"] for s in measured["samples"] if s["case"] == case)
        lines.append(f"    {case} {loads[0]:.1f}-{loads[-1]:.1f}")
    return lines


def _row(measured: dict[str, Any], case: str, column: dict[str, str], found: list[float]) -> str:
    unit = column["unit"]

    def show(value: float) -> str:
        return f"{value * SCALE[unit]:.{DIGITS[unit]}f}"

    spread = f"{show(min(found))}-{show(max(found))}"
    met_or_not = ""
    for target in measured["targets"]:
        if (target["case"], target["key"]) == (case, column["key"]):
            most = limit(measured, target)
            if most is not None:
                share = f" ({target['at_most']:g}x {target['of']})" if target["of"] else ""
                met = "met" if median(found) <= most else "NOT met"
                met_or_not = f"<= {show(most)}{share} {met}"
    return (
        f"{len(found):>2} {show(median(found)):>7}  {spread:>12} "
        f"{show(middle_half(found)):>6} {unit:<3}{met_or_not}"
    )


def report(document: dict[str, Any]) -> Iterator[str]:
    """Everything in a file of samples, for a terminal of 100 columns."""
    machine, versions = document["machine"], document["versions"]
    yield f"{document['date']}  revision {document['revision'][:12]}" + (
        " with changes" if document["changed_files"] else ""
    )
    yield (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}"
    )
    yield from textwrap.wrap(", ".join(f"{name} {text}" for name, text in versions.items()), 100)
    yield ""
    for name, measured in document["measurements"].items():
        yield from table(name, measured)
    missed = [(name, t) for name, t, met in verdicts(document) if met is False]
    unknown = [(name, t) for name, t, met in verdicts(document) if met is None]
    met = sum(1 for *_, met in verdicts(document) if met)
    yield f"targets: {met} met, {len(missed)} NOT met, {len(unknown)} not measured"
    for name, target in missed:
        yield f"  NOT met: {name}: {target['case']}: {target['key']}"
    for name, target in unknown:
        yield f"  not measured: {name}: {target['case']}: {target['key']}"
