"""Where `superv demo` plays: a Slurm cluster in namespaces, or this machine alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.core.errors import UserError

if TYPE_CHECKING:
    from lab.cluster import Lab
    from supervisor.proc import Completed

RUN_S = 120.0
ENDED_WITHIN_S = 60.0  # the local run's processes have ended by then


class DemoBackend(ABC):
    """Nodes for the demo, and a user who runs commands."""

    launcher: str
    interface: str  # where ranks meet
    home: Path
    env: Mapping[str, str] = {}
    fault_text: str  # what happens to the node, before its name
    reentry_hint: str  # how to come back to it

    @abstractmethod
    def command(self, *argv: str) -> list[str]:
        """The command line that runs a command as the user, with `env`."""

    @abstractmethod
    def _run(self, *argv: str, stdin: bytes | None) -> Completed: ...

    def run(self, *argv: str, stdin: str | None = None) -> str:
        """Run a command as the user; its output. Raises UserError."""
        done = self._run(*argv, stdin=None if stdin is None else stdin.encode())
        if done.rc != 0:
            words = argv[2:] if argv[:2] == (sys.executable, "-m") else argv
            raise UserError(f"{' '.join(words)[:60]} failed: {done.why()}")
        return done.out

    @abstractmethod
    def lose(self, node: str) -> None:
        """Make a node fail."""

    @abstractmethod
    def fault(self) -> tuple[float, str, str]:
        """When it failed, what happened, and who says so."""


class SlurmBackend(DemoBackend):
    """A real Slurm in network namespaces; the node loses power."""

    launcher = "sbatch"
    interface = "eth0"
    fault_text = "powering off"
    reentry_hint = "`superv lab shell --name demo` enters it, `superv lab down --name demo` ends it"

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.home = lab.shared / "demo"

    def command(self, *argv: str) -> list[str]:
        return self._lab.enter("login", list(argv))

    def _run(self, *argv: str, stdin: bytes | None) -> Completed:
        return self._lab.run("login", list(argv), stdin=stdin, deadline_s=RUN_S)

    def lose(self, node: str) -> None:
        self._lab.poweroff(node)

    def fault(self) -> tuple[float, str, str]:
        from lab import faults

        last = [f for f in faults.read(self._lab.layout) if f.fault == "poweroff"][-1]
        return last.at, f"{last.node} powered off", "lab's log"


@contextlib.contextmanager
def on_slurm(*, exposed: Path, keep: bool) -> Iterator[DemoBackend]:
    """A cluster of three nodes; `exposed` is a folder that they must see."""
    from lab.cluster import Lab, exposed_by_default

    lab = Lab("demo")
    lab.down()
    lab.up(3, exposed=[*exposed_by_default(), exposed])
    try:
        yield SlurmBackend(lab)
    finally:
        if not keep:
            lab.down()


class LocalBackend(DemoBackend):
    """Nodes are processes of this machine; all of the node's are frozen."""

    launcher = "local"
    interface = "lo"
    fault_text = "freezing every process of"

    def __init__(self, folder: Path) -> None:
        self.home = folder / "demo"
        site = folder / "site.yaml"
        (folder / "nodes").mkdir()
        site.write_text(f"state_dir: {folder / 'state'}\nnode_dir: {folder / 'nodes'}\n")
        self.env = {"SUPERV_SITE": str(site)}
        self.reentry_hint = f"SUPERV_SITE={site} superv attach moe-demo"
        self.frozen: tuple[float, str] | None = None

    def command(self, *argv: str) -> list[str]:
        return list(argv)

    def _run(self, *argv: str, stdin: bytes | None) -> Completed:
        from supervisor import proc

        env = {**os.environ, **self.env}
        return proc.run_sync(argv, deadline_s=RUN_S, stdin=stdin, env=env)

    def signal(self, number: int, node: str = "") -> int:
        """Send it to the processes of a node, or of all; returns how many there are."""
        from launchers.local import processes

        runs = json.loads(self.run(sys.executable, "-m", "supervisor.cli", "status", "--json"))
        jobs = {job["job_id"] for run in runs for job in run["allocations"]}
        mine = [p for p in processes().values() if p.job in jobs and node in ("", p.node)]
        for process in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        return len(mine)

    def lose(self, node: str) -> None:
        self.frozen = (time.time(), node)
        self.signal(signal.SIGSTOP, node)

    def fault(self) -> tuple[float, str, str]:
        assert self.frozen is not None
        at, node = self.frozen
        return at, f"{node} frozen: SIGSTOP to all of its processes", "demo"


@contextlib.contextmanager
def on_this_machine(*, keep: bool) -> Iterator[DemoBackend]:
    """A folder with its own site file, and at the end no process that was started from it."""
    folder = Path(tempfile.mkdtemp(prefix="superv-demo-"))
    backend = LocalBackend(folder)
    try:
        yield backend
    finally:
        if not keep:
            _end(backend)
            _remove(folder)


def _remove(folder: Path) -> None:
    """Copies of code are read-only, and a node that was lost has not taken its own away."""
    for at, inner, _ in os.walk(folder):
        for path in (Path(at) / name for name in inner):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)


def _end(backend: LocalBackend) -> None:
    """Kill what is frozen, stop the run, and wait until its processes are gone."""
    if backend.frozen is not None:
        backend.signal(signal.SIGKILL, backend.frozen[1])
    if (backend.home.parent / "state/runs").is_dir():
        backend.run(sys.executable, "-m", "supervisor.cli", "stop", "moe-demo", "--now")
        deadline = time.monotonic() + ENDED_WITHIN_S
        socket = backend.home.parent / "state/runs/moe-demo/control.sock"  # its engine's
        while backend.signal(0) or socket.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{backend.home.parent}: its run did not end within {ENDED_WITHIN_S:.0f} s"
                )
            time.sleep(0.2)
