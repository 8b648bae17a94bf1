"""Whole runs on a lab: launch them, look at them, break them, and leave nothing behind.

`Runs` is one test's folder on the lab's shared file system, with a site file of its own: its
journals and engines are nobody else's. `LaunchedRun` is one run in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import leftovers
import pytest
import yaml

from lab import faults
from lab.cluster import Lab
from lab.node import LabProcess
from supervisor import proc
from supervisor.cli.status import document
from supervisor.core import events as ev
from supervisor.core.types import ENDED
from supervisor.host import procfs
from supervisor.run.folder import RunDir
from supervisor.run.journal import Record, read
from tests.processes import send

REPO = Path(__file__).resolve().parents[2]
RING = REPO / "tests/lab/trainers/ring.py"
DCP = REPO / "tests/data/dcp/step-5"
PYTHON = "/usr/bin/python3"
WITHIN_S = 60.0  # what is awaited comes within seconds; on a busy machine somewhat later
NODES, SPARES, PER_NODE = 3, 1, 2  # the ring's usual shape
SAVE_EVERY = 10

# Jobs with a dependency, such as superv's, are looked at in Slurm's main loop only.
SETTINGS = {"SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=5"}

T = TypeVar("T")
Status = dict[str, Any]
_numbers = count(1)


def until(look: Callable[[], T], what: str, within_s: float = WITHIN_S) -> T:
    """The first true answer of `look`."""
    end = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < end, f"{what}: not within {within_s:.0f} s"
        time.sleep(0.05)
    return seen


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingRank:
    """A living rank: the leader of its session."""

    node: str
    rank: int
    attempt: int
    pid: int

    def signal(self, number: int) -> float:
        """Send a signal; returns when, by the machine's clock."""
        at = time.time()
        os.kill(self.pid, number)
        return at


