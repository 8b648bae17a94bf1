"""What is blamed on a node and what is not: exits, silence, and nodes that can't run ranks."""

from __future__ import annotations

import pytest
from scenario import Play, kinds, rebuilt

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.types import Evidence, NodeState, Phase

# --- rank exits ---------------------------------------------------------------------------------


def test_a_rank_exit_is_retried_on_the_same_nodes():
    p = Play().to(Phase.RUNNING)
    p.save(10)
    p.progress(14)
    orders = p.exit(1, None, signal=9, tail=("loading", "CUDA error: unspecified"))
    assert kinds(orders) == ["Collect", "Collect", "Stop", "Stop"]
    assert [e.text for e in p.incident.evidence] == [
        "rank 1 on n2 was ended by signal 9",
        "CUDA error: unspecified",
    ]
    p.again()
    assert (p.phase, p.slots, dict(p.run.excluded)) == (Phase.RUNNING, "n1 n2", {})
    told = p.incident
    assert (told.attempt, told.cause, told.step, told.resumed_from) == (1, "rank-exit", 14, 10)
    assert told.steps_lost == 4 and told.verdict.culprits == ()
    times = [told.fault_at, told.confirmed_at, told.stopped_at, told.relaunched_at]
    assert [*times, told.first_step_at] == sorted([*times, told.first_step_at])
    assert p.starts[-1].save_dir == "/ckpt/a0002"


def exit_first(p: Play, rank: int) -> None:
    """The rank ends, and then the others, as they do when a peer is gone."""
    p.exit(rank)
    for other in range(len(p.run.attempt.slots)):
        if other != rank:
            p.exit(other)


@pytest.mark.parametrize("saved", [False, True])
def test_the_node_that_is_first_a_second_time_is_swapped_and_keeps_no_slot(saved):
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    if saved:  # in the first attempt: that is no progress since
        p.save(10)
    exit_first(p, 1)
    p.again()
    assert p.run.excluded == {}
    exit_first(p, 1)
    p.again()
    assert (list(p.run.excluded), p.slots) == (["n2"], "n1 n4 n3")
    assert p.incident.verdict.confidence == "inferred"
    assert {e.node for e in p.incident.evidence} >= {"n2"}


def test_a_new_checkpoint_in_between_clears_the_name():
    p = Play().to(Phase.RUNNING)
    p.exit(0)
    p.again()
    p.save(10)
    p.exit(0)
    p.stopped()
    assert (dict(p.run.excluded), p.slots) == ({}, "n1 n2")


def test_a_node_is_not_named_where_its_clock_disagrees_with_who_told_first():
    p = Play().to(Phase.RUNNING)
    for _ in range(2):
        p.exit(0)
        p.exit(1, clock=-60.0)  # a cascade, on a node whose clock is a minute behind
        p.stopped()
        assert p.run.excluded == {} and p.incident.verdict.culprits == ()
        p.start()
        p.first_step()


def test_the_order_has_to_be_clear_in_the_second_attempt_too():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    exit_first(p, 1)
    p.again()
    p.exit(0)
    p.exit(1, clock=-60.0)
    p.stopped()
    assert p.run.excluded == {}


def test_ends_that_superv_caused_open_no_second_incident_and_name_nobody():
    p = Play().to(Phase.RUNNING)
    p.exit(0)
    p.exit(1, None, signal=15)
    assert len(p.run.incidents) == 1
    p.again()
    p.exit(0)
    p.exit(1, None, signal=15)
    p.stopped()
    assert list(p.run.excluded) == ["n1"]


def test_swaps_end_too():
    p = Play(nodes=2, spares=8, backoff_s=(0.0,)).to(Phase.RUNNING)
    for _ in range(3):
        p.exit(0)
        p.again()
    p.exit(0)
    p.stopped()
    assert p.phase is Phase.HELD and p.run.live_jobs == ("101",)
    assert "3 restarts for rank-exit" in p.run.reason


def test_a_late_start_of_the_failed_attempt_is_not_taken_for_the_relaunch():
    p = Play().to(Phase.CHECKING)
    p.answer(do.Prepare)
    p.answer(do.Start, but="n2")
    late = p.run.pending["a1/start/n2"]
    p.exit(0)
    p.reply(late)
    assert p.incident.relaunched_at is None
    p.again()
    assert p.incident.relaunched_at > p.incident.stopped_at


# --- silence ------------------------------------------------------------------------------------


