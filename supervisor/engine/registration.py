"""Which agents the engine takes, and as whose.

Whoever holds the run's keys may say hello. A hello counts for a node that Slurm granted to its
job, and from then on only the agent that said it speaks for the node. Another one that wants the
node while that one lives is turned away: the living one is asked first. Where an address is known
to belong to other nodes of the run and not to this one, it is not this node that speaks.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from supervisor.channel import wire
from supervisor.channel.router import Channel, Received
from supervisor.core.types import AllocationState, NodeState, Run
from supervisor.engine.node_addresses import NodeAddresses
from supervisor.host.terminal import one_line

NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}")  # as Slurm writes names of nodes
LIVES_S = 3.0  # an agent says something every second; who was silent for so long is not asked
ASKED_S = 3.0  # … and who does not answer within this is replaced
RETURN_S = 10.0  # after its start the engine waits so long for agents that it knows of
ANY_EPOCH = 1 << 60  # of who answers no agent, so that whom they obeyed does not matter
MOST = 100_000  # ranks on a node, attempts, lines: nothing real comes near


@dataclass(frozen=True, slots=True)
class Admitted:
    """The agent speaks for its node from now on."""

    note: str = ""  # what could not be proved, where there is something


@dataclass(frozen=True, slots=True)
class Refuse:
    why: str
    rival: bool = False  # another agent lives there: somebody may want to be two
    newer: bool = False  # it has obeyed what this engine's journal does not hold


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is answered: agents say hello every second until they are."""

    poll: bool = False  # Slurm has not told yet what would decide it
    ask: bytes = b""  # the agent to be asked whether it lives


@dataclass(slots=True)
class _Claim:
    identity: bytes
    asked: float  # by the engine's clock


