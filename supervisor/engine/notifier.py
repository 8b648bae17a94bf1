"""Calls the commands of `notify`: each in a child with a deadline, once for each thing to tell."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from supervisor import proc
from supervisor.core import events as ev
from supervisor.core.notices import document, untold
from supervisor.engine.loop import Engine

EVERY_S = 1.0
DEADLINE_S = 15.0  # for a command; one that takes longer is killed, and its end not waited for
AT_ONCE = 4  # commands that run beside each other


class Notifier:
    """Tells people what happens to the engine's run."""

    def __init__(self, engine: Engine, commands: Sequence[tuple[str, ...]]) -> None:
        self._engine, self._commands = engine, commands
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._calls: set[asyncio.Task[None]] = set()

    async def follow(self) -> None:
        """Look again and again; never returns."""
        while True:
            self.look()
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        """Begin to tell what is not told yet."""
        engine = self._engine
        if not self._commands or engine.failed:
            return
        now, seen = engine.now(), engine.view()
        for notice in untold(engine.run, now, seen):
            told = document(engine.run, notice, now, seen, engine.job_file)
            engine.apply(ev.Notified(at=now, key=notice.key, text=notice.text))
            engine.sync()
            for command in self._commands:
                call = asyncio.ensure_future(self._call(notice.key, command, told))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    async def _call(self, key: str, command: tuple[str, ...], told: dict[str, object]) -> None:
        async with self._turn:
            if proc.stuck(command):
                why = "an earlier call of it still hangs"
            else:
                data = json.dumps(told).encode() + b"\n"
                done = await proc.run(command, stdin=data, deadline_s=DEADLINE_S)
                why = "" if done.rc == 0 else done.why()
        if why and not self._engine.failed:
            self._engine.apply(ev.NotifyFailed(at=self._engine.now(), key=key, why=why))

    async def finish(self) -> None:
        """Tell how the run ended, and wait for what was begun, up to its deadline."""
        self.look()
        if self._calls:
            await asyncio.wait(self._calls, timeout=DEADLINE_S + 1.0)