def test_silence_alone_stops_nothing_and_asks_slurm_and_the_peers():
    p = Play(nodes=4, spares=1).to(Phase.RUNNING)
    orders = p.silent("n2")
    assert kinds(orders) == ["Poll", "Probe", "Probe", "Probe"]
    assert "n2" not in {a.node for a in orders if isinstance(a, do.Probe)}
    for number in range(2, 30):
        p.progress(number)
    assert (p.phase, p.state("n2"), p.run.incidents) == (Phase.RUNNING, NodeState.SUSPECT, ())


def test_silence_and_an_overdue_step_put_the_spare_into_the_slot():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.save(10)
    at = p.now
    p.silent("n1")
    orders = p.overdue()
    assert sorted(a.node for a in orders if isinstance(a, do.Stop)) == ["n2", "n3"]
    assert not [a for a in p.run.pending.values() if isinstance(a, do.Order) and a.node == "n1"]
    p.again()
    assert (p.slots, p.run.spares, list(p.run.excluded)) == ("n4 n2 n3", (), ["n1"])
    assert {(s.master_addr, s.attempt) for s in p.starts[-3:]} == {("10.0.1.4", 2)}
    told = p.incident
    assert (told.cause, told.suspected_at, told.confirmed_at) == ("node-lost", at + 1, at + 2)
    assert [(e.node, e.source) for e in told.evidence] == [
        ("n1", "silence"),
        ("n1", "overdue step"),
    ]


def test_silence_and_peers_that_do_not_reach_it_are_enough_where_no_step_came_since():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.silent("n2")
    probes = [a for a in p.run.pending.values() if isinstance(a, do.Probe)]
    for probe in probes[:-1]:
        p.reply(probe, outcome="unreachable")
        assert p.phase is Phase.RUNNING, "not before all have answered"
    p.reply(probes[-1], outcome="unreachable")
    assert (p.phase, p.state("n2")) == (Phase.STOPPING, NodeState.LOST)
    assert p.incident.evidence[-1].source == "peers"


def test_one_peer_that_reaches_it_is_enough_to_go_on():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.silent("n2")
    probes = [a for a in p.run.pending.values() if isinstance(a, do.Probe)]
    p.reply(probes[0], outcome="reached")
    for probe in probes[1:]:
        p.reply(probe, outcome="unreachable")
    assert (p.phase, p.state("n2")) == (Phase.RUNNING, NodeState.SUSPECT)


def test_a_peer_that_is_silent_itself_is_not_waited_for():
    p = Play(nodes=5, spares=1).to(Phase.RUNNING)
    p.silent("n4")  # n1, n2 and n3 are asked
    p.silent("n1")
    for target in ("n4", "n1"):
        for action in list(p.run.pending.values()):
            if isinstance(action, do.Probe) and action.target == target and action.node != "n1":
                p.reply(action, outcome="unreachable")
    assert (p.state("n4"), p.state("n1")) == (NodeState.LOST, NodeState.LOST)


@pytest.mark.parametrize("first", ["slurm", "silence"])
def test_silence_and_slurms_down_are_enough_whichever_comes_first(first):
    p = Play().to(Phase.RUNNING)
    nodes = p.run.allocations["101"].nodes
    if first == "slurm":
        p.seen("running", nodes=nodes, down=("n2",))
        assert (p.phase, p.state("n2")) == (Phase.RUNNING, NodeState.READY)
        p.silent("n2")
    else:
        p.silent("n2")
        p.seen("running", nodes=nodes, down=("n2",))
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "node-lost")
    assert p.incident.evidence[-1].source == "slurm"


@pytest.mark.parametrize("witness", ["peers", "slurm"])
def test_while_steps_go_on_no_witness_stops_the_ranks_until_one_is_overdue(witness):
    p = Play().to(Phase.RUNNING)
    p.silent("n2")
    p.progress(2)
    if witness == "peers":
        p.probed("n2", "unreachable")
    else:
        p.seen("running", nodes=("n1", "n2", "n3"), down=("n2",))
    assert (p.phase, p.state("n2"), p.run.incidents) == (Phase.RUNNING, NodeState.SUSPECT, ())
    p.overdue()
    assert p.phase is Phase.STOPPING


def test_an_overdue_step_without_a_silent_node_stops_nothing():
    p = Play().to(Phase.RUNNING)
    p.silent("n3")  # a spare makes no steps
    p.overdue()
    assert (p.phase, p.run.incidents) == (Phase.RUNNING, ())


