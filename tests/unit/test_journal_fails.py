"""A failed append changes nothing: what comes after it is read, and the fold is the run."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenario import Scenario

from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.types import Phase
from supervisor.engine import control
from supervisor.run.journal import Journal, JournalError, UnfitError, read, rebuild

HALF = "half a character: \udcff"


@pytest.fixture(scope="module")
def events() -> list[ev.Event]:
    play = Scenario(nodes=2, spares=1).to(Phase.RUNNING)
    play.save(10)
    play.lose("n2")
    play.recover_to_first_step()
    return list(play.events)


@contextlib.contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a write is cut there, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


UNFIT = [
    ev.StopRequested(at=1.0, who=HALF, now=False),
    ev.QuarantineRequested(at=1.0, who="ann", step=1, reason=HALF, and_later=False),
    ev.QuarantineRequested(at=1.0, who="ann", step=10**30, reason="", and_later=False),
    ev.EngineStarted(at=float("nan"), epoch=1, host="login1", endpoint="tcp://10.0.0.1:1"),
    ev.EngineStarted(at=float("inf"), epoch=1, host="login1", endpoint="tcp://10.0.0.1:1"),
]


@pytest.mark.parametrize("event", UNFIT, ids=lambda event: type(event).__name__)
def test_what_could_not_be_read_again_is_not_written(
    tmp_path: Path, events: list[ev.Event], event: ev.Event
) -> None:
    journal, run = Journal(tmp_path / "journal"), None
    for good in events[:5]:
        run, actions = step(run, good)
        journal.append(good, actions, epoch=1)
        whole = journal.path.read_bytes()
        with pytest.raises(UnfitError, match=type(event).__name__) as refused:
            journal.append(event, (), epoch=1)
        assert "\n" not in str(refused.value)
        assert journal.path.read_bytes() == whole
    journal.close()
    assert rebuild(read(journal.path)) == run
    assert [record.n for record in read(journal.path)] == [1, 2, 3, 4, 5]


def test_a_loss_that_is_no_number_is_journaled_as_none(
    tmp_path: Path, events: list[ev.Event]
) -> None:
    journal = Journal(tmp_path / "journal")
    for event in (events[0], ev.Progress(at=1, attempt=1, step=5, loss=float("nan"))):
        journal.append(event, (), epoch=1)
    journal.close()
    *_, last = read(journal.path)
    assert isinstance(last.event, ev.Progress) and last.event.loss is None


@pytest.mark.parametrize("seed", range(40))
def test_after_any_failed_append_the_next_good_one_is_read_and_the_fold_is_the_run(
    tmp_path: Path, events: list[ev.Event], seed: int
) -> None:
    chance = random.Random(seed)
    journal, run = Journal(tmp_path / "journal"), None
    written: list[ev.Event] = []
    for event in events:
        after, actions = step(run, event)
        for _ in range(chance.randrange(3)):
            length = journal.path.stat().st_size
            if chance.random() < 0.5:
                with pytest.raises(UnfitError):
                    journal.append(chance.choice(UNFIT), actions, epoch=1)
            else:
                with no_room(length + chance.choice((0, 1, 20, 60))), pytest.raises(OSError):
                    journal.append(event, actions, epoch=1)
            assert journal.path.stat().st_size == length
        if chance.random() < 0.1:  # another engine goes on
            journal.close()
            journal = Journal(tmp_path / "journal")
            assert journal.run == run
        journal.append(event, actions, epoch=1)
        run = after
        written.append(event)
    journal.close()
    assert [record.event for record in read(journal.path)] == written
    assert rebuild(read(journal.path)) == run


def test_what_could_not_be_cut_off_at_once_is_cut_off_before_the_next_line(
    tmp_path: Path, events: list[ev.Event]
) -> None:
    """Neither written nor cut: the descriptor is one that only reads for a while."""
    journal = Journal(tmp_path / "journal")
    run, actions = step(None, events[0])
    journal.append(events[0], actions, epoch=1)
    length = journal.path.stat().st_size
    keep, readonly = os.dup(journal._fd), os.open(journal.path, os.O_RDONLY)
    os.dup2(readonly, journal._fd)
    with pytest.raises(OSError):
        journal.append(events[1], (), epoch=1)
    os.dup2(keep, journal._fd)
    os.write(keep, b'{"crc":"half a line')  # as a write that was cut leaves it
    run, actions = step(run, events[1])
    journal.append(events[1], actions, epoch=1)
    journal.close()
    os.close(keep)
    os.close(readonly)
    assert journal.path.read_bytes()[length - 1 : length + 7] == b'\n{"crc":'
    assert rebuild(read(journal.path)) == run


FSYNC = """
#include <errno.h>
#include <stdlib.h>
int fdatasync(int fd) { (void)fd; errno = EIO; return getenv("SYNC_FAILS") ? -1 : 0; }
"""
SYNCING = """
import ctypes, json, pathlib, sys
from supervisor.core import events as ev, actions as act
from supervisor.run.journal import Journal
libc = ctypes.CDLL(None)
path = pathlib.Path(sys.argv[1])
journal = Journal(path)
event = ev.StopRequested(at=1.0, who="ann", now=False)
poll = act.Poll(key="poll", job_id="7")
for fails in (False, True, True, False):
    libc.setenv(b"SYNC_FAILS", b"1", 1) if fails else libc.unsetenv(b"SYNC_FAILS")
    try:
        print(journal.append(event, (poll,), epoch=1).n)
    except OSError as error:
        print(error.strerror, len(open(path).readlines()))
