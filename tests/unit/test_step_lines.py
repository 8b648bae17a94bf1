"""How trainers word it: a table of lines, and what is understood of each."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.step_lines import (
    MAX_STEP,
    RESUMED,
    STEP,
    UnreadLines,
    epoch,
    number,
    says_over,
)

STEPS = [  # a line, the step in it, the loss in it
    ("step: 5", 5, None),
    ("step: 5  loss: 1.2", 5, "1.2"),
    ("step 5 loss 1.2", 5, "1.2"),
    ("step 5", 5, None),
    ("Step 5/100", 5, None),
    ("step 5 of 100, loss 2.0", 5, "2.0"),
    ("STEP [5/100]", 5, None),
    ("step[5/100] 3 s", 5, None),
    ("[step 5] 0.1", 5, None),
    ("(step 5)", 5, None),
    ("step #12 done in 3 s", 12, None),
    ("iter 5: loss 4.28, time 12.50ms, mfu 3.0%", 5, "4.28"),
    ("it 5 | 3.2", 5, None),
    ("it: 5", 5, None),
    ("iteration=5", 5, None),
    (
        " iteration        5/     100 | consumed samples: 9 | elapsed time per iteration (ms): "
        "12.5 | lm loss: 1.2E+00 |",
        5,
        "1.2E+00",
    ),
    ("global_step=5", 5, None),
    ("global step 5, loss=nan", 5, "nan"),
    ("train_step: 5", 5, None),
    ("training step 5", 5, None),
    ("train step 9 took 12.5 ms", 9, None),
    ("num_updates=12", 12, None),
    ("2025-01-01 10:00:00 step=10, skipped=0, lr=[1e-4]", 10, None),
    ("Epoch 3 step 7/100 loss 0.5", 7, "0.5"),
    ("step 1,234 loss 2", 1234, "2"),
    ("step=1_234_567", 1234567, None),
    ("{'loss': 0.5, 'step': 5}", 5, None),
    ('{"step": 5, "loss": 2.5}', 5, "2.5"),
    ("[titan] root - INFO - step:  5  loss:  8.2  grad_norm: 1", 5, "8.2"),
    ("step: 999999 loss: nan", 999999, "nan"),
    ("step: 3 loss: -inf", 3, "-inf"),
    ("finished step 8", 8, None),
    ("rank 0 step 5 loss=2", 5, "2"),
    ("step 0: train loss 4.28, val loss 4.29", 0, "4.28"),
    # Lines of real trainers, as their sources print them.
    ("global_step=125, epoch=1, train_loss=0.5", 125, "0.5"),
    ("Training epoch 0, iteration 99/999 | lr: 2.9e-06 | reduced_train_loss: 10.2", 99, "10.2"),
    ("[Rank 0] step=100, skipped=3, lr=[1e-05], mom=[(0.9, 0.95)]", 100, None),
    ("[timer.py:260:stop] epoch=0/micro_step=100/global_step=100, Samples=12.3", 100, None),
    ("iter 250: loss 2.4567, time 123.45ms, mfu 12.34%", 250, "2.4567"),
    ("step 100/19560 | loss 6.123 (+0.12z)| norm 1.23 | 123.45 ms | 45.0% bf16 MFU", 100, "6.123"),
    ("step   10 | loss: 7.123 | lr 1.2000e-05 | dt: 250.00ms | tok/sec: 2097152.00", 10, "7.123"),
    ("step:10/1390 train_time:2345ms step_avg:234.5ms", 10, None),
    ("Step 100 | loss:1.234 lr:2e-05 tokens_per_second_per_gpu:1234.5", 100, "1.234"),
    ("| train_inner | epoch 001:    100 / 5000 loss=10.2, num_updates=100, lr=1e-05", 100, None),
    ("[batch=100/4800]: Train time/batch: 99", 100, None),
    ("completed step: 12, seconds: 1.234, TFLOP/s/device: 123.4, loss: 8.123", 12, "8.123"),
    ("train_metrics: step=1000 loss=1.2", 1000, "1.2"),
    ("[step=100/739328,epoch=0]", 100, None),
    ("Epoch 1 | iter 100 step 25 | loss train: 2.1 | iter time: 123.45 ms (step)", 25, None),
    ("[d2.utils.events]:  eta: 1:00:00  iter: 19  total_loss: 2.1  time: 0.5", 19, "2.1"),
    ("mmengine - INFO - Epoch(train)  [1][  50/1000]  lr: 1.0e-04  loss: 2.1", 50, "2.1"),
    ("mmengine - INFO - Iter(train) [   50/80000]  lr: 1.0e-02  loss: 2.1", 50, "2.1"),
    ("Train: 0 [  50/1251 (  4%)]  Loss: 6.95 (6.95)  Time: 0.5s", 50, "6.95"),
    ("Epoch: [0]  [  50/1251]  eta: 0:10:00  lr: 0.1  loss: 6.9 (6.95)", 50, "6.9"),
    ("Train Epoch: 1 [640/60000 (1%)]\tLoss: 2.1", 640, "2.1"),
    ("Epoch 0:  25%|██▌  | 25/100 [00:05<00:15,  4.98it/s, v_num=0, train_loss=2.3]", 25, "2.3"),
    ("Epoch 0: :   1%|   | 100/10000 [10:00<16:30:00, v_num=0, loss=8.1]", 100, "8.1"),
    ("train          Epoch   0:    5%|█▎      | 50/1000 [00:10<03:20,  4.7ba/s]", 50, None),
    ("Steps:  10%|█    | 100/1000 [01:40<15:00,  1.00s/it, lr=0.0001, step_loss=0.1]", 100, None),
    ("  5%|▌    | 50/1000 [00:25<08:00,  1.98it/s, loss=2.1]", 50, "2.1"),
    ('{"train/step": 100, "train/loss": 2.1}', 100, "2.1"),
    ("{'train/global_step': 100, 'train/loss': 2.1}", 100, "2.1"),
    ("train_loss=2.1 trainer/global_step=100", 100, None),
    ("optimizer step 100 loss 2", 100, "2"),
]
OTHERS = [
    *("12.5 ms", "step time 5 s", "step_time=5", "step time: 5", "step: 12.5 ms", "step: 5 ms"),
    *("step 5 ms", "a step of 5 s", "step 1.5", "step 5.0", "step 5x faster", "step: 50%"),
    *("steps/s: 5", "45.2it/s", "it/s: 45", "iteration time (ms): 5", "split 5", "unit 5"),
    *("resuming from step 5", "Resumed from step: 5", "training starts at step 6", "Next step: 5"),
    *("validate step: 10", "val step 10 loss 1", "eval iter 5/10", "test step 3 loss 2"),
    *("max_step=1000", "max step: 5", "total steps: 100", "max global step: 5", "until step 5"),
    *("warmup step 10/20", "skipping to step 10", "grad accumulation step 3/8", "micro step 3"),
    *("saved checkpoint at step 500", "successfully saved checkpoint at iteration 5 to /x"),
    # Bars that are not of training, or may be of an evaluation.
    "  5%|▌    | 50/1000 [00:25<08:00,  1.98it/s]",
    "Validation DataLoader 0:  50%|█████     | 5/10 [00:01<00:01,  4.0it/s]",
    "Sanity Checking DataLoader 0: 100%|███| 2/2 [00:01<00:00,  4.0it/s]",
    "Loading checkpoint shards:  50%|█████     | 1/2 [00:01<00:01,  1.0s/it]",
    "Map:  10%|█   | 1000/10000 [00:01<00:09, 1000.0 examples/s]",
    "Test: [  50/1251]  eta: 0:10:00",
    "Epoch(val)  [1][  50/1000]    eta: 0:00:10",
    "{'loss': 1.234, 'grad_norm': 0.5, 'learning_rate': 5e-05, 'epoch': 0.12}",
    "12.5 ms [3/8] done",
    *("/ckpt/step-500", "save_step=5", "Step 1: loading the data", "Step 2 - building the model"),
]


@pytest.mark.parametrize(("line", "step", "loss"), STEPS)
def test_what_reports_a_step(line: str, step: int, loss: str | None) -> None:
    found = re.search(STEP, line)
    assert found is not None
    assert (number(found["step"]), found["loss"]) == (step, loss)


@pytest.mark.parametrize("line", OTHERS)
def test_what_does_not(line: str) -> None:
    assert re.search(STEP, line) is None


@pytest.mark.parametrize(
    ("line", "step", "following"),
    [
        ("resumed from step 5", 5, None),
        ("Resuming training at global step 1,200", 1200, None),
        ("restored from iteration 7", 7, None),
        ("Training starts at step 6", None, 6),
    ],
)
def test_what_tells_a_resume(line: str, step: int | None, following: int | None) -> None:
    found = re.search(RESUMED, line)
    assert found is not None
    assert (number(found["step"]), number(found["next"])) == (step, following)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *[("5", 5), ("1,234", 1234), ("1_234", 1234), ("", None), ("5.0", None), (None, None)],
        *[(str(MAX_STEP), None), ("9" * 40, None), ("²", None)],
    ],
)
def test_counts(text: str | None, count: int | None) -> None:
    assert number(text) == count


@pytest.mark.parametrize(
    ("line", "told"),
    [("Epoch 3 step 7", 3), ("epoch: [2][10/50]", 2), ("{'epoch': 0.3}", None), ("step 5", None)],
)
def test_epochs(line: str, told: int | None) -> None:
    assert epoch(line) == told


@pytest.mark.parametrize(
    ("line", "over"),
    [
        ("Training completed", True),
        ("Training completed. Do not forget to share your model", True),
        ("training is done", True),
        ("done training", True),
        ("`Trainer.fit` stopped: `max_steps=5` reached.", True),
        ("nothing left to do", True),
        ("Training not finished", False),
        ("training was interrupted before it completed", False),
        ("imported", False),
    ],
)
def test_the_trainers_own_word(line: str, over: bool) -> None:
    assert says_over(line) is over


@pytest.mark.parametrize(
    "form",
    [
        "2025-01-01 10:00:{n:02} done {n} of 400, cost 1.{n}",
        "|##   | {n}/100 [00:{n:02}<00:10, 9.{n}it/s]",
        "minibatch={n} cost=0.{n}",
        "  5%|▌         | {n}/1000 [00:25<08:00,  1.98it/s]",
        "[{n}/1000] cost 1.2",
        "| epoch   1 |   {n}/ 2983 batches | ms/batch 12.50 | ppl   164.02",
        "{n}/1000 ━━━━━━━━━━━━━━━━━━━━ 1:00 60ms/unit - cost: 2.1",
        "{n} ms: chunk {n}",
    ],
)
def test_a_pattern_that_fits_what_grows(form: str) -> None:
    """What is proposed finds the same numbers in the same lines."""
    lines = [form.format(n=n) for n in range(11, 16)]
    unread = UnreadLines()
    for line in lines:
        assert re.search(STEP, line) is None
        unread.add(line)
    assert unread.line == lines[-1]
    found = [re.search(unread.pattern, line) for line in lines]
    assert [one and int(one["step"]) for one in found] == list(range(11, 16))


def test_no_pattern_where_nothing_grows() -> None:
    unread = UnreadLines()
    for text in (
        "waiting for peers",
        "waiting for peers",
        "10:00:01 still here",
        "10:00:02 still here",
    ):
        unread.add(text)
    assert (unread.pattern, unread.line, unread.count) == ("", "10:00:02 still here", 4)


@given(st.lists(st.text(max_size=60), max_size=40))
def test_any_lines_are_taken(lines: list[str]) -> None:
    unread = UnreadLines()
    for line in lines:
        re.search(STEP, line)
        says_over(line)
        epoch(line)
        unread.add(line)
    assert unread.count == len(lines)
    assert not unread.pattern or re.compile(unread.pattern)


def test_the_table_has_no_line_twice() -> None:
    lines = sorted([line for line, _, _ in STEPS] + OTHERS)
    assert all(one != other for one, other in pairwise(lines))
