"""`superv report`: what is known of the fleet, and whether a run can go on, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from supervisor.report.model import Page

FORMATS = ("text", "html", "json", "md")
_ENDINGS = {".html": "html", ".htm": "html", ".json": "json", ".md": "md"}


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
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write it there, whole or not at all.",
)
def report(run_name: str | None, since: str, form: str | None, output: Path | None) -> None:
    """Show what is wrong, with which nodes, since when, and what to do about it.

    Reads the fleet record; asks no node. Exit code 0 where the report could be made.
    """
    if form is None:
        form = _ENDINGS.get(output.suffix.lower(), "text") if output else "text"
    shown = _shown(_gathered(run_name, since), form, colour=output is None and _is_coloured())
    if output is None:
        click.echo(shown, nl=False, color=True)
    else:
        _write(output, shown)


def _gathered(run_name: str | None, since: str) -> Page:
    import os

    from supervisor import app, runs
    from supervisor.cli.nodes import duration
    from supervisor.cli.status import document
    from supervisor.config import load_site
    from supervisor.fleet import Fleet
    from supervisor.report.data import gather

    site = load_site(os.environ)
    now = app.clock()
    start = now - duration(since, "--since")
    status, need = None, 0
    if run_name is not None:
        run = runs.find(site.state_dir, run_name)
        status = document(run)
        state = run.load()
        need = len(status["slots"]) or (state.spec.nodes if state is not None else 0)
    with Fleet(site.fleet, write=False) as fleet:
        return gather(fleet, now, start, status, need)


def _is_coloured() -> bool:
    """https://no-color.org: set and not empty means none."""
    import os
    import sys

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


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
    import os
    import tempfile

    from supervisor.core.errors import UserError

    try:
        handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(shown)
            umask = os.umask(0)
            os.umask(umask)
            Path(name).chmod(0o666 & ~umask)
            Path(name).replace(output)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{output}: can't be written: {error.strerror or error}") from error
