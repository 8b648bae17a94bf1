"""Tree of a file → typed values, led by the dataclasses' types and their About.

Knows no key by name. Supported types: int, float, str, Path, tuple[X, ...], Mapping[str, str],
nested dataclasses, each of them `| None`; About.read reads anything else.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from supervisor.config.document import (
    At,
    Listing,
    Node,
    Scalar,
    Table,
    printable,
    quoted,
    shown,
)
from supervisor.core.errors import UserError
from supervisor.core.setting import About

_WHOLE = re.compile(r"[-+]?[0-9]{1,15}")
_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(\.[0-9]{0,15})?([eE][-+]?[0-9]{1,2})?")


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


def read_fields(cls: type, node: Node, at: At) -> dict[str, Any]:
    """The keys that the mapping gives, as keyword arguments for `cls`.

    Raises UserError for an unknown key, a missing one, or a value that does not fit.
    """
    if isinstance(node, Scalar) and node.kind == "null":
        node = Table(entries={}, line=node.line)  # `policy:` with every line below commented out
    if not isinstance(node, Table):
        raise at.error(f"expected a mapping, got {shown(node)}")
    known = keys(cls)
    for name, value in node.entries.items():
        if name not in known:
            raise unknown(name, known, at.inside(printable(name), value))
    values = {
        name: read_value(known[name], value, at.inside(name, value))
        for name, value in node.entries.items()
    }
    for key in known.values():
        if key.required and key.name not in values:
            where = dataclasses.replace(at, key=f"{at.key}.{key.name}" if at.key else key.name)
            raise where.error(f"missing; expected {describe(key.hint, key.about)}")
    return values


def read_value(key: Key, node: Node, at: At) -> Any:
    """The value of one key. Raises UserError."""
    if key.about.read is not None:
        return key.about.read(node, at)
    return _read(key.hint, key.about, node, at)


def _read(hint: Any, about: About, node: Node, at: At) -> Any:
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return hint(**read_fields(hint, node, at))
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _read_list(typing.get_args(hint)[0], about, node, at)
    if origin is Mapping:
        return read_mapping(node, at)
    expected = f"expected {describe(hint, about)}, got {shown(node)}"
    if not isinstance(node, Scalar) or node.kind == "null":
        raise at.error(expected + _hint(node, hint))
    if hint in (int, float):
        return _read_number(hint, about, node, at.error(expected))
    text = read_text_value(node, at)
    if about.choices and text not in about.choices:
        raise at.error(expected + did_you_mean(text, about.choices))
    if about.pattern and not re.fullmatch(about.pattern, text):
        raise at.error(expected)
    if not text and about.nonempty:
        raise at.error(expected)
    return read_path(text, at) if hint is Path else text


def _hint(node: Node, hint: Any) -> str:
    """What to do about a value that is no text where one was expected."""
    if isinstance(node, Table) and hint in (str, Path) and len(node.entries) == 1:
        ((name, value),) = node.entries.items()
        if isinstance(value, Scalar) and value.kind == "null":
            return f'; quote it: "{{{printable(name)}}}"'
    if isinstance(node, Scalar) and hint is str:
        return '; write "" for an empty text'
    return ""


def _read_number(hint: Any, about: About, node: Scalar, error: UserError) -> int | float:
    pattern = _WHOLE if hint is int else _NUMBER
    if not node.plain or not pattern.fullmatch(node.text):
        raise error
    number = int(node.text) if hint is int else float(node.text)
    if about.least is not None and number < about.least:
        raise error
    if about.most is not None and number > about.most:
        raise error
    return number


def read_text_value(node: Scalar, at: At) -> str:
    """The text as written. Raises UserError for what no argv or environment can hold."""
    if "\0" in node.text or any("\ud800" <= c <= "\udfff" for c in node.text):
        raise at.error(f"{quoted(node.text)} holds a character that cannot be passed on")
    return node.text


def _read_list(hint: Any, about: About, node: Node, at: At) -> tuple[Any, ...]:
    if not isinstance(node, Listing) or (about.nonempty and not node.items):
        expected = describe(tuple[hint, ...], about)
        example = ""
        if isinstance(node, Scalar) and node.kind != "null" and hint is str:
            example = "; write one item a line, each after `- `"
        got = "an empty list" if isinstance(node, Listing) else shown(node)
        raise at.error(f"expected {expected}, got {got}{example}")
    return tuple(
        _read(hint, about, item, At(file=at.file, line=item.line, key=f"{at.key}[{index}]"))
        for index, item in enumerate(node.items)
    )


def read_mapping(node: Node, at: At) -> dict[str, str]:
    """A mapping of text to text; a number or a truth value stays as it was written."""
    if isinstance(node, Scalar) and node.kind == "null":
        return {}
    if not isinstance(node, Table):
        raise at.error(f"expected a mapping of text to text, got {shown(node)}")
    about = About(doc="")
    return {
        name: _read(str, about, value, at.inside(printable(name), value))
        for name, value in node.entries.items()
    }


def read_path(text: str, at: At) -> Path:
    """An absolute path: `~` is expanded, a relative path starts at the file's folder."""
    if not text or not text.isprintable():
        raise at.error(f"expected a path, got {quoted(text)}")
    if "$" in text:
        raise at.error(f"{quoted(text)}: variables are not expanded; write the path out")
    try:
        return Path(at.file).absolute().parent / Path(text).expanduser()
    except RuntimeError as error:
        raise at.error(f"{quoted(text)}: no home directory for that user") from error


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
    return {str: "text", Path: "a path"}.get(hint, "a mapping")


def _bounds(about: About) -> str:
    unit = f" {about.unit}" if about.unit else ""
    if about.least is not None and about.most is not None:
        return f" from {about.least:g} to {about.most:.15g}{unit}"
    return f" ≥ {about.least:g}{unit}" if about.least is not None else ""


def unknown(name: str, known: Iterable[str], at: At, what: str = "unknown key") -> UserError:
    """An error that lists what is valid and guesses what was meant."""
    return at.error(f"{what}; valid: {', '.join(sorted(known))}{did_you_mean(name, known)}")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    import difflib  # needed for errors only

    close = difflib.get_close_matches(word[:80], list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
