"""`superv watch` on a real terminal, with a real engine: what it shows, keys, sizes, every end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from home import RunHome, until
from screens import FullScreenTerminal

Watch = Callable[..., FullScreenTerminal]


@pytest.fixture
def watch(home: RunHome) -> Iterator[Watch]:
    made: list[FullScreenTerminal] = []

    def start(
        *words: str, columns: int = 80, rows: int = 24, shell: str = "", **env: str
    ) -> FullScreenTerminal:
        argv = [*([sys.executable, "-c", shell] if shell else []), *home.argv("watch", *words)]
        made.append(FullScreenTerminal(argv, {**home.env, **env}, columns, rows))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_run_lives_on_the_screen_at_every_size_and_loses_a_node(
    home: RunHome, watch: Watch
) -> None:
    home.launched()
    view = watch(rows=24)  # without a name: the only one that lives
    view.expect(r"superv ring \([0-9a-f]{6}\)  running for .*, attempt 1 .*\d\d:\d\d:\d\d")
    view.expect(r"training   step \d+   loss \S+   \S+ steps/s")
    view.expect(r"slot 0     local-1  ready")
    view.expect(r"spares     1  local-3")
    assert view.screen.coloured and "q quit" in view.screen.lines[23]
    view.resize(200, 50)
    wide = view.expect(r"(?s)── log ─.*slot 1     local-2.*q quit")
    assert len(wide.splitlines()) == 50 and "q quit" in view.screen.lines[49]
    view.resize(30, 6)
    view.expect(r"40x8 at least")
    view.resize(100, 30)
    home.signal("local-2", signal.SIGSTOP)
    view.expect(r"node-lost, local-2")
    view.expect(r"excluded   local-2: ")
    view.expect(r"slot 1     local-3")
    view.press(b"q")
    assert (view.ended(), view.restored()) == (0, True)


@pytest.mark.parametrize("how", ["ctrl-c", "term", "hup", "feed gone"])
def test_every_end_leaves_the_terminal_as_it_was(home: RunHome, watch: Watch, how: str) -> None:
    home.launched()
    view = watch("ring", NO_COLOR="1")
    view.expect(r"training   step \d+")
    assert not view.screen.coloured and not view.screen.cursor
    code = 0
    if how == "ctrl-c":
        view.press(b"\x03")
    elif how == "feed gone":
        (feed,) = {p for p, argv in home.processes().items() if argv.endswith("ring --json")} - {
            p for p in home.processes() if os.getpgid(p) != p
        }
        os.killpg(feed, signal.SIGKILL)
        view.expect(r"it begins again")
        view.expect(r"(?m)^q quit")  # and did
        view.press(b"q")
    else:
        code = -(signal.SIGTERM if how == "term" else signal.SIGHUP)
        view.process.send_signal(-code)
    assert (view.ended(), view.restored()) == (code, True)
    until(lambda: not home.processes(words="--json"), "the end of what reads for the view")


# A shell with job control, for one command: a process without such a parent can't be stopped.
SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
if not (pid := os.fork()):
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpgid(0))
    print("<stopped>", flush=True)
    input()
    os.tcsetpgrp(0, pid)
    os.killpg(pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(home: RunHome, watch: Watch) -> None:
    home.launched()
    view = watch("ring", shell=SHELL)
    view.expect(r"training   step \d+")
    view.press(b"\x1a")
    while not re.search(rb"<stopped>", view.raw):
        assert view.read(60), view.screen.text
    assert view.restored()
    view.screen.clear()
    view.press(b"fg\n")
    view.expect(r"training   step \d+")
    assert view.screen.alternate
    view.press(b"q")
    assert (view.ended(), view.restored()) == (0, True)


def test_all_runs_and_back(home: RunHome, watch: Watch) -> None:
    home.launched()
    home.superv("stop", "ring", "--now")
    home.reached(lambda s: s["phase"] == "stopped" and not s["engine"], "its end")
    view = watch()
    view.expect(r"▶ +ring +[0-9a-f]{6} +stopped")
    view.press(b"\r")
    view.expect(r"superv ring \([0-9a-f]{6}\)  stopped for")
    view.press(b"\x1b[D")
    view.expect(r"superv all runs")
    view.press(b"q")
    assert (view.ended(), view.restored()) == (0, True)


def test_no_such_run_and_no_terminal_are_one_line(home: RunHome, watch: Watch) -> None:
    home.launched()
    view = watch("rong")
    assert (view.ended(), view.restored()) == (2, True)
    assert b"superv: no run 'rong' in " in view.raw and b"there: ring" in view.raw
    for env in ({}, {"TERM": "dumb"}):
        done = subprocess.run(
            home.argv("watch", "ring"), env={**home.env, **env}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "`superv watch ring --json`" in done.stderr


def test_documents_come_as_lines_about_a_second_apart(home: RunHome) -> None:
    home.launched()
    with subprocess.Popen(
        home.argv("watch", "ring", "--json"), env=home.env, stdout=subprocess.PIPE, text=True
    ) as feed:
        assert feed.stdout is not None
        frames = [json.loads(feed.stdout.readline()) for _ in range(3)]
        feed.terminate()
    assert [one["schema"] for one in frames] == [1, 1, 1]
    assert frames[0]["lines"] and {*frames[0]["lines"][0]} == {"at", "text"}
    assert frames[2]["run"]["engine"] and frames[2]["run"]["run"] == "ring"
    assert frames[2]["run"]["now"] > frames[0]["run"]["now"]
    assert time.time() >= frames[2]["run"]["now"]
