"""`python -m supervisor.agent KEYS NODE_DIR`: waits for its keys, takes the node, lives.

Keys come by a file that superv delivers to node-local disk; nothing here reads shared storage
once the modules are imported.

On the node stay, for a look afterwards: NODE_DIR with the agent's log and the ranks' logs of the
last ten attempts. The key file is removed when the agent is told that the run has ended.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - else the first look-up of a name imports it
import encodings.idna  # noqa: F401 - and this
import fcntl
import os
import stat
import sys
import time
import traceback
from pathlib import Path

from supervisor import wire
from supervisor.agent import node
from supervisor.agent.agent import ALREADY_RUNNING, Agent
from supervisor.core.errors import UserError

KEYS_WAIT_S = 300.0  # sbcast follows the start of the job within seconds
KEYS_SETTLE_S = 2.0  # a key file that is just being written is not judged
KEYS_LOOK_S = 0.05
BUG = 70  # exit code


def wait_for_keys(path: Path) -> wire.Keys:
    """Raises UserError where none come, or where the file is not to be trusted."""
    deadline = time.monotonic() + KEYS_WAIT_S
    judged: float | None = None
    while True:
        try:
            return wire.read_keys(str(path))
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: no keys came within {KEYS_WAIT_S:.0f} s") from None
        except UserError:
            judged = judged or time.monotonic()
            if time.monotonic() - judged > KEYS_SETTLE_S:
                raise
        time.sleep(KEYS_LOOK_S)


def take_node(node_dir: Path) -> int | None:
    """Make the run's directory on this node and lock it; None where another agent has it.

    Raises UserError where it can't be made or is not to be trusted.
    """
    try:
        node_dir.mkdir(mode=0o700, exist_ok=True)
        info = node_dir.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise UserError(f"{node_dir}: must be a directory of mode 0700, owned by you")
        lock = os.open(node_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def main(argv: list[str]) -> int:
    os.chdir("/")
    keys_path, node_dir = Path(argv[0]), Path(argv[1])
    memory = node.lock_memory()
    try:
        lock = take_node(node_dir)
        if lock is None:
            print("an agent of this run is on this node already", flush=True)  # noqa: T201
            return ALREADY_RUNNING
        keys = wait_for_keys(keys_path)
        return asyncio.run(_live(keys_path, keys, node_dir, memory))
    except UserError as error:
        print(f"superv agent: {error}", flush=True)  # noqa: T201
        return 2
    except Exception as error:
        crash(error)
        return BUG


async def _live(keys_path: Path, keys: wire.Keys, node_dir: Path, memory: str) -> int:
    job_id = os.environ.get("SLURM_JOB_ID", "")
    return await Agent(keys_path, keys, node_dir, job_id, memory).run()


def crash(error: BaseException) -> None:
    """Say where a bug is, without its source lines: their files may be on storage that hangs."""
    lines = [f"superv agent: a bug: {type(error).__name__}: {error}"]
    for frame, number in traceback.walk_tb(error.__traceback__):
        lines.append(f"  {frame.f_code.co_filename}:{number} {frame.f_code.co_name}")
    print("\n".join(lines), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
