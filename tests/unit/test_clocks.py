"""Clocks that step: those of nodes, and the engine's machine's between two engines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core.types import Phase
from supervisor.engine.clock import SteadyClock

OFF = st.sampled_from([-86_400.0, -3600.0, -60.0, -0.5, 0.0, 0.5, 60.0, 3600.0, 86_400.0])


def running() -> Scenario:
    return Scenario(backoff_s=(0.0,)).to(Phase.RUNNING)


@given(OFF)
def test_no_recovery_takes_less_than_nothing_whatever_a_node_s_clock_says(off: float) -> None:
    p = running()
    p.exit(0, clock=off)
    p.recover_to_first_step()
    incident = p.run.incidents[-1]
    assert incident.first_step_at is not None and incident.suspected_at is not None
    began = incident.fault_at if incident.fault_at is not None else incident.suspected_at
    assert 0 <= incident.first_step_at - began < 60
    assert (incident.fault_at is None) == (abs(off) >= 60)


@given(st.lists(OFF, min_size=1, max_size=6), st.sampled_from(["backoff", "prepare"]))
def test_no_deadline_is_further_away_than_it_is_long(steps: list[float], kind: str) -> None:
    """Engines start one after the other, and between them the machine's clock is set."""
    p = Scenario(backoff_s=(10.0,)).to(Phase.RUNNING if kind == "backoff" else Phase.CHECKING)
    if kind == "backoff":
        p.exit(0)
        while p.phase is not Phase.BACKOFF:
            p.answer(*{type(a) for a in p.run.pending.values()})
    assert p.run.deadline is not None
    length = p.run.deadline.at - p.now
    wall = p.now
    for epoch, off in enumerate(steps, start=2):
        wall += off
        clock = SteadyClock(p.now, wall=lambda: wall, monotonic=lambda: 0.0)  # noqa: B023
        assert clock() >= p.now
        p.take(
            ev.EngineStarted,
            after=clock() - p.now,
            epoch=epoch,
            host="login",
            endpoint="tcp://10.0.0.1:5555",
        )
        assert p.run.deadline is not None
        assert p.run.deadline.at - p.now <= max(length, 30.0)
