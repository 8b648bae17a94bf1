"""Whatever a rank forked is found and ended, and nothing else is touched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.agent import tree
from supervisor.host import procfs
from tests.processes import send

RUN = os.urandom(6).hex()
MARK = f"{RUN}/n1/"
EVERYWHERE = {"PATH": os.environ["PATH"]}


class Family:
    """A marked process and what it starts; `pid(name)` as they tell it in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, script: str, mark: str = f"{MARK}1", **env: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            ["sh", "-c", script],
            env={**EVERYWHERE, tree.MARK: mark, **env},
            cwd=self.folder,
            start_new_session=True,
        )
        self.children.append(child)
        return child

    def pid(self, name: str) -> int:
        deadline = time.monotonic() + 20
        path = self.folder / name
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline, name
            time.sleep(0.01)
        return int(path.read_text())

    def close(self) -> None:
        for path in self.folder.iterdir():
            if path.read_text().strip().isdigit() and alive(int(path.read_text())):
                send(int(path.read_text()))
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    made = Family(tmp_path)
    yield made
    made.close()


def alive(pid: int) -> bool:
    return procfs.state(pid) not in (None, "Z", "X")


def end(grace_s: float = 0.0, roots: frozenset[int] = frozenset()) -> set[int]:
    return asyncio.run(tree.end(lambda: tree.find(MARK, roots), grace_s))


def test_children_and_their_children(family: Family):
    rank = family.start("sh -c 'sleep 600 & echo $! > child; wait' & echo $! > shell; wait")
    pids = {rank.pid, family.pid("child"), family.pid("shell")}
    assert tree.find(MARK) == pids
    assert end() == set()
    assert not any(alive(pid) for pid in pids)


def test_a_daemon_that_forked_twice_into_a_session_of_its_own(family: Family):
    family.start("(setsid sh -c 'echo $$ > daemon; exec sleep 600' &) ; exec sleep 600")
    daemon = family.pid("daemon")
    assert os.getsid(daemon) == daemon and daemon in tree.find(MARK)
    assert end() == set() and not alive(daemon)


def test_a_daemon_that_outlives_the_rank(family: Family):
    rank = family.start("(setsid sh -c 'echo $$ > daemon; exec sleep 600' &); sleep 0.05; exit 0")
    daemon = family.pid("daemon")
    rank.wait()
    assert tree.find(MARK) == {daemon}
    assert end() == set() and not alive(daemon)


def test_an_environment_that_was_replaced_is_found_by_the_parent(family: Family):
    rank = family.start("env -i setsid sh -c 'echo $$ > bare; exec sleep 600' & wait")
    bare = family.pid("bare")
    assert os.getsid(bare) == bare  # another session, no mark: only its parent tells
    assert tree.find(MARK) == {rank.pid, bare}
    assert end() == set() and not alive(bare)


def test_an_environment_that_was_replaced_is_found_by_the_session(family: Family):
    """Its parent is gone; the session's leader, marked, still there."""
    rank = family.start("sh -c 'env -i sh -c \"echo \\$\\$ > bare; exec sleep 600\" &' ; sleep 600")
    bare = family.pid("bare")
    assert os.getsid(bare) == rank.pid
    assert bare in tree.find(MARK)


def test_a_rank_without_a_mark_is_found_by_its_pid(family: Family):
    """As ranks that replaced their own environment."""
    rank = family.start("env -i sh -c 'sleep 600 & echo $! > child; wait'", mark="other/run/1")
    child = family.pid("child")
    assert tree.find(MARK) == set()
    assert tree.find(MARK, frozenset({rank.pid})) >= {rank.pid, child}
    assert end(roots=frozenset({rank.pid})) == set() and not alive(child)


def test_what_a_dead_rank_left_in_its_session(family: Family):
    """No mark, no parent, no leader: only the number of the session is left."""
    script = "env -i sh -c 'sleep 600 & echo $! > bare' & sleep 0.05; exit 0"
    rank = family.start(script)
    bare = family.pid("bare")
    rank.wait()
    assert os.getsid(bare) == rank.pid and tree.find(MARK) == set()
    assert tree.find(MARK, ended=frozenset({rank.pid})) == {bare}
    # A leader that lives is another process with a number used again: nothing of it is touched.
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    assert tree.find(MARK, ended=frozenset({stranger.pid})) == set()
    stranger.kill()
    stranger.wait()


