"""`superv include`: let nodes back in, or say what keeps them out.

Three may keep a node out: the fleet record (a person's exclusion, or a claim), a run by itself, and
a drain in Slurm. All three are asked; what this user may lift is lifted, the rest is named with the
command that lifts it. A drain that is not superv's own is a person's, and is let be.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from supervisor.cli.node_names import named
from supervisor.core.check_status import Status
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from launchers.slurm_rows import SlurmNode
    from supervisor.config import Site
    from supervisor.fleet.claims import Claim
    from supervisor.fleet.record import Fleet
    from supervisor.fleet.types import Drain, Excluded
    from supervisor.run.folder import RunDir

SLURM_S = 10.0


@dataclass(slots=True)
class Lifted:
    """What came of each node: what keeps it out no longer, and what still does."""

    lifted: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be asked

    def lift(self, node: str, text: str) -> None:
        self.lifted.setdefault(node, []).append(text)

    def leave(self, node: str, text: str) -> None:
        self.left.setdefault(node, []).append(text)


@click.command()
@click.argument("words", metavar="[RUN] NODES…", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also nodes that have not passed since.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/fleet.md.")
def include(words: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Let NODES back in, or say what keeps them out: an exclusion, a run, a drain in Slurm.

    Lifts exclusions once a node has passed a preflight since, has your runs use it again (RUN
    alone, where one is named; also while it gathers), and lifts superv's own drains. Exit code 0:
    nothing keeps them out any more; 1: something does, and the output says how to lift it.
    """
    from supervisor.config import load_site
    from supervisor.engine.clock import clock
    from supervisor.run import folder

    site = load_site(os.environ)
    run, nodes = _run_and_nodes(site, words)
    done = Lifted()
    known = _known(site, nodes, clock())
    for node, why in known.failing.items():
        done.notes.append(f"{node}: its newest look found {why}; runs use it once that passes")
    late = [] if run else _record(site, nodes, known, clock(), done, force=force)
    _runs(site, run, [node for node in nodes if node not in late], done)
    if run:
        _still_excluded(nodes, known, done)
    if run is None or folder.read_job(run).launcher != "local":
        _slurm(site, nodes, late, known, done, force=force)
    _tell(nodes, done, as_json=as_json)


def _run_and_nodes(site: Site, words: Sequence[str]) -> tuple[RunDir | None, tuple[str, ...]]:
    """A first word that is a run's name, before others, is that run. Raises UserError."""
    from supervisor.core.errors import UserError
    from supervisor.run import folder

    first, *rest = words
    if "/" in first or not (folder.runs_dir(site.state_dir) / first).is_dir():
        return None, named(words)
    run = folder.find(site.state_dir, first)
    if not rest:
        there = ", ".join(sorted(run.load().excluded)) or "none"
        raise UserError(f"include {first}: name the nodes; run {first} excludes: {there}")
    return run, named(rest)


# --- people's exclusions, and claims ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the fleet record and this user's claims say of the nodes."""

    out: Mapping[str, Excluded]
    mine: Mapping[str, Claim]
    passed: Collection[str]  # found without a fault since they were excluded
    failing: Mapping[str, str]
    drains: Mapping[str, Drain]
    drains_passed: Collection[str]


def _known(site: Site, nodes: Sequence[str], now: float) -> Known:
    """Nothing, where no node was ever looked at. Raises UserError, TransientError."""
    from supervisor.fleet import claims
    from supervisor.fleet.apply_drains import passes_since
    from supervisor.fleet.record import Fleet

    told = claims.mine(site.claims_dir, now) if site.claims_dir else []
    mine = {c.node: c for c in told if not c.run and c.node in nodes}
    if not site.fleet.exists():
        return Known(out={}, mine=mine, passed=(), failing={}, drains={}, drains_passed=())
    with Fleet(site.fleet, write=False) as fleet:
        out = {node: x for node, x in fleet.exclusions(now).items() if node in nodes}
        passed = {node for node, x in out.items() if fleet.passes_since(x)}
        passed |= {n for n, c in mine.items() if n not in out and fleet.passes(n, c.since)}
        failing: dict[str, str] = {}
        for node in nodes:
            for said in fleet.current_findings(node):
                if said.finding.status is Status.FAIL:
                    failing.setdefault(node, f"{said.finding.name}: {said.finding.result.seen}")
        drains = {node: drain for node, drain in fleet.drains().items() if node in nodes}
        well = {node for node, drain in drains.items() if passes_since(fleet, drain)}
    return Known(
        out=out, mine=mine, passed=passed, failing=failing, drains=drains, drains_passed=well
    )


