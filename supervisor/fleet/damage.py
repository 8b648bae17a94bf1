"""A fleet record whose file is damaged: set aside, and what can be read of it kept."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

_MAGIC = b"SQLite format 3\0"
TABLES = ("look", "standing", "change", "exclusion", "drain", "told", "baseline")


def is_damage(error: Exception, path: Path) -> bool:
    """Whether SQLite says that the file's own pages are wrong.

    A file that never was a record, as a mistake in fleet_file names one, is not damaged.
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code != sqlite3.SQLITE_NOTADB:
        return code == sqlite3.SQLITE_CORRUPT
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def set_aside(path: Path, remake: Callable[[], Path]) -> str:
    """Move the file away and begin a new one with what can be read; returns what was done."""
    try:
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns() // 10**9}")
        path.rename(aside)
        kept = _copied(aside, remake())
    except (OSError, sqlite3.Error) as error:
        return f"{path}: the fleet record is damaged, and can't be set aside: {error}"
    told = ", ".join(f"{count} of {table}" for table, count in kept.items() if count)
    return (
        f"{path}: the fleet record was damaged: set aside as {aside.name}; kept: "
        f"{told or 'nothing'}; look for missing exclusions (superv nodes), and do it again"
    )


def _copied(old: Path, new: Path) -> dict[str, int]:
    """How many rows of each table could be read. Raises sqlite3.Error, OSError for the new one."""
    kept = dict.fromkeys(TABLES, 0)
    uri = f"{old.absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(uri, uri=True)) as source,
        closing(sqlite3.connect(new, isolation_level=None)) as into,
    ):
        source.text_factory = lambda data: data.decode(errors="replace")
        into.execute("BEGIN EXCLUSIVE")
        for table in TABLES:
            for row in _readable(source, table):
                marks = ",".join("?" * len(row))
                with suppress(sqlite3.IntegrityError, sqlite3.OperationalError):
                    into.execute(f"INSERT INTO {table} VALUES ({marks})", row)  # noqa: S608
                    kept[table] += 1
        into.execute("COMMIT")
    return kept


def _readable(source: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    """Rows from both ends up to where a page is damaged, each once."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error):
            for rowid, *row in source.execute(
                f"SELECT rowid, * FROM {table} ORDER BY rowid {order}"  # noqa: S608
            ):
                if rowid in seen:
                    break
                seen.add(rowid)
                yield tuple(row)
