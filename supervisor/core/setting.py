"""What a key of job.yaml or site.yaml means: kept beside its field, read by errors and docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Beside the settings of single health checks, for all of them:
PORT_ROLES = "ports"  # what RDMA ports are for
OWN_CHECKS = "own_checks"  # commands of the site that are checks
GROUPS = "groups"  # of nodes that have other settings
REPAIRS = "repairs"  # when nodes were repaired, by node and check
FOR_ALL_CHECKS = (PORT_ROLES, OWN_CHECKS, GROUPS, REPAIRS)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The documentation and the bounds of one key."""

    doc: str
    unit: str = ""
    ge: float | None = None  # bounds, both included, by the names of msgspec.Meta
    le: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""  # a regular expression that the whole text has to match
    valid: str = ""  # what is valid, in words; made from type and bounds where empty
    default: str = ""  # the default in words, where it depends on something; then it is optional
    nonempty: bool = False  # a list needs at least one item
    read: Callable[[Any, Any], Any] | None = None  # reads the key where its type does not say how


def about(doc: str, **more: Any) -> Mapping[str, About]:
    """The metadata of a dataclass field that is a key: `field(metadata=about("…", ge=1))`.

    The keyword arguments are About's fields.
    """
    return {"about": About(doc=doc, **more)}
