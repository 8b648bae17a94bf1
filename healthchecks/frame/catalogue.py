"""docs/checks.md, docs/checks/ and `superv check --list --json`, made from the checks themselves.

The pages are written by `python docs/make.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from healthchecks.frame.areas import area_of, file_name, in_order, page_of
from healthchecks.frame.check import TAGS, Blame, Check
from healthchecks.frame.registry import registered
from healthchecks.frame.symptoms import SYMPTOMS, meant
from supervisor.config.schema import describe
from supervisor.core.check_status import Status

DRAIN_SUITES = {"preflight", "prolog", "running"}  # what Slurm's programs and sweeps run
_WITNESSES = {"nvml": "driver (NVML)", "accel": "accelerators' driver (/sys)"}  # by resource
_MADE = "<!-- Made by `python docs/make.py`; don't edit. -->"

_HEAD = """
`superv check` runs health checks on one node, `superv preflight` on many. A check says OK, WARN
(look at it), FAIL (don't use the node), UNKNOWN (could not be measured: neither good nor bad) or
SKIP (does not apply here). Settings go to site.yaml, as
`checks: {fs.local: {warn_percent: 80}}`, or `--set fs.local.warn_percent=80`.

Every check has `enabled` (`checks: {ipmi.sel: {enabled: false}}`: SKIP, and the report says so) and
`ignore` (targets and devices that are not judged, as reports name them, GPUs by serial number too:
`{fs.local: {ignore: [/scratch*]}, thermal: {ignore: ["1653025000003"]}}`), unless it has an
`ignore` of its own. For some nodes alone: `groups: [{nodes: "n[1-8]", checks: {…}}]`, or
`partition: NAME` in place of `nodes`, in jobs, srun and Prologs, where Slurm tells it. A job may
switch off more (`preflight: {checks: …}`), and nothing on again; `superv check --list` shows what
is off on this node, and which line of which file says so.
"""

_DRAINS = """
## What drains a node

Only a fault of the node's own does, where site.yaml says `drain: on`, and by the rules of
[fleet.md](fleet.md#drains). A finding that names a server or a switch is shared, and drains nobody,
nor does what its users can bring about (`by_users`; of `fs.local` a full disk is), left behind or
asked for.

| a failure | of these checks |
|---|---|
"""
_SCHEMA = """
## The document of --json

`{schema: 1, node, at, status, tags, boot_id, took_s, cpu_s, notes, results}`; `at` in seconds
since the epoch, `status` the worst of the results (FAIL, UNKNOWN, WARN, OK, SKIP), `notes` what
kept the run from being a full one. Each of `results`:
`{check, status, seen, expected, fix, metrics, took_s}`,
`metrics` as `{name: {value, unit}}`, and where they apply `on` (the target: a mount point, a peer),
`devices` (what is blamed), `facts` (what is compared with the other nodes), `shared` (the server or
switch that other nodes would show too), `blame` (node, shared or user, of what is not healthy),
`by_users` (true where users can bring it about: it keeps a run off the node and never drains it),
`gap` (of UNKNOWN where nothing is wrong: `not yet` without an earlier look, `rights` where this
user may not look, `tool` without DCGM or torch, which a site may do without; it is counted apart
from the status and drains nobody), `corroborated` (true where a check that needs a witness has seen
the fault by other means itself), `drains` (false where a failure of the check alone neither drains
its node nor names it in a run).
"""


def document(checks: Iterable[Check]) -> dict[str, Any]:
    """The checks as a JSON document."""
    return {
        "schema": 1,
        "checks": [
            {
                "check": c.name,
                "summary": c.summary,
                "text": inspect.cleandoc(c.run.__doc__ or ""),
                "traits": traits(c),
                "untested": c.untested,
                "page": page_of(c.name),
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


def pages() -> dict[str, str]:
    """The pages of superv's own checks: path below docs → text."""
    areas: dict[str, list[Check]] = {}
    for check in sorted(registered().values(), key=lambda c: c.name):
        if check.run.__module__.startswith("healthchecks.checks."):
            areas.setdefault(area_of(check.name), []).append(check)
    made = {"checks.md": _index({area: areas[area] for area in in_order({*areas})})}
    for area, checks in areas.items():
        head = f"# Health checks: {area}\n\n{_MADE}\n\n[All health checks](../checks.md)\n"
        made[f"checks/{file_name(area)}"] = head + "".join(map(_section, checks))
    return made


def _index(areas: Mapping[str, Sequence[Check]]) -> str:
    """docs/checks.md."""
    names = [check.name for checks in areas.values() for check in checks]
    parts = [f"# Health checks\n\n{_MADE}\n{_HEAD}\n## By what you see\n\n"]
    parts.append("| you see | these checks look there |\n|---|---|\n")
    for seen, words in SYMPTOMS.items():
        parts.append(f"| {seen} | {_links(meant(words, names))} |\n")
    parts.append("\n## By area\n\n| area | checks |\n|---|---|\n")
    for area, checks in areas.items():
        title = f"[{area}](checks/{file_name(area)})"
        parts.append(f"| {title} | {_links(check.name for check in checks)} |\n")
    every = [check for checks in areas.values() for check in checks if check.tags & DRAIN_SUITES]
    parts.append(_DRAINS)
    for rule in dict.fromkeys(map(drain_rule, every)):
        chosen = sorted(check.name for check in every if drain_rule(check) == rule)
        parts.append(f"| {rule} | {_links(chosen)} |\n")
    parts.append("\n## Suites\n\n")
    parts += [f"- `{tag}`: {text}\n" for tag, text in TAGS.items()]
    return "".join([*parts, _SCHEMA])


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}]({page_of(name).removeprefix('docs/')})" for name in names)


