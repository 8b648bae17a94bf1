"""The simulated trainer: steps that need every rank, saves that need storage."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from supervisor.core import actions as act
from supervisor.simulate.storage import SavedCheckpoint

if TYPE_CHECKING:
    from supervisor.simulate.nodes import SimulatedNode, SimulatedRanks
    from supervisor.simulate.world import SimulatedWorld

LOOK_S = 1.0  # how often ranks that stand still try again


class Training:
    """The ranks of the newest attempt as one job: coupled, so that one that is away stops all."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world
        self.attempt = 0
        self.step: int | None = None  # the newest of the attempt
        self.step_at = 0.0
        self.exits = 0  # ranks of the attempt that ended by themselves
        self.steps = 0  # of all attempts
        self._first: act.Start | None = None
        self._ready_at: float | None = None
        self._saving: float | None = None  # a save ends then
        self._hangs = 0  # the attempt whose ranks hang
        self._timer: asyncio.TimerHandle | None = None

    def joined(self, node: SimulatedNode, order: act.Start) -> None:
        if order.attempt > self.attempt:
            self.attempt, self.step, self._first = order.attempt, None, order
            self.exits, self._ready_at, self._saving = 0, None, None
            self.step_at = self._world.loop.time()
        self.changed()

    def changed(self) -> None:
        if self._timer is None and self._first is not None:
            self._timer = self._world.loop.call_later(0.1, self._tick)

    def hang(self) -> None:
        """The ranks of this attempt make no step any more."""
        self._hangs = self.attempt

    def storage_answers(self) -> None:
        """Ranks that slept for it wake up."""
        if self._world.storage.answers:
            for node in self._world.nodes:
                node.waits_for_storage = False
                node.wake_ranks()

    def rank_exited(self, attempt: int) -> None:
        if attempt == self.attempt:
            self.exits += 1

    # --- what goes on -------------------------------------------------------------------------

    def parts(self) -> list[SimulatedNode]:
        """The nodes that hold ranks of the attempt, by slot; fewer than there are slots: some
        are away."""
        found: dict[int, SimulatedNode] = {}
        for node in self._world.nodes:
            ranks = node.ranks
            if node.power and ranks is not None and self._whole(ranks):
                found[ranks.slot] = node
        return [found[slot] for slot in sorted(found)]

    def _whole(self, ranks: SimulatedRanks) -> bool:
        whole = ranks.alive == self._world.spec.ranks_per_node and not ranks.killed
        return ranks.attempt == self.attempt and whole

    def advances(self) -> bool:
        """Whether nothing keeps the next step from coming."""
        there = self.parts()
        if self._first is None or len(there) < self._first.nnodes or self._hangs == self.attempt:
            return False
        if any(node.paused or node.uninterruptible for node in there):
            return False
        return not self._world.network.any_cut(tuple(node.name for node in there))

    def _tick(self) -> None:
        self._timer = None
        if not any(
            node.ranks is not None and node.ranks.alive and node.ranks.attempt == self.attempt
            for node in self._world.nodes
        ):
            return  # nobody is left: the next start begins again
        self._timer = self._world.loop.call_later(self._next(), self._tick)

    def _next(self) -> float:
        """Do what is due; returns when to look again, in seconds."""
        plan, now, order = self._world.plan, self._world.loop.time(), self._first
        assert order is not None
        if not self.advances():
            return LOOK_S
        if self.step is None:
            if self._ready_at is None:
                self._ready_at = now + plan.load_s
            if now < self._ready_at:
                return self._ready_at - now
            if order.resume_path is not None and not self._world.storage.answers:
                self._wait_for_storage()
                return LOOK_S
            if not self._begin(order):
                return LOOK_S
        elif self._saving is not None:
            if now < self._saving:
                return self._saving - now
            if not self._save(order):
                return LOOK_S
        self._one_step()
        if (
            order.save_dir is not None
            and self.step is not None
            and not (self.step % plan.save_every)
        ):
            self._saving = now + plan.save_s
            return plan.save_s
        return plan.step_s

    def _begin(self, order: act.Start) -> bool:
        resumed = order.resume_step or 0
        if order.resume_path is not None:
            there = self._world.storage.files.get(order.resume_path)
            if there is None:
                self._world.held.broken(f"ranks were told to resume {order.resume_path}: gone")
            elif not there.good:  # damaged since it was verified: the trainer says so and ends
                self.parts()[0].rank_exits(1)
                return False
        self.step = resumed
        slot0 = self.parts()[0]
        if slot0.agent is not None:
            slot0.agent.resumed(self.attempt, resumed)
        return True

    def _one_step(self) -> None:
        assert self.step is not None
        self.step += 1
        self.steps += 1
        self.step_at = self._world.loop.time()
        for node in self.parts():
            if self._tells(node) and node.agent is not None:
                node.agent.new_step()

    def _save(self, order: act.Start) -> bool:
        """Finish a save; False while storage does not let it."""
        assert self.step is not None and order.save_dir is not None
        if not self._world.storage.answers:
            self._wait_for_storage()
            return False
        self._saving = None
        if self._world.storage.full:
            return True  # the trainer goes on without it
        self._world.storage.save(
            SavedCheckpoint(
                path=f"{order.save_dir}/step-{self.step}", step=self.step, attempt=self.attempt
            )
        )
        return True

    def _wait_for_storage(self) -> None:
        for node in self.parts():
            node.waits_for_storage = True

    def skip(self, seconds: float) -> None:
        """A quiet spell passes at once: steps and saves go on as they would have."""
        if self.step is None or self._first is None:
            return
        plan = self._world.plan
        save_dir = self._first.save_dir
        round_s = plan.save_every * plan.step_s + plan.save_s
        rounds = int(seconds / round_s)
        before = self.step
        self.step += rounds * plan.save_every
        self.steps += self.step - before
        saves = [n for n in range(before + 1, self.step + 1) if n % plan.save_every == 0]
        for number in saves[-3:] if save_dir is not None else ():
            self._world.storage.save(
                SavedCheckpoint(path=f"{save_dir}/step-{number}", step=number, attempt=self.attempt)
            )

    # --- what is heard of it ------------------------------------------------------------------

    def _tells(self, node: SimulatedNode) -> bool:
        return self._world.plan.all_report or (node.ranks is not None and node.ranks.slot == 0)

    def heard(self, node: SimulatedNode) -> tuple[int | None, float | None]:
        """The step and loss that a node's agent knows of."""
        ranks = node.ranks
        if ranks is None or ranks.attempt != self.attempt or not self._tells(node):
            return None, None
        if self.step is None or self.step == (ranks.order.resume_step or 0):
            return None, None
        return self.step, 2.5
