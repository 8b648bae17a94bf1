"""Processes that a look at /proc has shown: they may have ended since."""

from __future__ import annotations

import contextlib
import os
import signal

from supervisor.host import procfs


def send(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process, unless it is gone. Where it has to be there, `os.kill` says so."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """Its children's pids, ended ones too."""
    return [found.pid for found in procfs.processes() if found.parent == pid]
