"""What is dead is found in whatever words: the corpus of sick.py, and that it leaves no check "
"out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sick
from checks import Case, each_of, run

from healthchecks.frame.registry import registered
from tests.hardware.nvml import Worker, build

CASES = sick.CASES  # for the worker
__all__ = ["run"]  # what it runs them with
FEWEST = 3
# Where words from outside are not what is judged, or are tried elsewhere.
ELSEWHERE = {
    "clock": "the kernel's own numbers (adjtimex), no words: test_checks_host",
    "cuda.libs": "a library that is loaded: test_checks_nccl",
    "deep.bandwidth": "our own probe: test_checks_deep",
    "deep.gemm": "our own probe: test_checks_deep",
    "deep.memory": "our own probe: test_checks_deep",
    "gpu.driver_hang": "a call that does not return: test_checks_gpu",
    "host.boot": "compared with other nodes alone: test_cohort",
    "host.name": "one file, or the resolver: test_checks_nccl",
    "ib.mtu": "a C library: test_checks_net",
    "ib.path_mtu": "three tools that work together: test_checks_net",
    "kmsg.novelty": "it shows what is new, and judges nothing",
    "nccl.conf": "compared with other nodes alone: test_cohort",
    "nfs.alive": "mounts that hang, go stale and fail: tests/local",
    "nfs.gate": "real connections: test_checks_nfs",
    "path.mtu": "real packets: test_checks_net",
    "pci.acs": "a register: test_checks_nccl",
    "roce.mtu": "a C library: test_checks_net",
    "storage.width": "many nodes together: test_storage_width",
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    library = build(tmp_path_factory.mktemp("nvml"))
    one = Worker(library, Path(__file__), library / "worker.log")
    yield one
    one.close()


@each_of(CASES)
def test_it_is_found(case: Case, worker: Worker, tmp_path: Path) -> None:
    said = worker.ask(str(case), tmp_path)
    assert "error" not in said, said["error"]


def test_every_check_is_asked_in_three_ways() -> None:
    count = Counter(case.check for case in CASES)
    few = {name: count[name] for name in registered() if count[name] < FEWEST}
    assert few.keys() == ELSEWHERE.keys(), few


def test_every_case_says_where_it_is_from() -> None:
    names = Counter(str(case) for case in CASES)
    assert all(case.name for case in CASES)
    assert [name for name, times in names.items() if times > 1] == []
