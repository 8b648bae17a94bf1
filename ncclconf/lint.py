"""Rules for environments of NCCL, and holding an environment against all of them.

A rule is one entry: what it looks for, why that is wrong, what to do, who says so, and examples of
its own that it must and must not find. Rules live in ncclconf/rules/; a module there is found by
being there.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any

from ncclconf.catalogue import Variable, Version, lookup
from ncclconf.environment import SYSTEM_FILE, ConfFile, Environment, EnvSetting, of_mapping
from ncclconf.facts import Facts


class Severity(StrEnum):
    """ERROR stops a person's launch unless told otherwise; nothing stops an automatic restart."""

    ERROR = "error"  # hangs, fails, corrupts, or does not do what it says
    WARNING = "warning"  # slower, blind, or about to break
    ADVICE = "advice"  # off by default, and worth a thought


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a rule found: which variables, and in words."""

    names: tuple[str, ...]
    seen: str
    fix: str = ""  # where it differs from the rule's
    severity: Severity | None = None  # likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An environment, and what is known of the machine. `raw` is a file of NCCL's."""

    env: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintRule:
    """One rule."""

    id: str
    severity: Severity
    why: str
    fix: str
    source: str
    find: Callable[[Subject], Iterator[Hit]]
    wrong: tuple[Example, ...]
    right: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """A rule that found something."""

    rule: LintRule
    hit: Hit
    where: str  # file and line, a process, a job file; empty: what is wrong is not set

    @property
    def severity(self) -> Severity:
        return self.hit.severity or self.rule.severity

    @property
    def fix(self) -> str:
        return self.hit.fix or self.rule.fix


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What rules look at."""

    env: Environment
    facts: Facts

    def setting(self, name: str) -> EnvSetting | None:
        return self.env.settings.get(name)

    def text(self, name: str) -> str | None:
        """None where it is not set, or where a shell works it out."""
        setting = self.env.settings.get(name)
        return setting.text if setting and setting.known else None

    def number(self, name: str) -> int | None:
        """As NCCL reads it, where it is a number."""
        text = self.text(name)
        return c_number(text) if text is not None else None

    def set_names(self) -> list[str]:
        return sorted(self.env.settings)

    def variables(self) -> Iterator[tuple[EnvSetting, Variable]]:
        """Those that the catalogue knows, their values known."""
        for setting in self.env.settings.values():
            variable = lookup(setting.name)
            if variable is not None and setting.known:
                yield setting, variable

    def before(self, release: Version) -> bool:
        """The NCCL here is known, and older."""
        return self.facts.nccl is not None and self.facts.nccl < release

    def since(self, release: Version) -> bool:
        """The NCCL here is known, and not older."""
        return self.facts.nccl is not None and self.facts.nccl >= release

    def between(self, first: Version, beyond: Version) -> bool:
        return self.since(first) and self.before(beyond)


def c_number(text: str) -> int | None:
    """What strtoll(text, 0, 0) makes of a whole text; None where something is left over."""
    match = re.fullmatch(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", text)
    if match is None:
        return None
    digits = match[2]
    base = 16 if digits[:2].lower() == "0x" else 8 if digits.startswith("0") else 10
    return int(f"{match[1]}{digits}", base)


def rule(
    name: str,
    severity: Severity,
    *,
    why: str,
    fix: str,
    source: str,
    wrong: Sequence[Example],
    right: Sequence[Example],
) -> Callable[[Callable[[Subject], Iterator[Hit]]], Callable[[Subject], Iterator[Hit]]]:
    """Make a rule of the function below."""

    def add(find: Callable[[Subject], Iterator[Hit]]) -> Callable[[Subject], Iterator[Hit]]:
        if any(known.id == name for known in _RULES):
            raise ValueError(f"two rules are called {name}")
        made = LintRule(
            id=name,
            severity=severity,
            why=why,
            fix=fix,
            source=source,
            find=find,
            wrong=tuple(wrong),
            right=tuple(right),
        )
        _RULES.append(made)
        return find

    return add


_RULES: list[LintRule] = []


def example(facts: Mapping[str, Any] | None = None, raw: str = "", **env: str) -> Example:
    """`example({"nccl": (2, 28, 3)}, NCCL_ALGO="Tree")`."""
    return Example(env=env, facts=Facts(**(facts or {})), raw=raw)


@cache
def rules() -> tuple[LintRule, ...]:
    """All of them, in the order of their modules."""
    package = importlib.import_module("ncclconf.rules")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"ncclconf.rules.{module}")
    return tuple(_RULES)


def lint(env: Environment, facts: Facts) -> list[LintFinding]:
    """What is wrong, the worst first."""
    subject = Subject(env=env, facts=facts)
    found = []
    for one in rules():
        for hit in one.find(subject):
            places = [env.settings[name].where for name in hit.names if name in env.settings]
            found.append(LintFinding(rule=one, hit=hit, where=places[0] if places else ""))
    order = list(Severity)
    return sorted(found, key=lambda f: (order.index(f.severity), f.hit.names, f.rule.id))


def of_example(one: Example) -> Environment:
    """The environment of an example."""
    files = [ConfFile.parsed(one.raw, SYSTEM_FILE)] if one.raw else []
    return Environment.of(of_mapping(one.env, "example"), files=files)
