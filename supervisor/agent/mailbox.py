"""What the engine has sent to this node: keys and code, in the allocation's private folder."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from supervisor.agent import code
from supervisor.channel import delivery, identity, node_folders
from supervisor.channel.wire import Keys, code_path, read_keys
from supervisor.core.errors import UserError


class Mailbox:
    """Deliveries to one allocation's folder on this node."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.kept_keys = home / delivery.KEY

    def keys(self) -> Keys:
        """The newest keys that can be read; older deliveries go.

        Raises FileNotFoundError where none came, UserError where none of them is to be trusted.
        """
        missing: FileNotFoundError | UserError = FileNotFoundError(f"{self.home}: no keys")
        for path in delivery.delivered(self.home, delivery.KEY):
            try:
                found = read_keys(str(path))
            except FileNotFoundError:
                continue
            except UserError as error:  # it may be half written: the one before it serves
                missing = error
                continue
            kept = self.kept_keys
            path.replace(kept)
            for other in delivery.delivered(self.home, delivery.KEY):
                if other != kept and other.lstat().st_mtime_ns <= kept.lstat().st_mtime_ns:
                    other.unlink(missing_ok=True)
            return found
        raise missing

    def archives(self, digest: str) -> list[Path]:
        """Where the packed code may be."""
        return delivery.delivered(self.home, digest)

    def forget(self) -> None:
        """Remove keys and code: the run has ended."""
        forget(self.home)


class Mailbox01:
    """Of an allocation without a private folder, as superv 0.1 made them: one name for each."""

    def __init__(self, keys_path: Path) -> None:
        self._path = keys_path

    def keys(self) -> Keys:
        return read_keys(str(self._path))

    def archives(self, digest: str) -> list[Path]:
        return [Path(code_path(str(self._path), digest))]

    def forget(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def forget(home: Path) -> None:
    """Remove what was delivered: keys and code. The batch script's log stays."""
    for path in home.iterdir():
        if path.suffix != ".log" and (path.is_symlink() or not path.is_dir()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def forget_job(node_dir: Path) -> None:
    """Remove what an agent kept of the run, the trainer's environment among it; logs stay."""
    for name in ("job.json", identity.FILE):
        with contextlib.suppress(OSError):
            (node_dir / name).unlink(missing_ok=True)
    code.remove(node_dir)
    shutil.rmtree(node_dir / "starter", ignore_errors=True)


def forget_the_dead(home: Path) -> list[Path]:
    """Clean the folders of allocations whose agents had no time to: those that scancel ended.

    One that a living process still names as its own is left alone.
    """
    cleaned = []
    for old in delivery.older(home):
        with contextlib.suppress(OSError):
            if not node_folders.in_use(old):
                forget(old)
                for node_dir in old.iterdir():
                    if node_dir.is_dir() and not node_dir.is_symlink():
                        forget_job(node_dir)
                cleaned.append(old)
    return cleaned
