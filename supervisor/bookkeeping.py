"""Between a run's engine and the fleet record: reports go in, people's exclusions come out.

The record is one SQLite file that others write too; it is asked in a thread, and an engine goes on
without it. What is wrong with it is noted, each thing once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from healthchecks.report import parse
from supervisor.core.errors import TransientError, UserError
from supervisor.core.types import Run
from supervisor.fleet import Fleet

LOOK_S = 30.0  # how often exclusions are read


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
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fleet")

    def record(self, report: str) -> None:
        """Take in a health report; returns at once."""
        self._thread.submit(self._quietly, lambda: self._record(report))

    def _record(self, report: str) -> None:
        with Fleet(self._path) as fleet:
            fleet.record([parse(report)], self._origin)

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (UserError, TransientError, OSError) as error:
            if str(error) not in self._noted:
                self._noted.add(str(error))
                self._note(f"fleet record: {error}")

    async def follow(self, run: Callable[[], Run], tell: Callable[[dict[str, str]], None]) -> None:
        """Tell who is kept out, and record whom the run excludes, for as long as it lives."""
        told: set[str] = set()
        loop = asyncio.get_running_loop()
        while True:
            new = [x for name, x in run().excluded.items() if name not in told]
            told |= {x.node for x in new}
            strikes = {x.node: x.reason for x in new if x.since > self._now() - LOOK_S * 2}
            found = await loop.run_in_executor(self._thread, self._exchange, strikes)
            if found is not None:
                tell(found)
            await asyncio.sleep(LOOK_S)

    def _exchange(self, strikes: Mapping[str, str]) -> dict[str, str] | None:
        found: dict[str, str] | None = None

        def work() -> None:
            nonlocal found
            if strikes:
                with Fleet(self._path) as fleet:
                    for node, why in strikes.items():
                        fleet.strike(node, self._origin, why, self._now())
            found = barred(self._path, self._now())

        self._quietly(work)
        return found

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
