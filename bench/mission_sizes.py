"""A run's life folded event by event, at several sizes, and the CPU seconds that each part takes.

`python bench/mission_sizes.py NODES SPARES RANKS` prints one JSON object. It runs with the superv
that it finds first on PYTHONPATH, so that two checkouts can be compared: it uses nothing but
`step`, events and actions of any age.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.check_status import Status
from supervisor.core.machine import step
from supervisor.core.policy import Policy
from supervisor.core.ports import JobState
from supervisor.core.status import status
from supervisor.core.types import Evidence, Phase, RankExit, Run, RunSpec

TOO_LONG_S = 60.0  # a part that takes longer ends there, and its seconds are scaled up


class Life:
    """One run, and how long its parts took."""

    def __init__(self, nodes: int, spares: int, ranks: int, *, preflight: bool = False) -> None:
        self.nodes, self.spares, self.ranks = nodes, spares, ranks
        self.preflight = preflight  # nodes take slots once their health checks have answered
        self.names = [f"n{number:05d}" for number in range(nodes + spares)]
        self.seconds: dict[str, float] = {}
        self.now = 1000.0
        self.run: Run | None = None
        spec = RunSpec(
            name="moe",
            run_id="0123456789ab",
            nodes=nodes,
            spares=spares,
            ranks_per_node=ranks,
            checkpoint_dir="/ckpt",
            policy=Policy(),
            preflight=preflight,
        )
        self.take(ev.Launched(at=self.tick(), spec=spec))
        self.take(ev.EngineStarted(at=self.tick(), epoch=1, host="login", endpoint="tcp://h:1"))

    def tick(self) -> float:
        self.now += 0.001
        return self.now

    def take(self, event: ev.Event) -> None:
        self.run, _ = step(self.run, event)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] = time.process_time() - began

    def each(self, name: str, events: Iterator[ev.Event], count: int) -> None:
        """Fold all of them."""
        done, began = 0, time.process_time()
        for done, event in enumerate(events, 1):
            self.take(event)
            if (spent := time.process_time() - began) > TOO_LONG_S:
                raise SystemExit(json.dumps({**self.seconds, name: spent * count / done}))
        self.seconds[name] = time.process_time() - began

    def go(self) -> None:
        self.until_running()
        self.until_stopped()

    def until_running(self) -> None:
        submit = self._asked(act.Submit)[0]
        named = {"key": submit.key, "job_id": "7", "job_name": "sv-moe"}
        self.take(ev.Submitted(at=self.tick(), **named))
        seen = {"state": JobState.RUNNING, "raw": "RUNNING", "nodes": tuple(self.names)}
        self.take(ev.AllocationSeen(at=self.tick(), job_id="7", **seen))
        self.each("gathering", self._agents(), len(self.names))
        if self.preflight:
            self.each("health", self._health(), len(self.names))
        self._is(Phase.CHECKING)
        orders = self._asked(act.Prepare)
        answers = (
            ev.Prepared(at=self.tick(), key=o.key, node=o.node, attempt=1, port=30000)
            for o in orders
        )
        self.each("prepared", answers, self.nodes)
        self._is(Phase.STARTING)
        orders = self._asked(act.Start)
        started = (
            ev.RanksStarted(at=self.tick(), key=o.key, node=o.node, attempt=1, warm=True)
            for o in orders
        )
        self.each("started", started, self.nodes)
        steps = (ev.Progress(at=self.tick(), attempt=1, step=n) for n in range(1, 1001))
        self.each("1000 steps", steps, 1000)
        self._is(Phase.RUNNING)

    def until_stopped(self) -> None:
        for _ in range(3):
            with self.part("status"):
                assert self.run is not None
                status(self.run, self.now)
        self.each("exits", self._exits(), self.nodes * self.ranks)
        self._is(Phase.STOPPING)
        collects = self._asked(act.Collect)
        lines = (
            ev.Collected(at=self.tick(), key=o.key, node=o.node, attempt=1, evidence=_seen(o.node))
            for o in collects
        )
        self.each("collected", lines, self.nodes)
        stops = self._asked(act.Stop)
        gone = (ev.RanksStopped(at=self.tick(), key=o.key, node=o.node, attempt=1) for o in stops)
        self.each("stopped", gone, self.nodes)
        self._is(Phase.TRIAGE)

    def _agents(self) -> Iterator[ev.Event]:
        for name in self.names:
            at = {"node": name, "job_id": "7", "address": "10.0.0.1", "port": 4000}
            yield ev.AgentJoined(at=self.tick(), **at, agent=f"a-{name}")

    def _health(self) -> Iterator[ev.Event]:
        for name in self.names:
            yield ev.HealthSeen(at=self.tick(), node=name, agent=f"a-{name}", status=Status.OK)

    def _exits(self) -> Iterator[ev.Event]:
        """Every rank ends with an error, reported as agents of this superv report it."""
        together = getattr(ev, "RanksExited", None)
        for slot, name in enumerate(self.names[: self.nodes]):
            ranks = range(slot * self.ranks, (slot + 1) * self.ranks)
            ends = [RankExit(rank=r, node=name, at=self.tick(), code=1, signal=None) for r in ranks]
            if together is not None:
                yield together(at=self.tick(), attempt=1, node=name, exits=tuple(ends))
            else:
                yield from (ev.RankExited(at=self.tick(), attempt=1, exit=end) for end in ends)

    def _asked(self, kind: type[act.Action]) -> list[act.Action]:
        assert self.run is not None
        return [a for a in self.run.pending.values() if isinstance(a, kind)]

    def _is(self, phase: Phase) -> None:
        assert self.run is not None and self.run.phase is phase, self.run


def _seen(node: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(node=node, at=1.0, source="rank log", text=f"line {n}") for n in (1, 2))


if __name__ == "__main__":
    life = Life(*map(int, sys.argv[1:4]))
    life.go()
    print(json.dumps(life.seconds))
