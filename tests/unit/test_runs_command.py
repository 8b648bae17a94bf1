"""`superv runs`: what stands in the list, what `--prune` removes, and what it never does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from scenario import spec

from supervisor.cli import cli
from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.ports import JobState
from supervisor.core.types import Phase
from supervisor.run.folder import RunDir
from supervisor.run.journal import Journal

DAY = 86_400.0
NOW = time.time()


class Home:
    """A state_dir with runs in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "state/runs").mkdir(parents=True, mode=0o755)
        (path / "site.yaml").write_text(f"state_dir: {path}/state\n")

    def run(self, name: str, run_id: str, began: float, ended: float | None = None) -> RunDir:
        """A run that was launched then, and that a person's scancel ended at `ended`."""
        made = RunDir(self.path / "state/runs" / name)
        made.path.mkdir(mode=0o700)
        events: list[ev.Event] = [
            ev.Launched(at=began, spec=replace(spec(), name=name.partition("~")[0], run_id=run_id)),
            ev.EngineStarted(at=began, epoch=1, host="login", endpoint="tcp://10.0.0.1:1"),
            ev.Submitted(at=began, key="submit/1", job_id="7", job_name="superv-x"),
        ]
        if ended is not None:
            events.append(
                ev.AllocationSeen(
                    at=ended, job_id="7", state=JobState.CANCELLED, raw="CANCELLED by 1000"
                )
            )
        journal, state = Journal(made.journal), None
        for event in events:
            state, actions = step(state, event)
            journal.append(event, actions, epoch=1)
        journal.close()
        assert state is not None and state.ended is (ended is not None), state
        return made

    def superv(self, *argv: str, rc: int = 0) -> str:
        done = CliRunner().invoke(cli, argv, env={"SUPERV_SITE": str(self.path / "site.yaml")})
        assert done.exit_code == rc, done.output + str(done.exception)
        return done.output

    @property
    def there(self) -> set[str]:
        return {path.name for path in (self.path / "state/runs").iterdir()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.run("moe~aaaaaa", "aaaaaa000000", NOW - 50 * DAY, NOW - 40 * DAY)
    made.run("moe", "bbbbbb000000", NOW - 39 * DAY, NOW - 2 * DAY)
    made.run("live", "cccccc000000", NOW - 60 * DAY)
    lost = made.run("lost", "dddddd000000", NOW - 60 * DAY, NOW - 59 * DAY)
    lost.journal.write_bytes(lost.journal.read_bytes().replace(b'"n":2', b'"n":3'))
    return made


def test_all_are_listed_and_told_apart(home: Home) -> None:
    told = json.loads(home.superv("runs", "--json"))
    assert (told["schema"], told["at"] >= NOW) == (1, True)
    by_run = {one["run"]: one for one in told["runs"]}
    assert by_run.keys() == {"moe", "moe~aaaaaa", "live", "lost"}
    old, new = by_run["moe~aaaaaa"], by_run["moe"]
    assert old["name"] == new["name"] == "moe"
    assert (old["run_id"], old["replaced"], new["replaced"]) == ("aaaaaa000000", True, False)
    assert (new["phase"], by_run["live"]["phase"], by_run["lost"]["phase"]) == (
        Phase.STOPPED,
        Phase.PENDING,
        None,
    )
    assert "damaged line" in by_run["lost"]["problem"]
    page = home.superv("runs")
    (row,) = [line for line in page.splitlines() if line.startswith("moe~aaaaaa")]
    assert row.split()[1:4] == ["aaaaaa", "50", "d"] and "stopped" in row
    assert max(map(len, page.splitlines())) <= 100


def test_every_key_is_in_the_docs(home: Home) -> None:
    page = (Path(__file__).parents[2] / "docs/runs.md").read_text()
    pruned = json.loads(home.superv("runs", "--prune", "--dry-run", "--json"))
    listed = json.loads(home.superv("runs", "--json"))
    for key in (*pruned, *listed, *listed["runs"][0]):
        assert f"`{key}`" in page, key


def test_status_shows_what_lives_and_what_waits_for_a_person(home: Home) -> None:
    shown = [line.split()[0] for line in home.superv("status").splitlines()[1:] if line[0] != " "]
    assert set(shown) == {"live", "lost"}
    assert {
        one["run"] for one in json.loads(home.superv("status", "--json", "--all"))
    } == home.there


@pytest.mark.parametrize("age", ["30d", "1d"])
def test_prune_removes_what_is_over_and_old_and_nothing_else(home: Home, age: str) -> None:
    before = home.there
    words = ("runs", "--prune", "--older-than", age, "--json")
    planned = json.loads(home.superv(*words, "--dry-run"))
    assert home.there == before
    done = json.loads(home.superv(*words))
    gone = {"moe~aaaaaa"} | ({"moe"} if age == "1d" else set())
    assert set(planned["removed"]) == set(done["removed"]) == gone
    assert home.there == before - gone == set(done["kept"])
    assert "pending" in done["kept"]["live"] and "unknown" in done["kept"]["lost"]


def test_prune_removes_what_nobody_finished(home: Home) -> None:
    for name, age in ((".moe.01234567", 31), (".new.01234567", 0), (".mine", 31)):
        path = home.path / "state/runs" / name
        path.mkdir()
        os.utime(path, (NOW - age * DAY, NOW - age * DAY))
    assert ".moe.01234567" in home.superv("runs", "--prune", "--dry-run")
    home.superv("runs", "--prune")
    assert {name for name in home.there if name[0] == "."} == {".new.01234567", ".mine"}


@contextlib.contextmanager
def immovable(folder: Path) -> Iterator[None]:
    """While what is in it can't be removed, by root either."""
    root = os.geteuid() == 0
    (folder / "stuck").write_text("")
    lock = ["chattr", "+i", "stuck"] if root else ["chmod", "u-w", "."]
    subprocess.run(lock, cwd=folder, check=True)
    try:
        yield
    finally:
        subprocess.run([lock[0], lock[1].translate({43: "-", 45: "+"}), lock[2]], cwd=folder)


def test_prune_goes_on_where_something_can_not_be_removed(home: Home) -> None:
    """And tells all that it did; a link is nothing that superv has put there."""
    runs, far = home.path / "state/runs", home.path / "far"
    home.run("far", "eeeeee000000", NOW - 50 * DAY, NOW - 40 * DAY).path.rename(far)
    (runs / "far").symlink_to(far)
    (runs / ".moe.00000000").symlink_to(home.path)
    os.utime(runs / ".moe.00000000", (NOW - 31 * DAY,) * 2, follow_symlinks=False)
    for name in (".moe.11111111", ".moe.22222222"):
        (runs / name).mkdir()
    with immovable(runs / ".moe.11111111"):
        for name in (".moe.11111111", ".moe.22222222"):
            os.utime(runs / name, (NOW - 31 * DAY,) * 2)
        told = json.loads(home.superv("runs", "--prune", "--json", rc=1))
    assert set(told["removed"]) == {"moe~aaaaaa", ".moe.22222222"}
    assert "can't be removed" in told["kept"][".moe.11111111"]
    assert told["kept"]["far"] == f"it is a link to {far}" and (far / "journal.jsonl").exists()
    assert home.there >= {"far", "moe", ".moe.00000000", ".moe.11111111"}


HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


def test_prune_leaves_a_run_that_an_engine_takes_up(home: Home) -> None:
    journal = home.path / "state/runs/moe~aaaaaa/journal.jsonl"
    argv = [sys.executable, "-c", HOLD, str(journal)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        done = json.loads(home.superv("runs", "--prune", "--json"))
        engine.kill()
    assert done["kept"]["moe~aaaaaa"] == "an engine has it" and "moe~aaaaaa" in home.there
