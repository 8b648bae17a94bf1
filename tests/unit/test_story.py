"""What a person is told as it happens."""

from __future__ import annotations

from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.story import describe
from supervisor.core.types import Checkpoint, Phase


def story(play: Scenario) -> list[str]:
    """All lines of a play."""
    run, _ = step(None, play.events[0])
    lines: list[str] = []
    for event in play.events[1:]:
        after, _ = step(run, event)
        lines += describe(run, event, after)
        run = after
    return lines


def last(play: Scenario) -> list[str]:
    run, _ = step(None, play.events[0])
    for event in play.events[1:]:
        before = run
        run, _ = step(run, event)
    return describe(before, play.events[-1], run)


def test_a_node_loss_is_told_from_the_suspicion_to_the_first_new_step():
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    path = p.save(10)
    begun = len(story(p))
    p.progress(12)
    p.lose("n2")
    p.recover_to_first_step()
    p.progress(12)
    assert story(p)[begun:] == [
        "n2 suspected: silent for 3.0 s",
        "stopping: node-lost: no step since step 12, 2.0 s ago; the job's own rhythm allows 1.0 s",
        "triage: node-lost: no step since step 12, 2.0 s ago; the job's own rhythm allows 1.0 s",
        f"checkpoint of step 10 verified: {path}",
        "checking: attempt 2: preparing the nodes",
        "starting: attempt 2 from step 10",
        "first new step: 11, loss 2.5",
        "running: attempt 2",
    ]


def test_a_launch_is_told_with_how_many_nodes_have_come():
    p = Scenario(nodes=2, spares=1).to(Phase.CHECKING)
    lines = story(p)
    assert lines[0] == "engine started on login, epoch 1"
    assert lines[1].startswith("job 101 (superv-moe-012345-1) submitted")
    assert "job 101 is RUNNING on 3 nodes" in lines
    assert [line for line in lines if "registered" in line] == [
        f"n{i} registered ({i}/3)" for i in (1, 2, 3)
    ]


def test_an_agent_that_comes_back_is_told_with_what_it_holds():
    p = Scenario().to(Phase.RUNNING)
    p.join("n1", attempt=1, ranks=1)
    assert last(p) == ["n1 registered again, holding 1 ranks of attempt 1 (3/3)"]
    p.join("n3", problems=("7 of 8 GPUs", "no memlock"))
    assert last(p) == ["n3 is unusable: 7 of 8 GPUs; no memlock"]


def test_a_checkpoint_is_told_when_it_is_rejected_once_and_when_it_counts():
    p = Scenario().to(Phase.RUNNING)
    p.corrupt.add(p.save(20))
    p.save(10)
    p.exit(0)
    p.finish_stop_and_scan()
    told = [line for line in story(p) if "checkpoint of" in line]
    assert told == [
        "checkpoint of step 20 rejected: a shard is too short",
        "checkpoint of step 10 verified: /ckpt/a0001/step-10",
    ]
    p.start()
    p.first_step()
    p.exit(0)
    p.finish_stop_and_scan()
    assert [line for line in story(p) if "checkpoint of" in line] == told
    late = Checkpoint(step=90, path="/ckpt/a0001/step-90", attempt=1, verified_at=p.now)
    p.take(ev.Scanned, key="look", found=(late,))
    assert last(p) == []


def test_what_changes_nothing_that_a_person_wants_to_know_is_not_told():
    p = Scenario().to(Phase.RUNNING)
    p.progress(2)
    assert last(p) == []
    p.take(ev.Done, key="poll/101/1")
    assert last(p) == []


def test_a_held_run_says_why_and_a_stop_who():
    p = Scenario(nodes=3, spares=0).to(Phase.GATHERING)
    p.join("n1")
    p.expire_deadline()
    assert story(p)[-1].startswith("held: 3 nodes granted; their agents are coming; 1 of 3 nodes")
    q = Scenario()
    q.take(ev.StopRequested, who="kim")
    assert last(q) == ["kim asked for the end of the run", "stopped: stopped by kim"]


def test_what_is_waited_for_is_told():
    p = Scenario()
    p.take(ev.Waiting, key="submit/1", why="sbatch: slurmctld does not answer")
    assert last(p) == ["waiting, and trying again: sbatch: slurmctld does not answer"]


def test_every_line_is_one_line():
    p = Scenario().to(Phase.RUNNING)
    p.silent("n2")
    p.probed("n2", "refused")
    p.take(ev.HeartbeatRegained, node="n2")
    p.exit(1)
    p.recover_to_first_step()
    p.exit(1)
    p.recover_to_first_step()
    lines = story(p)
    assert lines and all(line and "\n" not in line for line in lines)
    assert "n1 probed n2: refused" in lines and "n2 is heard again" in lines
