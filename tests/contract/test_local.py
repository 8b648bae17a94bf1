"""What is the local launcher's own: names, what agents inherit, and what it says of bad files."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds import LocalWorld

from launchers.local import Local, environment, processes
from sbatch_templates import render
from supervisor.core.errors import UserError
from supervisor.core.ports import JobState, LaunchSpec


@pytest.fixture
def here(tmp_path: Path, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    made = LocalWorld("sv-local", tmp_path)
    yield made
    made.end()


def test_the_nodes_name_stands_for_its_mark_and_nothing_else_changes(tmp_path: Path) -> None:
    shows = ("sh", "-c", 'for w; do printf "%s\\n" "$w"; done >"$1.part"; mv "$1.part" "$1"', "x")
    words = (f"{tmp_path}/out.{{node}}", "{node} a {node}", "$HOME `id` '\"", "", "{nodes}", "*")
    launcher = Local(folder=tmp_path / "jobs")
    spec = LaunchSpec(job_name="sv-words", nodes=1, agent_argv=(*shows, *words))
    job = asyncio.run(launcher.submit(launcher.plan(spec)))
    out = tmp_path / "out.local-1"
    for _ in range(200):
        if asyncio.run(launcher.poll([job]))[job].state is not JobState.RUNNING:
            break
        time.sleep(0.05)
    said = out.read_text().split("\n")[:-1]
    assert said == [str(out), "local-1 a local-1", words[2], "", "{nodes}", "*"]


def test_the_script_passes_shellcheck() -> None:
    script = Local().plan(LaunchSpec(job_name="x", nodes=1, agent_argv=("a b", "{node}"))).script
    for argv in (["shellcheck", "--shell=sh", "-"], ["sh", "-n"]):
        done = subprocess.run(argv, input=script, text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert render("agent_loop.sh").splitlines()[0] in script


def test_two_jobs_share_no_names(here: LocalWorld) -> None:
    _, first = here.started()
    _, second = here.started(job_name="sv-local-2")
    assert first == ["local-1", "local-2", "local-3"]
    assert second == ["local-4", "local-5", "local-6"]


def test_agents_inherit_what_is_listed_only(here: LocalWorld) -> None:
    job, _ = here.started()
    for pid in processes(job):
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        names = {word.partition(b"=")[0].decode() for word in environ if word}
        own = {"SLURMD_NODENAME", "SUPERV_NODE_ADDRESS", "PWD", "OLDPWD", "SHLVL", "_"}
        assert names <= set(environment(os.environ, job)) | own


def test_agents_outlive_whoever_submitted(here: LocalWorld) -> None:
    submits = (
        "import asyncio, sys; from pathlib import Path; from launchers.local import Local; "
        "from supervisor.core.ports import LaunchSpec; l = Local(folder=Path(sys.argv[1])); "
        "print(asyncio.run(l.submit(l.plan(LaunchSpec("
        "job_name='sv-local', nodes=2, agent_argv=tuple(sys.argv[2:]))))), flush=True); "
        "import time; time.sleep(60)"
    )
    argv = [sys.executable, "-c", submits, str(here.dir / "jobs"), *here.agent]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout is not None
        job = child.stdout.readline().strip()
        os.killpg(child.pid, signal.SIGKILL)
    here.wait(lambda: here.starts("local-1") == here.starts("local-2") == 1)
    here.beats("local-1", "local-2")
    assert here.poll(job)["state"] == "running"


def test_cancel_ends_a_frozen_node_and_one_that_ignores_it(here: LocalWorld) -> None:
    Path(here.agent[0]).write_text(
        "#!/bin/sh\ntrap '' TERM\necho \"$$ x\" >>$1/starts.$SLURMD_NODENAME\n"
        "while :; do sleep 0.2; done\n"
    )
    job, nodes = here.started()
    for pid in processes(job):
        if f"SLURMD_NODENAME={nodes[0]}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGSTOP)
    here.ask("cancel", job)
    assert not processes(job)
    assert here.poll(job)["state"] == "cancelled"


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir(mode=0o700)
    (tmp_path / "jobs").chmod(0o777)
    launcher = Local(folder=tmp_path / "jobs")
    with pytest.raises(UserError, match="must be a directory of mode 0700, owned by you"):
        asyncio.run(launcher.find("sv-"))
    status = asyncio.run(launcher.poll(["local-1"]))["local-1"]
    assert (status.state, "mode 0700" in status.reason) == (JobState.UNKNOWN, True)


def test_options_for_slurm_have_no_effect_and_are_refused() -> None:
    with pytest.raises(UserError, match="slurm: partition: has no effect with launcher: local"):
        Local().plan(LaunchSpec(job_name="x", nodes=1, slurm={"partition": "main"}))
