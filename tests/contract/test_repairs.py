"""After a repair what was seen before says nothing, and what comes later does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sick
import test_checks_all
from checks import NOW, Case, both, looks
from reached import reads_a_log
from test_checks_kernel import logged, xid

from healthchecks.frame.check import Gap, Result, Status
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import CheckCall, run_probe
from healthchecks.frame.registry import registered
from tests.hardware.nvml import ROOT, SCRIPT, build, environment
from tests.hardware.tree import BOOT_ID, GPU_BDFS, Tree, borrowed

DAY_S, UP_S = 86_400.0, 864_000.0
CASES = [*sick.CASES, *test_checks_all.all_cases()]
OF_THE_PAST = sorted(name for name, one in registered().items() if reads_a_log(one.run))
BAD = (Status.WARN, Status.FAIL)
MOST = 30  # cases of a check that are tried, from all over its list
SOME = 5  # of those are asked after a repair of long ago, too


def last(case: Case, tmp_path: Path) -> Status:
    return looks(case, tmp_path)[-1].status


def no_log(tree: Tree) -> None:
    """The kernel's log lost all its lines; what else there is to see is still there."""
    if tree.path("dev/kmsg").is_file():
        tree.write("dev/kmsg", "6,1,1,-;Linux version 6.8.0")


def of_the_log(case: Case, tmp_path: Path) -> bool:
    """Whether lines of a log are all that a case goes by."""
    if case.programs:
        return True
    earlier = [(ago, both(change, no_log)) for ago, change in case.earlier]
    return last(replace(case, earlier=earlier, change=both(case.change, no_log)), tmp_path) != (
        case.status
    )


