"""Where a run lives on the engine's machine: its folder, its snapshot and its keys."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.config import Job, parse_job
from supervisor.config.document import named, read_text
from supervisor.core.errors import UserError
from supervisor.core.types import Run
from supervisor.host import announced, private
from supervisor.run.journal import JournalError, LostJournalError, fold
from supervisor.run.snapshot import Snapshot

ELSEWHERE = "state_dir in site.yaml to a folder on local disk"
MINE = "chmod go-w it, or set state_dir in site.yaml to a directory that is yours alone"
SOCKET_LIMIT = 107  # bytes in a unix socket's path (man 7 unix)


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The run's CURVE keys, Z85. One key pair for all agents: the allow-list has one entry."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str
    run_id: str = ""  # whose they are; empty: made by a superv that left that to the journal


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

    def origin(self) -> str:
        """Where the job's file lies; empty where that is not known any more."""
        try:
            return self.origin_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

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
    def secrets(self) -> Path:
        """Variables of ranks whose values come from files, with the values they had at launch."""
        return self.path / "secrets.json"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def logs(self) -> Path:
        """What ranks of attempts that have ended wrote."""
        return self.path / "logs"

    @property
    def log(self) -> Path:
        return self.path / "engine.log"

    @property
    def replaced(self) -> bool:
        """A later launch of its name has taken its place."""
        return "~" in self.path.name

    def identity(self) -> tuple[int, int] | None:
        """Which folder it is, whatever its name; None where there is none."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return None
        return there.st_dev, there.st_ino

    def load(self) -> Run:
        """The run as its journal tells. Raises LostJournalError, which names what to do."""
        try:
            with announced.at("reading the run's journal", self.journal, instead=ELSEWHERE):
                run = fold(self.journal).run
        except FileNotFoundError:
            problem = f"{self.journal}: gone"
        except OSError as error:
            problem = f"{self.journal}: can't be read: {error.strerror or error}"
        except JournalError as error:
            problem = str(error)
        else:
            if run is not None:
                return run
            problem = f"{self.journal}: empty"
        raise LostJournalError(problem, self._way_forward())

    def _way_forward(self) -> str:
        name = self.path.name
        if self.replaced:
            return "a later launch of this name replaced the run; nothing needs this folder"
        return (
            f"ranks may go on: `superv attach {name} --adopt` takes the run up as its agents know "
            f"it, `superv stop {name}` ends it"
        )


def runs_dir(state_dir: Path) -> Path:
    return state_dir / "runs"


def find(state_dir: Path, name: str) -> RunDir:
    """The run of that name. Raises UserError naming the ones there are."""
    path = runs_dir(state_dir) / name
    with announced.at("looking for the run", path, instead=ELSEWHERE):
        return _find(state_dir, name, path)


def _find(state_dir: Path, name: str, path: Path) -> RunDir:
    if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}(~[0-9a-f]+)?", name) and path.is_dir():
        check(path)
        return RunDir(path)
    there = ", ".join(r.path.name for r in every(state_dir)) or "none"
    raise UserError(f"no run {name!r} in {runs_dir(state_dir)}; there: {there}")


def every(state_dir: Path) -> list[RunDir]:
    """All runs, the newest first; those that ended and were replaced are named NAME~ID.

    One whose journal somebody has deleted is one of them.
    """
    home = runs_dir(state_dir)
    with announced.at("listing the runs", home, instead=ELSEWHERE):
        return _every(home)


def _every(home: Path) -> list[RunDir]:
    if not home.is_dir():
        return []
    if why := private.problem(home):  # a folder that another user put there could be taken for one
        raise UserError(f"state_dir: {why}; {MINE}")
    there = [path for path in home.iterdir() if not path.name.startswith(".")]
    found = [run for run in map(RunDir, there) if run.journal.exists() or run.keys.exists()]
    return sorted(found, key=_changed_at, reverse=True)


def _changed_at(run: RunDir) -> float:
    """When its journal was last written; where that is gone, its folder."""
    there = run.journal if run.journal.exists() else run.path
    return there.stat().st_mtime


def check(path: Path) -> None:
    """See that nobody else can put anything into a run's folder, or that of all runs.

    Raises UserError.
    """
    if why := private.problem(path.parent.parent) or private.problem(path):
        raise UserError(f"state_dir: {why}; {MINE}")


# What the engine's environment, and through it that of every allocation, is made of.
FIXED_VARIABLES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "SLURM_CONF"),
    *("SUPERV_SITE", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "LD_LIBRARY_PATH", "PYTHONPATH"),
}


@contextlib.contextmanager
def alone(home: Path) -> Iterator[None]:
    """While nobody else puts a run's folder in place, or another in its stead."""
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


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
        check(made.path)
        private.make(made.path.parent)
        check(made.path)  # others could make it first until then
        made.path.mkdir(mode=0o700)
        yield made
    except OSError as error:
        raise UserError(f"state_dir: {error.filename or final.path}: {error.strerror}") from None
    finally:
        shutil.rmtree(made.path, ignore_errors=True)


