"""What people read on a terminal: layout, colours, times, and words that can't steer it.

The only module that lays out pages and that knows rich, which is imported when a page is made:
`superv --help` does not pay for it. Whatever is given to it as a string is made printable here, so
no caller has to remember that.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as Table
    from rich.text import Text as Text

WIDTH = 100  # columns of a page; a narrower terminal gets narrower pages
MIN_WIDTH = 40
LONGEST = 600  # characters of a text from outside; what is longer is cut
RENEWED_PER_S = 2

# One style for a word wherever it is shown: a finding's status, a node's state, a run's phase.
STYLES = {
    **{"OK": "green", "WARN": "yellow", "FAIL": "red", "UNKNOWN": "magenta", "SKIP": "dim"},
    **{
        "failed": "red",
        "out": "red",
        "unknown": "magenta",
        "degraded": "yellow",
        "excluded": "cyan",
    },
    **{"suspect": "yellow", "lost": "red", "unfit": "red", "left": "yellow"},
    **{"running": "green", "done": "green", "held": "bold red", "stopped": "yellow"},
}


def style_of(word: str, default: str = "") -> str:
    """The style of a status, state or phase."""
    return STYLES.get(word, default)


# --- words from outside ---


def printable(text: str) -> str:
    """The text with a dot for each character that steers a terminal or turns the writing.

    Without ESC, C0, C1, line ends and Unicode's format characters no sequence (CSI, OSC, bidi) is
    left. Log lines, file names and what a check has read may hold anything.

    >>> printable("a\\x1b[2Jb\\u202ec")
    'a·[2Jb·c'
    """
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def printable_lines(text: str) -> str:
    """`printable`, of a text that has lines and tabs of its own; a bare CR begins a line, too.

    >>> printable_lines("a\\tb\\r\\nc\\x1b]0;x\\x07\\rd")
    'a\\tb\\nc·]0;x·\\nd'
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" else printable(c) for c in lines)


