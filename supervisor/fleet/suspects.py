"""Faults that one look found, remembered on the node until another look, apart in time, agrees.

What hits a node for a moment (a driver that reloads, a burst, a check's own error) hits a second
look right after the first as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from healthchecks.frame.report import Report
from supervisor.core.check_status import Status

FORGET_S = 7200.0  # a fault that nobody has seen for so long begins anew
_FILE = "suspects.json"


def look(folder: Path, report: Report, names: Sequence[str], apart_s: float) -> set[str]:
    """Take in the names of the faults of one report; those that an earlier look found too.

    Earlier means `apart_s` seconds or more, in this boot, and no look since that found it well.
    Raises OSError where it can't be remembered: nothing is confirmed then.
    """
    first = load(folder, report.boot_id, report.at)
    for finding in report.findings:
        if finding.name not in names and finding.status is not Status.UNKNOWN:
            first.pop(finding.name, None)
    for name in names:
        first[name] = (first.get(name, (report.at, 0.0))[0], report.at)
    new = folder / f"{_FILE}.new"
    new.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600), "w", encoding="utf-8") as file:
        json.dump({"boot_id": report.boot_id, "faults": first}, file)
    new.replace(folder / _FILE)
    return {name for name in names if report.at - first[name][0] >= apart_s}


def load(folder: Path, boot_id: str, now: float) -> dict[str, tuple[float, float]]:
    """Since when each fault has been seen in this boot, and when last."""
    try:
        path = folder / _FILE
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            row = json.load(file)
        if row["boot_id"] != boot_id:
            return {}
        seen = {str(name): (float(a), float(b)) for name, (a, b) in row["faults"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: (a, b) for name, (a, b) in seen.items() if a <= now and now - b <= FORGET_S}
