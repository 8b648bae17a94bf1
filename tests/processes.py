"""Processes that a look at /proc has shown: they may have ended since."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from supervisor.host import procfs


def send(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process, unless it is gone. Where it has to be there, `os.kill` says so."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """Its children's pids, ended ones too."""
    return [found.pid for found in procfs.processes() if found.parent == pid]


@contextlib.contextmanager
def beside_a_hog() -> Iterator[None]:
    """Leave this process the least of a processor that another program takes: a node in want."""
    cpu = {min(os.sched_getaffinity(0))}
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
        try:
            os.sched_setaffinity(hog.pid, cpu)
            os.sched_setaffinity(0, cpu)
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            yield
        finally:
            hog.kill()
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
