"""How events and actions are spelled in journals and on the wire.

Journals live as long as their runs, and an engine talks to agents of the version before it. So a
class or a field that gets a better name in Python keeps its old one there; this is the one table
of them. Messages have theirs beside them, as `tag` and `rename` (supervisor/channel/wire.py).
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import policy
from supervisor.core.actions import ACTIONS, Action
from supervisor.core.events import EVENTS, Event
from supervisor.core.types import Fault

# Python's name of a class → its tag; others are tagged with their name.
TAGS: Mapping[type, str] = {
    ev.HeartbeatLost: "NodeSilent",
    ev.HeartbeatRegained: "NodeHeard",
    ev.HangDetected: "Stalled",
    ev.PhaseTimes: "Marks",
    ev.OperatorExclusionsChanged: "BarredSeen",
    ev.StopRequested: "StopAsked",
    ev.ResumeRequested: "ResumeAsked",
    ev.QuarantineRequested: "QuarantineAsked",
    ev.CheckpointRetired: "PutAway",
    ev.DeadlineExpired: "Due",
}
# Python's name of a field → the one that is written; both are read.
FIELDS: Mapping[type, Mapping[str, str]] = {
    ev.Launched: {"operator_excluded": "barred"},
    ev.OperatorExclusionsChanged: {"operator_excluded": "barred"},
    ev.PhaseTimes: {"phase_times": "marks"},
    ev.DeadlineExpired: {"kind": "what"},
    Fault: {"node_fault": "own"},
    policy.Policy: {new: old for old, new in policy.RENAMED.items()},
}
# Fields that engines of the version before refuse, and are not written while they are empty.
ADDED: Mapping[type, frozenset[str]] = {
    ev.Prepared: frozenset({"stuck", "foreign"}),
    ev.Resumed: frozenset({"log", "others"}),
    ev.AllocationSeen: frozenset({"drained"}),
    ev.SubmitRefused: frozenset({"lacking", "excluded"}),
    act.Submit: frozenset({"min_nodes"}),
}


def tag(kind: type) -> str:
    return TAGS.get(kind, kind.__name__)


EVENTS_BY_TAG: Mapping[str, type[Event]] = {tag(kind): kind for kind in EVENTS.values()}
ACTIONS_BY_TAG: Mapping[str, type[Action]] = {tag(kind): kind for kind in ACTIONS.values()}


def written(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a `kind`, from Python's names to those that are written."""
    there = {name: value for name, value in data.items() if value or name not in _added(kind)}
    return typing.cast(dict[str, Any], _respell(kind, there, _to_disk))


def read(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """Plain data of a `kind`, from the names that are written to Python's."""
    return typing.cast(dict[str, Any], _respell(kind, data, _to_python))


def _added(kind: type) -> frozenset[str]:
    return ADDED.get(kind, frozenset())


def _to_disk(kind: type) -> Mapping[str, str]:
    return FIELDS.get(kind, {})


@functools.cache
def _to_python(kind: type) -> Mapping[str, str]:
    return {old: new for new, old in FIELDS.get(kind, {}).items()}


def _respell(hint: Any, data: Any, names_of: typing.Callable[[type], Mapping[str, str]]) -> Any:
    """Data that does not fit its annotation stays as it is: whoever converts it says so."""
    if not _renames(hint):
        return data
    if dataclasses.is_dataclass(hint):
        if not isinstance(data, dict):
            return data
        names, hints = names_of(typing.cast(type, hint)), _hints(typing.cast(type, hint))
        return {
            names.get(name, name): _respell(
                hints.get(name, hints.get(names.get(name, name))), value, names_of
            )
            for name, value in data.items()
        }
    (inner,) = [arg for arg in typing.get_args(hint) if _renames(arg)]
    if isinstance(data, list | tuple):
        return [_respell(inner, item, names_of) for item in data]
    return _respell(inner, data, names_of)


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _renames(hint: Any) -> bool:
    """Whether anything within the annotation is written under another name."""
    if dataclasses.is_dataclass(hint):
        kind = typing.cast(type, hint)
        return kind in FIELDS or any(_renames(inner) for inner in _hints(kind).values())
    return any(_renames(arg) for arg in typing.get_args(hint))
