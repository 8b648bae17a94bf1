"""What Slurm itself runs on a node: Prolog and HealthCheckProgram.

A Prolog that fails drains its node and requeues the job, and must not call scontrol; it has
seconds. A HealthCheckProgram is killed after 60 s, and drains by itself (slurm.conf(5)).
"""

from __future__ import annotations

import asyncio
import os
import re
import syslog
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from healthchecks.frame import state as kept
from healthchecks.frame.registry import select
from healthchecks.frame.report import Finding, Report, from_document
from healthchecks.frame.runner import RUN_ENDED, Order, run
from launchers.slurm import Slurm
from supervisor.config import Site
from supervisor.core.check_status import Status
from supervisor.core.errors import TransientError, UserError
from supervisor.core.setting import REPAIRS
from supervisor.fleet import suspects
from supervisor.fleet.apply_drains import apply_drains
from supervisor.fleet.brake import COUNT_AGAIN_S, leave, left
from supervisor.fleet.drain import drainable_of
from supervisor.fleet.record import Fleet
from supervisor.host import procfs

PROLOG_S = 2.0
CACHED_S = 900.0  # an older verdict says nothing about now
# Of the 60 s that Slurm grants a HealthCheckProgram; Slurm is asked how its nodes are, twice where
# this one is drained, and to drain or resume.
LOOK_S, SLURM_S = 34.0, 4.0
# How a slurmstepd calls itself (setproctitle in src/slurmd/slurmstepd/slurmstepd.c): `[7.0]`, `[7]`
# (a batch step before 20.11), `[7.batch]`, `[7.extern]`, `[7.interactive]`, `[7.0+1]` of a
# heterogeneous job; `[StepId=7.0]` is how its log names it.
STEP = re.compile(r"slurmstepd: \[(?:StepId=)?\w+(?:\+\d+)?(?:\.\w+(?:\+\d+)?)?\]")
Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrologVerdict:
    """What a Prolog found, and why that forbids no job where it does not."""

    report: Report
    faults: Sequence[Finding]
    pardon: str = ""
    late: Sequence[Finding] = ()  # not judged within the seconds that a Prolog has

    @property
    def fails(self) -> bool:
        return bool(self.faults) and not self.pardon

    def text(self) -> str:
        """One line; empty where nothing was found."""
        found = "; ".join(f"{self.report.node}: {f.name}: {f.result.seen}" for f in self.faults)
        if self.pardon:
            found += f"; the job may begin all the same: {self.pardon}"
        if self.late:
            names = ", ".join(finding.name for finding in self.late)
            unjudged = f"{self.report.node}: not judged within {PROLOG_S:g} s: {names}"
            found = f"{found}; {unjudged}" if found else unjudged
        return found


def prolog(
    node: str,
    settings: Settings,
    site: Site,
    folder: Path,
    now: float,
    *,
    root: Path = Path("/"),
) -> PrologVerdict:
    """Run the cheap checks; what forbids a job here: also the last full report, if recent.

    What that found wrong is asked again where the prolog's checks ask it too; else it counts only
    where two looks found it. A node is failed where the site drains, and where a recent count of
    superv's drains says that one more may go.
    """
    repairs = kept.load(folder, node, "").repaired  # of the looks that are told of them
    told = {node: {name: at for name, (at, _) in repairs.items()}}
    report = run(
        Order(
            checks=select(tags=("prolog",)),
            settings={**settings, REPAIRS: told},
            tags=("prolog",),
            node=node,
            root=root,
            folder=folder / "prolog",
            deadline_s=PROLOG_S,
        )
    )
    bad = drainable_of(report.findings)
    asked = {f.check for f in report.findings if f.status is not Status.UNKNOWN}
    cached = last_report(folder, report.node, report.boot_id)
    if cached is not None and now - cached.at <= CACHED_S:
        since = suspects.load(folder, report.boot_id, now)
        bad += [
            f
            for f in drainable_of(cached.findings)
            if f.check not in asked
            and f.name in since
            and since[f.name][1] - since[f.name][0] >= site.drain.look_again_s
        ]
    pardon = _pardon(site, folder, now) if bad else ""
    late = [f for f in report.findings if f.status is Status.UNKNOWN and RUN_ENDED in f.result.seen]
    return PrologVerdict(report=report, faults=bad, pardon=pardon, late=late)


def _pardon(site: Site, folder: Path, now: float) -> str:
    """Why a faulty node is not failed."""
    if not site.drain.on:
        return "drain is off in site.yaml"
    brake, why = left(folder, now)
    if brake is None:
        return why
    return brake.text() if brake.holds() else ""


def last_report(folder: Path, node: str, boot_id: str) -> Report | None:
    """The last run of the preflight suite on this node since it booted, by this user."""
    last = kept.load(folder, node, boot_id).last.get("preflight")
    if last is None:
        return None
    try:
        return from_document(last)
    except UserError:
        return None


def healthcheck(
    node: str,
    settings: Settings,
    site: Site,
    folder: Path,
    *,
    busy: bool,
    now: Callable[[], float],
) -> tuple[Report, list[str]]:
    """All checks on an idle node, the light ones on a busy one; drains as the site allows.

    What failed counts once a look before found it too, apart in time. Returns what was done, in
    words.
    """
    tag = "running" if busy else "preflight"
    report = run(
        Order(
            checks=select(tags=(tag,)),
            settings=settings,
            tags=(tag,),
            node=node,
            folder=folder,
            deadline_s=LOOK_S,
        )
    )
    failed = drainable_of(report.findings)
    said = []
    try:
        kept.usable(folder)
        twice = suspects.look(folder, report, [f.name for f in failed], site.drain.look_again_s)
        for fault in failed:
            if fault.name not in twice:
                said.append(
                    f"{report.node}: {fault.name}: {fault.result.seen}: nothing is done for it "
                    f"until it is found again, {site.drain.look_again_s:g} s later or more"
                )
        with Fleet(folder / "node.db") as fleet:  # a drain that is not recorded is a person's
            fleet.record([report], "healthcheck", now=now())
            earlier, _ = left(folder, now())
            work = apply_drains(
                fleet,
                Slurm(deadline_s=SLURM_S),
                site,
                {report.node: both} if (both := [f for f in failed if f.name in twice]) else {},
                now,
                count=site.drain.on
                and (earlier is None or now() - earlier.at > COUNT_AGAIN_S or bool(failed)),
                counted_as=lambda brake: leave(folder, brake),
            )
            return report, said + [outcome.text for outcome in asyncio.run(work)]
    except (TransientError, UserError, OSError) as error:
        return report, [*said, f"{report.node}: nothing is drained or resumed: {error}"]


def to_syslog(text: str) -> None:
    """For the node's log: what Slurm makes of a failed Prolog names no reason."""
    syslog.openlog("superv", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, text[:1000])


def job_steps_here(root: str = procfs.ROOT) -> bool:
    """Whether a job's step runs on this node: whether slurmd has started a slurmstepd for one.

    Anybody may call a program slurmstepd, and with cgroup v2 slurmd keeps a `slurmstepd infinity`
    that is no job's. So it is asked who started it, what it runs, and what it says of itself.
    """
    may_be = {0, os.geteuid()}  # slurmd's user, who runs this program too
    return any(
        process.name == "slurmstepd"
        and process.alive
        and procfs.real_uid(process.pid, root) in may_be
        and Path(procfs.executable(process.pid, root) or "").name == "slurmstepd"
        and STEP.match(" ".join(procfs.argv(process.pid, root))) is not None
        for process in procfs.processes(root)
    )