def test_a_host_that_answers_without_its_agent_gets_a_new_one_once():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.silent("n2")
    p.probed("n2", "refused")
    starts = [a for a in p.ordered if isinstance(a, do.StartAgent)]
    assert [(a.node, a.job_id) for a in starts] == [("n2", "101")]
    p.join("n2", attempt=1, ranks=1)
    assert (p.phase, p.state("n2")) == (Phase.RUNNING, NodeState.READY)


def test_a_silent_node_that_is_heard_again_is_ready_and_its_probes_forgotten():
    p = Play().to(Phase.RUNNING)
    p.silent("n2")
    p.take(ev.NodeHeard, node="n2")
    assert (p.state("n2"), p.run.pool["n2"].reason) == (NodeState.READY, "")
    assert not [a for a in p.run.pending.values() if isinstance(a, do.Probe)]
    p.overdue()
    assert p.phase is Phase.RUNNING


def test_a_silent_node_is_swapped_without_blame_and_comes_back_as_a_spare():
    p = Play().to(Phase.RUNNING)
    p.silent("n2")
    p.exit(0)
    p.answer(do.Stop, do.Collect, but="n2")
    p.due()
    p.answer(do.Scan)
    assert (p.phase, p.slots, dict(p.run.excluded)) == (Phase.CHECKING, "n1 n3", {})
    orders = p.take(ev.NodeHeard, node="n2")
    assert [(type(a), a.node) for a in orders] == [(do.Stop, "n2")], "its old ranks may live"
    assert (p.phase, p.slots, p.run.spares) == (Phase.CHECKING, "n1 n3", ("n2",))


def test_a_lost_node_that_is_heard_while_the_others_stop_has_to_stop_too():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.lose("n2")
    assert "a1/stop/n2" not in p.run.pending
    p.take(ev.NodeHeard, node="n2")
    p.answer(do.Stop, do.Collect, but="n2")
    assert p.phase is Phase.STOPPING, "n2 answers, so its ranks are waited for"
    p.answer(do.Stop)
    p.answer(do.Scan)
    assert dict(p.run.excluded) == {} and p.incident.verdict.culprits == ()


def test_a_node_that_is_lost_while_the_others_stop_is_not_waited_for():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.exit(0)
    p.silent("n2")
    p.answer(do.Stop, do.Collect, but="n2")
    assert p.phase is Phase.STOPPING
    p.probed("n2", "unreachable")
    assert p.phase is Phase.TRIAGE
    assert p.incident.cause == "rank-exit" and p.incident.evidence[-1].node == "n2"


def test_a_new_agent_on_a_lost_node_stops_the_ranks_that_it_found():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.lose("n2")
    p.again()
    orders = p.join("n2", attempt=1, ranks=1)
    assert [(type(a), a.node) for a in orders] == [(do.Stop, "n2")]
    assert (p.phase, p.slots) == (Phase.RUNNING, "n1 n4 n3")
    assert p.run.spares == (), "it is excluded"


def test_a_lost_spare_stops_nothing_and_is_not_used():
    p = Play().to(Phase.RUNNING)
    p.silent("n3")
    p.probed("n3", "unreachable")
    assert (p.phase, p.state("n3"), p.run.spares) == (Phase.RUNNING, NodeState.LOST, ())
    p.lose("n2")
    p.stopped()
    assert list(p.run.excluded) == ["n2"], "no evidence of this incident names n3"


def test_a_spare_that_goes_while_nodes_are_prepared_does_not_disturb_them():
    p = Play().to(Phase.CHECKING)
    p.silent("n3")
    p.probed("n3", "unreachable")
    assert p.state("n3") is NodeState.LOST
    p.start()
    assert {s.attempt for s in p.starts} == {1}


def test_a_node_that_goes_while_nodes_are_prepared_is_replaced():
    p = Play().to(Phase.CHECKING)
    p.silent("n2")
    p.probed("n2", "unreachable")
    assert (p.phase, p.slots, p.run.attempt.number) == (Phase.CHECKING, "n1 n3", 2)
    p.start()
    assert {(s.node, s.attempt) for s in p.starts} == {("n1", 2), ("n3", 2)}


