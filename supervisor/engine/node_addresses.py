"""Which nodes an address belongs to, as this machine resolves their names.

Looked up by a thread that nobody waits for: a name server may be slow or away, and then nothing
is known, which is no evidence against anybody.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Collection

AGAIN_S = 60.0  # an answer this old is asked for again when somebody minds it


def resolve(node: str) -> frozenset[str]:
    """All addresses of a name; none where it has none, or nobody answers."""
    with contextlib.suppress(OSError, UnicodeError):
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(node, None))
    return frozenset()


def in_a_thread(work: Callable[[], None]) -> None:
    """Raises RuntimeError where no thread can be made."""
    threading.Thread(target=work, daemon=True).start()


class NodeAddresses:
    """What is known of the addresses of nodes; asks for those that it does not know."""

    def __init__(
        self,
        lookup: Callable[[str], frozenset[str]] = resolve,
        *,
        clock: Callable[[], float] = time.monotonic,
        beside: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._lookup, self._clock, self._beside = lookup, clock, beside
        self._known: dict[str, tuple[float, frozenset[str]]] = {}
        self._owners: dict[str, set[str]] = {}  # by address
        self._asking: set[str] = set()

    def of(self, node: str) -> frozenset[str]:
        return self._known.get(node, (0.0, frozenset[str]()))[1]

    def owners(self, address: str) -> frozenset[str]:
        """The nodes that are known to have the address."""
        return frozenset(self._owners.get(address, ()))

    def asked(self, node: str) -> bool:
        return node in self._known or node in self._asking

    def learn(self, nodes: Collection[str]) -> None:
        """Ask for the nodes whose addresses are not known, or were asked for long ago."""
        now = self._clock()
        wanted = [
            node
            for node in nodes
            if node not in self._asking
            and (node not in self._known or now - self._known[node][0] > AGAIN_S)
        ]
        if not wanted:
            return
        self._asking.update(wanted)
        try:
            self._beside(lambda: self._ask(wanted))
        except RuntimeError:  # no thread can be made now
            self._asking.difference_update(wanted)

    def _ask(self, nodes: Collection[str]) -> None:
        for node in nodes:
            found = self._lookup(node)
            for address in self.of(node) - found:
                self._owners[address].discard(node)
            for address in found:
                self._owners.setdefault(address, set()).add(node)
            self._known[node] = self._clock(), found
            self._asking.discard(node)
