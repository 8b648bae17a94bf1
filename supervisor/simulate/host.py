"""The engine's machine: the production engine on simulated ports, its journal, its ends."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launchers.sbatch import Sbatch
from launchers.slurm import Slurm
from supervisor.channel import wire
from supervisor.channel.router import Channel
from supervisor.core import events as ev
from supervisor.core.errors import UserError
from supervisor.core.machine import step
from supervisor.core.types import Run, RunSpec
from supervisor.engine.clock import SteadyClock
from supervisor.engine.effects import Effects, Setup
from supervisor.engine.loop import Engine
from supervisor.engine.node_addresses import NodeAddresses
from supervisor.run.journal import Disk, Journal
from supervisor.simulate.network import SimulatedLink
from supervisor.simulate.storage import SimulatedStorage
from supervisor.simulate.virtual_time import EPOCH, owned

if TYPE_CHECKING:
    from supervisor.simulate.world import SimulatedWorld

AGAIN_S = (0.5, 8.0)  # until somebody starts the next engine


class SimulatedDisk(Disk):
    """The journal's, on a real file; it may be full, and knows what a power failure leaves."""

    def __init__(self) -> None:
        self.full = 0
        self.synced = 0  # bytes
        self._written = 0

    def opened(self, size: int) -> None:
        self.synced = self._written = size

    def write(self, fd: int, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(fd, data)
        self._written += written
        return written

    def sync(self, fd: int) -> None:
        self.synced = self._written


class EngineHost:
    """Where engines of the run live, one after the other."""

    def __init__(self, world: SimulatedWorld, journal: Path) -> None:
        self.world, self.path = world, journal
        self.disk = SimulatedDisk()
        self.engine: Engine | None = None
        self.run: Run | None = None  # of the engine that lives, or lived last
        self.wall_off = 0.0  # of the machine's wall clock, as the next engine finds it
        self.endpoint = "tcp://10.0.0.1:5555"
        self.paused = False
        self.starts = 0
        self.started_at = 0.0
        self._rng = world.rng("host")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._link: SimulatedLink | None = None
        self._journal: Journal | None = None
        self._lines: asyncio.Queue[Any] | None = None
        self.base = 0.0  # what the living engine's clock shows at the beginning of the world
        self._failed_at: str = ""

    def launch(self, spec: RunSpec) -> None:
        journal = Journal(self.path, self.disk)
        event = ev.Launched(at=EPOCH, spec=spec)
        run, actions = step(None, event)
        journal.append(event, actions, epoch=0)
        journal.close()
        self.run = run

    # --- one engine's life --------------------------------------------------------------------

    def start(self, request: ev.Event | None = None) -> None:
        if self.engine is not None:
            return
        self.disk.opened(self.path.stat().st_size)
        try:
            journal = Journal(self.path, self.disk)
        except OSError as error:
            self._again(f"{error.strerror}")
            return
        self.starts += 1
        self.started_at = self.world.loop.time()
        loop = self.world.loop
        if self.run is not None and journal.run != self.run and not self.world.power_failed:
            self.world.held.broken("the run rebuilt from the journal differs from the engine's")
        self.world.power_failed = False

        wall = EPOCH + self.wall_off + loop.time()
        now = SteadyClock(journal.newest_at, wall=lambda: wall, monotonic=loop.time)
        self.base = now.base

        def look_up(node: str) -> frozenset[str]:
            return frozenset((self.world.node(node).address,))

        self._journal = journal
        self._link = link = self.world.network.listen()
        channel = Channel(link, now)
        engine = self.engine = Engine(
            journal=journal,
            channel=channel,
            job=RANKS,
            now=now,
            addresses=NodeAddresses(look_up, clock=now, beside=lambda work: work()),
        )
        effects = Effects(
            setup=SETUP,
            launcher=Sbatch(slurm=Slurm(env={}, run=self.world.slurm.command)),
            channel=channel,
            key_file=lambda: b"keys",
            run=lambda: engine.run,
            apply=engine.apply,
            now=now,
            failed=engine.fail,
            storage=SimulatedStorage(self.world.storage),
        )
        self._lines = engine.listen() if self.world.timeline is not None else None
        self._tasks = set()
        owned(self._tasks, lambda: self._begin(engine, effects, request))

    def _begin(self, engine: Engine, effects: Effects, request: ev.Event | None) -> None:
        try:
            engine.start(effects, self.endpoint, "login", request)
        except UserError as error:  # the journal can't be written
            self.crash(again=False)
            self._again(str(error))
            return
        self.world.loop.set_exception_handler(
            self.world.loop_error
        )  # the world's parts fail loudly
        life = asyncio.ensure_future(engine.run_until_ended())
        life.add_done_callback(lambda done: self._over(engine, done))

    def _over(self, engine: Engine, done: asyncio.Task[None]) -> None:
        if done.cancelled() or engine is not self.engine:
            return
        error = done.exception()
        self.crash(again=False)
        if isinstance(error, UserError):
            self._again(str(error))
        elif error is not None:
            self.world.failed(error)

    def _again(self, why: str) -> None:
        self.world.say(f"the engine ended: {why}; it is started again")
        self.world.later(5.0, self.start)

    def crash(self, *, again: bool = True, power: bool = False) -> None:
        """End the engine without a word; with a power failure what is not on disk is lost."""
        engine, self.engine = self.engine, None
        if engine is None:
            return
        self.drain()
        self.run = engine.run
        for task in list(self._tasks):
            task.cancel()
        assert self._link is not None and self._journal is not None
        self._link.close()
        self._journal.close()
        self.world.loop.set_exception_handler(self.world.loop_error)
        if power:
            os.truncate(self.path, self.disk.synced)
            self.world.power_failed = True
        if again:
            self.world.later(self._rng.uniform(*AGAIN_S), self.start)

    def drain(self) -> None:
        """What the engine told people goes into the timeline."""
        while self._lines is not None and not self._lines.empty():
            line = self._lines.get_nowait()
            self.world.note(line.at - self.base, "engine", line.text)


SETUP = Setup(
    slurm={},
    agent_argv=("agent",),
    folder=lambda job_name: f"/local/superv-0-{job_name}",
    paths_of_0_1=("/local/key", "/local/node"),
    required=(),
)
RANKS = wire.RankJob(
    run_id="0123456789ab",
    name="simulated",
    python="python",
    fresh=("train.py",),
    resumed=("train.py",),
    preload=(),
    hook="",
    workdir="/",
    env={},
    ranks_per_node=2,
    step_pattern="",
    resumed_pattern="",
    rank_ports=(30000, 30999),
    log_cap=1 << 20,
    engine_lost_timeout_s=900.0,
)