class LaunchedRun:
    """One run, seen from outside."""

    def __init__(self, runs: Runs, name: str, trainer: str = str(RING)) -> None:
        self.runs, self.name, self.lab = runs, name, runs.lab
        self.trainer = trainer
        self.dir = RunDir(runs.state / "runs" / name)

    # --- witnesses ---

    def status(self) -> Status:
        """What `superv status --json` prints, without starting a process for it."""
        return document(self.dir)

    def status_printed(self) -> Status:
        """`superv status --json` itself."""
        printed: Status = json.loads(self.runs.superv("status", self.name, "--json").out)
        return printed

    def journal(self) -> list[Record]:
        return list(read(self.dir.journal))

    def events(self, kind: type[ev.Event]) -> list[Any]:
        return [record.event for record in self.journal() if isinstance(record.event, kind)]

    def log(self) -> str:
        """The engine's."""
        return self.dir.log.read_text()

    def until(
        self, reached: Callable[[Status], object], what: str, within_s: float = WITHIN_S
    ) -> Status:
        """The first status that is as wanted; a run that ends before is a failure at once."""
        end = time.monotonic() + within_s
        while True:
            status = self.status()
            if reached(status):
                return status
            why = f"{what}: {status['phase']} ({status['reason']})\n{self.log()}"
            assert status["phase"] not in ENDED, why
            assert time.monotonic() < end, why
            time.sleep(0.05)

    def until_step(self, step: int, attempt: int = 1) -> Status:
        return self.until(
            lambda s: s["attempt"] == attempt and (s["step"] or 0) >= step,
            f"step {step} of attempt {attempt}",
        )

    def until_ended(self, phase: str) -> Status:
        """Ended, its nodes given back, its engine gone."""
        end = time.monotonic() + WITHIN_S
        while (status := self.status())["phase"] not in ENDED or self.engines():
            why = f"no end: {status['phase']} ({status['reason']})\n{self.log()}"
            assert time.monotonic() < end, why
            time.sleep(0.05)
        assert status["phase"] == phase, f"{status['reason']}\n{self.log()}"
        return status

    def until_recovered(self, incidents: int = 1) -> Status:
        """So many incidents, and three steps after the last of them."""

        def recovered(s: Status) -> bool:
            if len(s["incidents"]) != incidents or s["incidents"][-1]["first_step"] is None:
                return False
            return bool(s["step"] >= s["incidents"][-1]["resumed_from"] + 3)

        self.until(recovered, f"steps after incident {incidents}")
        return self.status_printed()

    # --- processes ---

    def ranks(self) -> list[LivingRank]:
        found = []
        script = "/" + Path(self.trainer).name  # of the copy that was made of it at launch
        for process in self.lab.processes():
            if not any(word.endswith(script) for word in process.argv):
                continue
            stat, env = procfs.stat(process.pid), procfs.environ(process.pid) or {}
            leads = stat is not None and stat.alive and stat.session == stat.pid
            if leads and "RANK" in env:
                attempt, rank = int(env["SUPERV_ATTEMPT"]), int(env["RANK"])
                found.append(
                    LivingRank(node=process.node, rank=rank, attempt=attempt, pid=process.pid)
                )
        return sorted(found, key=lambda r: (r.attempt, r.rank))

    def rank(self, number: int, attempt: int | None = None) -> LivingRank:
        """A rank by its number, of the newest attempt or of the one that is given."""
        found = [r for r in self.ranks() if r.rank == number and attempt in (None, r.attempt)]
        return found[-1]

    def forked(self, number: int) -> int:
        """The pid of a rank that was forked from a warm starter; only its name tells."""
        for process in self.lab.processes():
            stat = procfs.stat(process.pid)
            if stat is not None and stat.name == f"rank{number}":
                return stat.pid
        raise AssertionError(f"no rank {number} was forked from a starter")

    def marked(self, node: str = "") -> list[tuple[int, int]]:
        """(attempt, pid) of every process that carries the run's mark: ranks and their children."""
        mark = f"{self.status()['run_id']}/{node}"
        found = []
        for process in self.lab.processes():
            mark_of = (procfs.environ(process.pid) or {}).get("SUPERV_MARK", "")
            stat = procfs.stat(process.pid)
            if mark_of.startswith(mark) and stat is not None and stat.alive:
                found.append((int(mark_of.rpartition("/")[2]), process.pid))
        return sorted(found)

    def _of(self, node: str, word: str) -> list[LabProcess]:
        return [
            process
            for process in self.lab.processes()
            if word in process.argv and node in ("", process.node)
        ]

    def engines(self) -> list[int]:
        return [
            p.pid
            for p in self._of("login", "supervisor.engine.process")
            if str(self.dir.path) in p.argv
        ]

    def agent(self, node: str) -> int:
        [pid] = [p.pid for p in self._of(node, "supervisor.agent") if "python" in p.argv[0]]
        return pid

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal a process and, where that ends it, wait until it is gone."""
        os.kill(pid, number)
        if number == signal.SIGKILL:
            until(lambda: procfs.state(pid) in (None, "Z", "X"), f"the end of {pid}")

    def kill_engine(self) -> None:
        """For good: its guardian first, which is replaced after seconds only."""
        [engine] = self.engines()
        os.kill(engine, signal.SIGSTOP)
        for guardian in self.guardians():
            self.kill(guardian)
        self.kill(engine)

    def guardians(self) -> list[int]:
        return [
            p.pid
            for p in self.lab.processes()
            if str(self.dir.path) in p.argv and any("guardian.py" in word for word in p.argv)
        ]

    # --- Slurm ---

    def jobs(self) -> list[str]:
        """The run's jobs in squeue."""
        done = self.runs.do("squeue", "--noheader", "--format=%i %j")
        mark = f"superv-{self.name}-"
        return [line.split()[0] for line in done.out.splitlines() if f" {mark}" in line]

    @property
    def job(self) -> str:
        job_id: str = self.status()["allocations"][-1]["job_id"]
        return job_id

    # --- what incidents say ---

    def check_times(self, incident: Status) -> None:
        """Every time of the incident is that of a journal line, and they are in order."""
        kinds: dict[float, set[str]] = {}
        for record in self.journal():
            kinds.setdefault(record.event.at, set()).add(type(record.event).__name__)
            if isinstance(record.event, ev.RankExited):
                kinds.setdefault(record.event.exit.at, set()).add("exit")
            elif isinstance(record.event, ev.RanksExited):
                kinds.update({one.at: {"exit"} for one in record.event.exits})
        wanted = {
            "suspected": {
                "HeartbeatLost",
                "RankExited",
                "RanksExited",
                "HangDetected",
                "AgentJoined",
            },
            "confirmed": {"Probed", "StepOverdue", "AllocationSeen", "HeartbeatLost"}
            | {"RankExited", "RanksExited", "HangDetected", "AgentJoined"},
            "stopped": {"RanksStopped", "AgentLeft", "DeadlineExpired", "Probed", "StepOverdue"},
            "judged": {"Scanned", "RanksStopped", "Probed", "StepOverdue"},
            "relaunched": {"RanksStarted"},
            "first_step": {"Progress"},
        }
        for name, valid in wanted.items():
            assert kinds.get(incident[name], set()) & valid, (name, incident, self.log())
        times = [incident[name] for name in wanted]
        assert times == sorted(times)
        if incident["fault"] is not None:
            assert "exit" in kinds[incident["fault"]]
            assert incident["fault"] <= incident["suspected"]


