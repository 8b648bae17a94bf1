"""What the contract's tests need of a launcher's world, on this machine and on a Slurm cluster."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import packages
from lab.cluster import Lab
from launchers.local import Local, processes
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import LaunchSpec
from supervisor.host import procfs

REPO = Path(__file__).resolve().parents[2]
WITHIN_S = 90

# An agent in its simplest form: writes a line per start, beats, leaves when told, runs once a node.
AGENT = """#!/bin/sh
cd "$1" || exit 1
exec 9>"lock.$SLURMD_NODENAME"
flock --nonblock 9 || exit 75
echo "$$ $SLURM_JOB_ID" >>"starts.$SLURMD_NODENAME"
trap 'echo term >>"terms.$SLURMD_NODENAME"; exit 0' TERM
while [ ! -e leave ]; do
  date +%s.%N >"beat.$SLURMD_NODENAME"
  sleep 0.2 9>&-
done
exit 0
"""


STAT = 'stat --format="%a %u" "$1"; ls "$1"'


def torchx_python() -> str:
    """The Python of an environment with torchx; skips where there is none."""
    made = REPO / ".venv-torchx/bin/python"
    if "SUPERV_TORCHX" not in os.environ and not made.exists():
        pytest.skip("SUPERV_TORCHX names no Python with torchx (make .venv-torchx)")
    return os.environ.get("SUPERV_TORCHX", str(made))


def pyslurm_python() -> tuple[str, str]:
    """A Python with pyslurm, and the release of Slurm that it is for; skips where there is none."""
    if not (python := os.environ.get("SUPERV_PYSLURM", "")):
        pytest.skip("SUPERV_PYSLURM names no Python with pyslurm (docs/pyslurm.md)")
    code = "import importlib.metadata as m; print(m.version('pyslurm'))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    release = ".".join(f"{int(n):02}" for n in done.stdout.strip().split(".")[:2] if n.isdigit())
    if release not in packages.SUITES:
        pytest.skip(f"{python} has pyslurm for {release or 'nothing'}: no lab runs that Slurm")
    return python, release


class LauncherWorld(ABC):
    """A launcher, and what the agents that it started have written."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.dir = folder
        self.agent = (str(folder / "agent.sh"), str(folder))
        self.private = str(folder / "superv-private")
        Path(self.agent[0]).write_text(AGENT)
        Path(self.agent[0]).chmod(0o755)

    @abstractmethod
    def ask(self, method: str, *args: Any, **spec: Any) -> Any:
        """A method's plain result, as JSON has it. Raises what it raises."""

    @abstractmethod
    def file(self, node: str, path: str) -> tuple[bytes, int]:
        """The content and the mode of a file on a node."""

    @abstractmethod
    def stat(self, node: str, path: str) -> str:
        """Mode and owner of a folder on a node, then the names in it, a line each."""

    @abstractmethod
    def end(self) -> None:
        """Cancel all jobs, and see that nothing is left."""

    def submit(self, **options: Any) -> str:
        wanted = {"job_name": self.name, "nodes": 3, "agent_argv": self.agent}
        job = self.ask("submit", **{**wanted, "folder": self.private, **options})
        assert isinstance(job, str)
        return job

    def started(self, **options: Any) -> tuple[str, list[str]]:
        """Submit, and wait until all agents have started; the job and its nodes."""
        job = self.submit(**options)
        self.wait(lambda: self.poll(job)["state"] == "running")
        nodes = self.poll(job)["nodes"]
        self.wait(lambda: all(self.starts(node) for node in nodes))
        return job, nodes

    def poll(self, job: str) -> dict[str, Any]:
        status: dict[str, Any] = self.ask("poll", [job])[job]
        return status

    def starts(self, node: str) -> int:
        path = self.dir / f"starts.{node}"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def kill(self, node: str, *, loop: bool) -> None:
        """SIGKILL the agent of a node, and also the loop that keeps it alive."""
        # The eldest: a shell about to run a command looks like its parent for a moment.
        agent = min(self.pids(node, f"/bin/sh {self.agent[0]}"))
        parent = min(self.pids(node, "sh -c # Keeps one agent"))
        for pid in (parent, agent) if loop else (agent,):
            os.kill(pid, signal.SIGKILL)

    @abstractmethod
    def pids(self, node: str, words: str) -> list[int]:
        """The processes of a node whose command line holds the words."""

    def beat(self, node: str) -> str:
        """The newest beat; empty before the first, and while it is being written."""
        path = self.dir / f"beat.{node}"
        return path.read_text() if path.exists() else ""

    def beats(self, *nodes: str) -> None:
        """Wait until the agents of the nodes have each beaten twice from now."""
        for _ in range(2):
            for node in nodes:
                old = self.beat(node)
                self.wait(lambda node=node, old=old: self.beat(node) not in {"", old})  # type: ignore[misc]

    def wait(self, reached: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        end = time.monotonic() + within_s
        while not reached():
            log = Path(self.private) / "allocation.log"
            told = log.read_text() if log.exists() else ""
            assert time.monotonic() < end, f"not within {within_s} s; the log says\n{told}"
            time.sleep(0.1)


class LocalWorld(LauncherWorld):
    def __init__(
        self, name: str, folder: Path, launcher: Callable[..., Local] = Local, **options: Any
    ) -> None:
        super().__init__(name, folder)
        self.launcher = launcher(folder=folder / "jobs", **options)

    def ask(self, method: str, *args: Any, **spec: Any) -> Any:
        async def call() -> Any:
            if method == "submit":
                return await self.launcher.submit(self.launcher.plan(LaunchSpec(**spec)))
            return await getattr(self.launcher, method)(*args)

        answer = asyncio.run(call())
        return json.loads(json.dumps(answer, default=dataclasses.asdict))

    def pids(self, node: str, words: str) -> list[int]:
        found = []
        for pid in processes():
            its = (procfs.environ(pid) or {}).get("SLURMD_NODENAME")
            if its == node and words in " ".join(procfs.argv(pid)):
                found.append(pid)
        return found

    def stat(self, node: str, path: str) -> str:
        return subprocess.check_output(["sh", "-c", STAT, "sh", path], text=True)

    def file(self, node: str, path: str) -> tuple[bytes, int]:
        return Path(path).read_bytes(), Path(path).stat().st_mode & 0o777

    def end(self) -> None:
        for found in self.ask("find", self.name):
            self.ask("cancel", found["job_id"])
            assert not processes(found["job_id"])


class SbatchWorld(LauncherWorld):
    def __init__(
        self, name: str, lab: Lab, torchx_python: str = "", pyslurm_python: str = ""
    ) -> None:
        """With `torchx_python` it is TorchX that submits; with `pyslurm_python` pyslurm reads."""
        self.pythons = {"torchx_python": torchx_python, "pyslurm_python": pyslurm_python}
        folder = lab.home / name
        folder.mkdir()
        uid = lab.home.stat().st_uid
        os.chown(folder, uid, uid)
        super().__init__(name, folder)
        self.private = f"/tmp/superv-private-{name}"  # a disk of each node's own
        self.lab = lab

    def ask(self, method: str, *args: Any, **spec: Any) -> Any:
        words = [base64.b64encode(a).decode() if isinstance(a, bytes) else a for a in args]
        order = {"method": method, "args": words, "kwargs": spec, "deadline_s": 30}
        order |= self.pythons
        done = self.lab.run(
            "login",
            [sys.executable, str(REPO / "tests/lab/launcher_driver.py")],
            stdin=json.dumps(order).encode(),
            env={"PYTHONPATH": str(REPO)},
            deadline_s=120,
        )
        assert done.rc == 0, done.why() + done.err
        answer = json.loads(done.out)
        if "error" in answer:
            kind, text = answer["error"]
            raise {"UserError": UserError, "TransientError": TransientError}[kind](text)
        return answer["result"]

    def pids(self, node: str, words: str) -> list[int]:
        return [
            process.pid
            for process in self.lab.processes()
            if process.node == node and words in " ".join(process.argv)
        ]

    def stat(self, node: str, path: str) -> str:
        return self.lab.run(node, ["sh", "-c", STAT, "sh", path]).out

    def file(self, node: str, path: str) -> tuple[bytes, int]:
        content = self.lab.run(node, ["cat", path]).out.encode()
        return content, int(self.lab.run(node, ["stat", "--format=%a", path]).out, 8)

    def end(self) -> None:
        self.lab.run("ctl", ["scancel", "--user=superv"], user="root", deadline_s=30)
        self.lab.wait_idle(deadline_s=90)
