"""A look over the fleet from cron: ask, confirm, record, drain, and tell what changed.

One sweep at a time, over by its deadline whatever hangs. Nodes that work are left alone, but for
the `running` suite on those of the user's own runs, which their agents do.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from healthchecks.check import Status
from healthchecks.cohort import Golden, judge
from healthchecks.registry import registered
from healthchecks.remote import ANSWERS, Answer, Suite, Told, examine
from healthchecks.report import Report
from launchers.slurm import NodeStatus, Slurm
from supervisor.asking import agents
from supervisor.config import Site
from supervisor.drain import Decision, command, decide, drainable
from supervisor.fleet import Change, Fleet

ORIGIN = "sweep"
CONFIRM_SHARE = 0.3  # of the deadline, kept for the second look at what failed


class Busy(Exception):
    """Another sweep is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep found and did."""

    answers: Mapping[str, Answer]
    changes: Sequence[Change]
    acts: Sequence[str]  # drains and what came of them, one line each

    @property
    def worse(self) -> bool:
        """Whether anything changed for the worse."""
        bad = (Status.FAIL, Status.UNKNOWN)
        return any(c.status in bad for c in self.changes)


@contextmanager
def alone(site: Site) -> Iterator[None]:
    """Hold the sweep's lock. Raises Busy where another holds it, OSError."""
    path = site.fleet.with_suffix(".sweep.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another sweep is under way (it holds {path})") from None
        yield


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
    told: Told = lambda *_: None,
    env: Mapping[str, str] | None = None,
) -> Sweep:
    """Look, look again at what failed, record, settle. Raises UserError, TransientError."""
    answers = await examine(
        nodes,
        suite,
        site,
        partition=partition,
        deadline_s=deadline_s * (1 - CONFIRM_SHARE),
        told=told,
        ask_run=agents(site, suite),
        env=env,
    )
    there = {n: a.report for n, a in answers.items() if a.report is not None}
    reports = judge(there, registered(), golden).reports
    again = await _again(reports, suite, site, deadline_s * CONFIRM_SHARE, env)
    changes = fleet.record(reports.values(), ORIGIN)
    slurm = Slurm(env=env)
    looked = sum(1 for a in answers.values() if a.answered)
    acts = await settle(fleet, slurm, site, reports, again, looked, now)
    return Sweep(answers=answers, changes=changes, acts=acts)


async def _again(
    reports: Mapping[str, Report],
    suite: Suite,
    site: Site,
    deadline_s: float,
    env: Mapping[str, str] | None,
) -> dict[str, Report]:
    """A second look at what would drain a node: the failed checks alone."""
    failed: dict[tuple[str, ...], list[str]] = {}
    for node, report in reports.items():
        names = tuple(
            sorted({f.check for f in report.findings if drainable(f) and f.check != ANSWERS})
        )
        if names and "preflight" in report.tags:
            failed.setdefault(names, []).append(node)
    found: dict[str, Report] = {}
    for names, nodes in failed.items():
        asked = replace(suite, names=names, tags=())
        answers = await examine(nodes, asked, site, deadline_s=deadline_s / len(failed), env=env)
        found |= {n: a.report for n, a in answers.items() if a.report is not None}
    return found


async def settle(
    fleet: Fleet,
    slurm: Slurm,
    site: Site,
    reports: Mapping[str, Report],
    again: Mapping[str, Report],
    looked: int,
    now: Callable[[], float],
) -> list[str]:
    """Drain what two looks found wrong, lift own drains that passed twice; a line for each act."""
    own = fleet.drains()
    confirmed = {}
    for node, report in again.items():
        failed = {f.name for f in reports[node].findings if f.status is Status.FAIL}
        both = [f for f in report.findings if f.status is Status.FAIL and f.name in failed]
        if both:
            confirmed[node] = both
    if not own and not confirmed:
        return []
    states: dict[str, NodeStatus] = await slurm.nodes([*own, *confirmed])
    decisions, held = decide(
        confirmed=confirmed,
        looked=looked,
        slurm=states,
        own=own,
        passes={node: fleet.passes(node, drain.at) for node, drain in own.items()},
    )
    lines = [held] if held else []
    for decision in decisions:
        lines.append(await _act(decision, fleet, slurm, site, now()))
    return lines


async def _act(decision: Decision, fleet: Fleet, slurm: Slurm, site: Site, now: float) -> str:
    """Recorded first: an act that is not known of would look like a person's."""
    node = decision.node
    if decision.act == "forget":
        fleet.undrained(node, now)
        return f"{node}: the drain is superv's no longer: {decision.reason}"
    if site.drain != "on":
        return f"{node}: would {decision.act} it ({decision.reason}): {command(decision)}"
    if decision.act == "drain":
        fleet.drained(node, decision.reason, now)
        if why := await slurm.drain(node, decision.reason):
            fleet.undrained(node, now)
            return f"{node}: not drained: {why}; with the rights: {command(decision)}"
        return f"{node}: drained: {decision.reason}"
    if why := await slurm.resume(node):
        return f"{node}: not resumed: {why}; with the rights: {command(decision)}"
    fleet.undrained(node, now)
    return f"{node}: resumed: {decision.reason}"


def crontab_line(argv: Sequence[str], every_min: int) -> str:
    """The line for a crontab. `%` means a new line there (crontab(5))."""
    import shlex

    words = shlex.join(argv).replace("%", r"\%")
    return f"*/{every_min} * * * * {words}  # superv sweep; report: superv nodes\n"


def units(argv: Sequence[str], every_min: int) -> dict[str, str]:
    """A systemd service and its timer, by file name. systemd.service(5): quoting, `%` and `$`."""
    quote = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"}
    words = " ".join('"' + "".join(quote.get(c, c) for c in word) + '"' for word in argv)
    service = f"[Unit]\nDescription=superv sweep\n\n[Service]\nType=oneshot\nExecStart={words}\n"
    timer = (
        "[Unit]\nDescription=superv sweep, every so often\n\n"
        f"[Timer]\nOnBootSec={every_min}min\nOnUnitInactiveSec={every_min}min\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    return {"superv-sweep.service": service, "superv-sweep.timer": timer}


def installed(before: str, line: str) -> str:
    """The crontab with the line in it, once."""
    kept = [row for row in before.splitlines() if "# superv sweep;" not in row]
    return "\n".join([*kept, line.rstrip("\n")]) + "\n"


def document(found: Sweep) -> str:
    """The JSON of `superv sweep --json`: docs/fleet.md."""
    return json.dumps(
        {
            "schema": 1,
            "nodes": {
                n: {
                    "asked": a.way.value,
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
            "acts": list(found.acts),
        },
        indent=2,
    )
