"""Silence, overdue steps and hangs, as they become true by the passing of time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.failure_detector import FailureDetector
from supervisor.core.liveness import HELPED
from supervisor.core.policy import Policy
from supervisor.core.signs_of_life import Signs
from supervisor.core.types import NodeState, Phase

TICK = 0.25


class Clock:
    """Beats, steps and ticks of a run whose agents are heard once a second."""

    def __init__(self, play: Scenario) -> None:
        self.play = play
        self.failure_detector = FailureDetector(play.run.spec.policy)
        self.now = play.now
        self.dead: set[str] = set()

    def go(self, seconds: float, *, steps_every: float | None = None) -> list[ev.Event]:
        """Time passes; events are folded into the run as the engine does."""
        events: list[ev.Event] = []
        ticks = round(seconds / TICK)
        for tick in range(1, ticks + 1):
            self.now += TICK
            if tick % 4 == 0:
                for name in sorted(self.play.run.pool.keys() - self.dead):
                    events += self._take(self.failure_detector.heard(name, self.now, self.play.run))
            if steps_every is not None and tick % round(steps_every / TICK) == 0:
                self.step()
            events += self._take(self.failure_detector.check(self.now, self.play.run))
        return events

    def step(self) -> None:
        attempt = self.play.run.attempt
        number = (attempt.step or 0) + 1
        for name in attempt.slots:  # their hooks tell
            if name not in self.dead:
                self.tell(name, number)
        assert self.failure_detector.stepped(attempt.number, number, self.now)
        self.play.now = self.now
        self.play.progress(number, after=0)

    def overdue_s(self, saving: bool = False) -> float | None:
        return self.failure_detector.rhythm.overdue_s(self.play.run.spec.policy, saving=saving)

    def hang_s(self, saving: bool = False) -> float:
        return self.failure_detector.rhythm.hang_s(self.play.run.spec.policy, saving=saving)

    def tell(self, node: str, step: int | None, phase: str = "step") -> None:
        """A heartbeat says which step the node's ranks are at, and in which phase."""
        attempt = self.play.run.attempt.number
        self.failure_detector.in_phase(node, attempt, phase)
        hook = Signs(hook=True)
        self.failure_detector.signs.heard(node, attempt, step, hook, self.now, 1.0)

    def _take(self, events: list[ev.Event]) -> list[ev.Event]:
        for event in events:
            fields = {f: getattr(event, f) for f in event.__dataclass_fields__ if f != "at"}
            self.play.now = event.at
            self.play.take(type(event), after=0, **fields)
        return events


def running(nodes: int = 4, spares: int = 1, **policy: float) -> Clock:
    return Clock(Scenario(nodes=nodes, spares=spares, **policy).to(Phase.RUNNING))


def names(events: list[ev.Event]) -> list[str]:
    return [type(e).__name__ for e in events]


def test_while_everybody_beats_and_steps_come_there_is_nothing_to_tell():
    assert running().go(60, steps_every=1.0) == []


def test_an_agent_that_is_not_heard_is_told_once_with_the_time_it_was_heard_last():
    clock = running()
    clock.go(10, steps_every=1.0)
    heard = clock.now
    clock.dead.add("n2")
    told = clock.go(10, steps_every=1.0)
    assert names(told) == ["HeartbeatLost"]
    assert (told[0].node, told[0].last_heard) == ("n2", heard)
    assert told[0].at - heard == pytest.approx(2.75)  # the first tick over heartbeat_timeout_s


def test_a_node_that_stays_silent_is_looked_for_again_less_and_less_often():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    told = clock.go(600, steps_every=1.0)
    assert {*names(told)} == {"HeartbeatLost"} and {e.node for e in told} == {"n2"}
    pauses = [round(later.at - one.at) for one, later in pairwise(told)]
    assert pauses[0] == 15 and pauses == sorted(pauses) and pauses[-1] == 120


@pytest.mark.parametrize("unconfirmed", [None, 1])
def test_a_node_that_is_unusable_is_watched_too(unconfirmed):
    """Whoever waits for its answer must hear that it is gone."""
    clock = running()
    clock.go(5, steps_every=1.0)
    node = replace(
        clock.play.run.pool["n5"], state=NodeState.UNUSABLE, trouble="?", unconfirmed=unconfirmed
    )
    clock.play.run = replace(clock.play.run, pool={**clock.play.run.pool, "n5": node})
    clock.dead.add("n5")
    assert names(clock.go(4, steps_every=1.0)) == ["HeartbeatLost"]
    clock.dead.clear()
    assert names(clock.go(4, steps_every=1.0)) == ["HeartbeatRegained"]
    assert clock.play.run.pool["n5"].state is NodeState.UNUSABLE


