"""Worlds to hold launchers to their contract in: this machine, and a real Slurm cluster."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from worlds import LauncherWorld, LocalWorld, SbatchWorld, torchx_python

from lab.cluster import Lab
from launchers.torchx import TorchxLocal

_numbers = count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    if os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("a lab needs root and Slurm's packages")
    there = Lab(f"test-{os.getpid()}-contract")
    # Jobs with a dependency, such as the launcher's, are looked at in Slurm's main loop only.
    there.up(4, settings={"SchedulerParameters": "batch_sched_delay=0,sched_interval=1"})
    yield there
    there.down()


@pytest.fixture(
    params=[
        *("local", "torchx-local"),
        *(pytest.param(name, marks=pytest.mark.lab) for name in ("sbatch", "torchx-slurm")),
    ]
)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LauncherWorld]:
    """A launcher with four nodes for jobs of three; at the end its jobs are gone."""
    name = "sv-" + re.sub(r"[^a-z0-9]+", "-", request.node.name[5:]).strip("-")
    made: LauncherWorld
    if request.param == "local":
        made = LocalWorld(name, tmp_path)
    elif request.param == "torchx-local":
        made = LocalWorld(name, tmp_path, TorchxLocal, python=torchx_python())
    elif request.param == "torchx-slurm":
        there = request.getfixturevalue("cluster")
        made = SbatchWorld(f"{name}-{next(_numbers)}", there, torchx_python())
    else:
        made = SbatchWorld(f"{name}-{next(_numbers)}", request.getfixturevalue("cluster"))
    yield made
    made.end()
