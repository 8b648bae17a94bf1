"""`superv logs`: what a rank wrote, fetched from its node."""

from __future__ import annotations

import click

from supervisor.cli.numbers import Number


@click.command()
@click.argument("run")
@click.option(
    "--rank",
    type=Number(0, None, whole=True),
    default=0,
    show_default=True,
    help="Which rank, counted over all nodes.",
)
@click.option(
    "--attempt", type=Number(1, None, whole=True), help="Which start of the ranks; the current one."
)
@click.option(
    "-n", "--bytes", "size", type=Number(0, None, whole=True), help="Only the last N bytes."
)
@click.option("-f", "--follow", is_flag=True, help="Go on as the rank writes, over restarts.")
def logs(run: str, rank: int, attempt: int | None, size: int | None, follow: bool) -> None:
    """Print the log of a rank of RUN: on a terminal without what steers it, else as it is."""
    import os
    import sys

    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.engine import control
    from supervisor.engine.spawn import lives
    from supervisor.host.terminal import printable_lines, raw
    from supervisor.run import folder

    found = folder.find(load_site(os.environ).state_dir, run)
    request = {
        "do": "logs",
        "rank": rank,
        "attempt": attempt,
        "offset": 0 if size is None else -size,
        "follow": follow,
    }
    try:
        lives(found)  # raises where it does not answer: a log may have nothing to tell for long
        for answer in control.ask(found.socket, request, stream=True):
            text = answer["data"]
            if sys.stdout.isatty():
                click.echo(printable_lines(text), nl=False)
            else:
                click.echo(text, nl=False, file=raw(sys.stdout))
    except control.NoEngineError:
        raise UserError(
            f"run {run} has no engine here; `superv attach {run}` starts it, "
            "if the run has not ended"
        ) from None
    except KeyboardInterrupt:
        click.echo()
