"""What is held in every simulated world, by what really happened in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.core import actions as act
from supervisor.core.diagnose import has_trained
from supervisor.core.types import Cause, Phase, Run

if TYPE_CHECKING:
    from supervisor.engine.loop import Engine
    from supervisor.simulate.nodes import SimulatedNode
    from supervisor.simulate.slurm import SimulatedJob
    from supervisor.simulate.storage import SavedCheckpoint
    from supervisor.simulate.world import SimulatedWorld

# A run in a world that is well again trains within this, in virtual seconds: the back-off of agents
# and of Slurm (30 s each), a silence of Slurm (30 s), a look at storage (60 s), the limits of the
# world's policy (supervisor/simulate/world.py), each twice.
RUNNING_WITHIN_S = 900.0
LOOK_S = 10.0  # how often status is looked at
UNSAID = 19  # … and so often in a row it may be silent: the world's limit for a first step
ADVANCES = 2.5  # ranks that made a step within so many step times train


class Held:
    """Keeps the first things that are wrong; a world is over with the first."""

    def __init__(self, world: SimulatedWorld) -> None:
        self._world = world
        self.wrong: list[str] = []
        self.person_stops = False
        self._unsaid = 0
        self._started: dict[tuple[int, int], str] = {}
        self._stops: set[int] = set()

    def broken(self, what: str) -> None:
        self._world.say(f"WRONG: {what}")
        self.wrong.append(what)

    # --- ranks --------------------------------------------------------------------------------

    def ranks_started(self, node: SimulatedNode, order: act.Start) -> None:
        there = self._started.setdefault((order.attempt, order.slot), node.name)
        if there != node.name:
            self.broken(
                f"slot {order.slot} of attempt {order.attempt} starts on {node.name}, "
                f"and did on {there}"
            )
        self._resumes(order)

    def stop_ordered(self, node: SimulatedNode, order: act.Stop) -> None:
        """Ranks whose steps advance are stopped for few reasons; this knows what is true."""
        training, run = self._world.training, self._world.run
        ranks = node.ranks
        if ranks is None or ranks.attempt != training.attempt or ranks.attempt in self._stops:
            return
        self._stops.add(ranks.attempt)
        limit = ADVANCES * self._world.plan.step_s + self._world.plan.save_s
        late = self._world.loop.time() - training.step_at
        if training.step is None or not training.advances() or late > limit or training.exits:
            return
        cause = run.incidents[-1].cause if run.incidents else None
        if self.person_stops or run.stopping_as is Phase.STOPPED or cause is Cause.QUARANTINE:
            return
        self.broken(
            f"attempt {order.attempt} trains (step {training.step}, {late:.1f} s ago) and "
            f"is stopped: {run.reason}"
        )

    # --- checkpoints --------------------------------------------------------------------------

    def _resumes(self, order: act.Start) -> None:
        """The newest good checkpoint of the attempt before is resumed, or it is said why not."""
        run = self._world.run
        old = [i.attempt for i in run.incidents if i.attempt < order.attempt]
        bad = (Cause.QUARANTINE, Cause.WRONG_STEP)
        if not old or any(i.cause in bad for i in run.incidents if i.attempt == old[-1]):
            return
        files = self._world.storage.files.values()
        good = [one for one in files if one.attempt == old[-1] and one.good]
        newest = max(good, key=lambda one: one.step, default=None)
        if newest is None or newest.step <= (order.resume_step or 0):
            return
        named = {r.path for r in run.rejected} | run.retired.keys()
        if newest.path not in named:
            self.broken(
                f"attempt {order.attempt} resumes step {order.resume_step or 0}; "
                f"{newest.path} is good, and nobody says why it is not taken"
            )

    def removed(self, one: SavedCheckpoint, command: str) -> None:
        newest = self._world.run.lineage[-1] if self._world.run.lineage else None
        if command == "discard" and newest is not None and newest.path == one.path:
            self.broken(f"{one.path} is the newest verified checkpoint, and is deleted")

    # --- Slurm --------------------------------------------------------------------------------

    def submitted(self, job: SimulatedJob) -> None:
        """Each request is one job; that one which was not confirmed has a twin is seen at the
        end."""

    # --- at the end ---------------------------------------------------------------------------

    def watch(self, run: Run) -> None:
        """Now and then."""
        for one in run.violations:
            self.broken(f"invariant {one.invariant}: {one.what}")
        launch_failed = not has_trained(run) and "no agent came" in run.reason
        if run.phase is Phase.HELD and not (self._world.may_be_held or launch_failed):
            self.broken(f"HELD: {run.reason}")
        if run.phase is Phase.DONE:
            self.broken(f"done, and nobody was: {run.reason}")

    def nothing_unsaid(self, engine: Engine) -> None:
        """Where no rank makes a step, status says first what is waited for."""
        run = engine.run
        quiet = self._world.loop.time() - self._world.training.step_at
        said = run.ended or run.phase is Phase.PENDING  # what Slurm's queue waits for is its reason
        if quiet < UNSAID * LOOK_S or said or engine.status()["attention"]:
            self._unsaid = 0
            return
        self._unsaid += 1
        if self._unsaid > UNSAID:
            self.broken(
                f"no step for {quiet:.0f} s, and nothing needs attention: "
                f"{run.phase.value}: {run.reason}"
            )

    def at_the_end(self, run: Run) -> None:
        """The world is well, and the run trains again."""
        attempt = run.attempt
        assert attempt is not None
        for node in self._world.nodes:
            ranks = node.ranks
            if (
                node.power
                and ranks is not None
                and ranks.alive
                and (ranks.attempt != attempt.number or node.name not in attempt.slots)
            ):
                self.broken(f"{node.name} still has ranks of attempt {ranks.attempt}: orphans")
        jobs = [job.job_id for job in self._world.slurm.jobs.values() if job.active]
        if len(jobs) != 1:
            self.broken(f"jobs {', '.join(jobs)} are active for one run")
