"""What is blamed on a node and what is not: exits, silence, and nodes that can't run ranks."""

from __future__ import annotations

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.check_status import Status
from supervisor.core.types import Evidence, Fault, NodeState, Phase, ProbeOutcome

# --- rank exits ---------------------------------------------------------------------------------


def exit_first(p: Scenario, rank: int) -> None:
    """The rank ends, and then the others, as they do when a peer is gone."""
    p.exit(rank)
    for other in range(len(p.run.attempt.slots)):
        if other != rank:
            p.exit(other)


def test_the_order_has_to_be_clear_in_the_second_attempt_too():
    p = Scenario(nodes=3, spares=1).to(Phase.RUNNING)
    exit_first(p, 1)
    p.recover_to_first_step()
    p.exit(0)
    p.exit(1, clock=-60.0)
    p.finish_stop_and_scan()
    assert p.run.excluded == {}


def test_swaps_end_too():
    p = Scenario(nodes=2, spares=8, backoff_s=(0.0,)).to(Phase.RUNNING)
    for _ in range(3):
        p.exit(0)
        p.recover_to_first_step()
    p.exit(0)
    p.finish_stop_and_scan()
    assert p.phase is Phase.HELD and p.run.live_jobs == ("101",)
    assert "3 restarts for rank-exit" in p.run.reason


def test_a_late_start_of_the_failed_attempt_is_not_taken_for_the_relaunch():
    p = Scenario().to(Phase.CHECKING)
    p.answer(act.Prepare)
    p.answer(act.Start, but="n2")
    late = p.run.pending["a1/start/n2"]
    p.exit(0)
    p.reply(late)
    assert p.incident.relaunched_at is None
    p.recover_to_first_step()
    assert p.incident.relaunched_at > p.incident.stopped_at


# --- what an agent finds at a later look ---


def looked(p: Scenario, node: str, *problems: str):
    agent = p.run.pool[node].agent
    return p.take(ev.ProblemsSeen, node=node, agent=agent, problems=problems)


def test_a_problem_of_the_registration_that_is_over_gives_the_node_back():
    p = Scenario(nodes=2, spares=0)
    p.grant()
    p.join("n1")
    p.join("n2", problems=("may use 1 CPUs, Slurm granted 8: the agent step is bound",))
    assert p.state("n2") is NodeState.UNUSABLE and p.phase is Phase.GATHERING
    looked(p, "n2", "memory is limited to 1 MB, Slurm granted 9 MB")
    assert p.run.pool["n2"].reason.startswith("memory is limited")
    looked(p, "n2")
    assert p.state("n2") is NodeState.READY and p.phase is Phase.CHECKING


def test_a_problem_that_comes_later_keeps_the_next_ranks_away_and_ends_none():
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    assert looked(p, "n1", "7 GPUs can be used, Slurm granted 8") == []
    assert p.state("n1") is NodeState.READY and p.phase is Phase.RUNNING
    looked(p, "n3", "files of superv on this node are gone")
    assert p.state("n3") is NodeState.UNUSABLE
    looked(p, "n3")
    assert p.state("n3") is NodeState.READY
    p.exit(1)
    p.recover_to_first_step()
    assert p.state("n1") is NodeState.UNUSABLE
    assert p.run.slots == ("n3", "n2")


def test_only_what_it_is_about_is_over():
    p = Scenario(nodes=2, spares=1, preflight=True).to(Phase.RUNNING)
    looked(p, "n3", "a problem")
    p.checked("n3", "FAIL", Fault(check="gpu.count", status=Status.FAIL, text="7 of 8"))
    looked(p, "n3")
    assert p.state("n3") is NodeState.UNUSABLE
    assert "gpu.count" in p.run.pool["n3"].reason
    p.checked("n3", "OK")
    assert p.state("n3") is NodeState.READY


def test_another_agents_look_does_not_count():
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    p.take(ev.ProblemsSeen, node="n3", agent="one before", problems=("x",))
    assert p.state("n3") is NodeState.READY


