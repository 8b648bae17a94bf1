"""A health check whose process has ended, and left something that keeps its pipe open."""

from __future__ import annotations

import os
import time

from test_health_runner import only

from healthchecks.frame.check import Result, Status
from healthchecks.frame.context import Ctx


def ends_and_leaves_one(ctx: Ctx) -> Result:
    """Its own child keeps the pipe of answers open."""
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os._exit(5)


def test_a_probe_that_has_ended_hangs_nowhere() -> None:
    result = only(ends_and_leaves_one, deadline_s=0.3, on_timeout=Status.FAIL, timeout_fix="disk")
    assert (result.status, result.fix) == (Status.UNKNOWN, "")
    assert "without an answer" in result.seen
