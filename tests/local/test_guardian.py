"""Whatever ends an engine, somebody starts the next; and nobody does when the run is over."""

from __future__ import annotations

import os
import signal
import time

from home import RunHome, until

from supervisor.core import events as ev
from supervisor.host import procfs
from supervisor.run.journal import read


def guardians(home: RunHome) -> list[int]:
    return [pid for pid, argv in home.processes().items() if "engine/guardian.py" in argv]


def starts(home: RunHome) -> int:
    events = (record.event for record in read(home.run_dir / "journal.jsonl"))
    return sum(isinstance(event, ev.EngineStarted) for event in events)


def ranks(home: RunHome) -> list[int]:
    return sorted(home.processes(words="ring.py"))


def test_an_engine_that_is_ended_is_followed_by_another_and_ranks_go_on(home: RunHome) -> None:
    home.launched()
    before, engine = ranks(home), home.engine()
    os.kill(engine, signal.SIGKILL)
    until(lambda: starts(home) == 2 and home.status()["engine"], "the next engine")
    status = home.at_step((home.status()["step"] or 0) + 5)
    assert (status["epoch"], status["attempt"], status["incidents"]) == (2, 1, [])
    assert ranks(home) == before and home.engine() != engine and len(guardians(home)) == 1
    assert "guardian: the engine is gone; the next one starts in" in home.log()
    os.kill(home.engine(), signal.SIGTERM)  # the one that the guardian started
    until(lambda: starts(home) == 3 and home.status()["engine"], "the third engine")
    assert "guardian: the engine was ended by signal 15" in home.log()
    assert len(guardians(home)) == 1 and ranks(home) == before
    home.superv("stop", "ring", "--now")
    until(lambda: not home.processes(), "the end of all processes, the guardian's too")
    assert home.status()["phase"] == "stopped" and starts(home) == 3


def test_a_guardian_that_is_ended_harms_nothing_and_is_followed_by_another(home: RunHome) -> None:
    home.launched()
    (guardian,) = guardians(home)
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(guardian, number)
    assert procfs.state(guardian) not in (None, "Z", "X")
    os.kill(guardian, signal.SIGKILL)
    until(lambda: guardians(home) not in ([], [guardian]), "another guardian")
    os.kill(home.engine(), signal.SIGKILL)
    until(lambda: starts(home) == 2 and home.status()["engine"], "the next engine")
    assert len(guardians(home)) == 1


def test_a_person_who_is_faster_than_the_guardian_has_the_engine(home: RunHome) -> None:
    """The journal's lock decides; one engine and one guardian are left."""
    home.launched()
    os.kill(home.engine(), signal.SIGKILL)
    home.superv("launch", "--detach", str(home.path / "job.yaml"))
    engine = home.engine()
    until(lambda: len(guardians(home)) == 1, "one guardian")
    time.sleep(2.5)  # the first one's tries have been
    assert (home.engine(), len(guardians(home)), starts(home)) == (engine, 1, 2)


def test_an_engine_that_can_not_begin_is_tried_again_until_it_can(home: RunHome) -> None:
    """Whatever keeps it away passes: a file system that is gone for a while, a full disk."""
    home.launched()
    site = home.path / "site.yaml"
    text = site.read_text()
    try:
        site.write_text("state_dir: [")
        os.kill(home.engine(), signal.SIGKILL)
        until(lambda: home.log().count("guardian: the engine ended with code 2") >= 2, "tries")
        until(lambda: home.status()["attention"], "a word about it")
        (said,) = home.status()["attention"]
        assert "the engine ended with code 2; the next one starts in" in said["text"]
    finally:
        site.write_text(text)
    until(lambda: starts(home) == 2 and home.status()["engine"], "the next engine")
