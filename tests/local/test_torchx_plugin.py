"""`torchx run -s superv`: TorchX's own command starts, shows and ends runs of superv.

torchx is the real one, in an environment of its own; superv's command is named by $SUPERV.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from home import DCP, REPO, RING, RunHome, until

BUILT_IN = {"local_docker", "local_cwd", "slurm", "kubernetes", "aws_batch", "lsf"}


@pytest.fixture(scope="module")
def torchx() -> str:
    python = os.environ.get("SUPERV_TORCHX", str(REPO / ".venv-torchx/bin/python"))
    if not Path(python).exists():
        pytest.skip("SUPERV_TORCHX names no Python with torchx (make .venv-torchx/.done)")
    return python


class TorchX:
    """TorchX's command line beside one test's runs."""

    def __init__(self, python: str, home: RunHome) -> None:
        self.python, self.home = python, home
        self.env = {
            **home.env,
            "SUPERV": shlex.join(home.argv()),
            "PYTHONPATH": str(REPO),
            "COLUMNS": "200",
        }

    def __call__(self, *argv: str, rc: int = 0) -> str:
        done = subprocess.run(
            [self.python, "-m", "torchx.cli.main", *argv],
            env=self.env,
            cwd=self.home.path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout + done.stderr

    def asked(self, code: str) -> str:
        """What a program prints that has torchx."""
        done = subprocess.run(
            [self.python, "-c", code], env=self.env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def called(torchx: str, home: RunHome) -> TorchX:
    return TorchX(torchx, home)


def test_a_run_from_torchx_and_back(called: TorchX, home: RunHome) -> None:
    base = home.job()
    ring = ("--step-s", "0.05", "--save-every", "10", "--checkpoint", str(DCP))
    paths = ("--save-dir", "{save_dir}", "--resume-path", "{resume_path}")
    app = ("dist.ddp", "-j", "2x2", "--name", "ring", "--script", str(RING), "--env", "ODD=a b")
    args = (*ring, *paths, "--resume-step", "{resume_step}")
    said = called("run", "-s", "superv", "-cfg", f"job={base},spares=0", *app, "--", *args)
    handle = re.search(r"superv://torchx/(ring-[0-9a-f]{8})", said)
    assert handle, said
    name = handle[1]
    home.run_dir = home.run_dir.with_name(name)
    home.at_step(3)
    status = called("status", handle[0])
    assert re.search(r"State:\s+RUNNING", status) and "trainer[1]:RUNNING" in status, status
    assert "step: 1 loss: " in called("log", f"{handle[0]}/trainer/1")
    assert name in called("list", "-s", "superv")
    (rank, *_) = [p for p, argv in home.processes().items() if "ring.py" in argv]
    environ = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    assert b"ODD=a b" in environ
    called("cancel", handle[0])
    until(lambda: home.status()["phase"] == "stopped", "the end of the run")
    assert re.search(r"State:\s+CANCELLED", called("status", handle[0]))


def test_the_dry_run_shows_the_job_and_no_secret(called: TorchX, home: RunHome) -> None:
    app = ("dist.ddp", "-j", "3x8", "--gpu", "8", "-m", "pkg.train", "--env", "HF_TOKEN=hush,A=1")
    options = "spares=1,partition=train,time=14-00:00:00"
    said = called("run", "--dryrun", "-s", "superv", "-cfg", options, *app, "--", "--lr", "1e-4")
    request = said[said.index("launch --detach JOB.YAML") :]
    assert "hush" not in request
    for line in ("nodes: 3", "spares: 1", '"partition": "train"', '"gpus-per-node": "8"'):
        assert line.replace('"', "") in request.replace('"', ""), request
    for word in ("pkg.train", "ranks_per_node: 8", "--lr", "1e-4"):
        assert word in request.replace('"', "")
    assert "torchrun" not in request


@pytest.mark.parametrize(
    ("app", "says"),
    [
        (("utils.sh", "echo", "hi"), ""),
        (
            ("dist.ddp", "-j", "1x1", "--script", "t.py", "--mounts", "type=bind,src=/,dst=/x"),
            "mounts",
        ),
    ],
)
def test_what_is_no_torchrun(called: TorchX, app: tuple[str, ...], says: str) -> None:
    said = called("run", "--dryrun", "-s", "superv", *app, rc=1 if says else 0)
    assert (says or "command:") in said


def test_torchxs_own_schedulers_and_components_are_there(called: TorchX) -> None:
    """An entry point would hide them: each is named beside superv's, and can be made."""
    code = (
        "import json; from torchx.schedulers import *; from torchx.schedulers import "
        "DEFAULT_SCHEDULER_MODULES as own; there = get_scheduler_factories(); "
        "print(json.dumps([sorted(own), sorted(there), there['slurm']('x').backend, "
        "there['superv']('x').backend]))"
    )
    own, there, slurm, superv = json.loads(called.asked(code))
    assert set(own) >= BUILT_IN
    assert set(there) == {*own, "superv"}
    assert (slurm, superv) == ("slurm", "superv")
    assert "dist.ddp" in called("builtins")


def test_what_superv_refuses_is_one_line(called: TorchX, home: RunHome) -> None:
    base = home.job(nodes="many")
    base.write_text(base.read_text() + "colour: red\n")
    said = called("run", "-s", "superv", "-cfg", f"job={base}", "utils.sh", "true", rc=1)
    assert "colour: unknown key" in said
    assert "does not exist" in called("status", "superv://torchx/nosuch", rc=1)