print([json.loads(line)["n"] for line in open(path)])
"""


def test_a_line_that_did_not_reach_the_disk_is_none(tmp_path: Path) -> None:
    """fdatasync fails as a disk's or an NFS server's error makes it fail."""
    library = tmp_path / "sync.so"
    (tmp_path / "sync.c").write_text(FSYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "sync.c"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SYNCING, tmp_path / "journal"],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
    )
    why = os.strerror(errno.EIO)
    assert done.stdout.splitlines() == ["1", f"{why} 1", f"{why} 1", "2", "[1, 2]"]


def crafted(body: bytes) -> bytes:
    from zlib import crc32

    return b'{"crc":"%08x",' % crc32(b"{" + body) + body + b"\n"


@pytest.mark.parametrize(
    "body",
    [
        b"}",
        b'"n":1}',
        b'"n":"1","epoch":1,"event":{},"actions":[]}',
        b'"n":1,"epoch":1,"event":[],"actions":[]}',
        b'"n":1,"epoch":1,"event":{"kind":"StopRequested"},"actions":[]}',
        b'"n":1,"epoch":1,"event":{"kind":"StopRequested","at":1,"who":"\\ud800","now":true},"actions":[]}',
        b'"n":1,"epoch":1,"event":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b',"actions":[]}',
        b'"n":1,"epoch":1,"event":{"kind":"StopRequested","at":1,"who":"\xff","now":true},"actions":[]}',
    ],
    ids=range(8),
)
def test_a_line_with_a_good_checksum_that_is_no_record_is_one_line_of_error(
    tmp_path: Path, body: bytes
) -> None:
    path = tmp_path / "journal"
    path.write_bytes(crafted(body))
    with pytest.raises(JournalError, match=r"journal:1: ") as error:
        list(read(path))
    assert "\n" not in str(error.value)


# --- the edges


@pytest.mark.parametrize(
    "line",
    [
        rb'{"do":"stop","who":"\udcff","now":true}',
        rb'{"do":"quarantine","who":"a","step":NaN,"reason":"","and_later":null}',
        b'{"do":"stop","who":"\xed\xa0\x80","now":true}',
    ],
)
def test_the_control_socket_takes_text_alone(line: bytes) -> None:
    with pytest.raises(ValueError):
        control._understood(line)


def test_arguments_are_text() -> None:
    superv = Path(sys.executable).with_name("superv")
    words = ["checkpoints", "quarantine", "r", "1", "--reason", b"\xff"]
    done = subprocess.run([superv, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "superv: argument 6 is not UTF-8: '\\udcff'; give it as UTF-8\n"
