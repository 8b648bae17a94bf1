"""A run begun from what agents know goes on like any other; no step of it breaks an invariant."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from scenario import HOME, Scenario, checked, spec

from supervisor.channel.wire import event_from, plain
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.adoption import places
from supervisor.core.ports import JobState, JobStatus, Launcher
from supervisor.core.types import (
    Checkpoint,
    DeadlineKind,
    NodeState,
    Phase,
    RankExit,
)
from supervisor.engine.lost_run import active_jobs
from supervisor.run.folder import RunDir
from supervisor.run.journal import Journal

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


def test_a_slot_of_a_node_that_has_left_the_job_gets_a_spare_at_once() -> None:
    """The journal before knew who had it; Slurm runs the job without that node."""
    p = adopted(jobs=(replace(JOB, nodes=("n1", "n3")),), agents=(agent("n1"),))
    assert not p.run.pool["n2"].listed
    p.take(ev.Progress, attempt=4, step=731)
    p.take(
        ev.AgentJoined, node="n3", job_id="101", address="10.0.1.3", port=7000, agent="x", ranks=0
    )
    p.take(ev.HeartbeatLost, node="n2", last_heard=p.now, after=10.0)
    assert p.state("n2") is NodeState.LOST and p.incident.cause == "node-lost"
    p.finish_stop_and_scan()
    assert (p.phase, p.slots) == (Phase.CHECKING, "n3 n1")


@pytest.mark.parametrize(
    ("told", "before", "there", "heard", "placed"),
    [
        ({0: "n1", 1: "n2"}, "", "n1 n2 n3", "n1 n2 n3", "n1 n2"),
        ({0: "n1"}, "n1 n2", "n1 n2 n3", "n1", "n1 n2"),
        ({1: "n1"}, "n1 n2", "n1 n2 n3", "n1 n3", "n2 n1"),  # agents go before the journal
        ({0: "n1"}, "", "n1 n2 n3", "n1 n3", "n1 n2"),  # a silent node has ranks; n3 said no
        ({0: "n1"}, "", "n1 n2 n3", "n1", None),  # either may have the slot
        ({0: "n1"}, "n1 n2", "n1 n3", "n1 n3", "n1 n3"),  # n2 has left: a node of the job does
        ({0: "n1"}, "n1 n2", "n1 n3", "n1", "n1 n2"),  # and itself, where none is known to be free
        ({0: "n1"}, "n1 n2", "n1 n3 n4", "n1", "n1 n2"),  # nobody's slot is in question
        ({}, "n1 n2", "n3", "n3", "n3 n2"),
    ],
)
def test_slots_go_to_whoever_has_ranks_and_to_who_has_left_last(
    told: dict[int, str], before: str, there: str, heard: str, placed: str | None
) -> None:
    found = places(2, told, before.split(), there.split(), {*heard.split()})
    if placed is None:
        assert (found.open, found.silent) == ((1,), ("n2", "n3"))
    else:
        assert (found.open, [found.nodes[0], found.nodes[1]]) == ((), placed.split())


# --- whose jobs are there -------------------------------------------------------------------------


class Jobs:
    """What a scheduler says of jobs: by name, and by id."""

    def __init__(self, *jobs: JobStatus) -> None:
        self.jobs = {job.job_id: job for job in jobs}

    async def find(self, name_prefix: str, *, past: bool = True) -> list[JobStatus]:
        return [job for job in self.jobs.values() if job.job_name.startswith(name_prefix)]

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        return {j: self.jobs.get(j, JobStatus.forgotten(j, "no such job")) for j in jobs}


def job(job_id: str, name: str, state: str = "running") -> JobStatus:
    return JobStatus(job_id=job_id, job_name=name, state=JobState(state), raw=state.upper())


OURS = "superv-moe-012345-1"


@pytest.mark.parametrize(
    ("there", "active"),
    [
        ([job("101", OURS)], ["101"]),
        ([job("101", OURS, "ended")], []),
        ([], []),
        ([job("101", "moe, please keep")], ["101"]),  # a person has renamed it
        ([job("101", "moe, please keep", "ended")], []),
        ([job("101", "superv-other-99abcd-1")], []),  # its number is another run's job's by now
        ([job("101", OURS, "unknown")], ["101"]),  # its ranks may go on
        ([JobStatus.unknown("101", "slurmctld is away")], ["101"]),
        ([job("101", "x"), job("102", "superv-moe-012345-2")], ["102", "101"]),
    ],
)
def test_a_job_that_is_not_listed_under_the_run_s_name_is_its_own_all_the_same(
    tmp_path: Path, there: list[JobStatus], active: list[str]
) -> None:
    """Who takes it for gone starts a second one beside its ranks."""
    run = RunDir(tmp_path / "moe")
    run.path.mkdir()
    journal = Journal(run.journal)
    for event in Scenario().to(Phase.RUNNING).events:
        journal.append(event, (), epoch=1)
    journal.close()
    with run.journal.open("ab") as damaged:
        damaged.write(b"{}\n{}\n")
    found = asyncio.run(active_jobs(cast(Launcher, Jobs(*there)), run))
    assert [one.job_id for one in found] == active
    assert all(one.job_name.startswith("superv-moe-012345-") for one in found)


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
