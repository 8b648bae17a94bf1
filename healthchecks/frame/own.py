"""A site's own checks: commands of site.yaml, run as any other check is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from healthchecks.frame.check import REGISTERED, Blame, Check, Findings, Result, Status
from healthchecks.frame.context import Ctx
from healthchecks.frame.registry import registered
from supervisor.config.own_checks import OwnCheck, own_check

PREFIX = "site."
_SHOWN = 80  # characters of what a command printed


def documents(own: Mapping[str, OwnCheck]) -> dict[str, dict[str, Any]]:
    """As JSON could carry them to another node."""
    return {name: asdict(one) for name, one in own.items()}


def register(own: Mapping[str, Mapping[str, Any]]) -> None:
    """Let these be checks of this process, beside superv's. Raises ValueError for what is none."""
    every = registered()
    for name in [name for name in every if name.startswith(PREFIX)]:
        del REGISTERED[name]
    for name, given in own.items():
        REGISTERED[PREFIX + name] = _check(name, own_check(name, given))


def _check(name: str, own: OwnCheck) -> Check:
    def look(ctx: Ctx) -> Result:
        done = ctx.command(*own.command, deadline_s=own.deadline_s)
        found, status = Findings(), Status(own.status)
        if done.rc != own.exit_code:
            found.add(status, done.why(), expected=f"exit code {own.exit_code}", fix=own.fix)
        elif not re.search(own.output, done.out.strip(), re.MULTILINE):
            said = " ".join(done.out.split())
            found.add(
                status,
                f"{own.command[0]} printed {_short(said)!r}" if said else "it printed nothing",
                expected=f"something that matches {own.output}",
                fix=own.fix,
            )
        return found.result(_short(" ".join(done.out.split())) or "it ended well")

    output = f" prints what matches `{own.output}`" if own.output else f" ends with {own.exit_code}"
    look.__doc__ = f"`{' '.join(own.command)}`{output} (own_checks of site.yaml)."
    return Check(
        name=PREFIX + name,
        run=look,
        tags=frozenset(own.suites),
        deadline_s=own.deadline_s + 1.0,
        call_deadline_s=None,
        resource=PREFIX + name,
        targets=None,
        on_timeout=Status.UNKNOWN,
        timeout_fix="",
        blame=Blame.NODE,
        cohort=None,
        drains=own.drains,
        untested="",
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
