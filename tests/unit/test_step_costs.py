"""What a step costs does not grow with the nodes: as many calls with 400 as with 40."""

from __future__ import annotations

import gc
import sys
from collections import defaultdict
from collections.abc import Callable
from types import FrameType

import pytest

from bench.mission_sizes import Life
from supervisor.core import events as ev
from supervisor.core.failure_detector import FailureDetector
from supervisor.core.policy import Policy

MANY, FEW = 400, 40
# The last event of a part begins the next phase, with orders for every node; and once names of
# nodes are put in order.
RARE = 2


class CountedLife(Life):
    """A life that counts the calls of every event."""

    def __init__(self, nodes: int, *, preflight: bool) -> None:
        self.calls: dict[str, list[int]] = defaultdict(list)  # by event
        super().__init__(nodes, nodes // 10, 2, preflight=preflight)

    def take(self, event: ev.Event) -> None:
        self.calls[type(event).__name__].append(calls(lambda: super(CountedLife, self).take(event)))


def calls(work: Callable[[], object]) -> int:
    found = 0

    def count(frame: FrameType, what: str, arg: object) -> None:
        nonlocal found
        found += what in ("call", "c_call")

    # A collection may come at any moment, and hypothesis is called at its beginning and its end.
    gc.disable()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


@pytest.mark.parametrize("preflight", [False, True])
def test_an_event_costs_the_same_with_ten_times_the_nodes(preflight: bool) -> None:
    few, many = (CountedLife(nodes, preflight=preflight) for nodes in (FEW, MANY))
    few.go()
    many.go()
    each_node = {"AgentJoined", "Prepared", "RanksStarted", "RanksExited", "Collected"}
    each_node |= {"RanksStopped", *(["HealthSeen"] if preflight else [])}
    assert each_node <= many.calls.keys() and few.calls.keys() == many.calls.keys()
    for kind in each_node:
        small, large = (sorted(life.calls[kind])[-1 - RARE] for life in (few, many))
        assert large <= small, f"{kind}: {small} calls with {FEW} nodes, {large} with {MANY}"


def test_a_look_at_who_is_silent_costs_the_same_where_nobody_is() -> None:
    counted = []
    for nodes in (FEW, MANY):
        life = Life(nodes, nodes // 10, 2)
        life.until_running()
        assert life.run is not None
        detector = FailureDetector(Policy())
        for name in life.names:
            assert detector.heard(name, life.now, life.run) == []
        detector.stepped(1, 1000, life.now)
        assert detector.check(life.now + 0.25, life.run) == []  # it learns who is there
        counted.append(calls(lambda d=detector, at=life: d.check(at.now + 0.5, at.run)))
        assert detector.check(life.now + 1e6, life.run) == [], "the engine stood still, not they"
        assert detector.check(life.now + 1e6 + 0.9, life.run) == []
        silent = [detector.check(life.now + 1e6 + n / 2, life.run) for n in range(2, 20)]
        assert any(silent), "all are silent: it is cut off"
    assert counted[0] == counted[1]
