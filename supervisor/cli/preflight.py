"""`superv preflight`: health checks on many nodes, compared, and shown by cause."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from supervisor.cli.node_names import nodes_argument
from supervisor.cli.numbers import Number
from supervisor.host import terminal

if TYPE_CHECKING:
    from healthchecks.many.causes import FindingCause
    from healthchecks.many.cohort import ComparedReports
    from healthchecks.many.remote import NodeAnswer, Suite
    from supervisor.config import Site

SAY_EVERY_S = 5.0  # how far it is, where the terminal can't renew a line


@click.command()
@nodes_argument(required=False)
@click.option("-p", "--partition", help="Nodes of this partition; all of them without NODES.")
@click.option("--via", type=click.Choice(["srun", "ssh"]), help="One way to all nodes.")
@click.option("--tags", help="The suites, with commas; preflight where no check is named.")
@click.option("--check", "names", metavar="CHECK", multiple=True, help="These checks alone.")
@click.option("--set", "sets", metavar="CHECK.KEY=VALUE", multiple=True, help="Configure a check.")
@click.option(
    "--golden", type=click.Path(path_type=Path, readable=False), help="Compare with this profile."
)
@click.option(
    "--pin", type=click.Path(path_type=Path, readable=False), help="Write what most nodes are like."
)
@click.option(
    "--deadline", type=Number(5, 3600, "seconds"), help="For all of it; 60, deep suites longer."
)
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/preflight.md.")
def preflight(
    nodes: tuple[str, ...],
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
    from healthchecks.frame.registry import registered
    from healthchecks.many import golden as profiles
    from healthchecks.many.cohort import judge
    from healthchecks.many.cohort import pin as pinned
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.host import private

    began = time.monotonic()
    site = load_site(os.environ)
    suite = _suite(names, tags, sets, site)
    profile = golden or site.golden
    wanted = profiles.load(profile) if profile is not None else None
    if not nodes and partition is None:
        raise UserError("no node is named; write names as n1 n[4-7], or --partition NAME")
    answers = _examined(nodes, suite, site, via, partition, deadline, quiet=as_json)
    reports = {a.node: a.report for a in answers.values() if a.report is not None}
    judged = judge(reports, registered(), wanted)
    notes = [*judged.notes, *_recorded(judged, site)]
    if pin is not None:
        private.write(pin, profiles.text(pinned(reports, registered())).encode(), 0o666)
        notes.append(f"pinned to {pin}")
    took_s = time.monotonic() - began
    if as_json:
        import json

        click.echo(json.dumps(document(answers, judged, notes, took_s)))
    else:
        terminal.show(page(answers, judged, notes, took_s))
    sys.exit(exit_code(judged))


def _suite(names: tuple[str, ...], tags: str | None, sets: Sequence[str], site: Site) -> Suite:
    """What to ask; mistakes in it are found here, and not on every node. Raises UserError."""
    from healthchecks.frame.registry import select, settings_for
    from healthchecks.frame.settings import merged
    from healthchecks.many.remote import Suite
    from healthchecks.many.storage_width import together
    from supervisor.core.errors import TransientError, UserError
    from supervisor.fleet.repairs import Settings, with_repairs

    chosen = tuple(tag.strip() for tag in (tags or "").split(",") if tag.strip())
    if not names and not chosen:
        chosen = ("preflight",)
    settings: Settings = merged(os.environ, sets)
    for check in select(names, chosen):
        settings_for(check, settings.get(check.name, {}))
    with suppress(UserError, TransientError):  # said when what was found can't be recorded there
        settings = with_repairs(settings, site.fleet)
    return Suite(names=names, tags=chosen, settings=together(settings, time.time()))


def _examined(
    nodes: Sequence[str],
    suite: Suite,
    site: Site,
    via: str | None,
    partition: str | None,
    deadline: float | None,
    *,
    quiet: bool,
) -> Mapping[str, NodeAnswer]:
    import asyncio
    import signal

    from healthchecks.many.remote import examine
    from healthchecks.many.slurm_nodes import Transport
    from supervisor.fleet.run_health_query import query_agents

    async def work(progress: AskingProgress) -> Mapping[str, NodeAnswer]:
        me = asyncio.current_task()
        assert me is not None
        for number in (signal.SIGTERM, signal.SIGHUP):  # Ctrl-C does so by itself
            asyncio.get_running_loop().add_signal_handler(number, me.cancel)
        return await examine(
            nodes,
            suite,
            site,
            via=Transport(via) if via else None,
            partition=partition,
            deadline_s=deadline or _enough_s(suite),
            on_answer=progress,
            ask_run=query_agents(site, suite, deadline or _enough_s(suite)),
        )

    with progress(quiet=quiet) as shown:
        try:
            return asyncio.run(work(shown))
        except asyncio.CancelledError:
            raise click.Abort from None


def _enough_s(suite: Suite) -> float:
    """A minute; deep checks take theirs one after another."""
    from healthchecks.frame.registry import select
    from healthchecks.frame.runner import SUITE_S, enough_s
    from healthchecks.many.remote import AROUND_S, DEADLINE_S

    needed = enough_s(select(suite.names, suite.tags))
    return needed + AROUND_S if needed > SUITE_S else DEADLINE_S


def _recorded(judged: ComparedReports, site: Site) -> list[str]:
    """Put what was found into the fleet record; a note where that can't be done."""
    from supervisor.core.errors import TransientError, UserError
    from supervisor.engine.clock import clock
    from supervisor.fleet.record import Fleet

    try:
        with Fleet(site.fleet) as fleet:
            fleet.record(
                judged.reports.values(), "preflight", compared=judged.compared, now=clock()
            )
    except (TransientError, UserError) as error:
        return [f"not in the fleet record: {error}"]
    return []


