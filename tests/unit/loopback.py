"""One node on the loopback: a real agent process, and the engine's end of its channel by hand.

The engine's end is the real Channel; what it hears is kept, and answered as the Engine answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from supervisor.agent import tree
from supervisor.agent.attempt_cgroup import AttemptCgroups, writable_base
from supervisor.channel import wire
from supervisor.channel.delivery import VARIABLE
from supervisor.channel.link import CurveLink
from supervisor.channel.router import Channel
from supervisor.core import actions as act
from supervisor.core import events as ev

# Two test sessions on one machine must not end each other's ranks; children know their session's.
RUN = os.environ.setdefault("TEST_RUN_ID", os.urandom(6).hex())
NODE = "n1"
PORTS = (21000, 29999)
WITHIN_S = 30.0
E = TypeVar("E", bound=ev.Event)

# A rank that says what it does and ends as it is told: its log is NODE_DIR/aNNNN/rankN.log
TRAINER = """
import os, signal, sys, time
say = lambda *words: print(*words, flush=True)
say("rank", os.environ["RANK"], "pid", os.getpid())
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: say("not now"))
for step in range(1, 10**9):
    if "steps" in sys.argv:
        say(f"step: {step}  loss: {8 - step / 100:.5f}")
    told = f"exit{os.environ['RANK']}"
    if os.path.exists(told) and open(told).read():
        say("last words")
        sys.exit(int(open(told).read()))
    time.sleep(0.02)
