"""The real TorchTitan on real Slurm: a resumed run trains as one that was never interrupted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leftovers
import pytest
from runs import REPO, LaunchedRun, Runs, runs  # noqa: F401

from lab.cluster import Lab, exposed_by_default

pytestmark = [pytest.mark.lab, pytest.mark.titan]
EXAMPLE = REPO / "examples/torchtitan_lab"
INTERVAL = 5  # steps between checkpoints, in moe_lab.py
LAST = 10


@pytest.fixture(scope="module")
def python() -> Path:
    if "SUPERV_TITAN" not in os.environ:
        pytest.skip("SUPERV_TITAN names no Python with TorchTitan (make .venv-titan)")
    return Path(os.environ["SUPERV_TITAN"]).absolute()


@pytest.fixture(scope="module")
def shared_lab(fence: Path, python: Path) -> Iterator[Lab]:
    there = Lab(f"{leftovers.NAME}-titan")
    there.up(2, exposed=[*exposed_by_default(), python.parent.parent])
    yield there
    there.down()


def job(name: str, python: Path) -> dict[str, Any]:
    args = ["--module", "moe_lab", "--config", "lab", "--training.steps", "1000"]
    return {
        "name": name,
        "nodes": 2,
        "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
        "trainer": {
            "script": str(EXAMPLE / "titan_cpu.py"),
            "python": str(python),
            "hook": "torchtitan",
            "args": args,
            "env": {"GLOO_SOCKET_IFNAME": "eth0"},
        },
        "checkpoints": {"dir": f"{name}-checkpoints"},
        "policy": {"stop_grace_s": 1},
    }


def losses(run: LaunchedRun, attempt: int) -> dict[int, str]:
    """Loss by step as rank 0 printed it."""
    log = run.runs.superv("logs", run.name, "--attempt", str(attempt)).out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return {int(s): loss for s, loss in re.findall(r"step: *(\d+) +loss: +(\S+)", plain)}


def test_losses_after_a_resume_are_those_of_an_uninterrupted_run(
    runs: Runs,  # noqa: F811
    python: Path,
) -> None:
    runs.do(str(python), str(EXAMPLE / "assets.py"), str(runs.home))
    whole = runs.launch(job("whole", python))
    whole.until(lambda s: (s["step"] or 0) >= LAST, f"step {LAST}", 180)
    expected = losses(whole, 1)
    runs.superv("stop", "--now", whole.name)
    whole.until_ended("stopped")

    cut = runs.launch(job("cut", python))
    cut.until(lambda s: (s["step"] or 0) >= INTERVAL + 2, "a checkpoint and two steps", 180)
    cut.kill(cut.forked(1))
    cut.until(lambda s: s["attempt"] == 2 and (s["step"] or 0) >= LAST, f"step {LAST} again", 180)
    [incident] = cut.status_printed()["incidents"]
    cut.check_times(incident)
    resumed = incident["resumed_from"]
    assert resumed > 0 and resumed % INTERVAL == 0
    before, after = losses(cut, 1), losses(cut, 2)
    assert min(after) == resumed + 1
    assert len(set(expected.values())) > 5, "the loss changes"
    for step in range(1, LAST + 1):
        seen = {run[step] for run in (before, after) if step in run}
        assert seen == {expected[step]}, f"step {step}"
