"""YAML text → a tree of values that know their line. Builds no objects: a tag can run nothing.

Scalars keep the text that the user wrote: YAML 1.1 would turn `time: 12:00:00` into 43200 and
`partition: no` into false.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from supervisor.core.errors import UserError
from supervisor.host import announced

MAX_BYTES = 262_144  # a config file is a page or two: anything larger is another file
_PREFIX = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlScalar:
    """A single value: its text, and what YAML takes it for (str, int, bool, null …)."""

    text: str
    kind: str
    plain: bool  # written without quotes
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlList:
    items: tuple[YamlNode, ...]
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlMapping:
    """A mapping; the line of a value is the line of its key."""

    entries: Mapping[str, YamlNode]
    line: int


YamlNode = YamlScalar | YamlList | YamlMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """A place in a file, for errors."""

    file: Path  # as the user named it
    line: int = 1
    key: str = ""  # dotted
    notes: list[str] = field(default_factory=list)  # what the user should hear; one for a file

    def inside(self, key: str, node: YamlNode) -> At:
        return replace(self, line=node.line, key=f"{self.key}.{key}" if self.key else key)

    def note(self, text: str) -> None:
        self.notes.append(str(self.error(text)))

    def error(self, text: str) -> UserError:
        where = f"{named(self.file)}:{self.line}: "
        return UserError(where + (f"{self.key}: {text}" if self.key else text))


def named(path: Path) -> str:
    """The path for an error: on one line, whatever it holds."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def quoted(text: str) -> str:
    """The text in quotes, on one line, shortened, for an error."""
    text = text if len(text) <= 60 else text[:59] + "…"
    plain = text.isprintable() and '"' not in text and "\\" not in text
    return f'"{text}"' if plain else ascii(text)


def shown(node: YamlNode) -> str:
    """What the user wrote, for `got …` in an error."""
    if isinstance(node, YamlMapping):
        return "a mapping"
    if isinstance(node, YamlList):
        return "a list"
    if node.kind == "null":
        return "nothing"
    as_is = node.plain and node.kind in ("int", "float", "bool") and len(node.text) <= 60
    return node.text if as_is else quoted(node.text)


def shown_key(name: str) -> str:
    """A key as errors show it. NAME=VALUE is none, and its value may be a secret."""
    name, equals, _ = name.partition("=")
    if equals:
        return quoted(f"{name}=…")
    return name if re.fullmatch(r"[\w.-]{1,60}", name) else quoted(name)


def read_text(path: Path) -> str:
    """The file's text. Raises UserError where it is missing, unreadable, too large or no text."""
    try:
        with announced.at("reading it", path):
            if not path.is_file():
                what = "is not a regular file" if path.exists() else "no such file"
                raise UserError(f"{named(path)}: {what}")
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a valid path"
        raise UserError(f"{named(path)}: cannot be read: {reason}") from error
    if len(content) > MAX_BYTES:
        raise UserError(
            f"{named(path)}: larger than {MAX_BYTES // 1024} KiB; is this the right file?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{named(path)}:{line}: not UTF-8 text; save the file as UTF-8") from error


def parse(text: str, file: Path) -> YamlMapping:
    """The file's mapping. Raises UserError with the line for everything that is not one."""
    import yaml  # here, so that importing the types stays quick

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = None if root is None else _convert(root, At(file=file), set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = At(file=file, line=mark.line + 1 if mark else 1)
        column = f" (column {mark.column + 1})" if mark else ""
        said = _instead(text, at.line) or f"not valid YAML: {_problem(error)}{column}"
        raise at.error(said) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, max(0, error.position)) + 1
        raise At(file=file, line=line).error("not valid YAML: a control character") from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, as "\UFFFFFFFF"
        raise At(file=file).error("not valid YAML: an escape that is no character") from error
    except RecursionError as error:
        raise At(file=file).error("nested too deeply") from error
    if tree is None:
        raise UserError(f"{named(file)}: empty; docs/configuration.md lists the keys")
    if not isinstance(tree, YamlMapping):
        got = _instead(text, 1) or f"expected a mapping of keys to values, got {shown(tree)}"
        raise At(file=file).error(got)
    return tree


def _instead(text: str, line: int) -> str:
    """What somebody meant who wrote what YAML can't read; empty where that can't be told."""
    lines = text.splitlines()
    if lines and re.match(r"#!|from \w+ import |import \w+|\"\"\"|def \w+\(", lines[0]):
        return "this is a program, and no job file; a job file names it as trainer.script"
    if line <= len(lines) and re.match(r" *\t", lines[line - 1]):
        return "not valid YAML: a tab; indent with spaces"
    bare = re.search(r"(?<![\"'\w])\{[a-z_]+\}", lines[line - 1] if line <= len(lines) else "")
    if bare:
        return f'not valid YAML: braces need quotes, as "{bare[0]}"'
    return ""


def _problem(error: Any) -> str:
    """What yaml says, without what it quotes: a value that begins with * or ! may be a secret."""
    text = " ".join((error.problem or error.context or "cannot be parsed").split())
    text = re.sub(r"'(.|<[^']*>)'", "\0\\1\0", text)  # single characters, names of tokens
    said = re.sub(r" *'[^']*'", "", text)
    hint = "" if said == text else "; quote a text that begins with *, & or !"
    if "unknown escape character" in text:
        hint = "; a backslash in double quotes begins an escape: write the text in single quotes"
    return said.replace("\0", "'") + hint


def _convert(node: Any, at: At, seen: set[int]) -> YamlNode:
    """One of yaml's nodes as ours. `seen` finds aliases, which could be endless."""
    line = node.start_mark.line + 1
    at = replace(at, line=line)
    if id(node) in seen:
        raise at.error("used again through an alias; write the value out where it is needed")
    seen.add(id(node))
    kind = node.tag.removeprefix(_PREFIX)
    if node.id == "scalar" and kind in _SCALARS:
        return YamlScalar(text=node.value, kind=kind, plain=node.style is None, line=line)
    if node.id == "sequence" and kind == "seq":
        return YamlList(items=tuple(_convert(item, at, seen) for item in node.value), line=line)
    if node.id == "mapping" and kind == "map":
        return YamlMapping(entries=_entries(node.value, at, seen), line=line)
    raise at.error("a tag has no place here; remove it, or quote a text that begins with !")


def _entries(pairs: list[tuple[Any, Any]], at: At, seen: set[int]) -> dict[str, YamlNode]:
    entries: dict[str, YamlNode] = {}
    for key_node, value_node in pairs:
        key = _convert(key_node, at, seen)
        at = replace(at, line=key.line)
        if not isinstance(key, YamlScalar):
            raise at.error(f"a key must be text, got {shown(key)}")
        inner = at.inside(shown_key(key.text), key)
        if key.text in entries:
            first = entries[key.text].line
            raise inner.error(f"given twice, first on line {first}; remove one")
        entries[key.text] = replace(_convert(value_node, inner, seen), line=key.line)
    return entries