def test_a_spare_whose_agent_came_to_processes_that_nothing_ends_is_no_spare():
    """Whatever the phase: it comes back when they are gone."""
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    p.join("n3", attempt=1, ranks=2)  # of a time when it had a slot
    [order] = [a for a in p.run.pending.values() if isinstance(a, act.Stop)]
    p.reply(order, stuck=(7, 8))
    assert p.state("n3") is NodeState.UNUSABLE and p.phase is Phase.RUNNING
    assert "processes 7, 8 of an older attempt can't be killed" in p.run.pool["n3"].reason
    p.reply(order)
    assert p.state("n3") is NodeState.READY


# --- files on nodes ---


def test_what_only_the_engine_has_is_sent_again_once():
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    [sent] = p.take(ev.FilesMissing, node="n2", why="the trainer's code did not come within 30 s")
    assert isinstance(sent, act.SendKeys) and sent.job_id == p.run.live_jobs[0]
    assert p.take(ev.FilesMissing, node="n2", why="the same") == []  # it is on its way
    assert p.take(ev.FilesMissing, node="n3", why="the same") == []
    p.take(ev.FilesRestored, node="n2", files=("the trainer's code",))
    assert sent.key not in p.run.pending  # the other nodes are not waited for
    assert len(p.take(ev.FilesMissing, node="n3", why="the same")) == 1
    assert p.phase is Phase.RUNNING


def test_a_silent_node_without_peers_has_an_agent_started():
    """Where its folder and its agent went together, nobody else would bring it keys."""
    p = Scenario(nodes=1, spares=0).to(Phase.RUNNING)
    made = p.silent("n1")
    assert [type(action) for action in made] == [act.Poll, act.StartAgent]
    assert p.phase is Phase.RUNNING


@pytest.mark.parametrize("how", ["included", "up again in Slurm"])
def test_a_lost_node_that_is_back_in_its_job_has_an_agent_started(how):
    """It was booted again: its agent and its keys went with the last boot."""
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    p.lose("n2")
    nodes = ("n1", "n2", "n3")
    assert p.state("n2") is NodeState.LOST
    p.seen("running", nodes=nodes, down=("n2",))
    assert not p.take(ev.IncludeRequested, who="ann", nodes=("n2",)), "Slurm says that it is down"
    made = p.seen("running", nodes=nodes)
    if how == "included":
        p.reply(next(a for a in made if isinstance(a, act.StartAgent)))
        made = p.take(ev.IncludeRequested, who="ann", nodes=("n2",))
        again = p.take(ev.IncludeRequested, who="ann", nodes=("n2",))
        assert not [a for a in again if isinstance(a, act.StartAgent)], "it is under way"
    assert [a.node for a in made if isinstance(a, act.StartAgent)] == ["n2"]
    p.join("n2")
    assert p.state("n2") is NodeState.READY
    assert not [a for a in p.run.pending.values() if isinstance(a, act.StartAgent)]


# --- silence ------------------------------------------------------------------------------------


def test_a_peer_that_is_silent_itself_is_not_waited_for():
    p = Scenario(nodes=5, spares=1).to(Phase.RUNNING)
    p.silent("n4")  # n1, n2 and n3 are asked
    p.silent("n1")
    for target in ("n4", "n1"):
        for action in list(p.run.pending.values()):
            if isinstance(action, act.Probe) and action.target == target and action.node != "n1":
                p.reply(action, outcome="unreachable")
    assert (p.state("n4"), p.state("n1")) == (NodeState.LOST, NodeState.LOST)


def test_a_node_that_is_lost_while_the_others_stop_is_not_waited_for():
    p = Scenario(nodes=3, spares=1).to(Phase.RUNNING)
    p.exit(0)
    p.silent("n2")
    p.answer(act.Stop, act.Collect, but="n2")
    assert p.phase is Phase.STOPPING
    p.probed("n2", "unreachable")
    assert p.phase is Phase.TRIAGE
    assert p.incident.cause == "rank-exit" and p.incident.evidence[-1].node == "n2"


def test_a_spare_that_goes_while_nodes_are_prepared_does_not_disturb_them():
    p = Scenario().to(Phase.CHECKING)
    p.silent("n3")
    p.probed("n3", "unreachable")
    assert p.state("n3") is NodeState.LOST
    p.start()
    assert {s.attempt for s in p.starts} == {1}


