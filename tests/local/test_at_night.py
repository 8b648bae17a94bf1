"""Who is woken up: what happened, why, and what to type, from two commands."""

from __future__ import annotations

import json
import shlex
import signal
from typing import Any

import yaml

from tests.local.home import RunHome, until

MISSING = "ModuleNotFoundError: No module named 'titan_gpu'"


def missing_module(home: RunHome, **more: Any) -> None:
    """A run whose trainer imports what is not there, until it is held."""
    script = home.path / "train.py"
    script.write_text("import titan_gpu\n")
    job = home.job(policy={"stop_grace_s": 1, "backoff_s": [0.1]}, **more)
    told = yaml.safe_load(job.read_text())
    told["trainer"]["script"] = str(script)
    job.write_text(yaml.safe_dump(told))
    home.superv("launch", "--detach", str(job))
    home.reached(lambda s: s["phase"] == "held" and not s["engine"], "the end")


def pager(home: RunHome) -> dict[str, list[str]]:
    """A command that keeps what it is told."""
    script = home.path / "page"
    script.write_text(f"#!/bin/sh\ncat >> {home.path}/pages\n")
    script.chmod(0o755)
    return {"command": [str(script)]}


def pages(home: RunHome) -> list[dict[str, Any]]:
    told = home.path / "pages"
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def test_a_missing_module_is_known_from_two_commands(home: RunHome) -> None:
    """What happened stands first in both; no node is named for it."""
    missing_module(home, notify=[pager(home)])
    status = home.superv("status", "ring")
    why = " ".join(status.split("why")[1].split())
    assert why.startswith(f"{MISSING}, on every attempt and on ")
    assert home.status()["excluded"] == []
    command = home.status()["next"]["command"]
    assert f"next     {command[:60]}" in status
    assert shlex.split(command) == ["superv", "resume", "ring", "--config", f"{home.path}/job.yaml"]
    (page,) = pages(home)
    assert (page["event"], page["next"]["command"]) == ("held", command)
    assert page["text"].startswith(MISSING)
    log = home.superv("logs", "ring")
    assert f"{MISSING} (exit code 1), the first that ended" in log
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
    """The others' are there, and the run goes on. People are told of the swap, once."""
    home.launched(notify=[pager(home), {"command": ["/bin/false"]}])
    home.signal("local-2", signal.SIGSTOP)
    try:
        home.at_step(3, attempt=2)
        until(lambda: (home.run_dir / "logs/a0001/index.json").exists(), "the logs of attempt 1")
        told = home.superv("logs", "ring", "--all", "--attempt", "1")
        assert "a1 r0 local-1: step: " in told
        assert "superv: could not be had: local-2: " in told
        assert "step: " in home.superv("logs", "ring")  # of the attempt that runs
        assert "a2 r2 local-3: " in home.superv("logs", "ring", "--grep", "step: 3")
        until(lambda: pages(home), "the page")
        home.kill_engine()
        assert "superv attach ring" in home.superv("status", "ring")
        home.superv_until("attach", "ring", said="step")
    finally:
        home.signal("local-2", signal.SIGCONT)
    home.superv("stop", "ring")
    told = until(lambda: p if len(p := pages(home)) > 1 else None, "the second page")
    assert told is not None and [page["event"] for page in told] == ["swapped", "ended"]
    assert "local-2 excluded; local-3 takes slot 1 of local-2" in told[0]["text"]
    assert "could not tell people (swapped/1/" in home.log() and "false ended with 1" in home.log()


def test_ranks_that_have_written_nothing_are_told_so(home: RunHome) -> None:
    """While they run, and of an attempt that has ended."""
    file = home.job(
        trainer={"command": ["sleep", "600"], "ranks_per_node": 1}, checkpoints={}, spares=0
    )
    job = yaml.safe_load(file.read_text())
    del job["checkpoints"]
    file.write_text(yaml.safe_dump(job))
    home.superv("launch", "--detach", str(file))
    until(lambda: len(home.processes(words="sleep 600")) >= 2, "two ranks")
    assert home.superv("logs", "ring", "--rank", "1") == "superv: rank 1 has written nothing yet\n"
    assert home.superv("logs", "ring", "-n", "0") == ""
    told = home.superv("logs", "ring", "--all")
    assert told == "superv: none of 2 ranks has written anything\n"
    home.superv("stop", "ring", "--now")
    home.reached(lambda s: s["phase"] == "stopped", "the end")
    assert "superv: rank 0 wrote nothing\n" in home.superv("logs", "ring")
