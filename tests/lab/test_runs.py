"""Whole runs on real Slurm that lose a rank, a node, an agent, their engine or the controller."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from runs import (  # noqa: F401
    NODES,
    PER_NODE,
    SAVE_EVERY,
    SETTINGS,
    SPARES,
    LaunchedRun,
    Runs,
    Status,
    runs,
    shared_lab,
    until,
)

from lab.cluster import Lab
from supervisor.core import actions as act
from supervisor.core import events as ev

pytestmark = pytest.mark.lab
ALL = {(2, rank) for rank in range(NODES * PER_NODE)}


def nodes(status: Status) -> list[str]:
    return [slot["node"] for slot in status["slots"]]


# --- ranks ---


@pytest.mark.both
def test_a_killed_rank_costs_one_restart_on_the_same_nodes(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    before = run.until_step(SAVE_EVERY + 2)
    victim = run.rank(3)
    victim.signal(signal.SIGKILL)
    after = run.until_recovered()
    [incident] = after["incidents"]
    run.check_times(incident)
    assert (incident["cause"], incident["culprits"], after["excluded"]) == ("rank-exit", [], [])
    assert incident["evidence"][0]["text"] == f"rank 3 on {victim.node} was ended by SIGKILL"
    assert nodes(after) == nodes(before)
    assert incident["resumed_from"] % SAVE_EVERY == 0 and incident["resumed_from"] > 0
    assert incident["steps_lost"] == incident["step"] - incident["resumed_from"]
    assert {(r.attempt, r.rank) for r in run.ranks()} == ALL
    assert f"step: {incident['resumed_from'] + 1} loss: " in runs.superv("logs", run.name).out


@pytest.mark.parametrize("how", ["--ignore-term", "--daemonise"])
def test_a_stop_is_over_when_every_process_is_gone(runs: Runs, how: str) -> None:  # noqa: F811
    run = runs.launch(runs.ring("ring", "--cling", how))
    run.until_step(3)
    assert len(run.marked()) == NODES * PER_NODE * (2 if how == "--daemonise" else 1)
    run.rank(5).signal(signal.SIGKILL)
    run.until(lambda s: s["attempt"] == 2, "attempt 2")
    assert [(attempt, pid) for attempt, pid in run.marked() if attempt == 1] == []
    after = run.until_recovered()
    assert len(run.events(ev.RanksStopped)) == NODES
    assert [event.stuck for event in run.events(ev.RanksStopped)] == [()] * NODES
    assert nodes(after) == ["n1", "n2", "n3"] and after["unusable"] == []


def test_a_rank_that_stands_still_is_a_hang(runs: Runs) -> None:  # noqa: F811
    run = runs.launch(runs.ring(policy={"hang_timeout_min_s": 3}))
    run.until_step(SAVE_EVERY + 2)
    victim = run.rank(4)
    victim.signal(signal.SIGSTOP)
    after = run.until_recovered()
    [incident] = after["incidents"]
    run.check_times(incident)
    assert (incident["cause"], incident["culprits"], after["excluded"]) == ("hang", [], [])
    stopped = [e for e in incident["evidence"] if e["text"].endswith("is stopped by a signal")]
    assert [(e["node"], "rank 4" in e["text"]) for e in stopped] == [(victim.node, True)]


# --- nodes ---


def check_lost(run: LaunchedRun, before: Status, victim: str, at: float, number: int = 1) -> Status:
    """The spare is in the victim's slot, and the records say why and when."""
    after = run.until_recovered(number)
    incident = after["incidents"][-1]
    run.check_times(incident)
    assert (incident["cause"], incident["culprits"]) == ("node-lost", [victim])
    assert at < incident["suspected"] <= incident["confirmed"]
    assert {e["source"] for e in incident["evidence"]} > {"silence"}
    [spare] = before["spares"]
    assert nodes(after) == [spare if node == victim else node for node in nodes(before)]
    assert after["spares"] == []
    [excluded] = after["excluded"]
    assert excluded["node"] == victim and excluded["reason"].startswith("node-lost: ")
    assert incident["resumed_from"] > 0
    return after


@pytest.mark.both
@pytest.mark.parametrize("slot", [1, 0], ids=["another", "the-batch-host"])
def test_a_node_goes_off_and_the_spare_takes_its_slot(runs: Runs, slot: int) -> None:  # noqa: F811
    run = runs.launch()
    before = run.until_step(SAVE_EVERY + 2)
    victim = nodes(before)[slot]
    assert runs.do("squeue", "--noheader", "--format=%B").out.strip() == nodes(before)[0]
    fault = runs.lab.poweroff(victim)
    assert runs.faults()[-1] == fault
    check_lost(run, before, victim, fault.at)
    assert {(r.attempt, r.rank) for r in run.ranks()} == ALL
    if slot == 0:  # the batch script is gone, the dead node has not answered
        runs.superv("stop", run.name)
        run.until_ended("stopped")
        assert run.jobs() == []


