"""What every test may rely on, however pytest was started."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings


def pytest_configure() -> None:
    """Let programs that tests start have signals as on a terminal.

    `nohup` and a shell's `&` leave SIGHUP, SIGINT and SIGQUIT ignored, and children inherit that.
    A handler is not inherited: pytest goes on ignoring what it was told to ignore.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    # How long an example takes is the machine's load, and no fault.
    settings.register_profile("superv", deadline=None)
    settings.load_profile("superv")
    # Ranks and agents leave compiled code where they do on a machine without this.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short, whatever the test is called: a socket's path has 107 bytes, a table 100 columns."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture(autouse=True)
def turn(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Workers run tests beside each other; one that is marked `alone` has the machine to itself.

    So has one that is run a second time: what fails then does not fail for its neighbours' sake.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    workers = tmp_path_factory.getbasetemp().parent
    again = getattr(request.node, "execution_count", 1) > 1
    alone = again or request.node.get_closest_marker("alone")
    with (workers / "queue").open("w") as queue, (workers / "turn").open("w") as turn:
        fcntl.flock(queue, fcntl.LOCK_EX)  # held by who waits to be alone: nobody else begins
        fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
        fcntl.flock(turn, fcntl.LOCK_UN)  # a child that was forked would hold on to it
