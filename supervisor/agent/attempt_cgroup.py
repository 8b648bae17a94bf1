"""A cgroup for the ranks of each attempt, where an agent may make one.

That is where it runs as root, or in a subtree that is delegated to its user (systemd's user units),
with cgroup version 2. Not below a Slurm step's: that one serves, and Slurm counts what is in it.
Nothing is limited there; whatever ranks start is in it, whoever its parent is.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from supervisor.core import names
from supervisor.host import procfs

PROCESSES = "cgroup.procs"
STALE_S = 60.0  # ranks are in theirs well within this
_OURS = re.compile(r"superv-[0-9a-f]{12}-.+\.a\d{4,}")


class AttemptCgroups:
    """Those of one run on one node; `base` is where they are made, None where that is nowhere."""

    def __init__(self, run_id: str, node: str, base: Path | None) -> None:
        self._base, self._prefix = base, f"superv-{run_id}-{node}."

    def make(self, attempt: int) -> str:
        """What a rank's pid is written to; empty where there is none."""
        if self._base is None:
            return ""
        there = self._base / f"{self._prefix}{names.attempt(attempt)}"
        try:
            there.mkdir(exist_ok=True)
        except OSError:
            return ""
        return str(there / PROCESSES)

    def pids(self) -> frozenset[int]:
        """All that is in them; in cgroups below them, too."""
        found: set[int] = set()
        for group in self._groups():
            for folder, _, _ in os.walk(group):
                with contextlib.suppress(OSError):
                    found.update(int(pid) for pid in Path(folder, PROCESSES).read_text().split())
        return frozenset(found - {0})

    def remove(self) -> None:
        """Those that nobody is in any more."""
        for group in self._groups():
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()

    def remove_stale(self) -> None:
        """Those of any run whose agents were killed: what is empty for a minute is nobody's."""
        for group in self._base.glob("superv-*") if self._base is not None else ():
            with contextlib.suppress(OSError):
                if _OURS.fullmatch(group.name) and time.time() - group.stat().st_mtime > STALE_S:
                    group.rmdir()  # refused where somebody is in it

    def _groups(self) -> list[Path]:
        return [] if self._base is None else sorted(self._base.glob(f"{self._prefix}*"))


def writable_base() -> Path | None:
    """This process's own cgroup, where it may make others in it and move its children there."""
    own = next((line[3:] for line in procfs.cgroups(os.getpid()) if line.startswith("0::")), "")
    for root, mounted in procfs.mounts("cgroup2"):
        if own.startswith("/") and Path(own).is_relative_to(root):
            base = Path(mounted) / Path(own).relative_to(root)
            if os.access(base, os.W_OK | os.X_OK) and os.access(base / PROCESSES, os.W_OK):
                return base
    return None
