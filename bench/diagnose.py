"""What `superv diagnose` costs and finds.

A gigabyte of a large job's log; and the logs rebuilt from public failure reports in
tests/data/diagnose, held against what was the matter with each.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.samples import REPO, BenchColumn, BenchSetup, Measurement, Sample, Target

BYTES = 1_000_000_000
RANKS = 480
LOGS = REPO / "tests/data/diagnose"
REPEATS = 3


def run(setup: BenchSetup) -> Iterator[Sample]:
    yield accuracy()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        log = Path(folder) / "slurm-1.out"
        written = write_log(log)
        for _ in range(REPEATS):
            yield speed(log, written)


def superv(*argv: str, cwd: Path = REPO) -> dict[str, Any]:
    argv = (sys.executable, "-m", "supervisor.cli", "diagnose", *argv, "--json")
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def accuracy() -> Sample:
    """The table of what was found; `more` names what was not."""
    counts = dict.fromkeys(("logs", "cause", "culprit", "wrong", "abstained"), 0.0)
    missed = []
    for row in csv.DictReader((LOGS / "truth.tsv").read_text().splitlines(), delimiter="\t"):
        folder, options = LOGS / row["log"], row["options"].split()
        files = sorted(name for name in os.listdir(folder) if name not in options)
        said = superv(*files, *options, cwd=folder)
        truth = set(filter(None, row["culprits"].split(",")))
        blamed = {one["node"] or f"rank {one['rank']}" for one in said["culprits"]}
        right = said["cause"] in row["causes"].split("|")
        counts["logs"] += 1
        counts["cause"] += right
        counts["culprit"] += blamed == truth
        counts["wrong"] += bool(blamed - truth)
        counts["abstained"] += said["cause"] == "unknown"
        if not right or blamed != truth:
            missed.append(row["log"])
    logs = counts.pop("logs")
    shares = {key: 100 * count / logs for key, count in counts.items()}
    return Sample(case="public reports", values=shares, more={"logs": logs, "missed": missed})


def speed(log: Path, size: int) -> Sample:
    before, began = os.times(), time.perf_counter()
    said = superv(str(log))
    took, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    assert said["cause"] == "gpu-memory-error", said
    return Sample(case="1 GB, 480 ranks", values={"took": took, "cpu": cpu}, more={"bytes": size})


def write_log(path: Path) -> int:
    """srun-labelled lines: TorchTitan's steps, NCCL's channels, some text that never repeats."""
    rng = random.Random(2)
    written = step = 0
    with path.open("wb") as out:
        while written < BYTES:
            lines = []
            for _ in range(20_000):
                step += 1
                lines.append(_line(step, rng))
            block = b"\n".join(lines) + b"\n"
            out.write(block)
            written += len(block)
        last = b" 57: [rank57]: RuntimeError: CUDA error: uncorrectable ECC error encountered\n"
        out.write(last)
    return written + len(last)


def _line(step: int, rng: random.Random) -> bytes:
    rank = rng.randrange(RANKS)
    kind = step % 50
    if kind < 35:
        at = b"2026-11-24 10:%02d:%02d,%03d" % (step // 60 % 60, step % 60, step % 1000)
        return (
            b"%3d: [rank%d]:[titan] %s - root - INFO - step: %d  loss:  %.5f  grad_norm: %.4f  "
            b"memory: 61.2GiB(34.1%%)  tps: %d  tflops: %.2f  mfu: %.2f%%"
            % (
                rank,
                rank,
                at,
                step // RANKS,
                rng.random() * 9,
                rng.random(),
                rng.randrange(9999),
                rng.random() * 500,
                rng.random() * 50,
            )
        )
    if kind < 49:
        return b"%3d: n%d:%d:%d [%d] NCCL INFO Channel %02d/0 : %d[%d] -> %d[%d] via NET/IB/%d" % (
            rank,
            rank // 8,
            rank * 7,
            rank * 9,
            rank % 8,
            kind,
            rank,
            rank % 8,
            rank + 8,
            rank % 8,
            kind % 8,
        )
    return b"%3d: sample %s" % (rank, hashlib.sha256(b"%d" % step).hexdigest().encode() * 2)


MEASUREMENT = Measurement(
    name="diagnose",
    about="superv diagnose: a gigabyte of log, and logs of public failure reports",
    run=run,
    columns=(
        BenchColumn(key="took", title="took", unit="s"),
        BenchColumn(key="cpu", title="processor time", unit="s"),
        BenchColumn(key="cause", title="cause right", unit="%"),
        BenchColumn(key="culprit", title="culprit right", unit="%"),
        BenchColumn(key="wrong", title="wrongly blamed", unit="%"),
        BenchColumn(key="abstained", title="abstained", unit="%"),
    ),
    targets=(
        Target(case="1 GB, 480 ranks", key="took", at_most=30.0),
        Target(case="public reports", key="wrong", at_most=0.0),
    ),
    repeat=REPEATS,
)
