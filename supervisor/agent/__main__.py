"""`python -m supervisor.agent KEYS NODE_DIR`: waits for its keys, takes the node, lives.

Keys come by a file that superv delivers to node-local disk; nothing here reads shared storage
once the modules are imported.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from pathlib import Path

from supervisor import wire
from supervisor.agent.agent import ALREADY_RUNNING, Agent
from supervisor.core.errors import UserError

KEYS_WAIT_S = 300.0  # sbcast follows the start of the job within seconds
KEYS_LOOK_S = 0.05


def wait_for_keys(path: Path) -> wire.Keys:
    """Raises UserError where none come, or where the file is not to be trusted."""
    deadline = time.monotonic() + KEYS_WAIT_S
    while True:
        try:
            return wire.read_keys(str(path))
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: no keys came within {KEYS_WAIT_S:.0f} s") from None
            time.sleep(KEYS_LOOK_S)


def take_node(node_dir: Path) -> int | None:
    """Make the run's directory on this node and lock it; None where another agent has it."""
    node_dir.mkdir(mode=0o700, exist_ok=True)
    info = node_dir.lstat()
    if info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise UserError(f"{node_dir}: must be a directory of mode 0700, owned by you")
    lock = os.open(node_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def main(argv: list[str]) -> int:
    os.chdir("/")
    keys_path, node_dir = Path(argv[0]), Path(argv[1])
    try:
        lock = take_node(node_dir)
        if lock is None:
            print("an agent of this run is on this node already", flush=True)  # noqa: T201
            return ALREADY_RUNNING
        keys = wait_for_keys(keys_path)
    except UserError as error:
        print(f"superv agent: {error}", flush=True)  # noqa: T201
        return 2
    # From here on output goes to local disk: srun's way out may end on storage that hangs.
    log = os.open(node_dir / "agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    job_id = os.environ.get("SLURM_JOB_ID", "")
    return asyncio.run(_live(keys_path, keys, node_dir, job_id))


async def _live(keys_path: Path, keys: wire.Keys, node_dir: Path, job_id: str) -> int:
    return await Agent(keys_path, keys, node_dir, job_id).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
