"""What health checks change: who takes a slot, who is named, and what they never stop."""

from __future__ import annotations

import pytest
from scenario import Play, kinds, rebuilt

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.story import tell
from supervisor.core.types import Fault, NodeState, Phase

GPU = Fault(check="gpu.count", status="FAIL", text="7 of 8 GPUs")
NFS = Fault(check="nfs.alive[/shared]", status="FAIL", text="no answer", own=False)
ODD = Fault(check="cpu.steal", status="WARN", text="3 % stolen")
DARK = Fault(check="ecc.mode", status="UNKNOWN", text="no answer")


def gathered(nodes=2, spares=1, **more) -> Play:
    p = Play(nodes=nodes, spares=spares, preflight=True, **more)
    p.gather()
    return p


def test_nodes_take_slots_once_their_checks_have_said_something():
    p = gathered()
    assert p.phase is Phase.GATHERING and p.slots == ""
    p.checked("n1")
    p.checked("n3")
    assert "spares" in p.run.reason and p.slots == ""
    p.checked("n2")
    assert (p.phase, p.slots, p.run.spares) == (Phase.CHECKING, "n1 n2", ("n3",))


def test_the_healthiest_take_the_slots_in_the_order_of_their_names():
    p = gathered(nodes=2, spares=2)
    p.checked("n1", "UNKNOWN", DARK)
    p.checked("n2", "WARN", ODD)
    p.checked("n3")
    p.checked("n4")
    assert (p.slots, p.run.spares) == ("n3 n4", ("n1", "n2"))
    q = gathered(nodes=3, spares=1)
    q.checked("n1", "UNKNOWN", DARK)
    q.checked("n2", "WARN", ODD)
    q.checked("n3")
    q.checked("n4")
    assert q.slots == "n2 n3 n4"


def test_a_node_that_fails_is_not_used_and_comes_back_when_it_passes():
    p = gathered()
    p.checked("n1", "FAIL", GPU)
    assert p.state("n1") is NodeState.UNFIT
    assert p.run.pool["n1"].reason == "health: gpu.count: 7 of 8 GPUs"
    p.checked("n2")
    p.checked("n3")
    assert p.slots == "n2 n3"
    p.checked("n1")
    assert p.state("n1") is NodeState.READY and p.run.spares == ("n1",)


def test_the_spares_that_never_answer_are_not_waited_for_for_ever():
    p = gathered()
    p.checked("n2")
    p.checked("n3")
    p.due()
    assert (p.phase, p.slots) == (Phase.CHECKING, "n2 n3")


def test_too_few_healthy_nodes_wait_and_then_hold_with_each_reason():
    p = gathered(nodes=2, spares=0)
    p.checked("n1", "FAIL", NFS)
    p.due()
    assert p.phase is Phase.HELD
    assert "n1: health: nfs.alive[/shared]: no answer" in p.run.reason
    assert "n2: its health checks have not answered" in p.run.reason


def test_a_failure_stops_no_ranks_whose_steps_advance():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    assert p.checked("n2", "FAIL", GPU) == []
    assert (p.phase, p.state("n2")) == (Phase.RUNNING, NodeState.READY)
    p.progress(5)
    assert p.phase is Phase.RUNNING and not p.run.incidents


def test_but_names_the_node_when_something_breaks_and_the_spare_takes_over():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.checked("n2", "FAIL", GPU)
    p.exit(0)  # a peer ends first: it is not the culprit
    p.again()
    verdict = p.incident.verdict
    assert (verdict.cause, verdict.culprits) == ("unhealthy-node", ("n2",))
    assert verdict.confidence == "witnessed" and "gpu.count: 7 of 8 GPUs" in verdict.why
    (told,) = [e for e in p.incident.evidence if e.source == "health"]
    assert (told.node, told.text) == ("n2", "n2 failed gpu.count: 7 of 8 GPUs")
    assert (p.slots, list(p.run.excluded)) == ("n1 n3", ["n2"])


def test_a_failure_that_comes_after_the_exit_still_counts():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.exit(0)
    p.checked("n1", "FAIL", GPU)
    p.again()
    assert (p.slots, p.incident.verdict.culprits) == ("n3 n2", ("n1",))


def test_a_fault_of_a_server_names_nobody():
    p = gathered(nodes=2, spares=1)
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.checked("n2", "FAIL", NFS)
    p.exit(0)
    p.stopped()
    assert p.incident.verdict.culprits == () and p.run.excluded == {}
    assert p.slots == "n1 n3"  # it is not used all the same


def test_three_that_fail_at_once_share_a_cause_and_none_is_blamed():
    p = gathered(nodes=4, spares=3)
    for node in list(p.run.pool):
        p.checked(node)
    p.start()
    p.first_step()
    for node in ("n1", "n2", "n3"):
        p.checked(node, "FAIL", GPU)
    p.exit(0)
    p.stopped()
    assert p.run.excluded == {} and "shared cause" in p.incident.verdict.why
    assert p.slots == "n5 n6 n7 n4"


def test_a_fault_found_before_the_first_step_swaps_the_node_at_once():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    orders = p.checked("n2", "FAIL", GPU)
    assert "Stop" in kinds(orders) and p.incident.cause == "unhealthy-node"
    p.again()
    assert p.slots == "n1 n3"


def test_a_fault_found_while_nodes_are_prepared_swaps_the_node_and_is_explained():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.checked("n1", "FAIL", GPU)
    p.again()
    assert (p.slots, p.incident.verdict.culprits) == ("n3 n2", ("n1",))
    assert not [a for a in p.starts if a.attempt == 1]


