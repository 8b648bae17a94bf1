"""`python -m tests.hardware.nvml.hung ROOT STATE CALL_S [RUNS]`: all NVML checks, told to be quick.

Prints, for each run, {"results": the report's, "children": the lane children that live on}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from healthchecks.frame.registry import registered
from healthchecks.frame.runner import Order, run
from supervisor.host import procfs


def children() -> list[int]:
    """Processes that this one started and that are no zombies."""
    return [found.pid for found in procfs.processes() if found.parent == SELF and found.alive]


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