# --- while it runs ---


class AskingProgress(AbstractContextManager["AskingProgress"]):
    """Says how far it is: on a terminal one line that renews, elsewhere a line now and then."""

    def __init__(self, line: terminal.StatusLine | None) -> None:
        self._line = line
        self._all = 0
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._line is not None:
            self._line.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        if self._line is not None:
            self._line.__exit__(*why)

    def __call__(self, answer: NodeAnswer | None, waiting: Sequence[str]) -> None:
        from supervisor.core.nodeset import compress

        if answer is None:
            self._all = len(waiting)
        names = terminal.one_line(compress(waiting), 60)
        text = f"{self._all - len(waiting)} of {self._all} nodes have answered"
        text += f"; waiting for {names}" if names else ""
        if self._line is not None:
            self._line.update(text)
        elif time.monotonic() - self._said >= SAY_EVERY_S:
            self._said = time.monotonic()
            click.echo(text, err=True)


def progress(*, quiet: bool) -> AbstractContextManager[Any]:
    """On standard error, so that the result can be piped."""
    if terminal.renews(sys.stderr):
        return AskingProgress(terminal.StatusLine("asking Slurm"))
    return nullcontext(lambda *_: None) if quiet else AskingProgress(None)


# --- what came of it ---


def exit_code(judged: ComparedReports) -> int:
    """0: nothing failed; 1: something did; 3: nothing failed, but not everything was seen."""
    from supervisor.core.check_status import Status

    if not judged.reports:
        return 3  # nobody was asked: that is no success
    return {Status.FAIL: 1, Status.UNKNOWN: 3}.get(judged.status, 0)


def document(
    answers: Mapping[str, NodeAnswer], judged: ComparedReports, notes: Sequence[str], took_s: float
) -> dict[str, Any]:
    """The JSON document of docs/preflight.md."""
    from supervisor.engine.clock import clock

    rows = {}
    for node, answer in answers.items():
        report = judged.reports.get(node)
        rows[node] = {
            "way": answer.transport.value,
            "slurm": answer.state,
            "why": answer.why,
            "report": report.document() if report is not None else None,
        }
    return {
        "schema": 1,
        "at": round(clock(), 3),
        "took_s": round(took_s, 3),
        "status": judged.status.value,
        "verdict": verdict(answers, judged),
        "causes": [cause.document() for cause in judged.causes],
        "kinds": {kind: list(nodes) for kind, nodes in judged.hardware_classes.items()},
        "notes": list(notes),
        "nodes": rows,
    }


def verdict(answers: Mapping[str, NodeAnswer], judged: ComparedReports) -> str:
    """One line: what is the matter, with which nodes."""
    from supervisor.core.check_status import Status
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
    answers: Mapping[str, NodeAnswer], judged: ComparedReports, notes: Sequence[str], took_s: float
) -> Iterator[str | terminal.Entry]:
    """The verdict, findings by cause, and who passed."""
    from supervisor.core.check_status import Status
    from supervisor.core.nodeset import compress

    status = judged.status.value if judged.reports else Status.UNKNOWN.value
    head = terminal.styled((status, f"bold {terminal.style_of(status)}"))
    yield terminal.entry(head, verdict(answers, judged), 8)
    yield ""
    for cause in judged.causes:
        yield from _cause(cause)
        yield ""
    passed = [n for n, r in judged.reports.items() if r.status in (Status.OK, Status.SKIP)]
    if passed:
        count = f"{len(passed)} node{'s' if len(passed) > 1 else ''}"
        yield terminal.entry("passed", f"{count}: {compress(passed)}", 12)
    alone: dict[str, list[str]] = {}
    for node, answer in answers.items():
        if answer.report is None:
            alone.setdefault(answer.why, []).append(node)
    for why, names in alone.items():
        yield terminal.entry("left alone", f"{compress(names)}: {why}", 12)
    for note in notes:
        yield terminal.entry("note", note, 12)
    yield f"took {took_s:.1f} s"


def _cause(cause: FindingCause) -> Iterator[str | terminal.Entry]:
    from supervisor.core.nodeset import compress

    status = cause.status.value
    who = compress(cause.nodes)
    if cause.shared or cause.common:
        title = f"{cause.title}: {len(cause.nodes)} of {cause.of} nodes, {who}"
        if cause.shared:
            title += f" ({', '.join(cause.checks)})"
    else:
        title = f"{who} {cause.title}".strip()
    yield terminal.entry(terminal.styled((status, terminal.style_of(status))), title, 8)
    for text, nodes in cause.seen[:3]:
        several = f"{compress(nodes)}: " if len(cause.seen) > 1 else ""
        yield terminal.entry("", several + text, 8, hang=2)
    if len(cause.seen) > 3:
        yield f"{'':8}and {len(cause.seen) - 3} more like these"
    if cause.expected:
        yield terminal.entry("", f"expected: {cause.expected}", 8, hang=2)
    if cause.fix:
        yield terminal.entry("        → ", cause.fix, 10)
