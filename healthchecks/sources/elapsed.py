"""How long something else took to answer, on a node whose processors may all be taken."""

from __future__ import annotations

import os
import time

from supervisor.host import procfs


class Elapsed:
    """Counts from when it is made, in a process that has one thread.

    What passed while this process could have run, and had no processor, is not the mount's time
    nor the network's: a slow answer must not be the node's load.
    """

    def __init__(self) -> None:
        self._began, self._waited_s = time.monotonic(), _waited_s()

    def s(self) -> float:
        """Seconds, without those."""
        waited_s = _waited_s() - self._waited_s
        return max(0.0, time.monotonic() - self._began - waited_s)


def _waited_s() -> float:
    return procfs.processor_s(os.getpid())[1]
