"""`launch` and `attach` on a real terminal: a pty, a real engine, Ctrl-C, and ends of all kinds."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

import pytest
from home import RunHome

WITHIN_S = 60.0


class Terminal:
    """A command on a pty of 100 columns."""

    def __init__(self, home: RunHome, *argv: str, **env: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            home.argv(*argv),
            env={**home.env, "TERM": "xterm-256color", **env},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.raw = b""

    @property
    def text(self) -> str:
        """What was written, without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode(errors="replace"))

    def expect(self, pattern: str) -> None:
        end = time.monotonic() + WITHIN_S
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, f"no {pattern!r} in\n{self.text}"
            self._read(0.1)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        self.raw += os.read(self._ours, 65536)
        return True

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def ended(self) -> int:
        code = self.process.wait(timeout=WITHIN_S)
        while self._read(0.1):
            pass
        return code

    def restored(self) -> bool:
        """Modes as before, and the cursor to be seen."""
        hidden, shown = self.raw.rfind(b"\x1b[?25l"), self.raw.rfind(b"\x1b[?25h")
        same = termios.tcgetattr(self._theirs) == self.before
        return same and hidden <= shown and b"\x1b[?1049h" not in self.raw

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_ctrl_c_detaches_and_the_run_goes_on(home: RunHome, terminals: list[Terminal]) -> None:
    view = Terminal(home, "launch", str(home.job()))
    terminals.append(view)
    view.expect(r"run +ring +running for .*: attempt 1")
    view.expect(r"training +step \d+ +loss \S+ +\S+ steps/s +last step")
    view.expect(r"active +2 +local-\[1-2\]")
    view.expect(r"spare +1 +local-3")
    view.press(b"\x03")
    view.expect(r"detached; the run goes on\. `superv attach ring` comes back")
    assert (view.ended(), view.restored()) == (0, True)
    step = home.status()["step"]
    assert home.at_step(step + 10)["incidents"] == []


def test_a_view_sees_a_node_lost_and_the_end(home: RunHome, terminals: list[Terminal]) -> None:
    home.launched()
    view = Terminal(home, "attach", "ring", NO_COLOR="1")
    terminals.append(view)
    view.expect(r"first new step: \d+")  # what happened before it came
    home.signal("local-2", signal.SIGSTOP)
    view.expect(r"local-2 suspected: silent")
    view.expect(r"incident +node-lost, local-2(: silence, and a second witness| at )")
    view.expect(r"excluded +local-2, since")
    home.superv("stop", "ring")
    view.expect(r"run ring is stopped: stopped by")
    assert (view.ended(), view.restored()) == (0, True)
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", view.raw)


def test_the_engine_dies_under_a_view(home: RunHome, terminals: list[Terminal]) -> None:
    home.launched()
    view = Terminal(home, "attach", "ring")
    terminals.append(view)
    view.expect(r"run +ring +running")
    os.kill(home.engine(), signal.SIGSTOP)
    view.expect(r"engine +has not answered for .*; the ranks go on without it")
    os.kill(home.engine(), signal.SIGKILL)
    view.expect(r"the engine of ring is gone; its ranks go on")
    view.expect(r"`superv attach ring` starts it again")
    assert (view.ended(), view.restored()) == (1, True)


def test_a_killed_view_leaves_the_terminal_as_it_was(
    home: RunHome, terminals: list[Terminal]
) -> None:
    home.launched()
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP):
        view = Terminal(home, "attach", "ring")
        terminals.append(view)
        view.expect(r"run +ring +running")
        view.process.send_signal(number)
        assert (view.ended(), view.restored()) == (-number, True)


def test_a_terminal_that_cannot_renew_gets_lines(home: RunHome, terminals: list[Terminal]) -> None:
    home.launched()
    view = Terminal(home, "attach", "ring", TERM="dumb")
    terminals.append(view)
    view.expect(r"\d\d:\d\d:\d\d\.\d running, attempt 1, step \d+")
    view.press(b"\x03")
    assert (view.ended(), b"\x1b" in view.raw) == (0, False)
