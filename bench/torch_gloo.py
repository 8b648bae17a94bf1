"""A rank of a torch + gloo trainer is killed: superv, torchrun and ft_launcher on the same lab.

The trainer itself writes down when its steps are done, so every launcher is timed in one way. It
keeps no checkpoints: the next new step is step 1 of a new process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.lab_run import LabRun, check_warm, lab, spawn, until
from bench.samples import OUT, REPO, BenchColumn, BenchSetup, Measurement, Sample, Target
from lab.cluster import Lab

TRAINER = REPO / "bench/trainers/gloo.py"
NODES = 2
STEPS_BEFORE = 10
WITHIN_S = 120.0
# The trainer sends ft_launcher no heartbeats, so none are waited for.
FT_CONFIG = """\
fault_tolerance:
  initial_rank_heartbeat_timeout: null
  rank_heartbeat_timeout: null
"""


def steps(path: Path) -> list[tuple[int, float]]:
    """(pid, time) of every step that rank 0 has written down; whole lines only."""
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_text().split("\n")[:-1]
        return [(int(pid), float(at)) for pid, _, at in (line.split() for line in lines)]
    return []


def settled(path: Path) -> int:
    """The pid of rank 0, once it has made some steps."""

    def look() -> int | None:
        seen = steps(path)
        newest = [pid for pid, _ in seen[-STEPS_BEFORE:]]
        return newest[0] if len(newest) == STEPS_BEFORE and len(set(newest)) == 1 else None

    return int(until(look, "steps", WITHIN_S))


def next_step(path: Path, fault: float, old: int) -> float:
    """When rank 0's successor made its first step."""

    def look() -> float | None:
        return next((at for pid, at in steps(path) if at > fault and pid != old), None)

    return float(until(look, "a new step", WITHIN_S))


def run(setup: BenchSetup) -> Iterator[Sample]:
    python = setup.need_titan()
    pythons = [python] if setup.ft is None else [python, setup.ft]
    with lab(NODES, *pythons) as there:
        for warm in (True, False):
            yield from with_superv(setup, there, python, warm)
        launcher = python.with_name("torchrun")
        yield from with_elastic(setup, there, "torchrun", [str(launcher)])
        if setup.ft is not None:
            config = there.home / "ft.yaml"
            config.write_text(FT_CONFIG)
            launcher = setup.ft.with_name("ft_launcher")
            argv = [str(launcher), f"--ft-cfg-path={config}"]
            yield from with_elastic(setup, there, "ft_launcher", argv)
        else:
            setup.say("  ft_launcher: not measured; SUPERV_FT names no Python with it")


def with_superv(setup: BenchSetup, there: Lab, python: Path, warm: bool) -> Iterator[Sample]:
    case = f"superv, {'warm' if warm else 'cold'}"
    steps_file = there.home / f"steps-superv-{warm}"
    job: dict[str, Any] = {
        "name": f"gloo-{'warm' if warm else 'cold'}",
        "nodes": NODES,
        "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
        "trainer": {
            "script": str(TRAINER),
            "python": str(python),
            "preload": [TRAINER.stem] if warm else [],
            "env": {"GLOO_SOCKET_IFNAME": "eth0", "BENCH_STEPS": str(steps_file)},
        },
    }
    with LabRun(there, job) as training:
        for number in range(1, setup.repeat + 1):
            old = settled(steps_file)
            slot = number % NODES
            node = training.status()["slots"][slot]["node"]
            fault = training.kill_rank(node, slot)
            at = next_step(steps_file, fault, old)
            incident = training.until_recovered(number)
            check_warm(incident, warm)
            yield Sample(
                case=case,
                values={
                    "known": incident["suspected"] - fault,
                    "stop": incident["stopped"] - incident["suspected"],
                    "start": incident["relaunched"] - incident["stopped"],
                    "step": at - incident["relaunched"],
                    "total": at - fault,
                },
                more={"killed": slot, "clock_ahead": training.clock_ahead()},
            )


def with_elastic(setup: BenchSetup, there: Lab, case: str, launcher: list[str]) -> Iterator[Sample]:
    """torchrun and what is built on it: an agent on each node, c10d rendezvous at the first one."""
    steps_file = there.home / f"steps-{case}"
    nodes = there.compute[:NODES]
    argv = [
        *launcher,
        *(f"--nnodes={NODES}", "--nproc-per-node=1", "--max-restarts=1000"),
        *("--rdzv-backend=c10d", f"--rdzv-id={case}", f"--rdzv-endpoint={nodes[0]}:29400"),
        str(TRAINER),
    ]
    env = {"GLOO_SOCKET_IFNAME": "eth0", "BENCH_STEPS": str(steps_file), "OMP_NUM_THREADS": "1"}
    OUT.mkdir(parents=True, exist_ok=True)
    children = [
        spawn(there.enter(node, argv, env=env), OUT / f"{case}-{node}.log") for node in nodes
    ]
    try:
        for number in range(1, setup.repeat + 1):
            old = settled(steps_file)
            slot = number % NODES
            fault = kill_trainer(there, nodes[slot])
            at = next_step(steps_file, fault, old)
            yield Sample(case=case, values={"total": at - fault}, more={"killed": slot})
    except TimeoutError as error:
        setup.say(f"  {case}: gave up after a restart: {error}; see bench/out/{case}-*.log")
    finally:
        end_tree(there, nodes, children)


def trainers(there: Lab, node: str) -> list[int]:
    """Trainers of a node: the launcher's command line names the script too, later."""
    return [
        p.pid
        for p in there.processes()
        if p.node == node
        and str(TRAINER) in p.argv[:4]
        and "python" in p.argv[0]
        and not any("rdzv" in word for word in p.argv)
    ]


def kill_trainer(there: Lab, node: str) -> float:
    [pid] = trainers(there, node)
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return at


def end_tree(there: Lab, nodes: tuple[str, ...], children: list[Any]) -> None:
    """End launchers and trainers, and wait for them."""
    for process in there.processes():
        if process.node in nodes and str(TRAINER) in process.argv:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    for child in children:
        child.wait(timeout=30)


MEASUREMENT = Measurement(
    name="torch-gloo",
    about=f"SIGKILL of a rank; torch + gloo, {NODES} nodes x 1 rank, steps of 0.1 s",
    columns=(
        BenchColumn(key="known", title="kill -> known to the engine", unit="s"),
        BenchColumn(key="stop", title="known -> old ranks gone", unit="s"),
        BenchColumn(key="start", title="gone -> all ranks started", unit="s"),
        BenchColumn(key="step", title="started -> first new step", unit="s"),
        BenchColumn(key="total", title="kill -> first new step", unit="s"),
    ),
    targets=(Target(case="superv, warm", key="total", at_most=0.6),),
    repeat=7,
    run=run,
)
