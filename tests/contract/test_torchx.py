"""What is TorchX's own: words arrive as they are, and what a torchx that is no use says."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds import torchx_python

from launchers import launcher_of
from launchers.slurm import Slurm
from launchers.torchx import TorchxLocal, TorchxSlurm
from supervisor.config import Site, load_site, parse_job
from supervisor.core.errors import RefusalError, UserError
from supervisor.core.ports import JobState, LaunchSpec
from supervisor.doctor import torchx as doctor

SHOWS = ("sh", "-c", 'for w; do printf "%s\\n" "$w"; done >"$1.part"; mv "$1.part" "$1"', "x")
ODD = ("${replica_id} ${img_root} $$ $HOME `id` '\"", "", "two words", "*", "{nodes}", "-rf", "ü\\")

# Slurm's commands as far as a submission asks them; sbatch runs the script's srun on one node.
STAND_INS = {
    "squeue": "exit 0",
    "sinfo": 'case "$*" in *%P*N) echo "main*|n1";; esac',
    "sbatch": 'for f; do :; done; printf "%s\\n" "$@" >$OUT/sbatch; cp "$f" $OUT/script; echo 7',
    "srun": 'printf "%s\\0" "$@" >"$OUT/srun"',
}


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\nOUT={tmp_path}/out\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "out"


def test_words_arrive_on_this_machine(tmp_path: Path) -> None:
    launcher = TorchxLocal(python=torchx_python(), folder=tmp_path / "jobs")
    words = (f"{tmp_path}/out", *ODD)
    spec = LaunchSpec(
        job_name="sv-x", nodes=1, agent_argv=(*SHOWS, *words), folder=str(tmp_path / "private")
    )
    job = asyncio.run(launcher.submit(launcher.plan(spec)))
    while asyncio.run(launcher.poll([job]))[job].state is JobState.RUNNING:
        time.sleep(0.05)
    assert (tmp_path / "out").read_text().split("\n")[:-1] == list(words)


def test_words_arrive_in_slurms_script(stand_ins: Path) -> None:
    """The folder is in the environment of sbatch alone; options are words of its command."""
    launcher = TorchxSlurm(python=torchx_python(), slurm=Slurm(env=os.environ))
    options = {"comment": "two words $(id) 'x'", "partition": "main"}
    spec = LaunchSpec(
        job_name="sv-x", nodes=1, agent_argv=("/bin/a", *ODD), folder="/tmp/secret", slurm=options
    )
    plan = launcher.plan(spec)
    assert asyncio.run(launcher.submit(plan)) == "7"
    assert "--comment=two words $(id) 'x'" in (stand_ins / "sbatch").read_text().splitlines()
    script = (stand_ins / "script").read_text()
    assert "secret" not in script
    assert plan.env == {"SUPERV_NODE_FOLDER": "/tmp/secret"}
    subprocess.run(["bash", stand_ins / "script"], check=True, capture_output=True, timeout=60)
    words = (stand_ins / "srun").read_text().split("\0")[:-1]
    assert {"--no-kill", "--kill-on-bad-exit=0", "--wait=0"} < set(words)
    assert words[-4:] == ["bash", "-c", plan.script, "superv-allocation"]


JOB = """name: x
nodes: 1
trainer: {module: train}
launcher: torchx
torchx: {scheduler: local_cwd}
"""


def site(tmp_path: Path, text: str) -> Site:
    (tmp_path / "site.yaml").write_text(f"state_dir: {tmp_path}\n{text}")
    return load_site({"SUPERV_SITE": str(tmp_path / "site.yaml")}, tmp_path / "none")


@pytest.mark.parametrize(
    ("python", "state", "says"),
    [
        ("torchx", "OK", "version 0.7.0"),
        (sys.executable, "FAIL", "No module named 'torchx'"),
        ("/nowhere/python", "FAIL", "/nowhere/python"),
        ("", "FAIL", "torchx_python is missing"),
    ],
)
def test_doctor_asks_the_interpreter_that_the_site_names(
    python: str, state: str, says: str, tmp_path: Path
) -> None:
    named = torchx_python() if python == "torchx" else python
    there = site(tmp_path, f"torchx_python: {named}\n" if named else "")
    (found,) = asyncio.run(doctor.look(parse_job(JOB, tmp_path / "job.yaml"), there))
    assert found.status.name == state and says in found.result.seen


def test_a_launch_says_what_the_site_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"site\.yaml: torchx_python: missing"):
        launcher_of(parse_job(JOB, tmp_path / "job.yaml"), site(tmp_path, ""))


@pytest.mark.parametrize(
    ("python", "args", "says"),
    [
        (sys.executable, {}, "torchx_python: .*No module named 'torchx'"),
        ("", {"color": "red"}, "args: color: this scheduler has no such option; valid: auto_set"),
    ],
)
def test_what_asking_again_would_not_change(
    python: str, args: dict[str, str], says: str, tmp_path: Path
) -> None:
    launcher = TorchxLocal(python=python or torchx_python(), args=args, folder=tmp_path / "jobs")
    spec = LaunchSpec(job_name="sv-x", nodes=1, agent_argv=("a",), folder=str(tmp_path / "private"))
    with pytest.raises(RefusalError, match=says):
        asyncio.run(launcher.submit(launcher.plan(spec)))
