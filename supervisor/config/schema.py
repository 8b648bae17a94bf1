"""Tree of a file → typed values, led by the dataclasses' types and their About.

Knows no key by name. Supported types: int, float, str, Path, tuple[X, ...], Mapping[str, str],
bool, nested dataclasses, each of them `| None`; About.read reads anything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor.config.bounds import convert
from supervisor.config.document import (
    At,
    YamlList,
    YamlMapping,
    YamlNode,
    YamlScalar,
    quoted,
    shown,
    shown_key,
)
from supervisor.config.renamed import RENAMED
from supervisor.core.errors import SeveralError, UserError
from supervisor.core.setting import About


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key that a mapping may hold."""

    name: str
    hint: Any  # its type, without `| None`
    about: About
    field: dataclasses.Field[Any]

    @property
    def required(self) -> bool:
        f = self.field
        given = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        return not given and not self.about.default


def keys(cls: type) -> dict[str, Key]:
    """The keys of a dataclass: its fields that carry an About."""
    hints = typing.get_type_hints(cls)
    found = {}
    for f in dataclasses.fields(cls):
        if "about" in f.metadata:
            hint = hints[f.name]
            if isinstance(hint, types.UnionType):
                (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
            found[f.name] = Key(name=f.name, hint=hint, about=f.metadata["about"], field=f)
    return found


def read_fields(cls: type, node: YamlNode, at: At) -> dict[str, Any]:
    """The keys that the mapping gives, as keyword arguments for `cls`.

    Raises WrongKeysError: all keys that are unknown or missing, and values that do not fit.
    """
    if isinstance(node, YamlScalar) and node.kind == "null":  # all lines below commented out
        node = YamlMapping(entries={}, line=node.line)
    if not isinstance(node, YamlMapping):
        raise at.error(f"expected a mapping, got {shown(node)}")
    known, wrong, values = keys(cls), WrongKeys(), {}
    renamed = RENAMED.get(cls.__name__, {})
    for written, entry in node.entries.items():
        name = renamed.get(written, written)
        with wrong.collected(written):
            if name not in known:
                raise unknown(name, known, at.inside(shown_key(name), entry))
            if name != written:
                _note_renamed(name, node, at.inside(written, entry))
            values[name] = read_value(known[name], entry, at.inside(written, entry))
    for key in known.values():
        if key.required and not {key.name, *_old(key.name, renamed)} & node.entries.keys():
            where = dataclasses.replace(at, key=f"{at.key}.{key.name}" if at.key else key.name)
            with wrong.collected(""):
                raise where.error(f"missing; expected {describe(key.hint, key.about)}")
    wrong.told(values)
    return values


def _old(name: str, renamed: Mapping[str, str]) -> list[str]:
    return [old for old, new in renamed.items() if new == name]


class WrongKeysError(SeveralError):
    """The wrong keys of a mapping, each with its way from there; empty for one that is missing."""

    def __init__(
        self, wrong: Sequence[tuple[tuple[str, ...], UserError]], values: Mapping[str, Any]
    ) -> None:
        self.wrong, self.values = tuple(wrong), values
        super().__init__([error for _, error in wrong])


class WrongKeys:
    """Mistakes are gathered, so that one reading tells all of them."""

    def __init__(self) -> None:
        self._found: list[tuple[tuple[str, ...], UserError]] = []

    @contextlib.contextmanager
    def collected(self, key: str) -> Iterator[None]:
        """What is wrong with one key is kept until `told`."""
        way = (key,) if key else ()
        try:
            yield
        except WrongKeysError as inner:
            self._found += [((*way, *more), error) for more, error in inner.wrong]
        except UserError as error:
            self._found.append((way, error))

    def told(self, values: Mapping[str, Any] | None = None) -> None:
        """Raises WrongKeysError where something is wrong; `values` are those that are not."""
        if self._found:
            raise WrongKeysError(self._found, values or {})


def read_rest(cls: type, node: YamlMapping, at: At) -> tuple[dict[str, Any], list[UserError]]:
    """The keys that can be read, and what is wrong with the others and their neighbours."""
    wrong: list[UserError] = []
    notes = len(at.notes)
    while True:
        del at.notes[notes:]
        try:
            return read_fields(cls, node, at), wrong
        except WrongKeysError as error:
            wrong = wrong or list(error.each)  # what comes of leaving keys out is no mistake
            inner = {way for way, _ in error.wrong if len(way) > 1}
            if not inner:
                return dict(error.values), wrong
            node = without(node, inner)


def without(node: YamlMapping, ways: Iterable[tuple[str, ...]]) -> YamlMapping:
    """The mapping without those keys; a key in something else than a mapping goes with that."""
    entries = dict(node.entries)
    for first, *rest in ways:
        inner = entries.get(first)
        if isinstance(inner, YamlMapping) and rest and rest[0] in inner.entries:
            entries[first] = without(inner, [tuple(rest)])
        else:
            entries.pop(first, None)
    return dataclasses.replace(node, entries=entries)


def _note_renamed(name: str, node: YamlMapping, at: At) -> None:
    """Raises UserError where the new name is given too."""
    if name in node.entries:
        line = node.entries[name].line
        raise at.error(f"the old name of {name}, which line {line} gives too; remove one")
    at.note(f"called {name} now; the old name works until the next release")


def read_value(key: Key, node: YamlNode, at: At) -> Any:
    """The value of one key. Raises UserError."""
    if key.about.read is not None:
        return key.about.read(node, at)
    return _read(key.hint, key.about, node, at)


def _read(hint: Any, about: About, node: YamlNode, at: At) -> Any:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return hint(**read_fields(hint, node, at))
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _read_list(typing.get_args(hint)[0], about, node, at)
    if origin is Mapping:
        return read_mapping(node, at)
    expected = f"expected {describe(hint, about)}, got {shown(node)}"
    if not isinstance(node, YamlScalar) or node.kind == "null":
        raise at.error(expected + _hint(node, hint, about))
    if hint is bool:
        if (value := truth(node)) is None:
            raise at.error(expected)
        return value
    if hint in (int, float):
        text = node.text.removeprefix("+") if node.plain else ""
        text = text if node.kind == "int" or hint is float else ""  # 1e3 is no whole number
    else:
        text = read_text_value(node, at)
    try:
        value = convert(text, str if hint is Path else hint, about)
    except ValueError as error:
        raise at.error(expected + did_you_mean(text, about.choices)) from error
    return read_path(value, at) if hint is Path else value


def truth(node: YamlNode) -> bool | None:
    """What YAML takes for a truth value (true, yes, on …), also in quotes; None for others."""
    if isinstance(node, YamlScalar) and (node.kind == "bool" or node.text in ("true", "false")):
        return node.text.lower() in ("true", "yes", "on")
    return None


def _hint(node: YamlNode, hint: Any, about: About) -> str:
    """What to do about a value that is no text where one was expected."""
    if isinstance(node, YamlMapping) and hint in (str, Path) and len(node.entries) == 1:
        ((name, value),) = node.entries.items()
        if isinstance(value, YamlScalar) and value.kind == "null":
            return f'; quote it: "{{{shown_key(name)}}}"'
    if isinstance(node, YamlScalar) and hint is str and not (about.choices or about.pattern):
        return '; write "" for an empty text'
    return ""


def read_text_value(node: YamlScalar, at: At) -> str:
    """The text as written. Raises UserError for what no argv or environment can hold."""
    if not passable(node.text):
        raise at.error(f"{quoted(node.text)} holds a character that cannot be passed on")
    return node.text


def passable(text: str) -> bool:
    """Whether an argv or an environment can hold it."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _read_list(hint: Any, about: About, node: YamlNode, at: At) -> tuple[Any, ...]:
    if not isinstance(node, YamlList) or (about.nonempty and not node.items):
        expected = describe(tuple[hint, ...], about)
        example = ""
        if isinstance(node, YamlScalar) and node.kind != "null" and hint is str:
            example = "; write one item a line, each after `- `"
        got = "an empty list" if isinstance(node, YamlList) else shown(node)
        raise at.error(f"expected {expected}, got {got}{example}")
    return tuple(
        _read(hint, about, item, dataclasses.replace(at, line=item.line, key=f"{at.key}[{index}]"))
        for index, item in enumerate(node.items)
    )


def read_mapping(node: YamlNode, at: At) -> dict[str, str]:
    """A mapping of text to text; a number or a truth value stays as it was written."""
    if isinstance(node, YamlScalar) and node.kind == "null":
        return {}
    if not isinstance(node, YamlMapping):
        raise at.error(f"expected a mapping of text to text, got {shown(node)}")
    about = About(doc="")
    found, wrong = {}, WrongKeys()
    for name, value in node.entries.items():
        with wrong.collected(name):
            found[name] = _read(str, about, value, at.inside(shown_key(name), value))
    wrong.told()
    return found


def read_path(text: str, at: At) -> Path:
    """An absolute path: `~` is expanded, a relative path starts at the file's folder."""
    if not text or not text.isprintable():
        raise at.error(f"expected a path, got {quoted(text)}")
    if "$" in text:
        raise at.error(f"{quoted(text)}: variables are not expanded; write the path out")
    try:
        return without_parents(Path(at.file).absolute().parent / Path(text).expanduser())
    except RuntimeError as error:
        raise at.error(f"{quoted(text)}: no home directory for that user") from error


def without_parents(path: Path) -> Path:
    """The same place without `..`, but where a link stands before it: that leads elsewhere."""
    parts: list[str] = []
    for part in path.parts:
        if part != ".." or not parts or parts[-1] == ".." or Path(*parts).is_symlink():
            parts.append(part)
        elif len(parts) > 1:
            parts.pop()
    return Path(*parts)


def describe(hint: Any, about: About) -> str:
    """What is valid, in words: for errors and for the documentation."""
    if about.valid:
        return about.valid
    if about.choices:
        return about.choices[0] if len(about.choices) == 1 else f"one of {', '.join(about.choices)}"
    if typing.get_origin(hint) is tuple:
        inner = dataclasses.replace(about, nonempty=False)
        item = describe(typing.get_args(hint)[0], inner)
        several = re.sub(r"^an? (whole number|number|text|path)", r"\1s", item).replace(
            "texts", "text"
        )
        return f"a list of {several}" + (" with at least one item" if about.nonempty else "")
    if typing.get_origin(hint) is Mapping:
        return "a mapping of text to text"
    if hint in (int, float):
        return ("a whole number" if hint is int else "a number") + _bounds(about)
    return {str: "text", Path: "a path", bool: "true or false"}.get(hint, "a mapping")


def _bounds(about: About) -> str:
    unit = f" {about.unit}" if about.unit else ""
    if about.ge is not None and about.le is not None:
        return f" from {about.ge:g} to {about.le:.15g}{unit}"
    return f" ≥ {about.ge:g}{unit}" if about.ge is not None else ""


def unknown(name: str, known: Iterable[str], at: At, what: str = "unknown key") -> UserError:
    """An error that lists what is valid and guesses what was meant."""
    return at.error(f"{what}; valid: {', '.join(sorted(known))}{did_you_mean(name, known)}")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    import difflib  # needed for errors only

    close = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
