"""What a seed stands for: a cluster, a job and the faults that befall them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One fault: when it comes, how long it stays, and where."""

    kind: str  # a row of supervisor.simulate.injections
    at: float  # seconds since the launch
    lasts: float  # seconds until the world is well again
    node: int = 0  # which, where it is one's
    amount: float = 0.5  # 0 to 1; what it means depends on the kind

    def text(self) -> str:
        return f"{self.kind} at {self.at:.0f} s for {self.lasts:.0f} s (node {self.node + 1})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPlan:
    """A world before it begins. Equal plans give equal worlds."""

    seed: int
    nodes: int = 5  # slots
    spares: int = 2
    more: int = 1  # nodes of the cluster that the run does not ask for
    step_s: float = 2.0
    save_every: int = 20  # steps
    save_s: float = 3.0
    load_s: float = 5.0
    all_report: bool = True  # every rank prints its steps; else rank 0 alone
    preflight: bool = False
    accounting: bool = True
    keep: int = 3
    injections: tuple[Injection, ...] = ()

    @property
    def size(self) -> int:
        return self.nodes + self.spares + self.more

    @property
    def quiet_from(self) -> float:
        """When the last fault is over."""
        return max((i.at + i.lasts for i in self.injections), default=0.0)


@dataclass(frozen=True, slots=True)
class Drawable:
    """How often a kind of fault is drawn, and how long it may last."""

    kind: str
    lasts: tuple[float, float]
    weight: float = 1.0


FAULTS, MANY_FAULTS = (3, 6), (7, 14)
MANY_EVERY = 5  # each fifth seed has many


def drawn(seed: int, kinds: Sequence[Drawable]) -> SeedPlan:
    """The plan of a seed: three faults or more, close together or hours apart."""
    rng = Random(f"plan/{seed}")  # noqa: S311 - nothing secret
    injections: list[Injection] = []
    at = rng.choice((rng.uniform(0, 30), rng.uniform(60, 300)))
    for _ in range(rng.randint(*(FAULTS if seed % MANY_EVERY else MANY_FAULTS))):
        (what,) = rng.choices(kinds, [kind.weight for kind in kinds])
        shortest, longest = what.lasts
        one = Injection(
            kind=what.kind,
            at=round(at, 2),
            lasts=round(shortest * (longest / shortest) ** rng.random(), 2) if longest else 0.0,
            node=rng.randrange(8),
            amount=round(rng.random(), 3),
        )
        injections.append(one)
        near = rng.random() < 0.6
        at += rng.uniform(0, 60) if near else one.lasts + rng.uniform(200, 30_000)
    return SeedPlan(
        seed=seed,
        nodes=rng.choice((4, 5, 5)),
        spares=rng.choice((1, 2, 2)),
        more=rng.choice((0, 1, 2)),
        step_s=rng.choice((0.5, 2.0, 5.0)),
        save_every=rng.choice((5, 20, 50)),
        save_s=rng.choice((0.5, 3.0, 20.0)),
        load_s=rng.uniform(1, 15),
        all_report=rng.random() < 0.5,
        preflight=rng.random() < 0.3,
        accounting=rng.random() < 0.6,
        keep=rng.choice((0, 2, 3)),
        injections=tuple(injections),
    )
