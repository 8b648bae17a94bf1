"""The agent's own log, on node-local disk and bounded."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

CAP = 4 * 1024 * 1024  # bytes of agent.log; then it becomes agent.log.1, and the older one goes
MAX_TOLD = 1000  # different texts remembered by `once`


class Notes:
    """Writes lines; everything else the process prints goes to the same file.

    A full disk loses lines and nothing else: an agent does not end for want of a log.
    """

    def __init__(self, path: Path, node: str) -> None:
        self._path, self._node = path, node
        self._told: set[str] = set()
        self._open()

    def _open(self) -> None:
        # srun's own way out may end on storage that hangs: nothing is written there from here on.
        log = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def __call__(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
        line = f"{stamp} {self._node} {' '.join(text.splitlines())}\n"
        with contextlib.suppress(OSError):
            os.write(1, line.encode(errors="replace"))
            if os.fstat(1).st_size > CAP:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                self._open()

    def once(self, text: str) -> None:
        """Write it unless it was written before by this agent."""
        if text not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(text)
            self(text)
