"""A run from launch to end: what it orders, what it decides, and when it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scenario import Scenario, kinds, rebuilt

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.policy import Policy
from supervisor.core.recovery import EVIDENCE_KEPT
from supervisor.core.transition import EXPIRIES
from supervisor.core.types import DeadlineKind, Evidence, NodeState, Phase

WITH_ORDERS = [
    Phase.PENDING,
    Phase.GATHERING,
    Phase.CHECKING,
    Phase.STARTING,
    Phase.RUNNING,
    Phase.STOPPING,
    Phase.TRIAGE,
    Phase.BACKOFF,
]


def play(phase: Phase, **more) -> Scenario:
    return Scenario(**{"backoff_s": (5.0,), **more}).to(phase)


# --- the budget of Starts, and what holds a run -------------------------------------------------


@pytest.mark.parametrize("first", [3, 10, 11])
def test_a_first_step_not_after_the_promised_one_holds_the_run(first):
    p = Scenario().to(Phase.RUNNING)
    p.save(11)
    p.exit(0)
    p.finish_stop_and_scan()
    p.start()
    assert p.run.attempt.resume.step == 11
    p.progress(first)
    p.finish_stop_and_scan()
    assert p.phase is Phase.HELD
    assert f"the first step was {first}, promised was one after 11" in p.run.reason
    assert p.incident.verdict.culprits == ()


@pytest.mark.parametrize("told", [0, 10, 12])
def test_a_resume_at_another_step_than_promised_holds_the_run(told):
    p = Scenario().to(Phase.RUNNING)
    p.save(11)
    p.exit(0)
    p.finish_stop_and_scan()
    p.start()
    assert "Stop" in kinds(p.take(ev.Resumed, attempt=2, node="n1", step=told))
    p.finish_stop_and_scan()
    assert p.phase is Phase.HELD
    assert f"n1 resumed at step {told}, promised was step 11" in p.run.reason


def test_a_look_that_began_before_the_end_does_not_decide_for_the_scan():
    p = Scenario().to(Phase.RUNNING)
    older, newer = p.save(10), p.save(20)
    p.exit(0)
    p.answer(act.Stop, act.Collect)
    p.take(ev.Scanned, key="look", found=(p.disk[0],))
    assert p.phase is Phase.TRIAGE
    p.corrupt.add(older)
    p.answer(act.Scan)
    assert p.run.attempt.resume.path == newer and [c.path for c in p.run.lineage] == [newer]


def test_a_late_look_in_a_pause_does_not_bring_back_what_was_rejected():
    p = Scenario(backoff_s=(5.0,)).to(Phase.RUNNING)
    p.save(10)
    p.corrupt.add(p.save(20))
    p.exit(0)
    p.answer(act.Stop, act.Collect)
    p.answer(act.Scan)
    assert p.phase is Phase.BACKOFF
    p.take(ev.Scanned, key="look", found=tuple(p.disk))
    p.expire_deadline()
    assert p.run.attempt.resume.step == 10


def test_restarts_without_a_new_checkpoint_end_and_with_one_they_go_on():
    p = Scenario(nodes=2, spares=0, backoff_s=(1.0,)).to(Phase.RUNNING)
    for transition in range(6):  # another rank each time: nobody is named
        p.save(10 * (transition + 1))
        p.exit(transition % 2)
        p.recover_to_first_step()
    for transition in range(2):
        p.exit(transition % 2)
        p.recover_to_first_step()
    p.exit(0)
    p.finish_stop_and_scan()
    assert p.phase is Phase.HELD
    assert p.run.reason.endswith("3 restarts for rank-exit without new verified progress")
    assert len(p.starts) == 2 * (1 + 6 + 2)


def test_a_loss_that_is_no_number_is_the_same_before_and_after_a_rebuild():
    p = Scenario().to(Phase.RUNNING)
    before = p.run
    p.progress(2, None)  # what the journal's JSON makes of NaN
    nan = ev.Progress(at=p.now, attempt=1, step=2, loss=float("nan"))
    live, _ = step(before, nan)
    assert live == p.run


# --- people and Slurm ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", WITH_ORDERS)
def test_a_cancel_by_a_person_stops_the_run(phase):
    p = play(phase)
    if phase is Phase.PENDING:
        p.answer(act.Submit)
    p.seen("cancelled", "CANCELLED by 1000")
    assert p.phase is Phase.STOPPED and "cancelled by a person" in p.run.reason
    assert (p.run.pending, p.run.live_jobs, p.run.deadline) == ({}, (), None)


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("phase", WITH_ORDERS)
def test_a_stop_asked_for_ends_every_phase(phase, now):
    p = play(phase)
    orders = p.take(ev.StopRequested, who="kim", now=now)
    if phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING):
        assert p.phase is Phase.STOPPING
        assert {a.grace_s for a in orders if isinstance(a, act.Stop)} == {0.0 if now else 10.0}
        assert sorted(a.node for a in orders if isinstance(a, act.Stop)) == ["n1", "n2"]
        p.finish_stop_and_scan()
    assert (p.phase, p.run.reason) == (Phase.STOPPED, "stopped by kim")
    p.answer(act.Submit)  # its answer may come later; the job is then given back
    p.answer(act.Leave, act.Cancel)
    if p.run.live_jobs:
        p.seen("ended", "COMPLETED")
    assert (p.phase, p.run.pending, p.run.live_jobs) == (Phase.STOPPED, {}, ())


@pytest.mark.parametrize("phase", WITH_ORDERS[:-1])
def test_an_allocation_that_ends_otherwise_is_asked_for_again(phase):
    p = play(phase, backoff_s=(0.0,))
    if phase is Phase.PENDING:
        p.answer(act.Submit)
    p.seen("ended", "TIMEOUT")
    p.answer(act.Scan)
    assert (p.phase, p.run.live_jobs) == (Phase.PENDING, ())
    assert any("TIMEOUT" in e.text for e in p.incident.evidence)
    p.gather()
    p.start()
    p.first_step()
    assert p.phase is Phase.RUNNING
    if phase not in (Phase.PENDING, Phase.GATHERING):
        assert p.incident.relaunched_at is not None and p.incident.first_step_at == p.now


def test_an_answer_to_the_submit_that_comes_twice_changes_nothing():
    p = Scenario().to(Phase.RUNNING)
    before = p.run
    job = p.run.allocations["101"]
    p.take(ev.Submitted, key="submit/1", job_id="101", job_name=job.job_name)
    assert p.run == before


def test_every_kind_of_deadline_has_a_handler_and_a_length() -> None:
    assert EXPIRIES.keys() == set(DeadlineKind)
    assert all(one.most_s(Policy()) > 0 for one in EXPIRIES.values())


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_a_deadline_that_is_not_the_runs_does_nothing(phase):
    p = Scenario().to(phase)
    for kind in DeadlineKind:
        if p.run.deadline is not None and kind is p.run.deadline.kind:
            continue
        before = p.run
        assert p.take(ev.DeadlineExpired, kind=kind) == [] and p.run == before


# --- engine restarts ----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [*WITH_ORDERS, Phase.HELD])
def test_an_engine_restart_brings_pending_actions_again_and_gives_agents_time(phase):
    if phase is Phase.HELD:
        p = Scenario().to(Phase.GATHERING)
        p.join("n1")
        p.expire_deadline()
    else:
        p = play(phase)
    before = p.run
    orders = p.take(
        ev.EngineStarted, after=500, epoch=2, host="login", endpoint="tcp://10.0.0.1:5555"
    )
    assert list(orders) == list(before.pending.values())
    deadline = p.run.deadline
    assert (deadline and deadline.kind) == (before.deadline and before.deadline.kind)
    assert deadline is None or deadline.at >= p.now + 30
    old = {"epoch": 1, "deadline": before.deadline, "engine_starts": before.engine_starts}
    assert replace(p.run, **old) == before
    assert rebuilt(p.events) == p.run


# --- the states an agent comes back in ----------------------------------------------------------


@pytest.mark.parametrize("held", [{}, {"attempt": 1, "ranks": 1}, {"attempt": 7, "ranks": 2}])
def test_an_agent_that_comes_back_without_all_its_ranks_is_an_incident(held):
    p = Scenario(ranks=2).to(Phase.RUNNING)
    p.join("n1", **held)
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "ranks-lost")
    p.finish_stop_and_scan()
    assert (p.slots, dict(p.run.excluded)) == ("n1 n2", {})


def test_an_agent_that_restarts_before_it_started_its_ranks_gets_the_order_again():
    p = Scenario().to(Phase.CHECKING)
    p.answer(act.Prepare)
    p.join("n1")
    assert p.phase is Phase.STARTING and "a1/start/n1" in p.run.pending
    p.answer(act.Start)
    p.first_step()
    assert p.phase is Phase.RUNNING


def test_steps_mean_that_all_ranks_ran_so_an_agent_without_them_lost_them():
    p = Scenario().to(Phase.CHECKING)
    p.answer(act.Prepare)
    p.answer(act.Start, but="n1")  # n1's answer gets lost
    p.first_step()
    p.join("n1")
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "ranks-lost")
    assert "a1/start/n1" not in p.run.pending


def test_the_last_agent_that_leaves_a_run_as_it_ends_makes_it_ask_nothing_more():
    p = Scenario(nodes=1, spares=0, home=None).to(Phase.STARTING)
    p.take(ev.Resumed, attempt=1, node="n1", step=7)
    agent = p.run.pool["n1"].agent
    assert kinds(p.take(ev.AgentLeft, node="n1", agent=agent, reason="terminated")) == ["KeepLogs"]
    assert p.phase is Phase.HELD


def test_an_older_life_of_an_agent_is_not_heard():
    p = Scenario().to(Phase.RUNNING)
    old = p.run.pool["n1"].agent
    p.join("n1", attempt=1, ranks=1)
    p.take(ev.AgentLeft, node="n1", agent=old, reason="terminated")
    assert (p.phase, p.state("n1")) == (Phase.RUNNING, NodeState.READY)


def test_a_node_whose_agent_found_it_unfit_stays_so():
    p = Scenario(nodes=2, spares=1).to(Phase.GATHERING)
    p.join("n1", problems=("memlock is limited",))
    p.take(ev.RanksStopped, key="x", node="n1", attempt=0)
    assert p.state("n1") is NodeState.UNUSABLE


def test_a_recovery_waits_for_storage_without_an_end():
    p = Scenario().to(Phase.TRIAGE)
    assert p.run.deadline is None


def test_older_incidents_keep_the_first_of_their_evidence():
    p = Scenario(nodes=2, spares=1, backoff_s=()).to(Phase.RUNNING)
    p.exit(0)
    lines = tuple(
        Evidence(node="n1", at=1.0, source="rank log", text=f"line {n}")
        for n in range(EVIDENCE_KEPT + 50)
    )
    p.take(ev.Collected, key="a1/collect/n1", node="n1", attempt=1, evidence=lines)
    newest = p.run.incidents[-1].evidence
    assert len(newest) > EVIDENCE_KEPT
    p.recover_to_first_step()
    assert p.run.incidents[-1].evidence[: len(newest)] == tuple(newest)
    p.exit(0)
    older, last = p.run.incidents
    assert older.evidence == tuple(newest)[:EVIDENCE_KEPT] and len(last.evidence) < 10


@pytest.mark.parametrize("how", [Phase.DONE, Phase.HELD, Phase.STOPPED])
@pytest.mark.parametrize("phase", WITH_ORDERS)
def test_what_an_earlier_superv_had_ended_stays_ended(phase, how):
    """The journal is folded by today's code, which may not have come to that end."""
    p = play(phase)
    p.take(ev.RunEnded, phase=how, reason="as it was")
    assert (p.phase, p.run.reason) == (how, "as it was")
    before = p.run
    p.take(ev.RunEnded, phase=Phase.HELD, reason="once more")
    assert p.run == before
    p.answer(act.Submit)
    p.answer(act.Leave, act.Cancel)
    if p.run.live_jobs:
        p.seen("ended", "COMPLETED")
    assert (p.phase, p.run.pending, p.run.live_jobs) == (how, {}, ())
