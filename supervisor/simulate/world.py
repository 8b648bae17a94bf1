"""One simulated world: a cluster, a run's engine, faults in their time, and what is held of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from supervisor.core.policy import Policy
from supervisor.core.types import Phase, Run, RunSpec
from supervisor.simulate.held import LOOK_S as SAID_S
from supervisor.simulate.held import RUNNING_WITHIN_S, Held
from supervisor.simulate.host import EngineHost
from supervisor.simulate.injections import KINDS
from supervisor.simulate.network import SimulatedNetwork
from supervisor.simulate.nodes import SimulatedNode
from supervisor.simulate.person import Person
from supervisor.simulate.seed_plan import Injection, SeedPlan
from supervisor.simulate.slurm import SimulatedSlurm
from supervisor.simulate.storage import SharedStorage
from supervisor.simulate.training import Training
from supervisor.simulate.virtual_time import EPOCH, VirtualLoop

# Shorter than the defaults, so that a wait is not most of a world.
POLICY = Policy(
    spare_wait_s=15.0,
    registration_timeout_s=120.0,
    first_step_timeout_s=180.0,
    hang_timeout_min_s=60.0,
    backoff_s=(0.0, 5.0, 15.0),
    stop_grace_s=5.0,
)
STEADY_S = 45.0  # a run that has trained for so long is well
BEFORE_S = 10.0  # of a quiet spell that are played before a fault
LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a world."""

    plan: SeedPlan
    wrong: tuple[str, ...]
    simulated_s: float  # with the quiet spells that were left out
    played_s: float  # without them
    events: int
    messages: int
    steps: int
    timeline: tuple[str, ...] = ()