def test_a_node_goes_off_where_slurm_waits_for_five_minutes(
    make_lab: Callable[..., Lab],
) -> None:
    lab = make_lab(NODES + SPARES, settings={**SETTINGS, "SlurmdTimeout": "300"})
    run = Runs(lab).launch()  # it ends with the lab
    before = run.until_step(SAVE_EVERY + 2)
    fault = lab.poweroff("n2")
    after = check_lost(run, before, "n2", fault.at)
    assert "n2" in after["allocations"][0]["nodes"], "Slurm has not taken it out"


def test_ranks_of_a_node_that_was_cut_off_disturb_nobody_and_are_ended(
    runs: Runs,  # noqa: F811
) -> None:
    run = runs.launch(runs.ring("ring", "--cling"))
    before = run.until_step(SAVE_EVERY + 2)
    fault = runs.lab.cut("n2")
    check_lost(run, before, "n2", fault.at)
    old = run.marked("n2")
    assert [attempt for attempt, _ in old] == [1] * PER_NODE, "nobody could end them"
    new = run.ranks()
    ports = {action.master_port for record in run.journal() for action in record.actions
             if isinstance(action, act.Start)}  # fmt: skip
    assert len(ports) == 2
    runs.lab.mend("n2")
    until(lambda: run.marked("n2") == [], "the end of what was left on n2")
    status = run.until_step((run.status()["step"] or 0) + 5, attempt=2)
    assert len(status["incidents"]) == 1 and status["excluded"][0]["node"] == "n2"
    assert [r for r in run.ranks() if r.attempt == 2] == [r for r in new if r.attempt == 2]


# --- superv's own parts, and Slurm's ---


def test_a_killed_agent_leaves_its_ranks_and_its_successor_adopts_them(
    runs: Runs,  # noqa: F811
) -> None:
    run = runs.launch()
    run.until_step(SAVE_EVERY + 2)
    ranks = run.ranks()
    run.kill(run.agent("n2"))
    until(lambda: len([e for e in run.events(ev.AgentJoined) if e.node == "n2"]) == 2, "an agent")
    again = run.events(ev.AgentJoined)[-1]
    assert (again.node, again.attempt, again.ranks) == ("n2", 1, PER_NODE)
    status = run.until_step(run.status()["step"] + 5)
    assert (status["incidents"], run.ranks()) == ([], ranks)
    adopted = next(rank for rank in ranks if rank.node == "n2")
    adopted.signal(signal.SIGKILL)
    after = run.until_recovered()
    text = f"rank {adopted.rank} on n2 ended while no agent watched it"
    assert text in [e["text"] for e in after["incidents"][0]["evidence"]]


def test_training_goes_on_without_an_engine_and_the_next_one_takes_over(
    runs: Runs,  # noqa: F811
) -> None:
    job = runs.ring()
    run = runs.launch(job)
    run.until_step(SAVE_EVERY + 2)
    ranks, [job_id] = run.ranks(), run.jobs()

    def without_engine() -> None:
        run.kill_engine()
        saved = len(runs.checkpoints(run))
        until(lambda: len(runs.checkpoints(run)) > saved, "a checkpoint without an engine")
        assert run.status()["engine"] is False

    without_engine()
    step = run.status()["step"]
    out = runs.superv("launch", "--detach", str(runs.home / "ring.yaml")).out
    assert "run ring is there already: its engine was started again" in out
    status = run.until_step(step + SAVE_EVERY)
    assert (status["epoch"], status["incidents"], run.ranks()) == (2, [], ranks)

    without_engine()
    at = run.rank(2).signal(signal.SIGKILL)
    runs.superv("launch", "--detach", str(runs.home / "ring.yaml"))
    after = run.until_recovered()
    [incident] = after["incidents"]
    run.check_times(incident)
    assert after["epoch"] == 3 and incident["cause"] == "rank-exit"
    assert at <= incident["fault"] < run.events(ev.EngineStarted)[-1].at < incident["suspected"]
    assert run.jobs() == [job_id]


def test_a_silent_controller_stops_no_recovery_and_means_nothing(
    runs: Runs,  # noqa: F811
) -> None:
    run = runs.launch()
    before = run.until_step(SAVE_EVERY + 2)
    seen = len(run.events(ev.AllocationSeen))
    runs.lab.pause_controller()
    run.rank(3).signal(signal.SIGKILL)
    assert nodes(run.until_recovered()) == nodes(before)
    fault = runs.lab.poweroff("n3")
    after = check_lost(run, before, "n3", fault.at, number=2)
    assert len(run.events(ev.AllocationSeen)) == seen
    assert after["allocations"][0]["state"] == "granted"
    runs.lab.resume_controller()
    assert len(run.until_step(after["step"] + 5, attempt=3)["incidents"]) == 2
