"""The `groups` of site.yaml: nodes whose health checks are set otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from supervisor.config.document import At, YamlList, YamlMapping, YamlNode, YamlScalar, shown
from supervisor.core.nodeset import expand

VALID = "a list of {nodes: HOSTLIST, checks: …} and {partition: NAME, checks: …}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes by name or by partition, and the settings of checks that hold there."""

    nodes: str = ""
    partition: str = ""
    checks: Mapping[str, Mapping[str, Any]]


def narrowed(site: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """`enabled` and `ignore` of a check for a job: what the site leaves out stays left out, and a
    job may leave out more. An `ignore` of numbers is the check's own, and holds as it is set.
    """
    found: dict[str, Any] = {}
    off = [str(of.get("enabled", "true")).lower() in ("false", "no", "off") for of in (site, job)]
    if any(off):
        found["enabled"] = "false"
    lists = [of["ignore"] for of in (site, job) if isinstance(of.get("ignore"), list)]
    if lists:
        found["ignore"] = list(dict.fromkeys(item for one in lists for item in one))
    return found


def read_groups(node: YamlNode, at: At) -> tuple[NodeGroup, ...]:
    """Raises UserError."""
    if not isinstance(node, YamlList):
        raise at.error(f"expected {VALID}; got {shown(node)}")
    return tuple(
        _group(item, replace(at, key=f"{at.key}[{number}]", line=item.line))
        for number, item in enumerate(node.items)
    )


def _group(node: YamlNode, at: At) -> NodeGroup:
    from supervisor.config.site import read_settings

    given = node.entries if isinstance(node, YamlMapping) else {}
    who = given.keys() - {"checks"}
    if who not in ({"nodes"}, {"partition"}) or "checks" not in given:
        raise at.error(f"expected `checks`, and `nodes` or `partition`; got {shown(node)}")
    (key,) = who
    name = given[key]
    if not isinstance(name, YamlScalar) or not name.text:
        raise at.inside(key, name).error(f"expected text, got {shown(name)}")
    if key == "nodes":
        try:
            expand(name.text)
        except ValueError as error:
            raise at.inside(key, name).error(str(error)) from error
    checks = read_settings(given["checks"], at.inside("checks", given["checks"]))
    return NodeGroup(**{key: name.text}, checks=checks)
