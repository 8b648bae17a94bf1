"""`superv preflight`: health checks on many nodes, compared, and shown by cause."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from healthchecks.causes import Cause
    from healthchecks.cohort import Judged
    from healthchecks.remote import Answer, Suite
    from supervisor.config import Site

WIDTH = 100
SAY_EVERY_S = 5.0  # how far it is, where the terminal can't renew a line
COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red", "UNKNOWN": "magenta"}


@click.command()
@click.argument("node_list", metavar="[NODES]", default="")
@click.option("-p", "--partition", help="Nodes of this partition; all of them without NODES.")
@click.option("--via", type=click.Choice(["srun", "ssh"]), help="One way to all nodes.")
@click.option("--tags", help="The suites, with commas; preflight where no check is named.")
@click.option("--check", "names", metavar="CHECK", multiple=True, help="These checks alone.")
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option("--golden", type=click.Path(path_type=Path), help="Compare with this profile.")
@click.option("--pin", type=click.Path(path_type=Path), help="Write what most nodes are like.")
@click.option("--deadline", type=click.FloatRange(5, 3600), help="Seconds for all of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/preflight.md.")
def preflight(
    node_list: str,
    partition: str | None,
    via: str | None,
    tags: str | None,
    names: tuple[str, ...],
    sets: tuple[str, ...],
    golden: Path | None,
    pin: Path | None,
    deadline: float | None,
    as_json: bool,
) -> None:
    """Run health checks on NODES, as n[1-60], and compare the nodes.

    Idle nodes are asked through srun, drained and down ones through ssh; busy ones are left alone.
    Exit code 0: nothing failed; 1: something did; 3: nothing failed, but something could not be
    measured, or no node was looked at.
    """
    from healthchecks import golden as profiles
    from healthchecks.cohort import judge
    from healthchecks.cohort import pin as pinned
    from healthchecks.registry import registered
    from supervisor.config import load_site

    began = time.monotonic()
    site = load_site(os.environ)
    suite = _suite(names, tags, sets)
    profile = golden or site.golden
    wanted = profiles.load(profile) if profile is not None else None
    nodes = _named(node_list, partition)
    answers = _examined(nodes, suite, site, via, partition, deadline, quiet=as_json)
    reports = {a.node: a.report for a in answers.values() if a.report is not None}
    judged = judge(reports, registered(), wanted)
    notes = [*judged.notes, *_recorded(judged, site)]
    if pin is not None:
        pin.write_text(profiles.text(pinned(reports, registered())))
        notes.append(f"pinned to {pin}")
    took_s = time.monotonic() - began
    if as_json:
        import json

        click.echo(json.dumps(document(answers, judged, notes, took_s)))
    else:
        click.echo("\n".join(page(answers, judged, notes, took_s)))
    sys.exit(exit_code(judged))


def _suite(names: tuple[str, ...], tags: str | None, sets: Sequence[str]) -> Suite:
    """What to ask; mistakes in it are told here, and not by every node. Raises UserError."""
    from healthchecks.registry import select, settings_for
    from healthchecks.remote import Suite
    from healthchecks.settings import merged
    from healthchecks.storage_width import together

    chosen = tuple(tag.strip() for tag in (tags or "").split(",") if tag.strip())
    if not names and not chosen:
        chosen = ("preflight",)
    settings = merged(os.environ, sets)
    for check in select(names, chosen):
        settings_for(check, settings.get(check.name, {}))
    return Suite(names=names, tags=chosen, settings=together(settings, time.time()))


def _named(text: str, partition: str | None) -> tuple[str, ...]:
    from supervisor.cli.nodes import named
    from supervisor.core.errors import UserError

    if not text and partition is None:
        raise UserError("no node is named; write names as n[1-60], or --partition NAME")
    return named(text) if text else ()


def _examined(
    nodes: Sequence[str],
    suite: Suite,
    site: Site,
    via: str | None,
    partition: str | None,
    deadline: float | None,
    *,
    quiet: bool,
) -> Mapping[str, Answer]:
    import asyncio
    import signal

    from healthchecks.places import Way
    from healthchecks.remote import examine
    from supervisor.asking import agents

    async def work(told: Progress) -> Mapping[str, Answer]:
        me = asyncio.current_task()
        assert me is not None
        for number in (signal.SIGTERM, signal.SIGHUP):  # Ctrl-C does so by itself
            asyncio.get_running_loop().add_signal_handler(number, me.cancel)
        return await examine(
            nodes,
            suite,
            site,
            via=Way(via) if via else None,
            partition=partition,
            deadline_s=deadline or _enough_s(suite),
            told=told,
            ask_run=agents(site, suite, deadline or _enough_s(suite)),
        )

    with progress(quiet=quiet) as shown:
        try:
            return asyncio.run(work(shown))
        except asyncio.CancelledError:
            raise click.Abort from None


def _enough_s(suite: Suite) -> float:
    """A minute; deep checks take theirs one after another."""
    from healthchecks.registry import select
    from healthchecks.remote import AROUND_S, DEADLINE_S
    from healthchecks.runner import SUITE_S, enough_s

    needed = enough_s(select(suite.names, suite.tags))
    return needed + AROUND_S if needed > SUITE_S else DEADLINE_S


def _recorded(judged: Judged, site: Site) -> list[str]:
    """Put what was found into the fleet record; a note where that can't be done."""
    from supervisor import app
    from supervisor.core.errors import TransientError, UserError
    from supervisor.fleet import Fleet

    try:
        with Fleet(site.fleet) as fleet:
            fleet.record(
                judged.reports.values(), "preflight", compared=judged.compared, now=app.clock()
            )
    except (TransientError, UserError) as error:
        return [f"not in the fleet record: {error}"]
    return []


