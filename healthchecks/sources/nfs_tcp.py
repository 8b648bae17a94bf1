"""Whether an NFS server accepts connections: one over TCP, made and closed."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from healthchecks.frame.context import Ctx
from healthchecks.sources.elapsed import Elapsed


def can_connect(ctx: Ctx, host: str) -> bool:
    """A tree of files has no network of its own; loopback is this machine's in any case."""
    return ctx.live or host.startswith("127.")


def resolved(host: str) -> str | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return host
    with suppress(OSError):
        # as bytes: text would load the encoding "idna" now
        found = socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM)
        return str(found[0][4][0])
    return None


def tcp_connect(address: str, port: int, timeout_s: float) -> tuple[float, int]:
    """Connect and hang up: seconds taken and errno, 0 where it was accepted."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    elapsed = Elapsed()
    error = 0
    with socket.socket(family, socket.SOCK_STREAM) as caller:
        caller.settimeout(timeout_s)
        try:
            caller.connect((address, port))
        except TimeoutError:
            error = errno.ETIMEDOUT
        except OSError as why:
            error = why.errno or errno.EIO
    return elapsed.s(), error


def tcp_segment(address: str, port: int, timeout_s: float) -> int | None:
    """The largest segment that TCP sends to a server, in bytes (TCP_MAXSEG of tcp(7)): no more than
    the server itself said that it takes. None where it takes no connection."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as caller:
        caller.settimeout(timeout_s)
        try:
            caller.connect((address, port))
            return caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        except OSError:
            return None


def refusal(error: int, timeout_s: float) -> str:
    if error == errno.ECONNREFUSED:
        return "the server is up, but nothing listens there (connection refused)"
    if error == errno.ETIMEDOUT:
        return f"no answer within {timeout_s:g} s"
    return f"not reached: {os.strerror(error)}"