def test_a_servers_fault_found_then_swaps_the_node_and_blames_nobody():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.checked("n1", "FAIL", NFS)
    assert (p.phase, p.slots, p.run.incidents) == (Phase.CHECKING, "n3 n2", ())


def test_a_node_that_fails_now_and_then_before_the_first_step_is_named():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.checked("n2", "FAIL", GPU)
    p.checked("n2")
    p.again()
    assert (p.slots, list(p.run.excluded)) == ("n1 n3", ["n2"])


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
            p.stopped()
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
    p.stopped()
    assert p.incident.verdict.culprits == () and "shared cause" in p.incident.verdict.why


def test_the_third_node_within_a_minute_is_not_blamed_any_more():
    p = gathered(nodes=2, spares=4)
    for node in list(p.run.pool):
        p.checked(node)
    for _ in range(3):
        p.start()
        p.checked(p.slots.split()[0], "FAIL", GPU)
        p.stopped()
    assert list(p.run.excluded) == ["n1", "n3"] and "3 nodes fail" in p.incident.verdict.why
    assert p.slots == "n5 n2"  # it is not used all the same


def test_unknown_gives_no_node_back_that_failed():
    p = gathered()
    p.checked("n1", "FAIL", GPU)
    p.checked("n1", "UNKNOWN", DARK)
    assert p.state("n1") is NodeState.UNFIT
    p.checked("n1", "WARN", ODD)
    assert p.state("n1") is NodeState.READY


def test_an_ill_node_stays_so_whatever_its_agent_does():
    p = gathered(nodes=1, spares=1)
    p.checked("n1", "FAIL", GPU)
    p.checked("n2")
    p.start()
    p.first_step()
    p.join("n1")  # its agent was started anew, and has not looked yet
    assert p.state("n1") is NodeState.UNFIT and p.run.spares == ()
    p.checked("n1", "FAIL", GPU)
    assert p.state("n1") is NodeState.UNFIT
    p.checked("n1")
    assert p.run.spares == ("n1",)


def test_a_lost_node_that_comes_back_ill_is_no_spare():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.checked("n2", "FAIL", NFS)
    p.lose("n2")
    assert p.state("n2") is NodeState.LOST
    p.again()
    p.take(ev.NodeHeard, node="n2")
    assert p.state("n2") is NodeState.UNFIT and p.run.spares == ()


def test_an_agent_that_comes_back_keeps_what_is_known_of_its_node():
    p = gathered()
    for node in ("n1", "n2", "n3"):
        p.checked(node)
    p.start()
    p.first_step()
    p.join("n1", attempt=p.run.attempt.number, ranks=1)
    assert p.run.pool["n1"].health == "OK"
    p.exit(0)
    p.again()
    assert p.slots == "n1 n2"


def test_a_report_of_an_agents_former_life_counts_for_nothing():
    p = gathered()
    before = p.run
    p.take(ev.HealthSeen, node="n1", agent="nobody", status="FAIL", faults=(GPU,))
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
    p.again()
    assert p.run.excluded == {} and p.slots == "n1 n2"


def test_people_keep_a_node_out_of_new_slots_and_of_the_next_allocation():
    p = Play(nodes=1, spares=1, barred={"n9": "bad link"})
    assert p.ordered[0].exclude == ("n9",)
    p.gather()
    p.start()
    p.first_step()
    p.take(ev.BarredSeen, barred={"n1": "ops: keep out"})
    assert p.phase is Phase.RUNNING and p.slots == "n1"
    p.exit(0)
    p.again()
    assert p.slots == "n2" and p.run.excluded == {}


def test_people_keep_a_node_out_of_a_start_that_has_not_begun():
    p = Play(nodes=1, spares=1)
    p.gather()
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1")
    p.take(ev.BarredSeen, barred={"n1": "ops: keep out"})
    assert (p.phase, p.slots) == (Phase.CHECKING, "n2")
    p.take(ev.BarredSeen, barred={"n1": "ops: keep out", "n2": "this too"})
    assert p.phase is Phase.GATHERING
    p.take(ev.BarredSeen, barred={"n2": "this too"})
    assert (p.phase, p.slots) == (Phase.CHECKING, "n1")


def test_what_is_told():
    p = gathered()
    before = p.run
    p.checked("n1", "FAIL", GPU)
    event = p.events[-1]
    assert tell(before, event, p.run)[0] == "n1 health: gpu.count FAIL: 7 of 8 GPUs"
    before = p.run
    p.checked("n1")
    assert tell(before, p.events[-1], p.run)[0] == "n1 passes its health checks again"


def test_the_journal_gives_the_same_run():
    p = gathered()
    p.checked("n1", "FAIL", GPU)
    p.checked("n2")
    p.checked("n3", "WARN", ODD)
    p.take(ev.BarredSeen, barred={"n3": "x"})
    assert rebuilt(p.events) == p.run
    assert not [a for a in p.ordered if isinstance(a, do.Cancel)]


def test_a_fault_that_is_no_nodes_is_waited_for_without_end_and_ends_by_itself():
    p = gathered(nodes=2, spares=0)
    for node in ("n1", "n2"):
        p.checked(node)
    p.start()
    p.first_step()
    for node in ("n1", "n2"):
        p.checked(node, "FAIL", NFS)
    p.exit(0)
    p.stopped()
    for _ in range(5):  # an hour of it
        p.due()
        assert p.phase is Phase.GATHERING
        assert "waiting for what nodes share: nfs.alive[/shared]: no answer" in p.run.reason
    for node in ("n1", "n2"):
        p.checked(node)
    p.start()
    p.first_step()
    assert (p.phase, p.slots, p.run.excluded) == (Phase.RUNNING, "n1 n2", {})
