"""Intruders, garbage and liars against a real engine on the loopback: no effect, and it lives.

The engine is the real one with the real channel, journal and effects; its launcher is a small one
for this test, which grants one job of two nodes whose agents the tests play themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from logged import logged
from loopback import RUN, job, until

from supervisor import __version__, proc
from supervisor.channel import identity, wire
from supervisor.channel.link import CurveLink
from supervisor.channel.router import BURST, Channel
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.errors import TransientError
from supervisor.core.machine import step
from supervisor.core.policy import Policy
from supervisor.core.ports import JobState, JobStatus, LaunchSpec, Plan
from supervisor.core.types import DeadlineKind, NodeState, Phase, RankExit, RunSpec
from supervisor.engine import control
from supervisor.engine.effects import Effects, Setup
from supervisor.engine.loop import Engine
from supervisor.run.journal import Disk, Journal, read

PORTS = (21000, 29999)
JOB = "7"
NODES = ("n1", "n2")


def keys_of(node: str) -> str:
    """The key that lies in a node's private folder."""
    return hashlib.sha256(node.encode()).hexdigest()


class TwoNodes:
    """A launcher that grants its one job at once."""

    def __init__(self) -> None:
        self.submitted = False
        self.cancelled = False
        self.keys: list[bytes] = []

    def plan(self, spec: LaunchSpec) -> Plan:
        return Plan(job_name=spec.job_name, argv=("submit",), script="")

    async def submit(self, plan: Plan) -> str:
        self.submitted = True
        return JOB

    def _status(self) -> JobStatus:
        state = JobState.CANCELLED if self.cancelled else JobState.RUNNING
        return JobStatus(job_id=JOB, job_name="j", state=state, raw=state.upper(), nodes=NODES)

    async def find(self, name_prefix: str, *, past: bool = True) -> list[JobStatus]:
        return [self._status()] if self.submitted else []

    async def poll(self, jobs: Collection[str]) -> dict[str, JobStatus]:
        return dict.fromkeys(jobs, self._status())

    async def cancel(self, job: str) -> None:
        self.cancelled = True

    async def send_file(
        self, job: str, content: bytes, path: str, *, replace: bool = False
    ) -> None:
        self.keys.append(content)

    async def start_agent(
        self, job: str, node: str, agent_argv: tuple[str, ...], folder: str
    ) -> None:
        raise TransientError("agents are played by hand here")


class PoweredDisk(Disk):
    """It knows what a power failure would leave."""

    safe = 0  # bytes

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.safe = os.fstat(fd).st_size


