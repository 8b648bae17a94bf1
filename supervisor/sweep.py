"""A look over the fleet from cron: ask, confirm, record, drain, and tell what changed.

One sweep at a time, over by its deadline whatever hangs. Nodes that work are left alone, but for
the `running` suite on those of the user's own runs, which their agents do.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from healthchecks.check import WORST_FIRST, Status
from healthchecks.cohort import Golden, judge
from healthchecks.registry import registered
from healthchecks.remote import ANSWERS, Answer, Suite, Told, examine
from healthchecks.report import Report
from launchers.slurm import NodeStatus, Slurm
from supervisor.asking import agents
from supervisor.config import Site
from supervisor.core.errors import TransientError, UserError
from supervisor.drain import Decision, command, decide, drainable, drained_for
from supervisor.fleet import Change, Fleet
from supervisor.fleet_rows import Drain

ORIGIN = "sweep"
END_S = 10.0  # over the deadline: to cancel what hangs, and to drain
CONFIRM_SHARE = 0.3  # of the deadline, kept for the second look at what failed
CRON_MARK = "# superv sweep; report: superv nodes"  # by which our line is found again
CRON_CHARS = 990  # cron takes lines of 998
CARRIED = ("SUPERV_SITE", "SLURM_CONF", "XDG_CONFIG_HOME", "XDG_STATE_HOME")


class Busy(Exception):
    """Another sweep is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What was done about a drain, or could not be."""

    text: str  # one line
    node: str = ""  # empty: it is about several
    done: bool = False  # else it is advice, the same as in the last sweep perhaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep found and did."""

    answers: Mapping[str, Answer]
    changes: Sequence[Change]
    acts: Sequence[Act]

    @property
    def news(self) -> list[str]:
        """What the last sweep did not tell: what was done, and advice where something changed."""
        nodes = {c.node for c in self.changes}
        return [a.text for a in self.acts if a.done or a.node in nodes or (nodes and not a.node)]

    @property
    def worse(self) -> bool:
        """Whether anything fails or is unknown that was better before."""
        bad = (Status.FAIL, Status.UNKNOWN)
        order = WORST_FIRST.index
        return any(
            c.status in bad and order(c.status) < order(c.was or Status.OK) for c in self.changes
        )


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
    """Look, record, look again at what failed, settle; over within the deadline and END_S.

    Raises UserError and TransientError where nothing could be looked at or recorded. What comes
    after that may fail, and is told: what changed is not lost.
    """
    end = time.monotonic() + deadline_s
    first_s = deadline_s * (1 - CONFIRM_SHARE)
    try:
        async with asyncio.timeout(deadline_s + END_S):
            answers = await examine(
                nodes,
                suite,
                site,
                partition=partition,
                deadline_s=first_s,
                told=told,
                ask_run=agents(site, suite, first_s),
                env=env,
            )
    except TimeoutError:
        late_s = deadline_s + END_S
        raise TransientError(f"not all nodes were answered for within {late_s:.0f} s") from None
    there = {n: a.report for n, a in answers.items() if a.report is not None}
    judged = judge(there, registered(), golden)
    fleet.record(judged.reports.values(), ORIGIN, compared=judged.compared, now=now())
    changes = fleet.untold(ORIGIN)  # also what runs and people's preflights found meanwhile
    looked = sum(1 for a in answers.values() if a.answered)
    left_s = end - time.monotonic()
    try:
        async with asyncio.timeout(left_s + END_S):
            again = await _again(judged.reports, suite, site, max(1.0, left_s - END_S), env)
            slurm = Slurm(deadline_s=END_S / 2, env=env)
            acts = await settle(fleet, slurm, site, judged.reports, again, looked, now)
    except TimeoutError:
        acts = [Act(text="nothing was drained or resumed: the second look did not end", done=True)]
    except (UserError, TransientError) as error:
        acts = [Act(text=f"nothing was drained or resumed: {error}", done=True)]
    return Sweep(answers=answers, changes=changes, acts=acts)


async def _again(
    reports: Mapping[str, Report],
    suite: Suite,
    site: Site,
    deadline_s: float,
    env: Mapping[str, str] | None,
) -> dict[str, Report]:
    """A second look at what would drain a node: the failed checks alone, of all such nodes."""
    failed: dict[str, set[str]] = {}
    for node, report in reports.items():
        names = {f.check for f in report.findings if drainable(f) and f.check != ANSWERS}
        if names and "preflight" in report.tags:
            failed[node] = names
    if not failed:
        return {}
    asked = replace(suite, names=tuple(sorted(set().union(*failed.values()))), tags=())
    answers = await examine(tuple(failed), asked, site, deadline_s=deadline_s, env=env)
    return {n: a.report for n, a in answers.items() if a.report is not None}


