"""How a report travels from a node through a pipe that others write to as well.

srun cuts the lines of its tasks at about 1 KiB and mixes the pieces of different nodes, and a shell
on a node may print whatever it likes. So a report goes as short lines, each with a nonce of
this order, the node's name, and its place: `NONCE NODE 2/5 TEXT`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

WIDTH = 800  # of a piece; slurmstepd sends lines of up to 1024 bytes whole (MAX_MSG_LEN)


def pieces(nonce: str, node: str, text: str) -> Iterator[str]:
    """`text` is ASCII on one line. A text that is empty says only that the node has begun."""
    count = -(-len(text) // WIDTH)
    for index in range(count):
        yield f"{nonce} {node} {index + 1}/{count} {text[index * WIDTH : (index + 1) * WIDTH]}"
    if not count:
        yield f"{nonce} {node} 0/0 "


@dataclass(slots=True, kw_only=True)
class Collector:
    """Puts lines together again, in whatever order they come."""

    nonce: str
    began: set[str] = field(default_factory=set)  # nodes that have said something
    said: list[str] = field(default_factory=list)  # lines of others
    _parts: dict[str, dict[int, str]] = field(default_factory=dict)
    _rest: bytes = b""

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Whole texts that came with these bytes: (node, text)."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = (self._line(line.decode(errors="replace")) for line in lines)
        return [text for text in found if text is not None]

    def _line(self, line: str) -> tuple[str, str] | None:
        nonce, _, rest = line.partition(" ")
        node, _, rest = rest.partition(" ")
        place, _, text = rest.partition(" ")
        index, slash, count = place.partition("/")
        if nonce != self.nonce or not (slash and index.isdigit() and count.isdigit()):
            self.said += [line] if line.strip() else []
            return None
        self.began.add(node)
        parts = self._parts.setdefault(node, {})
        if int(index):
            parts[int(index)] = text
        if not int(count) or len(parts) < int(count):
            return None
        del self._parts[node]
        return node, "".join(parts[i] for i in sorted(parts))