class ChannelSite:
    """A living engine, and what is needed to talk to it."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.notes: list[str] = []  # the log
        self.server_public, server_secret = zmq.curve_keypair()
        self.client_public, self.client_secret = zmq.curve_keypair()
        self.launcher = TwoNodes()
        self.journal = Journal(tmp / "journal")
        policy = Policy(heartbeat_timeout_s=600, spare_wait_s=0, first_step_timeout_s=600)
        spec = RunSpec(
            name="run",
            run_id=RUN,
            nodes=2,
            spares=0,
            ranks_per_node=1,
            checkpoint_dir=None,
            policy=policy,
        )
        launched = ev.Launched(at=time.time(), spec=spec)
        _, actions = step(None, launched)
        self.journal.append(launched, actions, epoch=0)
        self.journal.close()
        self.disk = PoweredDisk()
        self.journal = Journal(tmp / "journal", self.disk)
        self.link = CurveLink(self.server_public, server_secret, self.client_public)
        self.endpoint = self.link.bind("127.0.0.1", PORTS, None)
        self.channel = Channel(self.link, time.time)
        self.engine = Engine(
            journal=self.journal,
            channel=self.channel,
            job=job(tmp, ranks_per_node=1),
            now=time.time,
        )
        setup = Setup(
            slurm={},
            agent_argv=("a",),
            folder=lambda job_name: f"/tmp/of-{job_name}",
            paths_of_0_1=("/k", "/n"),
            required=(),
        )
        self.effects = Effects(
            setup=setup,
            launcher=self.launcher,
            channel=self.channel,
            key_file=lambda: b"keys",
            run=lambda: self.engine.run,
            apply=self.engine.apply,
            now=time.time,
            failed=self.engine.fail,
        )
        self.life: asyncio.Task[None] | None = None
        self.sockets: list[zmq.asyncio.Socket] = []
        self.context = zmq.asyncio.Context()

    async def begin(self) -> None:
        self.engine.start(self.effects, self.endpoint, "here")
        self.life = asyncio.ensure_future(self.engine.run_until_ended())
        await until(lambda: self.launcher.keys, "keys sent")

    def socket(self, kind: int = zmq.DEALER, **options: Any) -> zmq.asyncio.Socket:
        """A client's socket; without options one that holds the run's keys."""
        link = self.context.socket(kind)
        link.linger = 0
        keys = {
            "curve_serverkey": self.server_public,
            "curve_publickey": self.client_public,
            "curve_secretkey": self.client_secret,
        }
        own = {} if options.keys() - {"identity"} else keys
        for name, value in (own | options).items():
            setattr(link, name, value)
        link.connect(self.endpoint)
        self.sockets.append(link)
        return link

    async def agent(self, node: str = "n1", **changes: Any) -> Played:
        played = Played(self, node)
        await played.hello(**changes)
        return played

    def state(self) -> tuple[Any, ...]:
        """What an intruder must not change."""
        run = self.engine.run
        return run.phase, run.attempt, dict(run.pool), run.excluded, run.incidents, run.allocations

    def records(self) -> int:
        return sum(1 for _ in read(self.tmp / "journal"))

    async def close(self) -> None:
        for link in self.sockets:
            link.close()
        self.context.term()
        if self.life is not None:
            self.life.cancel()
            await asyncio.gather(self.life, return_exceptions=True)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)
        self.channel.close()
        self.journal.close()


class Played:
    """An agent played by hand, with the run's keys."""

    def __init__(self, site: ChannelSite, node: str, key: str = "", name: str = "") -> None:
        self.site, self.node, self.name = site, node, name or f"agent-{node}"
        self.socket = site.socket(identity=identity.routing_id(self.name, key or keys_of(node)))
        self.seq = 0

    async def say(self, message: wire.ToEngine) -> None:
        await self.socket.send(wire.pack(message))

    async def hear(self, kind: type) -> Any:
        """The next message of a kind."""
        async with asyncio.timeout(20):
            while True:
                message = wire.unpack_for_agent(await self.socket.recv())
                if isinstance(message, kind):
                    return message

    async def hello(self, **changes: Any) -> None:
        values = {
            "run_id": RUN,
            "node": self.node,
            "job_id": JOB,
            "address": "127.0.0.1",
            "port": 1,
            "agent": self.name,
            "version": "0",
            "epoch": 0,
        }
        await self.say(wire.Hello(**(values | changes)))

    async def beat(self, **changes: Any) -> None:
        values = {"agent": self.name, "attempt": None, "ranks": 0, "step": None, "loss": None}
        await self.say(wire.Heartbeat(**(values | changes)))

    async def lives(self) -> None:
        """The engine answers."""
        await self.beat()
        while (await self.hear(wire.Ack)).seq is not None:
            pass

    async def report(self, event: ev.Event | dict[str, Any], seq: int | None = None) -> wire.Ack:
        if seq is None:
            self.seq += 1
            seq = self.seq
        plain = event if isinstance(event, dict) else wire.plain(event)
        await self.say(wire.AgentReport(agent=self.name, seq=seq, event=plain))
        while (ack := await self.hear(wire.Ack)).seq != seq:
            pass
        return ack


def play(tmp: Path, scenario: Callable[[ChannelSite], Awaitable[None]]) -> None:
    async def whole() -> None:
        site = ChannelSite(tmp)
        with logged() as site.notes:
            try:
                await site.begin()
                await scenario(site)
                assert site.life is not None and not site.life.done(), site.life
            finally:
                await site.close()

    asyncio.run(whole())


async def both(site: ChannelSite) -> tuple[Played, Played]:
    """The two nodes' agents, when the run is waiting for both to get ready."""
    agents = await site.agent("n1"), await site.agent("n2")
    await until(lambda: site.engine.run.phase is Phase.CHECKING, "both joined")
    return agents


async def started(site: ChannelSite) -> tuple[Played, Played]:
    """… and when ranks run on them."""
    agents = await both(site)
    now = time.time()
    for agent in agents:
        order = await agent.hear(wire.Command)
        assert order.action["kind"] == "Prepare"
        key = order.action["key"]
        await agent.report(ev.Prepared(at=now, key=key, node=agent.node, attempt=1, port=30000))
    for agent in agents:
        while (order := await agent.hear(wire.Command)).action["kind"] != "Start":
            pass
        key = order.action["key"]
        await agent.report(ev.RanksStarted(at=now, key=key, node=agent.node, attempt=1))
    assert site.engine.run.phase is Phase.STARTING
    return agents