def write(
    run: RunDir, *, source: str, origin: Path, env: Mapping[str, str], secrets: Mapping[str, str]
) -> None:
    """What was launched: job file, where it lay, the environment, secrets. Raises OSError."""
    for path, text in (
        (run.job_file, source),
        (run.origin_file, str(origin)),
        (run.environment, json.dumps({k: v for k, v in env.items() if k in FIXED_VARIABLES})),
        *([(run.secrets, json.dumps(dict(secrets)))] if secrets else []),
    ):
        private.write(path, text.encode())


def write_keys(run: RunDir, keys: ServerKeys) -> None:
    fd = os.open(run.keys, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(msgspec.json.encode(keys))


def new_keys(run_id: str) -> ServerKeys:
    import zmq

    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    return ServerKeys(
        server_public=server_public.decode(),
        server_secret=server_secret.decode(),
        client_public=client_public.decode(),
        client_secret=client_secret.decode(),
        run_id=run_id,
    )


def replace_launch(run: RunDir, made: RunDir) -> None:
    """Take job file, environment and code from another folder. Raises OSError."""
    launched = ("job.yaml", "origin", "environment.json", "secrets.json", "code.tgz", "code.json")
    for name in launched:
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
    private.write(run.code_facts, msgspec.json.encode(code))


def read_code(run: RunDir) -> Snapshot | None:
    """What is known of the packed code; None where there is none."""
    if not run.code_facts.exists():
        return None
    return _read_kept(run.code_facts, Snapshot)


def read_job(run: RunDir) -> Job:
    """The job as it was launched. Raises UserError, which names the copy that was kept."""
    origin = Path(read_text(run.origin_file))
    text = read_text(run.job_file)
    try:
        return parse_job(text, origin)
    except UserError as error:
        why = str(error).removeprefix(named(origin))
        raise UserError(
            f"{run.job_file}{why}; it is the copy of {named(origin)} that the launch kept: put "
            "the file back as it was"
        ) from None


T = TypeVar("T")


def _read_kept(path: Path, kind: type[T]) -> T:
    """What a launch kept in a file. Raises UserError where it is damaged, OSError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); put it back as the launch wrote it, or `superv stop` the "
            "run and launch it again with --from CHECKPOINT"
        ) from None


def read_environment(run: RunDir) -> dict[str, str]:
    """The variables of the launch."""
    if not run.environment.exists():
        return dict(os.environ)
    return _read_kept(run.environment, dict[str, str])


def read_secrets(run: RunDir) -> dict[str, str]:
    """Variables of ranks whose values came from files, as they were at launch."""
    if not run.secrets.exists():
        return {}
    return _read_kept(run.secrets, dict[str, str])


def read_server_keys(run: RunDir) -> ServerKeys:
    return _read_kept(run.keys, ServerKeys)
