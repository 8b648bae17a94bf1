"""Who holds GPUs before ranks start again: NVML is asked (a library that the loader finds)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.agent import gpus
from tests.hardware import tree_amd
from tests.hardware.nvml import SCRIPT, build
from tests.hardware.tree import Tree, borrowed


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def node(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    with borrowed() as tree:
        monkeypatch.setenv("LD_LIBRARY_PATH", os.fspath(library))
        monkeypatch.setenv("SUPERV_FAKE_NVML", os.fspath(tree.path(SCRIPT)))
        yield tree


def held(tree: Tree, *pids: int) -> None:
    lines = [f"nvmlDeviceGetComputeRunningProcesses_v3 3 value {pid} {3 * 2**30}" for pid in pids]
    tree.write(SCRIPT, "\n".join(lines))


def test_nobody_holds_a_gpu(node: Tree) -> None:
    assert asyncio.run(gpus.holders(os.fspath(node.root))) == []


def test_a_foreign_process_is_named_and_not_waited_for(node: Tree) -> None:
    held(node, os.getpid())
    mine, foreign = asyncio.run(gpus.until_free(set, os.fspath(node.root)))
    assert mine == []
    (one,) = foreign
    assert (one.gpu, one.pid) == (3, os.getpid())
    assert one.text().startswith(f"process {os.getpid()} (")
    assert one.text().endswith("holds 3.0 GiB of gpu3")


def test_of_amd_the_kernel_is_asked(node: Tree) -> None:
    tree_amd.mi300x(node)
    tree_amd.process(node, os.getpid(), 5, 48 * 2**30)
    (one,) = asyncio.run(gpus.holders(os.fspath(node.root)))
    assert one.text().endswith("holds 48.0 GiB of gpu5")


def test_what_the_runs_own_processes_hold_is_waited_for(node: Tree) -> None:
    """The driver frees the memory of a process a while after its end."""

    async def scenario() -> tuple[list[gpus.Holder], list[gpus.Holder]]:
        looks = 0

        def ours() -> set[int]:
            nonlocal looks
            looks += 1
            if looks == 2:
                held(node)
            return {4242}

        held(node, 4242)
        found = await gpus.until_free(ours, os.fspath(node.root))
        assert looks == 2
        return found

    assert asyncio.run(scenario()) == ([], [])


def test_a_machine_without_the_driver_is_not_asked(tmp_path: Path) -> None:
    assert asyncio.run(gpus.until_free(lambda: {1}, os.fspath(tmp_path))) == ([], [])


def test_a_driver_that_says_nothing_good_keeps_no_node(node: Tree) -> None:
    """What is not known is no reason; the health checks look at the driver."""
    node.write(SCRIPT, "nvmlInit_v2 - error 9")
    assert asyncio.run(gpus.holders(os.fspath(node.root))) == []