def test_three_nodes_that_go_at_once_are_replaced_and_none_is_blamed():
    p = Play(nodes=8, spares=3).to(Phase.RUNNING)
    for name in ("n2", "n5", "n7"):
        p.silent(name)
    p.overdue()
    assert [p.state(n) for n in ("n2", "n5", "n7")] == [NodeState.LOST] * 3
    assert {e.node for e in p.incident.evidence} == {"n2", "n5", "n7"}
    p.again()
    assert p.slots == "n1 n9 n3 n4 n10 n6 n11 n8"
    assert p.run.excluded == {} and p.incident.verdict.culprits == ()
    assert "a shared cause" in p.incident.verdict.why


def test_nodes_that_are_only_silent_count_for_a_shared_cause():
    p = Play(nodes=8, spares=3).to(Phase.RUNNING)
    p.silent("n2")
    p.overdue()
    p.silent("n5")
    p.silent("n7")
    p.answer(do.Stop, do.Collect)
    p.answer(do.Scan)
    assert p.run.excluded == {}


def test_nodes_of_a_switch_that_comes_back_are_used_again():
    p = Play(nodes=6, spares=1).to(Phase.RUNNING)
    for name in ("n1", "n2", "n3"):
        p.silent(name)
    p.overdue()
    p.stopped()
    assert p.phase is Phase.GATHERING and "no node for slot 1, 2" in p.run.reason
    assert p.slots.split(" ")[0] == "n7"
    for name in ("n1", "n2"):
        p.take(ev.NodeHeard, node=name)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n7 n1 n2 n4 n5 n6")
    p.start()
    p.first_step()


def test_no_spare_left_waits_with_a_reason_and_then_holds():
    p = Play(nodes=3, spares=0).to(Phase.RUNNING)
    p.lose("n2")
    p.stopped()
    assert (p.phase, p.slots) == (Phase.GATHERING, "n1  n3")
    assert p.run.reason == "no node for slot 1: no spare is left"
    p.due()
    assert p.phase is Phase.HELD
    assert "2 of 3 nodes are usable" in p.run.reason and "n2: excluded" in p.run.reason


def test_the_other_nodes_keep_their_slots_when_a_node_comes_late():
    p = Play(nodes=3, spares=0).to(Phase.RUNNING)
    p.lose("n2")
    p.stopped()
    p.join("n7")
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n7 n3")


def test_an_excluded_node_is_not_asked_for_and_not_taken():
    p = Play(nodes=3, spares=1, backoff_s=(0.0,)).to(Phase.RUNNING)
    p.lose("n2")
    p.again()
    p.seen("ended", "TIMEOUT")
    p.answer(do.Scan)
    submit = p.run.pending["submit/2"]
    assert isinstance(submit, do.Submit) and submit.exclude == ("n2",)
    p.grant()
    for name in ("n2", "n1", "n3", "n4", "n5"):  # Slurm may grant it all the same
        p.join(name)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n3 n4")


# --- nodes that can't run ranks -----------------------------------------------------------------


def test_a_node_that_is_unfit_at_registration_gets_no_slot():
    p = Play().to(Phase.GATHERING)
    p.join("n1", problems=("7 of 8 GPUs",))
    p.join("n2")
    p.join("n3")
    assert (p.phase, p.slots, p.state("n1")) == (Phase.CHECKING, "n2 n3", NodeState.UNFIT)
    assert dict(p.run.excluded) == {}


def test_a_node_that_finds_a_problem_when_prepared_is_replaced_unblamed():
    p = Play().to(Phase.CHECKING)
    p.reply(p.run.pending["a1/prepare/n1"], problems=("processes 7 can't be killed",))
    assert (p.phase, p.slots, p.state("n1")) == (Phase.CHECKING, "n3 n2", NodeState.UNFIT)
    p.start()
    assert {(s.node, s.slot, s.attempt) for s in p.starts} == {("n3", 0, 2), ("n2", 1, 2)}
    assert dict(p.run.excluded) == {}


def test_an_agent_that_comes_back_unfit_while_prepared_is_replaced():
    p = Play().to(Phase.CHECKING)
    p.join("n2", problems=("no memlock",))
    assert p.slots == "n1 n3"


def test_a_prepare_without_an_answer_costs_its_deadline():
    p = Play().to(Phase.CHECKING)
    p.answer(do.Prepare, but="n2")
    p.due()
    assert (p.slots, p.state("n2")) == ("n1 n3", NodeState.UNFIT)
    assert "did not confirm within 60 s" in p.run.pool["n2"].reason
    p.start()
    assert {s.node for s in p.starts} == {"n1", "n3"}


