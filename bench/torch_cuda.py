"""A rank that trains on a GPU is killed: warm and cold relaunch on this machine's own GPUs.

`superv launch` with `launcher: local`: no Slurm, one node, a rank for each GPU. The trainer loads
its newest checkpoint, so what is timed is a whole recovery. Every step that was made twice must
have lost the same, digit for digit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.lab_run import until
from bench.samples import (
    REPO,
    BenchColumn,
    BenchSetup,
    Measurement,
    NotMeasuredError,
    Sample,
    WrongError,
)

TRAINER = REPO / "bench/trainers/cuda.py"
STEPS_BEFORE = 12  # a save is among them
WITHIN_S = 120.0

Step = tuple[int, int, float, str]  # pid, step, time, loss


def gpus(python: Path) -> int:
    """How many GPUs that Python's torch can use. Raises NotMeasuredError where there is none."""
    ask = "import torch; print(torch.cuda.device_count() if torch.version.cuda else 0)"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=WITHIN_S)
    count = int(done.stdout.strip() or 0) if done.returncode == 0 else 0
    if not count:
        raise NotMeasuredError("no GPU here that torch can use")
    return count


def steps(path: Path) -> list[Step]:
    with contextlib.suppress(FileNotFoundError):
        rows = [line.split() for line in path.read_text().split("\n")[:-1]]
        return [(int(pid), int(step), float(at), loss) for pid, step, at, loss in rows]
    return []


def settled(path: Path) -> int:
    """The pid of rank 0, once it has made some steps."""

    def look() -> int | None:
        newest = [pid for pid, *_ in steps(path)[-STEPS_BEFORE:]]
        return newest[0] if len(newest) == STEPS_BEFORE and len(set(newest)) == 1 else None

    return int(until(look, "steps", WITHIN_S))


def check_losses(path: Path) -> int:
    """How many steps were made more than once. Raises WrongError where their losses differ."""
    losses = defaultdict(list)
    for _, step, _, loss in steps(path):
        losses[step].append(loss)
    for step, seen in losses.items():
        if len(set(seen)) > 1:
            raise WrongError(f"step {step} was made again with another loss: {', '.join(seen)}")
    return sum(len(seen) > 1 for seen in losses.values())


def superv(home: Path, *argv: str) -> str:
    """Raises RuntimeError."""
    env = {**os.environ, "HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    command = [sys.executable, "-m", "supervisor.cli", *argv]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=WITHIN_S)
    if done.returncode:
        raise RuntimeError(f"superv {argv[0]}: {done.stderr}")
    return done.stdout


def incidents(home: Path, name: str) -> list[dict[str, Any]]:
    status: dict[str, Any] = json.loads(superv(home, "status", name, "--json"))
    found: list[dict[str, Any]] = status["incidents"]
    return found


def run(setup: BenchSetup) -> Iterator[Sample]:
    python = setup.titan or Path(sys.executable)
    ranks = gpus(python)
    for warm in (True, False):
        with tempfile.TemporaryDirectory(prefix="superv-bench-") as folder:
            yield from killed(setup, Path(folder), python, ranks, warm)


def killed(setup: BenchSetup, home: Path, python: Path, ranks: int, warm: bool) -> Iterator[Sample]:
    name, written = f"cuda-{'warm' if warm else 'cold'}", home / "steps"
    job = {
        "name": name,
        "launcher": "local",
        "nodes": 1,
        "trainer": {
            "script": str(TRAINER),
            "python": str(python),
            "ranks_per_node": ranks,
            "preload": [TRAINER.stem] if warm else [],
            "args": ["--save-dir", "{save_dir}", "--resume-path", "{resume_path}"],
            "env": {"BENCH_STEPS": str(written)},
        },
        "checkpoints": {"dir": str(home / "checkpoints")},
        "preflight": {"tags": [], "running_s": 0},
        "policy": {"restarts_without_progress": 1000, "backoff_s": [0]},
    }
    (home / "job.yaml").write_text(yaml.safe_dump(job))
    superv(home, "launch", "--detach", str(home / "job.yaml"))
    try:
        for number in range(1, setup.repeat + 1):
            old = settled(written)
            fault = time.time()
            os.kill(old, signal.SIGKILL)

            def again(old: int = old, fault: float = fault) -> float | None:
                rows = steps(written)
                return next((at for pid, _, at, _ in rows if pid != old and at > fault), None)

            at = float(until(again, "a new step", WITHIN_S))
            until(lambda n=number: len(incidents(home, name)) == n, "the incident", WITHIN_S)
            incident = incidents(home, name)[-1]
            yield Sample(
                case="warm" if warm else "cold",
                values={
                    "stop": incident["stopped"] - fault,
                    "start": incident["relaunched"] - incident["stopped"],
                    "step": at - incident["relaunched"],
                    "total": at - fault,
                },
                more={"gpus": ranks, "made_twice": check_losses(written)},
            )
    finally:
        superv(home, "stop", "--now", name)
        until(
            lambda: json.loads(superv(home, "status", name, "--json"))["phase"] == "stopped",
            f"the end of {name}",
            WITHIN_S,
        )


MEASUREMENT = Measurement(
    name="torch-cuda",
    about="SIGKILL of a rank on this machine's GPUs; torch + NCCL, steps of 0.1 s, with DCP",
    columns=(
        BenchColumn(key="stop", title="kill -> old ranks gone", unit="s"),
        BenchColumn(key="start", title="gone -> all ranks started", unit="s"),
        BenchColumn(key="step", title="started -> first new step", unit="s"),
        BenchColumn(key="total", title="kill -> first new step", unit="s"),
    ),
    targets=(),
    repeat=7,
    run=run,
)
