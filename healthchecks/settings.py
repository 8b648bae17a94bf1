"""The checks' configuration: site.yaml, then --set. The registry checks names and values."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from healthchecks.registry import registered, select
from supervisor.config import load_site
from supervisor.core.errors import UserError

Settings = Mapping[str, Mapping[str, Any]]


def merged(env: Mapping[str, str], sets: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """By check and key, as JSON could carry it to another node. Raises UserError."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in load_site(env).checks.items():
        if name not in registered():
            select([f"{name}"])  # raises, with a guess
            raise UserError(f"site.yaml: checks.{name}: is a group; name one check")
        found[name] = dict(values)
    for given in sets:
        place, equals, value = given.partition("=")
        check, dot, key = place.rpartition(".")
        if not (equals and dot and check):
            raise UserError(f"--set {given}: expected CHECK.KEY=VALUE, as fs.local.warn_percent=80")
        if check not in registered():
            select([check])
            raise UserError(f"--set {given}: {check} is a group; name one check")
        option = registered()[check].options().get(key)
        several = option is not None and typing.get_origin(option.hint) is tuple
        found.setdefault(check, {})[key] = _several(given, value) if several else value
    return found


def _several(given: str, value: str) -> Any:
    """A list: with commas, or as JSON where the items are mappings."""
    if not value.startswith("["):
        return [item for item in value.split(",") if item]
    import json

    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(f"--set {given}: not JSON: {error}") from error