def test_an_answer_to_an_older_prepare_starts_nothing():
    p = Play().to(Phase.CHECKING)
    old = [a for a in p.run.pending.values() if isinstance(a, do.Prepare)]
    p.reply(old[0], problems=("no port",))
    assert p.reply(old[1]) == [] and p.run.attempt.prepared == ()


def test_pids_that_can_not_be_killed_take_the_node_out_without_blame():
    p = Play().to(Phase.RUNNING)
    p.exit(0)
    p.reply(p.run.pending["a1/stop/n1"], stuck=(4711,))
    assert p.phase is Phase.STOPPING
    p.again()
    assert (p.slots, p.state("n1"), dict(p.run.excluded)) == ("n3 n2", NodeState.UNFIT, {})
    assert "4711" in p.run.pool["n1"].reason


def test_a_stop_without_an_answer_costs_its_deadline():
    p = Play(stop_grace_s=7.0).to(Phase.RUNNING)
    p.exit(0)
    p.answer(do.Stop, do.Collect, but="n2")
    at = p.now
    p.due()
    assert p.now - at < 20 and p.phase is Phase.TRIAGE
    p.answer(do.Scan)
    assert (p.slots, p.state("n2"), dict(p.run.excluded)) == ("n1 n3", NodeState.UNFIT, {})


def test_nothing_is_started_before_every_answering_node_has_confirmed():
    p = Play(nodes=3, spares=1).to(Phase.RUNNING)
    p.exit(0)
    for name in ("n1", "n2"):
        p.reply(p.run.pending[f"a1/stop/{name}"])
        assert p.phase is Phase.STOPPING
    p.reply(p.run.pending["a1/stop/n3"])
    p.answer(do.Scan)
    for name in ("n1", "n2"):
        p.reply(p.run.pending[f"a2/prepare/{name}"])
        assert {s.attempt for s in p.starts} == {1}
    p.reply(p.run.pending["a2/prepare/n3"])
    assert {s.attempt for s in p.starts} == {1, 2}


# --- the order of starts ------------------------------------------------------------------------


def relaunching(**more) -> Play:
    """All nodes are free again after a rank's end; slot 0's start is ordered."""
    p = Play(**{"nodes": 3, "spares": 1, **more}).to(Phase.RUNNING)
    p.exit(1)
    p.stopped()
    p.answer(do.Prepare)
    assert p.phase is Phase.STARTING
    return p


def ordered(p: Play) -> list[str]:
    return [s.node for s in p.starts if s.attempt == p.run.attempt.number]


@pytest.mark.parametrize("warm", [True, False])
def test_a_relaunch_starts_slot_0_and_the_others_when_its_processes_exist(warm):
    p = relaunching()
    assert ordered(p) == ["n1"]
    p.reply(p.run.pending["a2/start/n1"], warm=warm)
    assert ordered(p) == ["n1", "n2", "n3"]
    assert len({(s.master_addr, s.master_port, s.save_dir) for s in p.starts[-3:]}) == 1
    assert p.incident.relaunched_at is None
    p.answer(do.Start)
    assert p.incident.relaunched_at == p.now


def test_an_attempt_after_one_without_a_step_starts_everywhere_at_once():
    p = relaunching()
    p.reply(p.run.pending["a2/start/n1"])
    p.exit(0)
    p.stopped()
    p.answer(do.Prepare)
    assert ordered(p) == ["n1", "n2", "n3"]


def test_slot_0_that_says_twice_that_it_started_orders_the_others_once():
    p = relaunching()
    first = p.run.pending["a2/start/n1"]
    p.reply(first)
    assert p.reply(first) == [] and ordered(p) == ["n1", "n2", "n3"]


@pytest.mark.parametrize("answered", [False, True])
def test_an_engine_that_dies_between_the_starts_orders_what_has_no_answer(answered):
    p = relaunching()
    if answered:
        p.reply(p.run.pending["a2/start/n1"])
    again = p.take(ev.EngineStarted, epoch=2, host="login", endpoint="tcp://10.0.0.1:5555")
    assert [a.node for a in again] == (["n2", "n3"] if answered else ["n1"])
    assert rebuilt(p.events) == p.run
    p.answer(do.Start)
    p.answer(do.Start)
    p.first_step()
    assert p.phase is Phase.RUNNING


def test_a_step_that_is_told_before_slot_0s_start_keeps_nobody_from_starting():
    p = relaunching()
    first = p.run.pending["a2/start/n1"]
    p.first_step()
    p.reply(first)
    assert p.phase is Phase.RUNNING and ordered(p) == ["n1", "n2", "n3"]
    fail(p, "n2")
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "start-failed")


