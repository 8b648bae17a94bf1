"""One line of the doctor's report: a Finding, as of a health check."""

from __future__ import annotations

from healthchecks.frame.check import Result, Status
from healthchecks.frame.report import Finding


def ok(check: str, seen: str) -> Finding:
    return _finding(check, Status.OK, seen)


def warn(check: str, seen: str, fix: str) -> Finding:
    return _finding(check, Status.WARN, seen, fix)


def fail(check: str, seen: str, fix: str) -> Finding:
    return _finding(check, Status.FAIL, seen, fix)


def unknown(check: str, seen: str, fix: str = "") -> Finding:
    """It could not be measured: neither good nor bad."""
    return _finding(check, Status.UNKNOWN, seen, fix)


def _finding(check: str, status: Status, seen: str, fix: str = "") -> Finding:
    return Finding(check=check, result=Result(status=status, seen=seen, fix=fix))
