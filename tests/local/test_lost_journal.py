"""A journal that is damaged, cut, emptied or deleted: the ranks go on, and the run can be taken up.

From what agents, the launcher and the run's folder know a new journal begins. No rank is touched.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from home import RunHome, until


def damage(path: Path) -> None:
    """A digit is lost on a line in the middle."""
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"epoch":', b'"epoc":', 1)
    path.write_bytes(b"".join(lines))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def empty_of_a_run_of_old(path: Path) -> None:
    """Nor do the keys say which run's they are."""
    empty(path)
    keys = json.loads((path.parent / "keys.json").read_bytes())
    del keys["run_id"]
    (path.parent / "keys.json").write_text(json.dumps(keys))


HOWS = {
    "emptied, of an older run": empty_of_a_run_of_old,
    "deleted": Path.unlink,
}


def lose(home: RunHome, how: Callable[[Path], None]) -> None:
    """The engine is killed, and its journal lost."""
    home.kill_engine()
    how(home.run_dir / "journal.jsonl")


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
def test_ranks_are_adopted_and_recovered_later(home: RunHome, how: Callable[[Path], None]) -> None:
    before = home.launched()
    home.at_step(25)
    ranks = home.processes(words="ring.py")
    lose(home, how)
    for command in ("attach", "resume", "status"):
        told = home.superv(command, "ring", rc=2)
        assert "`superv attach ring --adopt`" in told and "journal.jsonl" in told, told
    home.superv_until("attach", "ring", "--adopt", said="is adopted")
    after = home.at_step(40)
    assert home.processes(words="ring.py") == ranks, "no rank was touched"
    assert (after["phase"], after["attempt"], after["incidents"]) == ("running", 1, [])
    assert after["run_id"] == before["run_id"] and after["epoch"] > before["epoch"]
    assert [s["node"] for s in after["slots"]] == [s["node"] for s in before["slots"]]
    assert until(lambda: home.status()["spares"], "the spare") == before["spares"]
    assert len(list(home.run_dir.glob("journal.lost.*"))) == (how is not Path.unlink)
    os.kill(min(home.processes("local-2", "ring.py")), signal.SIGKILL)
    again = home.reached(lambda s: s["attempt"] == 2 and s["step"], "new steps")
    (incident,) = again["incidents"]
    assert incident["cause"] == "rank-exit" and incident["resumed_from"] >= 20
    home.superv("stop", "ring")
    until(lambda: not home.processes(), "the end of all processes")


@pytest.mark.soak
def test_a_node_that_died_meanwhile_is_replaced(home: RunHome) -> None:
    before = home.launched()
    home.at_step(25)
    lose(home, damage)
    home.signal("local-2", signal.SIGSTOP)
    home.superv_until("attach", "ring", "--adopt", said="is adopted")
    after = home.reached(lambda s: s["attempt"] == 2 and s["step"], "new steps")
    assert after["run_id"] == before["run_id"]
    assert [slot["node"] for slot in after["slots"]] == ["local-1", "local-3"]
    assert after["attempt_resumed_from"] >= 20


def cut_after(lines: int) -> Callable[[Path], None]:
    """Only the first lines are left, each of them whole."""

    def cut(path: Path) -> None:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))

    return cut


@pytest.mark.soak
def test_a_journal_whose_end_is_cut_off_goes_on_where_it_tells_of_the_ranks(home: RunHome) -> None:
    home.launched()
    home.at_step(25)
    ranks = home.processes(words="ring.py")
    with (home.run_dir / "journal.jsonl").open() as journal:
        starts = [n for n, line in enumerate(journal, start=1) if '"RanksStarted"' in line]
    lose(home, cut_after(starts[-1]))
    home.superv_until("attach", "ring", said="running")
    after = home.at_step(40)
    assert home.processes(words="ring.py") == ranks and after["incidents"] == []


def test_a_journal_whose_end_is_cut_off_before_them_leads_nobody(home: RunHome) -> None:
    """The ranks are of an attempt that it does not tell of."""
    home.launched()
    home.at_step(25)
    ranks = home.processes(words="ring.py")
    assert "has an engine" in home.superv("attach", "ring", "--adopt", rc=2)
    lose(home, cut_after(1))
    said = "older than the run's agents"
    home.superv_until("attach", "ring", said=said)
    until(lambda: said in home.log() and "`superv attach ring --adopt`" in home.log(), said)
    for pid in home.processes(words="engine/guardian.py"):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not home.processes(words="supervisor.engine.process"), "the end of the engine")
    home.superv_until("attach", "ring", "--adopt", said="is adopted")
    after = home.at_step(40)
    assert home.processes(words="ring.py") == ranks, "no rank was touched"
    assert (after["attempt"], after["incidents"]) == (1, [])


def test_a_lost_run_is_ended_by_its_jobs_name_and_makes_way(home: RunHome) -> None:
    home.launched()
    home.at_step(15)
    lose(home, damage)
    job = str(home.path / "job.yaml")
    told = home.superv("launch", "--detach", job, "--from", "scratch", rc=2)
    assert "is RUNNING" in told and "`superv stop ring`" in told, "its ranks are there"
    told = home.superv("stop", "ring")
    assert "was cancelled and is gone" in told and "--from CHECKPOINT" in told
    assert not home.processes()
    assert "it has no job any more" in home.superv("stop", "ring")
    told = home.superv("attach", "ring", "--adopt", rc=2)
    assert "no ranks to adopt" in told and f"superv launch {job} --from CHECKPOINT" in told
    told = home.superv("launch", "--detach", job, rc=2)
    assert "--from CHECKPOINT" in told
    newest = max((home.path / "checkpoint/a0001").iterdir(), key=lambda p: int(p.name[5:]))
    home.superv("launch", "--detach", job, "--from", str(newest))
    assert home.at_step(12)["attempt_resumed_from"] >= 10
    assert len(list(home.run_dir.parent.glob("ring~*"))) == 1, "the lost one is kept"


def test_an_engine_that_is_there_needs_no_journal(home: RunHome) -> None:
    """It is asked first; its lost journal is named, and adopted once it is gone."""
    home.launched()
    (home.run_dir / "journal.jsonl").unlink()
    engine = home.engine()
    assert home.status()["engine"]
    (said,) = [a for a in home.status()["attention"] if a["what"] == "journal"]
    assert "is gone" in said["text"] and f"`kill {engine}`" in said["fix"]
    told = home.superv("attach", "ring", "--adopt", rc=2)
    assert f"`kill {engine}` first" in told
    home.kill_engine()
    home.superv_until("attach", "ring", "--adopt", said="is adopted")
    assert home.at_step(10)["attention"] == []
    home.superv("stop", "ring")
