"""The report as one HTML file: no script, nothing fetched, every value escaped."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Mapping

import jinja2

from healthchecks.frame.registry import registered
from supervisor.core.check_status import Status
from supervisor.host.terminal import day_time, duration, one_line, printable
from supervisor.report.chart import BOTTOM, HEIGHT, LEFT, WIDTH, chart
from supervisor.report.model import Cell, Page, count, names, some
from supervisor.report.run_chart import bars, plots
from supervisor.report.runbooks import as_html, runbook
from supervisor.report.text import LETTERS
from supervisor.report.words import amount, claimed, ends, fallen, out_of_use, point, waiting, zone

MAX_CHANGES = 200
MAX_OFFENDERS = 30
MAX_ATTEMPTS = 20
SHOWN_WARNINGS = 4  # more at the end of the findings are folded
LABEL = 12  # characters of a node's name beside its line


def html(page: Page) -> str:
    """The whole page."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            charts=[chart(t, page.trends_since, page.at) for t in page.trends],
            checks=_checks(page),
            place=_Places(page),
            max_changes=MAX_CHANGES,
            max_attempts=MAX_ATTEMPTS,
            folded=_folded(page),
            max_offenders=MAX_OFFENDERS,
            letters=LETTERS,
            run_plots=plots(page.run) if page.run else (),
            attempt_bars=bars(page.run, page.at) if page.run else (),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("supervisor.report", "."),
        autoescape=True,
        finalize=_finalized,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "when": day_time,
        "iso": lambda at: time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at)),
        "zone": zone,
        "duration": duration,
        "names": names,
        "some": some,
        "runbook": lambda cause: as_html(runbook(cause)),
        "label": lambda name: one_line(name, LABEL),
    }
    environment.globals |= {
        "amount": amount,
        "point": point,
        "claimed": claimed,
        "out_of_use": out_of_use,
        "waiting": waiting,
        "ends": ends,
        "fallen": fallen,
        "count": count,
        "chart_at": {
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "bottom": HEIGHT - BOTTOM,
        },
    }
    return environment


def _finalized(value: object) -> object:
    """Names and words from outside steer nothing, whatever they hold."""
    return printable(value) if type(value) is str else value


def _folded(page: Page) -> int:
    """The first of many findings at the end that can wait, counted from 1; 0: none is folded."""
    waits = 0
    for problem in reversed(page.problems):
        if problem.status is not Status.WARN and not problem.excluded:
            break
        waits += 1
    return len(page.problems) - waits + 1 if waits > SHOWN_WARNINGS else 0


def _checks(page: Page) -> Mapping[str, list[str]]:
    """By check of a finding: the paragraphs that describe it."""
    known = registered()
    wanted = sorted({check for problem in page.problems for check in problem.checks[:3]})
    return {
        name: [
            " ".join(paragraph.split())
            for paragraph in inspect.cleandoc(known[name].run.__doc__ or "").split("\n\n")
        ]
        for name in wanted
        if name in known
    }


class _Places:
    """Where on the page a cell of the heat map is explained."""

    def __init__(self, page: Page) -> None:
        self._of: dict[tuple[str, str], int] = {}
        for number, problem in enumerate(page.problems, 1):
            for node in problem.nodes:
                for check in problem.checks:
                    self._of.setdefault((node, check), number)

    def __call__(self, node: str, cell: Cell) -> str:
        for finding in cell.findings:
            if number := self._of.get((node, finding.partition("[")[0])):
                return f"#finding-{number}"
        return ""
