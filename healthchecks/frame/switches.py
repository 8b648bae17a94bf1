"""What every check can be told beside its own settings: `enabled` and `ignore`.

A check knows nothing of it: the runner leaves out the check or a target, Findings a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from healthchecks.frame.check import Check
from supervisor.core.errors import UserError
from supervisor.core.setting import GROUPS, About

COMMON: Mapping[str, About] = {
    "enabled": About(doc="false: the check is not run, and is SKIP."),
    "ignore": About(
        doc="Its targets and devices, as reports name them (/scratch, gpu3, mlx5_*), that are not "
        "judged; GPUs by serial number, UUID and PCI address too, once gpu.handle has seen them."
    ),
}
OFF = "switched off in site.yaml or job.yaml"  # how the result of what is not run begins
HINTS: Mapping[str, Any] = {"enabled": bool, "ignore": tuple[str, ...]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """Whether a check is run, and on what it is not."""

    enabled: bool = True
    ignore: tuple[str, ...] = ()

    def ignores(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)

    def text(self) -> str:
        """What is switched off, as settings have it; empty where nothing is."""
        if not self.enabled:
            return "enabled: false"
        return f"ignore: {', '.join(self.ignore)}" if self.ignore else ""


def common(check: Check, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are not the check's own: some have an `ignore` themselves."""
    own = check.options()
    return {key: value for key, value in given.items() if key in COMMON and key not in own}


def switches_for(check: Check, given: Mapping[str, Any]) -> Switches:
    """From plain JSON values. Raises UserError for what does not fit."""
    values = {}
    for key, value in common(check, given).items():
        from supervisor.config.bounds import convert
        from supervisor.config.schema import describe

        try:
            values[key] = convert(value, HINTS[key], COMMON[key])
        except ValueError as error:
            expected = describe(HINTS[key], COMMON[key])
            raise UserError(f"{check.name}: {key}: expected {expected}, got {value!r}") from error
    return Switches(**values)


def of_node(
    settings: Mapping[str, Mapping[str, Any]], node: str, partition: str
) -> dict[str, Mapping[str, Any]]:
    """What holds on one node: the settings, and over them those of each group that it is in.

    Raises UserError for groups that are none.
    """
    found = {name: values for name, values in settings.items() if name != GROUPS}
    try:
        for group in settings.get(GROUPS, {}).get("groups", ()):
            if holds(group["nodes"], group["partition"], node, partition):
                for name, values in group["checks"].items():
                    found[name] = {**found.get(name, {}), **values}
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(f"groups: not as they are sent to nodes: {error!r}") from error
    return found


def holds(nodes: str, partition: str, node: str, of: str) -> bool:
    """Whether a group of `nodes`, or of a `partition`, is this node's, which is `of` a partition.

    Raises ValueError.
    """
    from supervisor.core.nodeset import expand

    return node in expand(nodes) or bool(of and partition == of)
