"""`superv watch`: a run, or all runs, over the whole terminal, for as long as one looks."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.core.errors import TransientError, UserError

if TYPE_CHECKING:
    from supervisor.host.full_screen import FullScreen

REDRAWN_S = 1.0  # clocks go on between what the engine pushes, once a second
SILENT_S = 6.0  # an engine tells its status every second, a journal is read every two
AGAIN_S = 5.0  # before what reads for the view is started again
LOG_KEPT = 200  # lines
NOTHING = "nothing has come"
PAGE = 10  # lines of a page key


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print documents as they come, one a line.")
def watch(run: str | None, as_json: bool) -> None:
    """Watch RUN over the whole terminal; without RUN the one that lives, or a list to choose from.

    Shows slots, phases, steps, what is waited for, incidents, spares and what needs attention.
    Nothing is changed by watching. q or Ctrl-C ends it.
    """
    if as_json:
        _print(run)
        return
    from supervisor.host import terminal

    if not terminal.renews(sys.stdout):
        name = run or "RUN"
        raise UserError(
            f"superv watch needs a terminal that it can draw on: {terminal.why_not(sys.stdout)}; "
            f"`superv status {name}` prints the run once, `superv watch {name} --json` a document "
            f"a second, `superv attach {name}` what happens"
        )
    with contextlib.suppress(KeyboardInterrupt):
        _Dashboard(run).show()


def _print(run: str | None) -> None:
    from supervisor.cli import dashboard_feed as feed
    from supervisor.config import load_site
    from supervisor.run import folder

    home = load_site(os.environ).state_dir
    if run is None:
        feed.print_all(feed.of_all(home))
    else:
        feed.print_all(feed.of_run(folder.find(home, run)))


class _Feed:
    """`superv watch --json` in a child: what reads storage and asks engines is not what draws."""

    def __init__(self, run: str | None) -> None:
        from supervisor import proc

        env = dict(os.environ)
        if site := env.get("SUPERV_SITE"):
            env["SUPERV_SITE"] = str(Path.cwd() / site)
        self.fd, theirs = os.pipe()
        os.set_blocking(self.fd, False)
        argv = (sys.executable, "-m", "supervisor.cli", "watch", *([run] if run else []), "--json")
        try:
            self._child = proc.spawn(argv, env=env, cwd="/", stdout=theirs)
        finally:
            os.close(theirs)
        self._rest = b""
        self.said = ""  # its last line that was no document
        self.error: dict[str, Any] | None = None
        self.ended = False

    def take(self) -> list[dict[str, Any]]:
        """Documents that have come."""
        try:
            data = os.read(self.fd, 1 << 20)
        except BlockingIOError:
            return []
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            try:
                one = json.loads(line)
            except ValueError:
                self.said = line.decode(errors="replace")
                continue
            if "error" in one:
                self.error = one
            else:
                found.append(one)
        return found

    def close(self) -> None:
        os.close(self.fd)
        self._child.terminate()


class _Dashboard:
    """What is looked at, and what is known of it."""

    def __init__(self, run: str | None) -> None:
        from supervisor.cli.dashboard_page import Look
        from supervisor.host.terminal import is_coloured

        self._run, self._asked = run, run is not None
        self._look = Look(colour=is_coloured())
        self._feed: _Feed | None = None
        self._again = 0.0  # when what reads is started again
        self._frame: dict[str, Any] | None = None
        self._heard = time.monotonic()
        self._log: deque[dict[str, Any]] = deque(maxlen=LOG_KEPT)

    def show(self) -> None:
        """Until a person ends it. Raises UserError, TransientError where nothing can be shown."""
        from supervisor.host.full_screen import FullScreen

        with FullScreen() as screen:
            try:
                self._loop(screen)
            finally:
                self._open(None)

    def _loop(self, screen: FullScreen) -> None:
        self._open(_Feed(self._run))
        while True:
            screen.draw(self._page(*screen.size()))
            ready, keys = screen.wait([self._feed.fd] if self._feed else [], REDRAWN_S)
            if ready:
                self._take()
            elif self._feed is None and time.monotonic() >= self._again:
                self._open(_Feed(self._run))
            for key in keys:
                if not self._pressed(key):
                    return

    def _open(self, feed: _Feed | None) -> None:
        if self._feed is not None:
            self._feed.close()
        self._feed = feed

    def _take(self) -> None:
        assert self._feed is not None
        for frame in self._feed.take():
            self._frame, self._heard = frame, time.monotonic()
            self._look.note = ""
            self._log.extend(frame.get("lines", ()))
        if self._feed.error is not None and self._frame is None:
            kind = UserError if self._feed.error["exit"] == 2 else TransientError
            raise kind(self._feed.error["error"])
        if self._feed.ended:
            said = self._feed.error["error"] if self._feed.error else self._feed.said
            self._look.note = said or "what reads for this view has ended; it begins again"
            self._open(None)
            self._again = time.monotonic() + AGAIN_S
        self._choose_the_only_one()

    def _choose_the_only_one(self) -> None:
        if self._asked or self._frame is None or "runs" not in self._frame:
            return
        from supervisor.cli.status import is_over

        self._asked = True
        living = [one["run"] for one in self._frame["runs"] if not is_over(one)]
        if len(living) == 1:
            self._look_at(living[0])

    def _look_at(self, run: str | None) -> None:
        """Another run, or all of them."""
        self._run, self._frame = run, None
        self._log.clear()
        self._look.scroll, self._look.note = 0, ""
        self._open(_Feed(run))

    def _page(self, columns: int, rows: int) -> list[str]:
        from supervisor.cli import dashboard_page as pages

        look = self._look
        look.columns, look.rows = columns, rows
        if self._frame is None:
            return pages.waiting_page(self._run or "all runs", look)
        silent = time.monotonic() - self._heard
        if silent > SILENT_S and (not look.note or look.note.startswith(NOTHING)):
            look.note = f"{NOTHING} for {silent:.0f} s"
        if "runs" in self._frame:
            runs = self._frame["runs"]
            look.chosen = max(0, min(look.chosen, len(runs) - 1))
            return pages.list_page(runs, self._frame["at"] + silent, look)
        run = self._frame["run"]
        now = run["now"] + silent if run["phase"] is not None else time.time()
        return pages.run_page(run, list(self._log), now, look)

    def _pressed(self, key: str) -> bool:
        """Whether the view goes on."""
        listed = self._frame is not None and "runs" in self._frame
        by = {"up": -1, "down": 1, "page up": -PAGE, "page down": PAGE}.get(key, 0)
        if key == "quit" or (key == "back" and listed):
            return False
        if key == "home":
            self._look.scroll = self._look.chosen = 0
        elif key == "back":
            self._look_at(None)
        elif listed:
            self._look.chosen += by
            if key == "open" and self._frame is not None and self._frame["runs"]:
                self._look_at(self._frame["runs"][self._look.chosen]["run"])
        else:
            self._look.scroll += by
        return True
