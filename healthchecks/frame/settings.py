"""The checks' configuration: site.yaml, then --set. The registry checks names and values."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from healthchecks.frame import own
from healthchecks.frame.registry import named, settings_for
from healthchecks.frame.switches import HINTS
from supervisor.config import Site, load_site
from supervisor.config.document import At
from supervisor.config.document import named as named_file
from supervisor.config.site import PlacedSettings
from supervisor.core.errors import SeveralError, UserError
from supervisor.core.setting import GROUPS, OWN_CHECKS, PORT_ROLES

Settings = Mapping[str, Mapping[str, Any]]


def merged(env: Mapping[str, str], sets: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """By check and key, as JSON could carry it to another node. Raises UserError."""
    return of_site(load_site(env), sets)


def of_site(site: Site, sets: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """As `merged`, of a site that was read already; its own checks are checks from now on."""
    found: dict[str, dict[str, Any]] = {}
    if roles := site.ports.patterns():
        found[PORT_ROLES] = dict(roles)
    if site.own_checks:
        found[OWN_CHECKS] = own.documents(site.own_checks)
    own.register(found.get(OWN_CHECKS, {}))
    found |= checked(site.checks, "site.yaml: checks")
    if site.groups:
        for number, group in enumerate(site.groups):
            checked(group.checks, f"site.yaml: groups[{number}].checks")
        found[GROUPS] = {"groups": [asdict(group) for group in site.groups]}
    for name, values in given(sets).items():
        found[name] = {**found.get(name, {}), **values}
        for group in found.get(GROUPS, {}).get("groups", ()):  # who types it means every node
            there = group["checks"].get(name, {})
            group["checks"] |= {name: there | {k: v for k, v in values.items() if k in there}}
    return found


def given(sets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What --set says, by check and key. Raises UserError."""
    found: dict[str, dict[str, Any]] = {}
    for one in sets:
        name, key, value = _set(one)
        found.setdefault(name, {})[key] = value
    return found


def _set(given: str) -> tuple[str, str, Any]:
    """The check, its key and the value of CHECK.KEY=VALUE. Raises UserError."""
    place, equals, text = given.partition("=")
    name, dot, key = place.rpartition(".")
    if not (equals and dot and name):
        raise UserError(f"--set {given}: expected CHECK.KEY=VALUE, as fs.local.warn_percent=80")
    check = named(name, f"--set {given}")
    option = check.options().get(key)
    hint = option.hint if option is not None else HINTS.get(key)
    value = _several(given, text) if typing.get_origin(hint) is tuple else text
    try:
        settings_for(check, {key: value})
    except UserError as error:
        why = str(error).removeprefix(f"{name}: ").removeprefix(f"{key}: ")
        raise UserError(f"--set {given}: {why}") from error
    return name, key, value


def checked(checks: Settings, where: str) -> dict[str, dict[str, Any]]:
    """Settings that their checks take. Raises UserError of all others, with file and line."""
    wrong: list[UserError] = []
    for name, values in checks.items():
        try:
            check = named(name, at_of(checks, name, "") or where)
        except UserError as error:
            wrong.append(error)
            continue
        for key, value in values.items():
            try:
                settings_for(check, {key: value})
            except UserError as error:
                wrong.append(UserError(f"{at_of(checks, name, key) or where}: {error}"))
    if wrong:
        raise SeveralError(wrong)
    return {name: dict(values) for name, values in checks.items()}


def at_of(checks: Settings, name: str, key: str) -> str:
    """Where a check's setting stands, for an error: as `site.yaml:3: checks`."""
    at = _place(checks, name, key)
    return f"{line_of(checks, name, key)}: {at.key.partition('.')[0]}" if at else ""


def line_of(checks: Settings, name: str, key: str) -> str:
    """Where a check's setting stands, as `site.yaml:3`; empty where nobody remembers."""
    at = _place(checks, name, key)
    return f"{named_file(at.file)}:{at.line}" if at else ""


def _place(checks: Settings, name: str, key: str) -> At | None:
    return checks.places.get((name, key)) if isinstance(checks, PlacedSettings) else None


def _several(given: str, value: str) -> Any:
    """A list: with commas, or as JSON where the items are mappings."""
    if not value.startswith("["):
        return [item for item in value.split(",") if item]
    import json

    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(f"--set {given}: not JSON: {error}") from error
