"""Fixtures for tests on a real cluster.

`lab`       three idle nodes, shared by the session, healed after every test
`make_lab`  labs of a test's own, taken down at its end
`world`     (always on) fails a test that leaves a process, namespace, mount, cgroup or lab behind
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import leftovers
import pytest

from lab.cluster import Lab


@pytest.fixture(scope="session")
def fence() -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("a lab needs root and Slurm's packages")
    with leftovers.fenced() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_lab(fence: Path) -> Iterator[Lab]:
    there = Lab(f"{leftovers.NAME}-shared")
    there.up(3)
    yield there
    there.down()


@pytest.fixture(autouse=True)
def world(fence: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    shared = "lab" in request.fixturenames
    lab = request.getfixturevalue("shared_lab") if shared else None
    before = leftovers.look(fence, lab)
    yield
    if lab is not None:
        leftovers.heal(lab)
    left = leftovers.settled(fence, before, lab)
    assert not left, "the test left behind:\n" + "\n".join(left)


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    return shared_lab


@pytest.fixture
def make_lab(world: None) -> Iterator[Callable[..., Lab]]:
    made: list[Lab] = []
    numbers = count(1)

    def make(nodes: int, **wishes: object) -> Lab:
        there = Lab(f"{leftovers.NAME}-{next(numbers)}")
        made.append(there)
        there.up(nodes, **wishes)  # type: ignore[arg-type]
        return there

    yield make
    for there in made:
        there.down()
