"""docs/checks.md and `superv check --list --json`, made from the checks themselves.

python -m healthchecks.catalogue > docs/checks.md
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from typing import Any

from healthchecks.check import TAGS, Check
from healthchecks.registry import registered
from supervisor.config.schema import describe

_HEAD = """# Health checks

Made from the checks by `python -m healthchecks.catalogue`; don't edit.

`superv check` runs them on one node. A check says OK, WARN (look at it), FAIL (don't use the node),
UNKNOWN (could not be measured: neither good nor bad) or SKIP (does not apply here). Settings go to
site.yaml, as `checks: {fs.local: {warn_percent: 80}}`, or `--set fs.local.warn_percent=80`.

## Suites

"""

_SCHEMA = """
## The document of --json

`{schema: 1, node, at, status, tags, boot_id, took_s, cpu_s, notes, results}`; `at` in seconds
since the epoch, `status` the worst of the results (FAIL, UNKNOWN, WARN, OK, SKIP), `notes` what
kept the run from being a full one. Each of `results`:
`{check, status, seen, expected, fix, metrics, took_s}`,
`metrics` as `{name: {value, unit}}`, and where they apply `on` (the target: a mount point, a peer),
`devices` (what is blamed), `facts` (what is compared with the other nodes), `shared` (the server or
switch that other nodes would show too), `blame` (node, shared or user, of what is not fine),
`drains` (false where a failure of the check alone neither drains its node nor names it in a run).
"""


def document(checks: Iterable[Check]) -> dict[str, Any]:
    """The checks as a JSON document."""
    return {
        "schema": 1,
        "checks": [
            {
                "check": c.name,
                "summary": c.summary,
                "tags": sorted(c.tags),
                "deadline_s": c.deadline_s,
                "settings": [
                    {
                        "key": o.name,
                        "doc": o.about.doc,
                        "unit": o.about.unit,
                        "valid": describe(o.hint, o.about),
                        "default": _shown(o.default),
                    }
                    for o in c.options().values()
                ],
            }
            for c in checks
        ],
    }


def page() -> str:
    """docs/checks.md."""
    parts = [_HEAD]
    parts += [f"- `{tag}`: {text}\n" for tag, text in TAGS.items()]
    parts.append(_SCHEMA)
    family = ""
    for check in sorted(registered().values(), key=lambda c: c.name):
        first = check.name.partition(".")[0]
        if first != family:
            family = first
            parts.append(f"\n## {family}\n")
        parts.append(_section(check))
    return "".join(parts)


def _section(check: Check) -> str:
    text = inspect.cleandoc(check.look.__doc__ or "")
    lines = [f"\n### {check.name}\n", f"{text}\n"]
    traits = [f"Suites: {', '.join(sorted(check.tags))}.", f"Deadline: {check.deadline_s:g} s."]
    if check.hung.value != "UNKNOWN":
        traits.append(f"No answer means {check.hung.value}.")
    if check.cohort:
        traits.append(f"A fact that differs from the other nodes' means {check.cohort.value}.")
    if check.blame.value != "node":
        traits.append(f"A failure is blamed on: {check.blame.value}.")
    lines.append("\n" + " ".join(traits) + "\n")
    if check.untried:
        lines.append(f"\nBuilt without the hardware: {check.untried}\n")
    options = check.options()
    if options:
        lines.append("\n| setting | default | meaning |\n|---|---|---|\n")
    for option in options.values():
        unit = f" {option.about.unit}" if option.about.unit else ""
        default = _shown(option.default)
        lines.append(f"| `{option.name}` | `{default}`{unit} | {option.about.doc} |\n")
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value if isinstance(value, (int, float, str, bool)) or value is None else str(value)


if __name__ == "__main__":
    sys.stdout.write(page())
