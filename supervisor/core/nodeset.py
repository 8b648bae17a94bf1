"""Slurm's host lists: `n[01-03,7],gpu-a[1-2]-ib[0-1]` to names and back.

The syntax is that of Slurm's "hostlist expressions" (slurm.conf(5), NodeName): comma-separated
names, each with any number of bracketed lists of numbers and ranges; a range is padded with zeros
to the width of its first number.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable

MAX_NAMES = 65_536  # Slurm's own limit of one range (MAX_RANGE in src/common/hostlist.c)

_ITEM = re.compile(r"(?:[^\[\],]|\[[^\[\]]*\])+")
_PART = re.compile(r"\[([^\[\]]*)\]|([A-Za-z0-9._-]+)")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_NUMBER = re.compile(r"([0-9]{1,18})")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def expand(text: str) -> tuple[str, ...]:
    """The names of a host list, in its order, each once.

    Raises ValueError, in one line, where the text is malformed or names more than MAX_NAMES.
    """
    names: dict[str, None] = {}
    at = 0
    while at < len(text):
        item = _ITEM.match(text, at)
        if item is None:
            raise ValueError(f"host list {text!r}: no name at character {at + 1}")
        names.update(dict.fromkeys(_expand_item(item[0], text)))
        if len(names) > MAX_NAMES:
            raise ValueError(f"host list {text!r}: more than {MAX_NAMES} names")
        at = item.end() + 1
        if at == len(text) or (at < len(text) and text[at - 1] != ","):
            raise ValueError(f"host list {text!r}: a name must follow character {at}")
    return tuple(names)


def _expand_item(item: str, text: str) -> list[str]:
    choices: list[list[str]] = []
    at, size = 0, 1
    while at < len(item):
        part = _PART.match(item, at)
        if part is None:
            raise ValueError(f"host list {text!r}: {item[at]!r} is not allowed in a node name")
        choices.append([part[2]] if part[1] is None else _numbers(part[1], text))
        size *= len(choices[-1])
        if size > MAX_NAMES:
            raise ValueError(f"host list {text!r}: more than {MAX_NAMES} names")
        at = part.end()
    return ["".join(parts) for parts in itertools.product(*choices)]


def _numbers(ranges: str, text: str) -> list[str]:
    found: list[str] = []
    for one in ranges.split(","):
        match = _RANGE.fullmatch(one)
        if match is None:
            raise ValueError(f"host list {text!r}: [{ranges}]: {one!r} is not a number or a range")
        low, high = match[1], match[2] or match[1]
        if int(high) < int(low) or len(high) < len(low):
            raise ValueError(f"host list {text!r}: [{ranges}]: the range {one!r} runs backwards")
        if int(high) - int(low) >= MAX_NAMES:
            raise ValueError(f"host list {text!r}: more than {MAX_NAMES} names")
        found += [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return found


def compress(names: Iterable[str]) -> str:
    """One host list that names the same nodes, sorted by name and number, each once.

    Raises ValueError where a name holds a character that a node name can't have.
    """
    rows: set[tuple[str, ...]] = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a node name (letters, digits, '.', '_' and '-')")
        rows.add(tuple(_NUMBER.split(name)))  # text, number, text, number, …, text
    folded: list[tuple[str, ...]] = []
    by_text: defaultdict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for row in rows:
        by_text[row[::2]].append(row)
    for text in sorted(by_text):
        alike = by_text[text]
        for place in range(len(alike[0]) - 2, 0, -2):  # the last number first
            alike = _fold(alike, place)
        folded += sorted(alike, key=_natural)
    return ",".join("".join(row) for row in folded)


def _fold(rows: list[tuple[str, ...]], place: int) -> list[tuple[str, ...]]:
    """Join rows that differ in one number only. All other parts are equal, so this is exact."""
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        groups[(*row[:place], "", *row[place + 1 :])].append(row[place])
    return [(*key[:place], _ranges(numbers), *key[place + 1 :]) for key, numbers in groups.items()]


def _ranges(numbers: list[str]) -> str:
    """`["08", "09", "10", "7"]` → `[7,08-10]`; a lone number stays bare."""
    if len(numbers) == 1:
        return numbers[0]
    padded = {len(number) for number in numbers if number[0] == "0" and len(number) > 1}
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number in numbers:
        if number[0] == "0" and len(number) > 1:
            groups[len(number)].append(int(number))
        else:  # 10 continues 08-09, and 9 continues nothing that is padded
            fits = max((width for width in padded if width <= len(number)), default=1)
            groups[fits].append(int(number))
    parts: list[str] = []
    for width in sorted(groups):
        values = sorted(groups[width])
        start = previous = values[0]
        for value in [*values[1:], None]:
            if value != previous + 1:
                low, high = str(start).zfill(width), str(previous).zfill(width)
                parts.append(low if low == high else f"{low}-{high}")
                start = value or 0
            previous = value or 0
    return f"[{','.join(parts)}]"


def _natural(row: tuple[str, ...]) -> list[tuple[int, str]]:
    keys: list[tuple[int, str]] = []
    for part in row:
        number = _NUMBER.search(part)
        keys.append((int(number[1]) if number else 0, part))
    return keys
