"""What comes late: confirmations after their deadline, storage that hangs, wrong histories."""

from __future__ import annotations

from scenario import Play

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.types import NodeState, Phase


def test_a_node_that_confirms_after_the_deadline_can_be_used_again() -> None:
    p = Play(nodes=2, spares=1).to(Phase.RUNNING)
    p.exit(0)
    stop = p.run.pending["a1/stop/n2"]
    p.answer(do.Collect)
    p.answer(do.Stop, but="n2")
    p.due()
    assert p.state("n2") is NodeState.UNFIT
    p.answer(do.Scan)
    assert p.slots == "n1 n3"
    p.reply(stop)
    assert p.state("n2") is NodeState.READY
    assert p.run.spares == ("n2",)
    assert not p.run.excluded


def test_a_node_whose_agent_found_it_unfit_stays_so() -> None:
    p = Play(nodes=2, spares=1).to(Phase.GATHERING)
    p.join("n1", problems=("memlock is limited",))
    p.take(ev.RanksStopped, key="x", node="n1", attempt=0)
    assert p.state("n1") is NodeState.UNFIT


def test_a_person_does_not_wait_for_storage_that_hangs() -> None:
    p = Play().to(Phase.RUNNING)
    p.take(ev.StopAsked, who="kim")
    p.answer(do.Stop)
    assert p.phase is Phase.TRIAGE
    p.due()  # no answer to the Scan
    assert p.phase is Phase.STOPPED and "kim" in p.run.reason


def test_a_recovery_waits_for_storage_without_an_end() -> None:
    p = Play().to(Phase.TRIAGE)
    assert p.run.deadline is None


def test_what_ranks_at_a_wrong_step_have_saved_does_not_count() -> None:
    p = Play().to(Phase.RUNNING)
    p.save(5)
    p.exit(0)
    p.stopped()
    p.start()
    p.take(ev.Resumed, attempt=2, node="n1", step=3)  # promised was 5
    p.save(4)
    p.answer(do.Stop)
    p.answer(do.Scan)
    assert p.phase is Phase.HELD
    assert [c.step for c in p.run.lineage] == [5]


def test_a_trainer_that_ends_everywhere_at_once_is_no_nodes_fault() -> None:
    p = Play(nodes=2, spares=1, restarts_without_progress=2).to(Phase.STARTING)
    for _ in range(3):
        for rank in (0, 1):
            p.exit(rank, 1)  # the second agent told before the order to stop reached it
        p.stopped()
        if p.phase is Phase.CHECKING:
            p.start()
    assert p.phase is Phase.HELD
    assert not p.run.excluded
    assert all(i.verdict is not None and not i.verdict.culprits for i in p.run.incidents)
