"""What a measurement is made of, and the file that keeps every sample.

Nothing is averaged here. Values are seconds, MB (10^6 bytes) or percent of one core; a file holds
all that its tables are made from.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from supervisor import __version__, proc

REPO = Path(__file__).resolve().parents[1]
OUT = REPO / "bench" / "out"
SCHEMA = 1


class NotMeasuredError(Exception):
    """Something that a measurement needs is not on this machine; the text says what."""


class WrongError(Exception):
    """What was measured is not what it is called; the bench fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchColumn:
    """One measured quantity; `unit` is ms, s, MB or %."""

    key: str
    title: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A median must be at most so much, or at most such a share of another case's median."""

    case: str
    key: str
    at_most: float
    of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One try. `load` is the machine's load average over the minute before it ended."""

    case: str
    values: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)
    load: float = field(default_factory=lambda: os.getloadavg()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSetup:
    """What `python -m bench` was asked for."""

    repeat: int
    titan: Path | None  # a Python with TorchTitan
    ft: Path | None  # a Python with nvidia-resiliency-ext
    say: Callable[[str], None]

    def need_titan(self) -> Path:
        if self.titan is None:
            raise NotMeasuredError("SUPERV_TITAN names no Python with TorchTitan; see `make bench`")
        return self.titan


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One thing that is measured. `run` yields its samples as they come."""

    name: str
    about: str
    columns: tuple[BenchColumn, ...]
    targets: tuple[Target, ...]
    repeat: int
    run: Callable[[BenchSetup], Iterator[Sample]]


def _output(*argv: str) -> str:
    done = proc.run_sync(argv, deadline_s=60, cwd=str(REPO))
    return done.out.strip() if done.rc == 0 else f"unknown: {done.why()}"


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": names[0] if names else platform.machine(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
    }


def _versions(setup: BenchSetup) -> dict[str, str]:
    found = {
        "superv": __version__,
        "python": platform.python_version(),
        "slurm": _output("slurmctld", "-V"),
    }
    packages = ((setup.titan, ("torch", "torchtitan")), (setup.ft, ("nvidia-resiliency-ext",)))
    for python, names in packages:
        for name in names if python else ():
            ask = f"from importlib.metadata import version as v; print(v({name!r}))"
            found[name] = _output(str(python), "-c", ask)
    return found


class ResultsFile:
    """The file of one run of the bench, written anew after every sample."""

    def __init__(self, setup: BenchSetup, argv: Sequence[str]) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime())
        self.path = OUT / f"{stamp}.json"
        self.document: dict[str, Any] = {
            "schema": SCHEMA,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime()),
            "command": ["python", "-m", "bench", *argv],
            "revision": _output("git", "rev-parse", "HEAD"),
            "changed_files": _output("git", "status", "--short", "--untracked-files=no"),
            "machine": _machine(),
            "versions": _versions(setup),
            "measurements": {},
        }

    def begin(self, measurement: Measurement) -> None:
        self.document["measurements"][measurement.name] = {
            "about": measurement.about,
            "columns": [asdict(column) for column in measurement.columns],
            "targets": [asdict(target) for target in measurement.targets],
            "samples": [],
        }
        self.write()

    def add(self, measurement: Measurement, sample: Sample) -> None:
        self.document["measurements"][measurement.name]["samples"].append(asdict(sample))
        self.write()

    def end(self, measurement: Measurement, **how: str) -> None:
        """Say how a measurement came out: not_measured, wrong or broken, and why."""
        self.document["measurements"][measurement.name].update(how)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.document, indent=1) + "\n")
        part.replace(self.path)


def load(path: Path) -> dict[str, Any]:
    """A file of samples. Exits with one line where it is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"bench: {path}: {error}")
    if document.get("schema") != SCHEMA:
        sys.exit(f"bench: {path}: schema {document.get('schema')}; this bench reads {SCHEMA}")
    return document
