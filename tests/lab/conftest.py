"""Fixtures for tests on a real cluster.

`lab`       three idle nodes, shared by the session, healed after every test
`make_lab`  labs of a test's own, taken down at its end
`strict`    whether these labs are strict ones
`slurm`     the release of Slurm that they run; empty: the machine's own
`world`     (always on) fails a test that leaves a process, namespace, mount, cgroup or lab behind

A test runs on a plain lab; marked `both`, on a strict one too; marked `only`, on the variant named.
SUPERV_LAB=plain|strict|all asks for every test in that variant, or in both, as far as it holds.

A test runs on the machine's own Slurm; marked `releases`, on those that it names. SUPERV_SLURM=own,
24.11, 26.05 or all asks for every test on that release, or on each of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import leftovers
import pytest
from runs import SETTINGS

from lab import packages
from lab.cluster import Lab

VARIANTS = ("plain", "strict")
OWN = "own"  # the machine's Slurm
RELEASES = (OWN, *packages.SUITES)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both: runs on a plain lab and on a strict one")
    config.addinivalue_line("markers", "only(variant): holds on that variant of the lab alone")
    config.addinivalue_line("markers", "releases(*names): runs on these releases of Slurm")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "strict" in metafunc.fixturenames:
        _variants(metafunc)
    if "slurm" in metafunc.fixturenames:
        _releases(metafunc)


def _releases(metafunc: pytest.Metafunc) -> None:
    asked = os.environ.get("SUPERV_SLURM", "")
    if asked not in ("", "all", *RELEASES):
        raise pytest.UsageError(f"SUPERV_SLURM={asked}: valid are {', '.join(RELEASES)} and all")
    marked = metafunc.definition.get_closest_marker("releases")
    if asked:
        names = RELEASES if asked == "all" else (asked,)
    elif marked:
        names = marked.args
    else:
        return
    metafunc.parametrize("slurm", names, ids=names, indirect=True, scope="session")


def _variants(metafunc: pytest.Metafunc) -> None:
    asked = os.environ.get("SUPERV_LAB", "")
    choice = {"": ("plain",), "plain": ("plain",), "strict": ("strict",), "all": VARIANTS}
    if asked not in choice:
        raise pytest.UsageError(f"SUPERV_LAB={asked}: valid are plain, strict and all")
    node = metafunc.definition
    wanted, only = choice[asked], node.get_closest_marker("only")
    if not asked and node.get_closest_marker("both"):
        wanted = VARIANTS
    if only:
        wanted = tuple(v for v in only.args if not asked or v in wanted)
    flags = [variant == "strict" for variant in wanted]
    if not wanted:
        other = pytest.mark.skip(reason=f"holds on a {only.args[0]} lab only")
        flags, wanted = [pytest.param(asked == "strict", marks=other)], (asked,)
    metafunc.parametrize("strict", flags, ids=wanted, indirect=True, scope="session")


@pytest.fixture(scope="session")
def strict(request: pytest.FixtureRequest) -> bool:
    flag: bool = request.param
    return flag


@pytest.fixture(scope="session")
def slurm(request: pytest.FixtureRequest, fence: Path) -> str:
    name: str = getattr(request, "param", OWN)
    if name == OWN:
        return ""
    try:
        packages.get(name)
    except packages.UnavailableError as error:
        pytest.skip(f"no lab with Slurm {name}: {error}")
    return name


@pytest.fixture(scope="session")
def fence() -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("a lab needs root and Slurm's packages")
    with leftovers.fenced() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_lab(fence: Path, strict: bool, slurm: str) -> Iterator[Lab]:
    there = Lab(f"{leftovers.NAME}-shared")
    there.up(3, settings=SETTINGS, strict=strict, slurm=slurm)
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
def make_lab(world: None, strict: bool, slurm: str) -> Iterator[Callable[..., Lab]]:
    made: list[Lab] = []
    numbers = count(1)

    def make(nodes: int, **wishes: object) -> Lab:
        there = Lab(f"{leftovers.NAME}-{next(numbers)}")
        made.append(there)
        there.up(nodes, **{"strict": strict, "slurm": slurm, **wishes})  # type: ignore[arg-type]
        return there

    yield make
    for there in made:
        there.down()
