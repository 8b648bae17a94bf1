"""`python -m healthchecks`: what srun, ssh and agents run on a node.

Reads an order, one line of JSON on standard input: `{names, tags, settings, node, root, folder,
deadline_s, mark, leash}` (names or tags, the rest optional; a root other than / keeps no
state unless a folder is named), and prints the report as one line of JSON. With a `mark` it prints
the lines of healthchecks/frame/frames.py. With `leash` it ends when its standard input does: that
is how it learns that nobody waits for it any more. Exit code 0 where there is a report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from healthchecks.frame import own
from healthchecks.frame.frames import pieces
from healthchecks.frame.registry import select
from healthchecks.frame.runner import Order, enough_s, run
from healthchecks.frame.state import default_folder
from supervisor.core.errors import UserError
from supervisor.core.setting import OWN_CHECKS

END_MS = 2000  # for a run of checks to end its own children


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # whoever carries this goes away
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with open(0, "rb", buffering=0, closefd=False) as stdin:  # reads nothing beyond the line
            asked = json.loads(stdin.readline() or "{}")
        order, nonce, leash = _order(asked), str(asked.get("mark", "")), bool(asked.get("leash"))
        return _on_leash(order, nonce) if leash else _answer(order, nonce)
    except UserError as error:
        print(f"superv: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ValueError as error:
        print(f"superv: not an order of checks: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _order(asked: dict[str, Any]) -> Order:
    """Raises UserError, ValueError."""
    try:
        names, tags = tuple(asked.get("names", ())), tuple(asked.get("tags", ()))
        own.register(asked.get("settings", {}).get(OWN_CHECKS, {}))
        checks = select(names, tags)
        root, folder = Path(asked.get("root", "/")), asked.get("folder")
        if folder is None and root == Path("/"):
            folder = default_folder()
        return Order(
            checks=checks,
            settings=dict(asked.get("settings", {})),
            tags=() if names else tags,
            root=root,
            node=asked.get("node") or os.environ.get("SLURMD_NODENAME", ""),
            folder=None if folder is None else Path(folder),
            deadline_s=float(asked.get("deadline_s", enough_s(checks))),
        )
    except (AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error


def _answer(order: Order, nonce: str) -> int:
    """Raises UserError."""
    if nonce:
        _say(pieces(nonce, order.node, ""))
    report = run(order)
    text = json.dumps(report.document())
    _say(pieces(nonce, order.node, text) if nonce else [text])
    return 0


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)  # noqa: T201
    sys.stdout.flush()


def _on_leash(order: Order, nonce: str) -> int:
    """Answer in a child, which is ended when standard input ends; the child raises UserError."""
    import select as polls

    child = os.fork()
    if child == 0:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        return _answer(order, nonce)
    ended = os.pidfd_open(child)
    poll = polls.poll()
    poll.register(ended, polls.POLLIN)
    poll.register(0, polls.POLLIN)
    try:
        poll.poll()
    finally:  # also where a signal ends this process
        poll.unregister(0)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # the first may be lost
            os.kill(child, number)  # it is not reaped yet
            if poll.poll(END_MS):
                break
        there, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if there else -signal.SIGKILL  # it can't end: left


if __name__ == "__main__":
    sys.exit(main())
