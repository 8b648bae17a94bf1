"""The fleet record's file: its tables, their version, and transactions. Knows no node.

The version is SQLite's user_version. A migration adds and rebuilds; it never renames a table or a
column or takes one away: an engine that was started before the upgrade goes on writing. So tables
keep the names that they began with (`look`: a report, `standing`: a current finding, `told`: what
a reader was shown).
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from supervisor.core.errors import TransientError, UserError
from supervisor.host import announced, private, procfs, trusted
from supervisor.host.terminal import printable

ELSEWHERE = "fleet_file in site.yaml to a file on local disk"
WAIT_S = 10.0  # another writer is done by then

_TABLES = """
CREATE TABLE IF NOT EXISTS look (
  id INTEGER PRIMARY KEY, node TEXT NOT NULL, at REAL NOT NULL, origin TEXT NOT NULL,
  tags TEXT NOT NULL, status TEXT NOT NULL, took_s REAL NOT NULL, metrics BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS look_by_node ON look (node, at);
CREATE TABLE IF NOT EXISTS standing (
  node TEXT NOT NULL, finding TEXT NOT NULL, chk TEXT NOT NULL, status TEXT NOT NULL,
  row TEXT NOT NULL, since REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (node, finding));
CREATE TABLE IF NOT EXISTS change (
  id INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL, at REAL NOT NULL, origin TEXT NOT NULL,
  finding TEXT NOT NULL, chk TEXT NOT NULL, was TEXT NOT NULL, status TEXT NOT NULL,
  blame TEXT NOT NULL, seen TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS change_by_node ON change (node, at);
CREATE TABLE IF NOT EXISTS exclusion (
  id INTEGER PRIMARY KEY, node TEXT NOT NULL, since REAL NOT NULL, until REAL,
  reason TEXT NOT NULL, who TEXT NOT NULL, lifted REAL, lifted_by TEXT);
CREATE TABLE IF NOT EXISTS drain (
  id INTEGER PRIMARY KEY, node TEXT NOT NULL, at REAL NOT NULL, reason TEXT NOT NULL, lifted REAL);
CREATE TABLE IF NOT EXISTS told (reader TEXT PRIMARY KEY, id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS baseline (
  node TEXT PRIMARY KEY, at REAL NOT NULL, row TEXT NOT NULL);
"""


def _to_1(link: sqlite3.Connection) -> None:
    """From an empty file, or from any of the three forms that had no version."""
    (old,) = link.execute("SELECT sql FROM sqlite_master WHERE name = 'change'").fetchone() or ("",)
    rebuild = bool(old) and "AUTOINCREMENT" not in old  # an id could be used again
    if rebuild:
        link.execute("DROP INDEX IF EXISTS change_by_node")
        link.execute("ALTER TABLE change RENAME TO change_0")
    for statement in _TABLES.split(";"):
        link.execute(statement)
    if rebuild:
        link.execute("INSERT INTO change SELECT * FROM change_0 ORDER BY id")
        link.execute("DROP TABLE change_0")


_MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_to_1,)
VERSION = len(_MIGRATIONS)


class Database:
    """One open file. Every method raises TransientError where the file does not answer."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Open it; with `write`, make or migrate it first. A reader takes it as it is.

        Raises UserError, and TransientError where another writer holds it for more than WAIT_S.
        """
        with announced.at("opening the fleet record", path, instead=ELSEWHERE):
            self._open(path, write=write)

    def _open(self, path: Path, *, write: bool) -> None:
        if not write and not path.exists():
            raise UserError(
                f"{path}: no fleet record yet; superv sweep or superv preflight makes it"
            )
        # Not in /tmp itself: SQLite rolls back a file at the name with -journal, whoever made it.
        if write and (why := trusted.code(path)):
            raise UserError(f"{path}: root does not write it: {why}")
        self.path = path
        link: sqlite3.Connection | None = None
        try:
            if write:
                private.make(path.parent)
                # Others may read it where the umask lets them; none but its owner may write it.
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
                link = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            else:
                uri = f"{path.absolute().as_uri()}?mode=ro"
                link = sqlite3.connect(uri, uri=True, timeout=WAIT_S)
            self._link = link
            version = self._version()
            if write and version < VERSION:
                self._migrate()
        except (sqlite3.Error, OSError, UserError) as error:
            if link is not None:
                link.close()
            if isinstance(error, UserError):
                raise
            if "locked" in str(error):
                raise _refused(path, error) from error
            raise UserError(f"{path}: the fleet record can't be opened: {error}") from error

    def _version(self) -> int:
        """Raises UserError for one that is newer than what this superv knows."""
        version: int = self._link.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UserError(
                f"{self.path}: written by a newer superv (schema {version}; this one knows up to "
                f"{VERSION}); use that superv here, or another fleet_file in site.yaml"
            )
        return version

    def _migrate(self) -> None:
        """All steps in one transaction; who waited for another's finds nothing left to do."""
        self._link.execute("BEGIN IMMEDIATE")
        try:
            for migration in _MIGRATIONS[self._version() :]:
                migration(self._link)
            self._link.execute(f"PRAGMA user_version = {VERSION}")
            self._link.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._link.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._link.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes that all happen, or none."""
        try:
            self._link.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has done so itself where the disk is full
                    self._link.execute("ROLLBACK")
                raise
            self._link.execute("COMMIT")
        except sqlite3.Error as error:
            raise _refused(self.path, error) from error

    def execute(self, statement: str, *values: object) -> None:
        """One change, inside a transaction."""
        self._link.execute(statement, values)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._link.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _refused(self.path, error) from error


def _refused(path: Path, error: Exception) -> TransientError:
    """Who may read the record can keep writers out by reading on and on: it is said who does."""
    who = ""
    if "locked" in str(error):
        named = (
            f"process {pid} ({printable(found.name)}) of uid {procfs.real_uid(pid)}"
            for pid in procfs.lockers(path)
            if (found := procfs.stat(pid)) is not None
        )
        who = ", ".join(itertools.islice(named, 3))
    return TransientError(f"{path}: {error}{f'; held by {who}' if who else ''}")
