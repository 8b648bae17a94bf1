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
import zmq
from worlds import LocalWorld

from launchers.local import Local, environment, processes
from sbatch_templates import render
from supervisor.channel.link import CurveLink
from supervisor.channel.router import Channel
from supervisor.core.actions import SendKeys
from supervisor.core.errors import UserError
from supervisor.core.events import Event, KeysSent
from supervisor.core.policy import Policy
from supervisor.core.ports import JobState, LaunchSpec
from supervisor.core.types import Allocation, AllocationState, Run, RunSpec
from supervisor.engine.effects import Effects, Setup
from supervisor.host import procfs


@pytest.fixture
def here(tmp_path: Path, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    made = LocalWorld("sv-local", tmp_path)
    yield made
    made.end()


def test_words_of_the_command_arrive_as_they_are(tmp_path: Path) -> None:
    shows = ("sh", "-c", 'for w; do printf "%s\\n" "$w"; done >"$1.part"; mv "$1.part" "$1"', "x")
    words = (f"{tmp_path}/out", "{node} a {node}", "$HOME `id` '\"", "", "{nodes}", "*")
    launcher = Local(folder=tmp_path / "jobs")
    argv, private = (*shows, *words), str(tmp_path / "private")
    spec = LaunchSpec(job_name="sv-words", nodes=1, agent_argv=argv, folder=private)
    job = asyncio.run(launcher.submit(launcher.plan(spec)))
    out = tmp_path / "out"
    for _ in range(200):
        if asyncio.run(launcher.poll([job]))[job].state is not JobState.RUNNING:
            break
        time.sleep(0.05)
    said = out.read_text().split("\n")[:-1]
    assert said == list(words)


def test_the_script_passes_shellcheck() -> None:
    spec = LaunchSpec(job_name="x", nodes=1, agent_argv=("a b", "{node}"), folder="/tmp/a b")
    script = Local().plan(spec).script
    for argv in (["shellcheck", "--shell=sh", "-"], ["sh", "-n"]):
        done = subprocess.run(argv, input=script, text=True, capture_output=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert render("agent_loop.sh").splitlines()[0] in script


def test_a_moved_engine_reaches_the_agents_of_a_job_of_0_1(here: LocalWorld) -> None:
    """They look at one name only, and read it again when it changes."""
    job, nodes = here.started()
    key = here.dir / "superv-0-r.key"
    key.write_bytes(b"of the engine before")
    before = Allocation(
        job_id=job, job_name=here.name, state=AllocationState.GRANTED, nodes=tuple(nodes)
    )
    action = SendKeys(key="send", job_id=job)
    spec = RunSpec(
        name="r",
        run_id="r",
        nodes=3,
        spares=0,
        ranks_per_node=1,
        checkpoint_dir=None,
        policy=Policy(),
    )
    run = Run(spec=spec, allocations={job: before}, pending={action.key: action})

    async def sent() -> Event:
        told: asyncio.Queue[Event] = asyncio.Queue()
        public, secret = zmq.curve_keypair()
        channel = Channel(CurveLink(public, secret, public), time.time)
        effects = Effects(
            setup=Setup(
                slurm={},
                agent_argv=("a",),
                folder=lambda job_name: here.private,
                paths_of_0_1=(str(key), "/n"),
                required=(),
            ),
            launcher=here.launcher,
            channel=channel,
            key_file=lambda: b"of this engine",
            run=lambda: run,
            apply=told.put_nowait,
            now=time.time,
            failed=lambda error: None,
        )
        effects.perform(action)
        first = await asyncio.wait_for(told.get(), 30)
        await effects.close()
        channel.close()
        return first

    assert isinstance(asyncio.run(sent()), KeysSent)
    assert (key.read_bytes(), key.stat().st_mode & 0o777) == (b"of this engine", 0o600)
    assert list(here.dir.glob("*.part")) == []


def test_two_jobs_share_no_names(here: LocalWorld) -> None:
    _, first = here.started()
    _, second = here.started(job_name="sv-local-2")
    assert first == ["local-1", "local-2", "local-3"]
    assert second == ["local-4", "local-5", "local-6"]


def test_agents_inherit_what_is_listed_only(here: LocalWorld) -> None:
    job, _ = here.started()
    for pid in processes(job):
        names = (procfs.environ(pid) or {}).keys()
        own = {
            "SLURMD_NODENAME",
            "SUPERV_NODE_ADDRESS",
            "SUPERV_NODE_FOLDER",
            "PWD",
            "OLDPWD",
            "SHLVL",
            "_",
        }
        assert names <= set(environment(os.environ, job)) | own


def test_agents_outlive_whoever_submitted(here: LocalWorld) -> None:
    submits = (
        "import asyncio, sys; from pathlib import Path; from launchers.local import Local; "
        "from supervisor.core.ports import LaunchSpec; l = Local(folder=Path(sys.argv[1])); "
        "print(asyncio.run(l.submit(l.plan(LaunchSpec("
        "job_name='sv-local', nodes=2, agent_argv=tuple(sys.argv[3:]), folder=sys.argv[2])))), "
        "flush=True); "
        "import time; time.sleep(60)"
    )
    argv = [sys.executable, "-c", submits, str(here.dir / "jobs"), here.private, *here.agent]
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
        if procfs.environ_has(pid, f"SLURMD_NODENAME={nodes[0]}"):
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
        Local().plan(LaunchSpec(job_name="x", nodes=1, folder="/t", slurm={"partition": "main"}))


def test_what_is_known_of_a_job_that_runs_is_put_back(here: LocalWorld) -> None:
    """A cleaner took the jobs' folder: the job is not forgotten, and can be ended."""
    job, _ = here.started()
    folder = here.launcher._home()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    status = asyncio.run(here.launcher.poll([job]))[job]
    assert (status.state, status.job_name) == (JobState.RUNNING, here.name)
    assert (folder / f"{job}.json").exists()
    asyncio.run(here.launcher.cancel(job))
    assert processes(job) == {}
    assert asyncio.run(here.launcher.poll([job]))[job].state is JobState.CANCELLED
