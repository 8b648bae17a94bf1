"""The pinned profile: what nodes of one kind are to be like. A YAML file, made by --pin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from healthchecks.frame.registry import named
from supervisor.config.document import At, parse, read_text
from supervisor.config.site import read_settings

HEAD = """\
# What nodes of one kind are to be like: check (with its target) → fact → value.
# Written by `superv preflight --pin`; take out what may differ from node to node.
"""


def load(path: Path) -> dict[str, dict[str, str]]:
    """Raises UserError, with file and line, for what is no profile."""
    found = {}
    for name, facts in read_settings(parse(read_text(path), path), At(file=path)).items():
        named(name.partition("[")[0], str(path))
        found[name] = {fact: str(value) for fact, value in facts.items()}
    return found


def text(profile: Mapping[str, Mapping[str, str]]) -> str:
    """The file of a profile."""
    import yaml

    plain = {name: dict(facts) for name, facts in profile.items()}
    return HEAD + yaml.safe_dump(plain, allow_unicode=True, width=100)