def test_slot_0_that_is_lost_before_it_starts_is_replaced_and_nothing_else_was_started():
    p = relaunching()
    late = p.run.pending["a2/start/n1"]
    p.silent("n1")
    p.probed("n1", "unreachable")
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "node-lost")
    assert p.reply(late) == [], "told too late"
    p.again()
    assert (p.slots, list(p.run.excluded)) == ("n4 n2 n3", ["n1"])
    assert [s.attempt for s in p.starts] == [1, 1, 1, 2, 3, 3, 3]


def test_slot_0s_agent_that_comes_back_before_it_started_its_ranks_gets_the_order_again():
    p = relaunching()
    p.join("n1")
    assert "a2/start/n1" in p.run.pending
    p.answer(do.Start)
    assert ordered(p) == ["n1", "n2", "n3"]


def test_a_start_that_fails_on_slot_0_alone_is_tried_everywhere_before_anybody_is_blamed():
    p = relaunching(backoff_s=(0.0,))
    fail(p, "n1")
    p.stopped()
    assert p.incident.verdict.culprits == () and "tried first" in p.incident.verdict.why
    p.answer(do.Prepare)
    assert ordered(p) == ["n1", "n2", "n3"]
    p.answer(do.Start, but="n1")
    fail(p, "n1")
    p.stopped()
    assert list(p.run.excluded) == ["n1"]


# --- starts that fail ---------------------------------------------------------------------------


def fail(p: Play, node: str) -> None:
    order = p.run.pending[f"a{p.run.attempt.number}/start/{node}"]
    fields = {"key": order.key, "node": node, "attempt": order.attempt}
    p.take(ev.StartFailed, why="python: No such file or directory", **fields)


def test_a_trainer_that_starts_elsewhere_names_the_node_where_it_does_not():
    p = Play().to(Phase.CHECKING)
    p.answer(do.Prepare)
    p.answer(do.Start, but="n2")
    fail(p, "n2")
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "start-failed")
    p.again()
    assert (list(p.run.excluded), p.slots) == (["n2"], "n1 n3")


def fail_late(p: Play, *nodes: str) -> None:
    first, *rest = nodes
    number = p.run.attempt.number
    fail(p, first)
    for node in rest:
        fields = {"key": f"a{number}/start/{node}", "node": node, "attempt": number}
        p.take(ev.StartFailed, why="python: No such file or directory", **fields)


def test_a_trainer_that_starts_nowhere_is_held_at_once():
    p = Play().to(Phase.CHECKING)
    p.answer(do.Prepare)
    fail_late(p, "n1", "n2")
    p.stopped()
    assert (p.phase, dict(p.run.excluded)) == (Phase.HELD, {})
    assert p.run.reason.startswith("the trainer can't be started on any node")


@pytest.mark.parametrize(
    ("started", "failed"), [(("n1",), ("n2", "n3", "n4")), ((), ("n2",)), ((), ("n2", "n3"))]
)
def test_failed_starts_with_a_shared_cause_or_nothing_to_compare_name_nobody(started, failed):
    p = Play(nodes=5, spares=3).to(Phase.CHECKING)
    p.answer(do.Prepare)
    for name in started:
        p.reply(p.run.pending[f"a1/start/{name}"])
    fail_late(p, *failed)
    p.stopped()
    assert (p.phase, dict(p.run.excluded)) == (Phase.CHECKING, {})


def test_evidence_collected_is_kept_with_its_incident():
    p = Play().to(Phase.RUNNING)
    p.exit(0)
    seen = Evidence(node="n2", at=p.now, source="agent", text="rank 1 is in state D")
    p.reply(p.run.pending["a1/collect/n2"], evidence=(seen,))
    assert p.incident.evidence[-1] == seen
    p.again()
    assert rebuilt(p.events) == p.run


def test_what_is_collected_twice_is_evidence_once():
    p = Play().to(Phase.RUNNING)
    p.exit(1)
    (order,) = [a for a in p.run.pending.values() if isinstance(a, do.Collect) and a.node == "n1"]
    for at in (1.0, 3.0):
        seen = Evidence(node="n1", at=at, source="stacks", text="rank 0 is stopped by a signal")
        p.reply(order, evidence=(seen,))
    assert [e.text for e in p.incident.evidence].count("rank 0 is stopped by a signal") == 1
