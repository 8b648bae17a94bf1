"""What `superv demo` shows, some times: TorchTitan on 2+1 nodes, and a node loses power."""

from __future__ import annotations

from collections.abc import Iterator

from bench.lab_run import LabRun, check_warm, lab
from bench.samples import BenchColumn, BenchSetup, Measurement, Sample
from bench.torchtitan import MEASUREMENT as TITAN
from bench.torchtitan import NODES, parts, titan_job
from supervisor.cli.demo import STEPS_BEFORE, VICTIM_SLOT

SPARES = 1


def run(setup: BenchSetup) -> Iterator[Sample]:
    python = setup.need_titan()
    for _ in range(setup.repeat):
        with lab(NODES + SPARES, python) as there:
            job = titan_job(there, python, "moe-demo", spares=SPARES, warm=True)
            with LabRun(there, job) as training:
                status = training.until_step(STEPS_BEFORE, within_s=240)
                fault = there.poweroff(status["slots"][VICTIM_SLOT]["node"]).at
                incident = training.until_recovered(1, within_s=240)
                check_warm(incident, True)
                phases = ("suspected", "confirmed", "stopped", "relaunched")
                values = {name: incident[name] - fault for name in phases}
                later = {k: v for k, v in parts(incident, fault).items() if k != "stop"}
                yield Sample(
                    case="warm",
                    values=values | later,
                    more={"steps_lost": incident["steps_lost"]},
                )


MEASUREMENT = Measurement(
    name="demo",
    about="a node powered off; deepseek_v3 (lab flavor), 2+1 nodes, as in superv demo",
    columns=(
        BenchColumn(key="suspected", title="off -> suspected", unit="s"),
        BenchColumn(key="confirmed", title="off -> confirmed", unit="s"),
        BenchColumn(key="stopped", title="off -> the other ranks gone", unit="s"),
        BenchColumn(key="relaunched", title="off -> ranks started on the spare", unit="s"),
        *(column for column in TITAN.columns if column.key != "stop" and column.key != "total"),
        BenchColumn(key="total", title="off -> first new step", unit="s"),
    ),
    targets=(),
    repeat=3,
    run=run,
)
