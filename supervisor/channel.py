"""The engine's side of the channel to its agents: a ROUTER with CURVE and an allow-list."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from supervisor import wire
from supervisor.core.actions import Order


@dataclass(slots=True)
class Peer:
    """An agent that said hello to this engine."""

    node: str
    identity: bytes
    agent: str
    last_seq: int = 0  # of its reports; an older one was taken before


class Channel:
    """Messages from agents, checked; orders to them, by node.

    What can't be read has no effect. It is counted, and so are keys that are not on the list; the
    1st, 2nd, 4th, 8th … of each is noted, so that nobody fills the log.
    """

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
        self._socket.sndhwm = self._socket.rcvhwm = 10_000
        self._socket.maxmsgsize = wire.MAX_MESSAGE
        self._socket.router_handover = True
        self._socket.heartbeat_ivl = 2000
        self._socket.heartbeat_timeout = 10_000
        self._peers: dict[str, Peer] = {}  # by node
        self._by_identity: dict[bytes, Peer] = {}
        self.epoch = 0
        self.garbage = 0
        self.refused_keys = 0
        self.note: Callable[[str], None] = lambda text: None

    def callback(self, domain: str, key: bytes) -> bool:
        """pyzmq's hook: may this client key come in?"""
        allowed = key == self._allowed or zmq.utils.z85.encode(key) == self._allowed
        if not allowed:
            self.refused_keys += 1
            self._note_some(
                self.refused_keys, "a client with a key that is not on the list was turned away"
            )
        return allowed

    def _note_some(self, count: int, text: str) -> None:
        if count & (count - 1) == 0:
            self.note(f"{text} ({count} so far)" if count > 1 else text)

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

    async def receive(self) -> tuple[bytes, wire.ToEngine]:
        """The next message that can be read."""
        while True:
            identity, *frames = await self._socket.recv_multipart()
            try:
                if len(frames) != 1:
                    raise wire.WireError(f"{len(frames)} frames")
                return identity, wire.unpack_for_engine(frames[0])
            except wire.WireError as error:
                self.garbage += 1
                why = str(error)[:200]
                self._note_some(self.garbage, f"message from {identity[:24]!r} dropped: {why}")
                if why.startswith("speaks wire version"):
                    await self.answer(identity, wire.Refused(why=f"the agent {why}"))

    async def answer(self, identity: bytes, message: wire.ToAgent) -> None:
        try:
            await self._socket.send_multipart([identity, wire.pack(message)])
        except zmq.ZMQError as error:  # gone meanwhile: it will say hello again
            self.note(f"answer to {identity[:24]!r} not sent: {error}")

    def admit(self, identity: bytes, hello: wire.Hello) -> Peer:
        """Take the agent as its node's; an older agent of the node is forgotten."""
        old = self._peers.get(hello.node)
        if old is not None and old.identity != identity:
            self._by_identity.pop(old.identity, None)
        if old is not None and old.agent == hello.agent:
            peer = old
        else:
            peer = Peer(node=hello.node, identity=identity, agent=hello.agent)
        self._peers[hello.node] = self._by_identity[identity] = peer
        return peer

    def peer(self, identity: bytes) -> Peer | None:
        return self._by_identity.get(identity)

    async def order(self, order: Order) -> bool:
        """Send an order; False where the node's agent is not known to this engine."""
        return await self.send(order.node, wire.Do(epoch=self.epoch, action=wire.plain(order)))

    async def send(self, node: str, message: wire.ToAgent) -> bool:
        peer = self._peers.get(node)
        if peer is None:
            return False
        await self.answer(peer.identity, message)
        return True

    def close(self) -> None:
        self._socket.close()
        self._guard.stop()
        self._context.term()
