"""Each limit from both sides: the last value that is fine, and the first that is not.

One table for each check: what is measured, how it comes to be that much, and what each value means.
To add one: a row in limits_*.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from checks import Case, each_of, run
from limits_gpu import GPU
from limits_nfs import NFS
from limits_node import NODE

from tests.hardware.nvml import Worker, build

__all__ = ["run"]  # what the worker runs them with

CASES: Sequence[Case] = [*NFS, *GPU, *NODE]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    library = build(tmp_path_factory.mktemp("nvml"))
    one = Worker(library, Path(__file__), library / "worker.log")
    yield one
    one.close()


@each_of(CASES)
def test_on_which_side(case: Case, worker: Worker, tmp_path: Path) -> None:
    said = worker.ask(str(case), tmp_path)
    assert "error" not in said, said["error"]
