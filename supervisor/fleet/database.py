"""The fleet record's file: its tables, their version, and transactions. Knows no node.

The version is SQLite's user_version. A migration adds and rebuilds; it never renames a table or a
column or takes one away: an engine that was started before the upgrade goes on writing. So tables
keep the names that they began with (`look`: a report, `standing`: a current finding, `told`: what
a reader was shown).

Writers take turns by a lock of their own, which nobody else may open. Who only reads holds SQLite's
shared lock for as long as he likes: the record then goes on in a copy at its name, and he keeps
what he has.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import pwd
import secrets
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from supervisor.core.errors import TransientError, UserError
from supervisor.fleet.damage import is_damage, set_aside
from supervisor.host import announced, private, procfs, trusted
from supervisor.host.terminal import printable

ELSEWHERE = "fleet_file in site.yaml to a file on local disk"
WAIT_S = 10.0  # another writer is done by then
READER_S = 3.0  # and a reader of ours

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


def _to_2(link: sqlite3.Connection) -> None:
    """Which report was the last one then: what came after it does, whatever clocks say."""
    for table in ("exclusion", "drain"):
        link.execute(f"ALTER TABLE {table} ADD COLUMN look INTEGER")


def _to_3(link: sqlite3.Connection) -> None:
    """What people repaired. `checks`: with blanks between; `accepts`: superv accept has begun."""
    link.execute(
        "CREATE TABLE IF NOT EXISTS repair (id INTEGER PRIMARY KEY, node TEXT NOT NULL,"
        " at REAL NOT NULL, checks TEXT NOT NULL, note TEXT NOT NULL, who TEXT NOT NULL,"
        " accepts INTEGER NOT NULL)"
    )


_MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_to_1, _to_2, _to_3)
VERSION = len(_MIGRATIONS)


class Database:
    """One open file. Every method raises TransientError where the file does not answer."""

    def __init__(self, path: Path, *, write: bool, whole: bool = False) -> None:
        """Open it; with `write`, make or migrate it first. A reader takes it as it is.

        `whole`: read all of it first, and set it aside where it is damaged; a tenth of a second.
        Raises UserError, and TransientError where another writer holds it for more than WAIT_S.
        """
        self.path, self._write = path, write
        self._link: sqlite3.Connection | None = None
        self._file = (0, 0)  # device and inode
        self._inside = False  # a transaction
        self.version = 0
        with announced.at("opening the fleet record", path, instead=ELSEWHERE):
            if write:
                # Not in /tmp itself: SQLite rolls back a file at the name with -journal, whoever
                # made it.
                if why := trusted.code(path):
                    raise UserError(f"{path}: root does not write it: {why}")
                try:
                    _may_be_used(path, write=True)
                    private.make(path.parent)
                except OSError as error:
                    raise _not_opened(path, error) from error
                with self._turn():
                    self._connect()
                    if whole:
                        self._read_all()
            else:
                self._connect()

    def _read_all(self) -> None:
        """Raises TransientError where it is damaged, and set aside."""
        try:
            ((found, *_), *_) = self._now().execute("PRAGMA quick_check(1)").fetchall()
        except sqlite3.Error as error:
            if not is_damage(error, self.path):
                raise _refused(self.path, error) from error
            found = str(error)
        if found != "ok":
            self.close()
            raise TransientError(set_aside(self.path, self._remake))

    def _connect(self) -> None:
        """Raises UserError, TransientError."""
        link: sqlite3.Connection | None = None
        try:
            _may_be_used(self.path, write=self._write)
            if self._write:
                # Others may read it where the umask lets them; none but its owner may write it.
                with suppress(FileExistsError):
                    os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            link = _linked(self.path, write=self._write)
            self.version = self._version(link)
            if self._write and self.version < VERSION:
                self._migrate(link)
                self.version = VERSION
            self._file = _inode(self.path)
        except (sqlite3.Error, OSError, UserError) as error:
            if link is not None:
                link.close()
            if isinstance(error, UserError):
                raise
            if "locked" in str(error):
                raise _refused(self.path, error) from error
            if self._write and is_damage(error, self.path):
                raise TransientError(set_aside(self.path, self._remake)) from error
            raise _not_opened(self.path, error) from error
        self._link = link

    def _version(self, link: sqlite3.Connection) -> int:
        """Raises UserError for one that is newer than what this superv knows."""
        version: int = link.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise UserError(
                f"{self.path}: written by a newer superv (schema {version}; this one knows up to "
                f"{VERSION}); use that superv here, or another fleet_file in site.yaml"
            )
        return version

    def _migrate(self, link: sqlite3.Connection) -> None:
        """All steps in one transaction; who waited for another's finds nothing left to do."""
        link.execute("BEGIN IMMEDIATE")
        try:
            for migration in _MIGRATIONS[self._version(link) :]:
                migration(link)
            link.execute(f"PRAGMA user_version = {VERSION}")
            link.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                link.execute("ROLLBACK")
            raise

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # --- writing ---

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The writers' own lock. Raises UserError, TransientError."""
        path = self.path.with_suffix(".write.lock")
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise _not_opened(self.path, error) from error
        try:
            end = time.monotonic() + WAIT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        why = f"{self.path}: locked by another writer for {WAIT_S:g} s ({path})"
                        raise TransientError(why) from None
                    time.sleep(0.01)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes that all happen, or none."""
        try:
            if not self._write:  # it would be made here
                raise sqlite3.OperationalError("attempt to write a readonly database")
            with self._turn():
                self._begin()
                self._inside = True
                try:
                    yield
                except BaseException:
                    with suppress(
                        sqlite3.Error
                    ):  # SQLite has done so itself where the disk is full
                        self._now().execute("ROLLBACK")
                    raise
                else:
                    self._now().execute("COMMIT")
                finally:
                    self._inside = False
        except sqlite3.Error as error:
            if self._write and is_damage(error, self.path):
                self.close()
                with self._turn():
                    raise TransientError(set_aside(self.path, self._remake)) from error
            raise _refused(self.path, error) from error

    def _begin(self) -> None:
        """Shut everybody out; where only readers are in the way, leave them behind."""
        try:
            self._now().execute(f"PRAGMA busy_timeout = {1000 * READER_S:.0f}")
            self._now().execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            self._now().execute(f"PRAGMA busy_timeout = {1000 * WAIT_S:.0f}")
            self._now().execute("BEGIN IMMEDIATE")  # nobody else writes, an older superv either
            self._leave_readers()
            self._now().execute("BEGIN EXCLUSIVE")

    def _leave_readers(self) -> None:
        """Go on in a copy, while no other writer may change anything. Raises sqlite3.Error."""
        new = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.new")
        try:
            mode = stat.S_IMODE(self.path.stat().st_mode)
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(_linked(self.path, write=False)) as old, closing(_linked(new)) as copy:
                old.backup(copy)
            new.chmod(mode)
            new.replace(self.path)
        except OSError as error:
            raise sqlite3.OperationalError(f"database is locked, no copy: {error}") from error
        finally:
            new.unlink(missing_ok=True)
        self.close()
        self._connect()

    def _remake(self) -> Path:
        """An empty record at its name."""
        self._connect()
        self.close()
        return self.path

    def execute(self, statement: str, *values: object) -> None:
        """One change, inside a transaction."""
        self._now().execute(statement, values)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._now().execute(query, values).fetchall()
        except sqlite3.Error as error:
            if self._inside:
                raise  # the transaction tells
            raise _refused(self.path, error) from error

    def _now(self) -> sqlite3.Connection:
        """To the file that is at the name now: another writer may have left it for a copy."""
        if not self._inside and (self._link is None or _inode(self.path) != self._file):
            self.close()
            self._connect()
        assert self._link is not None
        return self._link


def _linked(path: Path, *, write: bool = True) -> sqlite3.Connection:
    if write:
        return sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None)


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _may_be_used(path: Path, *, write: bool) -> None:
    """Raises UserError where there is none to read, or where a right is missing."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if write:
            return
        raise UserError(
            f"{path}: no fleet record yet; superv sweep or superv preflight makes it"
        ) from None
    except PermissionError:
        raise UserError(
            f"{path}: you may not look into its folder; ask whose it is for the right to search "
            "it (chmod o+x), or set fleet_file in site.yaml to a record of your own"
        ) from None
    if not os.access(path, os.R_OK | (os.W_OK if write else 0)):
        what, mode = ("write", "") if write else ("read", " and chmod o+r")
        raise NoRightError(
            f"{path}: you may not {what} this fleet record: it is {_name(found.st_uid)}'s, mode "
            f"{stat.S_IMODE(found.st_mode):04o}; ask {_name(found.st_uid)}{mode}, or set "
            "fleet_file in site.yaml to a record of your own"
        )


class NoRightError(UserError):
    """The record is somebody else's, who keeps it to himself."""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _not_opened(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: the fleet record can't be opened: {error}{_way_out(path, error)}")


def _way_out(path: Path, error: Exception) -> str:
    damaged = is_damage(error, path)
    return "; superv sweep sets it aside and keeps what can be read" if damaged else ""


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
    return TransientError(
        f"{path}: {error}{f'; held by {who}' if who else ''}{_way_out(path, error)}"
    )
