"""Which agent it is that speaks: each has a key of its own, beside the run's keys.

All agents of a run hold the same CURVE key, which the engine delivers: it lets them in, and no
more. An agent's own key are 256 random bits that it makes in its private folder on the node, so
that an agent which is started there again is the same one. It travels in the connection's routing
id: inside CURVE's encryption, with every message, and only to who holds the engine's secret key.
Engines and agents of versions before this one take the routing id for a name, as they always did.

What is journaled and logged is a hash of it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import NamedTuple

from supervisor.host import private

FILE = "agent.key"
_BYTES = 32
_DIGITS = set("0123456789abcdef")


class Speaker(NamedTuple):
    """Who a routing id belongs to."""

    agent: str  # this life of the agent, as it says in its messages
    key: str  # a hash of its own key; empty: an agent of a version that had none


def own_key(node_dir: Path) -> str:
    """The key of this node's agent, made where there is none or it is not to be trusted.

    Raises OSError where it can't be kept.
    """
    path = node_dir / FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = -1
    if fd >= 0:
        try:
            info = os.fstat(fd)
            closed = stat.S_ISREG(info.st_mode) and not info.st_mode & 0o077
            text = os.read(fd, 2 * _BYTES + 1).decode("ascii", "replace")
            if closed and info.st_uid == os.getuid() and _is_key(text):
                return text
        finally:
            os.close(fd)
    made = new_key()
    private.write(path, made.encode())
    return made


def new_key() -> str:
    return secrets.token_hex(_BYTES)


def routing_id(agent: str, key: str) -> bytes:
    """What an agent with a key of its own calls its connection (at most 255 bytes)."""
    return f"{agent}.{key}".encode()


def speaker(identity: bytes) -> Speaker:
    """Who speaks on the connection of that name. Whatever bytes it is: never raises."""
    agent, dot, key = identity.decode("ascii", "replace").rpartition(".")
    if dot and _is_key(key):
        return Speaker(agent, hashlib.sha256(key.encode()).hexdigest()[:32])
    return Speaker(identity.decode("ascii", "replace"), "")


def _is_key(text: str) -> bool:
    return len(text) == 2 * _BYTES and set(text) <= _DIGITS
