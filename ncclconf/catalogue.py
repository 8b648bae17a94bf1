"""The catalogue of variables: variables.tsv, a row each.

`evidence` says in which published libraries the name was found ("libnccl 2.18.1-2.32.3": in all of
those releases' nvidia-nccl wheels that lie between); it is empty where only documents or sources
were read, and such a row makes no lint fail. `since` and `until` are NCCL releases: the first that
reads the variable, and the first that no longer does.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

NOBODY = "none"  # the type of names that people write and nobody reads
_CLAUSE = re.compile(
    r"(?P<low>-?\d+)(?:\.\.(?P<high>-?\d+))?(?: (?:\(?[a-z%/]).*)?|(?P<least>>=?-?\d+)"
)

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One row. `name` may end with *: a family of names."""

    name: str
    owner: str  # nccl, torch, gloo, ofi, ucx, cuda
    type: str  # bool, int, bytes, enum, list, path, pattern, str; none: nobody reads it
    default: str
    valid: str
    since: Version | None
    until: Version | None
    kind: str  # correctness, performance, debug
    fabric: str  # any, ib, roce, tcp, nvlink, mnnvl
    evidence: str
    meaning: str

    @property
    def is_number(self) -> bool:
        """NCCL reads it as a whole number."""
        return self.owner == "nccl" and self.type in ("bool", "int", "bytes")

    def allowed(self) -> list[tuple[float, float]] | None:
        """The ranges of `valid`, where it is nothing but numbers."""
        ranges: list[tuple[float, float]] = []
        for clause in re.split(r",| or |(?<=0\.\.1) ", self.valid.replace("0/1", "0..1")):
            found = _CLAUSE.fullmatch(clause.strip(" ()"))
            if found is None:
                return None
            if least := found["least"]:
                ranges.append((float(least.lstrip(">=")) + ("=" not in least), float("inf")))
            else:
                ranges.append((int(found["low"]), int(found["high"] or found["low"])))
        return ranges

    def read_by(self, nccl: Version) -> bool:
        """Whether that release of NCCL reads it."""
        return (self.since is None or nccl >= self.since) and (
            self.until is None or nccl < self.until
        )

    def accepts(self, number: int) -> bool:
        """False where `valid` says plainly that the number is none of it."""
        ranges = self.allowed()
        return ranges is None or any(low <= number <= high for low, high in ranges)


def version(text: str) -> Version | None:
    """`2.28.3` as numbers; None for an empty text. Raises ValueError."""
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d+){1,3}", text):
        raise ValueError(f"{text!r} is no version, as 2.28.3 is")
    return tuple(map(int, text.split(".")))


def written(release: Version) -> str:
    return ".".join(map(str, release))


@cache
def catalogue() -> Mapping[str, Variable]:
    """By name."""
    text = resources.files(__package__).joinpath("variables.tsv").read_text()
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    found = {}
    for row in rows:
        row["kind"] = row.pop("class")
        since, until = version(row.pop("since")), version(row.pop("until"))
        found[row["name"]] = Variable(since=since, until=until, **row)
    return found


def lookup(name: str) -> Variable | None:
    """The variable of that name, or the family that it belongs to."""
    known = catalogue()
    if name in known:
        return known[name]
    families = (v for v in known.values() if "*" in v.name)
    return next((v for v in families if _in_family(name, v.name)), None)


def _in_family(name: str, family: str) -> bool:
    head, _, tail = family.partition("*")
    return name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail)


def closest(name: str) -> str:
    """The name that somebody may have meant, or an empty text."""
    real = [v.name for v in catalogue().values() if v.type != NOBODY and "*" not in v.name]
    found = difflib.get_close_matches(name[:80], real, n=1, cutoff=0.8)
    return found[0] if found else ""