@pytest.mark.parametrize("given_up", [False, True])
def test_a_silent_or_lost_node_that_beats_again_is_told_once(given_up):
    clock = running()
    clock.go(5, steps_every=1.0)
    clock.dead.add("n2")
    clock.go(8, steps_every=None if given_up else 1.0)
    assert (clock.play.phase is Phase.STOPPING) is given_up
    clock.dead.clear()
    assert names(clock.go(4, steps_every=None if given_up else 1.0)) == ["HeartbeatRegained"]


def test_silence_and_steps_that_end_are_a_second_witness():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    told = clock.go(6)
    assert names(told) == ["HeartbeatLost", "StepOverdue"]
    assert told[1].limit_s == pytest.approx(3.0)  # three times the job's own rhythm
    assert told[1].at - told[1].last_at > 3.0
    assert clock.play.incident.cause == "node-lost"


def test_a_node_that_goes_silent_after_the_overdue_step_is_told_with_it():
    clock = running()
    clock.go(10, steps_every=1.0)
    assert clock.go(8) == [], "late steps alone are no news yet"
    clock.dead.add("n2")
    assert names(clock.go(8)) == ["HeartbeatLost", "StepOverdue"]


def test_no_step_is_overdue_before_the_rhythm_is_known_or_before_a_second():
    clock = running()
    for _ in range(3):  # two intervals
        clock.go(1, steps_every=1.0)
    assert clock.overdue_s() is None
    fast = running()
    fast.go(10, steps_every=0.25)
    assert fast.overdue_s() == 1.0


def test_a_hang_is_told_once_and_not_before_the_floor_and_twice_the_longest_step():
    clock = running(hang_timeout_min_s=20, hang_factor=4.0)
    clock.go(20, steps_every=1.0)
    told = clock.go(19.75)
    assert told == []
    assert names(clock.go(10)) == ["HangDetected"]
    slow = running(hang_timeout_min_s=20, hang_factor=4.0)
    for _ in range(3):
        slow.go(10, steps_every=1.0)
        slow.go(15)  # a step that saves, and no hook says so
        slow.step()
    slow.go(5, steps_every=1.0)
    assert slow.hang_s() == 30.0
    assert slow.go(30) == []
    assert names(slow.go(5)) == ["HangDetected"]


def probed(clock: Clock, target: str, outcome: str) -> None:
    clock.play.now = clock.now
    clock.play.probed(target, outcome)


def test_when_most_agents_are_silent_it_is_the_engine_that_is_cut_off():
    clock = running(hang_timeout_min_s=5)
    clock.go(10, steps_every=1.0)
    clock.dead |= {"n1", "n2", "n3"}  # of five
    assert {*names(clock.go(20))} == {"EngineIsolated"}
    assert clock.play.run.isolated_since is not None
    clock.dead.discard("n3")
    told = clock.go(15)
    assert [e.node for e in told if isinstance(e, ev.HeartbeatLost)] == ["n1", "n2"]
    assert names(told)[0] == "IsolationEnded" and clock.play.run.isolated_since is None
    first = next(e for e in told if isinstance(e, ev.HeartbeatLost))
    assert first.at - told[0].at > 8, "they may be on their way back"


def test_nodes_that_slurm_reports_down_do_not_make_the_engine_isolated():
    clock = running(nodes=2, spares=0)
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    assert names(clock.go(10)) == ["EngineIsolated"], "one of two: who is cut off?"
    clock.play.now = clock.now
    clock.play.seen("running", nodes=("n1", "n2"), down=("n2",))
    assert names(clock.go(1)) == ["IsolationEnded", "HeartbeatLost"]
    assert clock.play.incident.cause == "node-lost"


