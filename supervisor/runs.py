"""Where a run lives on the engine's machine: its folder, its snapshot and its keys."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from supervisor.core.errors import UserError
from supervisor.core.types import Run
from supervisor.journal import read, rebuild

SOCKET_LIMIT = 107  # bytes in a unix socket's path (man 7 unix)


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The run's CURVE keys, Z85. One key pair for all agents: the allow-list has one entry."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class RunDir:
    """The folder of one run."""

    path: Path

    @property
    def job_file(self) -> Path:
        return self.path / "job.yaml"

    @property
    def origin_file(self) -> Path:
        """The path that the job was launched from: relative paths in it start at its folder."""
        return self.path / "origin"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def keys(self) -> Path:
        return self.path / "keys.json"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def log(self) -> Path:
        return self.path / "engine.log"

    def load(self) -> Run | None:
        """The run as its journal tells; None where nothing was journaled."""
        return rebuild(read(self.journal)) if self.journal.exists() else None


def runs_dir(state_dir: Path) -> Path:
    return state_dir / "runs"


def find(state_dir: Path, name: str) -> RunDir:
    """The run of that name. Raises UserError naming the ones there are."""
    path = runs_dir(state_dir) / name
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}(~[0-9a-f]+)?", name) and path.is_dir():
        return RunDir(path)
    there = ", ".join(r.path.name for r in every(state_dir)) or "none"
    raise UserError(f"no run {name!r} in {runs_dir(state_dir)}; there: {there}")


def every(state_dir: Path) -> list[RunDir]:
    """All runs, the newest first; those that ended and were replaced are named NAME~ID."""
    home = runs_dir(state_dir)
    if not home.is_dir():
        return []
    found = [RunDir(path) for path in home.iterdir() if (path / "journal.jsonl").exists()]
    return sorted(found, key=lambda run: run.journal.stat().st_mtime, reverse=True)


def create(state_dir: Path, name: str, *, source: str, origin: Path, keys: ServerKeys) -> RunDir:
    """Make the folder of a new run. Raises UserError where it can't be made."""
    run = RunDir(runs_dir(state_dir) / name)
    if len(os.fsencode(run.socket)) > SOCKET_LIMIT:
        raise UserError(
            f"{run.socket}: longer than the {SOCKET_LIMIT} bytes of a socket's path; "
            "set a shorter state_dir in site.yaml or a shorter name"
        )
    try:
        run.path.mkdir(mode=0o700, parents=True)
        run.path.chmod(0o700)
        run.job_file.write_text(source)
        run.origin_file.write_text(str(origin))
        fd = os.open(run.keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as out:
            out.write(msgspec.json.encode(keys))
    except OSError as error:
        raise UserError(f"{error.filename or run.path}: {error.strerror}") from None
    return run


def read_server_keys(run: RunDir) -> ServerKeys:
    return msgspec.json.decode(run.keys.read_bytes(), type=ServerKeys)
