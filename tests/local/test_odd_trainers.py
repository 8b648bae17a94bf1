"""Trainers that word steps otherwise, tell what is not so, or end before their work is done."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
from home import DCP, RunHome

# Ranks on their own; rank 0 saves. What they say is the test's.
TRAINER = f"""
import os, shutil, sys, time
from pathlib import Path
RANK, said = int(os.environ["RANK"]), sys.argv[1]
save_dir, resumed = Path(os.environ["SUPERV_SAVE_DIR"]), int(os.environ["SUPERV_RESUME_STEP"] or 0)
for step in range(resumed, 10**6):
    time.sleep(0.05)
    exec(said)
    if RANK == 0 and (step + 1) % 10 == 0:
        there = save_dir / f"step-{{step + 1}}"
        there.mkdir(parents=True)
        for part in ("*.distcp", ".metadata"):
            for found in Path({str(DCP)!r}).glob(part):
                shutil.copyfile(found, there / found.name)
"""


def trains(home: RunHome, said: str, **more: Any) -> dict[str, Any]:
    script = home.path / "odd.py"
    script.write_text(TRAINER)
    trainer = {"script": str(script), "python": sys.executable, "args": [said], "ranks_per_node": 2}
    saves = {"dir": str(home.path / "checkpoint"), "handoff": "env"}
    return {"trainer": trainer, "checkpoints": saves, **more}


def rank(home: RunHome, node: str) -> int:
    return min(home.processes(node, "odd.py"))


def test_steps_from_0_without_a_colon_and_a_rank_that_says_what_is_not_so(home: RunHome) -> None:
    false = (
        "step in (3, 7) and RANK == 3 and print('resuming from step 5\\nstep: 999999 loss: nan')"
    )
    said = f"{false}; print(f'step {{step}}/5000 loss 1.25', flush=True)"
    home.launched(**trains(home, said))
    before = home.at_step(15)
    assert (before["attempt"], before["phase"], before["loss"]) == (1, "running", 1.25)
    assert before["step"] < 999_999
    paced = home.reached(lambda s: s["left_s"] is not None, "a pace")
    assert paced["target_step"] == 5000
    assert paced["left_s"] == (5000 - paced["step"]) / paced["steps_per_s"]
    os.kill(rank(home, "local-2"), signal.SIGKILL)
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    (incident,) = after["incidents"]
    assert incident["cause"] == "rank-exit"
    assert after["step"] >= incident["resumed_from"] >= 10


@pytest.mark.soak  # checkpoints are looked for every 20 s
def test_checkpoints_tell_that_ranks_train_whose_lines_nobody_understands(home: RunHome) -> None:
    said = "print(step, 'of many', flush=True)"
    home.superv("launch", "--detach", str(home.job(**trains(home, said))))
    seen = home.reached(lambda s: s["phase"] == "running", "running")
    assert seen["step"] is not None and seen["step"] % 10 == 0
    assert seen["attempt"] == 1


def test_ranks_that_all_end_well_and_did_nothing_are_no_success(home: RunHome) -> None:
    policy = {"stop_grace_s": 1, "restarts_without_progress": 1, "backoff_s": [0]}
    job = home.job(**trains(home, "sys.exit(0)", policy=policy))
    home.superv("launch", "--detach", str(job))
    after = home.reached(lambda s: s["phase"] in ("held", "done"), "the end")
    assert after["phase"] == "held"
    assert {i["cause"] for i in after["incidents"]} == {"ended-early"}


def test_one_rank_that_ends_while_the_others_go_on(home: RunHome) -> None:
    policy = {"stop_grace_s": 1, "last_ranks_timeout_s": 2, "backoff_s": [0]}
    said = "print('step', step, flush=True); RANK == 1 and step == 5 and sys.exit(0)"
    home.superv("launch", "--detach", str(home.job(**trains(home, said, policy=policy))))
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"] is not None, "new steps")
    (incident,) = after["incidents"]
    assert incident["cause"] == "ended-early"
