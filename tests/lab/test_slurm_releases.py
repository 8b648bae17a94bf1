"""The newest releases of Slurm, in short: a run that loses a node, and preflight.

SUPERV_SLURM=all runs every other lab test on them, too.
"""

from __future__ import annotations

import json
import re

import pytest
from runs import SAVE_EVERY, Runs, runs, shared_lab  # noqa: F401

from lab.cluster import Lab

pytestmark = [pytest.mark.lab, pytest.mark.releases("24.11", "26.05")]


def test_the_lab_runs_the_release_that_it_says(lab: Lab, slurm: str) -> None:
    said = lab.status().slurm
    for node in ("login", "ctl", "n1"):
        shown = lab.run(node, ["sinfo", "-V"]).out.split()[-1]
        assert re.fullmatch(rf"{re.escape(slurm)}\.\d+", shown) and f"Slurm {shown}-" in said
    own = ["sh", "-c", "ls /usr/lib/*/slurm-wlm/ | grep -c so; stat -f -c %T /usr"]
    assert lab.run("n1", own).out.split()[1] == "overlayfs"
    assert lab.run("n1", ["touch", "/usr/x"], user="root").rc == 1


def test_a_run_loses_a_node_and_goes_on_with_the_spare(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    before = run.until_step(SAVE_EVERY + 2)
    victim = before["slots"][1]["node"]
    runs.lab.poweroff(victim)
    after = run.until_recovered()
    [incident] = after["incidents"]
    assert (incident["cause"], incident["culprits"]) == ("node-lost", [victim])
    assert [slot["node"] for slot in after["slots"]] == [
        before["spares"][0] if slot["node"] == victim else slot["node"] for slot in before["slots"]
    ]


def test_preflight_asks_every_node(runs: Runs) -> None:  # noqa: F811
    full = ("--set", "fs.local.warn_percent=100", "--set", "fs.local.fail_percent=100")
    done = runs.superv("preflight", "n[1-4]", "--check", "fs.local", *full, "--json")
    document = json.loads(done.out)
    assert {row["way"] for row in document["nodes"].values()} == {"srun"}
    assert "4 of 4 nodes can be used" in document["verdict"], document["causes"]
