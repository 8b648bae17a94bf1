"""Silence, overdue steps and hangs, as they become true by the passing of time."""

from __future__ import annotations

import pytest
from scenario import Play

from supervisor.core import events as ev
from supervisor.core.policy import Policy
from supervisor.core.types import NodeState, Phase
from supervisor.core.watch import Watch

TICK = 0.25


class Clock:
    """Beats, steps and ticks of a run whose agents are heard once a second."""

    def __init__(self, play: Play, **policy: float) -> None:
        self.play = play
        self.watch = Watch(Policy(**policy))
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
                    events += self._take(self.watch.heard(name, self.now, self.play.run))
            if steps_every is not None and tick % round(steps_every / TICK) == 0:
                self.step()
            events += self._take(self.watch.check(self.now, self.play.run))
        return events

    def step(self) -> None:
        attempt = self.play.run.attempt
        number = (attempt.step or 0) + 1
        assert self.watch.stepped(attempt.number, number, self.now)
        self.play.now = self.now
        self.play.progress(number, after=0)

    def _take(self, events: list[ev.Event]) -> list[ev.Event]:
        for event in events:
            fields = {f: getattr(event, f) for f in event.__dataclass_fields__ if f != "at"}
            self.play.now = event.at
            self.play.take(type(event), after=0, **fields)
        return events


def running(nodes: int = 4, spares: int = 1, **policy: float) -> Clock:
    return Clock(Play(nodes=nodes, spares=spares).to(Phase.RUNNING), **policy)


def names(events: list[ev.Event]) -> list[str]:
    return [type(e).__name__ for e in events]


def test_while_everybody_beats_and_steps_come_there_is_nothing_to_tell():
    assert running().go(60, steps_every=1.0) == []


def test_an_agent_that_is_not_heard_is_told_once_with_the_time_it_was_heard_last():
    clock = running()
    clock.go(10, steps_every=1.0)
    heard = clock.now
    clock.dead.add("n2")
    told = clock.go(30, steps_every=1.0)
    assert names(told) == ["NodeSilent"]
    assert (told[0].node, told[0].last_heard) == ("n2", heard)
    assert told[0].at - heard == pytest.approx(2.75)  # the first tick over silent_s


@pytest.mark.parametrize("given_up", [False, True])
def test_a_silent_or_lost_node_that_beats_again_is_told_once(given_up):
    clock = running()
    clock.go(5, steps_every=1.0)
    clock.dead.add("n2")
    clock.go(4, steps_every=None if given_up else 1.0)
    assert (clock.play.phase is Phase.STOPPING) is given_up
    clock.dead.clear()
    assert names(clock.go(4, steps_every=None if given_up else 1.0)) == ["NodeHeard"]


def test_silence_and_steps_that_end_are_a_second_witness():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    told = clock.go(6)
    assert names(told) == ["NodeSilent", "StepOverdue"]
    assert told[1].limit_s == pytest.approx(3.0)  # three times the job's own rhythm
    assert told[1].at - told[1].last_at > 3.0
    assert clock.play.incident.cause == "node-lost"


def test_a_node_that_goes_silent_after_the_overdue_step_is_told_with_it():
    clock = running()
    clock.go(10, steps_every=1.0)
    assert clock.go(8) == [], "late steps alone are no news yet"
    clock.dead.add("n2")
    assert names(clock.go(4)) == ["NodeSilent", "StepOverdue"]


def test_no_step_is_overdue_before_the_rhythm_is_known_or_before_a_second():
    clock = running()
    for _ in range(3):  # two intervals
        clock.go(1, steps_every=1.0)
    assert clock.watch.overdue_limit() is None
    fast = running()
    fast.go(10, steps_every=0.25)
    assert fast.watch.overdue_limit() == 1.0


def test_a_hang_is_told_once_and_not_before_the_floor_and_twice_the_longest_step():
    clock = running(hang_floor_s=20, hang_factor=4.0)
    clock.go(20, steps_every=1.0)
    told = clock.go(19.75)
    assert told == []
    assert names(clock.go(10)) == ["Stalled"]
    slow = running(hang_floor_s=20, hang_factor=4.0)
    slow.go(10, steps_every=1.0)
    slow.go(15)  # a step that saves
    slow.step()
    slow.go(5, steps_every=1.0)
    assert slow.watch.hang_limit() == 30.0
    assert slow.go(30) == []
    assert names(slow.go(5)) == ["Stalled"]


