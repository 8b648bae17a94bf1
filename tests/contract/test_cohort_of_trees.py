"""Two dozen nodes through the real checks: odd ones are found by comparison, and no others."""

from __future__ import annotations

from checks import both, lost, wrote

from healthchecks.frame.check import Status
from healthchecks.frame.registry import registered
from healthchecks.many.cohort import judge
from tests.hardware.cohort import cohort
from tests.hardware.tree import FABRIC, Tree

IB = "sys/class/infiniband"
V2 = "RoCE v2"


def other_firmware(tree: Tree) -> None:
    for device in FABRIC:
        tree.write(f"{IB}/{device}/fw_ver", "28.39.1002")


def all_slow(tree: Tree) -> None:
    for device in FABRIC:
        tree.write(f"{IB}/{device}/ports/1/rate", "200 Gb/sec (4X HDR)")


def one_nic_less(tree: Tree) -> None:
    tree.remove(f"{IB}/mlx5_5")
    tree.remove("sys/bus/pci/devices/0000:ab:00.0")


def other_kernel(tree: Tree) -> None:
    tree.write("proc/sys/kernel/osrelease", "6.8.0-79-generic")


ODD = {
    3: other_firmware,
    9: all_slow,
    11: one_nic_less,
    13: wrote(f"{IB}/mlx5_2/ports/1/state", "1: DOWN"),
    14: both(
        wrote(f"{IB}/mlx5_8/ports/1/gids/5", "0000:0000:0000:0000:0000:ffff:0a00:0021"),
        wrote(f"{IB}/mlx5_8/ports/1/gid_attrs/types/5", V2),
        wrote(f"{IB}/mlx5_8/ports/1/gid_attrs/types/3", "IB/RoCE v1"),
    ),
    17: other_kernel,
    19: wrote("sys/bus/pci/devices/0000:18:00.0/numa_node", "1"),
    22: lost("sys/class/infiniband/mlx5_9"),
}


def test_eight_odd_nodes_are_found_and_no_other() -> None:
    judged = judge(cohort(ODD, nodes=24), registered())
    bad = (Status.FAIL, Status.WARN, Status.UNKNOWN)
    odd = {
        node: sorted({f.check for f in report.having(*bad)})
        for node, report in judged.reports.items()
        if report.having(*bad)
    }
    assert set(odd) == {f"node-{number:03}" for number in ODD}, odd
    assert odd["node-003"] == ["nic.fw"]
    assert odd["node-009"] == ["ib.port"]
    assert "ib.missing" in odd["node-011"]
    assert odd["node-013"] == ["ib.port"]
    assert odd["node-014"] == ["roce.gid"]
    assert odd["node-017"] == ["host.boot"]
    assert odd["node-019"] == ["numa.devices"]
    assert "ib.missing" in odd["node-022"]


def test_healthy_nodes_differ_in_nothing() -> None:
    judged = judge(cohort({}, nodes=6), registered())
    assert judged.status is Status.OK
    assert not judged.causes