"""


def job(tmp: Path, *args: str, **changes: Any) -> wire.RankJob:
    script = tmp / "train.py"
    script.write_text(TRAINER)
    values: dict[str, Any] = {
        "run_id": RUN,
        "name": "run",
        "python": sys.executable,
        "fresh": (str(script), *args),
        "resumed": (str(script), *args, "{resume_step}"),
        "preload": (),
        "hook": "",
        "workdir": str(tmp),
        "env": {},
        "ranks_per_node": 2,
        "step_pattern": r"step: (?P<step>\S+)(?:\s+loss: (?P<loss>\S+))?",
        "resumed_pattern": r"resumed at step (?P<step>\S+)",
        "rank_ports": (30000, 30999),
        "log_cap": 8 << 20,
        "engine_lost_timeout_s": 600.0,
    }
    return wire.RankJob(**(values | changes))


def start(attempt: int = 1, **changes: Any) -> act.Start:
    values: dict[str, Any] = {
        "key": f"start/{attempt}/{NODE}",
        "node": NODE,
        "attempt": attempt,
        "slot": 0,
        "nnodes": 1,
        "master_addr": "127.0.0.1",
        "master_port": 30000,
        "save_dir": None,
        "resume_path": None,
        "resume_step": None,
    }
    return act.Start(**(values | changes))


def stop(attempt: int = 1, grace_s: float = 5.0) -> act.Stop:
    return act.Stop(key=f"stop/{attempt}/{NODE}", node=NODE, attempt=attempt, grace_s=grace_s)


def prepare(attempt: int = 1) -> act.Prepare:
    return act.Prepare(key=f"prepare/{attempt}/{NODE}", node=NODE, attempt=attempt)


async def until(look: Callable[[], Any], what: str = "") -> Any:
    """The first true answer of `look`."""
    end = time.monotonic() + WITHIN_S
    while not (seen := look()):
        assert time.monotonic() < end, f"not within {WITHIN_S:.0f} s: {what or look}"
        await asyncio.sleep(0.005)
    return seen


class LoopbackNode:
    """One test's node: its keys, directory and agents. `close` ends whatever is left."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.server_public, self.server_secret = zmq.curve_keypair()
        self.client_public, self.client_secret = zmq.curve_keypair()
        self.home = tmp / f"superv-{os.getuid()}-{'0' * 20}"
        self.home.mkdir(mode=0o700)
        self.key_file = self.home / "key"
        self.node_dir = self.home / NODE
        self.agents: list[subprocess.Popen[str]] = []
        self.engines: list[EngineSide] = []

    def write_keys(self, endpoint: str, **changes: Any) -> None:
        keys = {
            "wire": wire.WIRE,
            "run_id": RUN,
            "endpoint": endpoint,
            "server_key": self.server_public.decode(),
            "public_key": self.client_public.decode(),
            "secret_key": self.client_secret.decode(),
        }
        part = self.key_file.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_bytes(msgspec.json.encode(keys | changes))
        part.replace(self.key_file)

    def agent(self, *options: str, **env: str) -> subprocess.Popen[str]:
        start = (sys.executable, "-I", *options)
        told = {VARIABLE: str(self.home), "SLURMD_NODENAME": NODE, "SLURM_JOB_ID": "7"}
        child = subprocess.Popen(
            (*start, "-m", "supervisor.agent"),
            env={**os.environ, **told, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.agents.append(child)
        return child

    def notes(self) -> str:
        """The agents' own log."""
        with contextlib.suppress(FileNotFoundError):
            return (self.node_dir / "agent.log").read_text()
        return ""

    def log(self, rank: int = 0, attempt: int = 1) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.node_dir / f"a{attempt:04d}" / f"rank{rank}.log").read_text()
        return ""

    async def pids(self, attempt: int = 1, count: int = 2) -> list[int]:
        """Of the ranks, as they say it."""
        logs = range(count)

        def first_lines() -> list[re.Match[str]]:
            lines = [re.search(r"pid (\d+)\s", self.log(n, attempt)) for n in logs]
            return [line for line in lines if line is not None]

        await until(lambda: len(first_lines()) == count, "ranks' first lines")
        return [int(line[1]) for line in first_lines()]

    def left(self) -> set[int]:
        return tree.find(f"{RUN}/{NODE}/")

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
            agent.wait()
            assert agent.stdout is not None
            agent.stdout.close()
        for engine in self.engines:
            engine.close()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        AttemptCgroups(RUN, NODE, writable_base()).remove()  # of agents that were killed


class EngineSide:
    """Answers agents as an engine does, and keeps what they say."""

    def __init__(
        self, place: LoopbackNode, job: wire.RankJob, *, epoch: int = 1, port: int | None = None
    ):
        self.job = job
        self.hellos: list[wire.Hello] = []
        self.callers: list[bytes] = []  # the connection of each hello
        self.beats: list[wire.Heartbeat] = []
        self.reports: list[wire.AgentReport] = []  # every copy that came
        self.events: list[ev.Event] = []  # each once
        self.chunks: list[wire.Chunk] = []
        self.looked: list[wire.HealthReport] = []
        self.strangers: list[bytes] = []  # who spoke without a hello, each time
        self.acks = True
        self.welcomes = True
        self.times: dict[int, float] = {}  # of a report's first arrival, monotonic
        self.link = CurveLink(place.server_public, place.server_secret, place.client_public)
        self.endpoint = self.link.bind("127.0.0.1", PORTS, port)
        self.channel = Channel(self.link, time.monotonic)
        self.channel.epoch = epoch
        self.port = int(self.endpoint.rpartition(":")[2])
        self._task = asyncio.ensure_future(self._serve())
        self._closed = False
        place.engines.append(self)

    async def _serve(self) -> None:
        epoch = self.channel.epoch
        while True:
            identity, message, _ = await self.channel.receive()
            peer = self.channel.peer(identity)
            match message:
                case wire.Hello():
                    self.hellos.append(message)
                    self.callers.append(identity)
                    if self.welcomes:
                        self.channel.admit(identity, message)
                        answer = wire.Welcome(epoch=epoch, agent=message.agent, job=self.job)
                        await self.channel.answer(identity, answer)
                case wire.Chunk():
                    self.chunks.append(message)
                case wire.HealthReport():
                    self.looked.append(message)
                case _ if peer is None:
                    self.strangers.append(identity)
                    await self.channel.answer(identity, wire.ReRegister(epoch=epoch))
                case wire.Heartbeat():
                    self.beats.append(message)
                    await self.channel.answer(identity, wire.Ack(epoch=epoch))
                case wire.AgentReport():
                    self.reports.append(message)
                    if not self.acks:
                        continue
                    if message.seq > peer.last_seq:
                        peer.last_seq = message.seq
                        self.times[len(self.events)] = time.monotonic()
                        self.events.append(wire.event_from(message.event))
                    ack = wire.Ack(epoch=epoch, seq=message.seq)
                    await self.channel.answer(identity, ack)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._task.cancel()
            self.channel.close()

    async def vanish(self) -> None:
        """It is gone without a word; another one may take its port."""
        self.close()
        await asyncio.sleep(0.05)  # its tasks end: they still know descriptors that are free now

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def event(self, kind: type[E], count: int = 1) -> E:
        """The count-th event of a kind, when it has come."""
        await until(lambda: len(self.of(kind)) >= count, f"{kind.__name__} number {count}")
        return self.of(kind)[count - 1]

    async def order(self, order: act.AgentCommand) -> None:
        assert await self.channel.order(order)

    async def joined(self, count: int = 1) -> wire.Hello:
        await until(lambda: len(self.hellos) >= count, f"hello number {count}")
        return self.hellos[count - 1]

    async def started(self, attempt: int = 1, **changes: Any) -> ev.RanksStarted:
        await self.order(start(attempt, **changes))
        await until(lambda: self.of(ev.RanksStarted) or self.of(ev.StartFailed), "an answer")
        assert not self.of(ev.StartFailed), self.of(ev.StartFailed)
        return self.of(ev.RanksStarted)[-1]


def play(tmp: Path, scenario: Callable[[LoopbackNode], Any]) -> None:
    """Run a scenario; at its end nothing of it is left."""
    place = LoopbackNode(tmp)

    async def whole() -> None:
        try:
            await scenario(place)
        except BaseException:
            sys.stderr.write(place.notes())
            raise
        finally:
            place.close()

    asyncio.run(whole())


def agent_errors(place: LoopbackNode) -> Iterator[str]:
    """Lines that only a bug writes."""
    return (line for line in place.notes().splitlines() if "a bug" in line or "Traceback" in line)
