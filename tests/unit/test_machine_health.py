"""What health checks change: who takes a slot, who is named, and what they never stop."""

from __future__ import annotations

import pytest
from scenario import Scenario, rebuilt

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.check_status import Status
from supervisor.core.node_life import spares
from supervisor.core.types import Fault, NodeState, Phase

GPU = Fault(check="gpu.count", status=Status.FAIL, text="7 of 8 GPUs")
NFS = Fault(check="nfs.alive[/shared]", status=Status.FAIL, text="no answer", node_fault=False)
ODD = Fault(check="cpu.steal", status=Status.WARN, text="3 % stolen")
DARK = Fault(check="ecc.mode", status=Status.UNKNOWN, text="no answer")


def gathered(nodes=2, spares=1, **more) -> Scenario:
    p = Scenario(nodes=nodes, spares=spares, preflight=True, **more)
    p.gather()
    return p


def test_the_healthiest_take_the_slots_in_the_order_of_their_names():
    p = gathered(nodes=2, spares=2)
    p.checked("n1", "UNKNOWN", DARK)
    p.checked("n2", "WARN", ODD)
    p.checked("n3")
    p.checked("n4")
    assert (p.slots, spares(p.run)) == ("n3 n4", ("n1", "n2"))
    q = gathered(nodes=3, spares=1)
    q.checked("n1", "UNKNOWN", DARK)
    q.checked("n2", "WARN", ODD)
    q.checked("n3")
    q.checked("n4")
    assert q.slots == "n2 n3 n4"


def test_the_spares_that_never_answer_are_not_waited_for_for_ever():
    p = gathered()
    p.checked("n2")
    p.checked("n3")
    p.expire_deadline()
    assert (p.phase, p.slots) == (Phase.CHECKING, "n2 n3")


def test_too_few_healthy_nodes_wait_and_then_hold_with_each_reason():
    p = gathered(nodes=2, spares=0)
    p.checked("n1", "FAIL", NFS)
    p.expire_deadline()
    assert p.phase is Phase.HELD
    assert "n1: health: nfs.alive[/shared]: no answer" in p.run.reason
    assert "n2: its health checks have not answered" in p.run.reason


def test_what_fails_everywhere_before_the_first_step_is_not_tried_for_ever():
    p = gathered(nodes=3, spares=0, backoff_s=(1.0,))
    for _ in range(40):
        if p.run.ended:
            break
        for node in ("n1", "n2", "n3"):
            p.checked(node)
        if p.phase is Phase.CHECKING:
            p.start()
        for node in ("n1", "n2", "n3"):
            p.checked(node, "FAIL", GPU)
        if p.phase is Phase.STOPPING:
            p.finish_stop_and_scan()
    assert p.phase is Phase.HELD and p.run.excluded == {}
    assert "3 restarts for unhealthy-node without" in p.run.reason


def test_spares_that_fail_the_same_way_at_once_show_a_shared_cause():
    p = gathered(nodes=2, spares=2)
    for node in list(p.run.pool):
        p.checked(node)
    p.start()
    p.first_step()
    for node in ("n1", "n3", "n4"):
        p.checked(node, "FAIL", GPU)
    p.exit(0)
    p.finish_stop_and_scan()
    assert p.incident.verdict.culprits == () and "shared cause" in p.incident.verdict.why


def test_the_third_node_within_a_minute_is_not_blamed_any_more():
    p = gathered(nodes=2, spares=4)
    for node in list(p.run.pool):
        p.checked(node)
    for _ in range(3):
        p.start()
        p.checked(p.slots.split()[0], "FAIL", GPU)
        p.finish_stop_and_scan()
    assert list(p.run.excluded) == ["n1", "n3"] and "3 nodes fail" in p.incident.verdict.why
    assert p.slots == "n5 n2"  # it is not used all the same


def test_unknown_gives_no_node_back_that_failed():
    p = gathered()
    p.checked("n1", "FAIL", GPU)
    p.checked("n1", "UNKNOWN", DARK)
    assert p.state("n1") is NodeState.UNUSABLE
    p.checked("n1", "WARN", ODD)
    assert p.state("n1") is NodeState.READY


def test_an_ill_node_stays_so_whatever_its_agent_does():
    p = gathered(nodes=1, spares=1)
    p.checked("n1", "FAIL", GPU)
    p.checked("n2")
    p.start()
    p.first_step()
    p.join("n1")  # its agent was started anew, and has not looked yet
    assert p.state("n1") is NodeState.UNUSABLE and spares(p.run) == ()
    p.checked("n1", "FAIL", GPU)
    assert p.state("n1") is NodeState.UNUSABLE
    p.checked("n1")
    assert spares(p.run) == ("n1",)


def test_a_lost_node_that_comes_back_ill_is_no_spare():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.checked("n2", "FAIL", NFS)
    p.lose("n2")
    assert p.state("n2") is NodeState.LOST
    p.recover_to_first_step()
    p.take(ev.HeartbeatRegained, node="n2")
    assert p.state("n2") is NodeState.UNUSABLE and spares(p.run) == ()


def test_an_agent_that_comes_back_keeps_what_is_known_of_its_node():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.join("n1", attempt=p.run.attempt.number, ranks=1)
    assert p.run.pool["n1"].health == "OK"
    p.exit(0)
    p.recover_to_first_step()
    assert p.slots == "n1 n2"


def test_a_report_of_an_agents_former_life_counts_for_nothing():
    p = gathered()
    before = p.run
    p.take(ev.HealthSeen, node="n1", agent="nobody", status=Status.FAIL, faults=(GPU,))
    assert p.run == before


@pytest.mark.parametrize("status", ["UNKNOWN", "WARN"])
def test_unknown_excludes_nobody(status):
    p = gathered(nodes=2, spares=0)
    p.checked("n1", status, DARK)
    p.checked("n2", status, DARK)
    assert p.slots == "n1 n2"
    p.start()
    p.first_step()
    p.exit(0)
    p.recover_to_first_step()
    assert p.run.excluded == {} and p.slots == "n1 n2"


def test_the_journal_gives_the_same_run():
    p = gathered()
    p.checked("n1", "FAIL", GPU)
    p.checked("n2")
    p.checked("n3", "WARN", ODD)
    p.take(ev.OperatorExclusionsChanged, operator_excluded={"n3": "x"})
    assert rebuilt(p.events) == p.run
    assert not [a for a in p.ordered if isinstance(a, act.Cancel)]
