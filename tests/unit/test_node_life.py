"""A node's life: what keeps ranks from it, who says that it is gone, and what brings it back."""

from __future__ import annotations

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.liveness import AGENT_S
from supervisor.core.node_life import spares, usable
from supervisor.core.node_states import STATES
from supervisor.core.types import NodeState, Phase

HERE = ("n1", "n2", "n3")


def gone(play: Scenario, *nodes: str, down: tuple[str, ...] = ()) -> list[act.Action]:
    """Slurm runs the job without these nodes."""
    here = tuple(name for name in HERE if name not in nodes)
    return play.seen("running", nodes=here, down=down)


def test_the_table_has_every_state_and_each_can_be_left() -> None:
    assert STATES.keys() == {*NodeState}
    for state, one in STATES.items():
        assert one.means and one.again and NodeState.READY in {state, *one.leads_to}
        assert state not in one.leads_to


# --- Slurm's list of the job's nodes --------------------------------------------------------------


@pytest.mark.parametrize("name", ["n2", "n3"])  # with a slot, and a spare
@pytest.mark.parametrize("silent_first", [False, True])
def test_a_silent_node_that_slurm_took_out_of_the_job_is_lost(name, silent_first) -> None:
    play = Scenario().to(Phase.RUNNING)
    changes = [lambda: play.silent(name), lambda: gone(play, name)]
    for change in changes if silent_first else reversed(changes):
        change()
    assert play.state(name) is NodeState.LOST
    assert "without" in play.run.pool[name].reason
    assert play.phase is (Phase.STOPPING if name == "n2" else Phase.RUNNING)


def test_a_node_that_is_heard_is_not_lost_for_slurms_list_and_takes_no_slot() -> None:
    play = Scenario().to(Phase.RUNNING)
    gone(play, "n2", "n3")
    assert play.phase is Phase.RUNNING and play.state("n2") is NodeState.READY
    assert usable(play.run) == ["n1"] and spares(play.run) == ()
    gone(play)
    assert usable(play.run) == ["n1", "n2", "n3"] and spares(play.run) == ("n3",)


@pytest.mark.parametrize("seen", [{"raw": "COMPLETING", "nodes": ("n1",)}, {"nodes": ()}])
def test_a_list_that_is_not_whole_takes_no_node_out(seen) -> None:
    play = Scenario().to(Phase.RUNNING)
    play.seen("running", **seen)
    play.silent("n2")
    assert play.state("n2") is NodeState.SUSPECT and play.phase is Phase.RUNNING
    assert play.run.allocations["101"].nodes == HERE


def test_slurms_word_counts_where_no_step_came_since_the_last_look() -> None:
    """Steps outweigh it; when they end, the next look confirms."""
    play = Scenario().to(Phase.RUNNING)
    play.silent("n2")
    play.progress(2)
    gone(play, "n2")
    assert play.state("n2") is NodeState.SUSPECT
    play.take(ev.HeartbeatLost, after=15, node="n2", last_heard=play.now - 20)
    assert play.state("n2") is NodeState.SUSPECT, "there was a step since the look before"
    play.take(ev.HeartbeatLost, after=15, node="n2", last_heard=play.now - 40)
    assert play.state("n2") is NodeState.LOST and play.phase is Phase.STOPPING


# --- a silent node that is looked for again -------------------------------------------------------


def test_a_look_asks_slurm_once_and_peers_again() -> None:
    play = Scenario(nodes=3).to(Phase.RUNNING)
    first = play.silent("n2")
    again = play.take(ev.HeartbeatLost, after=15, node="n2", last_heard=play.now - 20)
    assert sorted(type(a).__name__ for a in first) == ["Poll", "Probe", "Probe", "Probe"]
    assert [type(a).__name__ for a in again] == ["Probe"] * 3, "the poll waits for its answer still"
    assert not {a.key for a in first} & {a.key for a in again}
    assert not {a.key for a in first if isinstance(a, act.Probe)} & play.run.pending.keys()


