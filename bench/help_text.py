"""How long `superv --help` takes, process and all."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.samples import BenchColumn, BenchSetup, Measurement, NotMeasuredError, Sample, Target
from supervisor import proc


def run(setup: BenchSetup) -> Iterator[Sample]:
    superv = Path(sys.executable).with_name("superv")
    if not superv.exists():
        raise NotMeasuredError(f"{superv}: not there; run the bench by `make bench`")
    for _ in range(setup.repeat):
        began = time.perf_counter()
        done = proc.run_sync([str(superv), "--help"], deadline_s=30)
        took = time.perf_counter() - began
        if done.rc != 0 or "Usage: superv" not in done.out:
            raise RuntimeError(f"superv --help: {done.why()}")
        yield Sample(case="superv --help", values={"took": took})


MEASUREMENT = Measurement(
    name="help",
    about="superv --help, from its start to its end",
    columns=(BenchColumn(key="took", title="took", unit="ms"),),
    targets=(Target(case="superv --help", key="took", at_most=0.150),),
    repeat=20,
    run=run,
)
