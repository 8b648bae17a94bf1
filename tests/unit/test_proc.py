"""Every call ends at its deadline, whatever the child does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisor import proc
from supervisor.host import procfs

HUNG_FUSE = Path(__file__).with_name("hung_fuse.py")
LONG = 60.0  # s: only what hangs for good reaches it


def wait_until(there, seconds: float = 20.0) -> None:
    """A child's effects come in their own time."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a child behind that proc knows of."""
    yield
    wait_until(lambda: proc.reap() == 0)


def test_a_command_and_its_two_outputs():
    done = proc.run_sync(["sh", "-c", "echo out; echo err >&2; exit 3"], deadline_s=LONG)
    assert (done.rc, done.out, done.err, done.timed_out) == (3, "out\n", "err\n", False)
    assert done.argv == ("sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.why() == "sh ended with 3: err"


def test_standard_input_environment_and_folder(tmp_path: Path):
    script = "cat; pwd; echo $A; tr '\\0' '\\n' < /proc/$$/environ"
    odd = {"A": "b c", "PATH": os.environ["PATH"], "BASH_FUNC_m%%": "() { :; }"}
    done = proc.run_sync(
        ["sh", "-c", script], deadline_s=LONG, stdin=b"fed\n", env=odd, cwd=str(tmp_path)
    )
    assert done.out.splitlines()[:3] == ["fed", str(tmp_path), "b c"]
    assert set(done.out.splitlines()[3:]) == {f"{k}={v}" for k, v in odd.items()}


def test_standard_input_is_empty_unless_given():
    assert proc.run_sync(["cat"], deadline_s=LONG).rc == 0


def test_a_missing_program_answers_with_127():
    done = proc.run_sync(["/nowhere/prog"], deadline_s=LONG)
    assert done.rc == 127 and "/nowhere/prog" in done.why()


def test_a_program_that_is_none_answers_with_126(tmp_path: Path):
    (tmp_path / "text").write_text("no program")
    done = proc.run_sync([str(tmp_path / "text")], deadline_s=LONG)
    assert done.rc == 126 and "text" in done.why()


def test_a_folder_that_is_not_there():
    done = proc.run_sync(["true"], deadline_s=LONG, cwd="/nowhere")
    assert done.rc == 125 and "/nowhere" in done.err


def test_arguments_that_are_too_long():
    done = proc.run_sync(["true", "x" * (1 << 22)], deadline_s=LONG)
    assert done.rc == 126 and done.why() == "true ended with 126: true: Argument list too long"


def test_a_program_with_an_equals_sign_in_its_path(tmp_path: Path):
    folder = tmp_path / "a=b"
    folder.mkdir()
    (folder / "prog").write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    (folder / "prog").chmod(0o755)
    done = proc.run_sync([str(folder / "prog"), "x y"], deadline_s=LONG, cwd=str(folder))
    assert done.out == f"{folder} x y\n"


def test_the_deadline():
    done = proc.run_sync(["sleep", "600"], deadline_s=0.2)
    assert done.timed_out and done.rc is None
    assert done.why().startswith("sleep did not answer within 0.")


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path):
    pid = tmp_path / "pid"
    script = f"trap '' TERM INT HUP; echo $$ > {pid}; while :; do sleep 600; done"
    done = proc.run_sync(["sh", "-c", script], deadline_s=1.0)
    assert done.timed_out
    wait_until(lambda: procfs.state(int(pid.read_text())) in (None, "Z"))


def test_more_output_than_a_pipe_holds():
    done = proc.run_sync(["seq", "1", "300000"], deadline_s=LONG)
    assert done.rc == 0
    assert done.out.splitlines() == [str(n) for n in range(1, 300_001)]


def test_of_a_long_output_the_end_is_kept_in_whole_lines():
    done = proc.run_sync(["seq", "1000001", "3000000"], deadline_s=LONG)  # 8 bytes each: 16 MB
    assert done.rc == 0
    lines = done.out.splitlines()
    assert lines == [str(n) for n in range(3_000_001 - len(lines), 3_000_001)]
    assert proc.MAX_OUTPUT - 8 <= len(done.out) <= proc.MAX_OUTPUT


def test_a_child_that_writes_without_end_is_killed():
    done = proc.run_sync(["yes"], deadline_s=LONG)
    assert done.rc == -signal.SIGKILL
    assert done.why().endswith("ended by superv: it wrote more than 64 MiB")


