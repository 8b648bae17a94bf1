"""A run of superv on a lab, as a measurement drives it: launch, wait, break, read the journal."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from bench.samples import REPO
from lab.cluster import Lab, exposed_by_default
from supervisor import proc
from supervisor.cli.status import document
from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.run.folder import RunDir
from supervisor.run.journal import Record, read

NAME = "bench"
PYTHON = "/usr/bin/python3"
RING = REPO / "tests/lab/trainers/ring.py"
RING_IMPORTS = ["argparse", "pathlib", "shutil", "signal", "socket"]
DCP = REPO / "tests/data/dcp/step-5"
SETTLE_S = 8.0  # seconds after a start the ranks of the next attempt are forked ahead
ENDED = ("done", "held", "stopped")

Status = dict[str, Any]


@contextlib.contextmanager
def lab(nodes: int, *pythons: Path) -> Iterator[Lab]:
    """A fresh lab whose user can read the environments of these interpreters.

    superv's modules are compiled, as an installed package's are; its user could not write them.
    """
    for name in ("supervisor", "launchers", "sbatch_templates", "healthchecks", "ncclconf"):
        compileall.compile_dir(REPO / name, quiet=1)
    there = Lab(NAME)
    there.down()
    places = [python.parent.parent.absolute() for python in pythons]
    there.up(nodes, exposed=[*exposed_by_default(), *places])
    try:
        yield there
    finally:
        there.down()


def until(look: Callable[[], Any], what: str, within_s: float, every_s: float = 0.05) -> Any:
    """The first true answer of `look`; raises TimeoutError."""
    end = time.monotonic() + within_s
    while not (seen := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {within_s:.0f} s")
        time.sleep(every_s)
    return seen


def as_user(there: Lab, *argv: str, deadline_s: float = 120) -> str:
    """Run a command as the lab's user on its login node. Raises RuntimeError."""
    done = there.run("login", list(argv), deadline_s=deadline_s)
    if done.rc != 0:
        raise RuntimeError(f"{argv[0]} failed on the login node: {done.why()}\n{done.err}")
    return done.out


