"""What superv makes of the last lines of ranks, by the signatures."""

from __future__ import annotations

import pytest

from supervisor.core.told import hardware, no_node_s_fault, told
from supervisor.core.types import RankExit

SLOTS = ("n1", "n2", "n3", "n4")
ECC = "[rank4]: RuntimeError: CUDA error: uncorrectable ECC error encountered"
PEER = "ncclRemoteError: A call failed possibly due to a network error"


def end(rank: int, *tail: str, at: float = 100.0) -> RankExit:
    return RankExit(
        node=SLOTS[rank // 4], rank=rank, code=1, signal=None, at=at, tail=("step: 9", *tail)
    )


def test_a_gpu_s_failure_names_its_node_whoever_ended_first() -> None:
    found = told([end(0, PEER, at=99.0), end(4, ECC), end(5, "RuntimeError: x")], SLOTS)
    assert (found.cause.name, hardware(found)) == ("gpu-memory-error", ("n2",))
    assert not no_node_s_fault(found)


def test_two_at_once_name_nobody() -> None:
    assert hardware(told([end(0, ECC), end(4, ECC, at=100.5)], SLOTS)) == ()


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: No CUDA GPUs are available",  # all nodes' container, or this one
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "srun: error: n1: task 0: Killed",
        "nothing that is known",
        PEER,
    ],
)
def test_what_may_be_anybody_s_names_no_hardware(line: str) -> None:
    found = told([end(4, line)], SLOTS)
    assert hardware(found) == () and not no_node_s_fault(found)


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 28] No space left on device: '/ckpt/step-9'",
        "RuntimeError: CUDA error: device-side assert triggered",
        "train.py: error: unrecognized arguments: --trainin.steps 10",
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central "
        "directory",
    ],
)
def test_what_no_node_can_be_the_reason_for(line: str) -> None:
    found = told([end(4, line)], SLOTS)
    assert no_node_s_fault(found) and hardware(found) == ()


@pytest.mark.parametrize(
    "line",
    [
        "ModuleNotFoundError: No module named 'torchtitan'",  # a mount of that node?
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",  # a stale one?
        "FileNotFoundError: [Errno 2] No such file or directory: '/data/c4'",
        "ValueError: too many values to unpack (expected 2)",
    ],
)
def test_what_a_node_may_be_the_reason_for_is_left_to_another_attempt(line: str) -> None:
    assert not no_node_s_fault(told([end(4, line)], SLOTS))


def test_no_rank_said_anything() -> None:
    found = told([], SLOTS)
    assert hardware(found) == () and not no_node_s_fault(found)