def one_line(text: str, most: int = LONGEST) -> str:
    """The text as one printable line of at most `most` characters."""
    shown = printable(" ".join(text.split())[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


_STYLE = re.compile("\x1b\\[[0-9;]*m")  # what rich makes of a style; it moves and erases nothing


class PrintableStream:
    """A text stream that lets lines and styles through, and nothing else that steers a terminal.

    `superv` writes through this alone: whatever a command forgets to make printable is so at the
    end. What draws, as a view that renews, and bytes for a pipe go to the stream behind it.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.behind = stream

    def write(self, text: str) -> int:
        if not text.isprintable():
            between = _STYLE.split(text)
            styles = [*_STYLE.findall(text), ""]
            text = "".join(
                printable_lines(part) + style for part, style in zip(between, styles, strict=True)
            )
        return self.behind.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def guard_streams() -> None:
    """Let nothing reach this process's terminal that steers it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, PrintableStream):
            setattr(sys, name, PrintableStream(stream))


def raw(stream: IO[str]) -> IO[str]:
    """The stream itself, for what draws, and for what a pipe gets as it is."""
    behind: IO[str] = getattr(stream, "behind", stream)
    return behind


# --- times; the zone is the reader's ---


def time_of_day(at: float, digits: int = 1) -> str:
    """16:20:05.3, for what happens while somebody watches; digits are cut, not rounded."""
    shown = time.strftime("%H:%M:%S", time.localtime(at))
    return f"{shown}.{int(at * 10**digits) % 10**digits:0{digits}}" if digits else shown


def day_time(at: float | None, *, seconds: bool = False) -> str:
    """11-26 16:20, for what lasts for days or weeks; `-` where it never was."""
    form = "%m-%d %H:%M:%S" if seconds else "%m-%d %H:%M"
    return time.strftime(form, time.localtime(at)) if at else "-"


def date_time(at: float) -> str:
    """2026-11-26 16:20:05, for what may be years old."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def duration(seconds: float) -> str:
    """A duration in the two units that matter.

    >>> duration(3.24), duration(75), duration(7200), duration(200_000)
    ('3.2 s', '1 min 15 s', '2 h', '2 d 7 h')
    """
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 48 * 3600:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86_400, "d", whole % 86_400 // 3600, "h")


def _two(large: int, unit: str, small: int, smaller: str) -> str:
    return f"{large} {unit} {small} {smaller}" if small else f"{large} {unit}"


# --- the terminal ---


def is_coloured() -> bool:
    """https://no-color.org: set and not empty means none."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"


def renews(stream: IO[str] | None) -> bool:
    """Whether the stream is a terminal that can write over what it shows; None: it is closed."""
    if stream is None or not stream.isatty():
        return False
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def why_not(stream: IO[str] | None) -> str:
    """Why a stream does not renew, in words: it is no terminal, or TERM names none that can."""
    if stream is None or not stream.isatty():
        return "standard output is none"
    if not (name := os.environ.get("TERM", "")):
        return "TERM is not set (most know TERM=xterm)"
    return f"TERM={name} can't (most know TERM=xterm)"


def width() -> int:
    """Columns of a page on standard output."""
    if sys.stdout is None or not sys.stdout.isatty():  # None: schedulers may close it
        return WIDTH
    import shutil

    return max(MIN_WIDTH, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


# --- pages: a sequence of these ---


def styled(*parts: str | tuple[str, str]) -> Text:
    """A line of words, some of them (words, style)."""
    from rich.text import Text

    line = Text()
    for part in parts:
        words, style = part if isinstance(part, tuple) else (part, "")
        line.append(printable(words), style or None)
    return line


def entry(label: str | Text, words: str | Text, indent: int, *, hang: int = 0) -> Entry:
    """Words beside a label of `indent` columns; further lines begin `hang` columns further in."""
    return Entry(_text(label), _text(words), indent, hang)


def _text(words: str | Text) -> Text:
    return styled(words) if isinstance(words, str) else words


class Entry:
    """A paragraph with a label; rich has no hanging indents."""

    def __init__(self, label: Text, words: Text, indent: int, hang: int) -> None:
        self._label, self._words = label, words
        self._label.pad_right(max(0, indent - label.cell_len))
        self._indent = indent + hang

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        room = max(1, options.max_width - self._label.cell_len)
        first = self._words.wrap(console, room, overflow="fold")[0]
        yield self._label + first
        rest = self._words.plain[len(first.plain) :].lstrip()
        if not rest:
            return
        room = max(1, options.max_width - self._indent)
        for line in self._words[-len(rest) :].wrap(console, room, overflow="fold"):
            line.pad_left(self._indent)
            yield line


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table. One that does not fold is cut where it is wider than `most`."""

    head: str
    most: int | None = None
    right: bool = False
    folds: bool = False


def table(columns: Sequence[TableColumn], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Rows of cells under their heads; two columns of space between, no lines."""
    from rich.table import Table

    made = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.header_style = "none"
    for column in columns:
        made.add_column(
            styled(column.head),
            header_style="none",
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
            max_width=column.most,
        )
    for row in rows:
        made.add_row(*map(_text, row))
    return made


def facts(rows: Iterable[tuple[str, str | Text]], label: int) -> Table:
    """Dim labels, and beside each what it is about."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=label)
    grid.add_column(overflow="fold", max_width=WIDTH - label - 2)
    for name, words in rows:
        grid.add_row(_text(name), _text(words))
    return grid


def rendered(page: Iterable[str | RenderableType], *, colour: bool, columns: int = WIDTH) -> str:
    """The page as lines that end with a line end; the same words with and without colours."""
    from rich.console import Console

    console = Console(
        file=io.StringIO(),
        width=columns,
        color_system="standard" if colour else None,
        force_terminal=colour,
        no_color=not colour,
        **_PLAIN,
    )
    with console.capture() as captured:
        for part in page:
            console.print(_text(part) if isinstance(part, str) else part)
    return "".join(f"{line.rstrip(' ')}\n" for line in captured.get().split("\n")[:-1])


def padded(line: str, columns: int) -> str:
    """A line of `rendered`, with blanks at its end up to so many columns."""
    from rich.cells import cell_len

    return line + " " * (columns - cell_len(_STYLE.sub("", line)))


_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}


def show(page: Iterable[str | RenderableType]) -> None:
    """Print a page; click leaves the colours out where nobody would see them."""
    import click

    text = rendered(page, colour=is_coloured(), columns=width())
    click.echo(text, nl=False, color=None if is_coloured() else False)


# --- what renews ---


class Live:
    """Lines that scroll above a panel that renews.

    Changes nothing about the terminal that would have to be restored: no alternate screen, no
    hidden cursor, no raw mode.
    """

    def __init__(self, panel: Callable[[], RenderableType]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._panel = panel
        self._console = Console(file=raw(sys.stdout), no_color=not is_coloured(), **_PLAIN)
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=RENEWED_PER_S,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.rule import Rule

        return Group(Rule(style="dim"), self._panel())

    def __enter__(self) -> Self:
        self._live.start()
        self._console.show_cursor(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def line(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)


def show_cursor() -> None:
    """After a process that renewed a line and was left behind: it hid the cursor meanwhile."""
    if os.isatty(2):
        os.write(2, b"\r\x1b[K\x1b[?25h")


class StatusLine:
    """One line on standard error that renews, so that the result can be piped."""

    def __init__(self, words: str) -> None:
        from rich.console import Console

        console = Console(file=raw(sys.stderr), no_color=not is_coloured(), **_PLAIN)
        self._status = console.status(styled(words))

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def update(self, words: str) -> None:
        self._status.update(styled(words))
