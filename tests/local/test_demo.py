"""`superv demo --local`, whole: TorchTitan, a node frozen, a timeline, and nothing left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.titan


@pytest.mark.skipif(
    "SUPERV_TITAN" not in os.environ, reason="SUPERV_TITAN names a Python with TorchTitan"
)
def test_the_demo_without_slurm(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("d")  # short: a socket's path has 107 bytes
    argv = [sys.executable, "-m", "supervisor.cli", "demo", "--local"]
    done = subprocess.run(
        [*argv, "--trainer-python", os.environ["SUPERV_TITAN"]],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no Slurm (as asked): 2 nodes and a spare are processes of this machine" in done.stdout
    rows = re.findall(r"^[\d:.]+ +[\d.]+s +(\w+(?: step)?) ", done.stdout, re.MULTILINE)
    assert rows == [
        *("fault", "suspected", "confirmed", "stopped", "verdict", "relaunched", "first step")
    ]
    assert re.search(r"relaunched +spare local-\d in slot 1, from verified step \d+", done.stdout)
    assert list(tmp_path.iterdir()) == []
    argvs = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"{tmp_path}/superv-demo" not in argvs


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("/nope", "/nope: not there; `make demo`"),
        ("/tmp", "/tmp: not a Python that can be run; `make demo`"),
        ("/usr/bin/python3", "/usr/bin/python3: has no TorchTitan; `make demo`"),
        ("/bin/false", "/bin/false: false ended with 1"),
    ],
)
def test_a_python_that_can_not_train_is_told_before_anything_is_made(
    python: str, says: str
) -> None:
    argv = [sys.executable, "-m", "supervisor.cli", "demo", "--trainer-python", python]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"superv: {says}")
