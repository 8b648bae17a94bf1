"""What `superv demo` plays, some times: TorchTitan on 2+1 nodes, and a node loses power."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from bench.lab_run import lab
from bench.samples import OUT, Column, Measurement, Sample, Setup
from bench.torchtitan import MEASUREMENT as TITAN
from bench.torchtitan import parts
from supervisor.cli import demo


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is shown meanwhile, also by child processes, goes to a file."""
    OUT.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1)
    with (OUT / "demo.log").open("a") as log:
        os.dup2(log.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def run(setup: Setup) -> Iterator[Sample]:
    python = setup.need_titan()
    for _ in range(setup.repeat):
        with lab(3, python) as there:
            with quiet():
                status = demo.play(there, python)
                demo.superv(there, "stop", demo.RUN, "--now")
            fault = [at for at, name, _ in demo.read_faults(there) if name == "poweroff"][-1]
            incident = status["incidents"][-1]
            told = ("suspected", "confirmed", "stopped", "relaunched")
            values = {name: incident[name] - fault for name in told}
            yield Sample(
                case="warm" if incident["warm"] else "cold",
                values=values | {k: v for k, v in parts(incident, fault).items() if k != "stop"},
                more={"steps_lost": incident["steps_lost"]},
            )


MEASUREMENT = Measurement(
    name="demo",
    about="superv demo: deepseek_v3 on 2+1 nodes, a node powered off; times from the fault on",
    columns=(
        Column(key="suspected", title="off -> suspected", unit="s"),
        Column(key="confirmed", title="off -> confirmed", unit="s"),
        Column(key="stopped", title="off -> the other ranks gone", unit="s"),
        Column(key="relaunched", title="off -> ranks started on the spare", unit="s"),
        *(column for column in TITAN.columns if column.key != "stop" and column.key != "total"),
        Column(key="total", title="off -> first new step", unit="s"),
    ),
    targets=(),
    repeat=3,
    run=run,
)
