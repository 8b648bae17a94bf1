"""Running out of descriptors, memory or processes: a state of the machine that passes, and no bug.

Other users can bring it about, by filling a machine or by calling the engine's port in a crowd. So
whatever lives for months takes it for what it is: it says so, thinned out, and tries again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
from collections.abc import Awaitable, Callable

from supervisor.host.log import counted

logger = logging.getLogger(__name__)

# open(2), accept(2), fork(2), mmap(2), pidfd_open(2): what each says when there is none left
ERRNOS = {
    errno.EMFILE: "no descriptor is left to this process (ulimit -n)",
    errno.ENFILE: "no descriptor is left on this machine (fs.file-max)",
    errno.ENOMEM: "no memory is left",
    errno.ENOBUFS: "no memory is left for sockets",
    errno.EAGAIN: "no process or thread can be made now (ulimit -u)",
}
_THREAD = "can't start new thread"  # CPython's RuntimeError where pthread_create fails
PAUSE_S = 1.0


def shortage(error: BaseException | None) -> str:
    """What has run out, in words; empty where the exception says something else."""
    if isinstance(error, MemoryError):
        return ERRNOS[errno.ENOMEM]
    if isinstance(error, RuntimeError) and _THREAD in str(error):
        return ERRNOS[errno.EAGAIN]
    number = getattr(error, "errno", None)  # OSError; zmq.ZMQError has one too
    return ERRNOS.get(number, "") if isinstance(number, int) else ""


def passes(error: BaseException | None, what: str) -> bool:
    """Whether it is a shortage; then it is logged, thinned out, and nobody ends for it."""
    why = shortage(error)
    if why:
        logger.warning(f"{what}: {why}; it is tried again", extra=counted(f"{what}: {why}"))
    return bool(why)


async def lasting(part: Callable[[], Awaitable[None]]) -> None:
    """Run a part that has no end, again and again where a shortage ended it."""
    while True:
        try:
            await part()
            return
        except Exception as error:
            if not passes(error, getattr(part, "__name__", "a part").strip("_")):
                raise
        await asyncio.sleep(PAUSE_S)


def raise_descriptor_limit() -> int:
    """Take as many descriptors as the system allows this process; returns how many.

    Sessions start with 1024 for the sake of select(2), which nothing here uses on many of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
