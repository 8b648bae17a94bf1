"""`python -m supervisor.checkpoints serve FD`: how an engine of superv 0.1 asks about storage.

Such an engine is running on after an upgrade in place, and starts this by its old name. It is
answered in its own words: a child for each question, its pid on a line, then the answer; no more.
This module goes with the release after 0.2.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import asdict
from typing import Any

from supervisor.checkpoints import retention
from supervisor.checkpoints.dcp import (
    REQUIRED,
    CheckpointScan,
    CheckpointState,
    listing,
    verify,
)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What superv 0.1 expects of a child: `answer`, or `error`, why it could not look."""
    command, path = question["command"], question["path"]
    if command not in ("scan", "verify"):
        return retention.answer(question)
    required = tuple(question.get("required", REQUIRED))
    try:
        if command == "verify":
            exists, found = True, [verify(path, required)]
        else:
            there = listing(path, above=question.get("above", -1))
            exists, found = there.exists, [verify(one, required) for one in there.paths]
    except OSError as error:
        return {"error": f"{error.filename or path}: {error.strerror}"}
    known = tuple(one for one in found if one.state is not CheckpointState.FOREIGN)
    return {"answer": asdict(CheckpointScan(directory=path, exists=exists, found=known))}


def serve(fd: int) -> None:
    """Fork a child for every question on a SOCK_SEQPACKET socket, until its other end closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    with socket.socket(fileno=fd) as link:
        while True:
            data, fds, _, _ = socket.recv_fds(link, 1 << 16, 1)
            if not data:
                return
            if os.fork():
                os.close(fds[0])
                continue
            link.close()
            with os.fdopen(fds[0], "wb") as out:
                out.write(b"%d\n" % os.getpid())
                out.flush()
                out.write(json.dumps(answer(json.loads(data))).encode())
            os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:2] != ["serve"] or len(sys.argv) != 3:
        sys.exit("supervisor.checkpoints is started by engines of superv 0.1; nothing to do here")
    serve(int(sys.argv[2]))
