"""The `own_checks` of site.yaml: a command, what it is to print, and until when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.config.document import At, YamlMapping, YamlNode, YamlScalar, shown
from supervisor.config.schema import WrongKeys, read_fields
from supervisor.core.setting import about

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
VALID = "a mapping of names to `command`, `output`, `exit_code`, `deadline_s`, …"


def _pattern(node: YamlNode, at: At) -> str:
    text = node.text if isinstance(node, YamlScalar) else None
    if text is None:
        raise at.error(f"expected a regular expression, got {shown(node)}")
    try:
        re.compile(text)
    except re.error as error:
        raise at.error(f"not a regular expression: {error}") from error
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCheck:
    """One check of the site's own; it is called `site.NAME`."""

    command: tuple[str, ...] = field(
        metadata=about("The program and its arguments, without a shell.", nonempty=True)
    )
    output: str = field(
        default="",
        metadata=about(
            "What its standard output holds; ^ and $ are the ends of a line.",
            valid="a regular expression",
            default="anything",
            read=_pattern,
        ),
    )
    exit_code: int = field(
        default=0, metadata=about("What it ends with where all is well.", ge=0, le=125)
    )
    deadline_s: float = field(
        default=5.0,
        metadata=about("UNKNOWN where it has not ended by then.", unit="s", ge=0.1, le=60),
    )
    suites: tuple[str, ...] = field(
        default=("preflight",),
        metadata=about(
            "When it is run.", choices=("preflight", "prolog", "running", "deep"), nonempty=True
        ),
    )
    status: str = field(
        default="FAIL",
        metadata=about("What it means where that is not so.", choices=("FAIL", "WARN")),
    )
    drains: bool = field(
        default=False,
        metadata=about("Whether its FAIL may drain the node, where `drain` is on."),
    )
    fix: str = field(
        default="", metadata=about("What to do then, for whoever reads it.", default="nothing")
    )


def read_own_checks(node: YamlNode, at: At) -> Mapping[str, OwnCheck]:
    """Raises UserError."""
    if not isinstance(node, YamlMapping):
        raise at.error(f"expected {VALID}; got {shown(node)}")
    found, wrong = {}, WrongKeys()
    for name, entry in node.entries.items():
        inside = at.inside(name, entry)
        with wrong.collected(name):
            if not _NAME.fullmatch(name):
                raise inside.error(
                    "a name is a-z, 0-9, _ and -, at most 40; the check is site.NAME"
                )
            found[name] = OwnCheck(**read_fields(OwnCheck, entry, inside))
    wrong.told()
    return found


def own_check(name: str, given: Mapping[str, Any]) -> OwnCheck:
    """From JSON, as another machine sent it. Raises ValueError for what is none."""
    try:
        made = OwnCheck(**{**given, "command": tuple(given["command"])})
        re.compile(made.output)
    except (TypeError, KeyError, re.error) as error:
        raise ValueError(f"own check {name}: {error!r}") from error
    return made
