"""A cluster of healthy nodes and a few odd ones, as reports of the real checks on trees of files.

Nodes of a kind differ in what is a node's own (addresses, serial numbers, clocks, a little memory):
none of that may look like a defect. Checks whose answer is not in the tree (NVML, commands, the
network, live mounts) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import CheckCall, run_probe
from healthchecks.frame.registry import registered, select
from healthchecks.frame.report import Finding, Report
from tests.hardware import tree_nics
from tests.hardware.tree import Tree, borrowed
from tests.hardware.tree_os import TOTAL_KB

NODES = 63
NOW = 1_764_000_000.0
CHECKS = (
    "cpu.layout",
    "host.boot",
    "ib.missing",
    "ib.pkey",
    "ib.port",
    "ib.sm",
    "mem.size",
    "nfs.mounted",
    "nic.fw",
    "numa.devices",
    "roce.gid",
)


def cohort(
    odd: Mapping[int, Callable[[Tree], Any]], *, nodes: int = NODES, checks: Iterable[str] = CHECKS
) -> dict[str, Report]:
    """Reports by node: node-001 to node-063. `odd`: what is done to the node of a number."""
    wanted = [select([name])[0] for name in checks]
    reports = {}
    for number in range(1, nodes + 1):
        name = f"node-{number:03}"
        with borrowed() as tree:
            own_traits(tree, number)
            if number in odd:
                odd[number](tree)
            findings = []
            for check in wanted:
                ctx = Ctx(
                    root=tree.root,
                    node=name,
                    now=NOW,
                    boot_id=f"boot-{number}",
                    memory=Memory({}, NOW),
                )
                result = run_probe(
                    CheckCall(check=registered()[check.name], on="", options={}), ctx
                )
                findings.append(Finding(check=check.name, result=result))
        reports[name] = Report(node=name, at=NOW, findings=tuple(findings))
    return reports


def own_traits(tree: Tree, number: int) -> None:
    """What makes the node of this number itself."""
    tree.write("proc/sys/kernel/hostname", f"node-{number:03}")
    tree.write("proc/sys/kernel/random/boot_id", f"boot-{number}")
    tree.write("proc/uptime", f"{864000 + 977 * number}.00 103000000.00")
    tree.change("proc/meminfo", f"{TOTAL_KB}", f"{TOTAL_KB - 4 * number}")
    tree.change("proc/self/mountinfo", "clientaddr=10.0.0.17", f"clientaddr=10.0.0.{number}")
    for nic in tree_nics.nics():
        at = f"sys/class/infiniband/{nic.device}"
        tree.write(f"{at}/node_guid", f"{nic.guid[:-4]}{number:02x}{nic.number:02x}")
        if nic.role == "fabric":
            tree.write(f"{at}/ports/1/lid", hex(16 * number + nic.number))
        elif nic.role == "storage":
            for index in (2, 3):
                gid = f"0000:0000:0000:0000:0000:ffff:0a{nic.number:02x}:{number:04x}"
                tree.write(f"{at}/ports/1/gids/{index}", gid)
