"""The engine's side of the channel to its agents: who is whose, and what they say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from supervisor.channel import wire
from supervisor.channel.identity import Speaker, speaker
from supervisor.channel.link import Link
from supervisor.core.actions import AgentCommand
from supervisor.host.log import counted

logger = logging.getLogger(__name__)

BURST = 16  # messages that are taken without a pause for others


class Received(NamedTuple):
    """A message that could be read, and where it came from."""

    identity: bytes  # of the connection
    message: wire.ToEngine
    address: str = ""  # the peer's, as the socket saw it; empty where that is not known

    @property
    def speaker(self) -> Speaker:
        return speaker(self.identity)


@dataclass(slots=True)
class Peer:
    """An agent that said hello to this engine."""

    node: str
    identity: bytes
    agent: str
    key: str  # a hash of the agent's own key; empty: of a version that had none
    last_seq: int = 0  # of its reports; an older one was taken before
    heard: float = 0.0  # when its last message came, by the engine's clock


class Channel:
    """Messages from agents, checked; orders to them, by node.

    What can't be read has no effect. It is counted, and so are keys that are not on the list; the
    1st, 2nd, 4th, 8th … of each is logged, so that nobody fills the log.
    """

    def __init__(self, link: Link, clock: Callable[[], float]) -> None:
        self._link, self._clock = link, clock
        self._peers: dict[str, Peer] = {}  # by node
        self._by_identity: dict[bytes, Peer] = {}
        self.epoch = 0
        self.garbage = 0
        self._taken = 0

    async def receive(self) -> Received:
        """The next message that can be read."""
        while True:
            self._taken += 1
            if not self._taken % BURST:  # a flood leaves the loop time for everything else
                await asyncio.sleep(0)
            identity, parts, address = await self._link.receive()
            try:
                if len(parts) != 1:
                    raise wire.WireError(f"{len(parts)} frames")
                message = wire.unpack_for_engine(parts[0])
                peer = self._by_identity.get(identity)
                if peer is not None:
                    peer.heard = self._clock()
                return Received(identity, message, address)
            except wire.WireError as error:
                self.garbage += 1
                why = str(error)[:200]
                text = f"message from {speaker(identity).agent[:24]!r} dropped: {why}"
                logger.warning(text, extra=counted("message dropped"))
                if why.startswith("speaks wire version"):
                    await self.answer(identity, wire.Refused(why=f"the agent {why}"))

    async def answer(self, identity: bytes, message: wire.ToAgent) -> None:
        try:
            await self._link.send(identity, wire.pack(message))
        except ConnectionError as error:  # gone meanwhile: it will say hello again
            text = f"answer to {speaker(identity).agent[:24]!r} not sent: {error}"
            logger.info(text, extra=counted("answer not sent"))

    def admit(self, identity: bytes, hello: wire.Hello) -> Peer:
        """Take the agent as its node's; an older agent of the node is forgotten."""
        before = self._by_identity.get(identity)
        if before is not None and before.node != hello.node:  # one agent has one node
            self._peers.pop(before.node, None)
        old = self._peers.get(hello.node)
        if old is not None and old.identity != identity:
            self._by_identity.pop(old.identity, None)
        if old is not None and old.identity == identity and old.agent == hello.agent:
            peer = old
        else:
            key = speaker(identity).key
            peer = Peer(node=hello.node, identity=identity, agent=hello.agent, key=key)
        peer.heard = self._clock()
        self._peers[hello.node] = self._by_identity[identity] = peer
        return peer

    def of(self, node: str) -> Peer | None:
        """The agent that speaks for a node."""
        return self._peers.get(node)

    def peer(self, identity: bytes) -> Peer | None:
        return self._by_identity.get(identity)

    async def order(self, order: AgentCommand) -> bool:
        """Send an order; False where the node's agent is not known to this engine."""
        return await self.send(order.node, wire.Command(epoch=self.epoch, action=wire.plain(order)))

    async def send(self, node: str, message: wire.ToAgent) -> bool:
        peer = self._peers.get(node)
        if peer is None:
            return False
        await self.answer(peer.identity, message)
        return True

    def close(self) -> None:
        self._link.close()
