"""Nodes at the end of an allocation: what is asked for, and what is traded back before a person is
asked."""

from __future__ import annotations

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.check_status import Status
from supervisor.core.membership import ASK_AGAIN_S, MAX_REFUSALS
from supervisor.core.node_life import spares
from supervisor.core.renewal import MAX_ASKED_OTHERS, sureness, trade_back
from supervisor.core.transition import Transition
from supervisor.core.types import Cause, Confidence, Exclusion, Fault, NodeState, Phase


def exclusion(name: str, cause: Cause, confidence: Confidence, since: float) -> Exclusion:
    return Exclusion(
        node=name, reason="x", since=since, attempt=1, cause=cause, confidence=confidence
    )


@pytest.mark.parametrize(
    ("cause", "confidence", "sure"),
    [
        (Cause.RANK_EXIT, Confidence.INFERRED, 0),
        (Cause.NODE_LOST, Confidence.WITNESSED, 1),
        (Cause.UNHEALTHY_NODE, Confidence.WITNESSED, None),
        (Cause.START_FAILED, Confidence.WITNESSED, None),
    ],
)
def test_how_sure_an_exclusion_is(cause: Cause, confidence: Confidence, sure: int | None) -> None:
    assert sureness(exclusion("n1", cause, confidence, 1.0)) == sure


def test_the_least_sure_and_oldest_are_traded_back_first_and_no_more_than_needed() -> None:
    inferred, witnessed = Confidence.INFERRED, Confidence.WITNESSED
    given = {
        "n1": exclusion("n1", Cause.NODE_LOST, witnessed, 1.0),
        "n2": exclusion("n2", Cause.RANK_EXIT, inferred, 9.0),
        "n3": exclusion("n3", Cause.RANK_EXIT, inferred, 2.0),
        "n4": exclusion("n4", Cause.UNHEALTHY_NODE, witnessed, 0.0),
        "n5": exclusion("n5", Cause.RANK_EXIT, inferred, 0.0),  # a person excludes it, too
    }

    def left(lacking: int, there: str) -> set[str]:
        t = Transition(Scenario(operator_excluded={"n5": "broken"}).run, 10.0)
        t.set(excluded=given)
        assert trade_back(t, lacking, there.split()) is (t.run.excluded != given)
        return {*t.run.excluded}

    everywhere = "n1 n2 n3 n4 n5"
    assert left(1, everywhere) == {*given} - {"n3"}
    assert left(2, everywhere) == {*given} - {"n3", "n2"}
    assert left(3, everywhere) == {*given} - {"n3", "n2", "n1"}
    assert left(4, everywhere) == {*given}  # it would not help
    assert left(1, "n2 n4") == {*given} - {"n2"}
    assert left(1, "n4 n5") == left(0, everywhere) == {*given}


def renewed(p: Scenario) -> act.Submit:
    """The allocation's time is over; returns the request for the next one."""
    p.seen("ended", "TIMEOUT")
    p.finish_stop_and_scan()
    if p.phase is Phase.BACKOFF:
        p.expire_deadline()
    assert p.phase is Phase.PENDING, p.run.reason
    (request,) = [a for a in p.run.pending.values() if isinstance(a, act.Submit)]
    return request


def asked(p: Scenario) -> act.Submit:
    """The job is given back and has ended; returns the request for the next one."""
    assert p.phase is Phase.PENDING and "asking for other nodes" in p.run.reason
    (cancel,) = [a for a in p.run.pending.values() if isinstance(a, act.Cancel)]
    p.reply(cancel)
    p.seen("cancelled", "CANCELLED")
    (request,) = [a for a in p.run.pending.values() if isinstance(a, act.Submit)]
    return request


def one_unfit(p: Scenario, unfit: str = "n3") -> None:
    """All agents come, and one of them can't run ranks."""
    p.grant()
    for name in p.run.allocations[[*p.run.allocations][-1]].nodes:
        p.join(name, problems=("no memlock",) if name == unfit else ())


def test_before_it_trained_a_run_asks_for_other_nodes_and_then_for_a_person() -> None:
    p = Scenario(nodes=3, spares=0)
    for _ in range(MAX_ASKED_OTHERS):
        one_unfit(p)
        p.expire_deadline()
        request = asked(p)
        assert request.exclude == ("n3",) and p.run.excluded == {}
        assert "waiting for 3 nodes, without n3" in p.run.reason
        p.answer(act.Submit)
    one_unfit(p)
    p.expire_deadline()
    assert p.phase is Phase.HELD and "2 of 3 nodes are usable" in p.run.reason
    assert "n3: no memlock" in p.run.reason


def test_where_most_nodes_are_no_good_the_job_may_be_and_a_person_is_told() -> None:
    p = Scenario(nodes=3, spares=0)
    p.grant()
    for name in p.run.allocations[[*p.run.allocations][-1]].nodes:
        p.join(name, problems=("there is no /data",) if name != "n1" else ())
    p.expire_deadline()
    assert p.phase is Phase.HELD and "there is no /data" in p.run.reason


