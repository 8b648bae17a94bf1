"""A loss of NaN: what was saved after the last step known to be finite is never resumed."""

from __future__ import annotations

import pytest
from scenario import Scenario

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.attention import attention
from supervisor.core.step_lines import says_not_finite
from supervisor.core.types import Phase

RAISED = (
    "RuntimeError: Loss is not finite (global_avg_loss=nan) at step 15. Stopping training.",
    "[rank0]: W1126 TCPStore is gone",
)


def look(p: Scenario) -> None:
    """The engine finds what ranks have saved, while they run."""
    p.take(ev.Scanned, key="look", **p.scan_found())


def saved_at(*steps: int) -> Scenario:
    """A run at step 14 whose newest loss that was logged is step 11's; verified while it ran."""
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    for step in steps:
        p.progress(step, finite_step=1 if step < 11 else 11)
        p.save(step)
        look(p)
    p.progress(14, finite_step=11)
    assert [c.step for c in p.run.lineage] == list(steps)
    return p


def resumed_from(p: Scenario) -> int | None:
    assert p.run.phase is Phase.CHECKING, p.run.reason
    assert p.run.attempt is not None
    return p.run.attempt.resume.step if p.run.attempt.resume else None


def test_a_rank_that_ends_for_it() -> None:
    p = saved_at(8, 10, 12, 14)
    p.exit(0, tail=RAISED)
    assert [c.step for c in p.run.lineage] == [8, 10]
    p.exit(1, tail=("RuntimeError: Connection closed by peer",))
    p.finish_stop_and_scan()
    assert resumed_from(p) == 10
    verdict = p.incident.verdict
    assert verdict is not None and verdict.culprits == (), "it names no node"
    assert verdict.why.endswith("what was saved after step 11 is not resumed")
    why = "saved after step 11, the last one whose loss is known to be finite"
    assert {(r.step, r.why) for r in p.run.rejected} == {(12, why), (14, why)}
    p.start()
    p.first_step()
    look(p)
    assert [c.step for c in p.run.lineage] == [8, 10], "they don't count later, either"


def test_any_end_of_an_attempt_whose_lines_say_nan() -> None:
    p = saved_at(8, 10, 12)
    p.progress(21, loss=None, loss_not_finite=True)
    assert [c.step for c in p.run.lineage] == [8, 10]
    p.save(22)
    look(p)
    assert [c.step for c in p.run.lineage] == [8, 10], "nor what is saved from then on"
    (one,) = [a for a in attention(p.run, p.now) if a.what == "loss"]
    assert one.text.endswith("saves after step 11 don't count")
    p.exit(0, signal=9, code=None)
    p.finish_stop_and_scan()
    assert resumed_from(p) == 10


def test_what_only_the_scan_after_the_end_finds() -> None:
    p = saved_at(10)
    p.save(14)
    p.exit(0, tail=RAISED)
    p.finish_stop_and_scan()
    assert resumed_from(p) == 10


def test_a_loss_that_was_infinite_once() -> None:
    p = saved_at(10, 12)
    p.progress(21, loss=None, loss_not_finite=True)
    p.progress(31, finite_step=31)
    look(p)
    assert [c.step for c in p.run.lineage] == [10, 12], "the later steps came of them"


def test_where_no_finite_loss_was_told() -> None:
    """Then only what the attempt resumed from is known to be good."""
    p = saved_at(10)
    p.exit(0, tail=("connection lost",))
    p.recover_to_first_step()
    p.save(12)
    look(p)
    p.exit(0, tail=RAISED)
    p.finish_stop_and_scan()
    assert resumed_from(p) == 10


def test_older_good_ones_are_kept_meanwhile() -> None:
    p = Scenario(nodes=2, spares=1, keep=2).to(Phase.RUNNING)
    for step in (2, 4):
        p.progress(step, finite_step=step)
        p.save(step)
        look(p)
    p.progress(5, loss=None, loss_not_finite=True)
    for step in (6, 8, 10):
        p.save(step)
        look(p)
    assert not [a for a in p.ordered if isinstance(a, act.Discard)]
    assert [c.step for c in p.run.lineage] == [2, 4]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (RAISED[0], True),
        ("AssertionError: loss became NaN", True),
        ("Rank 3: found NaN in local forward loss calculation. Device: 0", True),
        ("[titan] - root - INFO - step: 12  loss:  2.88457  grad_norm: 1.0", False),
        ("skipped_iters: 0 | loss is finite", False),
        ("the loss is nannied", False),
    ],
)
def test_a_trainer_s_word_for_it(line: str, says: bool) -> None:
    assert says_not_finite(line) is says


def test_a_hook_that_is_never_called_is_said() -> None:
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    text = "TorchTitan's GarbageCollection.run was never called: steps are known from log lines"
    p.take(ev.HookTroubled, attempt=1, node="n2", rank=1, text=text)
    (one,) = attention(p.run, p.now)
    assert (one.what, one.text) == ("hook", f"{text} (rank 1 on n2)")
