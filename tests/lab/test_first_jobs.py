"""First jobs on a lab: what `superv init` writes, and the examples as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from runs import REPO, RING, LaunchedRun, Runs, runs  # noqa: F401

from lab.cluster import Lab

pytestmark = [pytest.mark.lab, pytest.mark.titan]
EXAMPLES = REPO / "examples"


@pytest.fixture(scope="module")
def python() -> Path:
    if "SUPERV_TITAN" not in os.environ:
        pytest.skip("SUPERV_TITAN names no Python with TorchTitan (make .venv-titan)")
    return Path(os.environ["SUPERV_TITAN"]).absolute()


@pytest.fixture(scope="module")
def shared_lab(fence: Path, python: Path) -> Iterator[Lab]:
    """As `superv lab up` makes it."""
    there = Lab(f"{leftovers.NAME}-first")
    there.up(3)
    yield there
    there.down()


def launched(runs: Runs, name: str, path: Path) -> LaunchedRun:  # noqa: F811
    """As a person does it: doctor, the dry run, the launch."""
    runs.superv("doctor", str(path))
    runs.superv("launch", "--dry-run", str(path))
    told = runs.superv("launch", "--detach", str(path))
    assert "superv launch would refuse" not in told.out
    run = runs.launched[name] = LaunchedRun(runs, name)
    return run


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("command", ["--run", f"/usr/bin/python3 {RING} --save-dir=x"]),
        pytest.param("ddp", ["--run", str(EXAMPLES / "ddp/train.py")], marks=pytest.mark.soak),
        pytest.param(
            "torchtitan",
            ["--run", "titan_cpu --module moe_lab --config lab", "--save", "saved"],
            marks=pytest.mark.soak,
        ),
    ],
)
def test_what_init_writes_runs(
    runs: Runs,  # noqa: F811
    python: Path,
    kind: str,
    more: list[str],
) -> None:
    if kind == "torchtitan":
        for name in ("titan_cpu.py", "moe_lab.py"):
            runs.do("cp", str(EXAMPLES / "torchtitan_lab" / name), str(runs.home))
        runs.do(str(python), str(EXAMPLES / "torchtitan_lab/assets.py"), str(runs.home))
    path = runs.home / "first.yaml"
    argv = ["--kind", kind, "--name", kind, "--nodes", "2", "--ranks", "1", *more]
    argv += ["--python", str(python)] if kind != "command" else []
    runs.superv("init", str(path), *argv)
    text = path.read_text().replace("  # env: {", "  env: {GLOO_SOCKET_IFNAME: eth0}\n  # {")
    if kind == "torchtitan":  # on CPUs
        text = text.replace("  hook: ", "  preload: [titan_cpu]\n  hook: ")
    path.write_text(text)
    assert "partition: main" in text and "gres: " in text
    run = launched(runs, kind, path)
    status = run.until(lambda s: (s["step"] or 0) >= 3, "three steps", 180)
    assert (len(status["slots"]), status["spares"]) == (2, ["n3"])
    runs.superv("stop", "--now", kind)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("example", "name", "prepare"),
    [("ddp", "ddp", False), ("torchtitan_lab", "titan-lab", True)],
)
def test_an_example_runs_as_it_is(
    runs: Runs,  # noqa: F811
    python: Path,
    example: str,
    name: str,
    prepare: bool,
) -> None:
    """Its paths begin at the user's home, and its Python is the checkout's."""
    if python != REPO / ".venv-titan/bin/python":
        pytest.skip("the examples' Python is the checkout's own")
    if prepare:
        home = runs.lab.home / "titan-lab"
        runs.do(str(python), str(EXAMPLES / "torchtitan_lab/assets.py"), str(home))
    run = launched(runs, name, EXAMPLES / example / "job.yaml")
    run.until(lambda s: s["lineage"], "a verified checkpoint", 180)
    runs.superv("stop", "--now", name)
