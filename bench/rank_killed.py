"""A rank is killed on 4+1 nodes: kill → known → old ranks gone → ordered → started → first step."""

from __future__ import annotations

from collections.abc import Iterator

from bench.footprint import COLUMNS as FOOTPRINT
from bench.footprint import footprint
from bench.lab_run import LabRun, Status, check_warm, lab, ring_job
from bench.samples import BenchColumn, BenchSetup, Measurement, Sample, Target

NODES, SPARES, RANKS = 4, 1, 8
# case → whether ranks are forked, whether the trainer saves
CASES = {"warm": (True, True), "no checkpoints": (True, False), "cold": (False, True)}


def parts(run: LabRun, incident: Status, fault: float) -> dict[str, float]:
    """An incident as intervals, in the order in which they follow each other."""
    ordered, scanned = run.start_ordered(incident["attempt"]), run.scanned(incident)
    return {
        "known": incident["suspected"] - fault,
        "stop": incident["stopped"] - incident["suspected"],
        "order": ordered - incident["stopped"],
        "verify": scanned - incident["stopped"],
        "prepare": ordered - scanned,
        "start": incident["relaunched"] - ordered,
        "step": incident["first_step"] - incident["relaunched"],
        "total": incident["first_step"] - fault,
    }


COLUMNS = (
    BenchColumn(key="known", title="kill -> known to the engine", unit="ms"),
    BenchColumn(key="stop", title="known -> old ranks gone", unit="ms"),
    BenchColumn(key="order", title="gone -> relaunch ordered", unit="ms"),
    BenchColumn(key="verify", title="  of that: checkpoints verified", unit="ms"),
    BenchColumn(key="prepare", title="  of that: nodes prepared", unit="ms"),
    BenchColumn(key="start", title="ordered -> all ranks started", unit="ms"),
    BenchColumn(key="step", title="started -> first new step", unit="ms"),
    BenchColumn(key="total", title="kill -> first new step", unit="ms"),
)


def run(setup: BenchSetup) -> Iterator[Sample]:
    for case, (warm, saves) in CASES.items():
        job = ring_job("rank", nodes=NODES, spares=SPARES, ranks=RANKS, warm=warm, saves=saves)
        with lab(NODES + SPARES) as there, LabRun(there, job) as training:
            if case == "warm":
                training.until_step(15)
                yield footprint(training, "training")
            for number in range(1, setup.repeat + 1):
                status = training.until_step(15)
                slot = number % NODES  # another node each time: none is blamed twice running
                node = status["slots"][slot]["node"]
                fault = training.kill_rank(node, slot * RANKS + number % RANKS)
                incident = training.until_recovered(number)
                check_warm(incident, warm)
                yield Sample(
                    case=case,
                    values=parts(training, incident, fault),
                    more={"node": node, "clock_ahead": training.clock_ahead()},
                )


MEASUREMENT = Measurement(
    name="rank-killed",
    about=f"SIGKILL of a rank; {NODES}+{SPARES} nodes, {RANKS} ranks each, steps of 0.1 s",
    columns=(*COLUMNS, *FOOTPRINT),
    targets=(
        Target(case="warm", key="known", at_most=0.010),
        Target(case="warm", key="order", at_most=0.050),
        Target(case="training", key="agent_rss", at_most=40.0),
        Target(case="training", key="agent_cpu", at_most=1.0),
    ),
    repeat=10,
    run=run,
)
