"""`python -m tests.hardware.nvml.hung ROOT STATE CALL_S [RUNS]`: all NVML checks, told to be quick.

Prints, for each run, {"results": the report's, "children": the lane children that live on}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from healthchecks.registry import registered
from healthchecks.runner import Order, run


def children() -> list[int]:
    """Processes that this one started and that are no zombies."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == SELF and fields[0] not in "ZX":
            found.append(int(place.name))
    return found


SELF = int(Path("/proc/self").readlink().name)


def main(root: str, state: str, call_s: str, runs: str = "1") -> None:
    checks = [c for c in registered().values() if c.resource == "nvml"]
    order = Order(
        checks=[replace(c, call_deadline_s=float(call_s)) for c in checks],
        root=Path(root),
        node="node-017",
        folder=Path(state),
    )
    for _ in range(int(runs)):
        report = run(order).document()
        print(json.dumps({"results": report["results"], "children": children()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
