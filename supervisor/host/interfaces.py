"""IPv4 addresses of this machine's network interfaces.

psutil is imported when it is first asked: 17 ms of processor time that most commands need not pay.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator


def address_of(interface: str) -> str | None:
    """Its first IPv4 address; None where it has none, or is not there."""
    return next((address for name, address in _addresses() if name == interface), None)


def interface_of(address: str) -> str | None:
    """The name of the interface that has this IPv4 address; None where none has."""
    if address.startswith("127."):
        return "lo"  # which answers to all of 127.0.0.0/8, and lists one of them
    return next((name for name, found in _addresses() if found == address), None)


def _addresses() -> Iterator[tuple[str, str]]:
    import psutil  # type: ignore[import-untyped]

    for label, found in psutil.net_if_addrs().items():
        for one in found:
            if one.family == socket.AF_INET:
                yield label.partition(":")[0], one.address  # eth0:1 is a label of eth0's second