async def settle(
    fleet: Fleet,
    slurm: Slurm,
    site: Site,
    reports: Mapping[str, Report],
    again: Mapping[str, Report],
    looked: int,
    now: Callable[[], float],
) -> list[Act]:
    """Drain what two looks found wrong, lift own drains that passed twice.

    Raises UserError, TransientError where Slurm does not say how its nodes are.
    """
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
        passes={node: _passes(fleet, drain) for node, drain in own.items()},
    )
    acts = [Act(text=held)] if held else []
    for decision in decisions:
        node = decision.node
        try:
            text, done = await _act(decision, fleet, slurm, site, now())
        except TransientError as error:  # perhaps done: the next sweep sees it
            text, done = f"{decision.act}: {error}; it is looked at next time", True
        acts.append(Act(node=node, text=f"{node}: {text}", done=done))
    return acts


def _passes(fleet: Fleet, drain: Drain) -> int:
    """Looks in a row without a fault since the drain's own check says that all is well.

    What else could not be measured keeps no drain: on some nodes something never can be.
    """
    since = drain.at
    for said in fleet.standing(drain.node):
        if said.finding.name == drained_for(drain.reason):
            if said.finding.status in (Status.FAIL, Status.UNKNOWN):
                return 0
            since = max(since, said.since - 0.001)  # the look that said so counts
    return fleet.passes(drain.node, since, unknown=True)


async def _act(
    decision: Decision, fleet: Fleet, slurm: Slurm, site: Site, now: float
) -> tuple[str, bool]:
    """What came of it, and whether it was done.

    Recorded first: an act that is not known of would look like a person's.
    """
    node = decision.node
    if decision.act == "forget":
        fleet.undrained(node, now)
        return f"the drain is superv's no longer: {decision.reason}", True
    if site.drain != "on":
        return f"would {decision.act} it ({decision.reason}): {command(decision)}", False
    if decision.act == "drain":
        fleet.drained(node, decision.reason, now)
        if why := await slurm.drain(node, decision.reason):
            fleet.undrained(node, now)
            return f"not drained: {why}; with the rights: {command(decision)}", False
        return f"drained: {decision.reason}", True
    if why := await slurm.resume(node):
        return f"not resumed: {why}; with the rights: {command(decision)}", False
    fleet.undrained(node, now)
    return f"resumed: {decision.reason}", True


def crontab_line(argv: Sequence[str], env: Mapping[str, str], every_min: int) -> str:
    """The line for a crontab. `%` means a new line there (crontab(5)). Raises UserError."""
    words = shlex.join(["env", *(f"{k}={v}" for k, v in env.items()), *_plain(argv, env)])
    line = f"*/{every_min} * * * * {words.replace('%', chr(92) + '%')}  {CRON_MARK}\n"
    if len(line) > CRON_CHARS:
        raise UserError(
            f"the line for the crontab has {len(line)} characters, {CRON_CHARS} at most; "
            "put the settings of checks into site.yaml"
        )
    return line


def units(argv: Sequence[str], env: Mapping[str, str], every_min: int) -> dict[str, str]:
    """A systemd service and its timer, by file name. systemd.service(5): quoting, `%` and `$`.

    Raises UserError.
    """

    def quoted(word: str, special: str) -> str:
        escaped = {"\\": "\\\\", '"': '\\"', **{c: c + c for c in special}}
        return '"' + "".join(escaped.get(c, c) for c in word) + '"'

    words = " ".join(quoted(word, "%$") for word in _plain(argv, env))
    given = "".join(f"Environment={quoted(f'{k}={v}', '%')}\n" for k, v in env.items())
    service = (
        f"[Unit]\nDescription=superv sweep\n\n[Service]\nType=oneshot\n{given}ExecStart={words}\n"
        "SuccessExitStatus=1\n"  # a node got worse: the sweep itself went well
    )
    timer = (
        "[Unit]\nDescription=superv sweep, every so often\n\n"
        f"[Timer]\nOnBootSec={every_min}min\nOnUnitInactiveSec={every_min}min\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    return {"superv-sweep.service": service, "superv-sweep.timer": timer}


def _plain(argv: Sequence[str], env: Mapping[str, str]) -> Sequence[str]:
    """Raises UserError for what would begin a line of its own."""
    for word in (*argv, *env.values()):
        if not word.isprintable():
            raise UserError(f"{word!r}: no line breaks and control characters, please")
    return argv


def surroundings(env: Mapping[str, str]) -> dict[str, str]:
    """What cron and systemd have to be told, so that a sweep is the same as one by hand.

    Raises UserError where Slurm's commands are not to be found.
    """
    found = shutil.which("sinfo", path=env.get("PATH", os.defpath))
    if found is None:
        raise UserError("sinfo is not on PATH here: superv needs Slurm's client commands")
    folders = dict.fromkeys([str(Path(found).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    kept = {name: env[name] for name in CARRIED if env.get(name)}
    return {"PATH": ":".join(folders), **kept}


def installed(before: str, line: str) -> str:
    """The crontab with the line in it, once."""
    kept = [row for row in before.splitlines() if not row.endswith(CRON_MARK)]
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
            "acts": [act.text for act in found.acts],
        },
        indent=2,
    )
