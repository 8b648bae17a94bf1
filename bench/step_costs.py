"""What a step costs at several sizes, and how long a journal takes to open, in CPU seconds.

SUPERV_BASELINE names another checkout: it is measured in turn, for ratios of one run.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.samples import (
    REPO,
    BenchColumn,
    BenchSetup,
    Measurement,
    NotMeasuredError,
    Sample,
    Target,
)
from supervisor import proc
from supervisor.core import events as ev
from supervisor.core.machine import step
from supervisor.core.policy import Policy
from supervisor.core.types import Run, RunSpec
from supervisor.run import folded
from supervisor.run.journal import Journal, fold

SIZES = ((60, 3), (1000, 50), (10_000, 500))  # nodes and spares, of 8 ranks each
PARTS = (
    "gathering",
    "prepared",
    "started",
    "1000 steps",
    "status",
    "exits",
    "collected",
    "stopped",
)
SLOW_S = 1800.0
DAY_S = 86_400  # a step a second is journaled


def run(setup: BenchSetup) -> Iterator[Sample]:
    baseline = os.environ.get("SUPERV_BASELINE", "")
    if baseline and not (Path(baseline) / "supervisor/core/machine.py").is_file():
        raise NotMeasuredError(f"SUPERV_BASELINE={baseline}: no checkout of superv")
    for nodes, spares in SIZES:
        for number in range(setup.repeat):
            yield life(REPO, nodes, spares, f"{nodes + spares} nodes")
            if baseline and (number == 0 or nodes < 10_000):
                yield life(Path(baseline), nodes, spares, f"{nodes + spares} nodes, baseline")
    with tempfile.TemporaryDirectory(prefix="superv-bench-") as folder:
        yield from journal(Path(folder) / "journal.jsonl", setup.repeat)


def life(checkout: Path, nodes: int, spares: int, case: str) -> Sample:
    argv = [sys.executable, str(REPO / "bench/mission_sizes.py"), str(nodes), str(spares), "8"]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = proc.run_sync(argv, deadline_s=SLOW_S, env=env, cwd=str(checkout))
    lines = (done.out or done.err).strip().splitlines()
    try:
        values = json.loads(lines[-1])  # a part that took too long is the last one that is told
    except (ValueError, IndexError):
        raise RuntimeError(f"{case}: {done.why()}") from None
    return Sample(case=case, values=values)


def journal(path: Path, repeat: int) -> Iterator[Sample]:
    """A day's journal, opened by whoever only reads."""
    spec = RunSpec(
        name="moe",
        run_id="0123456789ab",
        nodes=60,
        spares=3,
        ranks_per_node=8,
        checkpoint_dir="/ckpt",
        policy=Policy(),
    )
    book, now = Journal(path), 1_000_000.0
    state: Run | None = None
    launched: list[ev.Event] = [ev.Launched(at=now, spec=spec)]
    steps = (ev.Progress(at=now + n, attempt=1, step=n, loss=2.5) for n in range(DAY_S))
    for event in (*launched, *steps):
        state, actions = step(state, event)
        book.append(event, actions, epoch=1, run=state)
    book.close()
    for _ in range(repeat):
        began = time.process_time()
        fold(path)
        kept = time.process_time() - began
        yield Sample(case="a day's journal", values={"kept": kept})
    folded.path_of(path).unlink()
    for _ in range(min(repeat, 3)):
        began = time.process_time()
        fold(path)
        yield Sample(case="a day's journal", values={"whole": time.process_time() - began})


MEASUREMENT = Measurement(
    name="step-costs",
    about="folding events of runs of several sizes, and a day's journal; CPU time",
    columns=(
        *(BenchColumn(key=part, title=part, unit="ms") for part in PARTS),
        BenchColumn(key="kept", title="open, what it folds into is kept", unit="ms"),
        BenchColumn(key="whole", title="open, folded whole", unit="ms"),
    ),
    targets=(
        Target(case="10500 nodes", key="gathering", at_most=1.0),
        Target(case="10500 nodes", key="exits", at_most=2.0),
        Target(case="10500 nodes", key="status", at_most=0.2),
        Target(case="a day's journal", key="kept", at_most=0.5),
    ),
    repeat=3,
    run=run,
)
