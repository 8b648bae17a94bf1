"""A terminal of a test's own: a pty, a command on it, and the screen that it would show.

Understands what full-screen views of superv write, and fails on any other sequence.
"""

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
from collections.abc import Mapping, Sequence

WITHIN_S = 60.0
_PART = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(.)", re.DOTALL)


class ShownScreen:
    """Rows of characters, as a terminal keeps them."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.alternate, self.cursor, self.wraps = False, True, True
        self.coloured = False
        self._row = self._column = 0
        self.clear()

    def clear(self) -> None:
        self.lines = [""] * self.rows

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.clear()

    def feed(self, text: str) -> None:
        for numbers, final, end, words, strange in _PART.findall(text):
            assert not strange, f"{strange!r} in {text!r}"
            if words:
                self._write(words)
            elif final:
                self._control(numbers, final)
            else:
                self._column = 0
                self._row += end == "\n"

    def _write(self, words: str) -> None:
        if not self.alternate:
            return
        assert self._row < self.rows, f"below the screen: {words!r}"
        line = self.lines[self._row].ljust(self._column)
        after = line[self._column + len(words) :]
        self.lines[self._row] = line[: self._column] + words + after
        self._column += len(words)
        assert self._column <= self.columns, f"beside the screen: {self.lines[self._row]!r}"

    def _control(self, numbers: str, final: str) -> None:
        match numbers, final:
            case ("?1049", "h" | "l"):
                self.alternate = final == "h"
            case ("?25", "h" | "l"):
                self.cursor = final == "h"
            case ("?7", "h" | "l"):
                self.wraps = final == "h"
            case ("2", "J"):
                self.clear()
            case (_, "H"):
                row, _, column = numbers.partition(";")
                self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
            case ("", "K"):
                self.lines[self._row] = self.lines[self._row][: self._column]
            case ("", "J"):
                self.lines[self._row :] = [""] * (self.rows - self._row)
            case (_, "m"):
                self.coloured |= any(30 <= int(n or 0) < 50 for n in numbers.split(";"))
            case _:
                raise AssertionError(f"CSI {numbers} {final}")

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


class FullScreenTerminal:
    """A command on a pty of so many columns and rows."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self._ours, self._theirs = pty.openpty()
        self.screen = ShownScreen(columns, rows)
        self._size(columns, rows)
        self.before = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            argv,
            env={"TERM": "xterm-256color", **env},
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.raw = b""
        self._rest = b""

    def _size(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)

    def resize(self, columns: int, rows: int) -> None:
        self.read(0)
        self.screen.resize(columns, rows)
        self._size(columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    def read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        data = os.read(self._ours, 65536)
        self.raw += data
        self._rest += data
        whole = re.match(rb"(?s)(.*?)(\x1b(\[[0-9;?]*)?)?\Z", self._rest)
        assert whole is not None
        text, self._rest = self._rest[: whole.end(1)], self._rest[whole.end(1) :]
        try:
            self.screen.feed(text.decode())
        except UnicodeDecodeError:  # a letter in two parts
            self._rest = text + self._rest
        return True

    def expect(self, pattern: str, *, within_s: float = WITHIN_S) -> str:
        """Wait until the screen shows it; the screen."""
        end = time.monotonic() + within_s
        while not re.search(pattern, self.screen.text):
            assert time.monotonic() < end, f"no {pattern!r} in\n{self.screen.text}"
            self.read(0.1)
        return self.screen.text

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def ended(self) -> int:
        end = time.monotonic() + WITHIN_S
        while self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
            self.read(0.1)
        while self.read(0.1):
            pass
        return self.process.returncode

    def restored(self) -> bool:
        """The first screen, with its cursor, and modes as before."""
        same = termios.tcgetattr(self._theirs) == self.before
        return same and not self.screen.alternate and self.screen.cursor and self.screen.wraps

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)