def test_a_node_that_goes_while_nodes_are_prepared_is_replaced():
    p = Scenario().to(Phase.CHECKING)
    p.silent("n2")
    p.probed("n2", "unreachable")
    assert (p.phase, p.slots, p.run.attempt.number) == (Phase.CHECKING, "n1 n3", 2)
    p.start()
    assert {(s.node, s.attempt) for s in p.starts} == {("n1", 2), ("n3", 2)}


def test_nodes_that_are_only_silent_count_for_a_shared_cause():
    p = Scenario(nodes=8, spares=3).to(Phase.RUNNING)
    p.silent("n2")
    p.overdue()
    p.silent("n5")
    p.silent("n7")
    p.answer(act.Stop, act.Collect)
    p.answer(act.Scan)
    assert p.run.excluded == {}


# --- nodes that can't run ranks -----------------------------------------------------------------


def test_a_node_that_is_unfit_at_registration_gets_no_slot():
    p = Scenario().to(Phase.GATHERING)
    p.join("n1", problems=("7 of 8 GPUs",))
    p.join("n2")
    p.join("n3")
    assert (p.phase, p.slots, p.state("n1")) == (Phase.CHECKING, "n2 n3", NodeState.UNUSABLE)
    assert dict(p.run.excluded) == {}


def test_an_agent_that_comes_back_unfit_while_prepared_is_replaced():
    p = Scenario().to(Phase.CHECKING)
    p.join("n2", problems=("no memlock",))
    assert p.slots == "n1 n3"


def test_an_answer_to_an_older_prepare_starts_nothing():
    p = Scenario().to(Phase.CHECKING)
    old = [a for a in p.run.pending.values() if isinstance(a, act.Prepare)]
    p.reply(old[0], problems=("no port",))
    assert p.reply(old[1]) == [] and not p.run.attempt.prepared


# --- the order of starts ------------------------------------------------------------------------


def relaunching(**more) -> Scenario:
    """All nodes are free again after a rank's end; slot 0's start is ordered."""
    p = Scenario(**{"nodes": 3, "spares": 1, **more}).to(Phase.RUNNING)
    p.exit(1)
    p.finish_stop_and_scan()
    p.answer(act.Prepare)
    assert p.phase is Phase.STARTING
    return p


def ordered(p: Scenario) -> list[str]:
    return [s.node for s in p.starts if s.attempt == p.run.attempt.number]


def test_slot_0_that_says_twice_that_it_started_orders_the_others_once():
    p = relaunching()
    first = p.run.pending["a2/start/n1"]
    p.reply(first)
    assert p.reply(first) == [] and ordered(p) == ["n1", "n2", "n3"]


def test_a_step_that_is_told_before_slot_0s_start_keeps_nobody_from_starting():
    p = relaunching()
    first = p.run.pending["a2/start/n1"]
    p.first_step()
    p.reply(first)
    assert p.phase is Phase.RUNNING and ordered(p) == ["n1", "n2", "n3"]
    fail(p, "n2")
    assert (p.phase, p.incident.cause) == (Phase.STOPPING, "start-failed")


def test_slot_0s_agent_that_comes_back_before_it_started_its_ranks_gets_the_order_again():
    p = relaunching()
    p.join("n1")
    assert "a2/start/n1" in p.run.pending
    p.answer(act.Start)
    assert ordered(p) == ["n1", "n2", "n3"]


# --- starts that fail ---------------------------------------------------------------------------


def fail(p: Scenario, node: str) -> None:
    order = p.run.pending[f"a{p.run.attempt.number}/start/{node}"]
    fields = {"key": order.key, "node": node, "attempt": order.attempt}
    p.take(ev.StartFailed, why="python: No such file or directory", **fields)


def fail_late(p: Scenario, *nodes: str) -> None:
    first, *rest = nodes
    number = p.run.attempt.number
    fail(p, first)
    for node in rest:
        fields = {"key": f"a{number}/start/{node}", "node": node, "attempt": number}
        p.take(ev.StartFailed, why="python: No such file or directory", **fields)


