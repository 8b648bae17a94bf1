"""What /proc tells of processes: real ones, and trees of files that look like it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.host import procfs
from supervisor.host.procfs import Stat

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[subprocess.Popen[bytes]] = []

    def begin(*argv: str, **how: object) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(argv, **how))  # type: ignore[call-overload]
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.wait()


def reaches(pid: int, letter: str) -> None:
    deadline = time.monotonic() + 20
    while procfs.state(pid) != letter:
        assert time.monotonic() < deadline, procfs.stat(pid)
        time.sleep(0.005)


def test_a_process_that_calls_itself_roots(start: Start) -> None:
    code = "open('/proc/self/comm', 'w').write('x\\rUid:\\t4242 1'); import time; time.sleep(60)"
    child = start(sys.executable, "-c", code)
    deadline = time.monotonic() + 20
    while (found := procfs.stat(child.pid)) is None or "\r" not in found.name:
        assert time.monotonic() < deadline, found
        time.sleep(0.005)
    assert procfs.real_uid(child.pid) == os.getuid()


# The command's name is in parentheses in /proc/PID/stat, and may hold some itself.
NAMES = ["sleep", ") Z 1 1 1", "(x) (y", ") ", "(", "a b c", "ä\\n", "fifteen bytes !"]


@pytest.mark.parametrize("name", NAMES)
def test_a_process_whatever_its_name(tmp_path: Path, start: Start, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    child = start(str(program), "600", start_new_session=True)
    reaches(child.pid, "S")
    found = procfs.stat(child.pid)
    assert found == Stat(
        pid=child.pid,
        name=found.name if found else "",
        state="S",
        parent=os.getpid(),
        session=child.pid,
        started=found.started if found else -1,
    )
    assert found.name == name.encode()[:15].decode() and found.alive
    assert found in list(procfs.processes())
    assert procfs.argv(child.pid) == (str(program), "600")


def test_start_times_follow_one_another(start: Start) -> None:
    child = start("sleep", "600")
    first, mine = procfs.start_time(child.pid), procfs.start_time(os.getpid())
    assert first is not None and mine is not None and first >= mine
    assert procfs.start_time(child.pid) == first


def test_stopped_ended_and_gone(start: Start) -> None:
    child = start("sleep", "600")
    started = procfs.start_time(child.pid)
    assert started is not None
    assert procfs.alive(child.pid, started)
    assert not procfs.alive(child.pid, started + 1), "another process that was given the number"
    os.kill(child.pid, signal.SIGSTOP)
    reaches(child.pid, "T")
    assert procfs.alive(child.pid, started)
    child.kill()
    reaches(child.pid, "Z")
    assert procfs.start_time(child.pid) == started, "a zombie keeps its number"
    assert not procfs.alive(child.pid, started)
    assert procfs.argv(child.pid) == () and not procfs.environ(child.pid)
    child.wait()
    assert procfs.stat(child.pid) is None and procfs.state(child.pid) is None
    assert procfs.start_time(child.pid) is None and procfs.environ(child.pid) is None
    assert not procfs.alive(child.pid, started) and procfs.argv(child.pid) == ()
    assert child.pid not in procfs.pids()


@pytest.mark.parametrize(
    ("begin", "there"),
    [
        ("FIRST=", True),
        ("FIRST=1", True),
        ("MARK=run/n1/", True),
        ("MARK=run/n1/7", True),
        ("MARK=run/n1/77", False),
        ("ARK=run", False),
        ("run/n1", False),
        ("IN=MARK=", True),
        ("LAST=a=b", True),
        ("NONE=", False),
        ("UMLAUT=ä", True),
    ],
)
def test_variables_of_an_environment(start: Start, begin: str, there: bool) -> None:
    env = {"FIRST": "1", "MARK": "run/n1/7", "IN": "MARK=x", "UMLAUT": "ä", "LAST": "a=b"}
    child = start("/bin/sleep", "600", env=env)
    reaches(child.pid, "S")
    assert procfs.environ_has(child.pid, begin) is there
    assert procfs.environ(child.pid) == env


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_what_may_not_be_read_is_none(start: Start) -> None:
    child = start("/bin/sleep", "600", env={"MARK": "x"})
    reaches(child.pid, "S")
    script = (
        "import os, sys; os.setuid(65534); from supervisor.host import procfs; "
        "p = int(sys.argv[1]); "
        "print(procfs.environ(p), procfs.environ_has(p, 'MARK='), procfs.state(p), procfs.argv(p))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(child.pid)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "None False S ('/bin/sleep', '600')\n"


def test_kernel_threads_have_no_words(tmp_path: Path) -> None:
    """In a tree of files: a container shows none of them."""
    (tmp_path / "2").mkdir()
    (tmp_path / "2/stat").write_text(f"2 (kworker/u8:2-(x)) I 0 0 0 {' '.join(['0'] * 46)}")
    (tmp_path / "2/cmdline").write_bytes(b"")
    (tmp_path / "2/environ").write_bytes(b"")
    (tmp_path / "self").mkdir()
    root = str(tmp_path)
    assert procfs.pids(root) == [2]
    assert procfs.stat(2, root) == Stat(2, "kworker/u8:2-(x)", "I", 0, 0, 0)
    assert procfs.argv(2, root) == () and procfs.environ(2, root) == {}
    assert procfs.boot_id(root) is None


def test_those_that_end_meanwhile_are_left_out(tmp_path: Path) -> None:
    for pid in (3, 4):
        (tmp_path / str(pid)).mkdir()
    (tmp_path / "4/stat").write_text(f"4 (x) S 1 4 4 {' '.join(['0'] * 46)}")
    assert [found.pid for found in procfs.processes(str(tmp_path))] == [4]


@pytest.mark.parametrize(
    "line", [b"x", b"1 (a) S 1", b"(a) S " + b"1 " * 50, b"1 (a S" + b" 1" * 50]
)
def test_a_line_that_is_none_is_an_error(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/stat").write_bytes(line)
    with pytest.raises((ValueError, IndexError)):
        procfs.stat(1, str(tmp_path))


def test_an_own_shortage_is_not_a_process_that_is_gone() -> None:
    """Else an agent without descriptors would take its ranks for ended."""
    script = (
        "import os, resource; from supervisor.host import procfs\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "for ask in (procfs.stat, procfs.environ, procfs.argv):\n"
        "    try:\n        print(ask(os.getpid()))\n"
        "    except OSError as error:\n        print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(errno.EMFILE)] * 3
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3


def test_this_boot() -> None:
    assert procfs.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
