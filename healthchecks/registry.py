"""Finds the checks, chooses among them, and reads their configuration."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import healthchecks.checks
from healthchecks.check import REGISTERED, TAGS, Check
from supervisor.core.errors import UserError

GROUP = "superv.checks"  # entry points of other distributions: modules that register checks
_loaded = False


def registered() -> dict[str, Check]:
    """All checks by name, in the order in which they run. Raises ValueError for a taken name."""
    global _loaded
    if not _loaded:
        _loaded = True
        for module in sorted(m.name for m in pkgutil.iter_modules(healthchecks.checks.__path__)):
            importlib.import_module(f"healthchecks.checks.{module}")
        _load_entry_points()
    return REGISTERED


def _load_entry_points() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"the checks of {point.value} ({point.dist.name if point.dist else 'unknown'}) "
                f"can't be loaded: {error}; mend or uninstall it"
            ) from error


def select(names: Sequence[str] = (), tags: Iterable[str] = ()) -> list[Check]:
    """The checks of these names (`gpu` means all of `gpu.*`), or those that carry one of the tags.

    Raises UserError for a name or tag that does not exist.
    """
    every = registered()
    unknown = [tag for tag in tags if tag not in TAGS]
    if unknown:
        raise UserError(f"no tag {unknown[0]!r}; valid: {', '.join(TAGS)}")
    wanted: set[str] = set()
    for name in names:
        found = {c for c in every if c == name or c.startswith(f"{name}.")}
        if not found:
            raise UserError(
                f"no check {name!r}{_guess(name, every)}; superv check --list shows all"
            )
        wanted |= found
    if not names:
        wanted = {c.name for c in every.values() if c.tags & set(tags)}
    return [every[name] for name in every if name in wanted]


def _guess(name: str, known: Iterable[str]) -> str:
    from supervisor.config.schema import did_you_mean

    return did_you_mean(name, known)


def settings_for(check: Check, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a check from plain JSON values.

    Raises UserError for a key that the check does not have and a value that does not fit.
    """
    if not given:
        return {}
    import msgspec

    options = check.options()
    values = {}
    for key, value in given.items():
        if key not in options:
            valid = ", ".join(options) or "none"
            raise UserError(f"{check.name}: no key {key!r}; valid: {valid}{_guess(key, options)}")
        try:
            values[key] = msgspec.convert(value, options[key].hint, strict=False)
        except msgspec.ValidationError as error:
            raise UserError(f"{check.name}: {key}: {error}") from error
    return values
