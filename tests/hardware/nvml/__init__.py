"""A libnvidia-ml.so.1 for tests: built with gcc, found by the real loader, told what to say.

The loader reads LD_LIBRARY_PATH when a process starts, so checks that ask it run in a process of
their own (worker.py), in a fork for each case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SCRIPT = "nvml.script"  # below the root of a case's tree


def build(folder: Path) -> Path:
    """Compile the library; returns the folder to put into LD_LIBRARY_PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    strict = ("-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1")
    into = folder / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", *strict, "-o", into, HERE / "libnvidia-ml.c"], check=True
    )
    return folder


def environment(library: Path, script: Path | None = None) -> dict[str, str]:
    """Of a process whose NVML is the one in `library`."""
    env = {**os.environ, "LD_LIBRARY_PATH": os.fspath(library), "PYTHONPATH": os.fspath(ROOT)}
    return env if script is None else {**env, "SUPERV_FAKE_NVML": os.fspath(script)}


class Worker:
    """A process that looks at cases of a test module: one line of JSON each way."""

    def __init__(self, library: Path, module: Path, log: Path) -> None:
        self._log = log
        with open(log, "w") as into:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.hardware.nvml.worker", os.fspath(module)],
                env=environment(library),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=into,
                text=True,
            )

    def ask(self, name: str, tmp_path: Path) -> dict[str, Any]:
        """What came of the case: {"error": …} or {"seen": …, "cpu_s": …}."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"case": name, "tmp": os.fspath(tmp_path)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the worker ended:\n{self._log.read_text()}"
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=20)
        assert self._process.stdout
        self._process.stdout.close()