@pytest.mark.parametrize(("nodes", "spares", "off"), [(2, 0, 1), (3, 1, 2), (5, 1, 3), (8, 0, 7)])
@pytest.mark.parametrize("who", ["peers", "slurm's list", "time"])
def test_half_of_the_nodes_or_more_off_at_once_is_noticed_by_any_witness(nodes, spares, off, who):
    clock = running(nodes, spares)
    clock.go(10, steps_every=1.0)
    everybody = sorted(clock.play.run.pool)
    gone, here = everybody[-off:], everybody[:-off]
    clock.dead |= {*gone}
    assert names(clock.go(4)) == ["EngineIsolated"] and clock.play.phase is Phase.RUNNING
    if who == "peers":
        for name in gone:
            probed(clock, name, "unreachable")
    elif who == "slurm's list":
        clock.play.now = clock.now
        clock.play.seen("running", nodes=tuple(here))
    told = clock.go(1 if who != "time" else 40)
    assert clock.play.run.isolated_since is None
    assert {e.node for e in told if isinstance(e, ev.HeartbeatLost)} == {*gone}
    if who == "time":
        for name in gone:
            probed(clock, name, "unreachable")
    assert {n for n in gone if clock.play.state(n) is NodeState.LOST} == {*gone}
    assert clock.play.incident.cause == "node-lost" and clock.play.phase is not Phase.RUNNING


def test_peers_that_reach_the_silent_half_keep_every_node():
    clock = running(4, 0)
    clock.go(10, steps_every=1.0)
    clock.dead |= {"n3", "n4"}
    clock.go(4, steps_every=1.0)
    for name in ("n3", "n4"):
        probed(clock, name, "reached")
    told = clock.go(60, steps_every=1.0)
    assert clock.play.phase is Phase.RUNNING and clock.play.run.isolated_since is None
    assert {clock.play.state(n) for n in ("n3", "n4")} == {NodeState.SUSPECT}
    assert "IsolationEnded" in names(told)


def test_nodes_that_fell_silent_each_for_itself_do_not_make_the_engine_isolated():
    clock = running(4, 0)
    clock.go(10, steps_every=1.0)
    for name in ("n4", "n3"):
        clock.dead.add(name)
        assert {*names(clock.go(10, steps_every=1.0))} == {"HeartbeatLost"}
        probed(clock, name, "reached")
    assert clock.play.run.isolated_since is None


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.CHECKING, Phase.STARTING])
def test_no_deadline_passes_while_the_engine_is_cut_off_nor_at_its_return(phase):
    clock = Clock(Scenario(nodes=3, spares=1).to(phase))
    if phase is Phase.GATHERING:
        for name in ("n1", "n2"):
            clock.play.join(name)
    clock.now = clock.play.now
    clock.go(5)
    deadline, since = clock.play.run.deadline, clock.now
    everybody = {*clock.play.run.pool}
    clock.dead |= everybody
    told = clock.go(4000)
    assert {*names(told)} == {"EngineIsolated"} and clock.play.phase is phase
    clock.play.now = clock.now
    clock.play.take(ev.DeadlineExpired, after=0, kind=deadline.kind)  # whoever says so
    assert clock.play.phase is phase and clock.play.run.deadline == deadline
    clock.dead.clear()
    assert names(clock.go(2)) == ["IsolationEnded"]
    left = clock.play.run.deadline.at - clock.now
    assert left > 25 and left > deadline.at - since - 5


def test_a_cut_off_engine_learns_no_rhythm_and_sees_no_hang_at_its_return():
    clock = running(hang_timeout_min_s=20)
    clock.go(20, steps_every=1.0)
    before = clock.hang_s()
    clock.dead |= {*clock.play.run.pool}
    clock.go(3600)
    clock.dead.clear()
    assert names(clock.go(5)) == ["IsolationEnded"]
    clock.step()
    assert clock.hang_s() == before
    assert "HangDetected" in names(clock.go(25)), "and a hang is seen as before"


def test_an_engine_that_stood_still_blames_nobody_for_it():
    clock = running(hang_timeout_min_s=10)
    clock.go(20, steps_every=1.0)
    clock.now += 3600
    assert clock.go(8) == []
    clock.dead.add("n3")
    assert "HeartbeatLost" in names(clock.go(4)), "and it hears as well as before"


def test_an_engine_that_stood_still_waits_for_those_it_has_not_read_yet():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.now += 100
    for name in ("n1", "n2", "n3"):
        clock.failure_detector.heard(name, clock.now, clock.play.run)
    assert clock.failure_detector.check(clock.now, clock.play.run) == []


def test_what_was_told_is_not_told_again_while_it_is_acted_upon():
    clock = running(hang_timeout_min_s=10)
    clock.go(20, steps_every=1.0)
    run = clock.play.run
    assert names(clock.go(11.25)) == ["HangDetected"]
    assert clock.failure_detector.check(clock.now + TICK, run) == []