def test_output_that_is_still_open_elsewhere_holds_nobody_up(tmp_path: Path):
    """A grandchild in a session of its own keeps both outputs and outlives the child."""
    pid = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & echo here"
    done = proc.run_sync(["sh", "-c", script], deadline_s=LONG)
    assert (done.rc, done.out) == (0, "here\n")
    wait_until(lambda: pid.exists() and pid.read_text().strip())
    os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_grandchild_in_the_childs_session_dies_with_it(tmp_path: Path):
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; wait"
    assert proc.run_sync(["sh", "-c", script], deadline_s=0.5).timed_out
    wait_until(lambda: procfs.state(int(pid.read_text())) in (None, "Z"))


def test_a_cancelled_call_ends_its_child_and_its_files(tmp_path: Path):
    pid = tmp_path / "pid"

    async def body() -> None:
        script = f"echo $$ > {pid}; exec sleep 600"
        task = asyncio.ensure_future(proc.run(["sh", "-c", script], deadline_s=LONG))
        while not (pid.exists() and pid.read_text().strip()):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(body())
    assert len(os.listdir("/proc/self/fd")) == before
    wait_until(lambda: procfs.state(int(pid.read_text())) in (None, "Z"))


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    for argv in (["true"], ["/nowhere"], ["true", "x" * (1 << 22)]):
        proc.run_sync(argv, deadline_s=LONG, stdin=b"x")
    proc.run_sync(["sleep", "600"], deadline_s=0.05)
    assert len(os.listdir("/proc/self/fd")) == before


def test_abandoned_children_are_reaped_when_others_start(tmp_path: Path):
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}; exec sleep 600"
    argv = ["sh", "-c", script]
    assert not proc.stuck(argv)
    assert proc.run_sync(argv, deadline_s=0.5).timed_out
    number = int(pid.read_text())
    wait_until(lambda: procfs.state(number) == "Z")  # dead, and nobody has waited for it
    proc.run_sync(["true"], deadline_s=LONG)
    assert procfs.state(number) is None


def test_a_spawned_childs_output_and_folder(tmp_path: Path):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    child = proc.spawn(["sh", "-c", "pwd; pwd >&2"], env={}, cwd=str(tmp_path), stdout=log)
    os.close(log)
    assert child.wait(LONG) == 0
    assert os.getsid(0) != child.pid
    assert (tmp_path / "log").read_text() == f"{tmp_path}\n" * 2


def test_spawn_returns_where_nothing_is_there(tmp_path: Path):
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    for argv, cwd, code in ((["/nowhere/prog"], "/", 127), (["true"], "/nowhere", 125)):
        assert proc.spawn(argv, env={}, cwd=cwd, stdout=log).wait(LONG) == code
    os.close(log)
    assert (tmp_path / "log").read_text().count("/nowhere") == 2


HANGS = """
import asyncio, os, sys, time
from supervisor import proc
from supervisor.host import procfs

folder = sys.argv[1]
inside = folder + "/inside"

async def main():
    ticks = 0
    async def tick():  # the loop itself goes on while children hang
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1
    clock = asyncio.ensure_future(tick())
    cases = [
        (["stat", inside], "/"),  # a command that touches it
        ([inside], "/"),  # a program that is on it
        (["true"], inside),  # a working directory on it
    ]
    for argv, cwd in cases:
        done = await proc.run(argv, deadline_s=0.5, cwd=cwd)
        assert done.timed_out, done
        assert proc.stuck(argv), argv
    log = os.open("/dev/null", os.O_WRONLY)
    child = proc.spawn([inside], env={}, cwd="/", stdout=log)
    await asyncio.sleep(0.3)
    assert child.poll() is None
    child.kill()
    await asyncio.sleep(0.3)
    assert procfs.state(child.pid) == "D", procfs.state(child.pid)
    assert ticks > 10, ticks  # ~2 s of ticks; a loop that stood still has none
    clock.cancel()
    child.returncode = -9  # nobody waits for it: it may hang for ever

asyncio.run(main())
assert proc.reap() == 3
print("ok", flush=True)
os._exit(0)
"""


@pytest.mark.lab
def test_uninterruptible_sleep_costs_the_deadline_and_no_more(tmp_path: Path):
    folder = tmp_path / "mount"
    folder.mkdir()
    told = subprocess.run(
        [sys.executable, HUNG_FUSE, folder, sys.executable, "-c", HANGS, folder],
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=Path(proc.__file__).parents[1],
    )
    if told.returncode == 77:
        pytest.skip("needs root and /dev/fuse")
    assert told.stdout == "ok\n", told.stderr
