"""Health checks over the fleet from cron: ask, confirm, record, drain, and say what changed.

One sweep at a time, over by its deadline whatever hangs. Nodes that work are left alone, but for
the `running` suite on those of the user's own runs, which their agents do.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from healthchecks.frame.registry import registered
from healthchecks.frame.report import Report
from healthchecks.many.cohort import Golden, judge
from healthchecks.many.remote import ANSWERS, NodeAnswer, OnAnswer, Suite, examine
from launchers.slurm import Slurm
from supervisor.config import Site
from supervisor.core.check_status import WORST_FIRST, Status
from supervisor.core.errors import TransientError, UserError
from supervisor.fleet.apply_drains import DrainOutcome, apply_drains, in_both
from supervisor.fleet.database import ELSEWHERE
from supervisor.fleet.drain import drainable
from supervisor.fleet.record import Fleet
from supervisor.fleet.run_health_query import query_agents
from supervisor.fleet.types import Change
from supervisor.host import announced, private, trusted

ORIGIN = "sweep"
CANCEL_S = 10.0  # over the deadline: to cancel what hangs, and to drain
SECOND_S = 1.0  # for the second look at least
CONFIRM_SHARE = 0.4  # of the deadline, kept to confirm what failed


class SweepRunning(Exception):
    """Another sweep is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep found and did."""

    answers: Mapping[str, NodeAnswer]
    changes: Sequence[Change]
    drains: Sequence[DrainOutcome]

    @property
    def drains_to_report(self) -> list[str]:
        """What the last sweep did not tell: what was done, and advice where something changed."""
        nodes = {c.node for c in self.changes}
        return [d.text for d in self.drains if d.done or d.node in nodes or (nodes and not d.node)]

    @property
    def worse(self) -> bool:
        """Whether anything fails or is unknown that was better before."""
        bad = (Status.FAIL, Status.UNKNOWN)
        order = WORST_FIRST.index
        return any(
            c.status in bad and order(c.status) < order(c.was or Status.OK) for c in self.changes
        )


@contextmanager
def sweep_lock(site: Site) -> Iterator[None]:
    """Hold the sweep's lock. Raises SweepRunning where another holds it, UserError, OSError.

    Root makes nothing in a user's folder: a link there would lead it anywhere.
    """
    path = site.fleet.with_suffix(".sweep.lock")
    with announced.at("locking the sweep", path, instead=ELSEWHERE):
        fd = _lock_file(path)
    with os.fdopen(fd, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepRunning(f"another sweep is under way (it holds {path})") from None
        yield


def _lock_file(path: Path) -> int:
    """Raises UserError, OSError."""
    if why := trusted.problem(path, sticky=True):
        raise UserError(f"{path}: root does not write it: {why}")
    private.make(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:  # a link, a FIFO, another user's
        raise UserError(f"{path}: can't be locked: {error.strerror}; remove it") from None


async def sweep(
    nodes: Sequence[str],
    suite: Suite,
    site: Site,
    fleet: Fleet,
    *,
    partition: str | None,
    deadline_s: float,
    now: Callable[[], float],
    golden: Golden | None = None,
    on_answer: OnAnswer = lambda *_: None,
    env: Mapping[str, str] | None = None,
) -> Sweep:
    """Ask, record, ask again about what failed, drain; over within the deadline and CANCEL_S.

    Raises UserError and TransientError where nothing could be checked or recorded. What comes
    after that may fail, and is reported: what changed is not lost.
    """
    end = time.monotonic() + deadline_s
    first_s = deadline_s * (1 - CONFIRM_SHARE)
    try:
        async with asyncio.timeout(deadline_s + CANCEL_S):
            answers = await examine(
                nodes,
                suite,
                site,
                partition=partition,
                deadline_s=first_s,
                on_answer=on_answer,
                ask_run=query_agents(site, suite, first_s),
                env=env,
            )
    except TimeoutError:
        late_s = deadline_s + CANCEL_S
        raise TransientError(f"not all nodes were answered for within {late_s:.0f} s") from None
    there = {n: a.report for n, a in answers.items() if a.report is not None}
    judged = judge(there, registered(), golden)
    fleet.record(judged.reports.values(), ORIGIN, compared=judged.compared, now=now())
    changes = fleet.unreported_changes(ORIGIN)  # runs' and people's preflights' too
    left_s = end - time.monotonic()
    try:
        async with asyncio.timeout(left_s + CANCEL_S):
            again, late = await _confirm(
                judged.reports, suite, site, max(SECOND_S, left_s - CANCEL_S), env
            )
            slurm = Slurm(deadline_s=CANCEL_S / 2, env=env)
            confirmed = in_both(judged.reports, again)
            drains = await apply_drains(fleet, slurm, site, confirmed, now)
            drains += [DrainOutcome(text=late)] if late else []
    except TimeoutError:
        late = "nothing was drained or resumed: the second round of checks did not end"
        drains = [DrainOutcome(text=late, done=True)]
    except (UserError, TransientError) as error:
        drains = [DrainOutcome(text=f"nothing was drained or resumed: {error}", done=True)]
    return Sweep(answers=answers, changes=changes, drains=drains)


async def _confirm(
    reports: Mapping[str, Report],
    suite: Suite,
    site: Site,
    left_s: float,
    env: Mapping[str, str] | None,
) -> tuple[dict[str, Report], str]:
    """A second report on what would drain a node: the failed checks alone, of all such nodes.

    As much later as the site wants it; with why there is none where the sweep ends before.
    """
    failed: dict[str, set[str]] = {}
    for node, report in reports.items():
        names = {f.check for f in report.findings if drainable(f) and f.check != ANSWERS}
        if names and "preflight" in report.tags:
            failed[node] = names
    if not failed:
        return {}, ""
    wait_s = site.drain.look_again_s if site.drain.on else 0.0
    if wait_s + SECOND_S > left_s:
        return {}, (
            f"nothing is drained for what failed: a second look {wait_s:g} s later does not fit "
            "before the sweep's end; give it a longer --deadline, or drain: look_again_s less"
        )
    await asyncio.sleep(wait_s)
    asked = replace(suite, names=tuple(sorted(set().union(*failed.values()))), tags=())
    answers = await examine(tuple(failed), asked, site, deadline_s=left_s - wait_s, env=env)
    return {n: a.report for n, a in answers.items() if a.report is not None}, ""


def document(found: Sweep) -> str:
    """The JSON of `superv sweep --json`: docs/fleet.md."""
    return json.dumps(
        {
            "schema": 1,
            "nodes": {
                n: {
                    "asked": a.transport.value,
                    "state": a.state,
                    "why": a.why,
                    "report": a.report.document() if a.report else None,
                }
                for n, a in found.answers.items()
            },
            "changes": [
                {
                    "node": c.node,
                    "finding": c.finding,
                    "was": c.was.value if c.was else None,
                    "status": c.status.value,
                    "seen": c.seen,
                }
                for c in found.changes
            ],
            "acts": [drain.text for drain in found.drains],
        },
        indent=2,
    )