def test_a_beat_just_before_the_engine_goes_on_is_not_dated_into_the_future():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.now += 100  # it stood still; then a beat is read before the first check
    clock.failure_detector.heard("n2", clock.now, clock.play.run)
    clock.dead.add("n2")
    assert "HeartbeatLost" in names(clock.go(4, steps_every=1.0))


def test_an_older_step_or_attempt_is_not_a_new_step():
    watch = FailureDetector(Policy())
    assert watch.stepped(1, 5, 0.0) and not watch.stepped(1, 5, 1.0) and not watch.stepped(1, 4, 2)
    assert watch.stepped(2, 3, 3.0), "another attempt begins where its checkpoint ends"


def test_an_engine_that_begins_when_steps_have_ended_still_sees_that_they_are_late() -> None:
    clock = running(hang_timeout_min_s=60)
    clock.go(8, steps_every=1.0)
    clock.play.now = clock.now
    number = clock.play.run.attempt.step + 1
    attempt = clock.play.run.attempt.number
    clock.play.take(
        ev.Progress, attempt=attempt, step=number, interval=clock.failure_detector.rhythm.step
    )
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    clock.go(3)
    assert clock.play.run.pool[victim].state is NodeState.SUSPECT  # and the engine dies here
    successor = Clock(clock.play)
    successor.now, successor.dead = clock.now, clock.dead
    for name in {*clock.play.run.slots} - {victim}:  # as each heartbeat says again
        successor.tell(name, number)
    told = names(successor.go(4))
    assert "StepOverdue" in told
    assert clock.play.run.pool[victim].state is NodeState.LOST
    late = Clock(running(hang_timeout_min_s=60).play)
    assert "HangDetected" in names(late.go(62))  # nobody is silent, and no step is ever heard of


def test_agents_that_fall_silent_one_after_the_other_within_a_beat_are_no_suspects() -> None:
    clock = running(nodes=4, spares=1)
    clock.go(8, steps_every=0.5)
    now, told = clock.now, []
    run = clock.play.run
    for i, name in enumerate(sorted(run.pool)):  # their last beats, spread over a second
        clock.failure_detector.heard(name, now - 1.0 + i * 0.25, run)
    for tick in range(1, 41):  # and then the engine is cut off
        clock.now = now + tick * TICK
        told += clock._take(clock.failure_detector.check(clock.now, clock.play.run))
    assert {*names(told)} == {"EngineIsolated"}


# --- a witness that is independent ----------------------------------------------------------------


def only_slot_0_tells(**policy: float) -> Clock:
    """Rank 0 prints the steps, and no hook tells of any."""
    clock = running(**policy)
    for number in range(2, 12):
        clock.go(1)
        clock.tell(clock.play.run.slots[0], number)
        assert clock.failure_detector.stepped(1, number, clock.now)
        clock.play.now = clock.now
        clock.play.progress(number, after=0)
    return clock


@pytest.mark.parametrize("outcome", ["reached", "refused", "unreachable"])
def test_silence_of_who_tells_the_steps_is_one_witness_and_peers_are_the_second(outcome):
    clock = only_slot_0_tells(hang_timeout_min_s=10)
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    assert names(clock.go(3)) == ["HeartbeatLost"]
    probed(clock, victim, outcome)
    told = clock.go(200)
    lost = outcome == "unreachable"
    assert clock.play.state(victim) is (NodeState.LOST if lost else NodeState.SUSPECT)
    assert clock.play.phase is (Phase.STOPPING if lost else Phase.RUNNING)
    assert not {"StepOverdue", "HangDetected"} & {*names(told)}


def test_another_node_that_tells_of_steps_and_is_heard_is_a_second_witness():
    clock = running()
    clock.go(10, steps_every=1.0)  # all hooks tell
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    assert names(clock.go(8)) == ["HeartbeatLost", "StepOverdue"]
    assert clock.play.incident.cause == "node-lost"


def test_peers_that_reach_a_suspect_keep_it_though_a_step_is_overdue():
    """Its agent is frozen while all ranks stand in a step that takes long."""
    clock = running(hang_timeout_min_s=100)
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    clock.go(2.75)
    told = []
    for _ in range(60):
        probed(clock, "n2", "reached")
        told += clock.go(1)
    assert names(told).count("StepOverdue") >= 5 and clock.play.phase is Phase.RUNNING
    asked = [a for a in clock.play.ordered if type(a).__name__ == "Probe"]
    assert len({a.key for a in asked}) > 3 * 3, "peers are asked again"


