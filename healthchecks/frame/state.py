"""What is kept on a node between two runs of checks: memories, and the probes that never ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from supervisor.host import procfs, trusted

LOCK_S = 5.0  # another run of checks on this node is shorter than this, or something hangs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """A probe that did not end when it was killed."""

    resource: str
    check: str
    pid: int
    started: int  # clock ticks after boot: tells a pid that was used again
    since: float  # seconds since the epoch
    what: str

    def still_there(self) -> bool:
        return procfs.alive(self.pid, self.started)


@dataclass(slots=True, kw_only=True)
class KeptState:
    """One file of one user on one node."""

    boot_id: str
    memories: dict[str, dict[str, Any]] = field(default_factory=dict)  # by finding name
    stuck: list[Stuck] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)  # the last report of each suite
    # By check, group or all: when a repair was told to be, and from when on it counts here.
    repaired: dict[str, tuple[float, float]] = field(default_factory=dict)
    problem: str = ""  # why what was kept could not be used


def default_folder() -> Path:
    """/var/lib/superv/health for root; for others a folder of their own on local disk.

    Not below /tmp or $TMPDIR, which belong to one job alone (job_container/tmpfs, a prolog): every
    look would be the first.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/superv/health")
    return Path("/var/tmp") / f"superv-health-{os.geteuid()}"  # noqa: S108 - mode 0700, and looked at


def usable(folder: Path) -> None:
    """Make the folder, of mode 0700.

    Raises OSError, also where it is not this user's alone to write: somebody else's, a link (to
    wherever its maker likes), one that others may write to, or, for root, one below a folder of
    another user's.
    """
    if why := trusted.problem(folder.parent, sticky=True):
        raise PermissionError(errno.EACCES, why, str(folder))
    with suppress(FileExistsError):
        folder.mkdir(parents=True, mode=0o700)
    found = os.lstat(folder)
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no folder"
        raise NotADirectoryError(errno.ENOTDIR, f"is {what}: remove it", str(folder))
    if found.st_uid != os.geteuid():
        raise PermissionError(
            errno.EACCES, f"belongs to user {found.st_uid} (mode {mode:04o})", str(folder)
        )
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            errno.EACCES,
            f"others may write to it (mode {mode:04o}): remove it, since they may have put "
            "anything in it",
            str(folder),
        )


def _open(path: Path, flags: int) -> int:
    """A file of the folder itself, never what a link leads to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


@contextmanager
def locked(folder: Path, name: str, wait_s: float = LOCK_S) -> Iterator[bool]:
    """Hold the state of one node; False where another run holds it for too long.

    Raises OSError.
    """
    usable(folder)
    with open(_open(folder / f"{name}.lock", os.O_WRONLY | os.O_CREAT), "w") as lock:
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


def load(folder: Path, name: str, boot_id: str) -> KeptState:
    """The state of the last run; after a boot only what lasts."""
    try:
        with open(_open(folder / f"{name}.json", os.O_RDONLY), encoding="utf-8") as file:
            data = json.loads(file.read())
    except FileNotFoundError:
        return KeptState(boot_id=boot_id)
    except (OSError, ValueError) as error:
        return KeptState(boot_id=boot_id, problem=f"the last run's state is lost: {error}")
    try:
        memories = {str(k): {p: dict(m[p]) for p in m} for k, m in data["memories"].items()}
        repaired = {str(k): (float(a), float(b)) for k, (a, b) in data.get("repaired", {}).items()}
        if data["boot_id"] != boot_id:
            memories = {k: {"lasting": m["lasting"]} for k, m in memories.items() if "lasting" in m}
            return KeptState(boot_id=boot_id, memories=memories, repaired=repaired)
        stuck = [s for s in (Stuck(**row) for row in data["stuck"]) if s.still_there()]
        return KeptState(
            boot_id=boot_id,
            memories=memories,
            stuck=stuck,
            last=dict(data["last"]),
            repaired=repaired,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return KeptState(boot_id=boot_id, problem=f"the last run's state is lost: {error!r}")


def save(folder: Path, name: str, state: KeptState) -> None:
    """Rewrite the state. Raises OSError."""
    data = {
        "boot_id": state.boot_id,
        "memories": state.memories,
        "stuck": [asdict(s) for s in state.stuck],
        "last": state.last,
        "repaired": state.repaired,
    }
    new = folder / f"{name}.json.new"
    new.unlink(missing_ok=True)
    with open(_open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
        file.write(json.dumps(data))
    new.replace(folder / f"{name}.json")
