"""What health checks cost: one node, 63 nodes at once, and nodes on which everything hangs.

GPUs and InfiniBand are files and a library of the tests; processes, Slurm and hung mounts are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.lab_run import lab
from bench.samples import (
    REPO,
    BenchColumn,
    BenchSetup,
    Measurement,
    NotMeasuredError,
    Sample,
    Target,
)
from lab.cluster import Lab
from supervisor.core.check_status import NOT_FINE

NODES = 63
HUNG = "n23"  # its NVML and its mount hang
ALONE = 20  # looks of one node
THROUGH_SLURM = 5


def run(setup: BenchSetup) -> Iterator[Sample]:
    if os.geteuid() != 0:
        raise NotMeasuredError("a lab needs root")
    with tempfile.TemporaryDirectory() as folder:
        for tag in ("preflight", "running", "prolog"):
            for _ in range(ALONE):
                yield alone(f"this machine, {tag}", tag, folder)
    sys.path.insert(0, str(REPO / "tests/lab"))
    from planted import Planted

    with in_memory() as folder, lab(NODES) as there:
        planted = Planted(folder, NODES)
        for _ in range(THROUGH_SLURM):
            yield through_slurm(there, planted.site, "63 nodes")
        there.mount_fault(HUNG, planted.folder / HUNG / "shared", "hung")
        planted.trees[HUNG].write("nvml.script", "nvmlInit_v2 * hang\nnvmlInitWithFlags * hang")
        for _ in range(THROUGH_SLURM):
            yield through_slurm(there, planted.site, "63 nodes, one hangs")


def alone(case: str, tag: str, folder: str) -> Sample:
    """One look, from the start of its interpreter to its end."""
    before = os.times()
    began = time.perf_counter()
    order = json.dumps({"tags": [tag], "root": "/", "folder": folder})
    argv = [sys.executable, "-I", "-m", "healthchecks"]
    done = subprocess.run(argv, input=order + "\n", capture_output=True, text=True, check=True)
    took = time.perf_counter() - began
    after = os.times()
    spent = after.children_user + after.children_system
    cpu = spent - before.children_user - before.children_system
    checks = len(json.loads(done.stdout)["results"])
    return Sample(case=case, values={"took": took, "cpu": cpu}, more={"results": checks})


def through_slurm(there: Lab, site: Path, case: str) -> Sample:
    """`superv preflight` of all nodes, as a user of the cluster."""
    argv = ["env", f"SUPERV_SITE={site}", sys.executable, "-m", "supervisor.cli"]
    began = time.perf_counter()
    done = there.run("login", [*argv, "preflight", f"n[1-{NODES}]", "--json"], deadline_s=120)
    took = time.perf_counter() - began
    document: dict[str, Any] = json.loads(done.out)
    reports = {n: entry["report"] for n, entry in document["nodes"].items()}
    bad = {n for n, r in reports.items() if r["status"] in NOT_FINE}
    if bad != ({HUNG} if "hangs" in case else set()):
        rows = [
            (n, r["check"], r["status"], r["seen"])
            for n in sorted(bad)
            for r in reports[n]["results"]
            if r["status"] in NOT_FINE
        ]
        raise RuntimeError(f"{case}: found {rows[:6]}")
    return Sample(
        case=case,
        values={
            "took": took,
            "cpu": statistics.median(r["cpu_s"] for r in reports.values()),
            "node": statistics.median(r["took_s"] for r in reports.values()),
            "slowest": max(r["took_s"] for r in reports.values()),
        },
    )


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for 100,000 small files, which the lab's nodes see."""
    folder = Path(tempfile.mkdtemp(prefix="superv-bench-", dir="/srv"))
    argv = ["mount", "-t", "tmpfs", "-o", "mode=0755", "superv-bench", str(folder)]
    subprocess.run(argv, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


MEASUREMENT = Measurement(
    name="health",
    about="health checks: one node without GPU, 63 at once, and where NVML and a mount hang",
    columns=(
        BenchColumn(key="took", title="took", unit="s"),
        BenchColumn(key="cpu", title="CPU of a node", unit="s"),
        BenchColumn(key="node", title="a node's checks", unit="s"),
        BenchColumn(key="slowest", title="slowest node's", unit="s"),
    ),
    targets=(
        Target(case="this machine, preflight", key="cpu", at_most=0.25),
        Target(case="this machine, prolog", key="took", at_most=2.0),
        Target(case="63 nodes", key="took", at_most=10.0),
    ),
    repeat=1,
    run=run,
)
