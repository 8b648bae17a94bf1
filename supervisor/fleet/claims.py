"""What users and their runs keep out, told to the whole site: a file each in `claims_dir`.

A claim is somebody's word. It shows in everybody's `superv nodes` with his name, which is that of
the file's owner; his own runs heed it; nobody is drained, and no other run changed, because of it.
Files in a folder that all may write to are read as what they are: no link, no more than one file a
user, bounded in size and number, and whatever fits no claim is left out and said.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from supervisor.core.errors import TransientError, UserError
from supervisor.core.nodeset import expand
from supervisor.fleet.types import Excluded
from supervisor.host import announced, private, trusted

SCHEMA = 1
RUN_S = 28 * 86_400.0  # a run's claim is shown for as long as its strikes count
LOCK_S = 5.0
_MAX_BYTES = 1 << 18
_MAX_FILES = 1000
_MAX_CLAIMS = 1000  # of one user
_MAX_REASON = 300
_ELSEWHERE = "claims_dir in site.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Somebody, or one of his runs, keeps a node out."""

    node: str
    since: float
    until: float | None  # None: until he includes it
    reason: str
    run: str = ""  # empty: himself
    who: str = ""  # whose file it is in

    @property
    def by(self) -> str:
        return f"{self.who}, run {self.run}" if self.run else self.who


def told(folder: Path, now: float) -> tuple[list[Claim], list[str]]:
    """All claims in force, by user and node, and what was left out and why.

    Raises TransientError where an earlier command hangs there.
    """
    found: list[Claim] = []
    notes: list[str] = []
    with announced.at("reading users' claims", folder, instead=_ELSEWHERE):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            return [], [f"{folder}: users' claims can't be read: {error.strerror}"]
        try:
            names = sorted(name for name in os.listdir(fd) if name.endswith(".json"))  # noqa: PTH208
            if len(names) > _MAX_FILES:
                notes.append(f"{folder}: {len(names)} files, {_MAX_FILES} are read")
            for name in names[:_MAX_FILES]:
                try:
                    found += _read(fd, name)
                except FileNotFoundError:  # replaced just now
                    continue
                except (OSError, ValueError) as error:
                    notes.append(f"{folder / name}: left out: {error}")
        finally:
            os.close(fd)
    return [c for c in found if c.until is None or c.until > now], notes


def beside(
    folder: Path | None, record: Iterable[Excluded], now: float
) -> tuple[list[Claim], list[str]]:
    """All claims in force but for what the record has from their users, and what was left out.

    A folder that hangs is said, and nothing more: what else is known is worth showing.
    """
    if folder is None:
        return [], []
    try:
        found, notes = told(folder, now)
    except TransientError as error:
        return [], [f"users' claims are not shown: {error}"]
    there = {(e.node, e.who, e.since) for e in record}
    return [c for c in found if c.run or (c.node, c.who, c.since) not in there], notes


def mine(folder: Path, now: float) -> list[Claim]:
    """This user's own claims in force; none where they can't be read."""
    return [c for c in _own(folder) if c.until is None or c.until > now]


def put(folder: Path, new: Iterable[Claim]) -> None:
    """Add to this user's claims; one about the same node, by him or the same run, is replaced.

    Raises UserError, TransientError.
    """
    added = {(c.node, c.run): c for c in new}
    _change(
        folder, lambda old: [c for c in old if (c.node, c.run) not in added] + [*added.values()]
    )


def take_back(folder: Path, nodes: Iterable[str], run: str | None = None) -> None:
    """This user's claims about nodes, and those of his runs; of one run, where it is named.

    Raises UserError, TransientError.
    """
    gone = set(nodes)
    _change(folder, lambda old: [c for c in old if c.node not in gone or run not in (None, c.run)])


def user() -> str:
    """This user's name, or number where he has none."""
    return _name(os.geteuid())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _read(folder: int, name: str) -> list[Claim]:
    """Raises OSError, ValueError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        found = os.fstat(file.fileno())
        owner = _name(found.st_uid)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise ValueError("it is no file of its own")
        if name != f"{owner}.json":
            raise ValueError(f"it is {owner}'s, whose claims are in {owner}.json")
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES >> 10} KiB")
    try:
        row = json.loads(data)
    except RecursionError:
        raise ValueError("it is no list of claims") from None
    if not isinstance(row, dict) or row.get("schema") != SCHEMA:
        raise ValueError(f"it is no list of claims of schema {SCHEMA}")
    rows = row.get("claims")
    if not isinstance(rows, list) or len(rows) > _MAX_CLAIMS:
        raise ValueError(f"it is no list of {_MAX_CLAIMS} claims at most")
    return [_claim(one, owner) for one in rows]


def _claim(row: Any, owner: str) -> Claim:
    """Raises ValueError."""
    try:
        node, run, reason = (str(row[key]) for key in ("node", "run", "reason"))
        since, until = float(row["since"]), row["until"]
        until = None if until is None else float(until)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a claim lacks or spoils {error}") from None
    if expand(node) != (node,) or len(node) > 255 or len(run) > 60:
        raise ValueError(f"a claim is about no node: {node[:60]!r}")
    if not all(math.isfinite(at) for at in (since, until or 0.0)):
        raise ValueError("a claim's time is none")
    return Claim(
        node=node, since=since, until=until, reason=reason[:_MAX_REASON], run=run, who=owner
    )


def _own(folder: Path) -> list[Claim]:
    with suppress(OSError, ValueError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _read(fd, f"{user()}.json")
        finally:
            os.close(fd)
    return []


def _change(folder: Path, change: Callable[[list[Claim]], list[Claim]]) -> None:
    """Rewrite this user's file, one at a time. Raises UserError, TransientError."""
    if why := trusted.problem(folder, sticky=True):
        raise UserError(f"claims_dir: root does not write there: {why}")
    with announced.at("writing claims", folder, instead=_ELSEWHERE):
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with closing(_Lock(os.open(folder / f"{user()}.lock", flags, 0o600))) as lock:
                lock.wait(folder)
                old = _own(folder)
                new = change(old)[-_MAX_CLAIMS:]
                if new == old:
                    return
                rows = [{k: v for k, v in asdict(c).items() if k != "who"} for c in new]
                text = json.dumps({"schema": SCHEMA, "claims": rows}, indent=1)
                private.write(folder / f"{user()}.json", text.encode(), 0o644)
        except OSError as error:
            raise UserError(
                f"claims_dir: {error.filename or folder}: {error.strerror}; root makes it: "
                f"install -d -m 1777 {folder}"
            ) from error


class _Lock:
    """An open lock file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def wait(self, folder: Path) -> None:
        """Raises TransientError."""
        end = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TransientError(
                        f"{folder}: another superv of yours has held your claims for {LOCK_S:g} s"
                    ) from None
                time.sleep(0.01)

    def close(self) -> None:
        os.close(self._fd)
