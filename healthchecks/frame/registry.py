"""Finds the checks, chooses among them, and reads their configuration."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from healthchecks.frame.check import REGISTERED, TAGS, Check
from healthchecks.frame.switches import COMMON, common, switches_for
from supervisor.core.errors import UserError
from supervisor.host import trusted

GROUP = "superv.checks"  # entry points of other distributions: modules that register checks
_loaded = False


def registered() -> dict[str, Check]:
    """All checks by name, in the order in which they run. Raises ValueError for a taken name."""
    global _loaded
    if not _loaded:
        _loaded = True
        checks = importlib.import_module("healthchecks.checks")
        for module in sorted(m.name for m in pkgutil.iter_modules(checks.__path__)):
            importlib.import_module(f"healthchecks.checks.{module}")
        _load_entry_points()
    return REGISTERED


def _load_entry_points() -> None:
    if not _entry_points_there():
        return
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        place = point.dist.locate_file("") if point.dist else ""
        if place and (why := trusted.code(Path(str(place)).absolute() / "x")):
            raise UserError(f"the checks of {point.value} are not loaded as root: {why}")
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"the checks of {point.value} ({point.dist.name if point.dist else 'unknown'}) "
                f"can't be loaded: {error}; fix or uninstall it"
            ) from error


def _entry_points_there() -> bool:
    """Whether any installed distribution names the group: importlib.metadata costs 30 ms to ask."""
    for place in dict.fromkeys(sys.path):
        try:
            names = [entry.name for entry in os.scandir(place or ".")]
        except NotADirectoryError:  # a zip file
            return True
        except OSError:
            continue
        for name in names:
            if not name.endswith((".dist-info", ".egg-info")):
                continue
            with suppress(OSError), open(f"{place or '.'}/{name}/entry_points.txt", "rb") as file:
                if GROUP.encode() in file.read():
                    return True
    return False


def select(names: Sequence[str] = (), tags: Iterable[str] = ()) -> list[Check]:
    """The checks of these names (`gpu` means all of `gpu.*`) that carry one of the tags.

    No names mean all checks, no tags any. Raises UserError for a name or tag that does not exist,
    where nothing is asked for, and where no check is left.
    """
    every = registered()
    wanted_tags = set(tags)
    for tag in wanted_tags - TAGS.keys():
        raise UserError(f"no tag {tag!r}; valid: {', '.join(TAGS)}")
    if not names and not wanted_tags:
        raise UserError("nothing to run: name checks or tags")
    wanted: set[str] = set() if names else set(every)
    names = [name for one in names for name in one.split(",") if name]
    for name in names:
        found = {name} if name in every else {c for c in every if c.startswith(f"{name}.")}
        if not found:
            raise UserError(_no_check(name, (*every, *_groups(every))))
        wanted |= found
    chosen = [
        c for n, c in every.items() if n in wanted and (not wanted_tags or c.tags & wanted_tags)
    ]
    if names and not chosen:
        carried = {tag for name in wanted for tag in every[name].tags}
        raise UserError(
            f"{' '.join(names)}: not of {', '.join(sorted(wanted_tags))}, but of "
            f"{', '.join(sorted(carried))}"
        )
    return chosen


def named(name: str, where: str) -> Check:
    """One check by its whole name. Raises UserError that begins with `where` it was written."""
    every = registered()
    if name not in every:
        if any(known.startswith(f"{name}.") for known in every):
            raise UserError(f"{where}: {name} is a group; name one check")
        raise UserError(f"{where}: {_no_check(name, every)}")
    return every[name]


def _no_check(name: str, every: Iterable[str]) -> str:
    """What is said of a name that no check has: the one that is meant, else what there is."""
    there = _guess(name, every) or f"; there are {' '.join(_groups(every))}"
    return f"no check {name!r}{there.rstrip('?')}; superv check --list shows all"


def _groups(every: Iterable[str]) -> list[str]:
    """The first words of the checks' names: each means all that begin with it."""
    return list(dict.fromkeys(name.partition(".")[0] for name in every))


def _guess(name: str, known: Iterable[str]) -> str:
    from supervisor.config.schema import did_you_mean

    return did_you_mean(name, known)


def settings_for(check: Check, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a check from plain JSON values.

    Raises UserError for a key that the check does not have and a value that does not fit.
    """
    if not given:
        return {}
    from supervisor.config.bounds import convert
    from supervisor.config.schema import describe

    if not isinstance(given, Mapping):
        raise UserError(f"{check.name}: expected a mapping of its keys, got {given!r}")
    switches_for(check, given)
    options = check.options()
    values = {}
    for key in given.keys() - common(check, given).keys():
        value = given[key]
        if key not in options:
            known = [*options, *(key for key in COMMON if key not in options)]
            raise UserError(
                f"{check.name}: no key {key!r}; valid: {', '.join(known)}{_guess(key, known)}"
            )
        option = options[key]
        _known_keys(f"{check.name}: {key}", option.hint, value)
        try:
            values[key] = convert(value, option.hint, option.about, _path)
        except ValueError as error:
            item = (*typing.get_args(option.hint), option.hint)[0]
            what = str(error)  # which says where in a mapping
            if not dataclasses.is_dataclass(item):
                what = f"expected {describe(option.hint, option.about)}, got {value!r}"
            raise UserError(f"{check.name}: {key}: {what}") from error
    return values


def _known_keys(where: str, hint: Any, value: Any) -> None:
    """Raises UserError for a key within a mapping that its dataclass does not have."""
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _known_keys(f"{where}[{number}]", typing.get_args(hint)[0], item)
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        names = [f.name for f in dataclasses.fields(hint)]
        for name in value:
            if name not in names:
                valid = ", ".join(names)
                raise UserError(f"{where}: no key {name!r}; valid: {valid}{_guess(name, names)}")


def _path(hint: type, value: Any) -> Any:
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError(f"expected a path, got {value!r}")
