"""What an earlier superv wrote on a node is still read: its state between runs, its reports.

tests/data/health holds the files as that version wrote them, on the tree of tests/hardware with a
NIC, a page of memory and a GPU gone bad. Keys there keep the words of their day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from healthchecks.frame import state as kept
from healthchecks.frame.check import Result, Status
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import CheckCall, run_probe
from healthchecks.frame.registry import registered
from healthchecks.frame.report import parse
from tests.hardware.tree import BOOT_ID, Tree, borrowed

DATA = Path(__file__).parents[1] / "data" / "health"
LATER_S = 600.0


@pytest.fixture
def tree() -> Iterator[Tree]:
    with borrowed() as tree:
        yield tree


@pytest.fixture
def state(tmp_path: Path) -> kept.KeptState:
    (tmp_path / "node-017.json").write_bytes((DATA / "state-0.1.json").read_bytes())
    return kept.load(tmp_path, "node-017", BOOT_ID)


def looks(name: str, tree: Tree, state: kept.KeptState) -> Result:
    """What the check says ten minutes after the report of that version."""
    now = json.loads((DATA / "report-0.1.json").read_text())["at"] + LATER_S
    memory = Memory(state.memories[name], now)
    ctx = Ctx(root=tree.root, node="node-017", now=now, boot_id=BOOT_ID, memory=memory)
    return run_probe(CheckCall(check=registered()[name], on="", options={}), ctx)


def test_the_state_is_read_whole(state: kept.KeptState) -> None:
    assert state.problem == "" and state.stuck == []
    assert set(state.memories) == set(json.loads((DATA / "state-0.1.json").read_text())["memories"])


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("nic.kmsg", "mlx5_0: the NIC's firmware does not answer"),
        ("mem.poison", "a page of memory was lost"),
        ("xid", "gpu3: Xid 79 GPU has fallen off the bus"),
    ],
)
def test_what_lasts_until_the_boot_is_remembered(
    name: str, seen: str, tree: Tree, state: kept.KeptState
) -> None:
    result = looks(name, tree, state)
    assert (result.status, seen in result.seen) == (Status.FAIL, True), result.seen


def test_counters_go_on_from_where_they_were(tree: Tree, state: kept.KeptState) -> None:
    tree.add("sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", 3)
    result = looks("ib.counters", tree, state)
    assert result.status is Status.FAIL and result.seen.startswith("mlx5_0: 3 link losses")


def test_the_nics_of_before_are_missed(tree: Tree, state: kept.KeptState) -> None:
    assert looks("ib.missing", tree, state).status is Status.OK
    nic = (tree.root / "sys/class/infiniband/mlx5_0/device").readlink().name
    tree.remove("sys/class/infiniband/mlx5_0")
    tree.remove(f"sys/bus/pci/devices/{nic}")
    result = looks("ib.missing", tree, state)
    assert result.status is Status.FAIL and f"fabric port mlx5_0 at {nic} is gone" in result.seen


def test_a_report_comes_back_as_it_was_written() -> None:
    text = (DATA / "report-0.1.json").read_text()
    assert parse(text).document() == json.loads(text)
