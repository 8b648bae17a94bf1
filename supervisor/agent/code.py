"""The copy of the trainer's code on this node's disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path

import msgspec

from supervisor.snapshot import CODE, unpack
from supervisor.wire import Job, code_path

ARRIVE_S = 30.0  # it is sent just before the keys
LOOK_S = 0.1


def at_home(job: Job, node_dir: Path) -> Job:
    """The job with the copy's folder on this node where its mark stands."""
    if not job.code:
        return job
    home = str(node_dir / "code" / job.code)
    return msgspec.structs.replace(
        job,
        fresh=tuple(word.replace(CODE, home) for word in job.fresh),
        resumed=tuple(word.replace(CODE, home) for word in job.resumed),
        env={name: value.replace(CODE, home) for name, value in job.env.items()},
        path=job.path.replace(CODE, home),
    )


def forget(node_dir: Path) -> None:
    """Remove the copies: they are read-only, which keeps their owner from a plain rm -r."""
    for folder, _, _ in os.walk(node_dir / "code"):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(node_dir / "code", ignore_errors=True)


async def arrive(keys_path: Path, digest: str, node_dir: Path) -> str:
    """Wait for the packed code and unpack it; returns what went wrong, in one line."""
    archive = Path(code_path(str(keys_path), digest))
    deadline = time.monotonic() + ARRIVE_S
    while True:
        try:
            await asyncio.to_thread(unpack, archive, node_dir / "code", digest)
        except FileNotFoundError:
            if time.monotonic() < deadline:
                await asyncio.sleep(LOOK_S)
                continue
            return f"{archive}: the trainer's code did not come within {ARRIVE_S:.0f} s"
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            return f"the trainer's code can't be unpacked in {node_dir}: {why}"
        return ""
