"""A simulated node: power, its agent, its ranks and the files that superv has put there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.channel.identity import speaker
from supervisor.core import actions as act
from supervisor.simulate.agent import SimulatedAgent

if TYPE_CHECKING:
    from supervisor.simulate.world import SimulatedWorld

AGENT_AGAIN_S = (1.0, 30.0)  # the shell loop's pauses: sbatch_templates/agent_loop.sh.j2


@dataclass(slots=True)
class SimulatedRanks:
    """The ranks of one attempt on one node."""

    attempt: int
    slot: int
    nnodes: int
    order: act.Start
    alive: int
    stopping: bool = False  # they are being ended on purpose
    killed: bool = False  # … and end as soon as the kernel lets them
    unseen_ends: list[tuple[int, int | None]] = field(default_factory=list)  # rank, code


class SimulatedNode:
    """What goes on on one node, whoever is watching."""

    def __init__(self, world: SimulatedWorld, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number + 1}"
        self.address = f"10.0.1.{number + 1}"
        self.power = True
        self.slurmd = True  # Slurm's daemon answers
        self.paused = False  # a VM that stands still
        self.agent: SimulatedAgent | None = None
        self.ranks: SimulatedRanks | None = None
        self.agent_still = False  # its agent stands still, and no more than that
        self.driver_hangs = False  # its ranks sleep in the kernel and can't be killed …
        self.waits_for_storage = False  # … for another reason
        self.keys: dict[str, str] = {}  # by job: the engine's endpoint; a key file each
        self.own_key = ""  # the agent's own, beside them
        self.loops: set[str] = set()  # jobs whose shell loop lives here
        self.left: set[str] = set()  # jobs whose agent has left as it was told
        self.problem = ""  # what health checks find
        self.clock_off = 0.0
        self._lives = 0
        self._pause = AGENT_AGAIN_S[0]

    # --- life ---------------------------------------------------------------------------------

    @property
    def runs(self) -> bool:
        return self.power and not self.paused

    def power_off(self) -> None:
        self.power = self.slurmd = False
        self.end_agent()
        self.ranks = None
        self.keys.clear()
        self.own_key = ""
        self.loops.clear()
        self.left.clear()
        self.world.training.changed()

    def power_on(self) -> None:
        self.power, self.paused, self.agent_still = True, False, False
        self.waits_for_storage = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._thaw()

    def freeze_agent(self) -> None:
        self.agent_still = True

    def thaw_agent(self) -> None:
        self.agent_still = False
        self._thaw()

    def _thaw(self) -> None:
        if self.agent is not None and not self.still:
            self.agent.thaw()

    @property
    def still(self) -> bool:
        """Whether its agent does nothing now."""
        return self.paused or self.agent_still

    @property
    def uninterruptible(self) -> bool:
        return self.driver_hangs or self.waits_for_storage

    # --- agents -------------------------------------------------------------------------------

    def start_loop(self, job: str) -> None:
        """Slurm's step begins on this node: a shell that keeps one agent alive."""
        if self.slurmd and job not in self.loops:
            self.loops.add(job)
            self._pause = AGENT_AGAIN_S[0]
            self.start_agent(job)

    def start_agent(self, job: str) -> None:
        if not self.power or job not in self.loops or self.agent is not None:
            return
        self._lives += 1
        if not self.own_key:
            self.own_key = f"{self.world.rng('key', self.name, self._lives).getrandbits(256):064x}"
        self.agent = SimulatedAgent(self, job, f"life-{self.name}-{self._lives}")
        self.agent.begin()

    def end_agent(self, again: bool = False) -> None:
        """The agent's process ends; its ranks do not. The loop starts the next one."""
        agent, self.agent = self.agent, None
        self.agent_still = False
        if agent is None:
            return
        agent.die()
        if again and agent.job in self.loops:
            self.world.later(self._pause, self.start_agent, agent.job)
            self._pause = min(2 * self._pause, AGENT_AGAIN_S[1])

    def agent_left(self, job: str) -> None:
        """It ended with 0, as it was told."""
        self.end_agent()
        self.loops.discard(job)
        self.left.add(job)
        self.world.slurm.agent_left(job)

    def end_job(self, job: str) -> None:
        """Slurm ends the job here: all of its processes, but for those that the kernel holds."""
        if self.agent is not None and self.agent.job == job:
            self.end_agent()
        self.loops.discard(job)
        self.keys.pop(job, None)
        if not self.uninterruptible:
            self.kill_ranks()
        elif self.ranks is not None:
            self.ranks.killed = True

    def deliver(self, job: str, endpoint: str) -> None:
        if job in self.loops:
            self.keys[job] = endpoint
            if self.agent is not None and self.agent.job == job:
                self.agent.keys_came()

    @property
    def key_hash(self) -> str:
        return speaker(self.agent.identity).key if self.agent is not None else ""

    # --- ranks --------------------------------------------------------------------------------

    def start_ranks(self, order: act.Start) -> None:
        old = self.ranks
        if old is not None and old.alive and old.attempt != order.attempt:
            self.world.held.broken(
                f"{self.name} starts ranks of attempt {order.attempt} beside those of {old.attempt}"
            )
        count = self.world.spec.ranks_per_node
        self.ranks = SimulatedRanks(order.attempt, order.slot, order.nnodes, order, count)
        self.world.held.ranks_started(self, order)
        self.world.training.joined(self, order)

    def wake_ranks(self) -> None:
        """What they slept for in the kernel is there: those that were killed meanwhile end."""
        if self.ranks is not None and self.ranks.killed and not self.uninterruptible:
            self.kill_ranks()

    def kill_ranks(self) -> None:
        if self.ranks is not None and self.ranks.alive:
            self.ranks.alive = 0
            self.world.training.changed()

    def rank_exits(self, code: int | None) -> None:
        """One rank ends by itself."""
        ranks = self.ranks
        if ranks is None or not ranks.alive or ranks.stopping:
            return
        number = ranks.slot * self.world.spec.ranks_per_node + ranks.alive - 1
        ranks.alive -= 1
        self.world.training.rank_exited(ranks.attempt)
        if self.agent is not None:
            self.agent.rank_exited(ranks, number, code)
        else:
            ranks.unseen_ends.append((number, None))
