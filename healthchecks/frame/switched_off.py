"""What a node's checks leave out, and which line of which file says so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from healthchecks.frame.check import Check
from healthchecks.frame.settings import line_of
from healthchecks.frame.switches import Switches, common, holds, switches_for
from supervisor.config import Job, Site

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchedOff:
    """A check that is not run, or what it does not judge."""

    check: str
    switches: Switches
    where: str  # FILE:LINE, or --set

    @property
    def what(self) -> str:
        """`enabled: false`, or `ignore: …`."""
        return self.switches.text()


def switched_off(
    checks: Iterable[Check], site: Site, node: str, partition: str, sets: Settings | None = None
) -> list[SwitchedOff]:
    """On one node, which is of this partition; `sets` were given on the command line."""
    sources = [site.checks]
    sources += [g.checks for g in site.groups if holds(g.nodes, g.partition, node, partition)]
    found = []
    for check in checks:
        for key in ("enabled", "ignore"):
            said = [s for s in (*sources, sets or {}) if key in s.get(check.name, {})]
            if said:  # the last one holds
                found += _of(check, key, said[-1], "--set")
    return found


def of_job(checks: Sequence[Check], job: Job, site: Site) -> Iterator[tuple[str, SwitchedOff]]:
    """What a run leaves out: on all nodes (""), or on those of a group."""
    sources = [("", site.checks), ("", job.preflight.checks)]
    sources += [(g.nodes or f"partition {g.partition}", g.checks) for g in site.groups]
    for check in checks:
        for who, settings in sources:
            for key in settings.get(check.name, {}):
                for one in _of(check, key, settings, ""):
                    yield who, one


def without_effect(job: Job, site: Site) -> list[str]:
    """A line for each `enabled: true` of a job whose check the site has switched off."""
    from healthchecks.frame.registry import named

    notes = []
    for name, values in job.preflight.checks.items():
        check = named(name, "preflight.checks")
        if not common(check, values).get("enabled") or not switches_for(check, values).enabled:
            continue
        for settings in (site.checks, *(group.checks for group in site.groups)):
            for off in _of(check, "enabled", settings, "site.yaml"):
                at = line_of(job.preflight.checks, name, "enabled")
                notes.append(
                    f"{at}: {name}: enabled: true has no effect: {off.where} has switched it off; "
                    "a job may leave out more, and nothing less"
                )
    return notes


def _of(check: Check, key: str, settings: Settings, where: str) -> list[SwitchedOff]:
    given = common(check, settings.get(check.name, {}))
    said = switches_for(check, {key: given[key]}) if key in given else Switches()
    at = line_of(settings, check.name, key) or where
    return [SwitchedOff(check=check.name, switches=said, where=at)] if said.text() else []
