"""What people are told who do not look: each thing once, whatever engine is there."""

from __future__ import annotations

import json

from scenario import Scenario, rebuilt

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.attention import EngineView, Unanswered
from supervisor.core.notices import WAIT_S, Notice, document, untold
from supervisor.core.types import Phase, Run


def tell(p: Scenario, *notices: Notice) -> None:
    for one in notices:
        p.take(ev.Notified, after=0.0, key=one.key, text=one.text)


def kinds(run: Run, now: float, seen: EngineView | None = None) -> list[str]:
    return [one.kind.value for one in untold(run, now, seen)]


def test_a_swap_is_told_when_it_is_made_and_once() -> None:
    p = Scenario().to(Phase.RUNNING)
    p.lose("n2")
    assert kinds(p.run, p.now) == []
    p.recover_to_first_step()
    (one,) = untold(p.run, p.now)
    assert one.kind.value == "swapped" and "n3 takes slot 1 of n2" in one.text
    tell(p, one)
    assert kinds(p.run, p.now) == []
    again = rebuilt(p.events)  # as the next engine has it
    assert kinds(again, p.now) == []


def test_a_restart_on_the_same_nodes_wakes_nobody() -> None:
    p = Scenario().to(Phase.RUNNING)
    p.exit(0)
    p.recover_to_first_step()
    assert kinds(p.run, p.now) == []


def test_an_end_is_told_as_what_it_is() -> None:
    held = Scenario(restarts_without_progress=0).to(Phase.RUNNING)
    held.exit(0, tail=("KeyError: 'lr'",))
    held.finish_stop_and_scan()
    (one,) = untold(held.run, held.now)
    assert one.kind.value == "held" and "KeyError: 'lr'" in one.text
    told = json.loads(json.dumps(document(held.run, one, held.now, None, "/j.yaml")))
    assert told["next"]["command"] == "superv resume moe --config /j.yaml"
    assert (told["event"], told["run"], told["phase"]) == ("held", "moe", "held")
    stopped = Scenario().to(Phase.RUNNING)
    stopped.take(ev.StopRequested, who="ann")
    stopped.finish_stop_and_scan()
    assert kinds(stopped.run, stopped.now) == ["ended"]


def test_a_wait_is_told_after_a_while_and_once_by_all_engines() -> None:
    p = Scenario().to(Phase.TRIAGE)
    key = next(key for key, action in p.run.pending.items() if isinstance(action, act.Scan))
    since = p.now
    seen = EngineView(waits={key: Unanswered(since=since, why="/ckpt does not answer")})
    assert kinds(p.run, since + WAIT_S - 1, seen) == []
    (one,) = untold(p.run, since + WAIT_S, seen)
    assert one.kind.value == "waits" and "/ckpt does not answer" in one.text
    tell(p, one)
    later = EngineView(waits={key: Unanswered(since=since + 300, why="/ckpt does not answer")})
    assert kinds(p.run, since + 900, later) == []


def test_a_failure_to_tell_decides_nothing() -> None:
    p = Scenario().to(Phase.RUNNING)
    before = p.run
    p.take(ev.NotifyFailed, key="held/1", why="page ended with 1")
    assert p.run == before
