"""Lines that only one node printed: shown beside a verdict, and never a reason to blame.

Templates are lines without digits and hexadecimal words. Of every file only the last lines are
compared, so that it costs the same however large the logs are. Comparing a node's lines with its
peers' is what L4 (FSE'25) found engineers do; rank 0's node says much that others don't.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

LINES = 4000  # of a file, from its end
MAX_TEMPLATES = 100_000
FEWEST = 3  # places that are needed to tell an odd one
TALKATIVE = 200  # so many lines of its own, and a place just has another part to play
SHOWN = 5
_VARIES = re.compile(r"\b(?=\w*\d)[0-9a-fA-F]{6,}\b|0x[0-9a-fA-F]+|[\d.,:]*\d[\d.,:]*(?:e[-+]\d+)?")
_TROUBLE = re.compile(
    r"(?i)err|warn|fail|timeout|timed out|slow|retr|refus|unreach|lost|miss|except|abort|kill|drop"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneLine:
    """A line whose like no other place printed."""

    place: str
    source: str
    line: int
    text: str
    count: int


@dataclass(slots=True)
class _PrintedLine:
    rank: int | None
    node: str
    source: str
    line: int
    text: str
    count: int = 1


class Templates:
    """What the last lines of every file look like, by who printed them."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[tuple[int | None, str], _PrintedLine]] = {}
        self._places: set[tuple[int | None, str]] = set()

    def add(self, rank: int | None, node: str, source: str, line: int, text: str) -> None:
        """Take in one line, without its labels."""
        key = (rank, node)
        self._places.add(key)
        template = _VARIES.sub("#", text)[:300]
        if len(template) < 8 or (len(self._seen) >= MAX_TEMPLATES and template not in self._seen):
            return
        by_place = self._seen.setdefault(template, {})
        if (old := by_place.get(key)) is not None:
            old.count += 1
        else:
            by_place[key] = _PrintedLine(rank, node, source, line, text[:300])

    def alone(self, node_of: Callable[[int], str]) -> tuple[AloneLine, ...]:
        """Lines of one place only: a node, or a rank where nodes are not known."""

        def place(rank: int | None, node: str) -> str:
            return node or (node_of(rank) or f"rank {rank}" if rank is not None else "")

        places = {place(*key) for key in self._places} - {""}
        if len(places) < FEWEST:
            return ()
        first = place(0, "")
        found: dict[str, list[AloneLine]] = {}
        for by_place in self._seen.values():
            who = {place(*key) for key in by_place}
            if len(who) != 1 or (name := who.pop()) in ("", first, "rank 0"):
                continue
            seen = next(iter(by_place.values()))
            count = sum(one.count for one in by_place.values())
            found.setdefault(name, []).append(
                AloneLine(
                    place=name, source=seen.source, line=seen.line, text=seen.text, count=count
                )
            )
        lines = [line for ones in found.values() if len(ones) <= TALKATIVE for line in ones]
        lines.sort(key=lambda one: (not _TROUBLE.search(one.text), len(found[one.place])))
        return tuple(lines[:SHOWN])
