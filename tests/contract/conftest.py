"""Worlds to hold launchers to their contract in: this machine, and a real Slurm cluster."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from worlds import LauncherWorld, LocalWorld, SbatchWorld, pyslurm_python, torchx_python

from lab import packages
from lab.cluster import Lab, exposed_by_default
from launchers.torchx import TorchxLocal

SLURMS = ("sbatch", "sbatch-pyslurm", "torchx-slurm")
_numbers = count(1)
# Jobs with a dependency, such as the launcher's, are looked at in Slurm's main loop only.
SETTINGS = {"SchedulerParameters": "batch_sched_delay=0,sched_interval=1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    if os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("a lab needs root and Slurm's packages")
    there = Lab(f"test-{os.getpid()}-contract")
    there.up(4, settings=SETTINGS)
    yield there
    there.down()


@pytest.fixture(scope="module")
def with_pyslurm() -> Iterator[tuple[Lab, str]]:
    """A cluster of the release that pyslurm was built for, and that pyslurm's Python."""
    python, release = pyslurm_python()
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")
    there = Lab(f"test-{os.getpid()}-pyslurm")
    shown = [*exposed_by_default(), Path(python).parent.parent]
    try:
        there.up(4, settings=SETTINGS, slurm=release, exposed=shown)
    except packages.UnavailableError as error:
        pytest.skip(f"no lab with Slurm {release}: {error}")
    yield there, python
    there.down()


@pytest.fixture(
    params=[
        *("local", "torchx-local"),
        *(pytest.param(name, marks=pytest.mark.lab) for name in SLURMS),
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
    elif request.param == "sbatch-pyslurm":
        there, python = request.getfixturevalue("with_pyslurm")
        made = SbatchWorld(f"{name}-{next(_numbers)}", there, pyslurm_python=python)
    else:
        made = SbatchWorld(f"{name}-{next(_numbers)}", request.getfixturevalue("cluster"))
    yield made
    made.end()
