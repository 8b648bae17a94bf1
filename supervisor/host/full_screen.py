"""The whole terminal for one page: its own screen, keys, sizes, and the way back at every end.

Entered, the terminal shows another screen, hides its cursor and gives keys at once, unechoed. All
of that is undone where the block ends, where a signal ends the process (SIGTERM, SIGHUP), and while
it is stopped (Ctrl-Z). SIGKILL can't be helped: `reset` brings the terminal back.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any, Self

from supervisor.host.terminal import raw

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J\x1b[H"  # other screen, no cursor, no wrapping
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_CSI = "\x1b["
_KEYS: Mapping[bytes, str] = {
    **{b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up"},
    **{b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down"},
    **{b"\x1b[D": "back", b"\x1bOD": "back", b"\x1b": "back", b"\x7f": "back"},
    **{b"\r": "open", b"\n": "open", b"\x1b[C": "open", b"\x1bOC": "open"},
    **{b"\x1b[5~": "page up", b"\x1b[6~": "page down", b" ": "page down"},
    **{b"\x1b[H": "home", b"\x1b[1~": "home", b"g": "home"},
    **{b"q": "quit", b"Q": "quit"},
}
_ENDS = (signal.SIGTERM, signal.SIGHUP)
_TAKEN = (*_ENDS, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)


class FullScreen:
    """One at a time, in the main thread. `draw` shows lines, `wait` gives keys."""

    def __init__(self) -> None:
        self._out: IO[str] = raw(sys.stdout)
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before: list[Any] | None = None
        self._shown: list[str] = []
        self._handlers: dict[int, Any] = {}
        self._wake, self._wake_write = -1, -1
        self._ends: signal.Signals | None = None
        self._stops = self._stale = False

    # --- in and out ---

    def __enter__(self) -> Self:
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _TAKEN:
            self._handlers[number] = signal.signal(number, self._taken)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._wake_write)
        if self._ends is not None:  # end as whoever sent it expects
            signal.signal(self._ends, signal.SIG_DFL)
            os.kill(os.getpid(), self._ends)

    def _take(self) -> None:
        if self._keys is not None:
            with contextlib.suppress(termios.error):
                self._before = termios.tcgetattr(self._keys)
                now = termios.tcgetattr(self._keys)
                now[3] &= ~(termios.ECHO | termios.ICANON)
                now[6][termios.VMIN], now[6][termios.VTIME] = 1, 0
                termios.tcsetattr(self._keys, termios.TCSADRAIN, now)
        self._shown = []
        self._write(_ENTER)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._write(_LEAVE)
        if self._keys is not None and self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)
        self._before = None

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    # --- signals ---

    def _taken(self, number: int, _frame: FrameType | None) -> None:
        if number in _ENDS:
            self._ends = signal.Signals(number)
        elif number == signal.SIGTSTP:
            self._stops = True
        else:
            self._stale = True

    def _stop(self) -> None:
        """As Ctrl-Z does everywhere; returns when somebody lets the process go on."""
        self._stops = False
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._taken)
        self._take()
        self._stale = True

    # --- what is shown ---

    def size(self) -> tuple[int, int]:
        """Columns and rows at present."""
        found = shutil.get_terminal_size((80, 24)) if self._keys is None else _size(self._out)
        return found[0], found[1]

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, from the top; those that are shown already are not written again.

        A line has styles and no other sequences (supervisor.host.terminal.rendered).
        """
        changed = [
            f"{_CSI}{row}H{line}{_CSI}0m{_CSI}K"
            for row, line in enumerate(lines, start=1)
            if row > len(self._shown) or self._shown[row - 1] != line
        ]
        if len(lines) < len(self._shown) or not self._shown:
            changed.append(f"{_CSI}{len(lines) + 1}H{_CSI}J")
        self._shown = list(lines)
        if changed:
            self._write("".join(changed))

    # --- what comes ---

    def wait(self, fds: Sequence[int], timeout_s: float) -> tuple[list[int], list[str]]:
        """Which descriptors are ready, and keys; returns at once where the page has to be redrawn.

        A signal that ends the process shows as the key "quit".
        """
        watched = [*fds, self._wake, *([self._keys] if self._keys is not None else [])]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        if self._stops:
            self._stop()
        if self._ends is not None:
            return [], ["quit"]
        if self._stale:
            self._stale, self._shown = False, []
            self._write(f"{_CSI}2J")
        keys: list[str] = []
        if self._keys in ready and self._keys is not None:
            data = os.read(self._keys, 1024)
            keys = list(_named(data)) if data else ["quit"]  # the terminal is gone
        return [fd for fd in ready if fd in fds], keys


def _size(out: IO[str]) -> tuple[int, int]:
    try:
        found = os.get_terminal_size(out.fileno())
    except OSError:
        return 80, 24
    return found.columns or 80, found.lines or 24


def _named(data: bytes) -> Iterator[str]:
    """The keys of what was read; one without a meaning is none."""
    while data:
        known = max((key for key in _KEYS if data.startswith(key)), key=len, default=b"")
        if known:
            yield _KEYS[known]
        data = data[max(1, len(known)) :]
