"""The engine's side of its guardian (guardian.py): each starts the other again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor import proc
from supervisor.engine import guardian
from supervisor.run.folder import RunDir

if TYPE_CHECKING:
    import subprocess  # noqa: TID251 - for the type of a child only; supervisor.proc starts it

logger = logging.getLogger(__name__)

AGAIN_S = 5.0  # a guardian that was ended is replaced after this, and not faster


class Guard:
    """One engine's guardian: the one that started it, or one of its own."""

    def __init__(self, run: RunDir, line: int | None) -> None:
        """`line` is a descriptor that leads to the guardian that started this engine."""
        self._run = run
        self._line = socket.socket(fileno=line) if line is not None else None
        if self._line is not None:
            self._line.set_inheritable(False)
        self._child: subprocess.Popen[bytes] | None = None
        self._later: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Have a guardian from now on. Needs a running event loop."""
        if self._line is None:
            try:
                self._start()
            except OSError as error:
                logger.warning(f"no guardian can be started: {error.strerror}")
                self._again()
                return
        assert self._line is not None
        self._line.setblocking(False)
        asyncio.get_running_loop().add_reader(self._line, self._gone)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, open(os.devnull, "wb") as nowhere:
            try:
                self._child = proc.spawn(
                    (
                        *(sys.executable, "-I", "-S", str(Path(guardian.__file__))),
                        *(str(self._run.path), str(theirs.fileno())),
                    ),
                    env=os.environ,
                    cwd="/",
                    stdout=nowhere.fileno(),
                    pass_fds=(theirs.fileno(),),
                )
            except OSError:
                ours.close()
                raise
        self._line = ours

    def _gone(self) -> None:
        """It says nothing: what can be read is its end."""
        assert self._line is not None
        asyncio.get_running_loop().remove_reader(self._line)
        self._line.close()
        self._line = None
        if self._child is not None:
            self._child.poll()
        logger.warning("the guardian is gone; another one is started")
        self._again()

    def _again(self) -> None:
        self._later = asyncio.get_running_loop().call_later(AGAIN_S, self.watch)

    def over(self) -> None:
        """The run has ended, or is somebody else's: no engine is to follow."""
        if self._later is not None:
            self._later.cancel()
        if self._line is None:
            return
        asyncio.get_running_loop().remove_reader(self._line)
        with contextlib.suppress(OSError):
            self._line.send(guardian.OVER)
        self._line.close()
        self._line = None
        if self._child is not None:
            self._child.returncode = 0  # it ends in a moment; nobody waits for it