def _section(check: Check) -> str:
    text = inspect.cleandoc(check.run.__doc__ or "")
    lines = [f"\n## {check.name}\n", f"{text}\n"]
    lines.append("\n" + " ".join(traits(check)) + "\n")
    if check.untested:
        lines.append(f"\nBuilt without the hardware: {check.untested}\n")
    options = check.options()
    if options:
        lines.append("\n| setting | default | meaning |\n|---|---|---|\n")
    for option in options.values():
        unit = f" {option.about.unit}" if option.about.unit else ""
        default = _shown(option.default)
        lines.append(f"| `{option.name}` | `{default}`{unit} | {option.about.doc} |\n")
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def traits(check: Check) -> list[str]:
    """How it is run and what its failure does, a sentence each."""
    found = [f"Suites: {', '.join(sorted(check.tags))}.", f"Deadline: {check.deadline_s:g} s."]
    if check.on_timeout is not Status.UNKNOWN:
        found.append(f"No answer means {check.on_timeout.value}.")
    if check.cohort:
        found.append(f"A fact that differs from the other nodes' means {check.cohort.value}.")
    if check.blame.value != "node":
        found.append(f"A failure is blamed on: {check.blame.value}.")
    if check.tags & DRAIN_SUITES:
        found.append(drain_rule(check))
    return found


def explained(check: Check) -> Iterator[tuple[str, str]]:
    """What a person asks of a check: label and text."""
    head, _, rest = inspect.cleandoc(check.run.__doc__ or "").partition("\n\n")
    yield "looks that", " ".join(head.split())
    for paragraph in rest.split("\n\n") if rest else ():
        yield "why", " ".join(paragraph.split())
    yield "how", " ".join(traits(check))
    if check.timeout_fix:
        yield "if it hangs", check.timeout_fix
    if check.untested:
        yield "not tried on", check.untested
    for option in check.options().values():
        unit = f" {option.about.unit}" if option.about.unit else ""
        yield "setting", f"{option.name} = {_shown(option.default)}{unit}: {option.about.doc}"
    yield "read more", page_of(check.name)


def drain_rule(check: Check) -> str:
    """Whether a failure may drain the node, as a sentence."""
    if check.blame is not Blame.NODE:
        return "Drains no node."
    if check.by_users:
        return "Keeps a run off the node, and never drains it: users can bring it about."
    if not check.drains:
        return "Shown, and drains no node alone."
    if check.witness:
        return f"May drain the node where a check of its {_WITNESSES[check.witness]} fails too."
    return "May drain the node."


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return value if isinstance(value, (int, float, str, bool)) or value is None else str(value)