@pytest.mark.parametrize(
    ("started", "failed"), [(("n1",), ("n2", "n3", "n4")), ((), ("n2",)), ((), ("n2", "n3"))]
)
def test_failed_starts_with_a_shared_cause_or_nothing_to_compare_name_nobody(started, failed):
    p = Scenario(nodes=5, spares=3).to(Phase.CHECKING)
    p.answer(act.Prepare)
    for name in started:
        p.reply(p.run.pending[f"a1/start/{name}"])
    fail_late(p, *failed)
    p.finish_stop_and_scan()
    assert (p.phase, dict(p.run.excluded)) == (Phase.CHECKING, {})


def test_what_is_collected_twice_is_evidence_once():
    p = Scenario().to(Phase.RUNNING)
    p.exit(1)
    (order,) = [a for a in p.run.pending.values() if isinstance(a, act.Collect) and a.node == "n1"]
    for at in (1.0, 3.0):
        seen = Evidence(node="n1", at=at, source="stacks", text="rank 0 is stopped by a signal")
        p.reply(order, evidence=(seen,))
    assert [e.text for e in p.incident.evidence].count("rank 0 is stopped by a signal") == 1


class Fast(Scenario):
    """Ten things happen in a second."""

    def take(self, kind, *, after=0.1, **fields):
        return super().take(kind, after=after, **fields)


def test_the_third_node_that_is_inferred_within_a_minute_is_not_blamed():
    p = Fast(nodes=3, spares=3, backoff_s=(0.0,), restarts_without_progress=9)
    p.to(Phase.RUNNING)
    for slot in (0, 0, 1, 1, 2, 2):
        p.exit(slot)
        p.recover_to_first_step()
    assert [*p.run.excluded] == ["n1", "n2"] and p.now - p.run.excluded["n1"].since < 60
    assert "a shared cause" in p.incident.verdict.why


# --- nodes that may still hold older ranks ------------------------------------------------------


def all_in_doubt(p: Scenario) -> Scenario:
    """Ranks of every node of the attempt can't be killed."""
    p.exit(0)
    for action in list(p.run.pending.values()):
        if isinstance(action, act.Stop):
            p.reply(action, stuck=(4711,))
    p.answer(act.Scan)
    assert p.phase is Phase.GATHERING
    return p


def freed(p: Scenario, node: str, attempt: int) -> None:
    """As its agent says it by itself, when the processes are gone."""
    p.take(ev.RanksStopped, key=f"a{attempt}/stop/{node}", node=node, attempt=attempt)


def test_slots_keep_their_order_when_all_of_them_were_empty():
    p = Scenario(nodes=3, spares=1, backoff_s=(0.0,)).to(Phase.RUNNING)
    p.lose("n1")
    p.finish_stop_and_scan()
    p.start()
    p.first_step()
    assert p.slots == "n4 n2 n3"
    all_in_doubt(p)
    for node in ("n2", "n3", "n4"):
        freed(p, node, 2)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n4 n2 n3")


def test_what_is_gone_of_an_older_attempt_says_nothing_of_this_one():
    p = Scenario(spares=0, backoff_s=(0.0,)).to(Phase.RUNNING)
    p.exit(0)
    p.recover_to_first_step()
    all_in_doubt(p)
    freed(p, "n1", 1)
    assert p.state("n1") is NodeState.UNUSABLE
    freed(p, "n1", 2)
    assert p.state("n1") is NodeState.READY


def test_a_hung_file_system_that_checks_see_too_is_waited_for():
    p = Scenario(spares=0, preflight=True, backoff_s=(0.0,)).to(Phase.RUNNING)
    fault = Fault(check="nfs.alive[/ckpt]", status=Status.FAIL, text="no answer", node_fault=False)
    p.checked("n1", "FAIL", fault)
    all_in_doubt(p)
    p.expire_deadline()
    p.expire_deadline()
    assert p.phase is Phase.GATHERING and "waiting for n1 to be free" in p.run.reason
    freed(p, "n1", 1)
    freed(p, "n2", 1)
    assert p.state("n1") is NodeState.UNUSABLE  # its checks have not passed yet
    p.expire_deadline()
    assert "waiting for what nodes share: nfs.alive[/ckpt]: no answer (1 nodes)" in p.run.reason
    p.checked("n1")
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n2")


