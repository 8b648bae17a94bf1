"""`superv doctor`: what is in order for a run, what is not, and how to mend it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from supervisor.doctor.finding import Finding

WIDTH = 100
COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red", "UNKNOWN": "magenta"}


@click.command()
@click.argument("job_file", metavar="[JOB.YAML]", required=False, type=click.Path(path_type=Path))
@click.option("--probe", is_flag=True, help="Also run a small step on one node of the partition.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/doctor.md.")
def doctor(job_file: Path | None, probe: bool, as_json: bool) -> None:
    """Examine this machine and the cluster, for JOB.YAML or in general; change nothing.

    Exit code 0: nothing failed; 1: something did.
    """
    import asyncio
    import json
    import os

    from supervisor.config import load_job, load_site
    from supervisor.doctor import examine

    site = load_site(os.environ)
    job = load_job(job_file) if job_file is not None else None
    found = asyncio.run(examine(job, site, probe=probe))
    failed = any(finding.state == "FAIL" for finding in found)
    if as_json:
        rows = [
            {"check": f.check, "state": f.state.value, "text": f.text, "fix": f.fix or None}
            for f in found
        ]
        click.echo(json.dumps({"schema": 1, "ok": not failed, "findings": rows}, indent=2))
    else:
        for finding in found:
            _show(finding)
        click.echo(tally(found))
    sys.exit(1 if failed else 0)


def _show(finding: Finding) -> None:
    import textwrap

    from supervisor.cli.watch import printable

    state = click.style(f"{finding.state.value:<8}", fg=COLOURS[finding.state.value])
    indent = " " * 34
    lines = textwrap.wrap(
        printable(finding.text), WIDTH, initial_indent=indent, subsequent_indent=indent
    )
    click.echo(f"{state}{finding.check:<25} {lines[0].strip()}")
    for line in lines[1:]:
        click.echo(line)
    if finding.fix:
        fix = textwrap.wrap(
            printable(finding.fix), WIDTH, initial_indent=f"{indent}→ ", subsequent_indent=indent
        )
        click.echo("\n".join(fix))


def tally(found: list[Finding]) -> str:
    """The last line; what could not be measured is named."""
    count = {name: [f.check for f in found if f.state.value == name] for name in COLOURS}
    parts = [f"{len(count['OK'])} ok", f"{len(count['WARN'])} to look at"]
    parts.append(f"{len(count['FAIL'])} failed")
    names = ", ".join(dict.fromkeys(count["UNKNOWN"]))
    parts.append(f"{len(count['UNKNOWN'])} unknown" + (f" ({names})" if names else ""))
    return ", ".join(parts)
