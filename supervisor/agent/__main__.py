"""`python -m supervisor.agent`: waits for its keys, takes the node, lives.

Keys and code come by files that superv delivers to the allocation's private folder on node-local
disk, which the variable SUPERV_NODE_FOLDER names; nothing here reads shared storage once the
modules are imported. `python -m supervisor.agent KEYS NODE_DIR` is how superv 0.1 called it:
allocations that it made live on.

On the node stay, for a look afterwards, the agent's log and the ranks' logs of the last ten
attempts; folders in which nothing was written for 30 days go. Keys, code and the trainer's
environment are removed when the agent is told that the run has ended, and by the next agent of the
same user where it was killed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - else the first look-up of a name imports it
import contextlib
import encodings.idna  # noqa: F401 - and this
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from supervisor import signatures
from supervisor.agent import node, node_files
from supervisor.agent.agent import ALREADY_RUNNING, Agent
from supervisor.agent.mailbox import Mailbox, Mailbox01, forget_the_dead
from supervisor.agent.node_files import NodeFiles
from supervisor.agent.orphans import become_subreaper
from supervisor.channel import delivery, node_folders, wire
from supervisor.core.errors import UserError
from supervisor.host import private
from supervisor.host.log import where

KEYS_WAIT_S = 300.0  # sbcast follows the start of the job within seconds
KEYS_SETTLE_S = 2.0  # a key file that is just being written is not judged
KEYS_POLL_S = 0.05
BUG = 70  # exit code


def wait_for_keys(mailbox: Mailbox | Mailbox01, files: NodeFiles) -> wire.Keys:
    """Raises UserError where none come, or where the file is not to be trusted."""
    where = files.folder.parent
    deadline = time.monotonic() + KEYS_WAIT_S
    judged: float | None = None
    while True:
        try:
            return mailbox.keys()
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise UserError(f"{where}: no keys came within {KEYS_WAIT_S:.0f} s") from None
        except UserError:
            judged = judged or time.monotonic()
            if time.monotonic() - judged > KEYS_SETTLE_S:
                raise
        with contextlib.suppress(OSError):
            files.restore()  # keys come into the folder, if it is there
        time.sleep(KEYS_POLL_S)


def places(argv: list[str], environ: Mapping[str, str]) -> tuple[Mailbox | Mailbox01, Path]:
    """Where deliveries come, and the agent's own folder. Raises UserError."""
    if len(argv) == 2:
        return Mailbox01(Path(argv[0])), Path(argv[1])
    home = Path(environ.get(delivery.VARIABLE, ""))
    if not home.is_absolute():
        raise UserError(f"{delivery.VARIABLE} names no folder; superv starts agents by itself")
    try:
        private.folder(home)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    return Mailbox(home), home / (environ.get("SLURMD_NODENAME") or socket.gethostname())


def main(argv: list[str]) -> int:
    os.chdir("/")
    become_subreaper()
    memory = node.lock_memory()
    signatures.load()  # while storage answers: a rank's last lines are held against them
    try:
        mailbox, node_dir = places(argv, os.environ)
        lock = node_files.take(node_dir)
        if lock is None:
            print("an agent of this run is on this node already", flush=True)  # noqa: T201
            return ALREADY_RUNNING
        if isinstance(mailbox, Mailbox):
            forget_the_dead(mailbox.home)
            threading.Thread(target=remove_old, args=(mailbox.home,), daemon=True).start()
        home = mailbox.home if isinstance(mailbox, Mailbox) else None
        files = NodeFiles(home, node_dir, lock)
        keys = wait_for_keys(mailbox, files)
        return asyncio.run(_live(mailbox, keys, files, memory))
    except UserError as error:
        print(f"superv agent: {error}", flush=True)  # noqa: T201
        return 2
    except Exception as error:
        crash(error)
        return BUG


def remove_old(home: Path) -> None:
    """What older allocations left here and nobody asks for any more; nothing waits for it."""
    with contextlib.suppress(OSError):
        node_folders.remove_old(home, time.time() - node_folders.KEPT_S)


async def _live(
    mailbox: Mailbox | Mailbox01, keys: wire.Keys, files: NodeFiles, memory: str
) -> int:
    job_id = os.environ.get("SLURM_JOB_ID", "")
    return await Agent(mailbox, keys, files, job_id, memory).run()


def crash(error: BaseException) -> None:
    """Say where a bug is, without its source lines: their files may be on storage that hangs."""
    print(f"superv agent: a bug: {where(error)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