class Runs:
    """One test's runs."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.home = lab.shared / f"t{next(_numbers)}"
        self.state = self.home / "s"
        self.home.mkdir()
        self.uid = lab.home.stat().st_uid
        os.chown(self.home, self.uid, self.uid)
        (self.home / "site.yaml").write_text(f"state_dir: {self.state}\n")
        self.env = {"SUPERV_SITE": str(self.home / "site.yaml")}
        self.launched: dict[str, LaunchedRun] = {}

    def enter(self, *argv: str) -> list[str]:
        """The command line of a superv on the login node, for callers that start it themselves."""
        return self.lab.enter(
            "login", [sys.executable, "-m", "supervisor.cli", *argv], env=self.env
        )

    def superv(self, *argv: str, rc: int = 0) -> proc.Completed:
        done = proc.run_sync(self.enter(*argv), deadline_s=60)
        assert done.rc == rc, f"superv {' '.join(argv)}: {done.rc}\n{done.out}\n{done.err}"
        return done

    def do(self, *argv: str, node: str = "login") -> proc.Completed:
        """Run a command as the lab's user."""
        done = self.lab.run(node, argv)
        assert done.rc == 0, done.why()
        return done

    def faults(self) -> list[faults.InjectedFault]:
        return faults.read(self.lab.layout)

    def write(self, name: str, job: dict[str, Any]) -> Path:
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def ring(self, name: str = "ring", *args: str, **changes: Any) -> dict[str, Any]:
        """The job of a ring trainer; `args` are more of its options."""
        usual: dict[str, Any] = {
            "name": name,
            "nodes": NODES,
            "spares": SPARES,
            "trainer": {
                "script": str(RING),
                "python": PYTHON,
                "ranks_per_node": PER_NODE,
                "args": [
                    *("--save-dir={save_dir}", "--resume-step={resume_step}"),
                    *(f"--checkpoint={DCP}", f"--save-every={SAVE_EVERY}", *args),
                ],
            },
            "checkpoints": {"dir": f"{name}-checkpoints"},
            "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
        }
        policy = {"stop_grace_s": 1, "backoff_s": [0], **changes.pop("policy", {})}
        return {**usual, "policy": policy, **changes}

    def launch(self, job: dict[str, Any] | None = None) -> LaunchedRun:
        """`superv launch --detach` of a job (default: the usual ring)."""
        job = job or self.ring()
        self.superv("launch", "--detach", str(self.write(job["name"], job)))
        return self.found(job["name"], str(job["trainer"].get("script", RING)))

    def found(self, name: str, trainer: str = str(RING)) -> LaunchedRun:
        """A run that was launched; it is ended with the test."""
        run = self.launched[name] = LaunchedRun(self, name, trainer)
        return run

    def checkpoints(self, run: LaunchedRun) -> list[Path]:
        """Finished ones, by step."""
        found = self.home.glob(f"{run.name}-checkpoints/a*/step-*/.metadata")
        return sorted((p.parent for p in found), key=lambda p: int(p.name.removeprefix("step-")))

    def close(self) -> None:
        """End every run that goes on; engines that do not end by themselves are killed."""
        if self.lab.controller() == "paused":
            self.lab.resume_controller()
        for node in self.lab.status().nodes:  # a job ends sooner where its nodes answer
            if node.power == "off":
                self.lab.poweron(node.name)
            elif node.cable == "cut":
                self.lab.mend(node.name)
        try:
            for run in self.launched.values():
                if run.status()["phase"] not in ENDED:
                    self.superv("stop", "--now", run.name)
            for run in self.launched.values():
                until(lambda run=run: run.status()["phase"] in ENDED, f"the end of {run.name}")  # type: ignore[misc]
                for job in run.jobs():  # the engine gives a job 15 s to end, where a node was lost
                    self.do("scancel", job)
            for run in self.launched.values():
                until(
                    lambda run=run: not run.engines(), f"the end of the engine of {run.name}", 180
                )  # type: ignore[misc]
        finally:
            for run in self.launched.values():
                for pid in (*run.guardians(), *run.engines()):
                    send(pid)


@pytest.fixture(scope="module")
def shared_lab(fence: Path, strict: bool, slurm: str) -> Iterator[Lab]:
    """The module's own: three nodes that train, and a spare."""
    there = Lab(f"{leftovers.NAME}-runs")
    there.up(NODES + SPARES, settings=SETTINGS, strict=strict, slurm=slurm)
    yield there
    there.down()


@pytest.fixture
def runs(lab: Lab) -> Iterator[Runs]:
    here = Runs(lab)
    yield here
    here.close()


@contextlib.contextmanager
def started(argv: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes to a file; ended with the block."""
    with output.open("wb") as out:
        child = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