def _record(
    site: Site, nodes: Sequence[str], known: Known, now: float, done: Lifted, *, force: bool
) -> list[str]:
    """Lift what people said; returns who has not passed since, and stays out."""
    from supervisor.cli.exclude import written
    from supervisor.fleet import claims

    out, mine, passed = known.out, known.mine, {*known.passed}
    late = [node for node in nodes if node in {*out, *mine} - passed and not force]
    for node in late:
        said = _said(out[node]) if node in out else f"excluded by you: {mine[node].reason}"
        how = f"superv preflight {node}, then superv include {node}; or --force"
        done.leave(node, f"{said}; no preflight passed since: {how}")
    back = [node for node in nodes if node in {*out, *mine} and node not in late]
    if not back:
        return late

    def lift(fleet: Fleet) -> None:
        for node in back:
            fleet.include(node, claims.user(), now)

    noted = written(site, lift)
    if site.claims_dir:
        claims.take_back(site.claims_dir, back)
    for node in back:
        if node not in out:
            done.lift(node, f"your exclusion ({mine[node].reason})")
        elif noted:
            done.leave(node, f"{_said(out[node])}; the record is not yours to write: {noted}")
        else:
            done.lift(node, _said(out[node]))
    return late


def _said(out: Excluded) -> str:
    return f"excluded by {out.who} since {terminal.day_time(out.since)}: {out.reason}"


def _still_excluded(nodes: Sequence[str], known: Known, done: Lifted) -> None:
    """Where a run alone is to use a node again, people's words about it still hold."""
    for node in nodes:
        if node in known.out:
            done.leave(node, f"{_said(known.out[node])}: superv include {node}")
        elif node in known.mine:
            text = f"excluded by you from all your runs: {known.mine[node].reason}"
            done.leave(node, f"{text}: superv include {node}")


# --- runs ---


def _runs(site: Site, only: RunDir | None, nodes: Sequence[str], done: Lifted) -> None:
    """Have this user's runs use the nodes again: one of them, or all that may go on."""
    import getpass

    from supervisor.core.errors import TransientError, UserError
    from supervisor.core.types import Phase
    from supervisor.engine import launching
    from supervisor.fleet import claims
    from supervisor.run import folder

    for run in [only] if only else folder.every(site.state_dir):
        name = run.path.name
        try:
            state = run.load()
            over = state.phase in (Phase.DONE, Phase.STOPPED) or run.replaced
            there = [n for n in nodes if n in state.excluded and (run is only or not over)]
            if there:
                launching.include(run, there, who=getpass.getuser())
        except (TransientError, UserError) as error:
            if run is only:
                raise
            done.notes.append(f"run {name}: {error}")
            continue
        for node in there:
            done.lift(node, f"excluded by run {name}: {state.excluded[node].reason}")
    if site.claims_dir:  # what is told of runs that went on, ended, or are gone
        claims.take_back(site.claims_dir, nodes, only.path.name if only else None)


# --- Slurm ---