def test_when_most_agents_are_silent_it_is_the_engine_that_is_cut_off():
    clock = running(hang_floor_s=5)
    clock.go(10, steps_every=1.0)
    clock.dead |= {"n1", "n2", "n3"}  # of five
    assert clock.go(30) == [] and clock.watch.isolated
    clock.dead.discard("n3")
    assert [e.node for e in clock.go(5) if isinstance(e, ev.NodeSilent)] == ["n1", "n2"]
    assert not clock.watch.isolated


def test_nodes_that_slurm_reports_down_do_not_make_the_engine_isolated():
    clock = running(nodes=2, spares=0)
    clock.go(10, steps_every=1.0)
    clock.dead.add("n2")
    assert clock.go(30) == [] and clock.watch.isolated, "one of two: who is cut off?"
    clock.play.now = clock.now
    clock.play.seen("running", nodes=("n1", "n2"), down=("n2",))
    assert names(clock.go(1)) == ["NodeSilent"]
    assert clock.play.incident.cause == "node-lost"


def test_an_engine_that_stood_still_blames_nobody_for_it():
    clock = running(hang_floor_s=10)
    clock.go(20, steps_every=1.0)
    clock.now += 3600
    assert clock.go(8) == []
    clock.dead.add("n3")
    assert "NodeSilent" in names(clock.go(4)), "and it hears as well as before"


def test_an_engine_that_stood_still_waits_for_those_it_has_not_read_yet():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.now += 100
    for name in ("n1", "n2", "n3"):
        clock.watch.heard(name, clock.now, clock.play.run)
    assert clock.watch.check(clock.now, clock.play.run) == []


def test_what_was_told_is_not_told_again_while_it_is_acted_upon():
    clock = running(hang_floor_s=10)
    clock.go(20, steps_every=1.0)
    run = clock.play.run
    assert names(clock.go(10.25)) == ["Stalled"]
    assert clock.watch.check(clock.now + TICK, run) == []


def test_a_beat_just_before_the_engine_goes_on_is_not_dated_into_the_future():
    clock = running()
    clock.go(10, steps_every=1.0)
    clock.now += 100  # it stood still; then a beat is read before the first check
    clock.watch.heard("n2", clock.now, clock.play.run)
    clock.dead.add("n2")
    assert "NodeSilent" in names(clock.go(4, steps_every=1.0))


def test_an_older_step_or_attempt_is_not_a_new_step():
    watch = Watch(Policy())
    assert watch.stepped(1, 5, 0.0) and not watch.stepped(1, 5, 1.0) and not watch.stepped(1, 4, 2)
    assert watch.stepped(2, 3, 3.0), "another attempt begins where its checkpoint ends"


def test_an_engine_that_begins_when_steps_have_ended_still_sees_that_they_are_late() -> None:
    clock = running(hang_floor_s=60)
    clock.go(8, steps_every=1.0)
    clock.play.now = clock.now
    number = clock.play.run.attempt.step + 1
    attempt = clock.play.run.attempt.number
    clock.play.take(ev.Progress, attempt=attempt, step=number, interval=clock.watch.typical())
    victim = clock.play.run.slots[0]
    clock.dead.add(victim)
    clock.go(3)
    assert clock.play.run.pool[victim].state is NodeState.SUSPECT  # and the engine dies here
    successor = Clock(clock.play, hang_floor_s=60)
    successor.now, successor.dead = clock.now, clock.dead
    told = names(successor.go(4))
    assert "StepOverdue" in told
    assert clock.play.run.pool[victim].state is NodeState.LOST
    late = Clock(running(hang_floor_s=60).play, hang_floor_s=60)
    assert "Stalled" in names(late.go(62))  # nobody is silent, and no step is ever heard of


def test_agents_that_fall_silent_one_after_the_other_within_a_beat_are_no_suspects() -> None:
    clock = running(nodes=4, spares=1)
    clock.go(8, steps_every=0.5)
    now, told = clock.now, []
    run = clock.play.run
    for i, name in enumerate(sorted(run.pool)):  # their last beats, spread over a second
        clock.watch.heard(name, now - 1.0 + i * 0.25, run)
    for tick in range(1, 41):  # and then the engine is cut off
        told += clock.watch.check(now + tick * TICK, run)
    assert told == [] and clock.watch.isolated
