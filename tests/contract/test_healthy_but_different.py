"""No check cries on a node that is healthy and of another make: the corpus of healthy.py.

Each node is looked at twice, a minute apart, by all checks that its files and NVML can answer: in
a process that loads the NVML of tests/hardware/nvml.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from checks import NOW, looked
from healthy import NODES, HealthyNode
from healthy_more import MORE

from healthchecks.frame.check import Check, Result, Status
from healthchecks.frame.registry import registered, settings_for
from tests.hardware.nvml import Worker, build
from tests.hardware.tree import Tree, borrowed

CASES = [*NODES, *MORE]  # for the worker
APART_S = 60.0
# Judged by more than a tree holds: this machine's clock, the network, a C library.
ELSEWHERE = {"clock", "path.mtu", "ib.mtu", "roce.mtu", "nfs.gate", "nfs.alive", "gpu.leftover"}


def run(node: HealthyNode, tmp_path: Path) -> Result:
    """All looks of all checks at one node; raises AssertionError with what cried."""
    place = tmp_path / "bin"
    place.mkdir()
    checks = [c for c in registered().values() if c.name not in ELSEWHERE and c.tags != {"deep"}]
    memories: dict[str, dict[str, Any]] = {}
    cries = []
    with borrowed() as tree, patch.dict(os.environ, {"PATH": str(place)}):
        (node.before or node.change)(tree)
        cries += _look(node, tree, checks, NOW - APART_S, memories, "first")
        if node.before is not None:
            node.change(tree)
        cries += _look(node, tree, checks, NOW, memories, "second")
    assert not cries, "\n".join(cries)
    return Result(status=Status.OK, seen="nothing cried")


def _look(
    node: HealthyNode,
    tree: Tree,
    checks: Sequence[Check],
    at: float,
    memories: dict[str, dict[str, Any]],
    which: str,
) -> list[str]:
    found = []
    for check in checks:
        options = settings_for(check, node.options.get(check.name, {}))
        kept = memories.setdefault(check.name, {})
        for result in looked(check, tree, options, at, kept):
            if cry(node, check.name, result):
                found.append(f"{check.name} at the {which} look: {result.status}: {result.seen}")
    return found


def cry(node: HealthyNode, check: str, result: Result) -> bool:
    """Whether an operator would curse."""
    if result.status is Status.WARN:
        return check not in node.worth or node.worth[check] not in result.seen
    return result.status in (Status.FAIL, Status.UNKNOWN) and not getattr(result, "gap", None)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    library = build(tmp_path_factory.mktemp("nvml"))
    one = Worker(library, Path(__file__), library / "worker.log")
    yield one
    one.close()


@pytest.mark.parametrize("node", CASES, ids=str)
def test_no_check_cries(node: HealthyNode, worker: Worker, tmp_path: Path) -> None:
    assert node.source
    said = worker.ask(str(node), tmp_path)
    assert "error" not in said, said["error"]
