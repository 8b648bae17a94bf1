"""A run begun from what agents know goes on like any other; no step of it breaks an invariant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scenario import HOME, Scenario, checked, spec

from supervisor.channel.wire import event_from, plain
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.types import (
    Checkpoint,
    DeadlineKind,
    NodeState,
    Phase,
    RankExit,
)

JOB = ev.AdoptedJob(
    job_id="101", job_name="superv-moe-012345-3", raw="RUNNING", nodes=("n1", "n2", "n3")
)
RESUMED = Checkpoint(step=500, path=f"{HOME}/a0003/step-500", attempt=3, verified_at=900.0)


def agent(node: str) -> ev.AdoptedAgent:
    return ev.AdoptedAgent(
        node=node, job_id="101", address=f"10.0.1.{node[1:]}", port=7000, agent=f"old-{node}"
    )


def adopted(**fields: Any) -> Scenario:
    """A run of 2 nodes and a spare, adopted in attempt 4, and its engine."""
    p = Scenario()
    p.run = None  # type: ignore[assignment]
    p.events = []
    first = {
        "who": "ann",
        "why": "journal.jsonl: gone",
        "spec": spec(),
        "endpoint": "tcp://10.0.0.1:5556",
        "jobs": (JOB,),
        "attempt": 4,
        "slots": ("n2", "n1"),
        "resume": RESUMED,
        "lineage": (RESUMED,),
        "agents": (agent("n1"), agent("n2")),
    }
    p.take(ev.Adopted, **{**first, **fields})
    p.take(ev.EngineStarted, epoch=8, host="login", endpoint="tcp://10.0.0.1:5556")
    return p


def test_ranks_that_answer_go_on_and_recover_from_what_they_resumed() -> None:
    p = adopted()
    assert (p.phase, p.run.deadline and p.run.deadline.kind) == (
        Phase.STARTING,
        DeadlineKind.FIRST_STEP,
    )
    assert p.run.pending == {}, "nothing is ordered: the ranks are left alone"
    p.take(ev.Progress, attempt=4, step=731)
    assert p.phase is Phase.RUNNING
    p.take(
        ev.RankExited, attempt=4, exit=RankExit(node="n1", rank=1, code=1, signal=None, at=p.now)
    )
    assert p.phase is Phase.STOPPING
    p.answer(act.Stop, act.Collect)
    (scan,) = [a for a in p.run.pending.values() if isinstance(a, act.Scan)]
    assert scan.directory == f"{HOME}/a0004"
    assert scan.known == ((500, RESUMED.path, 3),), "it is verified before it is used again"


def test_a_slot_whose_agent_did_not_answer_is_watched_like_any_other() -> None:
    p = adopted(agents=(agent("n1"),))
    p.silent("n2")
    (probe,) = [a for a in p.run.pending.values() if isinstance(a, act.Probe)]
    assert (probe.node, probe.address) == ("n1", "n2")
    p.take(
        ev.AgentJoined,
        node="n2",
        job_id="101",
        address="10.0.1.2",
        port=7000,
        agent="new",
        attempt=4,
        ranks=1,
    )
    assert (p.phase, p.run.incidents) == (Phase.STARTING, ())
    assert p.run.pool["n2"].state is NodeState.READY


def test_an_agent_that_comes_without_its_ranks_is_an_incident() -> None:
    p = adopted(agents=(agent("n1"),))
    p.take(
        ev.AgentJoined, node="n2", job_id="101", address="10.0.1.2", port=7000, agent="new", ranks=0
    )
    assert p.phase is Phase.STOPPING and p.run.incidents[-1].cause.value == "ranks-lost"


def test_without_ranks_the_nodes_are_gathered() -> None:
    p = adopted(attempt=None, slots=(), agents=(), resume=None, lineage=())
    assert (p.phase, p.run.pool) == (Phase.GATHERING, {})
    assert p.run.allocations_requested == 3
    waiting = replace(JOB, raw="PENDING", nodes=())
    p = adopted(attempt=None, slots=(), agents=(), resume=None, lineage=(), jobs=(waiting,))
    assert p.phase is Phase.PENDING


@pytest.mark.parametrize("attempt", [None, 4])
def test_it_is_journaled_as_it_is(attempt: int | None) -> None:
    first = adopted(attempt=attempt).events[0]
    assert event_from(plain(first)) == first
    assert checked(None, first).actions == []
