"""What runs out and passes is told apart from bugs, wherever its exception comes from."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys

import pytest
import zmq
from logged import logged

from supervisor import proc
from supervisor.host.shortage import ERRNOS, lasting, raise_descriptor_limit, shortage


@pytest.mark.parametrize("number", ERRNOS)
def test_errnos_of_a_shortage(number: int) -> None:
    assert shortage(OSError(number, os.strerror(number))) == ERRNOS[number]
    assert shortage(zmq.ZMQError(number)) == ERRNOS[number]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "no"),
        OSError("no number"),
        RuntimeError("a bug"),
        KeyError("errno"),
        TimeoutError(),
        None,
    ],
    ids=repr,
)
def test_bugs_are_none(error: BaseException | None) -> None:
    assert shortage(error) == ""


def test_no_thread_and_no_memory() -> None:
    assert "process or thread" in shortage(RuntimeError("can't start new thread"))
    assert "memory" in shortage(MemoryError())


def test_a_part_goes_on_after_a_shortage_and_not_after_a_bug() -> None:
    ends = [OSError(errno.EMFILE, "no"), RuntimeError("a bug")]

    async def _part() -> None:
        raise ends.pop(0)

    with logged() as notes, pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(lasting(_part))
    assert notes == [f"part: {ERRNOS[errno.EMFILE]}; it is tried again"]


LIMITED = """
import asyncio, os, resource
from supervisor import proc
loop = asyncio.new_event_loop()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
while True:
    try:
        held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        break
for free in range(12):  # from none to enough, whichever call it is that fails
    a = proc.run_sync(["sh", "-c", "exit 3"], deadline_s=10)
    b = loop.run_until_complete(proc.run(["sh", "-c", "exit 3"], deadline_s=10))
    assert {a.rc, b.rc} <= {3, 126}, (free, a, b)
    assert all(x.rc == 3 or "Too many open files" in x.err for x in (a, b)), (a, b)
    print(free, a.rc, b.rc)
    os.close(held.pop())
"""


def test_a_child_with_any_number_of_descriptors_left() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["0", "126", "126"] and lines[-1] == ["11", "3", "3"]


def test_slurm_s_commands_that_could_not_be_started_are_asked_again() -> None:
    from launchers.slurm_answers import is_away

    for number in ERRNOS:
        assert is_away(f"sbatch: {os.strerror(number)}"), os.strerror(number)


def test_all_descriptors_that_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] // 2, before[1]))
        assert raise_descriptor_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert proc.run_sync(["true"], deadline_s=10).rc == 0
