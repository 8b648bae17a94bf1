"""Cgroups of a lab: those that a strict lab's nodes live in, and those that hold a node short.

They lie at the top of each version 1 hierarchy and are called after lab and node, so that they are
found again without a record.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from lab import node as nodes
from lab.layout import CONTROLLER, Layout
from supervisor.core.errors import UserError

ROOT = Path("/sys/fs/cgroup")
SLURMS = ("freezer", "cpuset")  # hierarchies that proctrack/cgroup and task/cgroup use
LIMITS = ("cpu", "memory")  # hierarchies of the lab's own faults


def prefix(layout: Layout) -> str:
    """What the names of a lab's cgroups begin with; no lab's name holds a dot."""
    return f"superv-lab.{layout.name}."


def group(layout: Layout, controller: str, node: str) -> Path:
    return ROOT / controller / f"{prefix(layout)}{node}"


def check(controller: str, *, what: str) -> None:
    """UserError unless the controller is there with cgroup version 1."""
    if not (ROOT / controller / "tasks").exists():
        raise UserError(
            f"{what} needs the cgroup controller {controller} in version 1 at {ROOT}/{controller}, "
            "which this machine has not; on systemd machines boot with "
            "systemd.unified_cgroup_hierarchy=0"
        )


def put(layout: Layout, controller: str, node: str) -> Path:
    """Move all of a node into a cgroup of its own; what it starts later follows by itself."""
    there = group(layout, controller, node)
    there.mkdir(exist_ok=True)
    _move(layout, node, there)
    return there


def release(layout: Layout, controller: str, node: str) -> None:
    """Move all of a node back to where the lab's controller is, and remove its cgroup."""
    there = group(layout, controller, node)
    if not there.exists():
        return
    if controller == "cpu":  # who has used up the quota is let go before it moves
        (there / "cpu.cfs_quota_us").write_text("-1")
    ctl = nodes.init_pid(layout, CONTROLLER)
    rows = Path(f"/proc/{ctl}/cgroup").read_text().splitlines() if ctl else []
    at = next((row.split(":", 2)[2] for row in rows if row.split(":")[1] == controller), "/")
    _move(layout, node, ROOT / controller / at.lstrip("/"))
    if left := _removed(there):
        raise RuntimeError(f"cgroup {left} is still in use")


def _move(layout: Layout, node: str, to: Path, deadline_s: float = 5) -> None:
    """Until nothing of the node is elsewhere: a process may fork before it was moved."""
    end = time.monotonic() + deadline_s
    while True:
        inside = set((to / "cgroup.procs").read_text().split())
        late = {str(p.pid) for p in nodes.processes(layout, [node])} - inside
        if not late:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"processes {sorted(late)} of {node} could not be moved to {to}")
        for pid in late:
            with contextlib.suppress(ProcessLookupError):
                (to / "cgroup.procs").write_text(pid)


def remove(layout: Layout, node: str | None = None) -> list[Path]:
    """Remove the cgroups of a lab, or of one node, that nobody is in; returns the others."""
    name = f"{prefix(layout)}{node or '*'}"
    found = [path for c in (*SLURMS, *LIMITS) for path in (ROOT / c).glob(name)]
    return [path for path in found if _removed(path)]


def _removed(path: Path) -> Path | None:
    """Remove a cgroup with all below it; returns it if that did not succeed yet."""
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):  # busy, or gone by Slurm's own hand
            Path(folder).rmdir()
    return path if path.exists() else None
