"""A run from launch to end: what it orders, what it decides, and when it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scenario import Play, kinds, rebuilt

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.types import Checkpoint, NodeState, Phase

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


def play(phase: Phase, **more) -> Play:
    return Play(**{"backoff_s": (5.0,), **more}).to(phase)


def test_a_launch_goes_from_the_submit_to_the_first_step():
    p = Play(nodes=2, spares=1)
    submit = p.run.pending["submit/1"]
    assert isinstance(submit, do.Submit) and (submit.nodes, submit.exclude) == (3, ())
    p.answer(do.Submit)
    assert kinds(p.seen("pending")) == []
    assert kinds(p.seen("running", nodes=("n1", "n2", "n3"))) == ["SendKeys"]
    p.answer(do.SendKeys)
    assert (p.phase, p.run.deadline.what) == (Phase.GATHERING, "gather")
    p.join("n3")
    p.join("n1")  # enough, but a spare is still to come
    assert (p.phase, p.run.deadline.what) == (Phase.GATHERING, "spares")
    assert kinds(p.join("n2")) == ["Prepare", "Prepare"]
    assert (p.phase, p.slots, p.run.spares) == (Phase.CHECKING, "n1 n2", ("n3",))
    p.answer(do.Prepare)
    assert [(s.node, s.slot, s.resume_path, s.resume_step) for s in p.starts] == [
        ("n1", 0, None, None),
        ("n2", 1, None, None),
    ]
    assert {(s.master_addr, s.master_port, s.save_dir) for s in p.starts} == {
        ("10.0.1.1", 30000, "/ckpt/a0001")
    }
    p.answer(do.Start)
    p.first_step()
    assert (p.phase, p.run.attempt.step, p.run.attempt.loss) == (Phase.RUNNING, 1, 2.5)
    assert (p.run.incidents, p.run.pending, p.run.deadline) == ((), {}, None)


def test_the_master_port_is_slot_0s_whoever_answers_last():
    p = Play().to(Phase.CHECKING)
    first, second = [a for a in p.run.pending.values() if isinstance(a, do.Prepare)]
    p.reply(first, port=31000)
    p.reply(second, port=32000)
    assert {s.master_port for s in p.starts} == {31000}


def test_a_spare_that_does_not_come_is_not_waited_for_for_ever():
    p = Play().to(Phase.GATHERING)
    p.join("n1")
    p.join("n2")
    p.due()
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n2")


def test_too_few_agents_at_the_limit_hold_the_run_and_say_which_are_missing():
    p = Play().to(Phase.GATHERING)
    p.join("n1")
    p.join("n2", problems=("memlock is 64 KiB, unlimited is needed",))
    p.due()
    assert p.phase is Phase.HELD
    assert "1 of 2 nodes are usable" in p.run.reason
    assert "n2: memlock is 64 KiB" in p.run.reason and "n3: no agent came" in p.run.reason


def test_a_refused_submission_holds_the_run():
    p = Play()
    p.take(ev.SubmitRefused, key="submit/1", why="partition 'x' is not there")
    assert (p.phase, p.run.reason, p.run.pending) == (Phase.HELD, "partition 'x' is not there", {})


def test_all_ranks_clean_means_done_and_the_nodes_are_given_back():
    p = Play(ranks=2).to(Phase.RUNNING)
    for rank in range(3):
        assert p.exit(rank, 0) == [] and p.phase is Phase.RUNNING
    assert kinds(p.exit(3, 0)) == ["Scan"]
    p.save(20)
    p.answer(do.Scan)
    assert (p.phase, p.run.lineage[-1].step) == (Phase.DONE, 20)
    assert sorted(a.node for a in p.run.pending.values()) == ["n1", "n2", "n3"]
    p.answer(do.Leave)
    p.seen("ended", "COMPLETED")
    assert (p.phase, p.run.pending, p.run.live_jobs) == (Phase.DONE, {}, ())


def test_a_clean_end_of_some_ranks_is_not_done():
    p = Play(ranks=2).to(Phase.RUNNING)
    for rank in range(3):
        p.exit(rank, 0)
    p.exit(3, 1)
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "rank-exit")


def test_a_rank_that_ended_unwatched_is_not_clean():
    p = Play().to(Phase.RUNNING)
    p.exit(0, None)
    assert p.phase is Phase.STOPPING
    assert p.incident.evidence[0].text == "rank 0 on n1 ended while no agent watched it"


def test_agents_that_do_not_leave_get_their_job_cancelled_once():
    p = Play().to(Phase.RUNNING)
    p.take(ev.StopAsked, who="kim")
    p.stopped()
    assert p.phase is Phase.STOPPED
    assert kinds(p.due()) == ["Cancel"]
    p.answer(do.Cancel)
    p.seen("cancelled", "CANCELLED by 0")
    assert (p.phase, p.run.reason, p.run.pending) == (Phase.STOPPED, "stopped by kim", {})


# --- the budget of Starts, and what holds a run -------------------------------------------------


@pytest.mark.parametrize("first", [3, 10, 11])
def test_a_first_step_not_after_the_promised_one_holds_the_run(first):
    p = Play().to(Phase.RUNNING)
    p.save(11)
    p.exit(0)
    p.stopped()
    p.start()
    assert p.run.attempt.resume.step == 11
    p.progress(first)
    p.stopped()
    assert p.phase is Phase.HELD
    assert f"the first step was {first}, promised was one after 11" in p.run.reason
    assert p.incident.verdict.culprits == ()


@pytest.mark.parametrize("told", [0, 10, 12])
def test_a_resume_at_another_step_than_promised_holds_the_run(told):
    p = Play().to(Phase.RUNNING)
    p.save(11)
    p.exit(0)
    p.stopped()
    p.start()
    assert "Stop" in kinds(p.take(ev.Resumed, attempt=2, node="n1", step=told))
    p.stopped()
    assert p.phase is Phase.HELD
    assert f"n1 resumed at step {told}, promised was step 11" in p.run.reason


def test_a_seed_is_resumed_and_its_step_promised():
    seed = Checkpoint(step=40, path="/old/step-40", attempt=0, verified_at=1.0)
    p = Play(seed=seed).to(Phase.STARTING)
    assert {(s.resume_path, s.resume_step) for s in p.starts} == {("/old/step-40", 40)}
    p.progress(1)
    p.stopped()
    assert p.phase is Phase.HELD


def test_the_newest_checkpoint_is_truncated_and_the_older_one_is_resumed():
    p = Play().to(Phase.RUNNING)
    p.save(10)
    p.rotten.add(p.save(20))
    p.exit(0)
    p.stopped()
    assert (p.run.attempt.resume.step, p.incident.resumed_from) == (10, 10)
    assert [r.step for r in p.run.rejected] == [20]


def test_a_checkpoint_of_an_older_attempt_that_rots_is_not_resumed():
    p = Play().to(Phase.RUNNING)
    p.save(10)
    newer = p.save(20)
    p.exit(0)
    p.again()
    assert p.run.attempt.resume.step == 20
    p.rotten.add(newer)
    p.exit(0)
    p.stopped()
    assert p.run.attempt.resume.step == 10


@pytest.mark.parametrize("seen_while_running", [False, True])
def test_no_verified_checkpoint_is_left_and_the_run_is_held_not_begun_anew(seen_while_running):
    p = Play().to(Phase.RUNNING)
    path = p.save(10)
    if seen_while_running:
        p.take(ev.Scanned, key="look", found=tuple(p.disk))
    else:
        p.exit(0)
        p.again()
    p.rotten.add(path)
    starts = len(p.starts)
    p.exit(0)
    p.stopped()
    assert p.phase is Phase.HELD and len(p.starts) == starts
    assert "no verified checkpoint is left, though one of step 10 was there" in p.run.reason


def test_a_look_that_began_before_the_end_does_not_decide_for_the_scan():
    p = Play().to(Phase.RUNNING)
    older, newer = p.save(10), p.save(20)
    p.exit(0)
    p.answer(do.Stop, do.Collect)
    p.take(ev.Scanned, key="look", found=(p.disk[0],))
    assert p.phase is Phase.TRIAGE
    p.rotten.add(older)
    p.answer(do.Scan)
    assert p.run.attempt.resume.path == newer and [c.path for c in p.run.lineage] == [newer]


def test_a_late_checkpoint_of_an_older_attempt_does_not_count():
    p = Play().to(Phase.RUNNING)
    p.exit(0)
    p.again()
    late = Checkpoint(step=90, path="/ckpt/a0001/step-90", attempt=1, verified_at=p.now)
    p.take(ev.Scanned, key="look", found=(late,))
    assert p.run.lineage == ()


def test_a_late_look_in_a_pause_does_not_bring_back_what_was_rejected():
    p = Play(backoff_s=(5.0,)).to(Phase.RUNNING)
    p.save(10)
    p.rotten.add(p.save(20))
    p.exit(0)
    p.answer(do.Stop, do.Collect)
    p.answer(do.Scan)
    assert p.phase is Phase.BACKOFF
    p.take(ev.Scanned, key="look", found=tuple(p.disk))
    p.due()
    assert p.run.attempt.resume.step == 10


def test_restarts_without_a_new_checkpoint_end_and_with_one_they_go_on():
    p = Play(nodes=2, spares=0, backoff_s=(1.0,)).to(Phase.RUNNING)
    for turn in range(6):  # another rank each time: nobody is named
        p.save(10 * (turn + 1))
        p.exit(turn % 2)
        p.again()
    for turn in range(2):
        p.exit(turn % 2)
        p.again()
    p.exit(0)
    p.stopped()
    assert p.phase is Phase.HELD
    assert p.run.reason.startswith("3 restarts for rank-exit without new verified progress")
    assert len(p.starts) == 2 * (1 + 6 + 2)


def test_without_checkpoints_new_steps_are_the_progress():
    p = Play(home=None, backoff_s=(1.0,), restarts_without_progress=1).to(Phase.RUNNING)
    for turn in range(1, 5):
        p.progress(10 * turn)
        p.exit(turn % 2)
        p.again()
        assert p.run.attempt.resume is None and p.run.attempt.save_dir is None
    p.exit(1)
    p.stopped()
    assert p.phase is Phase.HELD


def test_no_first_step_within_the_limit_is_an_incident():
    p = Play().to(Phase.STARTING)
    p.due()
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "no-first-step")
    p.stopped()
    assert (p.phase, p.slots, dict(p.run.excluded)) == (Phase.CHECKING, "n1 n2", {})


def test_a_stall_stops_the_ranks_and_names_nobody():
    p = Play().to(Phase.RUNNING)
    p.take(ev.Stalled, after=300, last_step=1, last_at=p.now, limit_s=300.0)
    p.stopped()
    assert (p.phase, p.slots, dict(p.run.excluded)) == (Phase.CHECKING, "n1 n2", {})
    assert p.incident.verdict.cause == "hang"


def test_a_loss_that_is_no_number_is_the_same_before_and_after_a_rebuild():
    p = Play().to(Phase.RUNNING)
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
        p.answer(do.Submit)
    p.seen("cancelled", "CANCELLED by 1000")
    assert p.phase is Phase.STOPPED and "cancelled by a person" in p.run.reason
    assert (p.run.pending, p.run.live_jobs, p.run.deadline) == ({}, (), None)


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("phase", WITH_ORDERS)
def test_a_stop_asked_for_ends_every_phase(phase, now):
    p = play(phase)
    orders = p.take(ev.StopAsked, who="kim", now=now)
    if phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING):
        assert p.phase is Phase.STOPPING
        assert {a.grace_s for a in orders if isinstance(a, do.Stop)} == {0.0 if now else 10.0}
        assert sorted(a.node for a in orders if isinstance(a, do.Stop)) == ["n1", "n2"]
        p.stopped()
    assert (p.phase, p.run.reason) == (Phase.STOPPED, "stopped by kim")
    p.answer(do.Submit)  # its answer may come later; the job is then given back
    p.answer(do.Leave, do.Cancel)
    if p.run.live_jobs:
        p.seen("ended", "COMPLETED")
    assert (p.phase, p.run.pending, p.run.live_jobs) == (Phase.STOPPED, {}, ())


def test_a_job_that_is_granted_after_the_end_is_cancelled_and_gets_no_keys():
    p = Play()
    p.take(ev.StopAsked, who="kim")
    assert kinds(list(p.run.pending.values())) == ["Submit"]  # sbatch may have been heard already
    p.answer(do.Submit)
    assert kinds(list(p.run.pending.values())) == ["Cancel"]
    assert kinds(p.seen("running", nodes=("n1", "n2", "n3"))) == []
    p.seen("cancelled", "CANCELLED by 0")
    assert (p.phase, p.run.reason, p.run.live_jobs) == (Phase.STOPPED, "stopped by kim", ())


def test_stop_now_after_stop_kills_at_once():
    p = Play().to(Phase.RUNNING)
    p.take(ev.StopAsked, who="kim")
    orders = p.take(ev.StopAsked, who="kim", now=True)
    assert {(a.key, a.grace_s) for a in orders if isinstance(a, do.Stop)} == {
        ("a1/stop-now/n1", 0.0),
        ("a1/stop-now/n2", 0.0),
    }


@pytest.mark.parametrize("phase", WITH_ORDERS[:-1])
def test_an_allocation_that_ends_otherwise_is_asked_for_again(phase):
    p = play(phase, backoff_s=(0.0,))
    if phase is Phase.PENDING:
        p.answer(do.Submit)
    p.seen("ended", "TIMEOUT")
    p.answer(do.Scan)
    assert (p.phase, p.run.live_jobs) == (Phase.PENDING, ())
    assert any("TIMEOUT" in e.text for e in p.incident.evidence)
    p.gather()
    p.start()
    p.first_step()
    assert p.phase is Phase.RUNNING
    if phase not in (Phase.PENDING, Phase.GATHERING):
        assert p.incident.relaunched_at is not None and p.incident.first_step_at == p.now


def test_an_allocation_that_ends_again_and_again_is_not_asked_for_for_ever():
    p = Play(backoff_s=(0.0,))
    for _ in range(4):
        assert p.phase is Phase.PENDING
        p.answer(do.Submit)
        p.seen("ended", "NODE_FAIL")
    assert p.phase is Phase.HELD and "3 restarts for allocation-ended" in p.run.reason
    assert {a.key for a in p.ordered if isinstance(a, do.Submit)} == {
        f"submit/{n}" for n in (1, 2, 3, 4)
    }


def test_an_answer_to_the_submit_that_comes_twice_changes_nothing():
    p = Play().to(Phase.RUNNING)
    before = p.run
    job = p.run.allocations["101"]
    p.take(ev.Submitted, key="submit/1", job_id="101", job_name=job.job_name)
    assert p.run == before


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_a_deadline_that_is_not_the_runs_does_nothing(phase):
    p = Play().to(phase)
    for what in ("gather", "spares", "retry", "prepare", "stop", "release"):
        before = p.run
        assert p.take(ev.Due, what=what) == [] and p.run == before


# --- engine restarts ----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [*WITH_ORDERS, Phase.HELD])
def test_an_engine_restart_brings_pending_actions_again_and_gives_agents_time(phase):
    if phase is Phase.HELD:
        p = Play().to(Phase.GATHERING)
        p.join("n1")
        p.due()
    else:
        p = play(phase)
    before = p.run
    orders = p.take(
        ev.EngineStarted, after=500, epoch=2, host="login", endpoint="tcp://10.0.0.1:5555"
    )
    assert list(orders) == list(before.pending.values())
    deadline = p.run.deadline
    assert (deadline and deadline.what) == (before.deadline and before.deadline.what)
    assert deadline is None or deadline.at >= p.now + 30
    assert replace(p.run, epoch=1, deadline=before.deadline) == before
    assert rebuilt(p.events) == p.run


def test_an_engine_that_moved_sends_its_address_to_every_granted_job():
    p = Play().to(Phase.RUNNING)
    moved = "tcp://10.0.0.2:6000"
    orders = p.take(ev.EngineStarted, epoch=2, host="login2", endpoint=moved)
    assert [(type(a), a.key) for a in orders] == [(do.SendKeys, "keys/101/e2")]
    assert p.run.endpoint == moved and p.phase is Phase.RUNNING


# --- the states an agent comes back in ----------------------------------------------------------


def test_an_agent_that_adopts_its_ranks_changes_nothing():
    p = Play(ranks=2).to(Phase.RUNNING)
    assert p.join("n1", attempt=1, ranks=2) == []
    assert (p.phase, p.state("n1")) == (Phase.RUNNING, NodeState.READY)


@pytest.mark.parametrize("held", [{}, {"attempt": 1, "ranks": 1}, {"attempt": 7, "ranks": 2}])
def test_an_agent_that_comes_back_without_all_its_ranks_is_an_incident(held):
    p = Play(ranks=2).to(Phase.RUNNING)
    p.join("n1", **held)
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "ranks-lost")
    p.stopped()
    assert (p.slots, dict(p.run.excluded)) == ("n1 n2", {})


def test_a_rank_that_ended_well_is_not_missed_when_the_agent_comes_back():
    p = Play(ranks=2).to(Phase.RUNNING)
    p.exit(0, 0)
    p.join("n1", attempt=1, ranks=1)
    assert p.phase is Phase.RUNNING


def test_an_agent_that_restarts_before_it_started_its_ranks_gets_the_order_again():
    p = Play().to(Phase.CHECKING)
    p.answer(do.Prepare)
    p.join("n1")
    assert p.phase is Phase.STARTING and "a1/start/n1" in p.run.pending
    p.answer(do.Start)
    p.first_step()
    assert p.phase is Phase.RUNNING


def test_steps_mean_that_all_ranks_ran_so_an_agent_without_them_lost_them():
    p = Play().to(Phase.CHECKING)
    p.answer(do.Prepare)
    p.answer(do.Start, but="n1")  # n1's answer gets lost
    p.first_step()
    p.join("n1")
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "ranks-lost")
    assert "a1/start/n1" not in p.run.pending


def test_an_agent_that_leaves_is_an_incident_where_it_has_a_slot_and_none_where_not():
    p = Play().to(Phase.RUNNING)
    leaver = {"agent": p.run.pool["n3"].agent, "reason": "its job ends"}
    assert kinds(p.take(ev.AgentLeft, node="n3", **leaver)) == ["Poll"]
    assert p.phase is Phase.RUNNING
    leaver["agent"] = p.run.pool["n2"].agent
    p.take(ev.AgentLeft, node="n2", **leaver)
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "agent-left")
    p.stopped()
    assert p.phase is Phase.GATHERING and "no node for slot 1" in p.run.reason


def test_the_last_agent_that_leaves_a_run_as_it_ends_makes_it_ask_nothing_more():
    p = Play(nodes=1, spares=0, home=None).to(Phase.STARTING)
    p.take(ev.Resumed, attempt=1, node="n1", step=7)
    agent = p.run.pool["n1"].agent
    assert p.take(ev.AgentLeft, node="n1", agent=agent, reason="terminated") == []
    assert p.phase is Phase.HELD


def test_an_older_life_of_an_agent_is_not_heard():
    p = Play().to(Phase.RUNNING)
    old = p.run.pool["n1"].agent
    p.join("n1", attempt=1, ranks=1)
    p.take(ev.AgentLeft, node="n1", agent=old, reason="terminated")
    assert (p.phase, p.state("n1")) == (Phase.RUNNING, NodeState.READY)


def test_a_node_that_outlived_its_job_is_not_used():
    p = Play(backoff_s=(0.0,)).to(Phase.RUNNING)
    p.seen("ended", "TIMEOUT")
    p.answer(do.Scan)
    p.grant()
    p.join("n9", job_id="101")
    assert "n9" not in p.run.pool


def test_an_agent_that_comes_after_the_end_is_told_to_leave():
    p = Play().to(Phase.GATHERING)
    p.take(ev.StopAsked, who="kim")
    assert kinds(p.join("n1")) == ["Leave"]
    assert kinds(p.join("n2", problems=("no GPUs",))) == ["Leave"]
