"""`python -m healthchecks`: what srun, ssh and agents run on a node.

Reads an order as JSON on standard input, `{names, tags, settings, node, root, folder, deadline_s}`
(names or tags, the rest optional; a root other than / keeps no state unless a folder is named), and
prints the report as one line of JSON. Exit code 0 where there is a report.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from healthchecks.registry import select
from healthchecks.runner import Order, enough_s, run
from healthchecks.state import default_folder
from supervisor.core.errors import UserError


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # whoever carries this goes away
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        report = run(_order(json.loads(sys.stdin.read() or "{}")))
    except UserError as error:
        print(f"superv: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ValueError as error:
        print(f"superv: not an order of checks: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps(report.document()))  # noqa: T201
    return 0


def _order(asked: dict[str, Any]) -> Order:
    """Raises UserError, ValueError."""
    try:
        names, tags = tuple(asked.get("names", ())), tuple(asked.get("tags", ()))
        checks = select(names, tags)
        root, folder = Path(asked.get("root", "/")), asked.get("folder")
        if folder is None and root == Path("/"):
            folder = default_folder()
        return Order(
            checks=checks,
            settings=asked.get("settings", {}),
            tags=() if names else tags,
            root=root,
            node=asked.get("node", ""),
            folder=None if folder is None else Path(folder),
            deadline_s=float(asked.get("deadline_s", enough_s(checks))),
        )
    except (AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
