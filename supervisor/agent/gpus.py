"""Who holds memory of this node's GPUs, as their drivers say; asked in a child: a driver may hang.

`python -m supervisor.agent.gpus ROOT` prints [[GPU, pid, bytes], …] as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from healthchecks.accelerators.makers import EVERY
from supervisor import proc
from supervisor.host import procfs
from supervisor.host.log import counted

logger = logging.getLogger(__name__)

LOOK_S = 10.0  # a look: interpreter, library, each GPU's first call without persistence mode
FREE_S = 20.0  # the driver frees a GPU's memory within seconds of its process's end
AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that computes on a GPU."""

    gpu: int
    pid: int
    held: int  # bytes; 0 where the driver does not tell

    def text(self) -> str:
        name = procfs.name(self.pid) or "not seen in /proc"
        size = f" {self.held / 2**30:.1f} GiB of" if self.held else ""
        return f"process {self.pid} ({name}) holds{size} gpu{self.gpu}"


async def holders(root: str = "/") -> list[Holder]:
    """None where no driver of GPUs is loaded, or where it does not answer: checks say that."""
    if not any((Path(root) / maker.loaded).exists() for maker in EVERY):
        return []
    argv = (sys.executable, "-I", "-m", "supervisor.agent.gpus", root)
    if proc.stuck(argv):
        return []
    done = await proc.run(argv, deadline_s=LOOK_S)
    try:
        if done.rc != 0:
            raise ValueError(done.why())
        return [Holder(gpu=int(g), pid=int(p), held=int(b)) for g, p, b in json.loads(done.out)]
    except (ValueError, TypeError) as error:
        text = "who holds the GPUs can't be told"
        logger.warning(f"{text}: {error}", extra=counted(text))
        return []


async def until_free(
    ours: Callable[[], set[int]], root: str = "/"
) -> tuple[list[Holder], list[Holder]]:
    """Wait until no process of `ours` holds a GPU; those that still do, and others' that do."""
    end = time.monotonic() + FREE_S
    while True:
        found = await holders(root)
        own = ours() if found else set()
        mine = [one for one in found if one.pid in own]
        if not mine or time.monotonic() > end:
            return mine, [one for one in found if one.pid not in own]
        await asyncio.sleep(AGAIN_S)


def _ask(root: str) -> list[tuple[int, int, int]]:
    from healthchecks.frame.check import Skip
    from healthchecks.frame.context import Ctx, Memory

    now = time.time()
    ctx = Ctx(root=Path(root), node="", now=now, boot_id="", memory=Memory({}, now))
    found = []
    for maker in EVERY:
        if (Path(root) / maker.loaded).exists():
            with suppress(Skip):
                found += [(one.index, one.pid, one.held) for one in maker.processes(ctx)]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask(sys.argv[1])) + "\n")