def test_nodes_are_left_out_of_one_request_alone() -> None:
    p = Scenario(nodes=3, spares=0)
    one_unfit(p)
    p.expire_deadline()
    request = asked(p)
    p.take(
        ev.SubmitRefused, key=request.key, why="too few", definite=True, lacking=1, excluded=("n3",)
    )
    (again,) = [a for a in p.run.pending.values() if isinstance(a, act.Submit)]
    assert again.exclude == () and p.phase is Phase.PENDING


def test_a_run_that_trained_asks_for_nodes_without_those_that_were_no_good() -> None:
    p = Scenario(nodes=3, spares=0).to(Phase.RUNNING)
    renewed(p)
    p.answer(act.Submit)
    one_unfit(p)
    p.expire_deadline()
    assert asked(p).exclude == ("n3",) and p.run.excluded == {}


def test_a_missing_spare_holds_no_request_up() -> None:
    p = Scenario(nodes=3, spares=2).to(Phase.RUNNING)
    request = renewed(p)
    assert (request.nodes, request.min_nodes) == (5, 3)
    assert Scenario(nodes=3, spares=0).run.request.min_nodes == 0


def test_a_run_goes_on_where_fewer_nodes_are_granted() -> None:
    p = Scenario(nodes=2, spares=2).to(Phase.RUNNING)
    renewed(p)
    p.answer(act.Submit)
    p.seen("running", nodes=("n1", "n2"))
    for node in ("n1", "n2"):
        p.join(node)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n2")  # nobody waits for spares


def lost_and_renewed(**more: int) -> Scenario:
    """n2 was lost and is excluded; then the allocation ended."""
    p = Scenario(nodes=2, **{"spares": 1, **more}).to(Phase.RUNNING)
    p.lose("n2")
    p.recover_to_first_step()
    p.save(10)
    assert renewed(p).exclude == ("n2",)
    return p


def test_a_refusal_for_want_of_nodes_trades_back() -> None:
    p = lost_and_renewed()
    (key,) = [a.key for a in p.run.pending.values() if isinstance(a, act.Submit)]
    p.take(
        ev.SubmitRefused,
        key=key,
        why="2 nodes are asked for",
        definite=True,
        lacking=1,
        excluded=("n2",),
    )
    assert p.phase is Phase.PENDING and p.run.request.exclude == () and not p.run.excluded


def test_a_job_that_can_never_be_granted_is_exchanged_for_one_that_can() -> None:
    p = lost_and_renewed()
    p.answer(act.Submit)
    job = [*p.run.allocations][-1]
    p.take(ev.NodesLacking, job_id=job, lacking=2, excluded=("n2",))
    assert p.run.excluded and not p.run.allocations[job].cancelled  # it would not help
    p.take(ev.NodesLacking, job_id=job, lacking=1, excluded=("n2",))
    assert not p.run.excluded and p.run.allocations[job].cancelled
    p.take(ev.AllocationSeen, job_id=job, state="running", raw="RUNNING", nodes=("n1", "n3"))
    assert p.phase is Phase.PENDING  # granted too late
    p.take(ev.AllocationSeen, job_id=job, state="cancelled", raw="CANCELLED")
    assert p.phase is Phase.PENDING and p.run.request.exclude == ()
    assert p.run.request.key in p.run.pending


def test_a_person_s_word_counts_for_a_job_that_waits() -> None:
    p = Scenario(nodes=2, operator_excluded={"n9": "broken"})
    p.answer(act.Submit)
    p.take(ev.NodesLacking, job_id="101", lacking=1, excluded=("n9",))
    assert not p.run.allocations["101"].cancelled and p.run.allocations["101"].lacking == 1
    p.take(ev.OperatorExclusionsChanged, operator_excluded={})
    p.take(ev.NodesLacking, job_id="101", lacking=1, excluded=("n9",))
    assert p.run.allocations["101"].cancelled


def test_without_a_spare_a_node_that_is_heard_again_is_used_again() -> None:
    p = Scenario(nodes=2, spares=0).to(Phase.RUNNING)
    p.lose("n2")
    p.finish_stop_and_scan()
    assert p.phase is Phase.GATHERING and "n2" in p.run.excluded
    p.take(ev.HeartbeatRegained, node="n2")
    assert (p.phase, p.slots, dict(p.run.excluded)) == (Phase.CHECKING, "n1 n2", {})


def test_a_node_with_a_witnessed_fault_is_not_used_again() -> None:
    p = Scenario(nodes=2, spares=0, preflight=True, backoff_s=(0.0,)).to(Phase.RUNNING)
    p.checked("n2", "FAIL", Fault(check="gpu.count", status=Status.FAIL, text="7 of 8 GPUs"))
    p.exit(1)
    p.finish_stop_and_scan()
    assert p.phase is Phase.GATHERING and "n2" in p.run.excluded
    p.checked("n2", "OK")
    assert p.phase is Phase.GATHERING and "n2" in p.run.excluded


