"""The log of engine and agent: one line a record, bounded, private, and no reason to end."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.secret import HIDDEN
from supervisor.host.log import MAX_KEYS, OneLine, Repeats, counted, where

_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (INFO|WARNING|ERROR|CRITICAL) ")


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """A process whose log is its first argument."""
    head = (
        "import logging, os, sys; from pathlib import Path; from supervisor.host import log\n"
        "logger = logging.getLogger('supervisor.some.module'); path = Path(sys.argv[1])\n"
    )
    argv = [sys.executable, "-c", head + script, *map(str, args)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def formatted(text: str) -> str:
    record = logging.LogRecord("supervisor.x", logging.INFO, "", 0, text, None, None)
    return OneLine().format(record).partition(" INFO ")[2]


def test_records_outputs_and_crashes_go_to_one_private_file(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    done = run(
        "os.umask(0); log.start(path, source='n1')\n"
        "logger.info('one'); logger.warning('two %s', 2); logger.debug('not shown')\n"
        "logging.getLogger('other').info('not shown'); logging.getLogger('other').error('three')\n"
        "print('printed', flush=True); os.system('echo of a child'); raise RuntimeError('crash')",
        log,
    )
    lines = log.read_text().splitlines()
    texts = [_LINE.sub(r"\1 ", line) for line in lines]
    assert texts[:3] == ["INFO n1 one", "WARNING n1 two 2", "ERROR n1 three"]
    assert texts[3:5] == ["printed", "of a child"]
    assert texts[5].startswith("Traceback") and texts[-1] == "RuntimeError: crash"
    assert log.stat().st_mode & 0o777 == 0o600
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\r\nor three", "two lines or three"),
        ("\x1b]0;title\x07\x1b[31mred", "\\x1b]0;title\\x07\\x1b[31mred"),
        ("\x9b2J\u202eright to left", "\\x9b2J\\u202eright to left"),
        ("half a letter: \udcff", "half a letter: \\udcff"),
        ("ä, 漢, 🎉 are letters", "ä, 漢, 🎉 are letters"),
        ("100 %s of %d", "100 %s of %d"),
    ],
)
def test_a_record_is_one_line_that_a_terminal_does_not_obey(text: str, line: str) -> None:
    assert formatted(text) == line


def test_an_exception_is_one_line_without_source() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = logging.LogRecord("s", logging.ERROR, "", 0, "failed", None, sys.exc_info())
        assert where(error).startswith("ValueError: first\nsecond (")
    text = OneLine().format(record)
    assert "failed ValueError: first second (" in text and "\n" not in text
    assert f"{__file__}:" in text and "raise ValueError" not in text


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run("log.start(path); log.hide('k3y', ''); logger.info('the k3y of %r', b'k3y')", log)
    assert log.read_text().endswith(f"the {HIDDEN} of b'{HIDDEN}'\n")


def test_it_rotates_and_takes_the_outputs_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run(
        "log.start(path, max_bytes=1000, backups=2)\n"
        "for n in range(100):\n    logger.info('record %d', n)\n"
        "print('printed', flush=True)",
        log,
    )
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log", "log.1", "log.2"]
    assert all(path.stat().st_size <= 1100 for path in tmp_path.iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    assert log.read_text().endswith("record 99\nprinted\n")


def test_what_comes_without_end_is_thinned_out() -> None:
    repeats = Repeats()
    shown = []
    for number in range(1000):
        record = logging.makeLogRecord({"msg": "dropped: %d", "args": (number,), **counted("k")})
        if repeats.filter(record):
            shown.append(record.getMessage())
    assert shown[:3] == ["dropped: 0", "dropped: 1 (2 so far)", "dropped: 3 (4 so far)"]
    assert len(shown) == 10
    assert all(repeats.filter(logging.makeLogRecord({"msg": "dropped"})) for _ in range(5))


def test_who_makes_up_keys_fills_no_log_either() -> None:
    repeats = Repeats()
    shown = sum(
        repeats.filter(logging.makeLogRecord({"msg": "x", **counted(str(n))}))
        for n in range(20 * MAX_KEYS)
    )
    assert shown <= MAX_KEYS + 15


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 KiB."""
    with tempfile.TemporaryDirectory() as name:
        argv = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", name]
        if os.geteuid() != 0 or subprocess.run(argv, check=False, capture_output=True).returncode:
            pytest.skip("needs root, to mount a small file system")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


FULL = """
log.start(path, max_bytes=20_000, backups=1)
logger.info("before")
filler = open(path.with_name("filler"), "wb", buffering=0)
try:
    while True:
        filler.write(b"x" * 4096)
except OSError:
    pass
for n in range(2000):  # more than the page that the log has, and than a file of the log
    logger.info("lost %d", n)
os.truncate(filler.fileno(), 0)
for n in range(3):
    logger.info("after %d", n)
"""


def test_a_full_disk_loses_lines_and_ends_nobody(small_disk: Path) -> None:
    done = run(FULL, small_disk / "log")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert (small_disk / "log").read_text().splitlines()[-1].endswith("INFO after 2")


def test_a_log_that_can_not_be_made_ends_nobody(tmp_path: Path) -> None:
    log = tmp_path / "none" / "log"
    done = run(
        "log.start(path); logger.info('lost'); path.parent.mkdir()\n"
        "logger.info('kept'); print('printed', flush=True)",
        log,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _LINE.sub("", log.read_text()) == "kept\nprinted\n"


@given(st.text(), st.text())
def test_no_text_of_a_stranger_steers_a_terminal_or_begins_a_line(node: str, said: str) -> None:
    """OSC, CSI, C1 and bidi: whatever agents and ranks call themselves or say."""
    record = logging.LogRecord("n", logging.WARNING, "p", 1, "%s: %s", (node, said), None)
    assert OneLine(node).format(record).isprintable()
