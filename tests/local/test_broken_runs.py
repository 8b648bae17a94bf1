"""A run that can't be read, or whose engine is frozen, hides no other: each is one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path

from home import RunHome

from supervisor.core.status import SCHEMA


def damaged(home: RunHome, name: str) -> Path:
    """A copy of the run's folder whose journal has lost a digit on a line in the middle."""
    copy = home.run_dir.with_name(name)
    ignore = shutil.ignore_patterns("*.sock")
    shutil.copytree(home.run_dir, copy, ignore=ignore)
    lines = (copy / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"epoch":', b'"epoc":', 1)
    (copy / "journal.jsonl").write_bytes(b"".join(lines))
    return copy


def test_a_damaged_and_a_deleted_journal_beside_a_good_run(home: RunHome) -> None:
    home.launched()
    broken = damaged(home, "broken")
    gone = damaged(home, "gone")
    (gone / "journal.jsonl").unlink()
    told = json.loads(home.superv("status", "--json"))
    by_name = {run["name"]: run for run in told}
    assert by_name.keys() == {"ring", "broken", "gone"}
    assert (by_name["ring"]["phase"], by_name["ring"]["engine"]) == ("running", True)
    for name, path, words in (
        ("broken", broken, "journal.jsonl:2: damaged line"),
        ("gone", gone, "journal.jsonl: gone"),
    ):
        one = by_name[name]
        keys = ["schema", "name", "phase", "engine", "problem", "fix", "next", "run", "replaced"]
        assert list(one) == keys
        assert (one["schema"], one["phase"]) == (SCHEMA, None)
        assert f"{path}/{words}" in one["problem"]
        assert f"`superv attach {name} --adopt`" in one["fix"]
        assert one["next"]["command"] == f"superv attach {name} --adopt"
    page = home.superv("status")
    assert "running, attempt 1" in page and page.count("can't be read") == 2
    assert max(map(len, page.splitlines())) <= 100
    alone = home.superv("status", "broken", rc=2)
    assert "journal.jsonl:2: damaged line" in alone and "attach broken --adopt" in alone


def test_frozen_engines_are_waited_for_together(home: RunHome) -> None:
    """Listeners that never answer, as many as one would not wait for one after the other."""
    home.launched()
    links = []
    for number in range(20):
        copy = damaged(home, f"mute{number}")
        link = socket.socket(socket.AF_UNIX)
        link.bind(str(copy / "control.sock"))
        link.listen(8)
        links.append(link)
    told = json.loads(home.superv("status", "--json"))  # within 60 s, and 2 s each
    assert len(told) == 21 and {run["name"] for run in told if run["phase"]} == {"ring"}
    for link in links:
        link.close()
    engine = home.engine()
    os.kill(engine, signal.SIGSTOP)
    try:
        assert f"`kill -9 {engine}`" in home.superv("logs", "ring", rc=2)  # as stop and attach do
    finally:
        os.kill(engine, signal.SIGCONT)
    # libzmq 4.3.5 may abort an engine that stood still so long; its guardian starts the next.
    home.at_step((home.status()["step"] or 0) + 20)
    home.reached(lambda s: s["engine"], "an engine")
    said = home.superv("logs", "ring", "--attempt", "9", rc=2)
    assert "has no attempt 9; the newest is 1" in said, home.log()


def test_a_frozen_engine_is_named_and_its_journal_read(home: RunHome) -> None:
    home.launched()
    engine = home.engine()
    os.kill(engine, signal.SIGSTOP)
    try:
        (one,) = json.loads(home.superv("status", "--json"))
        page = home.superv("status")
    finally:
        os.kill(engine, signal.SIGCONT)
    assert (one["phase"], one["engine"]) == ("running", False)
    (said,) = [a for a in one["attention"] if a["what"] == "engine"]
    assert "did not answer" in said["text"]
    assert said["fix"].startswith(f"`kill -9 {engine}`, then `superv attach ring`")
    assert "needs attention: engine" in page and "no engine" not in page
    assert home.status()["engine"]
