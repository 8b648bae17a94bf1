"""What one engine concludes of many looks at Slurm; time is a number here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import TransientError
from supervisor.core.ports import JobState, JobStatus, LaunchSpec, Shortage
from supervisor.core.types import Phase
from supervisor.engine.slurm_looks import SlurmLooks

SPEC = LaunchSpec(job_name="superv-moe-012345-1", nodes=3, folder="/t")
FORGOTTEN = JobStatus.forgotten("101", "squeue forgot the job")
UNKNOWN = JobStatus.unknown("101", "squeue did not answer")


class AnswersOfSlurm:
    """Answers as a test has it."""

    def __init__(self) -> None:
        self.status = FORGOTTEN
        self.there: list[JobStatus] = []
        self.lacking: Shortage | None = Shortage(lacking=0)

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        return {job: self.status for job in jobs}

    async def find(self, name_prefix: str, *, past: bool = True) -> list[JobStatus]:
        assert not past
        return [job for job in self.there if job.job_name.startswith(name_prefix)]

    async def shortage(self, spec: LaunchSpec) -> Shortage:
        if self.lacking is None:
            raise TransientError("sinfo did not answer")
        return self.lacking


class LooksPlay:
    def __init__(self, phase: Phase = Phase.RUNNING) -> None:
        self.run, self.slurm, self.now = Scenario().to(phase).run, AnswersOfSlurm(), 5000.0
        self.heard: float | None = None
        self.looks = SlurmLooks(self.slurm, lambda: self.run, lambda: self.now, lambda: SPEC)  # type: ignore[arg-type]
        self.looks.heard_at = lambda job: self.heard

    def look(self, after: float) -> list[ev.Event]:
        self.now += after

        async def events() -> list[ev.Event]:
            return [event async for event in self.looks.events()]

        return asyncio.run(events())


@pytest.mark.parametrize("pause", [0.1, 1.0, 20.0])
def test_a_forgotten_job_has_ended_after_a_while_and_never_before(pause: float) -> None:
    p, began, looks = LooksPlay(), 5000.0 + pause, 0
    while not (seen := p.look(pause)):
        looks += 1
        assert p.now - began < 90
    assert [(type(e), e.state) for e in seen] == [(ev.AllocationSeen, JobState.FORGOTTEN)]  # type: ignore[attr-defined]
    assert looks >= 2 and p.now - began >= 30


def test_a_job_whose_agents_are_heard_is_not_over_whatever_slurm_says() -> None:
    p = LooksPlay()
    for _ in range(50):
        p.heard = p.now
        assert p.look(20.0) == []
    assert p.look(40.0) != []


def test_a_job_that_slurm_knows_again_was_not_forgotten() -> None:
    p = LooksPlay()
    p.look(20.0), p.look(20.0)
    job = p.run.allocations["101"]
    p.slurm.status = JobStatus(
        job_id="101", job_name=job.job_name, state=JobState.RUNNING, raw="RUNNING", nodes=job.nodes
    )
    p.look(20.0)
    p.slurm.status = FORGOTTEN
    assert p.look(20.0) == p.look(20.0) == []


def test_no_answer_is_no_word_of_a_job() -> None:
    p = LooksPlay()
    p.slurm.status = UNKNOWN
    assert [p.look(20.0) for _ in range(20)] == [[]] * 20


def test_a_drain_is_still_there_while_slurm_does_not_say_which_nodes_are() -> None:
    played = Scenario().to(Phase.RUNNING)
    p = LooksPlay()
    job = p.run.allocations["101"]
    running = JobStatus(
        job_id="101", job_name=job.job_name, state=JobState.RUNNING, raw="RUNNING", nodes=job.nodes
    )
    p.slurm.status = replace(running, drained=("n2",))
    (seen,) = p.look(20.0)
    assert isinstance(seen, ev.AllocationSeen) and seen.drained == ("n2",)
    played.seen("running", nodes=job.nodes, drained=("n2",))
    p.run = played.run
    p.slurm.status = replace(running, nodes_read=False)
    assert p.look(20.0) == []


def down_on(p: LooksPlay, *names: str) -> JobStatus:
    job = p.run.allocations["101"]
    return JobStatus(
        job_id="101",
        job_name=job.job_name,
        state=JobState.RUNNING,
        raw="RUNNING",
        nodes=job.nodes,
        down=names,
    )


def seen_down(events: list[ev.Event]) -> list[tuple[str, ...]]:
    return [e.down for e in events if isinstance(e, ev.AllocationSeen)]


def test_a_node_is_down_at_the_second_look_that_says_so() -> None:
    p = LooksPlay()
    p.slurm.status = down_on(p)
    assert seen_down(p.look(20.0)) == [()]
    p.slurm.status = down_on(p, "n2")
    assert p.look(20.0) == [] and p.looks.doubtful
    assert p.look(0.1) == [] and p.looks.doubtful  # somebody asked at once: no other look
    assert seen_down(p.look(1.9)) == [("n2",)] and not p.looks.doubtful


def test_a_word_that_passes_is_no_death() -> None:
    p = LooksPlay()
    p.slurm.status = down_on(p)
    p.look(20.0)
    for _ in range(10):  # `idle*` for a moment, at every other look
        p.slurm.status = down_on(p, "n2")
        assert p.look(20.0) == []
        p.slurm.status = down_on(p)
        assert p.look(2.0) == [] and not p.looks.doubtful


def test_a_look_that_could_not_be_taken_says_nothing_of_nodes() -> None:
    p = LooksPlay()
    p.slurm.status = down_on(p)
    p.look(20.0)
    p.slurm.status = down_on(p, "n2")
    p.look(20.0)
    p.slurm.status = replace(down_on(p), nodes_read=False)
    assert p.look(2.0) == []
    p.slurm.status = down_on(p, "n2")
    assert seen_down(p.look(2.0)) == [("n2",)]


def stray(name: str, state: JobState = JobState.PENDING, raw: str = "PENDING") -> JobStatus:
    return JobStatus(job_id="77", job_name=name, state=state, raw=raw)


@pytest.mark.parametrize(
    ("job", "seen"),
    [
        (stray("superv-moe-012345-1"), False),  # asked for, and its answer is on the way
        (stray("superv-moe-012345-2"), True),
        (stray("superv-moe-012345-9", JobState.RUNNING, "RUNNING"), True),
        (stray("superv-moe-012345-1", JobState.ENDED, "COMPLETED"), False),
        (stray("superv-moe-012345-1", JobState.RUNNING, "COMPLETING"), False),
        (stray("superv-moe-ffffff-1"), False),  # another run's
        (stray("superv-moe-2-012345-1"), False),
        (stray("superv-moe-"), False),
    ],
)
def test_only_active_jobs_of_this_run_that_it_does_not_know_are_twins(
    job: JobStatus, seen: bool
) -> None:
    p = LooksPlay(Phase.PENDING)
    p.slurm.status, p.slurm.there = UNKNOWN, [job]
    found = [e for e in p.look(31.0) if isinstance(e, ev.StrayJobSeen)]
    assert [e.job_id for e in found] == (["77"] if seen else [])


def test_twins_are_looked_for_while_a_submission_may_still_become_one() -> None:
    p = LooksPlay()
    p.slurm.status, p.slurm.there = UNKNOWN, [stray("superv-moe-012345-1")]
    assert p.look(31.0)
    assert not p.look(600.0) and not p.looks.expects_twin  # nothing was in doubt since
    p.looks.doubt()
    assert p.looks.expects_twin and p.look(31.0)
    p.now += 40.0
    assert not p.looks.expects_twin


def test_a_shortage_counts_when_two_looks_say_the_same_and_is_said_once() -> None:
    played = Scenario(operator_excluded={"n9": "broken"})
    played.answer(act.Submit)
    p = LooksPlay()
    p.run, p.slurm.status = played.run, UNKNOWN
    p.slurm.lacking = Shortage(lacking=2)
    assert p.look(31.0) == []
    p.slurm.lacking = Shortage(lacking=1, excluded=("n9",))
    assert p.look(31.0) == p.look(5.0) == []
    (said,) = p.look(31.0)
    assert isinstance(said, ev.NodesLacking) and (said.lacking, said.excluded) == (1, ("n9",))
    played.take(ev.NodesLacking, job_id="101", lacking=1, excluded=("n9",))
    p.run = played.run
    p.slurm.lacking = None  # no answer
    assert p.look(31.0) == []
    p.slurm.lacking = Shortage(lacking=1, excluded=("n9",))
    assert p.look(31.0) == p.look(31.0) == []
    p.slurm.lacking = Shortage(lacking=0)
    p.look(31.0)
    (over,) = p.look(31.0)
    assert isinstance(over, ev.NodesLacking) and over.lacking == 0
