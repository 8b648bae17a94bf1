"""What superv's modules log, as a log would have it: repeated records thinned out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor.host.log import Repeats


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.addFilter(Repeats())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """The texts that are logged while this is entered; the list grows."""
    logger, handler = logging.getLogger("supervisor"), _Lines()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
