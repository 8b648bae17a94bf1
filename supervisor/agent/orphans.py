"""Processes of ranks that nothing else names: daemons that forked twice, left their session and
emptied their environment.

The agent is the subreaper (prctl(2)) of all that it started: whatever loses its parent becomes the
agent's own child, and is written down for an agent that comes after. What lost its parent while
there was no agent is found by its cgroup: that of the Slurm step that agent and ranks run in, where
Slurm tracks steps so (proctrack/cgroup), or one that the agent made for the attempt. Where there is
neither, such a daemon can't be known.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from supervisor import proc
from supervisor.agent import tree
from supervisor.agent.attempt_cgroup import AttemptCgroups, writable_base
from supervisor.agent.node_files import NodeFiles
from supervisor.host import procfs

logger = logging.getLogger(__name__)

TABLE = "orphans.json"
_PR_SET_CHILD_SUBREAPER = 36
_KTHREADD = 2  # pid of the parent of the kernel's own
_STEP = re.compile(r"\S*/job_\d+/step_[^/\s]+")  # how Slurm names cgroups, in versions 1 and 2


def become_subreaper() -> None:
    """Every descendant of this process that loses its parent becomes its child."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Orphans:
    """Living processes that ranks of this node left behind.

    `ranks` are the pids of ranks that live, `others` those of the run that are no ranks: a starter
    and what it has forked ahead.
    """

    def __init__(
        self,
        files: NodeFiles,
        run_id: str,
        node: str,
        *,
        ranks: Callable[[], frozenset[int]],
        others: Callable[[], frozenset[int]],
    ) -> None:
        self._files, self._ranks, self._others = files, ranks, others
        self._known: dict[int, int] = {}  # pid → start time
        self._no_ranks: dict[int, int] = {}  # the same, of what health checks left behind
        self._steps = _steps(os.getpid())
        base = writable_base() if not self._steps else None
        self.cgroups = AttemptCgroups(run_id, node, base)
        self._surely = bool(self._steps) or base is not None
        with contextlib.suppress(OSError, ValueError, TypeError):
            self._known = {int(pid): int(at) for pid, at in json.loads(self._path.read_bytes())}

    @property
    def _path(self) -> Path:
        return self._files.folder / TABLE

    @property
    def complete(self) -> bool:
        """Whether what was orphaned while there was no agent is found too."""
        return self._surely

    def look(self) -> None:
        """Take note of those that came since. Costs one look at this process's children."""
        before = dict(self._known)
        for pid in procfs.children(os.getpid()) - proc.children():
            stat = procfs.stat(pid)
            if stat is None or pid in self._ranks():
                continue
            if not stat.alive:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            elif stat.started not in (self._known.get(pid), self._no_ranks.get(pid)):
                of_checks = procfs.environ_has(pid, f"{tree.MARK}={tree.CHECKS}")
                (self._no_ranks if of_checks else self._known)[pid] = stat.started
        self._no_ranks = _living(self._no_ranks)
        self._known = _living(self._known)
        if self._known != before:
            try:
                self._files.write(self._path, json.dumps([*self._known.items()]).encode())
            except OSError as error:
                logger.warning(f"orphans can't be written down for the next agent: {error}")

    def find(self) -> frozenset[int]:
        """Their pids."""
        self.look()
        return frozenset(self._known) | self._in_step() | self.cgroups.pids()

    def _in_step(self) -> frozenset[int]:
        """All of this user's in the step, but agent, starter, checks, and who started them."""
        if not self._steps:
            return frozenset()
        table = {one.pid: one for one in procfs.processes()}
        ours = set(self._no_ranks) | self._others() | {os.getpid()}
        ours |= proc.children() - self._ranks()
        above = table.get(os.getpid())
        while above is not None:
            ours.add(above.pid)
            above = table.get(above.parent)
        helpers = proc.children() - self._ranks() - self._others()
        grew = True
        while grew:  # what checks have forked
            more = {p for p, one in table.items() if one.parent in helpers and p not in helpers}
            grew, helpers = bool(more), helpers | more
        return frozenset(
            pid
            for pid in table.keys() - ours - helpers
            if table[pid].parent != _KTHREADD
            and procfs.real_uid(pid) == os.getuid()
            and self._steps & _steps(pid)
            and not procfs.environ_has(pid, f"{tree.MARK}={tree.CHECKS}")
        )


def _living(table: dict[int, int]) -> dict[int, int]:
    return {pid: at for pid, at in table.items() if procfs.alive(pid, at)}


def _steps(pid: int) -> frozenset[str]:
    """The Slurm step that a process is in, by each cgroup hierarchy that tells it."""
    lines = procfs.cgroups(pid)
    return frozenset(found[0] for line in lines if (found := _STEP.match(line)))
