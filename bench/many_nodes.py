"""63 nodes on one machine: all agents there, 480 ranks running again, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

from bench.footprint import COLUMNS as FOOTPRINT
from bench.footprint import footprint
from bench.lab_run import PYTHON, LabRun, check_warm, lab
from bench.samples import REPO, BenchColumn, BenchSetup, Measurement, Sample, Target
from supervisor.core import events as ev

NODES, SPARES, RANKS = 60, 3, 8
JOB = {
    "nodes": NODES,
    "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
    "spares": SPARES,
    "trainer": {
        "script": str(REPO / "bench/trainers/placeholder.py"),
        "python": PYTHON,
        "ranks_per_node": RANKS,
        "preload": ["socket"],
    },
}
LAUNCHES = 3


def run(setup: BenchSetup) -> Iterator[Sample]:
    with lab(NODES + SPARES) as there:
        for number in range(1, LAUNCHES + 1):
            with LabRun(there, {**JOB, "name": f"many-{number}"}) as training:
                training.until_step(1, within_s=180)
                yield launched(training)
                if number == LAUNCHES:
                    yield footprint(training, "at rest")
                    yield from killed(setup, training)
            there.wait_idle()


def launched(training: LabRun) -> Sample:
    """From the start of `superv launch` on."""
    granted = min(e.at for e in training.events(ev.AllocationSeen) if e.state == "running")
    keys = min(e.at for e in training.events(ev.KeysSent))
    joined = {e.node: e.at for e in reversed(training.events(ev.AgentJoined))}
    if len(joined) != NODES + SPARES:
        raise RuntimeError(f"{len(joined)} agents registered, not {NODES + SPARES}")
    began = training.launched_at
    return Sample(
        case="launch",
        values={
            "granted": granted - began,
            "keys": keys - began,
            "first_agent": min(joined.values()) - began,
            "registered": max(joined.values()) - began,
            "ordered_first": training.start_ordered(0) - began,
            "ranks_first": max(e.at for e in training.events(ev.RanksStarted)) - began,
        },
    )


def killed(setup: BenchSetup, training: LabRun) -> Iterator[Sample]:
    for number in range(1, setup.repeat + 1):
        status = training.until_step(1)
        slot = (number * 7) % NODES
        fault = training.kill_rank(status["slots"][slot]["node"], slot * RANKS + number % RANKS)
        incident = training.until_recovered(number, within_s=120)
        check_warm(incident, True)
        ordered = training.start_ordered(incident["attempt"])
        yield Sample(
            case="rank killed",
            values={
                "known": incident["suspected"] - fault,
                "stop": incident["stopped"] - incident["suspected"],
                "order": ordered - incident["stopped"],
                "start": incident["relaunched"] - ordered,
                "running": incident["relaunched"] - fault,
                "met": incident["first_step"] - fault,
            },
            more={"clock_ahead": training.clock_ahead()},
        )


MEASUREMENT = Measurement(
    name="many-nodes",
    about=f"{NODES}+{SPARES} nodes, {RANKS} placeholder ranks each ({NODES * RANKS}), warm",
    columns=(
        BenchColumn(key="granted", title="launch -> nodes granted", unit="s"),
        BenchColumn(key="keys", title="launch -> keys on all nodes", unit="s"),
        BenchColumn(key="first_agent", title="launch -> first agent registered", unit="s"),
        BenchColumn(key="registered", title="launch -> all agents registered", unit="s"),
        BenchColumn(key="ordered_first", title="launch -> ranks ordered", unit="s"),
        BenchColumn(key="ranks_first", title="launch -> all ranks started", unit="s"),
        *FOOTPRINT,
        BenchColumn(key="known", title="kill -> known to the engine", unit="s"),
        BenchColumn(key="stop", title="known -> old ranks gone", unit="s"),
        BenchColumn(key="order", title="gone -> relaunch ordered", unit="s"),
        BenchColumn(key="start", title="ordered -> all ranks started", unit="s"),
        BenchColumn(key="running", title="kill -> all ranks running again", unit="s"),
        BenchColumn(key="met", title="kill -> all ranks met at rank 0", unit="s"),
    ),
    targets=(
        Target(case="launch", key="registered", at_most=8.0),
        Target(case="rank killed", key="running", at_most=1.5),
        Target(case="at rest", key="engine_rss", at_most=60.0),
        Target(case="at rest", key="agent_rss", at_most=40.0),
        Target(case="at rest", key="agent_cpu", at_most=1.0),
    ),
    repeat=7,
    run=run,
)
