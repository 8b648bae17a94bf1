"""What a journal folds into is kept beside it, and never needed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core import machine
from supervisor.core.types import Phase, Run
from supervisor.run import folded
from supervisor.run.folded import Folded
from supervisor.run.journal import (
    KEEP_EVERY,
    Journal,
    JournalError,
    fold,
    read,
    readable,
    rebuild,
)

RING = Path(__file__).parents[1] / "data/journals/ring.jsonl"


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal that is long enough for its run to be kept, and some lines after that."""
    path = tmp_path_factory.mktemp("run") / "journal.jsonl"
    journal = Journal(path)
    play = Scenario(nodes=3, ranks=2).to(Phase.RUNNING)
    run: Run | None = None
    events = [*play.events]
    events += [
        ev.Progress(at=play.now + n, attempt=1, step=1000 + n, loss=0.1 * n)
        for n in range(KEEP_EVERY + 200)
    ]
    for event in events:
        run, actions = machine.step(run, event)
        journal.append(event, actions, epoch=2, run=run)
    journal.close()
    return path


@pytest.fixture
def there(month: Path, tmp_path: Path) -> Path:
    shutil.copytree(month.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / month.name


def folds(work: Callable[[], Any]) -> int:
    """How many events are folded meanwhile."""
    found = 0

    def count(frame: FrameType, what: str, arg: object) -> None:
        nonlocal found
        found += what == "call" and frame.f_code is machine.step.__code__

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def test_only_the_lines_since_are_folded(there: Path) -> None:
    records = len(there.read_bytes().splitlines())
    assert folds(lambda: fold(there)) < records - KEEP_EVERY + 1 <= 300
    assert fold(there).run == rebuild(read(there))
    assert folds(lambda: readable(there)) <= 300 and readable(there) == (fold(there).run, 2)
    journal = Journal(there)
    assert journal.run == rebuild(read(there)) and journal.epoch == 2
    journal.append(ev.Progress(at=9e9, attempt=1, step=10**6), (), epoch=3)
    journal.close()
    assert fold(there).n == records + 1 and [r.n for r in read(there)][-1] == records + 1
    assert fold(there).run == rebuild(read(there)) and fold(there).epoch == 3


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def other_code(path: Path) -> None:
    path.write_bytes(re.sub(rb'"code":"[0-9a-f]{8}', b'"code":"00000000', path.read_bytes()))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (lambda path: path.unlink(), ""),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "is damaged"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b" "), "is damaged"),
    "a bit of the header": (lambda path: flip(path, 1), "is damaged"),
    "a bit of the run": (lambda path: flip(path, 2000), "is damaged"),
    "no text": (lambda path: path.write_bytes(b"\xff" * 100), "is damaged"),
    "another code's": (other_code, "was written by another version of superv"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "can't be read: Is a directory"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_where_it_does_not_count_all_is_folded_again(
    there: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = rebuild(read(there))
    damage, said = DAMAGE[what]
    damage(folded.path_of(there))
    caplog.set_level("INFO")
    assert fold(there).run == whole
    if said:
        assert f"{folded.path_of(there)} {said}: the whole journal is folded again" in caplog.text
    else:
        assert not caplog.text
    journal = Journal(there)
    assert journal.run == whole
    journal.append(ev.Waiting(at=9e9, key="x", why="y"), (), epoch=3, run=whole)  # kept anew
    journal.close()
    if what != "a folder":
        assert folds(lambda: fold(there)) == 0 and fold(there).run == whole


def test_a_journal_that_is_damaged_before_it_is_refused_as_ever(there: Path) -> None:
    flip(there, len(there.read_bytes()) // 2)
    for opened in (fold, Journal):
        with pytest.raises(JournalError, match=r"damaged line; its checksum is wrong"):
            opened(there)


def test_it_is_not_taken_for_another_journal(there: Path) -> None:
    other = there.with_name("other.jsonl")
    shutil.copy(RING, other)
    shutil.copy(folded.path_of(there), folded.path_of(other))
    with pytest.raises(folded.StaleError, match="belongs to other lines"):
        folded.read(other)
    assert fold(other).run == rebuild(read(RING))


def test_a_journal_shorter_than_what_it_was_folded_from(there: Path) -> None:
    lines = there.read_bytes().splitlines(keepends=True)
    there.write_bytes(b"".join(lines[:100]))
    assert fold(there).run == rebuild(read(there)) and fold(there).n == 100


def test_every_state_reads_as_it_was_written(tmp_path: Path) -> None:
    run: Run | None = None
    for record in read(RING):
        run, _ = machine.step(run, record.event)
        folded.write(tmp_path / "journal.jsonl", Folded(run=run))
        (tmp_path / "journal.jsonl").touch()
        again = folded.read(tmp_path / "journal.jsonl").run
        assert again == run and again is not None
        assert list(again.pending) == list(run.pending) and list(again.pool) == list(run.pool)


def test_nobody_else_reads_it(there: Path) -> None:
    assert folded.path_of(there).stat().st_mode & 0o777 == 0o600
