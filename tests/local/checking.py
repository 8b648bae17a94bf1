"""One run of health checks in a process of its own, as cron starts them: checking.py ORDER.

ORDER is JSON: {names, settings, folder, deadline_s, node}; `deadline_s` is each check's, so that a
test says what a hang costs it. Prints the report's document.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from healthchecks.frame.registry import select
from healthchecks.frame.runner import Order, run

asked = json.loads(sys.argv[1])
report = run(
    Order(
        checks=[replace(c, deadline_s=asked["deadline_s"]) for c in select(asked["names"])],
        settings=asked["settings"],
        folder=Path(asked["folder"]),
        node=asked["node"],
    )
)
print(json.dumps(report.document()))
