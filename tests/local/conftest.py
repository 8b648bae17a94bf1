"""Whole runs on this machine through the local launcher: no Slurm, no root.

`home` is one test's. At its end the run is stopped; a process that is left fails the test.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from home import RunHome


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunHome]:
    made = RunHome(tmp_path_factory.mktemp("l"))  # short: a socket's path has 107 bytes
    yield made
    left = made.end()
    assert not left, f"left behind: {left}"
