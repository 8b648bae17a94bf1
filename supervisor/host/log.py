"""The log of a process that lives for months: engine.log of an engine, agent.log of an agent.

Modules write through `logging.getLogger(__name__)`; the process calls `start` once. A record is one
line: time, level, text; whatever else the process prints, a crash's traceback too, goes to the same
file. A log that can't be written loses lines and nothing else: nobody ends for want of a log.
"""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType

from supervisor.core.secret import without

MAX_BYTES = 4 * 1024 * 1024  # of a file; then it becomes NAME.1, and the one before NAME.2 …
BACKUPS = 3
MAX_KEYS = 1000  # of repeated records that are counted apart; all further ones are counted together
_secrets: set[str] = set()

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def start(
    path: Path,
    *,
    source: str = "",
    max_bytes: int = MAX_BYTES,
    backups: int = BACKUPS,
) -> None:
    """Write this process's log to `path`, and both of its outputs.

    `source` is said in every line (a node's name).
    """
    handler = LogFile(path, max_bytes=max_bytes, backups=backups)
    handler.setFormatter(OneLine(source))
    handler.addFilter(Repeats())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)  # of libraries
    logging.getLogger("supervisor").setLevel(logging.INFO)


def hide(*secrets: str) -> None:
    """Texts that no line of this process's log shows from now on."""
    _secrets.update(secret for secret in secrets if secret)


def counted(key: str) -> dict[str, str]:
    """`extra` for a record that may come without end: see Repeats."""
    return {"counted": key}


def where(error: BaseException) -> str:
    """An exception and its way in one line.

    Without source lines: reading them would touch the storage of the code, which may hang.
    """
    frames = [
        f"{frame.f_code.co_filename}:{number} {frame.f_code.co_name}"
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    way = f" ({' > '.join(frames)})" if frames else ""
    return f"{type(error).__name__}: {error}{way}"


class Tally:
    """Counts what may come without end; says when it is worth a word again."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def note(self, key: str) -> int:
        """How often it came, the 1st, 2nd, 4th, 8th … time; 0 at all others."""
        if key not in self._seen and len(self._seen) >= MAX_KEYS:
            key = ""
        self._seen[key] += 1
        count = self._seen[key]
        return 0 if count & (count - 1) else count


class Repeats(logging.Filter):
    """Of records that are counted by one key the 1st, 2nd, 4th, 8th … pass, with their count."""

    def __init__(self) -> None:
        super().__init__()
        self._tally = Tally()

    def filter(self, record: logging.LogRecord) -> bool:
        key = getattr(record, "counted", None)
        if key is None:
            return True
        count = self._tally.note(key)
        if not count:
            return False
        if count > 1:
            record.msg, record.args = f"{record.getMessage()} ({count} so far)", None
        return True


class OneLine(logging.Formatter):
    """A record as one line of text that a terminal shows and does not obey."""

    def __init__(self, source: str = "") -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._source = f"{source} " if source else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = self._source + record.message
        return super().formatMessage(record)

    def formatException(self, ei: _ExcInfo) -> str:
        return where(ei[1]) if ei[1] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(super().format(record).splitlines())
        text = without(_secrets, text)
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFile(logging.handlers.RotatingFileHandler):
    """A file of mode 0600, and where both outputs go; opened again where it could not be."""

    def __init__(self, path: Path, *, max_bytes: int, backups: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, delay=True)
        try:
            self.stream = self._open()
        except OSError:
            # Where outputs go now may be storage that hangs later (srun's own way out).
            with io.FileIO(os.devnull, "w") as nothing:
                _take_outputs(nothing.fileno())

    def _open(self) -> io.TextIOWrapper:
        file = io.FileIO(self.baseFilename, "a", opener=_private)
        _take_outputs(file.fileno())
        # Nothing is buffered: what a full disk refused must not come back, or fail a close.
        return io.TextIOWrapper(file, encoding="utf-8", write_through=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Where somebody has removed the file, another one is begun."""
        if self.stream is not None and not self.stream.closed and not self._there():
            self.stream.close()
            self.stream = None
        super().emit(record)

    def _there(self) -> bool:
        assert self.stream is not None
        try:
            there, ours = Path(self.baseFilename).stat(), os.fstat(self.stream.fileno())
        except OSError:
            return False
        return os.path.samestat(there, ours)

    def handleError(self, record: logging.LogRecord) -> None:
        """The line is lost. The next one tries again."""
        if self.stream is not None and self.stream.closed:
            self.stream = None


def _take_outputs(fd: int) -> None:
    os.dup2(fd, 1)
    os.dup2(fd, 2)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
