"""`superv doctor`: what is in order for a run, what is not, and how to fix it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.core.check_status import Status
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from healthchecks.frame.report import Finding


@click.command()
@click.argument(
    "job_file",
    metavar="[JOB.YAML]",
    required=False,
    type=click.Path(path_type=Path, readable=False),
)
@click.option("--probe", is_flag=True, help="Also run a small step on one node of the partition.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/doctor.md.")
def doctor(job_file: Path | None, probe: bool, as_json: bool) -> None:
    """Examine this machine and the cluster, for JOB.YAML or in general; change nothing.

    Exit code 0: nothing failed; 1: something did.
    """
    import asyncio
    import json
    import os

    from supervisor.config import look_at_job, look_at_site
    from supervisor.doctor import examine

    site, wrong = look_at_site(os.environ)
    job = None
    if job_file is not None:
        job, of_job = look_at_job(job_file)
        wrong = [*of_job, *wrong]
    found = asyncio.run(examine(job, site, probe=probe, wrong=wrong))
    failed = any(finding.status is Status.FAIL for finding in found)
    if as_json:
        rows = [
            {
                "check": f.check,
                "state": f.status.value,
                "text": f.result.seen,
                "fix": f.result.fix or None,
            }
            for f in found
        ]
        click.echo(json.dumps({"schema": 1, "ok": not failed, "findings": rows}, indent=2))
    else:
        terminal.show([*(line for finding in found for line in _shown(finding)), tally(found)])
    sys.exit(1 if failed else 0)


def _shown(finding: Finding) -> Iterator[terminal.Entry]:
    status, result = finding.status.value, finding.result
    label = terminal.styled((f"{status:<8}", terminal.style_of(status)), f"{finding.check:<25} ")
    yield terminal.entry(label, result.seen, 34)
    if result.fix:
        yield terminal.entry(f"{'':34}→ ", result.fix, 34)


def tally(found: list[Finding]) -> str:
    """The last line; what could not be measured is named."""
    of = {status: [f.check for f in found if f.status is status] for status in Status}
    parts = [f"{len(of[Status.OK])} ok", f"{len(of[Status.WARN])} to look at"]
    parts.append(f"{len(of[Status.FAIL])} failed")
    names = ", ".join(dict.fromkeys(of[Status.UNKNOWN]))
    parts.append(f"{len(of[Status.UNKNOWN])} unknown" + (f" ({names})" if names else ""))
    return ", ".join(parts)
