"""Who reaches whom: messages between agents and the engine, and the ranks' own connections."""

from __future__ import annotations

import asyncio
from collections import deque
from random import Random
from typing import TYPE_CHECKING

from supervisor.channel.link import Frames

if TYPE_CHECKING:
    from supervisor.simulate.agent import SimulatedAgent
    from supervisor.simulate.virtual_time import VirtualLoop

ENGINE = "engine"
HELD_S = 8.0  # TCP sends again what was lost for less; a longer cut breaks the connection
REDIAL_S = (0.1, 4.0)


class SimulatedLink:
    """The engine's end: what supervisor.channel.router.Channel reads from."""

    def __init__(self, network: SimulatedNetwork) -> None:
        self._network = network
        self._came: deque[Frames] = deque()
        self._wake: asyncio.Future[None] | None = None
        self.paused = False

    def push(self, frames: Frames) -> None:
        self._came.append(frames)
        if self._wake is not None and not self._wake.done() and not self.paused:
            self._wake.set_result(None)

    async def receive(self) -> Frames:
        while not self._came or self.paused:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        return self._came.popleft()

    def resume(self) -> None:
        self.paused = False
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def send(self, identity: bytes, data: bytes) -> None:
        self._network.to_agent(identity, data)

    def close(self) -> None:
        self._network.engine_gone(self)


class SimulatedNetwork:
    """Carries what both ends send, unless a fault is in the way."""

    def __init__(self, loop: VirtualLoop, rng: Random) -> None:
        self._loop, self._rng = loop, rng
        self._link: SimulatedLink | None = None
        self._agents: dict[bytes, SimulatedAgent] = {}
        self._cuts: dict[tuple[str, str], int] = {}  # from, to: by how many faults
        self._cut_since: dict[tuple[str, str], float] = {}
        self._redial: dict[str, float] = {}  # by node: no connection to the engine before then
        self._waiting: dict[tuple[str, str], list[tuple[bytes, bytes]]] = {}
        self._last: dict[tuple[str, bytes], float] = {}  # what was sent later arrives later
        self.slow: dict[str, float] = {}  # by node: seconds that messages take, at most
        self.lossy: dict[str, float] = {}  # by node: how many connections break, 0 to 1
        self.messages = 0

    # --- faults -------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        way = (source, target)
        self._cuts[way] = self._cuts.get(way, 0) + 1
        self._cut_since.setdefault(way, self._loop.time())

    def heal(self, source: str, target: str) -> None:
        way = (source, target)
        self._cuts[way] -= 1
        if self._cuts[way]:
            return
        del self._cuts[way]
        long = self._loop.time() - self._cut_since.pop(way) > HELD_S
        held = self._waiting.pop(way, [])
        node = source if target == ENGINE else target
        if long:
            self._redial[node] = self._loop.time() + self._rng.uniform(*REDIAL_S)
            return
        for identity, data in held:
            if target == ENGINE:
                self._to_engine(node, identity, data)
            else:
                self.to_agent(identity, data)

    def reaches(self, source: str, target: str) -> bool:
        return (source, target) not in self._cuts

    def any_cut(self, nodes: tuple[str, ...]) -> bool:
        """Whether the ranks on these nodes can't all talk to each other."""
        return any(source in nodes and target in nodes for source, target in self._cuts)

    # --- ends ---------------------------------------------------------------------------------

    def listen(self) -> SimulatedLink:
        self._link = SimulatedLink(self)
        return self._link

    def engine_gone(self, link: SimulatedLink) -> None:
        if self._link is link:
            self._link = None

    def dial(self, agent: SimulatedAgent) -> None:
        self._agents[agent.identity] = agent

    def hang_up(self, agent: SimulatedAgent) -> None:
        if self._agents.get(agent.identity) is agent:
            del self._agents[agent.identity]

    # --- messages -----------------------------------------------------------------------------

    def to_engine(self, agent: SimulatedAgent, data: bytes) -> None:
        node = agent.node.name
        if self._link is None or self._redial.get(node, 0.0) > self._loop.time():
            return
        if self._stopped((node, ENGINE), agent.identity, data):
            return
        self._to_engine(node, agent.identity, data)

    def _to_engine(self, node: str, identity: bytes, data: bytes) -> None:
        link = self._link
        if link is None:
            return
        agent = self._agents.get(identity)
        address = agent.node.address if agent is not None else ""
        frames = Frames(identity, (data,), address)
        self.messages += 1
        if delay := self._delay(node, ("up", identity)):
            self._loop.call_at(delay, lambda: self._arrived(link, frames))
        else:
            link.push(frames)

    def _arrived(self, link: SimulatedLink, frames: Frames) -> None:
        if link is self._link:
            link.push(frames)

    def to_agent(self, identity: bytes, data: bytes) -> None:
        agent = self._agents.get(identity)
        if agent is None:
            return
        node = agent.node.name
        if self._redial.get(node, 0.0) > self._loop.time():
            return
        if self._stopped((ENGINE, node), identity, data):
            return
        self.messages += 1
        if delay := self._delay(node, ("down", identity)):
            self._loop.call_at(delay, agent.receive, data)
        else:
            agent.receive(data)

    def _stopped(self, way: tuple[str, str], identity: bytes, data: bytes) -> bool:
        """Whether it can't go now: it waits in a socket, or is lost with the connection."""
        if way in self._cuts:
            self._waiting.setdefault(way, []).append((identity, data))
            return True
        node = way[0] if way[1] == ENGINE else way[1]
        lossy = self.lossy.get(node, 0.0)
        if lossy and self._rng.random() < lossy * 0.2:
            self._redial[node] = self._loop.time() + self._rng.uniform(*REDIAL_S)
            return True
        return False

    def _delay(self, node: str, stream: tuple[str, bytes]) -> float:
        """When a message arrives; 0: at once."""
        slow = self.slow.get(node)
        if slow is None:
            return 0.0
        at = self._loop.time() + self._rng.uniform(0.0, slow)
        at = max(at, self._last.get(stream, 0.0))
        self._last[stream] = at
        return at
