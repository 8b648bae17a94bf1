"""A mount and process namespace for one test: what is mounted or started in it ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor.host import procfs
from tests.processes import send

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PASSTHROUGH = ROOT / "lab" / "passthrough.py"
LONG_S = 60.0  # a deadline that only what hangs reaches
# Process 1 of the namespace: children that lose their parents are taken off by the kernel.
INIT = (
    "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('up', flush=True)\n"
    "while True: signal.pause()"
)


def wait_until(there: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


class MountWorld:
    def __init__(self, init: int, folder: Path) -> None:
        self._init = init
        self.folder = folder
        self._space = os.readlink(f"/proc/{init}/ns/pid")
        self._mounts: dict[str, subprocess.Popen[str]] = {}

    def _inside(self, *argv: str) -> list[str]:
        return ["nsenter", "--target", str(self._init), "--mount", "--pid", *argv]

    def run(self, *argv: str) -> str:
        done = subprocess.run(self._inside(*argv), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _start(self, point: Path, *argv: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            self._inside(sys.executable, *argv), stdout=subprocess.PIPE, text=True
        )
        self._mounts[str(point)] = child
        return child

    def mount(self, name: str) -> Path:
        """A folder that is seen through lab/passthrough.py from now on."""
        point = self.folder / name
        point.mkdir(exist_ok=True)
        order = self._socket(point)
        order.unlink(missing_ok=True)
        self._start(point, str(PASSTHROUGH), str(point), str(order))
        wait_until(lambda: self._serves(point))
        return point

    def failing(self, name: str, error: int) -> Path:
        """A folder on which a file system is mounted that answers with this error."""
        point = self.folder / name
        point.mkdir()
        child = self._start(point, str(HERE / "failing_fuse.py"), str(point), str(error))
        assert child.stdout is not None and child.stdout.readline() == "mounted\n"
        return point

    def _socket(self, point: Path) -> Path:
        return point.with_name(f"{point.name}.sock")

    def _serves(self, point: Path) -> bool:
        try:
            self.order(point, "ok")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def order(self, point: Path, mode: str, delay_s: float = 0.0) -> None:
        """What the mount does from now on, see lab/passthrough.py."""
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(self._socket(point)))
            caller.sendall(json.dumps({"mode": mode, "delay_s": delay_s}).encode())
            assert caller.recv(4096)

    def kill(self, point: Path) -> None:
        """End the mount's own process: its connection is cut, and every sleep with it."""
        child = self._mounts.pop(str(point))
        for pid in self.processes():
            if str(point) in _cmdline(pid) and "passthrough" in _cmdline(pid):
                send(pid)
        _reap(child)

    def checking(
        self, *names: str, settings: dict[str, Any], deadline_s: float = LONG_S, node: str = "n1"
    ) -> subprocess.Popen[str]:
        """A run of health checks, begun; it prints its document."""
        order = {
            "names": names,
            "settings": settings,
            "folder": str(self.folder / "state"),
            "deadline_s": deadline_s,
            "node": node,
        }
        argv = self._inside(sys.executable, str(HERE / "checking.py"), json.dumps(order))
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def check(self, *names: str, **how: Any) -> Any:
        """The document of one run; its findings are by name in `by`."""
        done = self.checking(*names, **how)
        text, _ = done.communicate(timeout=120)
        assert done.returncode == 0
        document = json.loads(text)
        document["by"] = {
            f"{r['check']}[{r['on']}]" if "on" in r else r["check"]: r for r in document["results"]
        }
        return document

    def processes(self) -> list[int]:
        """All of this world but its first, by the machine's count."""
        found = []
        for pid in procfs.pids():
            with contextlib.suppress(OSError):
                if pid != self._init and os.readlink(f"/proc/{pid}/ns/pid") == self._space:
                    found.append(pid)
        return found

    def sleepers(self) -> list[int]:
        """Probes that nobody can end: in uninterruptible sleep."""
        return [pid for pid in self.processes() if procfs.state(pid) == "D"]

    def probes(self) -> list[int]:
        return [pid for pid in self.processes() if "checking.py" in _cmdline(pid)]


def _cmdline(pid: int) -> str:
    return " ".join(procfs.argv(pid))


def _reap(child: subprocess.Popen[str]) -> None:
    child.wait(timeout=30)
    assert child.stdout is not None
    child.stdout.close()


@contextmanager
def world(folder: Path) -> Iterator[MountWorld]:
    """Everything in it is gone afterwards, also what hangs."""
    argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    holder = subprocess.Popen(
        [*argv, sys.executable, "-ISc", INIT], stdout=subprocess.PIPE, text=True
    )
    made = None
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "up\n"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        made = MountWorld(int(children[0]), folder)
        yield made
    finally:
        holder.kill()
        holder.wait()
        if made is not None:
            wait_until(lambda: not made.processes())
            for child in made._mounts.values():
                _reap(child)
        assert holder.stdout is not None
        holder.stdout.close()
