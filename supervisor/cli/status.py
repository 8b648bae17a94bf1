"""`superv status`: a run from its engine, or from its journal where no engine lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from supervisor.runs import RunDir


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/status.md.")
def status(run: str | None, as_json: bool) -> None:
    """Show RUN, or a line for every run."""
    import json
    import os

    from supervisor import runs
    from supervisor.config import load_site

    home = load_site(os.environ).state_dir
    if run is not None:
        told = document(runs.find(home, run))
        click.echo(json.dumps(told, indent=2) if as_json else _page(told))
        return
    every = [document(found) for found in runs.every(home)]
    if as_json:
        click.echo(json.dumps(every, indent=2))
    elif not every:
        click.echo(f"no runs in {runs.runs_dir(home)}; `superv launch JOB.YAML` starts one")
    for told in every if not as_json else []:
        from supervisor.cli.watch import summary

        alive = "" if told["engine"] or told["phase"] in ENDED else "  (no engine)"
        click.echo(f"{told['name']:<24} {summary(told)}{alive}")


ENDED = ("done", "held", "stopped")


def document(run: RunDir) -> dict[str, Any]:
    """The status document, with `engine`: whether it comes from a living engine."""
    from supervisor import app, control
    from supervisor.core.errors import UserError
    from supervisor.core.status import status as describe

    try:
        for answer in control.ask(run.socket, {"do": "status"}):
            return {**answer, "engine": True}
    except control.NoEngineError:
        pass
    state = run.load()
    if state is None:
        raise UserError(f"{run.journal}: empty")
    return {**describe(state, app.clock()), "engine": False}


def _page(told: dict[str, Any]) -> str:
    from supervisor.cli.watch import summary

    lines = [f"{told['name']}: {summary(told)}"]
    if told["reason"]:
        lines.append(f"  why      {told['reason']}")
    if not told["engine"] and told["phase"] not in ENDED:
        lines.append(f"  engine   none lives here; `superv attach {told['name']}` starts it again")
    newest = told["last_checkpoint"]
    lines.append(
        f"  resume   from step {newest['step']}: {newest['path']}"
        if newest
        else "  resume   no verified checkpoint yet: a restart begins at step 0"
    )
    for job in told["allocations"]:
        lines.append(f"  job      {job['job_id']} {job['raw']} ({len(job['nodes'])} nodes)")
    lines += _nodes(told)
    for incident in told["incidents"][-5:]:
        lines += _incident(incident)
    return "\n".join(_folded(line) for line in lines)


def _when(at: float) -> str:
    """Runs last for weeks: with the day."""
    import time

    return time.strftime("%m-%d %H:%M:%S", time.localtime(at))


def _incident(incident: dict[str, Any]) -> list[str]:
    culprits = ", ".join(incident["culprits"]) or "nobody named"
    lines = [
        f"  incident {_when(incident['confirmed'])} {incident['cause']}, {culprits}: "
        f"{incident['remedy'] or 'under way'}"
    ]
    lines += [f"             {e['text']}"[:100] for e in incident["evidence"][:3]]
    if incident["first_step"] is not None:
        took = incident["first_step"] - (incident["fault"] or incident["suspected"])
        since = "the fault" if incident["fault"] else "the suspicion"
        lost = "" if incident["steps_lost"] is None else f", {incident['steps_lost']} steps lost"
        lines.append(f"             new steps {took:.1f} s after {since}{lost}")
    lines.append(f"             {incident['runbook']}")
    return lines


def _folded(line: str) -> str:
    """At most 100 columns; what does not fit goes on below, under the line's second column."""
    import textwrap

    indent = " " * (len(line) - len(line.lstrip()))
    lines = textwrap.wrap(line, 100, subsequent_indent=f"{indent}         ", break_on_hyphens=False)
    return "\n".join(lines)


def _nodes(told: dict[str, Any]) -> list[str]:
    from supervisor.core.nodeset import compress

    lines = []
    slots = [slot["node"] for slot in told["slots"] if slot["node"]]
    if slots:
        lines.append(f"  slots    {compress(slots)}"[:100])
    if told["spares"]:
        lines.append(f"  spares   {compress(told['spares'])}"[:100])
    for node in told["unusable"]:
        lines.append(
            f"  {node['state']:<8} {node['node']} since {_when(node['since'])}: {node['reason']}"[
                :100
            ]
        )
    for node in told["excluded"]:
        lines.append(
            f"  excluded {node['node']} since {_when(node['since'])}: {node['reason']}"[:100]
        )
    return lines