class Registration:
    """Judges hellos, of thousands of agents at once: nothing here looks at all nodes for each."""

    def __init__(
        self,
        channel: Channel,
        addresses: NodeAddresses,
        *,
        epoch: int,
        run: Callable[[], Run],
        clock: Callable[[], float],
    ) -> None:
        self._channel, self._addresses = channel, addresses
        self._epoch, self._run, self._clock = epoch, run, clock
        self._began = clock()
        self._claims: dict[str, _Claim] = {}  # by node
        self._keys: dict[str, str] = {}  # node by key

    def judge(self, received: Received, hello: wire.Hello) -> Admitted | Refuse | Wait:
        """What becomes of a hello."""
        for look in (self._run_s, self._allocation_s):
            if (answer := look(received, hello)) is not None:
                return answer
        place = self._place(received, hello)
        if isinstance(place, Refuse):
            return place
        if (newer := self._newer(hello)) is not None:
            return newer
        rival = self._rival(received, hello)
        if rival is None and received.speaker.key:
            self._keys[received.speaker.key] = hello.node
        return rival or place

    def _run_s(self, received: Received, hello: wire.Hello) -> Refuse | None:
        run = self._run()
        if hello.run_id != run.spec.run_id:
            other = one_line(hello.run_id, 40)
            return Refuse(f"this is the engine of run {run.spec.run_id}, not of {other}")
        if problem := _unfit(hello):
            return Refuse(problem)
        return None

    def _newer(self, hello: wire.Hello) -> Refuse | None:
        """Whether an engine with a longer journal has led the agent: another one, or one before."""
        if self._epoch == ANY_EPOCH:
            return None
        if hello.epoch > self._epoch:
            why = f"this engine has epoch {self._epoch}; a newer one has {hello.epoch}"
            return Refuse(why, newer=True)
        attempt = self._run().attempt
        number = attempt.number if attempt is not None else 0
        if (hello.attempt or 0) > number:
            why = f"this engine knows of attempt {number}, and it has ranks of {hello.attempt}"
            return Refuse(why, newer=True)
        return None

    def _allocation_s(self, received: Received, hello: wire.Hello) -> Refuse | Wait | None:
        job = one_line(hello.job_id, 40)
        allocation = self._run().allocations.get(hello.job_id)
        if allocation is None:
            return Refuse(f"job {job} is none of this run's")
        match allocation.state:
            case AllocationState.ENDED:
                return Refuse(f"job {job} has ended")
            case AllocationState.REQUESTED:
                return Wait(poll=True)  # it runs, and the engine has not heard of it yet
            case AllocationState.GRANTED:
                pass
            case _:
                assert_never(allocation.state)
        if not allocation.nodes:
            return Wait(poll=True)
        if hello.node not in allocation.nodes:
            return Refuse(f"{hello.node} is no node of job {job}")
        if allocation.folder and not received.speaker.key:
            return Refuse("it has no key of its own, as agents of this version have")
        if received.speaker.key and received.speaker.agent != hello.agent:
            return Refuse("it calls itself by another agent's name")
        node = self._node_of(received.speaker.key)
        if allocation.folder and node not in ("", hello.node):
            return Refuse(f"its key is that of {node}")
        return None

    def _node_of(self, key: str) -> str:
        """The node that a key was welcomed for, by this engine or one before it; empty: none."""
        if not self._keys:
            self._keys = {node.key: node.name for node in self._run().pool.values() if node.key}
        return self._keys.get(key, "")

    def _place(self, received: Received, hello: wire.Hello) -> Admitted | Refuse:
        """Whether the message came from an address of the node, as far as that can be told."""
        nodes = self._run().allocations[hello.job_id].nodes
        if not self._addresses.asked(hello.node):
            self._addresses.learn(nodes)
        address = received.address
        owners = self._addresses.owners(address)
        if not address or hello.node in owners:
            return Admitted()
        there = self._addresses.of(hello.node)
        if owners and there:
            self._addresses.learn((*owners, hello.node))  # names may mean something else by now
            named = ", ".join(sorted(owners)[:3])
            return Refuse(f"it speaks from {address}, which is {named} and not {hello.node}")
        if there and not address.startswith("127."):
            known = ", ".join(sorted(there)[:3])
            return Admitted(
                f"{hello.node} speaks from {address}; its name means {known}: nothing confirms it"
            )
        return Admitted()

    def _rival(self, received: Received, hello: wire.Hello) -> Refuse | Wait | None:
        """Another agent that has the node; None: there is none, or it is gone."""
        now = self._clock()
        peer = self._channel.of(hello.node)
        if peer is None:
            return self._expected(received, hello, now)
        known = self._run().pool.get(hello.node)
        if known is not None and known.state is NodeState.LEFT:
            return None  # it said so, or its job has ended
        claim = self._claims.get(hello.node)
        if claim is not None and now - claim.asked > 2 * ASKED_S:
            claim = None  # whoever that was has gone
        if peer.identity == received.identity:
            return None
        if peer.key and peer.key == received.speaker.key:
            return None  # started again on its node: it has the key that lies there
        if claim is None:
            if now - peer.heard > LIVES_S:
                return None
            self._claims[hello.node] = _Claim(received.identity, now)
            return Wait(ask=peer.identity)
        if claim.identity != received.identity:
            return Wait()
        if peer.heard > claim.asked:
            del self._claims[hello.node]
            return Refuse(f"another agent has {hello.node}, and answers", rival=True)
        return None if now - claim.asked > ASKED_S else Wait()

    def _expected(self, received: Received, hello: wire.Hello, now: float) -> Wait | None:
        """Agents that the journal knows come first, when an engine is new."""
        known = self._run().pool.get(hello.node)
        if known is None or known.job_id != hello.job_id or not known.key:
            return None
        gone = known.state in (NodeState.LEFT, NodeState.LOST)
        if gone or known.key == received.speaker.key or now - self._began > RETURN_S:
            return None
        return Wait()


def _unfit(hello: wire.Hello) -> str:
    """What no agent says; empty where it fits. Names go into lines, journals and commands."""
    if not NODE.fullmatch(hello.node):
        return f"{one_line(hello.node, 40)!r} is no name of a node"
    if len(hello.job_id) > 64 or len(hello.agent) > 64 or len(hello.problems) > MOST // 1000:
        return "its hello is longer than any agent's"
    if any(len(problem) > 4096 for problem in hello.problems):
        return "its hello is longer than any agent's"
    try:
        ipaddress.ip_address(hello.address)
    except ValueError:
        return f"{one_line(hello.address, 40)!r} is no address"
    if not 0 < hello.port < 1 << 16:
        return f"{hello.port} is no port"
    if not 0 <= hello.ranks <= MOST or not 0 <= (hello.attempt or 0) < 1 << 53:
        return "its numbers are none"
    return ""
