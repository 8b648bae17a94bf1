"""`python -m healthchecks`: what srun, ssh and agents run on a node.

Reads an order as JSON on standard input, `{names, tags, settings, node, root, folder, deadline_s}`
(all optional), and prints the report as one line of JSON. Exit code 0 where there is a report.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from healthchecks.registry import select
from healthchecks.runner import SUITE_S, Order, run
from healthchecks.state import default_folder
from supervisor.core.errors import UserError


def main() -> int:
    try:
        asked = json.loads(sys.stdin.read() or "{}")
        tags = tuple(asked.get("tags", ()))
        report = run(
            Order(
                checks=select(asked.get("names", ()), tags),
                settings=asked.get("settings", {}),
                tags=tags,
                root=Path(asked.get("root", "/")),
                node=asked.get("node", ""),
                folder=Path(asked["folder"]) if "folder" in asked else default_folder(),
                deadline_s=float(asked.get("deadline_s", SUITE_S)),
            )
        )
    except (UserError, ValueError) as error:
        print(f"superv: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(json.dumps(report.document()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