@pytest.mark.parametrize("check", OF_THE_PAST)
def test_what_a_check_fails_for_is_over_with_a_repair_and_counts_after_one(
    check: str, tmp_path: Path
) -> None:
    """Of every check that can come to read a log, found by its code, and all cases of it."""
    mine = [case for case in CASES if case.check == check and case.status in BAD]
    if all(case.none for case in mine):
        assert mine, f"{check} reads a log, and no case says why it finds nothing bad there"
        return
    over, real = [], [case for case in mine if not case.none]
    for case in real[:: 1 + len(real) // MOST]:
        if last(replace(case, repaired=NOW), tmp_path) not in BAD:
            over.append(case)
        else:
            assert not of_the_log(case, tmp_path), f"{case}: still so after a repair"
    assert over, f"{check} reads a log, and no case has a line of it"
    for case in over[:SOME]:
        assert last(replace(case, repaired=NOW - 30 * DAY_S), tmp_path) is case.status, case


def test_a_check_that_comes_to_read_a_log_is_found() -> None:
    def through_ours(ctx: Ctx) -> object:
        from healthchecks.sources.kernel_log import new_lines

        return new_lines(ctx, "x")

    def by_hand(ctx: Ctx) -> str:
        return ctx.text("/dev/kmsg")

    def by_a_program(ctx: Ctx) -> object:
        return [ctx.command(*argv, deadline_s=1.0) for argv in (("dmesg", "-x"),)]

    def by_another(ctx: Ctx) -> object:
        return registered and by_hand(ctx)

    def none(ctx: Ctx) -> str:
        return ctx.text("proc/uptime") + "read it with dmesg"

    assert all(map(reads_a_log, (through_ours, by_hand, by_a_program, by_another)))
    assert not reads_a_log(none)
    assert {"kernel", "xid", "nfs.passive", "accel.kernel", "nvme", "ipmi.sel"} <= {*OF_THE_PAST}


# --- what a repair leaves behind, of GPU errors in the kernel's log

SLOTS = [bdf.rpartition(".")[0] for bdf in GPU_BDFS]
STALE = 60.0  # seconds between two looks


class RepairedNode:
    """The xid check's looks at one node, and what gpu.handle and gpu.recovery_action told it."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.now, self.data = tree, NOW, dict[str, Any]()
        self.others: dict[str, Any] = {}

    def told(self, check: str, **kept: Any) -> None:
        self.others[check] = {"boot": {**self.others.get(check, {}).get("boot", {}), **kept}}

    def boards(self, **boards: int) -> None:
        """Which board is in which slot, as gpu.handle saw it in this look."""
        self.told("gpu.handle", boards={GPU_BDFS[slot]: name for name, slot in boards.items()})
        self.told("gpu.handle", boards_at=self.now)

    def asks(self, action: int, slot: int = 3) -> None:
        self.told("gpu.recovery_action", asked={GPU_BDFS[slot]: [action, self.now]})

    def look(self, *codes: int, slot: int = 3) -> Result:
        """A minute later; the kernel has written Xids half of it ago."""
        self.now += STALE
        uptime = UP_S + self.now - NOW
        self.tree.write("proc/uptime", f"{uptime} 1.0")
        log, number = self.tree.read("dev/kmsg"), int(self.now - NOW) * 1000
        lines = [
            f"4,{number + i},{int((uptime - STALE / 2) * 1e6) + i},-;"
            f"NVRM: Xid (PCI:{SLOTS[slot]}): {code}, pid=1, name=python3"
            for i, code in enumerate(codes)
        ]
        self.tree.write("dev/kmsg", "\n".join([log, *lines]))
        memory = Memory(self.data, self.now)
        ctx = Ctx(
            root=self.tree.root,
            node="n1",
            now=self.now,
            boot_id=BOOT_ID,
            memory=memory,
            others=self.others,
        )
        found = run_probe(CheckCall(check=registered()["xid"], on="", options={}), ctx)
        self.data = memory.data
        return found

    def boots(self) -> None:
        self.tree.write("dev/kmsg", "6,1,1,-;Linux version 6.8.0")
        self.now += 5 * DAY_S - 100.0
        self.data, self.others = {"lasting": self.data["lasting"]}, {}


@pytest.fixture
def node() -> Iterator[RepairedNode]:
    with borrowed() as tree:
        yield RepairedNode(tree)


def test_a_reset_is_seen_by_what_nvml_says_after_it(node: RepairedNode) -> None:
    node.asks(0)  # before the error
    assert node.look(119).status is Status.FAIL
    node.asks(1)
    assert node.look().status is Status.FAIL
    node.asks(0, slot=4)  # another GPU
    assert node.look().status is Status.FAIL
    node.asks(0)
    assert node.look().status is Status.OK
    assert node.look(119).status is Status.FAIL  # a new one
    node.asks(0)
    assert node.look().status is Status.OK
    assert node.look(79).status is Status.FAIL
    node.asks(0)
    assert node.look().status is Status.FAIL, "no reset brings back a GPU that fell off the bus"


def test_a_board_that_was_swapped_starts_afresh(node: RepairedNode) -> None:
    assert node.look(119, 79).status is Status.FAIL
    node.boards(old=3, other=4)
    assert node.look().status is Status.FAIL
    node.boards(new=3, other=4)
    assert node.look().status is Status.OK
    found = node.look(79)
    assert (found.status, found.devices) == (Status.FAIL, ("gpu3",))
    node.boards(new=3, other=4)
    assert node.look().status is Status.FAIL
    node.boards(other=4)  # fallen off: nobody says who is there
    assert node.look().status is Status.FAIL


def test_a_board_that_moved_keeps_its_history_over_a_boot(node: RepairedNode) -> None:
    assert node.look(94).status is Status.WARN  # contained: once is a program's
    node.boards(a=3, b=5)
    assert node.look().status is Status.WARN
    node.boots()
    found = node.look()
    assert found.gap is Gap.NOT_YET and found.status is Status.UNKNOWN, "who is where?"
    node.boards(b=3, a=5)
    assert node.look(94, slot=3).status is Status.WARN  # b's first
    again = node.look(94, slot=5)
    assert again.status is Status.FAIL and again.devices == ("gpu5",)
    assert "2 incidents" in again.seen


def test_xid_hears_of_boards_and_resets_from_the_driver_itself(tmp_path: Path) -> None:
    library = build(tmp_path / "nvml")
    order = {"names": ["gpu.handle", "gpu.recovery_action", "xid"], "node": "n1"}

    def look(tree: Tree, *says: str) -> str:
        tree.write(SCRIPT, "\n".join(says))
        done = subprocess.run(
            [sys.executable, "-m", "healthchecks"],
            input=json.dumps(order | {"root": str(tree.root), "folder": str(tmp_path / "state")}),
            env=environment(library, tree.path(SCRIPT)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        rows = {row["check"]: row["status"] for row in json.loads(done.stdout)["results"]}
        return str(rows["xid"])

    reset = "nvmlDeviceGetFieldValues/230 3 value 1"
    with borrowed() as tree:
        logged(xid(119))(tree)
        assert [look(tree, reset), look(tree, reset)] == ["FAIL", "FAIL"]
        assert [look(tree), look(tree)] == ["FAIL", "OK"]  # as the look before heard
        logged(xid(79))(tree)
        other = "nvmlDeviceGetUUID 3 text GPU-0b2000ff-0000-0000-0000-000000000000"
        assert [look(tree), look(tree)] == ["FAIL", "FAIL"]
        assert [look(tree, other), look(tree, other)] == ["FAIL", "OK"]
