"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """UNKNOWN: could not be measured; neither good nor bad."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found, and what to do about it."""

    check: str
    state: State
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check=check, state=State.OK, text=text)


def warn(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, state=State.WARN, text=text, fix=fix)


def fail(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, state=State.FAIL, text=text, fix=fix)


def unknown(check: str, text: str, fix: str = "") -> Finding:
    return Finding(check=check, state=State.UNKNOWN, text=text, fix=fix)
