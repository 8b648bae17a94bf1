"""Between a run's engine and the fleet record: reports go in, what people told comes out.

The record is one SQLite file that others write too; it is asked in a thread, and an engine goes on
without it. What is wrong with it is logged.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from healthchecks.frame.report import parse
from supervisor.core.errors import TransientError, UserError
from supervisor.core.types import Exclusion, Run
from supervisor.fleet import claims
from supervisor.fleet.claims import Claim
from supervisor.fleet.database import NoRightError
from supervisor.fleet.record import Fleet
from supervisor.host.log import counted

logger = logging.getLogger(__name__)


READ_EVERY_S = 30.0  # how often exclusions are read
MAX_WAITING = 500  # reports that wait for a record that does not answer; more are dropped


def operator_exclusions(path: Path, now: float, claims_dir: Path | None = None) -> dict[str, str]:
    """The nodes that people keep out of runs, and why; none where there is no record.

    What this user himself has claimed counts for his runs as well. Raises UserError,
    TransientError.
    """
    own = claims.mine(claims_dir, now) if claims_dir else []
    found = {c.node: c.reason for c in own if not c.run}
    if not path.exists():
        return found
    with Fleet(path, write=False) as fleet:
        return found | {name: x.reason for name, x in fleet.exclusions(now).items()}


def repairs(path: Path) -> dict[str, dict[str, float]]:
    """When nodes were repaired, for their checks; none where there is no record to be read."""
    try:
        return _repairs(path)
    except (UserError, TransientError) as error:
        logger.warning("fleet record: %s; agents don't know what was repaired", error)
        return {}


def _repairs(path: Path) -> dict[str, dict[str, float]]:
    """Raises UserError, TransientError."""
    if not path.exists():
        return {}
    with Fleet(path, write=False) as fleet:
        return fleet.repairs.newest()


class FleetRecorder:
    """One engine's hand in the fleet record."""

    def __init__(
        self, path: Path, run: str, now: Callable[[], float], claims_dir: Path | None = None
    ) -> None:
        self._path, self._run, self._origin = path, run, f"run {run}"
        self._claims_dir = claims_dir
        self._no_right = False  # to write the record: said once
        self._now = now
        self._closing = False
        self._room = threading.Semaphore(MAX_WAITING)
        self._recorded: set[tuple[str, float]] = set()  # exclusions of the run that are recorded
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
            for note in fleet.notes:
                self._once(f"fleet record: {note}")

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except NoRightError as error:
            if not self._no_right:
                logger.warning("fleet record: %s; what this run finds is not kept there", error)
            self._no_right = True
        except (UserError, TransientError, OSError) as error:
            self._once(f"fleet record: {error}")
        except Exception as error:  # rows that another version wrote, or a bug: the run goes on
            self._once(f"fleet record: {self._path}: {error!r}")

    @staticmethod
    def _once(text: str) -> None:
        logger.warning(text, extra=counted(text))

    async def follow(
        self,
        run: Callable[[], Run],
        on_exclusions: Callable[[dict[str, str]], None],
        on_repairs: Callable[[dict[str, dict[str, float]]], Awaitable[None]],
    ) -> None:
        """Read who is kept out and what was repaired, and record whom the run excludes, for as
        long as it lives."""
        loop = asyncio.get_running_loop()
        while True:
            found = await loop.run_in_executor(self._thread, self._exchange, self._new(run()))
            if found is not None:
                on_exclusions(found)
            repaired = await loop.run_in_executor(self._thread, self._repaired)
            if repaired is not None:
                await on_repairs(repaired)
            await asyncio.sleep(READ_EVERY_S)

    def _exchange(self, new: Collection[Exclusion]) -> dict[str, str] | None:
        """Who is kept out; None where that can't be read. Told twice, an exclusion counts once."""
        found: dict[str, str] | None = None

        def read() -> None:
            nonlocal found
            found = operator_exclusions(self._path, self._now(), self._claims_dir)

        self._tell(new)
        self._quietly(read)
        return found

    def _repaired(self) -> dict[str, dict[str, float]] | None:
        """When nodes were repaired; None where that can't be read."""
        found: dict[str, dict[str, float]] | None = None

        def read() -> None:
            nonlocal found
            found = _repairs(self._path)

        self._quietly(read)
        return found

    def _new(self, run: Run) -> list[Exclusion]:
        return [x for x in run.excluded.values() if (x.node, x.since) not in self._recorded]

    def _tell(self, new: Collection[Exclusion]) -> None:
        """Whom the run excludes: to the record, and to the whole site."""
        if new:
            self._quietly(lambda: self._record_exclusions(new))
            self._quietly(lambda: self._claim(new))

    def _claim(self, new: Collection[Exclusion]) -> None:
        if self._claims_dir is not None:
            told = [
                Claim(
                    node=one.node,
                    since=one.since,
                    until=one.since + claims.RUN_S,
                    reason=one.reason,
                    run=self._run,
                )
                for one in new
            ]
            claims.put(self._claims_dir, told)
            if self._no_right:
                self._recorded |= {(one.node, one.since) for one in new}

    def _record_exclusions(self, new: Collection[Exclusion]) -> None:
        with Fleet(self._path) as fleet:
            for one in new:
                fleet.strike(one.node, self._origin, one.reason, one.since)
                self._recorded.add((one.node, one.since))

    def close(self, run: Run) -> None:
        """Record whom the run excluded last; reports that wait are dropped."""
        self._closing = True
        if new := self._new(run):
            self._thread.submit(self._tell, new)
        self._thread.shutdown(wait=False)
