"""TorchTitan on 2 nodes: a rank is killed, warm and cold; split by the phases its hook tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.lab_run import LabRun, Status, as_user, check_warm, lab
from bench.samples import REPO, BenchColumn, BenchSetup, Measurement, Sample, Target
from lab.cluster import Lab

EXAMPLE = REPO / "examples/torchtitan_lab"
NODES = 2
STEPS_BEFORE = 8  # over those that it resumed from: more than one interval of checkpoints


def parts(incident: Status, fault: float) -> dict[str, float]:
    """An incident by the marks of slot 0's first rank; each is when a phase was entered first."""
    marks = incident["marks"]
    return {
        "stop": incident["stopped"] - fault,
        "start": marks["import"] - incident["stopped"],
        "import": marks["build"] - marks["import"],
        "build": marks["load"] - marks["build"],
        "load": marks["step"] - marks["load"],
        "first": marks["first step"] - marks["step"],
        "total": incident["first_step"] - fault,
    }


def titan_job(there: Lab, python: Path, name: str, *, spares: int, warm: bool) -> dict[str, Any]:
    """The job of the example; its tokenizer and data are made in the lab's home."""
    as_user(there, str(python), str(EXAMPLE / "assets.py"), str(there.home))
    return {
        "name": name,
        "nodes": NODES,
        "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
        "spares": spares,
        "trainer": {
            "script": str(EXAMPLE / "titan_cpu.py"),
            "args": ["--module", "moe_lab", "--config", "lab", "--training.steps", "2000"],
            "python": str(python),
            "hook": "torchtitan",
            "preload": ["titan_cpu"] if warm else [],
            "env": {"GLOO_SOCKET_IFNAME": "eth0"},
        },
        "checkpoints": {"dir": f"checkpoint-{name}"},
    }


def run(setup: BenchSetup) -> Iterator[Sample]:
    python = setup.need_titan()
    with lab(NODES, python) as there:
        for case in ("warm", "cold"):
            job = titan_job(there, python, f"titan-{case}", spares=0, warm=case == "warm")
            yield from killed(setup, LabRun(there, job), case)


def killed(setup: BenchSetup, launched: LabRun, case: str) -> Iterator[Sample]:
    with launched as training:
        for number in range(1, setup.repeat + 1):
            status = training.until_step(STEPS_BEFORE, within_s=240)
            slot = number % NODES
            fault = training.kill_rank(status["slots"][slot]["node"], slot)
            incident = training.until_recovered(number, within_s=240)
            check_warm(incident, case == "warm")
            yield Sample(
                case=case,
                values=parts(incident, fault),
                more={"killed": slot, "steps_lost": incident["steps_lost"]},
            )


MEASUREMENT = Measurement(
    name="torchtitan",
    about=f"SIGKILL of a rank; deepseek_v3 (lab flavor), {NODES} nodes x 1 rank, checkpoints",
    columns=(
        BenchColumn(key="stop", title="stop: kill -> old ranks gone", unit="s"),
        BenchColumn(key="start", title="start: gone -> rank is there", unit="s"),
        BenchColumn(key="import", title="import", unit="s"),
        BenchColumn(key="build", title="build", unit="s"),
        BenchColumn(key="load", title="load", unit="s"),
        BenchColumn(key="first", title="first step", unit="s"),
        BenchColumn(key="total", title="kill -> first new step", unit="s"),
    ),
    targets=(Target(case="warm", key="total", at_most=0.45, of="cold"),),
    repeat=5,
    run=run,
)
