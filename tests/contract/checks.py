"""Cases of health checks: what is done to a healthy node, and what the check must say to it.

A module tests/contract/test_checks_AREA.py has a list CASES and

    @each_of(CASES)
    def test_case(case: Case, tmp_path: Path) -> None:
        run(case, tmp_path)

test_checks_all.py demands that every check has a case for OK, for WARN or FAIL, for UNKNOWN and for
SKIP somewhere, or one with `none` that says why there can't be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from healthchecks.frame.check import Check, Gap, Result
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import CheckCall, run_probe
from healthchecks.frame.registry import registered, settings_for
from supervisor.core.check_status import Status, worst
from supervisor.core.setting import PORT_ROLES
from tests.hardware.tree import BOOT_ID, Tree, borrowed, empty

NOW = 1_764_000_000.0
Change = Callable[[Tree], Any]


def nothing(_tree: Tree) -> None:
    """The healthy node as it is."""


def both(*changes: Change) -> Change:
    """Several changes, one after another."""

    def do(tree: Tree) -> None:
        for change in changes:
            change(tree)

    return do


def wrote(path: str, text: str) -> Change:
    return lambda tree: tree.write(path, text)


def lost(path: str) -> Change:
    return lambda tree: tree.remove(path)


def garbled(path: str) -> Change:
    """It is there and can't be read."""
    return lambda tree: tree.unreadable(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One node, one check, one expected answer."""

    check: str
    name: str
    change: Change = nothing  # to the healthy node
    status: Status
    seen: str = ""  # a piece of Result.seen
    gap: Gap | None = None  # why it is only not measured, where the case is about that
    shared: str | None = None  # whose it is but this node's, where the case is about that
    options: Mapping[str, Any] = field(default_factory=dict)  # as site.yaml would have them
    ports: Mapping[str, Sequence[str]] = field(default_factory=dict)  # its roles of ports
    memory: Mapping[str, Any] = field(default_factory=dict)  # {"boot": …, "lasting": …}
    earlier: Sequence[tuple[float, Change]] = ()  # looks before: seconds ago (oldest first), change
    programs: Mapping[str, str] = field(default_factory=dict)  # what those on PATH print; or "#!…"
    env: Mapping[str, str] = field(default_factory=dict)
    repaired: float = 0.0  # when it was repaired, as the looks after that are told
    on: str = ""  # the target; all of them where empty
    empty: bool = False  # a root with nothing in it instead of the healthy node
    none: str = ""  # why there is no such case; nothing is run

    def __str__(self) -> str:
        return f"{self.check}-{self.status}-{self.name}".replace(" ", "-")


def each_of(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """One test for each case."""
    return pytest.mark.parametrize("case", [c for c in cases if not c.none], ids=str)


def run(case: Case, tmp_path: Path) -> Result:
    """Hold the check to the case; returns its last result. For what can't hang."""
    found = [*looks(case, tmp_path)][-1]
    assert found.status is case.status, f"{found.status}: {found.seen}"
    assert case.seen in found.seen, found.seen
    assert found.seen, "a result says what was seen"
    assert case.gap is None or found.gap is case.gap, found.gap
    assert case.shared is None or found.shared == case.shared, found.shared
    assert "\n" not in found.seen
    if found.status is Status.FAIL:
        assert found.expected, "a FAIL says what would be right"
        assert found.fix, "a FAIL says what to do"
    return found


def looks(case: Case, tmp_path: Path) -> list[Result]:
    """What the check says, each time that it looks."""
    check = registered()[case.check]
    options = settings_for(check, case.options)
    place = tmp_path / "bin"
    place.mkdir(exist_ok=True)
    for name, text in case.programs.items():
        program(place / name, text)
    memories: dict[str, dict[str, Any]] = {}
    found, told = [], 0.0
    with borrowed() as tree, patch.dict(os.environ, {"PATH": str(place), **case.env}):
        there = Tree(empty(tmp_path).root) if case.empty else tree
        for ago, change in [*case.earlier, (0.0, case.change)]:
            change(there)
            site = {PORT_ROLES: case.ports}
            before, told = told, case.repaired if NOW - ago >= case.repaired else 0.0
            if told != before:
                memories = {}  # healthchecks/frame/repairs.py
            results = looked(
                check,
                there,
                options,
                NOW - ago,
                memories,
                case.memory,
                case.on,
                site=site,
                repaired=told,
            )
            bad = worst(r.status for r in results)
            found.append(next(r for r in results if r.status is bad))
    return found


def looked(
    check: Check,
    tree: Tree,
    options: Mapping[str, Any],
    at: float,
    memories: dict[str, Any],
    memory: Mapping[str, Any] | None = None,
    on: str = "",
    site: Mapping[str, Any] | None = None,
    repaired: float = 0.0,
) -> list[Result]:
    """One look at a tree, on each of its targets, with the memories of earlier looks by target.

    `memory`: what a target has that was never looked at.
    """
    ctx = Ctx(
        root=tree.root,
        node="node-017",
        now=at,
        boot_id=BOOT_ID,
        memory=Memory(memory or {}, NOW),
        site=site or {},
        repaired=repaired,
    )
    targets: list[str] = [on]
    if check.targets is not None and not on:
        targets = []

        def ask(ctx: Ctx, **given: Any) -> Result:
            assert check.targets is not None
            targets.extend(check.targets(ctx, **given))
            return Result(status=Status.SKIP, seen="nothing here that it applies to")

        choosing = replace(check, run=ask, targets=None)
        none = run_probe(CheckCall(check=choosing, on="", options=options), ctx)
        if not targets:
            return [none]
    results = []
    for target in targets:
        ctx.memory = Memory(memories.get(target, memory or {}), at)
        results.append(run_probe(CheckCall(check=check, on=target, options=options), ctx))
        memories[target] = ctx.memory.data
    return results


def program(place: Path, text: str) -> None:
    """A program that prints a text; or the script itself, where the text begins with #!."""
    script = (
        text if text.startswith("#!") else f"#!/bin/sh\n/bin/cat <<'__END__'\n{text}\n__END__\n"
    )
    place.write_text(script)
    place.chmod(0o755)
