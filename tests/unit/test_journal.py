"""A journal survives crashes, tells damage from a torn end, and has one writer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.policy import Policy
from supervisor.core.types import Phase, Run, RunSpec
from supervisor.run.journal import Busy, Journal, JournalError, read, rebuild


def written(path: Path, play: Scenario) -> list[int]:
    """Journal all that happened in a play; returns the file's length after each record."""
    journal = Journal(path)
    lengths = [0]
    run: Run | None = None
    for event in play.events:
        run, actions = step(run, event)
        journal.append(event, actions, epoch=run.epoch)
        lengths.append(path.stat().st_size)
    journal.close()
    return lengths


@pytest.fixture
def play() -> Scenario:
    """A launch, a lost node and a recovery: events of most kinds."""
    p = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    p.save(10)
    p.lose("n2")
    p.recover_to_first_step()
    return p


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_run_is_rebuilt_from_its_journal(path, play):
    written(path, play)
    assert rebuild(read(path)) == play.run
    journal = Journal(path)
    assert (journal.run, journal.epoch, journal.torn) == (play.run, play.run.epoch, 0)
    journal.close()
    records = list(read(path))
    assert [r.n for r in records] == list(range(1, len(play.events) + 1))
    assert [a for r in records for a in r.actions] == play.ordered


def test_the_file_is_the_owners_alone(path, play):
    written(path, play)
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_can_be_gone_on_with(path, play):
    written(path, play)
    journal = Journal(path)
    event = ev.EngineStarted(at=9999.0, epoch=7, host="login2", endpoint="tcp://10.0.0.2:1")
    run, actions = step(journal.run, event)
    journal.append(event, actions, epoch=7)
    journal.close()
    again = Journal(path)
    assert (again.run, again.epoch) == (run, 7)
    again.close()


def test_an_empty_journal_has_no_run(path):
    journal = Journal(path)
    assert (journal.run, journal.epoch, journal.torn) == (None, 0, 0)
    journal.close()
    assert rebuild(read(path)) is None


def test_a_last_line_torn_at_any_byte_is_cut_off_and_the_rest_is_kept(path, play):
    lengths = written(path, play)
    whole = path.read_bytes()
    before = rebuild(iter(list(read(path))[:-1]))
    for end in range(lengths[-2] + 1, lengths[-1]):
        path.write_bytes(whole[:end])
        assert len(list(read(path))) == len(play.events) - 1
        journal = Journal(path)
        assert (journal.run, journal.torn) == (before, end - lengths[-2])
        journal.append(play.events[-1], (), epoch=1)
        journal.close()
        assert rebuild(read(path)) == play.run


def test_a_last_line_with_any_byte_damaged_is_not_believed(path, play):
    lengths = written(path, play)
    whole = path.read_bytes()
    for at in range(lengths[-2], lengths[-1]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert len(list(read(path))) == len(play.events) - 1, f"byte {at - lengths[-2]}"


@pytest.mark.parametrize("line", [0, 1, 5])
def test_a_damaged_line_before_the_end_is_an_error_that_names_it(path, play, line):
    lengths = written(path, play)
    whole = bytearray(path.read_bytes())
    whole[lengths[line] + 40] ^= 1
    path.write_bytes(whole)
    with pytest.raises(JournalError, match=rf"journal:{line + 1}: damaged line"):
        list(read(path))
    for _ in range(2):  # the lock is given back
        with pytest.raises(JournalError):
            Journal(path)
    assert path.read_bytes() == whole, "nothing is cut off"


@pytest.mark.parametrize("line", [0, 3])
def test_a_missing_line_is_an_error(path, play, line):
    lengths = written(path, play)
    whole = path.read_bytes()
    path.write_bytes(whole[: lengths[line]] + whole[lengths[line + 1] :])
    with pytest.raises(JournalError, match=rf"journal:{line + 1}: line {line + 2} stands here"):
        list(read(path))


def test_a_line_of_a_newer_superv_is_refused_in_one_line_wherever_it_stands(path, play):
    from zlib import crc32

    lengths = written(path, play)
    body = b'"n":2,"epoch":1,"event":{"kind":"Teleported","at":1.0},"actions":[]}'
    line = b'{"crc":"%08x",' % crc32(b"{" + body) + body + b"\n"
    whole = path.read_bytes()
    for rest in (b"", whole[lengths[2] :]):
        path.write_bytes(whole[: lengths[1]] + line + rest)
        with pytest.raises(JournalError, match=r":2: unknown kind 'Teleported'") as error:
            Journal(path)
        assert "\n" not in str(error.value)


def test_two_writers_can_not_have_it(path, play):
    written(path, play)
    journal = Journal(path)
    with pytest.raises(Busy, match="another engine has this run"):
        Journal(path)
    code = (
        "import sys, pathlib; from supervisor.run.journal import Busy, Journal\n"
        "try: Journal(pathlib.Path(sys.argv[1]))\n"
        "except Busy: sys.exit(75)"
    )
    other = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(other, check=False, timeout=30).returncode == 75
    journal.close()
    assert subprocess.run(other, check=False, timeout=30).returncode == 0


def test_a_record_is_in_the_file_when_append_returns(path, play):
    journal = Journal(path)
    run: Run | None = None
    for count, event in enumerate(play.events, start=1):
        run, actions = step(run, event)
        journal.append(event, actions, epoch=1)
        assert len(list(read(path))) == count
    journal.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_stays_open(path, play):
    written(path, play)
    before = len(os.listdir("/proc/self/fd"))
    journal = Journal(path)
    with pytest.raises(Busy):
        Journal(path)
    journal.close()
    path.write_bytes(b"x\n" + path.read_bytes())
    with pytest.raises(JournalError):
        Journal(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_whole_numbers_where_a_fraction_may_stand(path):
    """They come back as floats: the same value in other letters."""
    policy = Policy(heartbeat_timeout_s=600, first_step_timeout_s=600)
    spec = RunSpec(
        name="run",
        run_id="4f",
        nodes=1,
        spares=0,
        ranks_per_node=1,
        checkpoint_dir=None,
        policy=policy,
    )
    journal = Journal(path)
    journal.append(ev.Launched(at=1, spec=spec), (), epoch=0)
    journal.close()
    assert Journal(path).run.spec == spec


def test_only_an_engine_and_the_launch_of_a_run_write_a_journal():
    """Reading needs no `Journal`, which holds the lock and appends."""
    writers = {
        (path.name, getattr(around, "name", ""))
        for path in (Path(__file__).parents[2] / "supervisor").rglob("*.py")
        if path.parent.name != "simulate"
        for around in ast.walk(ast.parse(path.read_text()))
        if isinstance(around, ast.FunctionDef | ast.AsyncFunctionDef)
        for call in ast.walk(around)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Journal"
    }
    assert writers == {
        ("process.py", "_journal"),
        ("adoption.py", "_begun"),
        ("process.py", "_journal_of_ended"),
        ("launching.py", "launch"),
        ("prune.py", "_locked"),  # for its lock alone
    }
