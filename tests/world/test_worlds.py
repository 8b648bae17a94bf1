"""Runs in simulated worlds: faults come, and when they are over the run trains again."""

from __future__ import annotations

from supervisor.simulate.seed_plan import Injection, SeedPlan
from supervisor.simulate.world import play


def trains_again(*injections: Injection, **changes: object) -> None:
    outcome = play(SeedPlan(seed=1, injections=injections, **changes), tell=True)
    assert not outcome.wrong, "\n".join((*outcome.timeline, *outcome.wrong))
    assert outcome.steps > 0


def test_a_node_that_loses_power() -> None:
    trains_again(Injection(kind="node power off", at=100.0, lasts=300.0, node=1))


def test_ranks_hang_while_the_clock_of_the_engine_is_set_back() -> None:
    trains_again(
        Injection(kind="ranks hang", at=100.0, lasts=0.0),
        Injection(kind="engine's clock steps, engine killed", at=130.0, lasts=0.0, amount=0.0),
    )


def test_the_same_plan_gives_the_same_world() -> None:
    plan = SeedPlan(
        seed=3, injections=(Injection(kind="node power off", at=100.0, lasts=300.0, node=1),)
    )
    assert play(plan, tell=True) == play(plan, tell=True)