class LabRun:
    """One run of superv; on the way out it is stopped."""

    def __init__(self, there: Lab, job: dict[str, Any]) -> None:
        self.lab = there
        self.name: str = job["name"]
        policy = {"restarts_without_progress": 1000, "backoff_s": [0], "stop_grace_s": 2}
        self.job = {**job, "policy": policy}
        self.dir = RunDir(there.home / ".local/state/superv/runs" / self.name)
        self.launched_at = 0.0

    def __enter__(self) -> LabRun:
        path = self.lab.home / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(self.job))
        self.launched_at = time.time()
        self._superv("launch", "--detach", str(path))
        return self

    def __exit__(self, *failure: object) -> None:
        with contextlib.suppress(RuntimeError, TimeoutError):
            self._superv("stop", "--now", self.name)
            until(lambda: self.status()["phase"] in ENDED, f"the end of {self.name}", 30)

    def _superv(self, *argv: str) -> str:
        return as_user(self.lab, sys.executable, "-m", "supervisor.cli", *argv, deadline_s=60)

    # --- what superv says ---

    def status(self) -> Status:
        return document(self.dir)

    def until(self, reached: Callable[[Status], object], what: str, within_s: float) -> Status:
        """The first status that is as wanted; raises RuntimeError when the run ends before."""
        end = time.monotonic() + within_s
        while True:
            status = self.status()
            if reached(status):
                return status
            if status["phase"] in ENDED or time.monotonic() > end:
                log = "\n".join(self.dir.log.read_text().splitlines()[-15:])
                why = f"{status['phase']}: {status['reason']}"
                raise RuntimeError(f"{what}: not within {within_s:.0f} s: {why}\n{log}")
            time.sleep(0.2)

    def until_step(self, step: int, within_s: float = 60) -> Status:
        """So many steps in the newest attempt, over those that it began with."""

        def reached(s: Status) -> bool:
            return (s["step"] or 0) - (s["attempt_resumed_from"] or 0) >= step

        return self.until(reached, f"step {step}", within_s)

    def until_recovered(self, incidents: int, within_s: float = 60) -> Status:
        """The newest of so many incidents, once new steps were made."""

        def recovered(s: Status) -> bool:
            there = s["incidents"]
            return len(there) == incidents and there[-1]["first_step"] is not None

        status = self.until(recovered, f"new steps after incident {incidents}", within_s)
        incident: Status = status["incidents"][-1]
        return incident

    def records(self) -> list[Record]:
        return list(read(self.dir.journal))

    def events(self, kind: type[ev.Event]) -> list[Any]:
        return [r.event for r in self.records() if isinstance(r.event, kind)]

    def clock_ahead(self) -> float:
        """How far the engine's clock is ahead of this process's, in seconds."""
        before = time.time()
        now = float(self.status()["now"])
        return now - (before + time.time()) / 2

    def start_ordered(self, attempt: int) -> float:
        """When the ranks of the first attempt after this one were ordered to start."""
        return min(
            record.event.at
            for record in self.records()
            for action in record.actions
            if isinstance(action, act.Start) and action.attempt > attempt
        )

    def scanned(self, incident: Status) -> float:
        """When the checkpoints had been looked at; the time of the stop where there are none."""
        seen = [e.at for e in self.events(ev.Scanned) if e.at >= incident["stopped"]]
        return float(min(seen, default=incident["stopped"]))

    # --- processes ---

    def engine(self) -> int:
        [pid] = [
            p.pid
            for p in self.lab.processes()
            if "supervisor.engine.process" in p.argv and str(self.dir.path) in p.argv
        ]
        return pid

    def agents(self) -> dict[str, int]:
        return {
            p.node: p.pid
            for p in self.lab.processes()
            if "supervisor.agent" in p.argv and "python" in p.argv[0]
        }

    def rank_pid(self, node: str, rank: int) -> int:
        """A rank by what its agent wrote down; the agent counts pids as its node does."""
        agent = self.agents()[node]
        base = f"{self.status()['allocations'][-1]['folder']}/{node}"
        table = json.loads(Path(f"/proc/{agent}/root{base}/ranks.json").read_bytes())
        inner = next(pid for number, pid, _ in table["ranks"] if number == rank)
        for process in self.lab.processes():
            if process.node == node:
                with contextlib.suppress(OSError):
                    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                        if line.startswith("NSpid:") and int(line.split()[-1]) == inner:
                            return process.pid
        raise RuntimeError(f"rank {rank} (pid {inner}) is not on {node}")

    def kill_rank(self, node: str, rank: int) -> float:
        """SIGKILL, not right after a start; returns when, read right before it."""
        pid = self.rank_pid(node, rank)
        time.sleep(SETTLE_S)
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        return at


def ring_job(
    name: str,
    *,
    nodes: int,
    spares: int,
    ranks: int,
    warm: bool,
    saves: bool = True,
    step_s: float = 0.1,
) -> dict[str, Any]:
    """A job of the ring trainer: every step is a barrier of all ranks."""
    args = [f"--step-s={step_s:g}"]
    if saves:
        args += ["--save-dir={save_dir}", "--resume-step={resume_step}"]
        args += [f"--checkpoint={DCP}", "--save-every=10"]
    job: dict[str, Any] = {
        "name": name,
        "nodes": nodes,
        "spares": spares,
        "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
        "trainer": {
            "script": str(RING),
            "python": PYTHON,
            "ranks_per_node": ranks,
            "args": args,
            "preload": RING_IMPORTS if warm else [],
        },
    }
    if saves:
        job["checkpoints"] = {"dir": f"{name}-checkpoints"}
    return job


def check_warm(incident: Status, warm: bool) -> None:
    """Raises WrongError where a restart was not what its case is called."""
    from bench.samples import WrongError

    if incident["warm"] is not warm:
        raise WrongError(f"a restart that is called {'warm' if warm else 'cold'} was not")


def spawn(argv: list[str], log: Path) -> Any:
    """Start a program in a session of its own, its output in a file."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        return proc.spawn(argv, env=os.environ, cwd="/", stdout=fd)
    finally:
        os.close(fd)
