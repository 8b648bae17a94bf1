"""Nodes that get less of the machine: CPU time and memory, by cgroup version 1."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lab import cgroups, faults
from lab import node as nodes
from lab.layout import Layout
from supervisor.core.errors import UserError

_PERIOD_US = 20_000  # short, so that what is stolen is not one long pause in ten


def _on(layout: Layout, node: str) -> None:
    if nodes.init_pid(layout, node) is None:
        raise UserError(f"node {node} of lab {layout.name} is off; superv lab poweron {node}")


def steal(layout: Layout, node: str, percent: float) -> faults.InjectedFault:
    """Leave a node only the rest of the machine's CPU time (a quota: what is idle is not given).

    Raises:
        UserError: not a share, the node is off, or cgroup version 1 is missing.
    """
    if not 0 < percent <= 99:
        raise UserError(f"{percent:g} percent: more than 0, at most 99; superv lab relieve {node}")
    cgroups.check("cpu", what="steal")
    _on(layout, node)
    quota_us = int(_PERIOD_US * (os.cpu_count() or 1) * (100 - percent) / 100)
    at = time.time()
    group = cgroups.put(layout, "cpu", node)
    (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
    (group / "cpu.cfs_quota_us").write_text(str(max(1000, quota_us)))  # the kernel's least
    return faults.log(layout, at=at, fault="steal", node=node, detail=f"{percent:g}%")


def memory(layout: Layout, node: str, mib: int) -> faults.InjectedFault:
    """Let a node take so much more memory and no more; beyond, the kernel's OOM killer comes.

    What the node's processes had before is not counted: version 1 leaves it with their old group.

    Raises:
        UserError: not a size, the node is off, or cgroup version 1 is missing.
    """
    if not 1 <= mib <= 2**24:
        raise UserError(f"{mib} MiB: 1 to {2**24}; superv lab relieve {node}")
    cgroups.check("memory", what="memory")
    _on(layout, node)
    group = cgroups.group(layout, "memory", node)
    at = time.time()
    group.mkdir(exist_ok=True)
    swap = "memory.memsw.limit_in_bytes"  # memory and swap together; never below memory alone
    for name, limit in ((swap, -1), ("memory.limit_in_bytes", mib * 2**20), (swap, mib * 2**20)):
        _limit(group / name, limit, f"memory {node} {mib}")
    cgroups.put(layout, "memory", node)
    return faults.log(layout, at=at, fault="memory", node=node, detail=f"{mib} MiB")


def _limit(file: Path, value: int, what: str) -> None:
    if not file.exists():  # a kernel that does not count swap
        return
    try:
        file.write_text(str(value))
    except OSError as error:
        raise UserError(
            f"{what}: the kernel refuses {value} in {file}: {error.strerror}"
        ) from error


def relieve(layout: Layout, node: str) -> faults.InjectedFault:
    """Give a node all of the machine's CPU time and memory again."""
    for controller in cgroups.LIMITS:
        cgroups.release(layout, controller, node)
    return faults.log(layout, at=time.time(), fault="relieve", node=node)