def test_a_run_that_has_trained_asks_for_other_nodes_before_it_asks_a_person() -> None:
    p = Scenario(nodes=2, spares=0).to(Phase.RUNNING)
    p.lose("n2")
    p.finish_stop_and_scan()
    p.expire_deadline()
    assert p.phase is Phase.PENDING and p.run.allocations["101"].cancelled
    assert p.run.pool["n2"].state is NodeState.LOST
    p.join("n2")  # of the allocation that is given back
    assert p.phase is Phase.PENDING
    p.seen("cancelled", "CANCELLED by 1000")
    assert p.phase is Phase.PENDING and p.run.request.exclude == ("n2",)


@pytest.mark.parametrize("definite", [True, False])
def test_a_refused_renewal_is_asked_again_and_a_person_after_an_hour(definite: bool) -> None:
    p = Scenario(nodes=2, spares=0).to(Phase.RUNNING)
    request = renewed(p)
    for tries in range(1, 3 * MAX_REFUSALS):
        p.take(ev.SubmitRefused, key=request.key, why="slurm: qos: no", definite=definite)
        if definite and tries > MAX_REFUSALS:
            assert p.phase is Phase.HELD and "slurm: qos: no" in p.run.reason
            return
        assert p.phase is Phase.PENDING and p.run.deadline is not None
        assert p.run.deadline.at - p.now == ASK_AGAIN_S
        p.expire_deadline()
        assert p.run.request is not None and p.run.request.key != request.key
        request = p.run.request
    assert not definite


@pytest.mark.parametrize("resumed", [False, True])
def test_a_person_who_waits_is_told_at_once(resumed: bool) -> None:
    p = Scenario()
    if resumed:
        p.to(Phase.RUNNING)
        p.take(ev.StopRequested, who="kim")
        p.finish_stop_and_scan()
        p.seen("ended", "COMPLETED")
        p.take(ev.ResumeRequested, who="kim", spec=p.run.spec)
        p.finish_stop_and_scan()
    assert p.run.request is not None
    p.take(ev.SubmitRefused, key=p.run.request.key, why="slurm: qos: no", definite=False)
    assert p.phase is Phase.HELD


def test_a_twin_is_cancelled_and_never_our_own_job() -> None:
    p = Scenario()
    assert p.run.request is not None
    name = p.run.request.job_name
    p.take(ev.StrayJobSeen, job_id="77", job_name=name)  # this may be the answer
    assert not [a for a in p.run.pending.values() if isinstance(a, act.Cancel)]
    p.answer(act.Submit)
    p.take(ev.StrayJobSeen, job_id="101", job_name=name)
    assert not [a for a in p.run.pending.values() if isinstance(a, act.Cancel)]
    p.take(ev.StrayJobSeen, job_id="77", job_name=name)
    (cancel,) = [a for a in p.run.pending.values() if isinstance(a, act.Cancel)]
    assert cancel.job_id == "77" and p.phase is Phase.PENDING


def test_a_job_that_slurm_has_forgotten_has_ended() -> None:
    p = Scenario().to(Phase.RUNNING)
    p.seen("forgotten", "FORGOTTEN")
    assert p.run.incidents[-1].cause is Cause.ALLOCATION_ENDED


# --- nodes that are drained in Slurm --------------------------------------------------------------


def drains(p: Scenario, *names: str) -> None:
    p.seen("running", nodes=tuple(p.run.allocations["101"].nodes), drained=names)


def test_a_drained_node_keeps_its_ranks_and_gets_no_others() -> None:
    p = Scenario(nodes=2, spares=1, backoff_s=(0.0,)).to(Phase.RUNNING)
    drains(p, "n2")
    assert p.phase is Phase.RUNNING and not p.run.incidents
    p.exit(0)
    p.finish_stop_and_scan()
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n3")


def test_a_drained_spare_is_none_until_it_is_resumed() -> None:
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    assert spares(p.run) == ("n3",)
    drains(p, "n3")
    assert spares(p.run) == ()
    p.lose("n2")
    p.finish_stop_and_scan()
    assert p.phase is Phase.GATHERING
    drains(p)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n3")


def test_a_node_that_is_drained_before_its_ranks_begin_is_exchanged() -> None:
    p = Scenario(nodes=2, spares=1).to(Phase.CHECKING)
    drains(p, "n1")
    assert (p.phase, p.slots) == (Phase.CHECKING, "n3 n2")


def test_a_drain_is_over_with_the_allocation_that_it_was_seen_in() -> None:
    p = Scenario(nodes=2, spares=0).to(Phase.RUNNING)
    drains(p, "n2")
    renewed(p)
    p.answer(act.Submit)
    p.seen("running", nodes=("n1", "n2"))
    for node in ("n1", "n2"):
        p.join(node)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n2")