def test_a_suspect_whose_agent_is_mute_is_not_protected_by_its_kernel():
    """All of the node is stopped; its kernel takes connections all the same."""
    clock = running(hang_timeout_min_s=100)
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    clock.go(2.75)
    probed(clock, "n2", "mute")
    assert "StepOverdue" in names(clock.go(20))
    assert clock.play.state("n2") is NodeState.LOST and clock.play.incident.cause == "node-lost"


def test_a_mute_agent_alone_loses_no_node_while_steps_go_on():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    clock.go(2.75, steps_every=1.0)
    probed(clock, "n2", "mute")
    clock.go(50, steps_every=1.0)
    assert clock.play.state("n2") is NodeState.SUSPECT and clock.play.phase is Phase.RUNNING


def answered(clock: Clock, seconds: int, outcome: str, *targets: str) -> list[ev.Event]:
    """Time passes, and peers that are asked for these nodes answer so at once."""
    told = []
    for _ in range(seconds):
        told += clock.go(1)
        for name in targets:
            probed(clock, name, outcome)
    return told


def test_a_mute_node_without_a_slot_is_lost_in_bounded_time():
    """No step can say so of it: peers do, once starting its agent was of no use."""
    clock = running(nodes=4, spares=2)
    clock.go(10, steps_every=1.0)
    clock.dead.add("n5")
    for _ in range(110):
        answered(clock, 1, "mute", "n5")
        clock.step()
    assert clock.play.state("n5") is NodeState.SUSPECT and helped(clock) == ["n5"]
    for _ in range(130):
        answered(clock, 1, "mute", "n5")
        clock.step()
    assert clock.play.state("n5") is NodeState.LOST and clock.play.phase is Phase.RUNNING
    clock.dead.clear()
    clock.go(3)
    assert clock.play.state("n5") is NodeState.READY, "whoever is heard is back"


def helped(clock: Clock) -> list[str]:
    return [a.node for a in clock.play.ordered if type(a).__name__ == "StartAgent"]


@pytest.mark.parametrize(("outcome", "hangs"), [("mute", True), ("reached", False)])
def test_silence_of_all_who_tell_the_steps_hides_no_hang_for_good_where_they_are_stopped(
    outcome, hangs
):
    clock = only_slot_0_tells(hang_timeout_min_s=50)
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    told = answered(clock, 140, outcome, victim)
    assert not {"StepOverdue", "HangDetected"} & {*names(told)}
    assert clock.play.phase is Phase.RUNNING, "they may go on, and can't tell"
    told = answered(clock, 20, outcome, victim)
    assert ("HangDetected" in names(told)) is hangs
    assert (clock.play.state(victim) is NodeState.LOST) is hangs
    if hangs:
        assert clock.play.incident.cause == "node-lost"


@pytest.mark.parametrize("outcome", ["mute", "reached"])
def test_who_tells_the_steps_and_is_heard_again_has_time_to_tell_of_those_since(outcome):
    """Its first heartbeat may be without them; the ranks went on all the time."""
    clock = only_slot_0_tells(hang_timeout_min_s=50)
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    answered(clock, 100, outcome, victim)
    clock.dead.clear()
    assert names(clock.go(5)) == ["HeartbeatRegained"]
    clock.tell(victim, 120)
    assert clock.failure_detector.stepped(1, 120, clock.now)
    clock.play.now = clock.now
    clock.play.progress(120, after=0)
    assert clock.go(40) == [] and clock.play.phase is Phase.RUNNING
    assert "HangDetected" in names(clock.go(200)), "and none, when no other comes"


def test_who_tells_the_steps_and_has_none_to_tell_of_hides_no_hang():
    clock = only_slot_0_tells(hang_timeout_min_s=50)
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    answered(clock, 100, "reached", victim)
    clock.dead.clear()
    assert "HangDetected" in names(clock.go(20))


def test_checkpoints_that_are_verified_keep_ranks_whose_agents_are_stopped():
    clock = only_slot_0_tells(hang_timeout_min_s=50)
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    for number in range(6):
        answered(clock, 100, "mute", victim)
        clock.play.now = clock.now
        clock.play.save(20 + number)
        clock.play.take(ev.Scanned, key="look", **clock.play.scan_found())
    assert clock.play.phase is Phase.RUNNING and clock.play.state(victim) is NodeState.SUSPECT


