"""The copy of the trainer's code on this node's disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from supervisor.channel.wire import RankJob
from supervisor.host import private
from supervisor.run.snapshot import CODE, unpack

ARRIVE_S = 30.0  # it is sent just before the keys
POLL_S = 0.1


def localize(job: RankJob, node_dir: Path) -> RankJob:
    """The job with the copy's folder on this node where its mark stands."""
    if not job.code:
        return job
    home = str(node_dir / "code" / job.code)
    return msgspec.structs.replace(
        job,
        fresh=tuple(word.replace(CODE, home) for word in job.fresh),
        resumed=tuple(word.replace(CODE, home) for word in job.resumed),
        entry=tuple(word.replace(CODE, home) for word in job.entry),
        env={n: v if n in job.secret else v.replace(CODE, home) for n, v in job.env.items()},
        path=job.path.replace(CODE, home),
    )


def remove(node_dir: Path) -> None:
    """Remove the copies: they are read-only, which keeps their owner from a plain rm -r."""
    _make_writable(node_dir / "code")
    shutil.rmtree(node_dir / "code", ignore_errors=True)


def _make_writable(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        with contextlib.suppress(OSError):
            Path(folder).chmod(0o700)


class CodeCopy:
    """The copy, and the archive that it is made from: that stays open, so that whatever a cleaner
    takes can be put back. `archives` says where the archive may have arrived."""

    def __init__(self, archives: Callable[[], list[Path]], digest: str, node_dir: Path) -> None:
        self._archives, self._digest = archives, digest
        self._place, self._home = node_dir / "code", node_dir / "code" / digest
        self.archive: Path | None = None  # where it came
        self._fd = -1
        self._files: dict[str, int] = {}  # of the whole copy: name → time of its last change

    async def receive(self) -> str:
        """Wait for the packed code and unpack it; returns what went wrong, in one line.

        An archive that does not unpack may still be arriving.
        """
        deadline = time.monotonic() + ARRIVE_S
        problem = f"the trainer's code did not come within {ARRIVE_S:.0f} s"
        while True:
            for archive in self._archives():
                try:
                    await asyncio.to_thread(self._unpack, archive)
                    return ""
                except FileNotFoundError:
                    continue
                except (OSError, ValueError, RuntimeError, MemoryError) as error:
                    why = error.strerror if isinstance(error, OSError) else error
                    where = self._place.parent
                    problem = f"the trainer's code can't be unpacked in {where}: {why}"
            if time.monotonic() > deadline:
                return problem
            await asyncio.sleep(POLL_S)

    def _unpack(self, archive: Path) -> None:
        """Raises OSError, ValueError."""
        fd = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            there = self._home.exists()
            unpack(Path(f"/proc/self/fd/{fd}"), self._place, self._digest)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self.archive = fd, archive
        if there:  # of an agent before this one, and perhaps not whole any more
            self._put_back(None)
        else:
            self._files = _files(self._home)

    def packed(self) -> bytes:
        return Path(f"/proc/self/fd/{self._fd}").read_bytes()

    def repair(self) -> list[str]:
        """Put back what is missing of the copy; returns what that was. Raises OSError, ValueError.

        For a thread of its own.
        """
        home = str(self._home)  # a Path for each name would take ten times as long
        if self._fd < 0 or all(os.path.lexists(f"{home}/{name}") for name in self._files):
            return []
        count = self._put_back(self._files)
        return [f"{count} files of the trainer's code"]

    def _put_back(self, files: dict[str, int] | None) -> int:
        """File by file: ranks that run may import from the copy at this very moment."""
        part = self._place / f"{self._digest}.{os.urandom(4).hex()}"
        private.make(self._place.parent)
        self._place.mkdir(mode=0o700, exist_ok=True)
        part.mkdir(mode=0o700)
        try:
            fresh = unpack(Path(f"/proc/self/fd/{self._fd}"), part, self._digest)
            self._files = files or _files(fresh)
            missing = [name for name in self._files if not os.path.lexists(self._home / name)]
            _make_writable(fresh)
            opened: set[Path] = set()
            for name in sorted(missing):
                for folder in (self._home, *reversed((self._home / name).parents)):
                    if folder.is_relative_to(self._home) and folder not in opened:
                        folder.mkdir(mode=0o700, exist_ok=True)
                        folder.chmod(0o700)
                        opened.add(folder)
                times = (time.time_ns(), self._files[name])  # to the starter it is what it was
                os.utime(fresh / name, ns=times, follow_symlinks=False)
                (fresh / name).replace(self._home / name)
            for folder in opened:
                (folder / "__pycache__").mkdir(mode=0o700, exist_ok=True)
            for folder in opened:
                folder.chmod(0o500)
            return len(missing)
        finally:
            _make_writable(part)
            shutil.rmtree(part, ignore_errors=True)


def _files(home: Path) -> dict[str, int]:
    """Every file and link below a folder but for compiled code; when it was last changed."""
    found = {}
    for top, folders, names in os.walk(home):
        here = Path(top)
        links = [name for name in folders if (here / name).is_symlink()]
        if here.name != "__pycache__":
            for path in (here / name for name in (*names, *links)):
                found[str(path.relative_to(home))] = path.lstat().st_mtime_ns
    return found
