"""`superv logs`: what a rank wrote, fetched from its node."""

from __future__ import annotations

import click


@click.command()
@click.argument("run")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--attempt", type=click.IntRange(min=1), help="Default: the current one.")
@click.option("-n", "--bytes", "size", type=click.IntRange(min=0), help="Only the last N bytes.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the rank writes, over restarts.")
def logs(run: str, rank: int, attempt: int | None, size: int | None, follow: bool) -> None:
    """Print the log of a rank of RUN."""
    import os

    from supervisor import control, runs
    from supervisor.config import load_site
    from supervisor.core.errors import UserError

    found = runs.find(load_site(os.environ).state_dir, run)
    request = {
        "do": "logs",
        "rank": rank,
        "attempt": attempt,
        "offset": 0 if size is None else -size,
        "follow": follow,
    }
    try:
        for answer in control.ask(found.socket, request, stream=True):
            click.echo(answer["data"], nl=False)
    except control.NoEngineError:
        raise UserError(
            f"run {run} has no engine here; `superv attach {run}` starts it, "
            "if the run has not ended"
        ) from None
    except KeyboardInterrupt:
        click.echo()