def test_a_hang_beside_a_stopped_node_is_that_node_s():
    """Too few steps were made for a rhythm, so none is overdue before it is a hang."""
    clock = running(hang_timeout_min_s=20)
    clock.dead.add("n2")
    for name in ("n1", "n3"):
        clock.tell(name, 1)
    told = answered(clock, 25, "mute", "n2")
    assert "HangDetected" in names(told) and "StepOverdue" not in names(told)
    assert clock.play.state("n2") is NodeState.LOST and clock.play.incident.cause == "node-lost"


# --- cut off for long -----------------------------------------------------------------------------


@pytest.mark.parametrize("slurm_answers", [True, False])
def test_an_engine_that_hears_nobody_helps_a_few_agents_a_round_and_each_in_its_turn(
    slurm_answers,
):
    clock = running(nodes=6, spares=2)
    clock.go(10, steps_every=1.0)
    everybody = {*clock.play.run.pool}
    clock.dead |= everybody
    clock.go(60)
    assert helped(clock) == [], "it may be over in a moment"
    rounds: list[list[str]] = []
    for _ in range(900):
        before = len(helped(clock))
        clock.go(1)
        assert len(clock.play.run.pending.group(act.StartAgent)) <= HELPED
        if new := helped(clock)[before:]:
            rounds.append(new)
        if new and slurm_answers:
            clock.play.answer(act.StartAgent)
            clock.now = clock.play.now
    assert len(rounds) > 3 and all(len(one) == HELPED for one in rounds)
    assert {*rounds[0], *rounds[1], *rounds[2]} == everybody, "each comes in its turn"
    clock.dead.clear()
    clock.go(3)
    assert clock.play.run.isolated_since is None and clock.play.phase is Phase.RUNNING
    assert not clock.play.run.pending.group(act.StartAgent), "nobody needs one any more"


# --- rhythm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("standstills", "blind"), [(1, False), (2, False), (3, True)])
def test_a_standstill_that_healed_makes_nobody_blind(standstills, blind):
    clock = running(hang_timeout_min_s=20)
    for _ in range(standstills):
        clock.go(30, steps_every=1.0)
        clock.go(15)
        clock.step()
    clock.go(10, steps_every=1.0)
    assert clock.hang_s() == (30.0 if blind else 20.0)


def saving(clock: Clock, seconds: float, step: int, *, hook: bool, grows: bool) -> list[ev.Event]:
    told = []
    for second in range(round(seconds)):
        for name in clock.play.run.slots if hook else ():
            clock.tell(name, step, "save")
        if grows and second % 20 == 0:
            clock.failure_detector.written_at = clock.now
        told += clock.go(1)
    for name in clock.play.run.slots if hook else ():
        clock.tell(name, step, "step")
    return told


@pytest.mark.parametrize(("hook", "grows"), [(True, False), (False, True), (False, False)])
def test_the_first_long_save_is_no_hang_where_anything_tells_of_it(hook, grows):
    """310 s, with 10 s steps."""
    clock = running()
    clock.go(100, steps_every=10)
    step = clock.play.run.attempt.step
    told = saving(clock, 310, step, hook=hook, grows=grows)
    assert names(told) == ([] if hook or grows else ["HangDetected"])
    if hook:
        clock.step()
        learned = clock.failure_detector.rhythm.learned
        assert learned.step == 10.0 and learned.save == pytest.approx(310, abs=11)
        assert clock.hang_s(saving=True) == pytest.approx(4 * 310, abs=44)
        assert clock.hang_s() == 300.0, "a step that takes so long is a hang as before"


def test_a_save_that_never_ends_is_a_hang():
    clock = running(first_step_timeout_s=600)
    clock.go(100, steps_every=10)
    step = clock.play.run.attempt.step
    assert saving(clock, 590, step, hook=True, grows=False) == []
    assert "HangDetected" in names(saving(clock, 30, step, hook=True, grows=False))


def test_rhythm_is_kept_over_engines_and_attempts():
    clock = running()
    clock.go(100, steps_every=10)
    number = clock.play.run.attempt.step + 1
    fields = {"interval": 10.0, "slow": 40.0, "save": 310.0}
    clock.play.take(ev.Progress, attempt=1, step=number, **fields)
    successor = Clock(clock.play)
    successor.now = clock.play.now
    successor.go(1)
    learned = successor.failure_detector.rhythm.learned
    assert (learned.step, learned.slow, learned.save) == (10.0, 40.0, 310.0)
    clock.play.exit(0)
    clock.play.recover_to_first_step()
    assert clock.play.run.rhythm == learned
