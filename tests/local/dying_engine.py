"""The run's engine, killed by the kernel right before or right after one kind of action.

    dying_engine.py launch JOB.YAML KIND before|after
    dying_engine.py attach RUN_DIR KIND before|after

"Before": the action is journaled and not begun. "After": it is done, and its result is not
journaled. SIGKILL leaves no time for anything, as a power cut or the OOM killer does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from supervisor.core import events as ev
from supervisor.core.actions import Action, Leave
from supervisor.engine import launching, process
from supervisor.run import folder

HOW, WHAT, KIND, WHEN = sys.argv[1:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingEffects(process.Effects):
    def perform(self, action: Action) -> None:
        if WHEN == "before" and type(action).__name__ == KIND:
            die()
        super().perform(action)


class DyingEngine(process.Engine):
    def apply(self, event: ev.Event) -> None:
        if WHEN == "after" and self._answers(event) == KIND:
            die()
        super().apply(event)

    def _answers(self, event: ev.Event) -> str:
        """The kind of the action that this event is the result of."""
        if isinstance(event, ev.AgentLeft):
            return Leave.__name__
        if isinstance(event, ev.Waiting):
            return ""
        action = self.run.pending.get(getattr(event, "key", ""))
        return type(action).__name__


process.Effects, process.Engine = DyingEffects, DyingEngine  # type: ignore[misc]
if HOW == "launch":
    launching.ensure_engine = lambda run, request=None: True
    run = launching.launch(Path(WHAT), os.environ).run
else:
    run = folder.RunDir(Path(WHAT))
ready, tell = os.pipe()
asyncio.run(process.engine_main(run, tell))
