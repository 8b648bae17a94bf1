"""One test's runs on this machine: its state, nodes and checkpoints, and the processes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from supervisor.agent.attempt_cgroup import writable_base
from supervisor.cli.status import document
from supervisor.host import procfs
from supervisor.run.folder import RunDir
from tests.processes import send

REPO = Path(__file__).resolve().parents[2]
RING = REPO / "tests/lab/trainers/ring.py"
DCP = REPO / "tests/data/dcp/step-5"
WITHIN_S = 60.0

T = TypeVar("T")


def until(look: Callable[[], T], what: str, within_s: float = WITHIN_S) -> T:
    """The first true answer of `look`."""
    end = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < end, f"{what}: not within {within_s:.0f} s"
        time.sleep(0.05)
    return seen


class RunHome:
    """One test's folder, and the run `ring` in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        site = {"state_dir": str(path / "state"), "node_dir": str(path / "nodes")}
        (path / "nodes").mkdir()
        (path / "site.yaml").write_text(yaml.safe_dump(site))
        self.env = {**os.environ, "SUPERV_SITE": str(path / "site.yaml")}
        self.run_dir = path / "state/runs/ring"

    def job(self, *args: str, **more: Any) -> Path:
        """Write a job file: 2 nodes and a spare with 2 ranks each."""
        job = {
            "name": "ring",
            "nodes": 2,
            "spares": 1,
            "launcher": "local",
            "trainer": {
                "script": str(RING),
                "python": sys.executable,
                "args": [
                    *("--step-s", "0.05", "--save-every", "10", "--checkpoint", str(DCP)),
                    *("--save-dir", "{save_dir}", "--resume-path", "{resume_path}"),
                    *("--resume-step", "{resume_step}", *args),
                ],
                "ranks_per_node": 2,
            },
            "checkpoints": {"dir": str(self.path / "checkpoint")},
            "policy": {"stop_grace_s": 1},
            "preflight": {"tags": [], "running_s": 0},  # all nodes are one machine
            **more,
        }
        path = self.path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def argv(self, *argv: str) -> list[str]:
        return [sys.executable, "-m", "supervisor.cli", *argv]

    def superv(self, *argv: str, rc: int = 0) -> str:
        done = subprocess.run(
            self.argv(*argv), env=self.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout + done.stderr

    def superv_until(self, *argv: str, said: str) -> None:
        """Run a command that goes on, until it says so; it is interrupted then."""
        with (self.path / "said").open("w+") as out:
            child = subprocess.Popen(self.argv(*argv), env=self.env, stdout=out, stderr=out)
            told = self.path / "said"
            until(lambda: child.poll() is not None or said in told.read_text(), said)
            child.send_signal(signal.SIGINT)
            child.wait(timeout=30)
            assert said in told.read_text(), told.read_text()

    def launched(self, *args: str, **more: Any) -> dict[str, Any]:
        """Launch, and wait for a few steps."""
        self.superv("launch", "--detach", str(self.job(*args, **more)))
        return self.at_step(3)

    def status(self) -> dict[str, Any]:
        """What `superv status ring --json` prints, without starting a process for it."""
        told: dict[str, Any] = json.loads(json.dumps(document(RunDir(self.run_dir))))
        return told

    def reached(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        return until(lambda: s if wanted(s := self.status()) else None, what)  # type: ignore[return-value]

    def at_step(self, step: int, attempt: int | None = None) -> dict[str, Any]:
        return self.reached(
            lambda s: (s["step"] or 0) >= step and attempt in (None, s["attempt"]),
            f"step {step}" + (f" of attempt {attempt}" if attempt else ""),
        )

    def log(self) -> str:
        return (self.run_dir / "engine.log").read_text()

    def engine(self) -> int:
        (found,) = [
            p
            for p, argv in self.processes().items()
            if f"supervisor.engine.process {self.run_dir}" in argv
        ]
        return found

    def kill_engine(self) -> None:
        """For good: its guardian first, which is replaced after seconds only."""
        engine = self.engine()
        os.kill(engine, signal.SIGSTOP)
        for pid in self.processes(words="engine/guardian.py"):
            os.kill(pid, signal.SIGKILL)
        os.kill(engine, signal.SIGKILL)
        until(lambda: engine not in self.processes(), "the end of the engine")

    def processes(self, node: str = "", words: str = "") -> dict[int, str]:
        """This test's living processes: pid → command line."""
        found = {}
        for stat in procfs.processes():
            if stat.pid == os.getpid() or not stat.alive:
                continue
            environ, argv = procfs.environ(stat.pid) or {}, " ".join(procfs.argv(stat.pid))
            ours = (value for name, value in environ.items() if name.startswith("SUPERV"))
            mine = str(self.path) in argv or any(str(self.path) in value for value in ours)
            if mine and words in argv and node in ("", environ.get("SLURMD_NODENAME")):
                found[stat.pid] = argv
        return found

    def signal(self, node: str, number: int) -> None:
        """Send a signal to every process of a node: the agent's loop, the agent, the ranks."""
        pids = self.processes(node)
        assert len(pids) >= 2, f"{node} has processes: {pids}"
        for pid in pids:
            send(pid, number)

    def end(self) -> dict[int, str]:
        """Stop the run; what is left is killed and returned."""
        if (self.run_dir / "journal.jsonl").exists():
            self.superv("stop", self.run_dir.name, "--now")
        with contextlib.suppress(AssertionError):
            until(lambda: not self.processes(), "the end of all processes", 30)
        left = self.processes()
        for pid in left:
            send(pid)
        self._remove_cgroups()
        return left

    def _remove_cgroups(self) -> None:
        """Those of agents that were killed; agents of other runs would, a minute later."""
        if (base := writable_base()) and (self.run_dir / "journal.jsonl").exists():
            for group in base.glob(f"superv-{self.status()['run_id']}-*"):
                group.rmdir()