def test_a_node_that_peers_reached_and_then_reach_no_more_is_lost() -> None:
    play = Scenario(nodes=3).to(Phase.RUNNING)
    play.silent("n2")
    play.probed("n2", "reached")
    play.overdue()
    assert play.state("n2") is NodeState.SUSPECT and play.phase is Phase.RUNNING
    play.now += 10
    assert [type(a) for a in play.overdue()] == [act.Probe] * 3, "it may have died since"
    play.probed("n2", "unreachable")
    assert play.state("n2") is NodeState.LOST and play.incident.cause == "node-lost"


def test_an_agent_whose_port_answers_and_that_stays_silent_is_started_or_gets_its_keys() -> None:
    play = Scenario(nodes=3).to(Phase.RUNNING)
    play.silent("n2")
    for after in (15, 30, 60):
        play.probed("n2", "reached")
        play.progress(play.run.attempt.step + 1)
        play.take(ev.HeartbeatLost, after=after, node="n2", last_heard=play.now)
    started = [a.node for a in play.run.pending.values() if isinstance(a, act.StartAgent)]
    assert started == ["n2"] and play.phase is Phase.RUNNING
    play.take(ev.HeartbeatRegained, node="n2")
    assert not any(isinstance(a, act.StartAgent) for a in play.run.pending.values())


def test_a_host_that_answers_without_its_agent_gets_one_and_time_for_it_and_no_more() -> None:
    play = Scenario(nodes=3).to(Phase.RUNNING)
    play.silent("n2")
    play.probed("n2", "refused")
    assert [a.node for a in play.run.pending.values() if isinstance(a, act.StartAgent)] == ["n2"]
    play.overdue()
    assert play.state("n2") is NodeState.SUSPECT, "the agent may be on its way"
    play.now += AGENT_S
    play.overdue()
    assert play.state("n2") is NodeState.LOST


# --- what kept ranks from a node before it fell silent --------------------------------------------


def in_doubt() -> Scenario:
    """The ranks of n2 can't be killed; n3 has its slot."""
    play = Scenario(backoff_s=(0.0,)).to(Phase.STOPPING)
    for stop in [a for a in play.run.pending.values() if isinstance(a, act.Stop)]:
        play.reply(stop, **({"stuck": (4711,)} if stop.node == "n2" else {}))
    assert play.state("n2") is NodeState.UNUSABLE
    return play


def test_what_kept_ranks_from_a_node_is_still_so_when_it_is_heard_again() -> None:
    play = in_doubt()
    play.silent("n2")
    assert play.state("n2") is NodeState.SUSPECT
    asked = play.take(ev.HeartbeatRegained, node="n2")
    node = play.run.pool["n2"]
    assert (node.state, node.unconfirmed) == (NodeState.UNUSABLE, 1) and "4711" in node.reason
    stops = [a for a in play.run.pending.values() if isinstance(a, act.Stop) and a.node == "n2"]
    assert stops or asked, "and it is asked"
    play.take(ev.RanksStopped, key="late", node="n2", attempt=1)
    assert play.state("n2") is NodeState.READY


def test_a_node_that_confirms_while_it_is_silent_is_ready_when_it_is_heard() -> None:
    play = in_doubt()
    play.silent("n2")
    play.take(ev.RanksStopped, key="late", node="n2", attempt=1)
    assert play.state("n2") is NodeState.SUSPECT
    play.take(ev.HeartbeatRegained, node="n2")
    assert play.state("n2") is NodeState.READY


def test_a_node_in_doubt_that_dies_is_waited_for_until_somebody_says_so() -> None:
    play = in_doubt()
    play.silent("n2")
    play.probed("n2", "unreachable")
    assert play.state("n2") is NodeState.LOST
    play.take(ev.HeartbeatRegained, node="n2")
    stops = [a for a in play.run.pending.values() if isinstance(a, act.Stop) and a.node == "n2"]
    assert play.state("n2") is NodeState.UNUSABLE and len(stops) == 1