def test_the_spared_are_left_out_with_what_only_they_started(family: Family):
    script = "sleep 600 & echo $! > helper; wait; exec sleep 600"
    starter = family.start(script, mark=f"{MARK}starter")
    helper = family.pid("helper")
    rank = family.start("exec sleep 600")
    spare = frozenset({starter.pid})
    assert tree.find(MARK) == {starter.pid, helper, rank.pid}
    assert tree.find(MARK, exclude_pids=spare) == {helper, rank.pid}  # it has the mark, too
    asyncio.run(tree.end(lambda: tree.find(MARK, exclude_pids=spare), 0.0))
    assert alive(starter.pid) and not alive(rank.pid)


def test_sigterm_first(family: Family):
    loop = "while :; do sleep 600 & wait; done"
    rank = family.start(f"trap 'echo yes > asked; exit 7' TERM; echo $$ > up; {loop}")
    family.pid("up")
    assert end(grace_s=20) == set()
    assert rank.wait() == 7 and (family.folder / "asked").read_text() == "yes\n"


def test_who_ignores_sigterm_is_killed(family: Family):
    rank = family.start("trap '' TERM; echo $$ > up; while :; do sleep 600; done")
    family.pid("up")
    assert end(grace_s=0.2) == set()
    assert rank.wait() == -signal.SIGKILL


def test_a_stopped_process_is_killed(family: Family):
    rank = family.start("echo $$ > up; exec sleep 600")
    family.pid("up")
    os.kill(rank.pid, signal.SIGSTOP)
    while procfs.state(rank.pid) != "T":
        time.sleep(0.01)
    assert end(grace_s=0.2) == set()
    assert rank.wait() == -signal.SIGKILL


def test_processes_that_appear_meanwhile_are_ended_too(family: Family):
    """It forks on and on, each child in a session of its own."""
    forker = "while :; do setsid sleep 600 & sleep 0.01; done"
    family.start(f"trap '' TERM; echo $$ > up; {forker}")
    family.pid("up")
    assert end(grace_s=0.3) == set()
    assert tree.find(MARK) == set()


def test_a_zombie_is_gone(family: Family):
    rank = family.start("exit 0")
    deadline = time.monotonic() + 20
    while procfs.state(rank.pid) != "Z":  # nobody has waited for it yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert tree.find(MARK, frozenset({rank.pid})) == set()
    assert end(grace_s=5, roots=frozenset({rank.pid})) == set()


def test_nothing_else_is_touched(family: Family):
    others = [
        family.start("exec sleep 600", mark=f"{RUN}/n2/1"),  # another node's
        family.start("exec sleep 600", mark=f"{RUN}4/n1/1"),  # another run's
        family.start("exec sleep 600", mark=f"x{MARK}1"),
        family.start("exec sleep 600", mark="", OTHER=f"{tree.MARK}={MARK}1"),
    ]
    rank = family.start("exec sleep 600")
    deadline = time.monotonic() + 20
    while any(procfs.argv(other.pid)[:1] != ("sleep",) for other in others):
        assert time.monotonic() < deadline
    assert tree.find(MARK) == {rank.pid}
    assert end() == set()
    assert all(alive(other.pid) for other in others) and alive(os.getpid())


def test_many_more_processes_than_descriptors(family: Family):
    """An agent has 1024 descriptors, a rank may have more helpers."""
    script = f"""
import asyncio, resource, subprocess, sys
from supervisor.agent import tree
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
assert len(tree.find({MARK!r})) == 151
assert asyncio.run(tree.end(lambda: tree.find({MARK!r}), 10.0)) == set()
"""
    rank = family.start("for n in $(seq 150); do sleep 600 & done; echo $$ > up; wait")
    family.pid("up")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(tree.__file__).parents[2])
    assert rank.wait() == -signal.SIGTERM


def test_what_names_a_process():
    child = subprocess.Popen(["sleep", "600"])
    assert procfs.start_time(child.pid) == procfs.start_time(child.pid) is not None
    assert procfs.start_time(child.pid) >= procfs.start_time(os.getpid())
    child.kill()
    child.wait()
    assert procfs.start_time(child.pid) is None and procfs.state(child.pid) is None


def test_a_name_made_to_mislead(tmp_path: Path):
    """The command's name is in parentheses in /proc/PID/stat, and may hold some itself."""
    program = tmp_path / ") Z 1 1 1"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "600"])
    try:
        deadline = time.monotonic() + 20
        while ") Z 1" not in Path(f"/proc/{child.pid}/comm").read_text():
            assert time.monotonic() < deadline
        while procfs.state(child.pid) != "S":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
