"""Who starts the next engine: when a run is gone, where an engine's words go, what it ends with."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from supervisor.engine import guardian
from supervisor.run.folder import RunDir

ENGINE = """\
import os, sys
run, line = sys.argv[1], int(sys.argv[3])
print("standard output of an engine", flush=True)
print("standard error of an engine", file=sys.stderr, flush=True)
with open(run + "/tries", "a+") as tries:
    tries.write("x")
    tries.seek(0)
    number = len(tries.read())
codes = [int(code) for code in open(run + "/codes").read().split()]
os.write(line, b"not over")
os._exit(codes[number - 1])
"""


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("run", False),
        ("missing", True),
        ("run/missing/run", True),
        ("file/run", True),
        ("file", True),
        ("loop/run", False),  # ELOOP stands for all that says nothing: EIO, ESTALE, ETIMEDOUT
        ("long" * 100, False),
    ],
)
def test_only_a_folder_that_does_not_exist_is_gone(tmp_path: Path, path: str, gone: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert guardian.is_gone(str(tmp_path / path)) is gone


def guarded(tmp_path: Path, *codes: int) -> str:
    """The log of a run whose engines end with these codes, one after the other."""
    package = tmp_path / "code/supervisor/engine"
    package.mkdir(parents=True)
    for init in (package.parent, package):
        (init / "__init__.py").touch()
    (package / "process.py").write_text(ENGINE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "codes").write_text(" ".join(map(str, codes)))
    # As an engine starts it: nothing open but its outputs and its line, which is the lowest.
    begin = textwrap.dedent("""\
        import os, socket, sys
        ours, theirs = socket.socketpair()
        ours.close()
        os.dup2(theirs.fileno(), 3)
        os.closerange(4, 100)
        os.execv(sys.executable, [sys.executable, "-I", "-S", *sys.argv[1:], "3"])
    """)
    done = subprocess.run(
        [sys.executable, "-c", begin, guardian.__file__, str(run)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "code")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len((run / "tries").read_text()) == len(codes)
    return (run / "engine.log").read_text()


def test_what_an_engine_says_is_in_its_log_and_one_that_comes_too_early_is_tried_again(
    tmp_path: Path,
) -> None:
    log = guarded(tmp_path, guardian.BUSY, 0)
    for words in ("standard output of an engine", "standard error of an engine"):
        assert log.count(words) == 2, log
    assert "found that another process has the journal, and does not listen; the next one" in log


@pytest.mark.parametrize("listens", [True, False])
def test_an_engine_beside_another_is_a_success_where_that_one_listens(
    tmp_path: Path, listens: bool
) -> None:
    """The journal's lock says that there is one; not that it lives, nor that it will."""
    run = RunDir(tmp_path)
    ready, tell = os.pipe()
    with run.journal.open("a") as journal, socket.socket(socket.AF_UNIX) as server:
        fcntl.flock(journal, fcntl.LOCK_EX)
        if listens:
            server.bind(str(run.socket))
            server.listen()
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.engine.process", str(tmp_path), str(tell)],
            stdin=subprocess.DEVNULL,
            pass_fds=(tell,),
            timeout=60,
        )
    os.close(tell)
    with os.fdopen(ready) as told:
        words = told.read().strip()
    if listens:
        assert (done.returncode, words) == (0, "ready")
    else:
        assert done.returncode == guardian.BUSY
        assert "another engine has this run, and does not listen; try again" in words
