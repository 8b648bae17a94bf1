"""Who is woken up: what happened, why, and what to type, from two commands."""

from __future__ import annotations

import signal
from typing import Any

from tests.local.home import RunHome, until


def wrong_module(home: RunHome, **policy: Any) -> None:
    """A run whose trainer's module is not there, until it is held."""
    job = home.job(policy={"stop_grace_s": 1, "backoff_s": [0.1], **policy})
    text = job.read_text()
    trainer, _, rest = text.partition("  script:")
    job.write_text(f"{trainer}  module: titan_gpu\n{rest.partition(chr(10))[2]}")
    home.superv("launch", "--detach", str(job))
    home.reached(lambda s: s["phase"] == "held" and not s["engine"], "the end")


def test_a_wrong_module_is_known_from_two_commands(home: RunHome) -> None:
    """What happened stands first in both; no node is named for it."""
    wrong_module(home)
    status = home.superv("status", "ring")
    why = " ".join(status.split("why")[1].split())
    assert why.startswith("ImportError: No module named titan_gpu, on every attempt and on ")
    assert home.status()["excluded"] == []
    log = home.superv("logs", "ring")
    assert "ImportError: No module named titan_gpu (exit code 1), the first that ended" in log
    everything = home.superv("logs", "ring", "--grep", "No module named")
    attempts = {line.split()[0] for line in everything.splitlines()}
    assert {"a1", "a2", "a3"} <= attempts
    assert "a2 r2 local-2: " in home.superv("logs", "ring", "--all", "--attempt", "2")
    refused = home.superv("logs", "ring", "--attempt", "9", rc=2)
    assert "no attempt 9; the newest is" in refused and "kept of: 1, 2, 3" in refused
    assert "there is no rank 7" in home.superv("logs", "ring", "--rank", "7", rc=2)
    assert "found in none of" in home.superv("logs", "ring", "--grep", "nothing like it", rc=1)
    modes = {path.stat().st_mode & 0o777 for path in (home.run_dir / "logs").rglob("*.*")}
    assert modes == {0o600}


def test_logs_of_a_node_that_is_silent_are_missed_in_words(home: RunHome) -> None:
    """The others' are there, and the run goes on."""
    home.launched()
    home.signal("local-2", signal.SIGSTOP)
    try:
        home.at_step(3, attempt=2)
        until(lambda: (home.run_dir / "logs/a0001/index.json").exists(), "the logs of attempt 1")
        told = home.superv("logs", "ring", "--all", "--attempt", "1")
        assert "a1 r0 local-1: step: 3" in told
        assert "superv: could not be had: local-2: " in told
        assert "step: 1" in home.superv("logs", "ring")  # of the attempt that runs
        assert "a2 r2 local-3: " in home.superv("logs", "ring", "--grep", "step: 3")
    finally:
        home.signal("local-2", signal.SIGCONT)
