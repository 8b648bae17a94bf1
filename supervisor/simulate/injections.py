"""The faults that a simulated world knows: what each does, and how the world gets well again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.simulate.network import ENGINE
from supervisor.simulate.seed_plan import Drawable, Injection

if TYPE_CHECKING:
    from supervisor.simulate.nodes import SimulatedNode
    from supervisor.simulate.world import SimulatedWorld

Act = Callable[["SimulatedWorld", Injection], None]
Amount = tuple[float, float]
AT_ONCE = (0.0, 0.0)  # over as soon as it has come: what it did is for superv to repair


@dataclass(frozen=True, slots=True)
class InjectedKind:
    """A kind of fault."""

    begin: Act
    heal: Act
    drawable: Drawable
    may_hold: bool  # of unknown cause: again and again it may end in HELD


KINDS: dict[str, InjectedKind] = {}


def _nothing(world: SimulatedWorld, one: Injection) -> None:
    """It is over by itself."""


def kind(
    name: str,
    lasts: tuple[float, float],
    begin: Act,
    heal: Act = _nothing,
    *,
    weight: float = 1.0,
    may_hold: bool = False,
) -> None:
    KINDS[name] = InjectedKind(begin, heal, Drawable(name, lasts, weight), may_hold)


def drawables() -> list[Drawable]:
    return [one.drawable for one in KINDS.values()]


def _node(world: SimulatedWorld, one: Injection) -> SimulatedNode:
    return world.nodes[one.node % len(world.nodes)]


def _some(world: SimulatedWorld, one: Injection) -> list[SimulatedNode]:
    """As many nodes as the amount says, the one that is named first."""
    count = max(1, round(one.amount * len(world.nodes)))
    return [world.nodes[(one.node + i) % len(world.nodes)] for i in range(count)]


def counter(what: str, name: str) -> tuple[Act, Act]:
    """A fault that a part of the world counts: several of a kind may overlap."""

    def change(by: int) -> Act:
        def act(world: SimulatedWorld, one: Injection) -> None:
            part = getattr(world, what)
            setattr(part, name, getattr(part, name) + by)

        return act

    return change(1), change(-1)


# --- nodes ----------------------------------------------------------------------------------------


def _off(world: SimulatedWorld, node: SimulatedNode) -> None:
    if node.power:
        node.power_off()
        world.slurm.node_off(node)


def _on(world: SimulatedWorld, node: SimulatedNode) -> None:
    if not node.power:
        node.power_on()
        world.slurm.node_on(node)


def _stuck(world: SimulatedWorld, one: Injection) -> None:
    _node(world, one).driver_hangs = True


def _free(world: SimulatedWorld, one: Injection) -> None:
    _node(world, one).driver_hangs = False
    _node(world, one).wake_ranks()


def _sick(world: SimulatedWorld, one: Injection) -> None:
    _node(world, one).problem = "7 of 8 GPUs"


def _cured(world: SimulatedWorld, one: Injection) -> None:
    _node(world, one).problem = ""


def _clean(world: SimulatedWorld, one: Injection) -> None:
    """A cleaner of temporary folders: what superv keeps on the node is gone."""
    node = _node(world, one)
    node.keys.clear()
    node.own_key = ""
    if one.amount > 0.5:
        node.end_agent(again=True)


def _each(act: Callable[[SimulatedWorld, SimulatedNode], None]) -> Act:
    def on_some(world: SimulatedWorld, one: Injection) -> None:
        for node in _some(world, one):
            act(world, node)

    return on_some


kind(
    "node power off",
    (5.0, 1200.0),
    lambda world, one: _off(world, _node(world, one)),
    lambda world, one: _on(world, _node(world, one)),
    weight=2.0,
)
kind("nodes power off", (20.0, 600.0), _each(_off), _each(_on), weight=0.5)
kind(
    "node stands still",
    (0.5, 300.0),
    lambda world, one: _node(world, one).pause(),
    lambda world, one: _node(world, one).resume(),
)
kind("agent killed", AT_ONCE, lambda world, one: _node(world, one).end_agent(again=True))
kind(
    "agent stands still",
    (1.0, 300.0),
    lambda world, one: _node(world, one).freeze_agent(),
    lambda world, one: _node(world, one).thaw_agent(),
)
kind("ranks can't be killed", (10.0, 400.0), _stuck, _free)
kind("health checks fail", (40.0, 900.0), _sick, _cured)
kind("cleaner", AT_ONCE, _clean)
kind(
    "node's clock steps",
    (10.0, 300.0),
    lambda world, one: setattr(_node(world, one), "clock_off", (one.amount - 0.5) * 7200),
    lambda world, one: setattr(_node(world, one), "clock_off", 0.0),
    weight=0.3,
)


# --- network --------------------------------------------------------------------------------------


def _cuts(ways: Callable[[SimulatedWorld, Injection], list[tuple[str, str]]]) -> tuple[Act, Act]:
    def begin(world: SimulatedWorld, one: Injection) -> None:
        for source, target in ways(world, one):
            world.network.cut(source, target)

    def heal(world: SimulatedWorld, one: Injection) -> None:
        for source, target in ways(world, one):
            world.network.heal(source, target)

    return begin, heal


def _both(left: str, right: str) -> list[tuple[str, str]]:
    return [(left, right), (right, left)]


def _from_all(world: SimulatedWorld, one: Injection) -> list[tuple[str, str]]:
    name = _node(world, one).name
    others = (ENGINE, *(node.name for node in world.nodes if node.name != name))
    return [way for other in others for way in _both(name, other)]


def _from_engine(world: SimulatedWorld, one: Injection) -> list[tuple[str, str]]:
    return [way for node in _some(world, one) for way in _both(node.name, ENGINE)]


def _all_from_engine(world: SimulatedWorld, one: Injection) -> list[tuple[str, str]]:
    return [way for node in world.nodes for way in _both(node.name, ENGINE)]


def _between(world: SimulatedWorld, one: Injection) -> list[tuple[str, str]]:
    first = _node(world, one).name
    second = world.nodes[(one.node + 1) % len(world.nodes)].name
    return _both(first, second)


kind("node cut off", (1.0, 600.0), *_cuts(_from_all))
kind("nodes cut from the engine", (1.0, 600.0), *_cuts(_from_engine))
kind("engine cut off", (1.0, 900.0), *_cuts(_all_from_engine))
kind(
    "node can't reach the engine",
    (1.0, 300.0),
    *_cuts(lambda world, one: [(_node(world, one).name, ENGINE)]),
)
kind(
    "engine can't reach node",
    (1.0, 300.0),
    *_cuts(lambda world, one: [(ENGINE, _node(world, one).name)]),
)
kind("two nodes cut from each other", (1.0, 300.0), *_cuts(_between))


def _slow(world: SimulatedWorld, one: Injection) -> None:
    for node in _some(world, one):
        world.network.slow[node.name] = 0.05 + 4.0 * one.amount


def _fast(world: SimulatedWorld, one: Injection) -> None:
    for node in _some(world, one):
        world.network.slow.pop(node.name, None)


def _lossy(world: SimulatedWorld, one: Injection) -> None:
    for node in _some(world, one):
        world.network.lossy[node.name] = one.amount


def _lossless(world: SimulatedWorld, one: Injection) -> None:
    for node in _some(world, one):
        world.network.lossy.pop(node.name, None)


kind("messages late", (10.0, 400.0), _slow, _fast)
kind("connections break", (10.0, 400.0), _lossy, _lossless)


# --- the engine's machine -------------------------------------------------------------------------


def _wall(world: SimulatedWorld, one: Injection) -> None:
    """Its wall clock steps, and the next engine finds it so."""
    world.host.wall_off += (one.amount - 0.5) * 8000
    world.host.crash()


def _stand_still(world: SimulatedWorld, one: Injection) -> None:
    world.loop.pass_over(world.loop.time() + 1.0 + 600.0 * one.amount**3)


kind("engine killed", AT_ONCE, lambda world, one: world.host.crash(), weight=2.0)
kind("engine's machine loses power", AT_ONCE, lambda world, one: world.host.crash(power=True))
kind("engine's clock steps, engine killed", AT_ONCE, _wall)
kind("everything stands still", AT_ONCE, _stand_still, weight=0.5)
kind("journal's disk full", (1.0, 300.0), *counter("disk", "full"))


# --- Slurm ----------------------------------------------------------------------------------------


def _end_jobs(word: str) -> Act:
    def act(world: SimulatedWorld, one: Injection) -> None:
        for job in list(world.slurm.jobs.values()):
            if job.active:
                world.slurm.end(job.job_id, word)

    return act


def _forget(world: SimulatedWorld, one: Injection) -> None:
    world.slurm.forget()


def _drain(world: SimulatedWorld, one: Injection) -> None:
    world.slurm.drained[_node(world, one).name] = "maintenance [ann]"


def _undrain(world: SimulatedWorld, one: Injection) -> None:
    world.slurm.drained.pop(_node(world, one).name, None)
    world.slurm.schedule()


def _reboot(world: SimulatedWorld, one: Injection) -> None:
    _drain(world, one)
    _off(world, _node(world, one))


def _rebooted(world: SimulatedWorld, one: Injection) -> None:
    _on(world, _node(world, one))
    _undrain(world, one)


kind("slurm away", (1.0, 600.0), *counter("slurm", "away"))
kind("slurm hangs", (1.0, 300.0), *counter("slurm", "hangs"))
kind("slurm accepts, and its answer is lost", (5.0, 200.0), *counter("slurm", "unsure"))
kind("slurm without its configuration", (1.0, 200.0), *counter("slurm", "odd"))
kind("slurm says a new word", (1.0, 200.0), *counter("slurm", "new_word"), weight=0.5)
kind("slurm forgets its jobs", AT_ONCE, _forget, weight=0.5)
kind("job at its time limit", AT_ONCE, _end_jobs("TIMEOUT"), weight=1.5)
kind("job preempted", AT_ONCE, _end_jobs("PREEMPTED"), weight=0.5)
kind("admin drains a node", (60.0, 900.0), _drain, _undrain)
kind("admin reboots a node", (60.0, 400.0), _reboot, _rebooted)


# --- storage --------------------------------------------------------------------------------------


def _hang(world: SimulatedWorld, one: Injection) -> None:
    world.storage.hung += 1


def _answer(world: SimulatedWorld, one: Injection) -> None:
    world.storage.hung -= 1
    world.training.storage_answers()


def _stale(world: SimulatedWorld, one: Injection) -> None:
    world.storage.stale += 1
    world.storage.stale_since = world.loop.time()


def _damage(world: SimulatedWorld, one: Injection) -> None:
    """The newest checkpoint is not what it was."""
    files = world.storage.files.values()
    newest = max(files, key=lambda file: (file.attempt, file.step), default=None)
    if newest is not None and len(files) > 1:
        newest.damaged = True


kind("storage hangs", (1.0, 600.0), _hang, _answer, weight=2.0)
kind(
    "storage slow",
    (10.0, 300.0),
    lambda world, one: setattr(world.storage, "slow_s", 20.0 * one.amount**2),
    lambda world, one: setattr(world.storage, "slow_s", 0.0),
)
kind("storage shows saves as unfinished", (5.0, 300.0), _stale, counter("storage", "stale")[1])
kind("storage full", (5.0, 300.0), *counter("storage", "full"))
kind("newest checkpoint damaged", AT_ONCE, _damage, weight=0.5)


# --- ranks and people -----------------------------------------------------------------------------


def _exit(world: SimulatedWorld, one: Injection) -> None:
    parts = world.training.parts()
    if parts:
        parts[one.node % len(parts)].rank_exits(1 if one.amount < 0.7 else None)


def _cancel(world: SimulatedWorld, one: Injection) -> None:
    if not world.run.ended:
        world.held.person_stops = True
        _end_jobs("CANCELLED by 1000")(world, one)


def _stop(world: SimulatedWorld, one: Injection) -> None:
    world.person.stop(now=one.amount < 0.3)


def _quarantine(world: SimulatedWorld, one: Injection) -> None:
    world.person.quarantine()


def _exclude(world: SimulatedWorld, one: Injection) -> None:
    world.person.exclude(_node(world, one).name)


def _include(world: SimulatedWorld, one: Injection) -> None:
    world.person.exclude("")


kind("rank exits", AT_ONCE, _exit, weight=1.5, may_hold=True)
kind("ranks hang", AT_ONCE, lambda world, one: world.training.hang(), may_hold=True)
kind("person cancels the job", AT_ONCE, _cancel, weight=0.4)
kind("person stops the run", AT_ONCE, _stop, weight=0.4)
kind("person quarantines a checkpoint", AT_ONCE, _quarantine, weight=0.4)
kind("person excludes a node", (30.0, 400.0), _exclude, _include, weight=0.5)
