"""`superv logs`: what ranks wrote, from their nodes or from what is kept of ended attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from supervisor.cli.numbers import Number

if TYPE_CHECKING:
    from supervisor.cli.rank_logs import Wanted
    from supervisor.run.folder import RunDir


@click.command()
@click.argument("run")
@click.option(
    "--rank",
    type=Number(0, None, whole=True),
    help="Which rank, counted over all nodes; rank 0, or of an attempt that ended badly the one "
    "that ended first.",
)
@click.option(
    "--attempt",
    type=Number(1, None, whole=True),
    help="Which start of the ranks; the newest.",
)
@click.option("--all", "every", is_flag=True, help="The last lines of all ranks.")
@click.option(
    "--grep",
    metavar="PATTERN",
    help="Only lines that the regular expression matches, of all attempts and ranks that are "
    "kept, or of those that are named.",
)
@click.option(
    "-n", "--bytes", "size", type=Number(0, None, whole=True), help="Only the last N bytes."
)
@click.option("-f", "--follow", is_flag=True, help="Go on as the rank writes, over restarts.")
def logs(
    run: str,
    rank: int | None,
    attempt: int | None,
    every: bool,
    grep: str | None,
    size: int | None,
    follow: bool,
) -> None:
    """Print what a rank of RUN wrote: on a terminal without what steers it, else as it is.

    While the ranks run their nodes are asked; of attempts that have ended it is kept here.
    """
    import os

    from supervisor.cli import rank_logs
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.engine import control
    from supervisor.run import folder

    if follow and (every or grep is not None):
        raise UserError("--follow shows one rank: leave --all and --grep away")
    pattern = rank_logs.compiled(grep)
    wanted = rank_logs.Wanted(rank=rank, attempt=attempt, every=every, pattern=pattern)
    found = folder.find(load_site(os.environ).state_dir, run)
    state = rank_logs.standing(found)
    live = state.engine and (attempt is None or attempt == state.attempt) and not state.over
    try:
        if every or grep is not None:
            rank_logs.show_many(found, wanted, state, live=live, size=size)
        elif live or follow:
            _from_its_node(found, wanted, size, follow=follow)
        else:
            rank_logs.show_one(found, wanted, state, size=size)
    except control.NoEngineError:
        raise UserError(
            f"run {run} has no engine here; `superv attach {run}` starts it, "
            "if the run has not ended"
        ) from None
    except KeyboardInterrupt:
        click.echo()


def _from_its_node(found: RunDir, wanted: Wanted, size: int | None, *, follow: bool) -> None:
    from supervisor.cli.rank_logs import put
    from supervisor.engine import control
    from supervisor.engine.spawn import lives

    lives(found)  # raises where it does not answer: a log may have nothing to tell for long
    request = {
        "do": "logs",
        "rank": wanted.rank or 0,
        "attempt": wanted.attempt,
        "offset": 0 if size is None else -size,
        "follow": follow,
    }
    written = False
    for answer in control.ask(found.socket, request, stream=True):
        put(answer["data"])
        written = written or bool(answer["data"])
    if not written and size != 0:
        click.echo(f"superv: rank {wanted.rank or 0} has written nothing yet", err=True)
