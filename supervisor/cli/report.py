"""`superv report`: what is known of the fleet, and whether a run can go on, on one page."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.host.terminal import is_coloured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.config import Site
    from supervisor.fleet.record import Fleet
    from supervisor.report.model import CurvePoint, Page

FORMATS = ("text", "html", "json", "md")
_ENDINGS = {
    **{".html": "html", ".htm": "html", ".json": "json", ".md": "md"},
    **{".txt": "text", ".text": "text", "": "text"},
}


@click.command()
@click.option("--run", "run_name", metavar="RUN", help="Whether this run can go on.")
@click.option("--since", default="24h", show_default=True, help="What changed from then on.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="Without it, by the ending of FILE; else text.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path, readable=False),
    metavar="FILE",
    help="Write it there, whole or not at all.",
)
def report(run_name: str | None, since: str, form: str | None, output: Path | None) -> None:
    """Show what is wrong, with which nodes, since when, and what to do about it.

    Reads the fleet record and your runs, and asks Slurm; asks no node. Exit code 0 where the report
    could be made.
    """
    if form is None:
        form = _form_of(output) if output else "text"
    shown = _shown(_gathered(run_name, since), form, colour=output is None and is_coloured())
    if output is None:
        click.echo(shown, nl=False, color=None if is_coloured() else False)
    else:
        _write(output, shown)


def _form_of(output: Path) -> str:
    """By the file's ending; what is no file that people name (/dev/stdout, a pipe) gets text."""
    from supervisor.core.errors import UserError

    if output.suffix.lower() == ".pdf":
        page = output.with_suffix(".html")
        raise UserError(
            f"--output {output}: superv writes no PDF; `superv report --output {page}`, and print "
            f"that from a browser: chromium --headless --print-to-pdf={output} {page}"
        )
    form = _ENDINGS.get(output.suffix.lower())
    if form is None:
        valid = ", ".join(ending for ending in _ENDINGS if ending)
        raise UserError(f"--output {output}: no such form; end it with {valid}, or say --format")
    return form


def _gathered(run_name: str | None, since: str) -> Page:
    import os

    from supervisor.cli.nodes import duration
    from supervisor.cli.status import all_listed, document
    from supervisor.config import load_site
    from supervisor.engine.clock import clock
    from supervisor.fleet.claims import beside
    from supervisor.fleet.out_of_use import asked
    from supervisor.report.data import gather
    from supervisor.report.run_history import curve_of
    from supervisor.run import folder

    site = load_site(os.environ)
    now = clock()
    start = now - duration(since, "--since")
    status, need, launcher = None, 0, ""
    curve: tuple[CurvePoint, ...] = ()
    if run_name is not None:
        run = folder.find(site.state_dir, run_name)
        status = document(run)
        need = len(status["slots"]) or run.load().spec.nodes
        launcher = folder.read_job(run).launcher
        curve = curve_of(run.journal)
    with _record(site, needed=run_name is None) as fleet:
        claims, notes = beside(site.claims_dir, fleet.exclusions(now).values(), now)
        slurm = None if launcher == "local" else asked()
        runs = all_listed(site.state_dir)
        page = gather(fleet, now, start, status, need, claims, slurm, runs, curve)
        for note in [*notes, *fleet.notes]:
            click.echo(f"superv: note: {note}", err=True)
        return page


@contextlib.contextmanager
def _record(site: Site, *, needed: bool) -> Iterator[Fleet]:
    """The fleet record; an empty one where there is none and a run can be told without."""
    from supervisor.fleet.record import Fleet

    if needed or site.fleet.exists():
        with Fleet(site.fleet, write=False) as fleet:
            yield fleet
        return
    import tempfile

    click.echo(f"superv: note: no fleet record yet ({site.fleet}): nodes are not told of", err=True)
    with (
        tempfile.TemporaryDirectory(prefix="superv-") as folder,
        Fleet(Path(folder) / "empty.db") as fleet,
    ):
        yield fleet


def _shown(page: Page, form: str, *, colour: bool) -> str:
    if form == "json":
        import json

        from supervisor.report.document import document

        return json.dumps(document(page), indent=2) + "\n"
    if form == "html":
        from supervisor.report.html import html

        return html(page)
    if form == "md":
        from supervisor.report.markdown import markdown

        return markdown(page)
    from supervisor.report.text import text

    return text(page, colour=colour)


def _write(output: Path, shown: str) -> None:
    """Whole or not at all: a web server may show the file at any time."""
    from supervisor.core.errors import UserError
    from supervisor.host import private

    try:
        private.write(output, shown.encode(), mode=0o666)
    except OSError as error:
        raise UserError(f"{output}: can't be written: {error.strerror or error}") from error