def gone_down(p: Scenario) -> None:
    p.seen("running", nodes=("n1", "n2"), down=("n2",))


def excluded_by_people(p: Scenario) -> None:
    p.take(ev.OperatorExclusionsChanged, operator_excluded={"n2": "broken"})


def broken(p: Scenario) -> None:
    p.checked("n2", "FAIL", Fault(check="gpu.count", status=Status.FAIL, text="7 of 8 GPUs"))


def left(p: Scenario) -> None:
    p.take(ev.AgentLeft, node="n2", agent=p.run.pool["n2"].agent, reason="terminated")


@pytest.mark.parametrize("end", [gone_down, excluded_by_people, broken, left])
def test_a_node_in_doubt_is_not_waited_for_when_it_would_not_come_back(end):
    p = all_in_doubt(Scenario(spares=0, backoff_s=(0.0,)).to(Phase.RUNNING))
    end(p)
    p.expire_deadline()
    assert p.phase is Phase.PENDING and p.run.allocations["101"].cancelled


def test_a_node_in_doubt_is_asked_again_by_the_next_engine_too():
    p = Scenario(spares=0, backoff_s=(0.0,)).to(Phase.RUNNING)
    p.exit(0)
    p.expire_deadline()
    p.answer(act.Scan)
    where = {"epoch": 2, "host": "login", "endpoint": p.run.endpoint}
    again = p.take(ev.EngineStarted, **where)
    assert {a.node for a in again if isinstance(a, act.Stop)} == {"n1", "n2"}
    p.answer(act.Stop)
    assert p.phase is Phase.CHECKING
    assert not [a for a in p.run.pending.values() if isinstance(a, act.Stop)]


def test_a_node_whose_problem_is_over_is_used_again():
    p = Scenario(spares=0).to(Phase.CHECKING)
    order = next(a for a in p.run.pending.values() if isinstance(a, act.Prepare))
    p.reply(order, problems=("no port is free", "processes 1 can't be killed"), stuck=(1,))
    assert p.phase is Phase.GATHERING
    freed(p, "n1", 0)
    assert p.state("n1") is NodeState.UNUSABLE  # the port
    p.reply(order)
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1 n2")


def test_a_problem_that_is_no_fault_of_the_world_is_not_waited_for_without_end():
    p = Scenario(spares=0).to(Phase.CHECKING)
    order = next(a for a in p.run.pending.values() if isinstance(a, act.Prepare))
    p.reply(order, problems=("no port is free",))
    p.expire_deadline()
    assert p.phase is Phase.HELD and "no port is free" in p.run.reason


# --- what silent nodes hold up --------------------------------------------------------------------


def silent_at_the_first_step() -> Scenario:
    p = Scenario(first_step_timeout_s=100).to(Phase.STARTING)
    p.silent("n2")
    return p


def silent_while_the_last_ranks_end() -> Scenario:
    p = Scenario(last_ranks_timeout_s=100).to(Phase.RUNNING)
    p.exit(0, code=0)
    p.silent("n2")
    return p


@pytest.mark.parametrize("outcome", [*ProbeOutcome, None])
@pytest.mark.parametrize("begin", [silent_at_the_first_step, silent_while_the_last_ranks_end])
def test_a_silent_node_holds_up_nothing_for_good(begin, outcome):
    """It may be heard again; three times the limit is the end, and who is stopped is lost."""
    p = begin()
    phase, since = p.phase, p.now
    while p.phase is phase and p.run.deadline:
        assert p.now - since < 3 * 100
        if outcome is not None:
            p.silent("n2")
            p.probed("n2", outcome)
        if p.phase is phase:
            p.expire_deadline()
    lost = outcome in (ProbeOutcome.MUTE, ProbeOutcome.UNREACHABLE)
    assert p.phase is Phase.STOPPING and (p.state("n2") is NodeState.LOST) is lost
    assert (p.incident.cause == "node-lost") is lost
    assert "the others go on" not in p.run.reason
