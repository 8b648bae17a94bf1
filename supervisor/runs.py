"""Where a run lives on the engine's machine: its folder, its snapshot and its keys."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from supervisor.core.errors import UserError
from supervisor.core.types import Run
from supervisor.journal import read, rebuild
from supervisor.snapshot import Snapshot

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
    def code(self) -> Path:
        """The trainer's code as it was at launch, packed; not there where it is not fixed."""
        return self.path / "code.tgz"

    @property
    def code_facts(self) -> Path:
        return self.path / "code.json"

    @property
    def environment(self) -> Path:
        """The variables that the engine, and through it Slurm's commands, were launched with."""
        return self.path / "environment.json"

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
    there = [path for path in home.iterdir() if not path.name.startswith(".")]
    found = [RunDir(path) for path in there if (path / "journal.jsonl").exists()]
    return sorted(found, key=lambda run: run.journal.stat().st_mtime, reverse=True)


# What the engine's environment, and through it that of every allocation, is made of.
FIXED_VARIABLES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "SLURM_CONF"),
    *("SUPERV_SITE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "LD_LIBRARY_PATH", "PYTHONPATH"),
}


@contextlib.contextmanager
def new(state_dir: Path, name: str) -> Iterator[RunDir]:
    """A hidden folder to put a run together in; it goes where that fails.

    Raises UserError where it can't be made or filled.
    """
    final = RunDir(runs_dir(state_dir) / name)
    if len(os.fsencode(final.socket)) > SOCKET_LIMIT:
        raise UserError(
            f"{final.socket}: longer than the {SOCKET_LIMIT} bytes of a socket's path; "
            "set a shorter state_dir in site.yaml or a shorter name"
        )
    made = RunDir(final.path.with_name(f".{name}.{os.urandom(4).hex()}"))
    try:
        made.path.mkdir(mode=0o700, parents=True)
        yield made
    except OSError as error:
        raise UserError(f"state_dir: {error.filename or final.path}: {error.strerror}") from None
    finally:
        shutil.rmtree(made.path, ignore_errors=True)


def write(run: RunDir, *, source: str, origin: Path, env: Mapping[str, str]) -> None:
    """What was launched: the job file's text, where it lay, the environment. Raises OSError."""
    for path, text in (
        (run.job_file, source),
        (run.origin_file, str(origin)),
        (run.environment, json.dumps({k: v for k, v in env.items() if k in FIXED_VARIABLES})),
    ):
        part = path.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_text(text)
        part.replace(path)


def write_keys(run: RunDir, keys: ServerKeys) -> None:
    fd = os.open(run.keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(msgspec.json.encode(keys))


def new_keys() -> ServerKeys:
    import zmq

    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    return ServerKeys(
        server_public=server_public.decode(),
        server_secret=server_secret.decode(),
        client_public=client_public.decode(),
        client_secret=client_secret.decode(),
    )


def replace_launch(run: RunDir, made: RunDir) -> None:
    """Take job file, environment and code from another folder. Raises OSError."""
    for name in ("job.yaml", "origin", "environment.json", "code.tgz", "code.json"):
        if (made.path / name).exists():
            (made.path / name).replace(run.path / name)
        else:
            (run.path / name).unlink(missing_ok=True)


def write_code(run: RunDir, code: Snapshot | None, archive: Path) -> None:
    """Keep the packed code; None: it is not fixed any more."""
    if code is None:
        run.code_facts.unlink(missing_ok=True)
        run.code.unlink(missing_ok=True)
        return
    archive.replace(run.code)
    run.code_facts.write_bytes(msgspec.json.encode(code))


def read_code(run: RunDir) -> Snapshot | None:
    """What is known of the packed code; None where there is none."""
    if not run.code_facts.exists():
        return None
    return msgspec.json.decode(run.code_facts.read_bytes(), type=Snapshot)


def read_environment(run: RunDir) -> dict[str, str]:
    """The variables of the launch."""
    if not run.environment.exists():
        return dict(os.environ)
    return msgspec.json.decode(run.environment.read_bytes(), type=dict[str, str])


def read_server_keys(run: RunDir) -> ServerKeys:
    return msgspec.json.decode(run.keys.read_bytes(), type=ServerKeys)
