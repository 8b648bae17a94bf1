"""A whole run whose job TorchX's Slurm scheduler has submitted: it outlives its nodes."""

from __future__ import annotations

import os

import pytest
from runs import (  # noqa: F401
    REPO,
    SAVE_EVERY,
    Runs,
    runs,
    shared_lab,
)
from test_runs import check_lost, nodes

pytestmark = pytest.mark.lab


@pytest.fixture
def torchx() -> str:
    python = os.environ.get("SUPERV_TORCHX", str(REPO / ".venv-torchx/bin/python"))
    if not os.path.exists(python):
        pytest.skip("SUPERV_TORCHX names no Python with torchx (make .venv-torchx/.done)")
    return python


@pytest.mark.parametrize(
    "slot",
    [pytest.param(1, id="another"), pytest.param(0, id="the-batch-host", marks=pytest.mark.soak)],
)
def test_torchxs_job_goes_on_when_a_node_goes_off(
    runs: Runs,  # noqa: F811
    torchx: str,
    slot: int,
) -> None:
    with (runs.home / "site.yaml").open("a") as site:
        site.write(f"torchx_python: {torchx}\n")
    run = runs.launch(runs.ring(launcher="torchx", torchx={"scheduler": "slurm"}))
    before = run.until_step(SAVE_EVERY + 2)
    (job,) = run.jobs()
    assert "torchx-sbatch.sh" in runs.do("scontrol", "show", "job", job).out
    victim = nodes(before)[slot]
    fault = runs.lab.poweroff(victim)
    check_lost(run, before, victim, fault.at)
    assert run.jobs() == [job], "the job has outlived its node"
    runs.superv("stop", run.name)
    run.until_ended("stopped")
    assert run.jobs() == []
