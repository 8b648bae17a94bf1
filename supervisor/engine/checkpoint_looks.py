"""Looks at checkpoints: newest first, one good one is enough to go on, and what is good stays so.

A checkpoint that was verified is known by its fingerprint (in the journal, so also after an
engine's restart): as long as that is the same it costs one stat a file, and no reading. Any other
is verified. Nothing is decided here but the order, and when storage itself is to blame.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import PurePath

from supervisor.checkpoints.dcp import CheckpointReport, CheckpointState
from supervisor.checkpoints.storage import Storage
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.errors import TransientError
from supervisor.core.lineage import counts
from supervisor.core.types import Checkpoint, Phase, Rejected, Run

logger = logging.getLogger(__name__)

STORAGE_S = 60.0  # a child that looks is given up after so long without a sign of life
UNREADABLE_LOOKS = 4  # then an older one is taken; with the pauses between about 20 s
ENDING_S = 15.0  # for the older ones of a run that ends: nobody looks at them afterwards
BUDGET_S = 20.0  # a look while ranks run begins nothing new after this: newer ones may be there


class CheckpointLooks:
    """Of one run."""

    def __init__(
        self,
        storage: Storage,
        required: tuple[str, ...],
        run: Callable[[], Run],
        now: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._required = required
        self._run = run
        self._now = now
        self._unreadable: dict[str, int] = {}  # by the key of a Scan: looks that had to be repeated
        self._unusable: dict[str, tuple[str, CheckpointReport]] = {}  # by path, with fingerprint
        self._unfinished: dict[str, tuple[int, float]] = {}  # by path: bytes, newest change
        self.written_at = float("-inf")  # when one of the attempt was last seen to grow
        self._earlier_done = 0  # attempt since which all of the earlier ones have been looked at

    async def for_restart(self, action: act.Scan) -> ev.Scanned:
        """The newest good checkpoint, and what is wrong with those that are newer.

        Raises TransientError where storage does not answer: also where a newer one than the good
        one can't be read, for the first few looks.
        """
        there = await self._storage.list(action.directory, deadline_s=STORAGE_S)
        refused = (one for one in there.refused if one.state is not CheckpointState.FOREIGN)
        rejected = [_rejected(one, one.step) for one in refused]
        unreadable: list[tuple[Checkpoint, TransientError]] = []
        found: list[Checkpoint] = []
        candidates = iter(self._candidates(action, there.paths))
        for one in candidates:
            try:
                seen = await self._look(one)
            except TransientError as error:
                unreadable.append((one, error))
                continue
            if isinstance(seen, CheckpointReport):
                rejected.append(_rejected(seen, one.step))
                continue
            found.append(seen)
            if counts(self._run(), seen):
                break
        if self._run().stopping_as is not None:
            await self._rest(candidates, found)
        if unreadable:
            rejected += self._passed_over(action.key, unreadable, found)
        return ev.Scanned(
            at=self._now(), key=action.key, found=tuple(found), rejected=tuple(rejected)
        )

    async def _rest(self, candidates: Iterator[Checkpoint], found: list[Checkpoint]) -> None:
        """Add the older ones that are good, as far as time allows; a person may go back to them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_S):
                for one in candidates:
                    with contextlib.suppress(TransientError):
                        if isinstance(seen := await self._look(one), Checkpoint):
                            found.append(seen)

    def _passed_over(
        self,
        key: str,
        unreadable: list[tuple[Checkpoint, TransientError]],
        found: list[Checkpoint],
    ) -> Iterator[Rejected]:
        """Those that can't be read though an older one can; raises while that may be a moment's."""
        first = unreadable[0][1]
        good = next((one for one in found if counts(self._run(), one)), None)
        if good is None:
            raise first
        looks = self._unreadable.get(key, 0) + 1
        self._unreadable = {key: looks}
        if looks < UNREADABLE_LOOKS:
            more = f"{looks} of {UNREADABLE_LOOKS} looks, then step {good.step} is taken"
            raise TransientError(f"{first} ({more})")
        return (
            Rejected(
                step=one.step,
                path=one.path,
                why=f"could not be read {looks} times, and step {good.step} could: {error}",
                unreadable=True,
            )
            for one, error in unreadable
        )

    def _candidates(self, action: act.Scan, paths: tuple[str, ...]) -> list[Checkpoint]:
        """What the attempt saved and what the lineage knows, newest first."""
        known = {c.path: c for c in self._run().lineage}
        here = [_unseen(path, action.attempt) for path in paths]
        older = [
            Checkpoint(step=step, path=path, attempt=attempt, verified_at=0.0)
            for step, path, attempt in action.known
        ]
        by_path = {one.path: known.get(one.path, one) for one in (*here, *older)}
        return sorted(by_path.values(), key=lambda one: (one.step, one.attempt), reverse=True)

    async def beside(self) -> AsyncIterator[ev.Scanned]:
        """Each checkpoint that is newly verified while the ranks run.

        The attempt's own first, then, once an attempt, what earlier ones saved before what was
        resumed: retention needs to know it. What can't be read is logged, and looked at next time.
        """
        attempt = self._run().attempt
        if attempt is None or attempt.save_dir is None:
            return
        until = self._now() + BUDGET_S
        own = {attempt.number: attempt.save_dir}
        earlier = {
            one.attempt: str(PurePath(one.path).parent)
            for one in self._run().lineage
            if 0 < one.attempt < attempt.number
            and self._earlier_done != attempt.number
            and self._run().phase is Phase.RUNNING  # ranks that start need storage for themselves
        }
        missed = False
        for number, directory in (own | earlier).items():
            try:
                paths = (await self._storage.list(directory, deadline_s=STORAGE_S)).paths
            except TransientError as error:
                logger.error(str(error))
                missed = True
                continue
            for one in (_unseen(path, number) for path in paths):
                known = {c.path for c in self._run().lineage}
                if one.path in known or not counts(self._run(), one):
                    continue
                if self._now() > until:
                    return
                try:
                    seen = await self._look(one)
                except TransientError as error:
                    logger.error(str(error))
                    missed = True
                    continue
                if isinstance(seen, CheckpointReport) and number == attempt.number:
                    self._note_growth(seen)
                if isinstance(seen, Checkpoint):
                    yield ev.Scanned(at=self._now(), key=names.SCAN_KEY, found=(seen,))
        if not missed and self._run().phase is Phase.RUNNING:
            self._earlier_done = attempt.number

    def _note_growth(self, seen: CheckpointReport) -> None:
        """A checkpoint that grows is being saved: no step is late for that."""
        if seen.state is CheckpointState.INCOMPLETE:
            size = seen.bytes, seen.mtime
            if self._unfinished.get(seen.path) != size:
                self._unfinished[seen.path] = size
                self.written_at = self._now()

    async def _look(self, one: Checkpoint) -> Checkpoint | CheckpointReport:
        """The checkpoint where it is good; else what was found. Raises TransientError."""
        now = await self._storage.fingerprint(one.path, deadline_s=STORAGE_S)
        if now and now == one.fingerprint:
            return one
        before = self._unusable.get(one.path)
        if now and before is not None and before[0] == now and self._run().phase is Phase.RUNNING:
            return before[1]  # a restart looks again all the same: it is worth it
        report = await self._storage.verify(one.path, deadline_s=STORAGE_S, required=self._required)
        if report.state is CheckpointState.UNKNOWN:
            raise TransientError(f"{report.path}: {report.reason}")
        if report.state is CheckpointState.UNUSABLE:
            self._unusable[one.path] = now, report
        if not report.verified:
            return report
        return replace(one, verified_at=self._now(), bytes=report.bytes, fingerprint=now)


def _unseen(path: str, attempt: int) -> Checkpoint:
    step = names.step_of(PurePath(path).name)
    assert step is not None, path  # that is how it was found
    return Checkpoint(step=step, path=path, attempt=attempt, verified_at=0.0)


def _rejected(report: CheckpointReport, step: int) -> Rejected:
    return Rejected(
        step=step,
        path=report.path,
        why=report.reason,
        incomplete=report.state is CheckpointState.INCOMPLETE,
    )
