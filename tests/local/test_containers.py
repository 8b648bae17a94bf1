"""Ranks in containers, agents outside: lines that a stand-in for the runtime takes and runs.

None of the runtimes is here. The stand-in (container_runtime.py) reads the documented options and
runs the command in a mount namespace; what it can't tell is marked untried in docs/containers.md.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from home import DCP, REPO, RunHome, until

from supervisor.agent.containers import signal_of
from supervisor.core.container import (
    NVIDIA,
    RUNTIMES,
    Container,
    ContainerPlace,
    Mount,
    environment_file,
    inside,
)
from tests.processes import send

LOOP = "superv-agent"  # the shell around each agent
STAND_IN = REPO / "tests/local/container_runtime.py"
ODD = {"A": "two words", "B": 'it\'s $HOME `id` "x"\nline', "C": "", "D": "ü\\n*"}


def can_unshare() -> bool:
    child = os.fork()
    if child == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(0x20000) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    if os.geteuid() != 0 or not can_unshare():
        pytest.skip("a mount namespace needs root")
    there = tmp_path / "bin"
    there.mkdir()
    for runtime in RUNTIMES.values():
        (there / runtime.program).symlink_to(STAND_IN)
    (tmp_path / "image").mkdir()
    (tmp_path / "image/marker").write_text("in the image")
    return there


def run_inside(
    bin_dir: Path, runtime: str, *command: str, env: dict[str, str] | None = None, gpus: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command in a container of the stand-in."""
    folder = bin_dir.parent / "node"
    folder.mkdir(exist_ok=True)
    (folder / "env").write_text(environment_file(env or {}))
    data = bin_dir.parent / "data"
    data.mkdir(exist_ok=True)
    container = Container(
        runtime=runtime,
        image=str(bin_dir.parent / "image"),
        mounts=(Mount(path=str(data), to="/data", read_only=True),),
        workdir="/data",
    )
    place = ContainerPlace(node="n1", job_id="7", folder=str(folder), gpus=gpus)
    line = inside(container, place, str(folder / "env"), command)
    own = {"PATH": f"{bin_dir}:/usr/bin:/bin", "HOST_ONLY": "x", **RUNTIMES[runtime].env}
    return subprocess.run(line, env=own, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_the_line_starts_the_command_in_the_container(bin_dir: Path, runtime: str) -> None:
    code = (
        "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), open('/marker').read(),"
        f" os.path.exists({str(REPO)!r}), os.access('/data', os.W_OK)]))"
    )
    done = run_inside(bin_dir, runtime, "python3", "-c", code, env=ODD, gpus=NVIDIA)
    assert done.returncode == 0, done.stderr
    env, cwd, marker, sees_host, writes = json.loads(done.stdout)
    assert {name: env.get(name) for name in ODD} == ODD
    assert (cwd, marker, sees_host, writes) == ("/data", "in the image", False, False)
    assert env["FROM_IMAGE"] == "yes"
    assert not (bin_dir.parent / "node/env").exists(), "values stay no longer than they are needed"
    if runtime != "pyxis":
        assert "HOST_ONLY" not in env
    if runtime != "apptainer":
        assert env["NVIDIA_VISIBLE_DEVICES"] == env["MELLANOX_VISIBLE_DEVICES"] == "all"


@pytest.mark.parametrize("runtime", sorted(RUNTIMES))
def test_ends_are_told_as_they_are(bin_dir: Path, runtime: str) -> None:
    assert run_inside(bin_dir, runtime, "sh", "-c", "exit 7").returncode == 7
    ended = run_inside(bin_dir, runtime, "sh", "-c", "kill -KILL $$").returncode
    container = Container(runtime=runtime, image="x", workdir="/")
    number = signal_of(container, ended)
    assert signal.SIGKILL in (-ended, number)
    assert signal_of(container, 7) is None
    assert run_inside(bin_dir, runtime, "nothing-like-it").returncode == 127


def launched(home: RunHome, bin_dir: Path, runtime: str, preload: str = "[]") -> dict[str, Any]:
    home.env["PATH"] = f"{bin_dir}:{home.env.get('PATH', os.defpath)}"
    image = bin_dir.parent / "image"
    mounts = [{"path": str(DCP), "read_only": True}]
    path = home.job(container={"runtime": runtime, "image": str(image), "mounts": mounts})
    text = path.read_text().replace(f"python: {home.argv()[0]}", "python: /usr/bin/python3")
    secret = home.path / "secret"
    secret.write_text("hush-hush\n")
    secret.chmod(0o600)
    text = text.replace("trainer:\n", f"trainer:\n  env: {{TOKEN: {{secret: {secret}}}, A: b c}}\n")
    path.write_text(text.replace("trainer:\n", f"trainer:\n  preload: {preload}\n"))
    home.superv("launch", "--detach", str(path))
    return home.at_step(12)


@pytest.mark.parametrize("runtime", ["enroot", pytest.param("apptainer", marks=pytest.mark.soak)])
def test_a_run_whose_ranks_are_in_containers(home: RunHome, bin_dir: Path, runtime: str) -> None:
    launched(home, bin_dir, runtime)
    there = {
        pid: argv
        for pid, argv in home.processes(words="ring.py").items()
        if Path(f"/proc/{pid}/root/marker").exists()
    }
    assert len(there) == 4, home.processes()
    for pid in there:
        environ = Path(f"/proc/{pid}/environ").read_text()
        assert "TOKEN=hush-hush\0" in environ and "A=b c\0" in environ and "RANK=" in environ
    assert not [argv for argv in home.processes().values() if "hush-hush" in argv]
    assert not list(home.path.rglob("*.env"))
    send(min(there), signal.SIGKILL)
    status = home.at_step(22, attempt=2)
    [incident] = status["incidents"]
    assert "was ended by SIGKILL" in incident["evidence"][0]["text"]
    assert incident["resumed_from"] >= 10
    home.superv("stop", "ring")
    until(lambda: home.status()["phase"] == "stopped", "the end of the run")


def in_containers(home: RunHome, words: str) -> list[int]:
    """Processes that see the image's files, and whose command line holds the words."""
    there = home.processes(words=words)
    return [pid for pid in there if Path(f"/proc/{pid}/root/marker").exists()]


@pytest.mark.parametrize("runtime", ["apptainer", pytest.param("enroot", marks=pytest.mark.soak)])
def test_ranks_are_forked_in_the_container_and_outlive_their_agent(
    home: RunHome, bin_dir: Path, runtime: str
) -> None:
    launched(home, bin_dir, runtime, preload="[json]")
    ranks = sorted(in_containers(home, "ring.py"))
    assert len(ranks) >= 4
    send(ranks[0], signal.SIGKILL)
    status = home.at_step(22, attempt=2)
    [incident] = status["incidents"]
    assert incident["warm"] is True and status["attempt_cold"] == []
    agents = {
        p for p, argv in home.processes(words="-m supervisor.agent").items() if LOOP not in argv
    }
    assert len(agents) >= 2
    for pid in agents:
        send(pid, signal.SIGKILL)
    until(lambda: not agents & home.processes().keys(), "the end of the agents")
    status = home.at_step((home.status()["step"] or 0) + 40, attempt=2)
    assert len(status["incidents"]) == 1, "the ranks have noticed nothing"
    send(max(in_containers(home, "ring.py")), signal.SIGKILL)
    status = home.at_step(status["step"] + 10, attempt=3)
    assert [one["warm"] for one in status["incidents"]] == [True, True]
    home.superv("stop", "ring")
    until(lambda: home.status()["phase"] == "stopped", "the end of the run")


def test_the_dry_run_shows_the_line(home: RunHome) -> None:
    path = home.job(container={"runtime": "enroot", "image": "titan+25.10", "mounts": ["/data"]})
    said = home.superv("launch", "--dry-run", str(path))
    (line,) = [line for line in said.splitlines() if line.startswith("enroot start ")]
    assert "--mount /data:/data:none:x-create=auto,rbind,rw" in line
    assert f"--mount {home.path}/checkpoint:" in line
    assert " -- titan+25.10 /bin/sh -c " in line


def test_what_is_not_there_is_said_at_the_launch(home: RunHome, bin_dir: Path) -> None:
    image = bin_dir.parent / "none.sif"
    path = home.job(container={"runtime": "apptainer", "image": str(image)})
    said = home.superv("launch", "--detach", str(path), rc=2)
    assert "container.runtime: apptainer: not in PATH" in said
    home.env["PATH"] = f"{bin_dir}:{home.env.get('PATH', os.defpath)}"
    said = home.superv("launch", "--detach", str(path), rc=2)
    assert f"container.image: {image}" in said and "not in PATH" not in said
    image.touch()
    told = subprocess.run(
        home.argv("doctor", str(path), "--json"), env=home.env, capture_output=True, text=True
    )
    (seen,) = [one for one in json.loads(told.stdout)["findings"] if one["check"] == "container"]
    assert (seen["state"], "stand-in 1.0" in seen["text"]) == ("OK", True), seen