def exit_of(agent: Played, **changes: Any) -> ev.RankExited:
    values = {"node": agent.node, "rank": 0, "code": 3, "signal": None, "at": 1.0}
    return ev.RankExited(at=1.0, attempt=1, exit=RankExit(**(values | changes)))


# --- who may come in -----------------------------------------------------------------------------


def test_an_agent_with_the_runs_keys_comes_in(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        assert (await agent.hear(wire.Welcome)).agent == agent.name
        await agent.lives()
        assert site.engine.run.pool["n1"].state is NodeState.READY
        assert site.link.refused_keys == 0 and site.channel.garbage == 0

    play(tmp_path, scenario)


INTRUDERS = {
    "a key pair of its own": lambda site: dict(
        zip(
            ("curve_serverkey", "curve_publickey", "curve_secretkey"),
            (site.server_public, *zmq.curve_keypair()),
            strict=True,
        )
    ),
    "the public key without its secret": lambda site: {
        "curve_serverkey": site.server_public,
        "curve_publickey": site.client_public,
        "curve_secretkey": zmq.curve_keypair()[1],
    },
    "no keys (NULL)": lambda site: {"probe_router": 1},
    "a password (PLAIN)": lambda site: {"plain_username": b"root", "plain_password": b"root"},
    "the server's own public key": lambda site: {
        "curve_serverkey": site.server_public,
        "curve_publickey": site.server_public,
        "curve_secretkey": site.client_secret,
    },
}


@pytest.mark.parametrize("who", INTRUDERS)
def test_an_intruder_gets_nothing_through(tmp_path: Path, who: str) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        before, records = site.state(), site.records()
        intruder = Played(site, "n2")
        for _ in range(3):  # a socket that was turned away gives up: it tries over and over
            intruder.socket.close()
            intruder.socket = site.socket(**INTRUDERS[who](site))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await intruder.hello()
                    await intruder.say(wire.AgentReport(agent=agent.name, seq=1, event={}))
                    await intruder.socket.recv()
        assert "n2" not in site.engine.run.pool
        assert site.state() == before and site.records() == records
        assert site.channel.garbage == 0  # nothing of it was ever read
        if who == "a key pair of its own":
            assert site.link.refused_keys > 0
            told = "a client with a key that is not on the list was turned away"
            assert told in site.notes
        await agent.lives()

    play(tmp_path, scenario)


def test_a_crowd_of_intruders_fills_no_log(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        for _ in range(40):
            site.socket(**INTRUDERS["a key pair of its own"](site))
        await until(lambda: site.link.refused_keys >= 32)
        agent = await site.agent()  # who has the keys still comes in
        await agent.hear(wire.Welcome)
        told = [note for note in site.notes if "turned away" in note]
        assert len(told) <= 8 and told[-1].endswith("so far)")

    play(tmp_path, scenario)


def test_bytes_that_are_no_zeromq(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        host, port = site.endpoint.removeprefix("tcp://").split(":")
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"\xff\0\0\0\0\0\0\0\1\x7f\3", b""):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()
        await agent.hear(wire.Welcome)
        await agent.lives()
        assert site.channel.garbage == 0

    play(tmp_path, scenario)


CROWD = """
import socket, sys, time
port, count = int(sys.argv[1]), int(sys.argv[2])
held = []
for _ in range(count):
    link = socket.socket()
    link.settimeout(2)
    try:
        link.connect(("127.0.0.1", port))
    except OSError:
        break
    held.append(link)
print(len(held), flush=True)
sys.stdin.read()
"""


def test_a_crowd_that_takes_all_descriptors_ends_nothing(tmp_path: Path) -> None:
    """Another user's idle connections; what needs a descriptor meanwhile is tried again."""

    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        server = await control.serve(site.engine, tmp_path / "sock")
        person = socket.socket(socket.AF_UNIX)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        port = site.endpoint.rpartition(":")[2]
        crowd = subprocess.Popen(
            [sys.executable, "-c", CROWD, port, "400"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert crowd.stdin is not None and crowd.stdout is not None
        limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            assert int(crowd.stdout.readline()) > 100
            async with asyncio.timeout(20):
                while (await proc.run(["true"], deadline_s=5)).rc != 126:
                    await asyncio.sleep(0.01)
            person.connect(str(tmp_path / "sock"))
            person.sendall(b'{"do": "status"}\n')
            with pytest.raises(OSError):
                os.close(os.dup(0))
            await agent.lives()
            scan = act.Scan(key="k", attempt=1, directory=str(tmp_path), known=())
            with pytest.raises(TransientError, match="no descriptor is left to this process"):
                await site.effects.looks.for_restart(scan)
        finally:
            crowd.communicate()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        person.settimeout(20)
        answer = await asyncio.to_thread(person.recv, 65536)
        assert json.loads(answer.partition(b"\n")[0])["name"] == "run"
        person.close()
        await asyncio.sleep(1.5)  # asyncio listens again after a second, also where it was closed
        server.close()
        assert (await proc.run(["true"], deadline_s=20)).rc == 0
        await agent.lives()

    play(tmp_path, scenario)


# --- what an allowed client may say --------------------------------------------------------------

HELLO = {"type": "Hello", "run_id": RUN, "node": "n1", "job_id": JOB}
BEAT = {"type": "Beat", "agent": "a", "attempt": None, "ranks": 0, "step": None, "loss": None}
GARBAGE = {
    "empty": b"",
    "noise": bytes(range(256)),
    "a number": msgspec.msgpack.encode(1),
    "no body": msgspec.msgpack.encode((wire.WIRE,)),
    "too much": msgspec.msgpack.encode((wire.WIRE, BEAT, 3)),
    "a body that is none": msgspec.msgpack.encode((wire.WIRE, 7)),
    "cut off": wire.pack(wire.Heartbeat(agent="a", attempt=1, ranks=1, step=1, loss=1.0))[:-3],
    "no type": msgspec.msgpack.encode((wire.WIRE, {"agent": "a"})),
    "an unknown type": msgspec.msgpack.encode((wire.WIRE, {"type": "Shell", "run": "id"})),
    "an engine's message": wire.pack(wire.Ack(epoch=99, seq=1)),
    "an unknown field": msgspec.msgpack.encode((wire.WIRE, {**BEAT, "also": "x" * 100_000})),
    "a missing field": msgspec.msgpack.encode((wire.WIRE, HELLO)),
    "a wrong type": msgspec.msgpack.encode((wire.WIRE, {**BEAT, "ranks": "eight"})),
    "a huge number": msgspec.msgpack.encode((wire.WIRE, {**BEAT, "step": 2**64 - 1})),
    "deep": msgspec.msgpack.encode((wire.WIRE, {**BEAT, "agent": None}))[:-1] + b"\x91" * 100_000,
    "no text": b"\x92\x01\x81\xa4type\xa4\xff\xff\xff\xff",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_has_no_effect(tmp_path: Path, what: str) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        before, records = site.state(), site.records()
        await agent.socket.send(GARBAGE[what])
        await agent.lives()
        assert site.state() == before and site.records() == records
        if what != "a huge number":  # a beat like others, of no attempt
            assert site.channel.garbage == 1
            (note,) = [note for note in site.notes if "dropped" in note]
            assert len(note) < 400 and "\n" not in note

    play(tmp_path, scenario)


@pytest.mark.parametrize("frames", [0, 2, 5])
def test_several_frames_are_none(tmp_path: Path, frames: int) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        beat = wire.pack(wire.Heartbeat(agent="a", attempt=None, ranks=0, step=None, loss=None))
        await agent.socket.send_multipart([beat] * frames if frames else [b"", beat])
        await agent.lives()
        assert site.channel.garbage == 1

    play(tmp_path, scenario)


def test_much_garbage_fills_no_log(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        for _ in range(1000):
            await agent.socket.send(b"garbage")
        await agent.lives()
        assert site.channel.garbage == 1000
        assert len([note for note in site.notes if "dropped" in note]) == 10

    play(tmp_path, scenario)


FLOOD = """
import sys, time, zmq
endpoint, server, public, secret, frame = sys.argv[1:]
link = zmq.Context().socket(zmq.DEALER)
link.curve_serverkey, link.curve_publickey = server.encode(), public.encode()
link.curve_secretkey = secret.encode()
link.linger, link.rcvhwm = 0, 1  # answers stay unread: it goes with a reset
link.connect(endpoint)
for _ in range(900):
    link.send(bytes.fromhex(frame))
link.poll()
print("answered", flush=True)
for _ in range(900):
    link.send(bytes.fromhex(frame))
time.sleep(1)
link.close()
time.sleep(1)
"""


def test_a_peer_that_goes_while_its_flood_waits_ends_nothing(tmp_path: Path) -> None:
    """libzmq aborted the engine: it pinged a connection that was over and not read to its end."""

    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        beat = wire.pack(wire.Heartbeat(agent="a", attempt=None, ranks=0, step=None, loss=None))
        keys = (site.server_public, site.client_public, site.client_secret)
        words = (site.endpoint, *(key.decode() for key in keys), beat.hex())
        flood = subprocess.Popen([sys.executable, "-c", FLOOD, *words], stdout=subprocess.PIPE)
        assert flood.stdout is not None
        assert await asyncio.to_thread(flood.stdout.readline) == b"answered\n"
        flood.wait(30)  # the loop stands still meanwhile, as on a slow disk
        time.sleep(3)
        flood.stdout.close()
        await agent.lives()

    play(tmp_path, scenario)


def test_a_flood_leaves_time_for_the_rest(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        other = Played(site, "n2")
        for _ in range(500):
            await other.socket.send(b"garbage")
        turns = 0
        async with asyncio.timeout(20):
            while site.channel.garbage < 500:
                turns += 1
                await asyncio.sleep(0)
        assert turns >= 500 // BURST

    play(tmp_path, scenario)


def test_an_agent_of_another_version_is_named_and_goes_on(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = Played(site, "n1")
        await agent.hello(version="0.1.0\x1b[2J")
        await agent.hear(wire.Welcome)
        (note,) = [note for note in site.notes if "is superv" in note]
        assert "the agent on n1 is superv 0.1.0" in note and __version__ in note
        assert note.isprintable()
        await agent.lives()

    play(tmp_path, scenario)


def test_another_wire_version_is_answered_in_one_line(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = Played(site, "n1")
        newer = msgspec.msgpack.encode((wire.WIRE + 1, {"type": "Hello", "shape": "unknown"}))
        await agent.socket.send(newer)
        why = (await agent.hear(wire.Refused)).why
        assert why == (
            f"the agent speaks wire version {wire.WIRE + 1}; this side speaks {wire.WIRE}"
        )
        assert site.engine.run.pool == {}

    play(tmp_path, scenario)


def test_a_message_that_is_too_large_costs_its_sender_the_connection(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        liar = Played(site, "n2")
        chunk = wire.Chunk(key="k", offset=0, data=bytes(wire.MAX_MESSAGE))
        await liar.say(chunk)
        await agent.lives()
        assert site.channel.garbage == 0 and "n2" not in site.engine.run.pool
        largest = wire.Chunk(key="k", offset=0, data=bytes(wire.MAX_MESSAGE - 100))
        assert len(wire.pack(largest)) < wire.MAX_MESSAGE
        await agent.say(largest)  # nobody asked for it: no effect
        await agent.lives()

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"run_id": "ffffffffffff"}, "this is the engine of run"),
        ({"job_id": "8"}, "job 8 is none of this run's"),
        ({"job_id": ""}, "job  is none of this run's"),
        ({"epoch": 99}, "this engine has epoch 1; a newer one has 99"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, why: str) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent(**changes)
        assert why in (await agent.hear(wire.Refused)).why
        assert site.engine.run.pool == {}
        await agent.beat()  # it is not known by it
        assert (await agent.hear(wire.ReRegister)).epoch == 1

    play(tmp_path, scenario)


# --- reports -------------------------------------------------------------------------------------


def test_no_engine_ends_for_what_nobody_waits_for(tmp_path: Path) -> None:
    """A lost future, a callback, a client's connection: the loop tells, and the engine goes on."""

    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent()
        await agent.hear(wire.Welcome)
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: 1 / 0)
        loop.call_exception_handler({"message": "something without an exception"})
        lost = loop.create_future()
        lost.set_exception(ValueError("nobody asks for it"))
        del lost
        gc.collect()
        await agent.lives()
        assert site.life is not None and not site.life.done()

    with logged() as told:
        play(tmp_path, scenario)
    assert any("ZeroDivisionError" in line for line in told)
    assert any("something without an exception" in line for line in told)


def test_a_report_is_taken_once_however_often_it_comes(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        first, _ = await started(site)
        event = exit_of(first)
        await first.report(event)
        run, records = site.engine.run, site.records()
        assert run.attempt is not None and len(run.attempt.exits) == 1
        assert run.phase is Phase.STOPPING
        for _ in range(3):  # replayed: acknowledged, as its sender may not have heard
            assert (await first.report(event, seq=first.seq)).seq == first.seq
        for seq in range(first.seq):
            await first.report(exit_of(first, code=99), seq=seq)
        assert site.engine.run == run and site.records() == records

    play(tmp_path, scenario)


def test_what_is_acknowledged_outlives_a_power_failure(tmp_path: Path) -> None:
    """Also a report that nothing is to be done about: its agent forgets it then."""

    async def scenario(site: ChannelSite) -> None:
        agent, other = await started(site)
        resumed = ev.Resumed(at=1.0, attempt=1, node=other.node, step=0)
        for who, report in ((other, resumed), (agent, exit_of(agent, code=0))):
            await who.report(report)
            left = site.journal.path.read_bytes()[: site.disk.safe]
            assert type(report).__name__.encode() in left

    play(tmp_path, scenario)


def test_a_report_that_speaks_for_another_node_is_dropped(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        first, second = await started(site)
        before, records = site.state(), site.records()
        await first.report(exit_of(second, rank=1))
        left = ev.AgentLeft(at=1.0, node="n2", agent=second.name, reason="told to leave")
        await first.report(left)
        stopped = ev.RanksStopped(at=1.0, key="k", node="n2", attempt=1)
        await first.report(stopped)
        assert site.state() == before and site.records() == records
        dropped = [note for note in site.notes if "report of n1 dropped" in note]
        assert len(dropped) == 3
        await first.report(exit_of(first))  # about itself it may tell
        assert site.engine.run.phase is Phase.STOPPING

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "event",
    [
        ev.StopRequested(at=1.0, who="root", now=True),
        ev.EngineStarted(at=1.0, epoch=99, host="evil", endpoint="tcp://127.0.0.1:1"),
        ev.AllocationSeen(at=1.0, job_id=JOB, state=JobState.ENDED, raw="COMPLETED"),
        ev.HeartbeatLost(at=1.0, node="n1", last_heard=0.0),
        ev.DeadlineExpired(at=1.0, kind=DeadlineKind.REGISTRATION),
        ev.Done(at=1.0, key="keys"),
        ev.Submitted(at=1.0, key="k", job_id="666", job_name="mine"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_only_the_engine_may_tell_is_dropped(tmp_path: Path, event: ev.Event) -> None:
    async def scenario(site: ChannelSite) -> None:
        first, _ = await started(site)
        before, records = site.state(), site.records()
        await first.report(event)
        assert site.state() == before and site.records() == records
        assert any("report of n1 dropped" in note for note in site.notes)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"kind": "Nonsense"},
        {"kind": ["RankExited"]},
        {"kind": "RankExited", "attempt": 1},
        {"kind": "RankExited", "attempt": 1, "exit": 5},
        {"kind": "RanksStarted", "key": "k", "node": "n1", "attempt": "one"},
        {"kind": "RanksStarted", "key": "k", "node": "n1", "attempt": 1, "also": 1},
        {"kind": "Marks", "attempt": 1, "node": "n1", "marks": [["a", float("nan")]]},
        {"kind": "Prepared", "key": "k", "node": "n1", "attempt": 1, "port": -1},
        {1: 2},
    ],
    ids=str,
)
def test_events_that_are_none_are_dropped(tmp_path: Path, event: dict[Any, Any]) -> None:
    async def scenario(site: ChannelSite) -> None:
        first, second = await started(site)
        phase = site.engine.run.phase
        body = {"type": "Report", "agent": first.name, "seq": 50, "event": event}
        await first.socket.send(msgspec.msgpack.encode((wire.WIRE, body)))
        await first.lives()
        await second.lives()
        assert site.engine.run.phase is phase and len(site.engine.run.pool) == 2

    play(tmp_path, scenario)


def test_a_report_under_another_agents_name(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        first, second = await started(site)
        before = site.state()
        forged = wire.AgentReport(
            agent=second.name, seq=99, event=wire.plain(exit_of(second, rank=1))
        )
        await first.say(forged)
        assert (await first.hear(wire.ReRegister)).epoch == 1
        assert site.state() == before
        await second.report(ev.Collected(at=1.0, key="c", node="n2", attempt=1))  # 99 was not taken

    play(tmp_path, scenario)


def test_an_agent_that_comes_back_takes_its_nodes_place(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        first, _ = await both(site)
        second_life = Played(site, "n1", name="agent-n1-again")
        await second_life.hello()
        await second_life.hear(wire.Welcome)
        assert site.engine.run.pool["n1"].agent == "agent-n1-again"
        await first.beat()  # the older one is a stranger now
        await first.hear(wire.ReRegister)
        orders = await second_life.hear(wire.Command)  # what its node was asked comes again
        assert orders.action["kind"] == "Prepare" and orders.action["node"] == "n1"

    play(tmp_path, scenario)


# --- another holder of the run's keys ------------------------------------------------------------


def impostor(site: ChannelSite, node: str) -> Played:
    return Played(site, node, key=identity.new_key(), name="impostor")


def test_a_node_that_lives_is_not_taken_by_another(tmp_path: Path) -> None:
    """Its hello ended healthy ranks: an agent without ranks had come in their node's place."""

    async def scenario(site: ChannelSite) -> None:
        agents = await started(site)
        before, records = site.state(), site.records()
        other = impostor(site, "n1")
        watching = site.engine.listen()
        await other.hello()
        await agents[0].hear(wire.ReRegister)  # the living one is asked
        await agents[0].hello()
        await agents[0].hear(wire.Welcome)
        await other.hello()
        assert (await other.hear(wire.Refused)).why == "another agent has n1, and answers"
        await other.beat()
        await other.hear(wire.ReRegister)
        for agent in agents:
            await agent.lives()
        assert site.state() == before and site.records() == records
        assert "agent on n1 refused: another agent has n1" in watching.get_nowait().text

    play(tmp_path, scenario)


def test_a_crowd_of_hellos_for_a_living_node_ends_nothing(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        agents = await started(site)
        before, records = site.state(), site.records()
        others = [impostor(site, "n1") for _ in range(20)]
        for _ in range(10):
            for other in others:
                await other.hello()
            for agent in agents:
                await agent.beat()
            await asyncio.sleep(0.1)
        for agent in agents:
            await agent.lives()
        assert site.state() == before and site.records() == records
        refused = [note for note in site.notes if "another agent has n1" in note]
        assert 1 <= len(refused) <= 8, refused

    play(tmp_path, scenario)


def test_a_node_whose_agent_is_silent_gets_another(tmp_path: Path) -> None:
    """A node that was booted again has lost the key that lay there."""

    async def scenario(site: ChannelSite) -> None:
        first, _ = await both(site)
        other = Played(site, "n1", key=identity.new_key(), name="booted")
        async with asyncio.timeout(20):
            while site.engine.run.pool["n1"].agent != "booted":
                await other.hello()
                await asyncio.sleep(0.1)
        await other.hear(wire.Welcome)
        await first.beat()
        await first.hear(wire.ReRegister)

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "name", ["", "../../etc", "/", "n1\n", "n3", "N1", "n1\x1b[2J", "n1 n2", "\u202en1", "x" * 300]
)
def test_a_node_that_slurm_did_not_grant_gets_no_job(tmp_path: Path, name: str) -> None:
    async def scenario(site: ChannelSite) -> None:
        await both(site)
        before, records = site.state(), site.records()
        other = impostor(site, "n3")
        await other.hello(node=name)
        why = (await other.hear(wire.Refused)).why
        assert "is no node of job 7" in why or "is no name of a node" in why, why
        assert why.isprintable() and all(note.isprintable() for note in site.notes)
        assert site.state() == before and site.records() == records

    play(tmp_path, scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"address": "evil.example"},
        {"address": ""},
        {"address": "127.0.0.1;reboot"},
        {"port": 0},
        {"port": 1 << 40},
        {"ranks": -1},
        {"ranks": 1 << 60},
        {"attempt": -3},
        {"problems": ("x",) * 1000},
        {"problems": ("x" * 100_000,)},
        {"agent": "another"},
    ],
    ids=str,
)
def test_a_hello_like_no_agent_s(tmp_path: Path, changes: dict[str, Any]) -> None:
    async def scenario(site: ChannelSite) -> None:
        agent = await site.agent(**changes)
        assert len((await agent.hear(wire.Refused)).why) < 200
        assert site.engine.run.pool == {}

    play(tmp_path, scenario)


def test_an_agent_without_a_key_of_its_own(tmp_path: Path) -> None:
    """Agents of superv 0.1 live in allocations of superv 0.1, which have no private folder."""

    async def scenario(site: ChannelSite) -> None:
        old = Played(site, "n1")
        old.socket.close()
        old.socket = site.socket(identity=b"agent-n1")
        await old.hello()
        assert "no key of its own" in (await old.hear(wire.Refused)).why
        run = site.engine.run
        allocation = replace(run.allocations[JOB], folder="")
        site.engine.run = replace(run, allocations={JOB: allocation})
        await old.hello()
        await old.hear(wire.Welcome)
        await old.lives()
        again = Played(site, "n1", name="new")  # its node's next agent is of this version
        async with asyncio.timeout(20):
            while site.engine.run.pool["n1"].key == "":
                await again.hello()
                await asyncio.sleep(0.1)
        await again.hear(wire.Welcome)

    play(tmp_path, scenario)


def test_a_key_has_one_node(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        first = await site.agent("n1")
        await first.hear(wire.Welcome)
        await first.hello(node="n2")
        assert (await first.hear(wire.Refused)).why == "its key is that of n1"
        assert list(site.engine.run.pool) == ["n1"]
        await first.lives()

    play(tmp_path, scenario)


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    async def scenario(site: ChannelSite) -> None:
        taken = int(site.endpoint.rpartition(":")[2])
        public, secret = zmq.curve_keypair()
        other = CurveLink(public, secret, site.client_public)
        assert other.bind("127.0.0.1", (taken, taken + 1), taken).endswith(f":{taken + 1}")
        third = CurveLink(public, secret, site.client_public)
        with pytest.raises(OSError, match=f"no free port in {taken}-{taken}"):
            third.bind("127.0.0.1", (taken, taken), taken)
        await asyncio.sleep(0)
        other.close()
        third.close()

    play(tmp_path, scenario)


# --- people's socket -----------------------------------------------------------------------------


REQUESTS = {
    "nothing": b"",
    "noise": b"\xff\xfe\n",
    "no JSON": b"{\n",
    "a number": b"5\n",
    "deep": b"[" * 60_000 + b"\n",
    "long": b'{"do": "' + b"x" * 200_000 + b'"}\n',
    "no command": b"{}\n",
    "an unknown command": b'{"do": "shell"}\n',
    "a command of another type": b'{"do": ["stop"]}\n',
    "a stop by nobody": b'{"do": "stop"}\n',
    "a huge offset": b'{"do": "logs", "rank": 0, "offset": 1' + b"0" * 40 + b', "follow": false}\n',
    "a rank that is none": b'{"do": "logs", "rank": 10000, "offset": 0, "follow": false}\n',
    "a rank of letters": b'{"do": "logs", "rank": "x", "offset": 0, "follow": false}\n',
}


@pytest.mark.parametrize("what", REQUESTS)
def test_requests_that_are_none_end_nobody(tmp_path: Path, what: str) -> None:
    async def scenario(site: ChannelSite) -> None:
        path = tmp_path / "sock"
        server = await control.serve(site.engine, path)
        assert path.stat().st_mode & 0o777 == 0o600
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        writer.write(REQUESTS[what])
        writer.write_eof()
        answers = (await reader.read()).decode().splitlines()
        writer.close()
        (answer,) = [json.loads(line) for line in answers]
        assert len(answer["error"]) < 400, answer
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        writer.write(b'{"do": "status"}\n')
        assert json.loads(await reader.readline())["name"] == "run"
        writer.close()
        server.close()

    play(tmp_path, scenario)


def test_a_log_keeps_its_letters_whole(tmp_path: Path) -> None:
    """Pieces end within a letter; nobody shall see half of it."""

    async def scenario(site: ChannelSite) -> None:
        first, _ = await started(site)
        server = await control.serve(site.engine, tmp_path / "sock")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "sock")
        ask = {"do": "logs", "rank": 0, "offset": 0, "follow": False}
        writer.write(json.dumps(ask).encode() + b"\n")
        text = "naïve 漢字 ✓".encode()
        for at in range(len(text) + 1):
            order = await first.hear(wire.Fetch)
            assert order.offset == at
            piece = text[at : at + 1]
            await first.say(wire.Chunk(key=order.key, offset=at, data=piece))
        lines = (await reader.read()).decode().splitlines()
        assert "".join(json.loads(line)["data"] for line in lines) == text.decode()
        writer.close()
        server.close()

    play(tmp_path, scenario)