def _slurm(
    site: Site,
    nodes: Sequence[str],
    late: Sequence[str],
    known: Known,
    done: Lifted,
    *,
    force: bool,
) -> None:
    """Lift superv's own drains; name what else keeps a node from jobs."""
    import asyncio

    from launchers.slurm import Slurm
    from supervisor.core.errors import TransientError, UserError

    slurm = Slurm(deadline_s=SLURM_S)
    try:
        said = asyncio.run(slurm.settled_nodes(nodes))
    except (TransientError, UserError) as error:
        done.notes.append(f"whether they are drained in Slurm is not known: {error}")
        return
    there = {node: said[node] for node in nodes if node in said}
    for node in [node for node in nodes if node not in there]:
        done.leave(node, "Slurm knows no such node; sinfo -N lists them")
    own = _own_drains(there, known, late, force=force)
    for node, seen in there.items():
        if seen.in_service:
            continue
        if node not in own:
            done.leave(node, _out_of_service(seen))
        elif why := own[node]:
            done.leave(node, f"drained by superv in Slurm ({seen.given_reason}): {why}")
        elif why := asyncio.run(slurm.resume(node)):
            text = f"drained by superv in Slurm ({seen.given_reason}), and not resumed: {why}"
            done.leave(node, f"{text}; with the rights: {_resume_command(node)}")
        else:
            _undrained(site, node)
            done.lift(node, f"drained by superv in Slurm: {seen.given_reason}")


def _own_drains(
    there: Mapping[str, SlurmNode], known: Known, late: Sequence[str], *, force: bool
) -> dict[str, str]:
    """Nodes that superv has drained, and why that is not lifted yet: empty where it may be."""
    ours = [n for n, seen in there.items() if n in known.drains and _is_ours(known.drains[n], seen)]
    wait = "no look since was without a fault: superv preflight {0}, then superv include {0}"
    well = {node for node in ours if force or node in known.drains_passed} - {*late}
    return {node: "" if node in well else wait.format(node) for node in ours}


def _is_ours(drain: Drain, seen: SlurmNode) -> bool:
    from supervisor.fleet.drain import same_reason

    return seen.drains and not seen.silent and same_reason(seen.given_reason, drain.reason)


def _out_of_service(seen: SlurmNode) -> str:
    said = f" ({seen.given_reason})" if seen.given_reason else ""
    if seen.drains and not seen.silent:
        return f"drained in Slurm{said}, not by superv: {_resume_command(seen.name)}"
    return f"out of service in Slurm: {seen.state}{said}; scontrol show node {seen.name} says more"


def _resume_command(node: str) -> str:
    return f"scontrol update nodename={node} state=resume"


def _undrained(site: Site, node: str) -> None:
    from supervisor.cli.exclude import written
    from supervisor.engine.clock import clock

    # Who may resume nodes but not write the record: the next sweep sees that it was lifted.
    written(site, lambda fleet: fleet.undrained(node, clock()))


# --- what is said ---


def _tell(nodes: Collection[str], done: Lifted, *, as_json: bool) -> None:
    import json

    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import compress

    for note in done.notes:
        click.echo(f"superv: note: {terminal.printable(note)}", err=True)
    strangers = [node for node in nodes if node not in done.lifted and node not in done.left]
    if strangers and len(strangers) == len(nodes) and not as_json:
        raise UserError(f"{compress(strangers)}: not excluded; superv nodes shows who is")
    if as_json:
        rows = [
            {"node": n, "lifted": done.lifted.get(n, []), "kept_out_by": done.left.get(n, [])}
            for n in nodes
        ]
        click.echo(json.dumps({"schema": 1, "nodes": rows, "notes": done.notes}, indent=2))
    else:
        terminal.show(terminal.entry("", line, 0, hang=4) for line in _lines(nodes, done))
    sys.exit(1 if done.left else 0)


def _lines(nodes: Collection[str], done: Lifted) -> list[str]:
    found = []
    for node in nodes:
        if done.left.get(node):
            found.append(f"{node} stays out: {'; and '.join(done.left[node])}")
            found += [f"{node}: lifted: {text}" for text in done.lifted.get(node, [])]
        elif node in done.lifted:
            found.append(f"included {node}: it was {'; and '.join(done.lifted[node])}")
        else:
            found.append(f"{node}: nothing keeps it out")
    return found
