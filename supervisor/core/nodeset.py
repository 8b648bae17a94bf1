"""Slurm's host lists: `n[01-03,7],gpu-a[1-2]-ib[0-1]` to names and back.

The syntax is that of Slurm's "hostlist expressions" (slurm.conf(5), NodeName): comma-separated
names, each with any number of bracketed lists of numbers and ranges; a range is padded with zeros
to the width of its first number.

Why not ClusterShell's NodeSet (1.10.1, tried in November 2026): it takes more than Slurm writes.
`!&^@` are operators and `@all` reads the machine's groups, `(null)` and `a b` pass for nodes,
`n[0-2999999]` takes 12 s and 450 MiB, its import five times ours; it folds `ip-10-0-[1-2]-5` as
well, and nothing outside the standard library may be imported here. To guard all that takes more
than what is below.
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
_LAST_NUMBER = re.compile(r"[0-9]{1,18}\Z")
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


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts n2 before n10."""
    parts = re.split(r"([0-9]+)", name)  # text, number, text, …
    return [(int(p), "") if place % 2 else (-1, p) for place, p in enumerate(parts)]


def compress(names: Iterable[str]) -> str:
    """One host list that names the same nodes, sorted by name and number, each once.

    Only the number that a name ends with is folded: slurmctld up to 23.02 refuses text after a
    bracket (seen on 22.05: `sinfo --nodes`, `sbatch --exclude`).
    Raises ValueError where a name holds a character that a node name can't have.
    """
    numbered: defaultdict[str, list[str]] = defaultdict(list)
    lists: list[tuple[str, str]] = []
    for name in set(names):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a node name (letters, digits, '.', '_' and '-')")
        number = _LAST_NUMBER.search(name)
        if number is None:
            lists.append((name, ""))
        else:
            numbered[name[: number.start()]].append(number[0])
    lists += [(text, _ranges(numbers)) for text, numbers in numbered.items()]
    lists.sort(key=lambda one: (natural_sort_key(one[0]), one[1]))
    return ",".join(text + numbers for text, numbers in lists)


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
