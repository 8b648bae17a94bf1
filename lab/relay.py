"""Delays frames between two TAP interfaces: relay.py MILLISECONDS NEAR FAR, in their network.

A process of the node where all cables end; standard library only.
"""

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

# From include/uapi/linux/if_tun.h. With a virtio header before each frame, checksums that a veth
# left out and segments that it left joined pass through as they are.
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
OFFLOADS = 0x01 | 0x02 | 0x04 | 0x08  # checksum, TSO4, TSO6, TSO_ECN
LARGEST = 65536 + 64
MAX_HELD = 20000  # frames of one direction; more are dropped, as in any full queue


def attach(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


class RelayDirection:
    """One direction; a frame leaves at its time of arrival plus the delay."""

    def __init__(self, source: int, sink: int, delay_s: float) -> None:
        self.source, self.sink, self.delay_s = source, sink, delay_s
        self.held: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        try:
            while True:
                frame = os.read(self.source, LARGEST)
                if len(self.held) < MAX_HELD:
                    self.held.append((time.monotonic() + self.delay_s, frame))
        except BlockingIOError:
            return

    def give(self) -> None:
        now = time.monotonic()
        while self.held and self.held[0][0] <= now:
            _, frame = self.held.popleft()
            try:
                os.write(self.sink, frame)
            except OSError:  # the interface is down, or does not take it: a lost frame
                continue


def main(delay_s: float, near: str, far: str) -> None:
    a, b = attach(near), attach(far)
    ways = {a: RelayDirection(a, b, delay_s), b: RelayDirection(b, a, delay_s)}
    while True:
        due = [way.held[0][0] for way in ways.values() if way.held]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select(list(ways), [], [], wait_s)
        for fd in ready:
            ways[fd].take()
        for way in ways.values():
            way.give()


main(float(sys.argv[1]) / 1000, sys.argv[2], sys.argv[3])
