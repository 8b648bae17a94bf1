"""What is kept on a node between two runs of checks: memories, and the probes that never ended."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOCK_S = 5.0  # another run of checks on this node is shorter than this, or something hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A probe that did not end when it was killed."""

    resource: str
    check: str
    pid: int
    started: int  # clock ticks after boot, of /proc/PID/stat: tells a pid that was used again
    since: float  # seconds since the epoch
    what: str

    def still_there(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(slots=True, kw_only=True)
class State:
    """One file of one user on one node."""

    boot_id: str
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)  # by finding name
    stuck: list[Stuck] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)  # the last report of each suite
    problem: str = ""  # why what was kept could not be used


def default_folder() -> Path:
    """/var/lib/superv/health for root; for others a folder of their own on local disk."""
    if os.geteuid() == 0:
        return Path("/var/lib/superv/health")
    import tempfile  # 4 ms

    return Path(tempfile.gettempdir()) / f"superv-health-{os.geteuid()}"


def usable(folder: Path) -> None:
    """Make the folder, of mode 0700. Raises OSError, also where it is somebody else's."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid():
        raise PermissionError(13, "belongs to another user", str(folder))


@contextmanager
def locked(folder: Path, name: str, wait_s: float = LOCK_S) -> Iterator[bool]:
    """Hold the state of one node; False where another run holds it for too long.

    Raises OSError.
    """
    usable(folder)
    with open(folder / f"{name}.lock", "w") as lock:
        end = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    yield False
                    return
                time.sleep(0.05)
        yield True


def load(folder: Path, name: str, boot_id: str) -> State:
    """The state of the last run; after a boot only what lasts."""
    try:
        data = json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        return State(boot_id=boot_id)
    except (OSError, ValueError) as error:
        return State(boot_id=boot_id, problem=f"the last run's state is lost: {error}")
    try:
        memories = {str(k): {p: dict(m[p]) for p in m} for k, m in data["memories"].items()}
        if data["boot_id"] != boot_id:
            memories = {k: {"lasting": m["lasting"]} for k, m in memories.items() if "lasting" in m}
            return State(boot_id=boot_id, memories=memories)
        stuck = [s for s in (Stuck(**row) for row in data["stuck"]) if s.still_there()]
        return State(boot_id=boot_id, memories=memories, stuck=stuck, last=dict(data["last"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return State(boot_id=boot_id, problem=f"the last run's state is lost: {error!r}")


def save(folder: Path, name: str, state: State) -> None:
    """Write the state anew. Raises OSError."""
    data = {
        "boot_id": state.boot_id,
        "memories": state.memories,
        "stuck": [asdict(s) for s in state.stuck],
        "last": state.last,
    }
    new = folder / f"{name}.json.new"
    new.write_text(json.dumps(data))
    new.replace(folder / f"{name}.json")
