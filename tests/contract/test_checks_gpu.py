"""GPU checks, through the real loader, on the NVML of tests/hardware/nvml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import Case, Change, each_of

from healthchecks.check import Status
from tests.hardware.nvml import SCRIPT, Worker, build
from tests.hardware.tree import GPUS, Tree

OK, WARN, FAIL, UNKNOWN, SKIP = (
    Status.OK,
    Status.WARN,
    Status.FAIL,
    Status.UNKNOWN,
    Status.SKIP,
)


def says(*lines: str) -> Change:
    """NVML answers as the lines say, see tests/hardware/nvml/libnvidia-ml.c."""
    return lambda tree: tree.write(SCRIPT, "\n".join(lines))


def no_gpus(tree: Tree) -> None:
    """A node without GPUs and driver."""
    for bus in GPUS:
        tree.remove(f"sys/bus/pci/devices/0000:{bus}:00.0")
    tree.remove("sys/module/nvidia/version")


CASES = [
    Case(check="ecc.unc_volatile", name="healthy", status=OK, seen="8 GPUs"),
    Case(
        check="ecc.unc_volatile",
        name="DRAM",
        change=says("nvmlDeviceGetMemoryErrorCounter/1.0.2 3 value 2"),
        status=FAIL,
        seen="gpu3: 2 uncorrectable DRAM errors since the driver was loaded (0000:4e:00.0",
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def worker(library: Path) -> Iterator[Worker]:
    one = Worker(library, Path(__file__), library / "worker.log")
    yield one
    one.close()


@each_of(CASES)
def test_case(case: Case, worker: Worker, tmp_path: Path) -> None:
    said = worker.ask(str(case), tmp_path)
    assert "error" not in said, said["error"]
