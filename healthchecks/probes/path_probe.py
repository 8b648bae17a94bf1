"""How large a packet may be on its way to a peer: ICMP echoes that must not be fragmented.

Whole packets are sent without regard to what the kernel believes of the path (IP_PMTUDISC_PROBE of
ip(7)); a router that can't pass one may say so, with its own MTU (RFC 1191), and is named then. One
that says nothing is a black hole; sizes are then searched, many at a time.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from healthchecks.frame.check import Unknown
from supervisor.host.interfaces import interface_of

SMALL = 576  # every IPv4 host takes that much (RFC 791)
LARGEST = 65535
_HEADERS = 28  # IPv4 and ICMP
# linux/in.h; the socket module lacks them
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE, _IP_RECVERR = 10, 3, 11
_ICMP_ECHO, _ICMP_ECHOREPLY = 8, 0
_EXTENDED = struct.Struct(
    "=IBBBBII"
)  # sock_extended_err: errno, origin, type, code, pad, info, data
_FROM_ICMP = 2
_TRIES = 3
_AT_ONCE = 16
_SHORTEST_S = 0.05  # of a round; a busy peer may take that long


class Silent(Exception):
    """A peer that does not answer even a small echo; the text says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How this machine sends to a peer."""

    peer: str  # IPv4 address
    source: str
    interface: str
    mtu: int  # of the interface, in bytes


@dataclass(slots=True, kw_only=True)
class MeasuredPath:
    """What was found. Sizes are of whole IPv4 packets, in bytes."""

    passes: int  # the largest that came through
    rtt_s: float = 0.0  # of a small one
    hops: dict[str, int] = field(default_factory=dict)  # routers that refused, and their MTU


def route(peer: str) -> Route:
    """Raises Unknown for a name without IPv4 address, a peer without route."""
    try:
        address = socket.getaddrinfo(peer, 0, socket.AF_INET, socket.SOCK_DGRAM)[0][4][0]
    except OSError as error:
        raise Unknown(f"{peer} has no IPv4 address: {error.strerror}") from None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, 9))
        except OSError as error:
            raise Unknown(f"no route to {address}: {error.strerror}") from None
        source = str(sock.getsockname()[0])
    name = interface_of(source)
    if name is None:
        raise Unknown(f"no interface has the address {source}, which packets to {address} have")
    # psutil would ask every interface's driver for its speed as well, and one of them may hang
    mtu = int(Path(f"/sys/class/net/{name}/mtu").read_text())
    return Route(peer=str(address), source=source, interface=name, mtu=mtu)


def walk(to: Route, timeout_s: float) -> MeasuredPath:
    """The largest packet that reaches the peer and is answered. `timeout_s` is for one round.

    Raises Silent where not even a small one is answered, Unknown where no socket can be had.
    """
    with _Echoes(to) as echoes:
        began = time.monotonic()
        if not any(echoes.answered([SMALL], timeout_s) for _ in range(_TRIES)):
            raise Silent(f"{to.peer} answers no ICMP echo of {SMALL} bytes: blocked, or away")
        path = MeasuredPath(passes=SMALL, rtt_s=time.monotonic() - began)
        timeout_s = min(timeout_s, max(_SHORTEST_S, 20 * path.rtt_s))
        most = min(to.mtu, LARGEST)
        for _ in range(_TRIES):
            if echoes.answered([most], timeout_s):
                path.passes = most
                return path
            if echoes.refused:
                break
        fails = most
        while fails - path.passes > 1:
            sizes = _between(path.passes, fails, echoes.refused.values())
            reached = {size for _ in range(_TRIES) for size in echoes.answered(sizes, timeout_s)}
            path.passes = max([path.passes, *reached])
            fails = min([fails, *(s for s in sizes if s > path.passes)])
        path.hops = dict(echoes.refused)
        return path


def _between(low: int, high: int, said: Iterable[int]) -> list[int]:
    """Sizes within (low, high): spread, and around the MTUs that routers named."""
    step = max(1, (high - low) // (_AT_ONCE + 1))
    near = [size for mtu in said for size in (mtu, mtu + 1)]
    return sorted({s for s in (*range(low + step, high, step), *near) if low < s < high})


class _Echoes:
    """A socket of echoes to one peer."""

    def __init__(self, to: Route) -> None:
        self._number = 0
        self._id = os.getpid() & 0xFFFF
        self.refused: dict[str, int] = {}  # by router: its MTU
        self._sock, self._raw = _icmp_socket()
        self._sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self._sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        self._sock.setblocking(False)
        self._sock.connect((to.peer, 0))

    def __enter__(self) -> _Echoes:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def answered(self, sizes: Iterable[int], timeout_s: float) -> set[int]:
        """Send a packet of each size; those that are answered. Returns as soon as all are, or as
        soon as a router refused where only one was sent."""
        waiting: dict[int, int] = {}
        for size in sizes:
            self._number = (self._number + 1) & 0xFFFF
            if self._send(size):
                waiting[self._number] = size
        sent = set(waiting.values())
        answers: set[int] = set()
        end = time.monotonic() + timeout_s
        while answers != sent and (left := end - time.monotonic()) > 0:
            if len(sent) == 1 and self.refused:
                break
            poll = select.poll()
            poll.register(self._sock, select.POLLIN | select.POLLERR)
            for _, event in poll.poll(left * 1000):
                if event & select.POLLERR:
                    self._errors()
                if event & select.POLLIN:
                    answers |= {waiting[n] for n in self._replies() if n in waiting}
        return answers

    def _send(self, size: int) -> bool:
        """False where this machine itself won't send it."""
        data = bytes(size - _HEADERS)
        head = struct.pack("!BBHHH", _ICMP_ECHO, 0, 0, self._id, self._number)
        packet = head[:2] + struct.pack("!H", _checksum(head + data)) + head[4:] + data
        for _ in range(2):
            try:
                self._sock.send(packet)
                return True
            except OSError:  # an error of an earlier packet is delivered here once
                self._errors()
        return False

    def _replies(self) -> list[int]:
        found: list[int] = []
        while True:
            try:
                packet = self._sock.recv(LARGEST)
            except BlockingIOError:
                return found
            except OSError:
                self._errors()
                return found
            at = (packet[0] & 0xF) * 4 if self._raw and packet else 0
            if len(packet) < at + 8:
                continue
            kind, _, _, number_id, number = struct.unpack_from("!BBHHH", packet, at)
            if kind == _ICMP_ECHOREPLY and (not self._raw or number_id == self._id):
                found.append(number)

    def _errors(self) -> None:
        """Read what routers said: "fragmentation needed" carries the MTU of the next hop."""
        while True:
            try:
                _, notes, _, _ = self._sock.recvmsg(64, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, data in notes:
                if (level, kind) != (socket.IPPROTO_IP, _IP_RECVERR) or len(data) < 24:
                    continue
                _, origin, what, code, _, mtu, _ = _EXTENDED.unpack_from(data)
                if (origin, what, code) == (_FROM_ICMP, 3, 4):
                    self.refused[socket.inet_ntoa(data[20:24])] = mtu


def _icmp_socket() -> tuple[socket.socket, bool]:
    """A socket for echoes, and whether it is a raw one. Raises Unknown where neither is allowed."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            return socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP), kind == socket.SOCK_RAW
        except PermissionError:
            continue
    raise Unknown(
        "may not send ICMP echoes: needs root, CAP_NET_RAW, or net.ipv4.ping_group_range to hold "
        "this user's group"
    )


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
