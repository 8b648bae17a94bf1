"""Signatures of faults: what logs and kernels say when a job breaks, as data with its own examples.

Each `*.yaml` beside this file but `causes.yaml` is a list of signatures; `causes.yaml` says of
every cause whose business it is and what to do. A signature:

    - id: cuda-out-of-memory        # its own, in all files
      cause: cuda-out-of-memory     # a key of causes.yaml
      role: cause                   # cause | symptom | cascade
      blames: nobody                # nobody | rank | node | gpu | link | storage
      text: [CUDA out of memory]    # any of these, as written; or `pattern`, with `needles`
      source: whose wording it is, in words or as an address
      match: [lines that it finds]
      differs: [lines that it leaves alone]

`pattern` is a regular expression of `re`, searched for in a line from which labels (`12: `,
`[rank3]:`) were taken; its groups `node`, `rank`, `peer` and `path` say where. One of `needles`
stands in every line that it finds, and holds no digit: lines are looked through for needles with
their digits removed. `general: true` is for wordings of anything (`ValueError:`), which count only
where a line holds nothing more particular. `log: kernel` holds it against the kernel's lines alone,
from their beginning: everybody can print a kernel's words. `log: xid` is held against what the
table of Xids (healthchecks/sources/xid.py) says of a line: `reset the GPU: Xid 95: its meaning`;
`log: recorder` against what superv reads in torch's flight recorder.

Only the standard library and the YAML reader are used here.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, TypeVar

CAUSES = "causes.yaml"
UNKNOWN = "unknown"  # the cause where nothing is recognised
_Word = TypeVar("_Word", bound=StrEnum)
_DIGITS = str.maketrans("", "", "0123456789")


class Role(StrEnum):
    """What a line is in the story of a failure."""

    CAUSE = "cause"  # says what went wrong
    SYMPTOM = "symptom"  # something is wrong, and a cause may explain it
    CASCADE = "cascade"  # others failed first; never says who


class Blames(StrEnum):
    """Whom a signature may name. It never has to: circumstances decide."""

    NOBODY = "nobody"
    RANK = "rank"
    NODE = "node"
    GPU = "gpu"
    LINK = "link"
    STORAGE = "storage"


class CauseClass(StrEnum):
    """Whose business a cause is."""

    INFRASTRUCTURE = "infrastructure"
    SOFTWARE = "software"
    USER = "user"
    UNKNOWN = "unknown"


class LogKind(StrEnum):
    """Which lines a signature is held against."""

    JOB = "job"
    KERNEL = "kernel"
    RECORDER = "recorder"  # where a rank stands, by torch's flight recorder
    XID = "xid"  # what the table of Xids says of one: `reset the GPU: Xid 95: its meaning`


class SignatureError(ValueError):
    """A signature that can't be used: file, signature, what is wrong, what is valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseInfo:
    """A cause of failures: whose business it is, and what to do."""

    name: str
    kind: CauseClass
    short: str
    do: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One wording of one fault."""

    id: str
    cause: CauseInfo
    role: Role
    blames: Blames
    needles: tuple[str, ...]
    pattern: re.Pattern[str]
    source: str
    log: LogKind
    general: bool  # counts only where a line holds nothing more particular
    match: tuple[str, ...]
    differs: tuple[str, ...]
    file: str

    def find(self, message: str) -> re.Match[str] | None:
        """Where the message says it: anywhere, or for the kernel's at its beginning."""
        return (
            self.pattern.match(message)
            if self.log is LogKind.KERNEL
            else self.pattern.search(message)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """All signatures and causes, compiled."""

    causes: Mapping[str, CauseInfo]
    all: tuple[Signature, ...]
    by_needle: Mapping[str, tuple[Signature, ...]]

    def candidates(self, undigited: str) -> tuple[Signature, ...]:
        """Those that could be found in a line whose digits were removed: a superset."""
        found: dict[str, Signature] = {}
        for needle, signatures in self.by_needle.items():
            if needle in undigited:
                found.update((one.id, one) for one in signatures)
        return tuple(found.values())

    def find(
        self, message: str, log: LogKind = LogKind.JOB
    ) -> tuple[Signature, re.Match[str]] | tuple[None, None]:
        """The most telling signature in a message: particular ones before general ones, then
        causes before symptoms before cascades."""
        return first(self.candidates(message.translate(_DIGITS)), message, log)


_ORDER = {Role.CAUSE: 0, Role.SYMPTOM: 1, Role.CASCADE: 2}


def first(
    candidates: Iterable[Signature], message: str, log: LogKind
) -> tuple[Signature, re.Match[str]] | tuple[None, None]:
    """Of candidates, the most telling that the message holds; of equals the one written first."""
    for one in sorted(candidates, key=lambda one: (one.general, _ORDER[one.role])):
        if one.log is log and (match := one.find(message)):
            return one, match
    return None, None


@cache
def load() -> Signatures:
    """The signatures that come with superv. Raises SignatureError."""
    folder = resources.files(__name__)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return parse({name: _text(name) for name in names})


def _text(name: str) -> str:
    data = pkgutil.get_data(__name__, name)
    return (data or b"").decode()


def parse(files: Mapping[str, str]) -> Signatures:
    """Read the files' texts, by name. Raises SignatureError."""
    causes = _causes(_read(CAUSES, files.get(CAUSES, "")))
    found: dict[str, Signature] = {}
    for name, text in files.items():
        if name == CAUSES:
            continue
        rows = _read(name, text)
        if not isinstance(rows, list):
            raise SignatureError(f"{name}: a list of signatures is wanted")
        for number, row in enumerate(rows, 1):
            one = _signature(name, number, row, causes)
            if one.id in found:
                raise SignatureError(f"{name}: {one.id}: {found[one.id].file} has that id, too")
            found[one.id] = one
    by_needle: dict[str, list[Signature]] = {}
    for one in found.values():
        for needle in one.needles:
            by_needle.setdefault(needle, []).append(one)
    return Signatures(
        causes=causes,
        all=tuple(found.values()),
        by_needle={needle: tuple(ones) for needle, ones in by_needle.items()},
    )


def _read(name: str, text: str) -> Any:
    import yaml  # the rest of a command does without it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 (a safe one)
    except yaml.YAMLError as error:
        raise SignatureError(f"{name}: {' '.join(str(error).split())}") from error


def _causes(rows: Any) -> dict[str, CauseInfo]:
    if not isinstance(rows, dict):
        raise SignatureError(f"{CAUSES}: a map of causes is wanted")
    made = {}
    for name, row in rows.items():
        where = f"{CAUSES}: {name}"
        fields = _fields(where, row, required={"class", "short", "do"}, optional=set())
        made[str(name)] = CauseInfo(
            name=str(name),
            kind=_word(where, "class", fields["class"], CauseClass),
            short=fields["short"],
            do=fields["do"],
        )
    if UNKNOWN not in made:
        raise SignatureError(f"{CAUSES}: there has to be a cause {UNKNOWN}")
    return made


_REQUIRED = {"id", "cause", "role", "blames", "source", "match", "differs"}
_OPTIONAL = {"text", "pattern", "needles", "log", "general"}


def _signature(name: str, number: int, row: Any, causes: Mapping[str, CauseInfo]) -> Signature:
    at = row.get("id", f"number {number}") if isinstance(row, dict) else f"number {number}"
    where = f"{name}: {at}"
    fields = _fields(where, row, required=_REQUIRED, optional=_OPTIONAL)
    if fields["cause"] not in causes:
        raise SignatureError(f"{where}: cause {fields['cause']!r} is not in {CAUSES}")
    if ("text" in fields) == ("pattern" in fields):
        raise SignatureError(f"{where}: give text or pattern, one of them")
    if "text" in fields:
        texts = _texts(where, "text", fields["text"])
        pattern = "|".join(re.escape(text) for text in texts)
        needles = tuple(max(re.split(r"\d+", text), key=len) for text in texts)
    else:
        pattern = fields["pattern"]
        needles = _texts(where, "needles", fields.get("needles", ()))
    if bad := [n for n in needles if len(n) < 3 or re.search(r"\d", n)] or not needles:
        raise SignatureError(f"{where}: needles {bad}: each has 3 characters or more, and no digit")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SignatureError(f"{where}: pattern: {error}") from error
    return Signature(
        id=str(fields["id"]),
        cause=causes[fields["cause"]],
        role=_word(where, "role", fields["role"], Role),
        blames=_word(where, "blames", fields["blames"], Blames),
        needles=needles,
        pattern=compiled,
        source=str(fields["source"]),
        log=_word(where, "log", fields.get("log", "job"), LogKind),
        general=fields.get("general", False) is True,
        match=_texts(where, "match", fields["match"]),
        differs=_texts(where, "differs", fields["differs"]),
        file=name,
    )


def _fields(where: str, row: Any, *, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise SignatureError(f"{where}: a map is wanted")
    if strange := set(row) - required - optional:
        valid = ", ".join(sorted(required | optional))
        raise SignatureError(
            f"{where}: {', '.join(map(str, strange))}: no such key; valid: {valid}"
        )
    if lacking := required - set(row):
        raise SignatureError(f"{where}: lacks {', '.join(sorted(lacking))}")
    return row


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts:
        raise SignatureError(f"{where}: {key}: a text, or a list of them, is wanted")
    if strange := [text for text in texts if not isinstance(text, str) or not text]:
        raise SignatureError(f"{where}: {key}: {strange[0]!r} is no text: put it in quotes")
    return tuple(texts)


def _word(where: str, key: str, value: Any, words: type[_Word]) -> _Word:
    try:
        return words(value)
    except ValueError:
        valid = ", ".join(words)
        raise SignatureError(f"{where}: {key}: {value!r} is none of {valid}") from None
