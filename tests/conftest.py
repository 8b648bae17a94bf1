"""What every test may rely on, however pytest was started."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Let programs that tests start have signals as on a terminal.

    `nohup` and a shell's `&` leave SIGHUP, SIGINT and SIGQUIT ignored, and children inherit that.
    A handler is not inherited: pytest goes on ignoring what it was told to ignore.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short, whatever the test is called: a socket's path has 107 bytes, a table 100 columns."""
    return tmp_path_factory.mktemp("t")