# --- while it runs ---


class Progress:
    """Says how far it is: on a terminal one line that renews, elsewhere a line now and then."""

    def __init__(self, console: Any = None) -> None:
        self._status = console.status("asking Slurm") if console is not None else None
        self._all = 0
        self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, answer: Answer | None, waiting: Sequence[str]) -> None:
        from supervisor.core.nodeset import compress

        if answer is None:
            self._all = len(waiting)
        names = compress(waiting)
        names = names if len(names) <= 60 else names[:59] + "…"
        text = f"{self._all - len(waiting)} of {self._all} nodes; waiting for {names or 'nobody'}"
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._said >= SAY_EVERY_S:
            self._said = time.monotonic()
            click.echo(text, err=True)


def progress(*, quiet: bool) -> AbstractContextManager[Any]:
    """On standard error, so that the result can be piped."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", ""):
        from rich.console import Console

        return Progress(Console(stderr=True))
    return nullcontext(lambda *_: None) if quiet else Progress()


# --- what came of it ---


def exit_code(judged: Judged) -> int:
    """0: nothing failed; 1: something did; 3: nothing failed, but not everything was seen."""
    from healthchecks.check import Status

    if not judged.reports:
        return 3  # nobody was asked: that is no success
    return {Status.FAIL: 1, Status.UNKNOWN: 3}.get(judged.status, 0)


def document(
    answers: Mapping[str, Answer], judged: Judged, notes: Sequence[str], took_s: float
) -> dict[str, Any]:
    """The JSON document of docs/preflight.md."""
    from supervisor import app

    rows = {}
    for node, answer in answers.items():
        report = judged.reports.get(node)
        rows[node] = {
            "way": answer.way.value,
            "slurm": answer.state,
            "why": answer.why,
            "report": report.document() if report is not None else None,
        }
    return {
        "schema": 1,
        "at": round(app.clock(), 3),
        "took_s": round(took_s, 3),
        "status": judged.status.value,
        "verdict": verdict(answers, judged),
        "causes": [cause.document() for cause in judged.causes],
        "kinds": {kind: list(nodes) for kind, nodes in judged.kinds.items()},
        "notes": list(notes),
        "nodes": rows,
    }


def verdict(answers: Mapping[str, Answer], judged: Judged) -> str:
    """One line: what is the matter, with which nodes."""
    from healthchecks.check import Status
    from supervisor.core.nodeset import compress

    of = {
        status: [node for node, report in judged.reports.items() if report.status is status]
        for status in Status
    }
    alone = [node for node in answers if node not in judged.reports]
    good = len(judged.reports) - len(of[Status.FAIL]) - len(of[Status.UNKNOWN])
    parts = [f"{good} of {len(answers)} nodes can be used"]
    if warned := of[Status.WARN]:
        parts[0] += f", {len(warned)} of them with warnings"
    if failed := of[Status.FAIL]:
        parts.insert(0, f"{len(failed)} failed: {compress(failed)}")
    if doubtful := of[Status.UNKNOWN]:
        parts.append(f"{len(doubtful)} unknown: {compress(doubtful)}")
    if alone:
        parts.append(f"{len(alone)} left alone")
    return "; ".join(parts)


def page(
    answers: Mapping[str, Answer], judged: Judged, notes: Sequence[str], took_s: float
) -> list[str]:
    """The verdict, findings by cause, and who passed."""
    from healthchecks.check import Status
    from supervisor.core.nodeset import compress

    status = judged.status.value if judged.reports else Status.UNKNOWN.value
    head = click.style(f"{status:<8}", fg=COLOURS.get(status), bold=True)
    lines = [*_wrapped(verdict(answers, judged), head, " " * 8), ""]
    for cause in judged.causes:
        lines += [*_cause(cause), ""]
    passed = [n for n, r in judged.reports.items() if r.status in (Status.OK, Status.SKIP)]
    if passed:
        count = f"{len(passed)} node{'s' if len(passed) > 1 else ''}"
        lines += _wrapped(f"{count}: {compress(passed)}", "passed      ", " " * 12)
    alone: dict[str, list[str]] = {}
    for node, answer in answers.items():
        if answer.report is None:
            alone.setdefault(answer.why, []).append(node)
    for why, names in alone.items():
        lines += _wrapped(f"{compress(names)}: {why}", "left alone  ", " " * 12)
    for note in notes:
        lines += _wrapped(note, "note        ", " " * 12)
    return [*lines, f"took {took_s:.1f} s"]


def _cause(cause: Cause) -> list[str]:
    from supervisor.core.nodeset import compress

    status = cause.status.value
    who = compress(cause.nodes)
    if cause.shared or cause.common:
        title = f"{cause.title}: {len(cause.nodes)} of {cause.of} nodes, {who}"
        if cause.shared:
            title += f" ({', '.join(cause.checks)})"
    else:
        title = f"{who} {cause.title}".strip()
    lines = _wrapped(title, click.style(f"{status:<8}", fg=COLOURS.get(status)), " " * 8)
    for text, nodes in cause.seen[:3]:
        several = f"{compress(nodes)}: " if len(cause.seen) > 1 else ""
        lines += _wrapped(several + text, " " * 8, " " * 10)
    if len(cause.seen) > 3:
        lines.append(f"{' ' * 8}and {len(cause.seen) - 3} more like these")
    if cause.expected:
        lines += _wrapped(f"expected: {cause.expected}", " " * 8, " " * 10)
    if cause.fix:
        lines += _wrapped(cause.fix, " " * 8 + "→ ", " " * 10)
    return lines


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    """Lines of WIDTH columns; `first` may hold colours and is not counted."""
    import textwrap

    from supervisor.cli.watch import printable

    lines = textwrap.wrap(
        printable(text),
        WIDTH - len(rest),
        break_on_hyphens=False,
    )
    return [(first if index == 0 else rest) + line for index, line in enumerate(lines)]