class SimulatedWorld:
    """Everything there is, and the time that it is."""

    def __init__(
        self, plan: SeedPlan, loop: VirtualLoop, journal: Path, *, tell: bool = False
    ) -> None:
        self.plan, self.loop = plan, loop
        self.timeline: list[tuple[float, str, str]] | None = [] if tell else None
        self.left_out = 0.0  # seconds of quiet spells
        self.spec = RunSpec(
            name="simulated",
            run_id="0123456789ab",
            nodes=plan.nodes,
            spares=plan.spares,
            ranks_per_node=2,
            checkpoint_dir="/shared/ckpt",
            policy=POLICY,
            keep=plan.keep,
            preflight=plan.preflight,
        )
        self.power_failed = False
        self.may_be_held = sum(KINDS[one.kind].may_hold for one in plan.injections) > 1
        self._error: BaseException | None = None
        self._well_since: float | None = None
        self._quiet_since = 0.0
        self._active: list[Injection] = []
        self._coming: dict[Injection, asyncio.TimerHandle] = {}
        self.held = Held(self)
        self.network = SimulatedNetwork(loop, self.rng("network"))
        self.storage: SharedStorage = SharedStorage(self)
        self.training: Training = Training(self)
        self.nodes = [SimulatedNode(self, i) for i in range(plan.size)]
        self._by_name = {node.name: node for node in self.nodes}
        self.slurm = SimulatedSlurm(self)
        self.host: EngineHost = EngineHost(self, journal)
        self.disk = self.host.disk
        self.person = Person(self)

    # --- what its parts ask of it -------------------------------------------------------------

    def rng(self, *what: object) -> Random:
        """Chance of one thing's own, so that others keep theirs when a fault is left out."""
        return Random(f"{self.plan.seed}/{what}")  # noqa: S311 - nothing secret

    def node(self, name: str) -> SimulatedNode:
        return self._by_name[name]

    @property
    def run(self) -> Run:
        engine = self.host.engine
        run = engine.run if engine is not None else self.host.run
        assert run is not None
        return run

    def now(self) -> float:
        return EPOCH + self.loop.time()

    def later(self, delay: float, work: Callable[..., None], *args: Any) -> None:
        self.loop.call_later(delay, work, *args)

    def say(self, text: str) -> None:
        self.note(self.loop.time(), "world", text)

    def note(self, at: float, who: str, text: str) -> None:
        if self.timeline is not None:
            self.timeline.append((at, who, text))

    def failed(self, error: BaseException) -> None:
        """The production code raised what it never should."""
        self._error = self._error or error

    def loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failed(context.get("exception") or RuntimeError(context["message"]))

    # --- its life -----------------------------------------------------------------------------

    async def live(self) -> None:
        self.loop.set_exception_handler(self.loop_error)
        self.host.launch(self.spec)
        self.host.start()
        self._schedule(self.plan.injections)
        while not self._over():
            await asyncio.sleep(LOOK_S)
        self.host.drain()
        self.host.crash(again=False)
        await asyncio.sleep(0)
        if self._error is not None:
            raise self._error

    @property
    def plan_time(self) -> float:
        """Seconds since the launch, with what was left out."""
        return self.loop.time() + self.left_out

    def _schedule(self, coming: Iterable[Injection]) -> None:
        for one in coming:
            delay = max(0.0, one.at - self.plan_time)
            self._coming[one] = self.loop.call_later(delay, self._begin, one)

    def _begin(self, one: Injection) -> None:
        self._coming.pop(one, None)
        self.say(f"fault: {one.kind} ({self.nodes[one.node % len(self.nodes)].name})")
        self._active.append(one)
        KINDS[one.kind].begin(self, one)
        self.later(one.lasts, self._heal, one)

    def _heal(self, one: Injection) -> None:
        KINDS[one.kind].heal(self, one)
        self._active.remove(one)
        self.say(f"over: {one.kind} ({self.nodes[one.node % len(self.nodes)].name})")

    def _over(self) -> bool:
        now, run = self.loop.time(), self.run
        self.held.watch(run)
        if self.held.wrong or self._error is not None or run.phase is Phase.HELD:
            return True
        if self.host.engine is not None and not int(now) % int(SAID_S):
            self.held.nothing_unsaid(self.host.engine)
        self.slurm.look_after()
        self.person.looks()
        self.person.read_exclusions()
        well = (
            run.phase is Phase.RUNNING
            and self.host.engine is not None
            and self.training.advances()
            and now - self.training.step_at < 2 * self.plan.step_s + self.plan.save_s
        )
        if not well:
            self._well_since = None
        elif self._well_since is None:
            self._well_since = now
        steady = self._well_since is not None and now - self._well_since > STEADY_S
        if self._coming or self._active:
            self._quiet_since = now
            if steady and not self._active:
                self._leave_out()
            return False
        if steady and now - self._quiet_since > STEADY_S:
            self.held.at_the_end(run)
            return True
        if now > self._quiet_since + RUNNING_WITHIN_S:
            self.held.broken(
                f"the world is well since {RUNNING_WITHIN_S:.0f} s, and the run is "
                f"{run.phase.value}: {run.reason}"
            )
        return False

    def _leave_out(self) -> None:
        """Nothing happens until the next fault but that the run trains: that is not played."""
        spell = min(one.at for one in self._coming) - self.plan_time - BEFORE_S
        if spell <= 0:
            return
        self.training.skip(spell)
        self.left_out += spell
        coming = dict(self._coming)
        for timer in coming.values():
            timer.cancel()
        self._schedule(coming)


def play(plan: SeedPlan, *, tell: bool = False) -> Outcome:
    """What becomes of a plan. Raises what the production code raised and never should."""
    home = Path("/dev/shm")  # noqa: S108 - a journal of a simulated run: nobody needs it afterwards
    with tempfile.TemporaryDirectory(
        prefix="superv-sim-", dir=home if home.is_dir() else None
    ) as d:
        loop = VirtualLoop()
        try:
            world = SimulatedWorld(plan, loop, Path(d) / "journal", tell=tell)
            loop.run_until_complete(world.live())
            return Outcome(
                plan=plan,
                wrong=tuple(world.held.wrong),
                simulated_s=world.plan_time,
                played_s=loop.time(),
                events=(Path(d) / "journal").read_bytes().count(b"\n"),
                messages=world.network.messages,
                steps=world.training.steps,
                timeline=tuple(timeline(world)),
            )
        finally:
            loop.close()


def timeline(world: SimulatedWorld) -> Iterable[str]:
    """What happened, by whom it was said, one line each."""
    lines = sorted(world.timeline or [], key=lambda line: line[0])
    return (f"{at:10.2f} s  {who:<7} {text}" for at, who, text in lines)
