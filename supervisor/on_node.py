"""What Slurm itself runs on a node: Prolog and HealthCheckProgram.

A Prolog that fails drains its node and requeues the job, and must not call scontrol; it has
seconds. A HealthCheckProgram is killed after 60 s, and drains by itself (slurm.conf(5)).
"""

from __future__ import annotations

import asyncio
import syslog
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from healthchecks import state as kept
from healthchecks.check import Status
from healthchecks.registry import select
from healthchecks.report import Finding, Report, from_document
from healthchecks.runner import Order, run
from launchers.slurm import Slurm
from supervisor.config import Site
from supervisor.core.errors import TransientError, UserError
from supervisor.drain import drainable
from supervisor.fleet import Fleet
from supervisor.sweep import settle

PROLOG_S = 2.0
CACHED_S = 900.0  # an older verdict says nothing about now
HEALTHCHECK_S = 45.0  # of the 60 s that Slurm grants, shared out like this:
LOOK_S, AGAIN_S, SLURM_S = 27.0, 7.0, 4.0  # Slurm is asked for the state, and to drain or resume
Settings = Mapping[str, Mapping[str, Any]]


def prolog(node: str, settings: Settings, folder: Path, now: float) -> tuple[Report, list[Finding]]:
    """A look at what is cheap, and what forbids a job here: also the last full look, if recent.

    What that look found wrong is asked again where the prolog's checks ask it too.
    """
    report = run(
        Order(
            checks=select(tags=("prolog",)),
            settings=settings,
            tags=("prolog",),
            node=node,
            folder=folder / "prolog",
            deadline_s=PROLOG_S,
        )
    )
    bad = [f for f in report.findings if drainable(f)]
    asked = {f.check for f in report.findings if f.status is not Status.UNKNOWN}
    cached = last_look(folder, report.node, report.boot_id)
    if cached is not None and now - cached.at <= CACHED_S:
        bad += [f for f in cached.findings if drainable(f) and f.check not in asked]
    return report, bad


def last_look(folder: Path, node: str, boot_id: str) -> Report | None:
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
    """A full look at an idle node, a light one at a busy one; drains as the site allows.

    What failed is looked at a second time before it counts. Returns what was done, in words.
    """
    tag = "running" if busy else "preflight"
    order = Order(
        checks=select(tags=(tag,)),
        settings=settings,
        tags=(tag,),
        node=node,
        folder=folder,
        deadline_s=LOOK_S,
    )
    report = run(order)
    failed = [f.check for f in report.findings if drainable(f)]
    again = {}
    if failed:
        second = replace(order, checks=select(failed), folder=folder / "again", deadline_s=AGAIN_S)
        again = {report.node: run(second)}
    try:
        with Fleet(folder / "node.db") as fleet:  # a drain that is not recorded is a person's
            fleet.record([report], "healthcheck", now=now())
            slurm = Slurm(deadline_s=SLURM_S)
            work = settle(fleet, slurm, site, {report.node: report}, again, looked=1, now=now)
            return report, [act.text for act in asyncio.run(work)]
    except (TransientError, UserError, OSError) as error:
        return report, [f"{report.node}: nothing is drained or resumed: {error}"]


def log(text: str) -> None:
    """For the node's log: what Slurm makes of a failed Prolog names no reason."""
    syslog.openlog("superv", 0, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_ERR, text[:1000])


def jobs_here(root: Path = Path("/")) -> bool:
    """Whether a job's step runs on this node: whether slurmd has started a slurmstepd."""
    for name in (root / "proc").glob("[0-9]*/comm"):
        try:
            if name.read_text().strip() == "slurmstepd":
                return True
        except OSError:
            continue
    return False
