"""Between a run's engine and the fleet record: reports go in, people's exclusions come out.

The record is one SQLite file that others write too; it is asked in a thread, and an engine goes on
without it. What is wrong with it is noted, each thing once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from healthchecks.report import parse
from supervisor.core.errors import TransientError, UserError
from supervisor.core.types import Exclusion, Run
from supervisor.fleet import Fleet

LOOK_S = 30.0  # how often exclusions are read
MOST_WAITING = 500  # reports that wait for a record that does not answer; more are dropped


def barred(path: Path, now: float) -> dict[str, str]:
    """The nodes that people keep out of runs, and why; none where there is no record.

    Raises UserError, TransientError.
    """
    if not path.exists():
        return {}
    with Fleet(path, write=False) as fleet:
        return {name: x.reason for name, x in fleet.exclusions(now).items()}


class Books:
    """One engine's hand in the fleet record."""

    def __init__(
        self, path: Path, run: str, now: Callable[[], float], note: Callable[[str], None]
    ) -> None:
        self._path, self._origin = path, f"run {run}"
        self._now, self._note = now, note
        self._noted: set[str] = set()
        self._closing = False
        self._room = threading.Semaphore(MOST_WAITING)
        self._struck: set[tuple[str, float]] = set()  # exclusions of the run that are recorded
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleet")

    def record(self, node: str, report: str) -> None:
        """Take in the health report of a node; returns at once."""
        if not self._room.acquire(blocking=False):
            self._once(f"{self._path} is too slow: health reports of the run are not kept in it")
            return
        self._thread.submit(self._quietly, lambda: self._record(node, report))

    def _record(self, node: str, report: str) -> None:
        self._room.release()
        if self._closing:  # the engine is about to end, and waits for no more than it must
            return
        read = parse(report)
        if read.node != node:
            raise UserError(f"the agent on {node} told of {read.node!r}: not recorded")
        with Fleet(self._path) as fleet:
            fleet.record([read], self._origin, now=self._now())

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (UserError, TransientError, OSError) as error:
            self._once(f"fleet record: {error}")
        except Exception as error:  # rows that another version wrote, or a bug: the run goes on
            self._once(f"fleet record: {self._path}: {error!r}")

    def _once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)

    async def follow(self, run: Callable[[], Run], tell: Callable[[dict[str, str]], None]) -> None:
        """Tell who is kept out, and record whom the run excludes, for as long as it lives."""
        loop = asyncio.get_running_loop()
        while True:
            found = await loop.run_in_executor(self._thread, self._exchange, self._new(run()))
            if found is not None:
                tell(found)
            await asyncio.sleep(LOOK_S)

    def _exchange(self, new: Collection[Exclusion]) -> dict[str, str] | None:
        """Who is kept out; None where that can't be read. Told twice, an exclusion counts once."""
        found: dict[str, str] | None = None

        def read() -> None:
            nonlocal found
            found = barred(self._path, self._now())

        if new:
            self._quietly(lambda: self._strike(new))
        self._quietly(read)
        return found

    def _new(self, run: Run) -> list[Exclusion]:
        return [x for x in run.excluded.values() if (x.node, x.since) not in self._struck]

    def _strike(self, new: Collection[Exclusion]) -> None:
        with Fleet(self._path) as fleet:
            for one in new:
                fleet.strike(one.node, self._origin, one.reason, one.since)
                self._struck.add((one.node, one.since))

    def close(self, run: Run) -> None:
        """Record whom the run excluded last; reports that wait are dropped."""
        self._closing = True
        if new := self._new(run):
            self._thread.submit(self._quietly, lambda: self._strike(new))
        self._thread.shutdown(wait=False)
