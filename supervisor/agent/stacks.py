"""Where ranks stand in their code: asked of the faulthandler that their hook has registered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from pathlib import Path

from supervisor.agent.starter import STACKS_SIGNAL
from supervisor.core.types import Evidence
from supervisor.host import procfs

ANSWER_S = 2.0  # the handler writes within milliseconds, unless the process is stopped or in D
FRAMES = 4
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)$')


async def dump(node: str, ranks: dict[int, tuple[int, Path]]) -> list[Evidence]:
    """The innermost frames of the main thread of each rank, given its pid and its stacks file.

    Ask only ranks whose hook has said something: in others the signal would end the process.
    """
    sizes: dict[int, int] = {}
    for rank, (pid, path) in ranks.items():
        with contextlib.suppress(OSError):
            sizes[rank] = path.stat().st_size
            os.kill(_handles(pid), STACKS_SIGNAL)
    deadline = time.monotonic() + ANSWER_S
    texts: dict[int, str] = {}
    while len(texts) < len(sizes) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        for rank in sizes.keys() - texts.keys():
            text = ranks[rank][1].read_text(errors="replace")[sizes[rank] :]
            if text.endswith("\n") and main_thread(text):
                texts[rank] = text
    seen = []
    for rank, (pid, _) in sorted(ranks.items()):
        where = " < ".join(main_thread(texts[rank])) if rank in texts else ""
        state = procfs.state(pid)
        text = where or f"no answer (its process is in state {state})"
        seen.append(
            Evidence(node=node, at=time.time(), source="stack", text=f"rank {rank}: {text}")
        )
    return seen


def _handles(pid: int) -> int:
    """Which process the signal is for: in a container the rank is a child of the runtime's own.

    Raises ProcessLookupError where none has a handler: the signal would end it.
    """
    family = [pid]
    for one in family:
        if procfs.catches(one, STACKS_SIGNAL):
            return one
        family += sorted(procfs.children(one))
    raise ProcessLookupError


def main_thread(dump: str) -> list[str]:
    """The innermost frames of the main thread: faulthandler prints it last."""
    *_, last = re.split(r"^(?:Current t|T)hread 0x.*$", dump, flags=re.MULTILINE)
    frames = [found for line in last.splitlines() if (found := _FRAME.match(line))]
    return [
        f"{found['name']} ({Path(found['file']).name}:{found['line']})" for found in frames[:FRAMES]
    ]
