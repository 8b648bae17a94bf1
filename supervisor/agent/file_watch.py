"""Looks after the agent's files; says what somebody removed, and what can't be restored."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from supervisor.agent.node_files import NodeFiles
from supervisor.agent.rank_supervisor import RankSupervisor
from supervisor.core.errors import UserError
from supervisor.core.events import FilesRestored
from supervisor.host.log import Tally, counted

logger = logging.getLogger(__name__)

TOUCH_S = 600.0  # cleaners look at ages of an hour and more
LOOK_AT_CODE_S = 60.0  # some thousand names, 2 µs each


class FileWatch:
    """`look` is called every second; `problem` is why files are gone for good, or empty."""

    def __init__(
        self,
        node: str,
        files: NodeFiles,
        ranks: RankSupervisor,
        *,
        report: Callable[[FilesRestored], None],
        background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._node, self._files, self._ranks = node, files, ranks
        self._report, self._background = report, background
        self._touched = self._code_seen = time.monotonic()
        self._shown = Tally()  # somebody may clean without end
        self.problem = ""
        ranks.on_restored = self.restored

    def look(self) -> None:
        """A look at some names. All of the trainer's code is looked at less often, and at once
        where anything else was missing."""
        now = time.monotonic()
        self._ranks.receive_again()
        try:
            found = self._ranks.restore()
        except (OSError, UserError) as error:
            self.problem = f"files of superv on this node are gone and can't be restored: {error}"
            logger.error(self.problem, extra=counted(self.problem))
            return
        self.problem = ""
        if found:
            self.restored(found)
        if found or now - self._touched > TOUCH_S:
            self._touched = now
            self._background(asyncio.to_thread(self._files.touch))
        if found or now - self._code_seen > LOOK_AT_CODE_S:
            self._code_seen = now
            self._background(self._repair_code())

    async def _repair_code(self) -> None:
        try:
            if found := await self._ranks.repair_code():
                self.restored(found)
        except (OSError, ValueError) as error:
            self._code_seen = float("-inf")  # at once again: a cleaner may be at work
            text = f"the trainer's code on this node is not whole and can't be repaired: {error}"
            logger.error(text, extra=counted(text))

    def restored(self, names: list[str]) -> None:
        """Somebody removed these, and they are there again."""
        text = f"somebody removed files of superv on this node; made again: {', '.join(names)}"
        logger.warning(text, extra=counted(text))
        if self._shown.note(text):
            self._report(FilesRestored(at=time.time(), node=self._node, files=tuple(names)))
