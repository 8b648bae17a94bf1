"""The sockets under the engine's end of the channel: a ROUTER with CURVE and an allow-list."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from supervisor.channel import wire
from supervisor.host.log import counted

logger = logging.getLogger(__name__)

# Of one connection. An agent sends a heartbeat a second and one report at a time; what it sends
# beyond this waits in its own machine's socket, so that no peer fills the engine's memory.
RECEIVED, SENT = 64, 1000  # messages
# Who has not shown a key by then loses the connection, and the engine has its descriptor back.
# Ten thousand agents that dial at once are let in within this.
HANDSHAKE_MS = 10_000
BACKLOG = 1024  # connections that wait for accept(2)


class Frames(NamedTuple):
    """A message as it came."""

    identity: bytes  # of the connection
    parts: Sequence[bytes | memoryview]
    address: str = ""  # the peer's, as the socket saw it; empty where that is not known


class Link(Protocol):
    """Carries messages from and to connections that name themselves."""

    async def receive(self) -> Frames: ...

    async def send(self, identity: bytes, data: bytes) -> None:
        """Raises ConnectionError where the connection has gone."""
        ...

    def close(self) -> None: ...


class CurveLink:
    """The link of production. Keys that are not on the list are turned away, and counted."""

    def __init__(self, server_public: bytes, server_secret: bytes, client_public: bytes) -> None:
        self._context = zmq.asyncio.Context()
        self._allowed = client_public
        self._guard = AsyncioAuthenticator(self._context)
        self._guard.start()
        self._guard.configure_curve_callback(domain="*", credentials_provider=self)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.curve_server = True
        self._socket.curve_publickey = server_public
        self._socket.curve_secretkey = server_secret
        self._socket.linger = 200
        self._socket.rcvhwm, self._socket.sndhwm = RECEIVED, SENT
        self._socket.handshake_ivl = HANDSHAKE_MS
        self._socket.backlog = BACKLOG
        self._socket.maxmsgsize = wire.MAX_MESSAGE
        self._socket.router_handover = True
        # Agents ping, and TCP finds hosts that vanished. No pings from here: libzmq 4.3.5 aborts
        # when it pings a connection whose peer has gone while RECEIVED messages of it still wait
        # (stream_engine_base.cpp: out_event asserts !_io_error; the timer calls it).
        self._socket.tcp_keepalive = 1
        self._socket.tcp_keepalive_idle, self._socket.tcp_keepalive_intvl = 10, 5
        self._socket.tcp_keepalive_cnt = 4
        self.refused_keys = 0

    def callback(self, domain: str, key: bytes) -> bool:
        """pyzmq's hook: may this client key come in?"""
        allowed = key == self._allowed or zmq.utils.z85.encode(key) == self._allowed
        if not allowed:
            self.refused_keys += 1
            text = "a client with a key that is not on the list was turned away"
            logger.warning(text, extra=counted(text))
        return allowed

    def bind(self, address: str, ports: tuple[int, int], preferred: int | None) -> str:
        """Listen, on the preferred port where it is free; returns the endpoint.

        Raises OSError where no port of the range is free.
        """
        first, last = ports
        size = last - first + 1
        begin = time.monotonic_ns() % size
        candidates = [first + (begin + i) % size for i in range(size)]
        for port in ([preferred] if preferred else []) + candidates:
            endpoint = f"tcp://{address}:{port}"
            try:
                self._socket.bind(endpoint)
            except zmq.ZMQError:
                continue
            return endpoint
        raise OSError(f"no free port in {first}-{last} on {address}")

    async def receive(self) -> Frames:
        first, *frames = await self._socket.recv_multipart(copy=False)
        address = _address(frames[0]) if frames else ""
        return Frames(first.bytes, [frame.buffer for frame in frames], address)

    async def send(self, identity: bytes, data: bytes) -> None:
        try:
            await self._socket.send_multipart([identity, data])
        except zmq.ZMQError as error:
            raise ConnectionError(str(error)) from error

    def close(self) -> None:
        self._socket.close()
        self._guard.stop()
        self._context.term()


def _address(frame: zmq.Frame) -> str:
    """The peer's address in numbers, which libzmq keeps with each message."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
