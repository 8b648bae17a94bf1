"""A node loses power while steps take 0.1 s; a spare takes its slot. A fresh lab for every try."""

from __future__ import annotations

from collections.abc import Iterator

from bench.lab_run import LabRun, check_warm, lab, ring_job
from bench.samples import BenchColumn, BenchSetup, Measurement, Sample, Target

NODES, SPARES, RANKS = 2, 1, 2
VICTIM_SLOT = 1


def run(setup: BenchSetup) -> Iterator[Sample]:
    job = ring_job("off", nodes=NODES, spares=SPARES, ranks=RANKS, warm=True)
    for _ in range(setup.repeat):
        with lab(NODES + SPARES) as there, LabRun(there, job) as training:
            status = training.until_step(25)
            fault = there.poweroff(status["slots"][VICTIM_SLOT]["node"]).at
            incident = training.until_recovered(1)
            check_warm(incident, True)
            ordered = training.start_ordered(incident["attempt"])
            yield Sample(
                case="warm",
                values={
                    "suspected": incident["suspected"] - fault,
                    "confirm": incident["confirmed"] - incident["suspected"],
                    "stop": incident["stopped"] - incident["confirmed"],
                    "order": ordered - incident["stopped"],
                    "start": incident["relaunched"] - ordered,
                    "relaunched": incident["relaunched"] - fault,
                    "step": incident["first_step"] - incident["relaunched"],
                    "total": incident["first_step"] - fault,
                },
                more={
                    "witness": incident["evidence"][1]["source"],
                    "clock_ahead": training.clock_ahead(),
                },
            )


MEASUREMENT = Measurement(
    name="node-off",
    about=f"a node powered off; {NODES}+{SPARES} nodes, {RANKS} ranks each, steps of 0.1 s",
    columns=(
        BenchColumn(key="suspected", title="off -> suspected", unit="s"),
        BenchColumn(key="confirm", title="suspected -> confirmed", unit="s"),
        BenchColumn(key="stop", title="confirmed -> the other ranks gone", unit="s"),
        BenchColumn(key="order", title="gone -> relaunch ordered", unit="s"),
        BenchColumn(key="start", title="ordered -> all ranks started", unit="s"),
        BenchColumn(key="relaunched", title="off -> ranks started on the spare", unit="s"),
        BenchColumn(key="step", title="started -> first new step", unit="s"),
        BenchColumn(key="total", title="off -> first new step", unit="s"),
    ),
    targets=(
        Target(case="warm", key="suspected", at_most=3.0),
        Target(case="warm", key="relaunched", at_most=5.0),
    ),
    repeat=7,
    run=run,
)
