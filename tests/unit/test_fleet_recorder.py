"""An engine's hand in the fleet record: it goes on, whatever the record does."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from logged import logged

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding, Report
from supervisor.core.types import Exclusion
from supervisor.engine import fleet_recorder
from supervisor.engine.fleet_recorder import FleetRecorder
from supervisor.fleet.record import Fleet

T = 1_790_000_000.0


def report(node: str = "n1") -> str:
    found = Finding(check="fs.local", result=Result(status=Status.FAIL, seen="full"))
    return json.dumps(Report(node=node, at=T, findings=(found,), tags=("preflight",)).document())


class Desk:
    """A recorder over a record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recorder = FleetRecorder(path, "moe", lambda: T)

    def exchange(self, *new: Exclusion) -> dict[str, str] | None:
        return self.recorder._thread.submit(self.recorder._exchange, new).result()

    def settle(self) -> None:
        self.recorder._thread.submit(int).result()


@pytest.fixture(autouse=True)
def notes() -> Iterator[list[str]]:
    with logged() as lines:
        yield lines


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "fleet.db")


def test_reports_go_in_and_exclusions_come_out(desk: Desk, notes: list[str]) -> None:
    assert desk.exchange() == {}  # no record yet: nobody is kept out
    desk.recorder.record("n1", report())
    desk.settle()
    with Fleet(desk.path) as fleet:
        assert [(c.origin, c.finding) for c in fleet.changes(0)] == [("run moe", "fs.local")]
        fleet.exclude("n7", "bad link", "kim", T, None)
    assert desk.exchange() == {"n7": "bad link"}
    assert notes == []


def test_an_agent_speaks_for_its_own_node_only(desk: Desk, notes: list[str]) -> None:
    desk.recorder.record("n2", report("n1"))
    desk.settle()
    assert not desk.path.exists() and "the agent on n2 told of 'n1'" in notes[0]


def test_whom_a_run_excludes_is_a_strike_once_whatever_engine_tells_it(desk: Desk) -> None:
    out = Exclusion(node="n1", reason="node-lost: silence", since=T - 9000, attempt=1)
    desk.exchange(out)
    desk.exchange(out)
    Desk(desk.path).exchange(out)  # the next engine's
    with Fleet(desk.path) as fleet:
        assert fleet.strikes(T) == {"n1": 1}
        assert fleet.changes(0)[0].seen == "node-lost: silence"


def test_whom_the_run_excludes_at_its_end_is_recorded_still(desk: Desk) -> None:
    out = Exclusion(node="n1", reason="node-lost: silence", since=T, attempt=1)
    run: Any = SimpleNamespace(excluded={"n1": out})
    desk.recorder.close(run)
    desk.recorder._thread.shutdown(wait=True)
    with Fleet(desk.path) as fleet:
        assert fleet.strikes(T) == {"n1": 1}


def break_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("no folder")


def garbage(path: Path) -> None:
    path.write_text("no database, but long enough to be read as one" * 50)


def strange_rows(path: Path) -> None:
    with Fleet(path) as fleet:
        fleet.record([Report(node="n1", at=T, findings=())], "sweep")
    with sqlite3.connect(path) as link:
        link.execute("INSERT INTO standing VALUES ('n1', 'a', 'a', 'FAIL', '{', 1, 1)")
    link.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(break_folder, "can't be opened"), (garbage, "can't be opened"), (strange_rows, "left out")],
)
def test_a_record_that_can_not_be_used_is_logged_and_fills_no_log(
    tmp_path: Path, spoil: Callable[[Path], None], said: str, notes: list[str]
) -> None:
    (tmp_path / "deep").mkdir()
    desk = Desk(tmp_path / "deep/fleet.db")
    spoil(desk.path)
    for _ in range(3):
        desk.recorder.record("n1", report())
    desk.settle()
    assert len(notes) == 2 and said in notes[0] and notes[1].endswith("(2 so far)")


def test_the_loop_never_waits_for_a_record_that_another_writer_holds(desk: Desk) -> None:
    desk.recorder.record("n1", report())
    desk.settle()
    told: list[dict[str, str]] = []

    async def scenario() -> None:
        run: Any = SimpleNamespace(
            excluded={"n1": Exclusion(node="n1", reason="x", since=T, attempt=1)}
        )
        following = asyncio.ensure_future(desk.recorder.follow(lambda: run, told.append, no_news))
        await asyncio.sleep(0.05)  # the thread waits now; the loop runs on
        desk.recorder.record("n2", report("n2"))
        assert not told
        other.execute("ROLLBACK")
        while not told:
            await asyncio.sleep(0.01)
        following.cancel()

    other = sqlite3.connect(desk.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    asyncio.run(scenario())
    other.close()
    desk.settle()
    with Fleet(desk.path) as fleet:
        assert {s.node for s in fleet.current_findings()} == {"n1", "n2"} and fleet.strikes(T)[
            "n1"
        ] == 2


async def no_news(_repairs: object) -> None:
    pass


def test_a_repair_is_heard_of_while_the_run_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_recorder, "READ_EVERY_S", 0.01)
    heard: list[dict[str, dict[str, float]]] = []

    async def hear(repairs: dict[str, dict[str, float]]) -> None:
        heard.append(repairs)

    async def scenario() -> None:
        run: Any = SimpleNamespace(excluded={})
        following = asyncio.ensure_future(desk.recorder.follow(lambda: run, lambda _: None, hear))
        while not heard:
            await asyncio.sleep(0.01)
        with Fleet(desk.path) as fleet:
            fleet.repairs.tell("n1", T, ("ib",), "new cable", "kim")
        while not heard[-1]:
            await asyncio.sleep(0.01)
        following.cancel()

    asyncio.run(scenario())
    assert heard[0] == {} and heard[-1] == {"n1": {"ib": T}}


@pytest.fixture
def full(tmp_path: Path) -> Any:
    """A file system of 256 KiB."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_logged_and_what_was_written_stays(full: Path, notes: list[str]) -> None:
    desk = Desk(full / "fleet.db")
    desk.recorder.record("n1", report())
    desk.settle()
    with open(full / "filler", "wb", buffering=0) as filler:  # noqa: SIM117
        with pytest.raises(OSError, match="No space"):
            while True:
                filler.write(b"x" * 4096)
    for number in range(20):
        desk.recorder.record(f"n{number}", report(f"n{number}"))
    desk.settle()
    assert len(notes) == 5 and "full" in notes[0] and notes[4].endswith("(16 so far)")
    assert desk.exchange() == {}
    with Fleet(desk.path, write=False) as fleet:
        assert "n1" in {n.name for n in fleet.nodes(T)}
