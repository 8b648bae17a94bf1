"""The process that answers questions about storage: `python -m supervisor.checkpoints.child FD`.

It forks a child for every question and touches no storage itself. A child may hang, be killed, or
die of what it reads; how it ended is told to whoever asked.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import selectors
import socket
import sys
import time
from dataclasses import asdict
from typing import Any

from supervisor.checkpoints import mark, retention
from supervisor.checkpoints.dcp import REQUIRED, ShardProgress, fingerprint, listing, verify
from supervisor.checkpoints.metadata import limits

SAID_EVERY_S = 0.1
SLOWEST_CRC = 20_000_000  # bytes a second; measured: 900 million


class Said:
    """Lines on how far a child has come, on its way to the answer: `~`, then JSON or nothing."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._at = 0.0

    def progress(self, progress: ShardProgress | None) -> None:
        if progress is not None:
            self._line(json.dumps(asdict(progress)))
        elif time.monotonic() - self._at > SAID_EVERY_S:
            self._line("")

    def alive(self) -> None:
        self.progress(None)

    def _line(self, text: str) -> None:
        self._at = time.monotonic()
        os.write(self._out, b"~%s\n" % text.encode())


def answer(question: dict[str, Any], said: Said) -> dict[str, Any]:
    """What the child says: `answer`, or `error`, why it could not look."""
    command, path = question["command"], question["path"]
    try:
        if command == "verify":
            required = tuple(question.get("required", REQUIRED))
            before = question.get("done")
            done = before and ShardProgress(**{**before, "metadata": tuple(before["metadata"])})
            found = verify(
                path,
                required,
                deep=question.get("deep", False),
                before_parsing=_limit,
                before_reading=_limit_reading,
                progress=said.progress,
                done=done or None,
            )
            return {"answer": asdict(found)}
        if command == "fingerprint":
            return {"answer": fingerprint(path, alive=said.alive)}
        if command == "list":
            return {"answer": asdict(listing(path, above=question.get("above", -1)))}
        if command in ("claim", "release"):
            return mark.answer(question)
    except OSError as error:
        return {"error": f"{error.filename or path}: {error.strerror}"}
    return retention.answer(question)


def serve(fd: int) -> None:
    """Fork a child for every question on a SOCK_SEQPACKET socket, until its other end closes.

    With each question (JSON) comes the descriptor for the answer. Lines on it: the child's pid, at
    once; `~` and how far it has come; the answer as JSON; and from this process `exit N`, N being
    negative for a signal.
    """
    with socket.socket(fileno=fd) as link, selectors.DefaultSelector() as waits:
        waits.register(link, selectors.EVENT_READ)
        while True:
            for key, _ in waits.select():
                if key.fileobj is not link:
                    waits.unregister(key.fileobj)
                    _report_end(key.fd, *key.data)
                    continue
                data, fds, _, _ = socket.recv_fds(link, 1 << 16, 1)
                if not data:
                    return
                if (pid := os.fork()) == 0:
                    link.close()
                    _work(data, fds[0])
                waits.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, fds[0]))


def _report_end(pidfd: int, pid: int, out: int) -> None:
    """Reap a child that has ended, and say how."""
    os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):  # nobody waits for it any more
        os.write(out, b"\nexit %d\n" % os.waitstatus_to_exitcode(status))
    os.close(out)


def _work(question: bytes, out: int) -> None:
    """A child's life. Never returns."""
    code = 1
    try:
        os.write(out, b"%d\n" % os.getpid())
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # where memory is short it goes, and neither engine nor ranks
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        gc.disable()  # a million pieces make no cycles; looking takes half of the time
        with open(out, "wb", closefd=False) as answers:
            said = json.dumps(answer(json.loads(question), Said(out)))
            answers.write(said.encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _limit(size: int) -> None:
    """Bound what reading so many bytes of metadata may take."""
    memory, cpu = limits(size)
    _at_most({resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: cpu})


def _limit_reading(size: int) -> None:
    """Bound what comparing so many bytes with their checksums may take besides."""
    used = int(time.process_time())
    _at_most({resource.RLIMIT_CPU: used + 10 + size // SLOWEST_CRC})


def _at_most(limits: dict[int, int]) -> None:
    for what, most in limits.items():
        _, hard = resource.getrlimit(what)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(what, (most, hard))


if __name__ == "__main__":
    serve(int(sys.argv[1]))
