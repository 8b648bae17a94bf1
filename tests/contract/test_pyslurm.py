"""What is read through pyslurm is what Slurm's commands say; and what is not read hangs nobody.

The suite of test_launchers.py runs with it, too. A real pyslurm is needed for the first
(SUPERV_PYSLURM); packages that hang, end or are not there stand in for it where those are tried.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest

from lab.cluster import Lab
from launchers import launcher_of
from launchers.pyslurm_client import PyslurmClient
from launchers.slurm_answers import AwayError
from launchers.slurm_rows import node_of_complete
from supervisor.config.job import load_job
from supervisor.config.site import load_site
from supervisor.core.check_status import Status
from supervisor.doctor.cluster import reader
from supervisor.host import procfs

REPO = Path(__file__).resolve().parents[2]
BOTH = """
import asyncio, dataclasses, json, sys
from launchers.pyslurm_client import PyslurmClient
from launchers.slurm import Slurm

async def ask(slurm):
    answers = await slurm.nodes(), await slurm.nodes(["n2"]), await slurm.nodes(partition="main")
    jobs = await slurm.jobs(), await slurm.jobs(ids=["2"]), await slurm.jobs(name="wrap")
    told = [sorted(some, key=lambda job: job.job_id) for some in jobs]
    return *answers, await slurm.partitions(), *told

def plain(value):
    return sorted(value) if isinstance(value, frozenset) else dataclasses.asdict(value)

async def main():
    library = PyslurmClient(sys.argv[1])
    answers = [json.dumps(await ask(slurm), default=plain) for slurm in (Slurm(), library)]
    library.close()
    print(*answers, sep=chr(10))

asyncio.run(main())
"""


@pytest.mark.lab
def test_it_reads_what_the_commands_say(with_pyslurm: tuple[Lab, str]) -> None:
    there, python = with_pyslurm

    def do(*argv: str, user: str = "superv") -> str:
        done = there.run("ctl" if user == "root" else "login", argv, user=user)
        assert done.rc == 0, done.why()
        return done.out

    def same() -> None:
        argv = [sys.executable, "-c", BOTH, python]
        done = there.run("login", argv, env={"PYTHONPATH": str(REPO)})
        assert done.rc == 0, done.err
        commands, library = map(json.loads, done.out.splitlines())
        for told, read in zip(commands, library, strict=True):
            assert read == told

    do("sbatch", "--wrap=sleep 300", "--nodelist=n2", "--exclusive")
    do("sbatch", "--wrap=true", "--nodes=4", "--dependency=singleton", "--job-name=a | b")
    do("sbatch", "--wrap=true", "--hold", "--nodelist=n1")
    try:
        end = time.monotonic() + 60
        while "RUNNING" not in do("squeue", "-h", "-o", "%T"):
            assert time.monotonic() < end
            time.sleep(0.2)
        for node, reason in (("n2", "superv: a.b: c"), ("n3", "ops | fan : x")):
            argv = ("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")
            do(*argv, user="root")
        there.poweroff("n3")
        end = time.monotonic() + 60
        while "drained*" not in do("sinfo", "-h", "-N", "-o", "%T"):
            assert time.monotonic() < end
            time.sleep(0.2)
        same()
    finally:
        there.poweron("n3")
        do("scancel", "--user=superv", user="root")
        do("scontrol", "update", "NodeName=n[2-3]", "State=RESUME", user="root")
        there.wait_idle()
    same()


# Complete state → what sinfo writes (node_state_string, and the lab's 22.05 to 26.05).
STATES = {
    "IDLE": "idle",
    "IDLE+NOT_RESPONDING": "idle*",
    "MIXED": "mixed",
    "ALLOCATED+COMPLETING": "allocated",
    "IDLE+COMPLETING": "completing",
    "IDLE+DRAIN": "drained",
    "MIXED+DRAIN": "draining",
    "IDLE+COMPLETING+DRAIN": "draining",
    "DOWN+DRAIN": "drained",
    "DOWN+DRAIN+NOT_RESPONDING": "drained*",
    "DOWN+NOT_RESPONDING": "down*",
    "IDLE+RESERVED": "reserved",
    "IDLE+PLANNED": "planned",
    "IDLE+CLOUD+POWERED_DOWN": "idle~",
    "IDLE+MAINTENANCE": "maint$",
    "IDLE+INVALID_REG": "inval",
    "UNKNOWN": "unknown",
}


@pytest.mark.parametrize(("complete", "state"), STATES.items())
def test_a_complete_state_in_the_words_of_sinfo(complete: str, state: str) -> None:
    node = node_of_complete(
        name="n1", complete=complete, partitions=("main",), gres="", idle_cpus=0, reason=""
    )
    assert node.state == state
    assert node.down == bool({"DOWN", "NOT_RESPONDING"} & {*complete.split("+")})


def stand_in(folder: Path, body: str | None) -> str:
    """A Python whose pyslurm is this code; None: it has none."""
    folder.mkdir(exist_ok=True)
    if body is not None:
        (folder / "pyslurm.py").write_text(body)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


VERSION = "__version__ = '24.11.0'\n"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import time; time.sleep(60)", "did not answer within 1 s"),
        (
            "import sys, time; sys.stderr.write('error: s_p_parse_file: cannot stat file /x/"
            "slurm.conf: No such file or directory, retrying in 1sec up to 60sec\\n')"
            "; time.sleep(60)",
            "no slurm.conf here.*did not answer within 1 s: error: s_p_parse_file",
        ),
        (
            "import os; os.write(2, b'fatal: Could not establish a configuration source\\n');"
            "os._exit(1)",
            "no slurm.conf here.*process ended: fatal: Could not",
        ),
        ("import os; os.kill(os.getpid(), 11)", "pyslurm's process ended"),
        (
            "raise RuntimeError('Unable to contact slurm controller')",
            "Slurm does not answer.*Unabl",
        ),
        ("raise RuntimeError('odd')", "pyslurm: RuntimeError: odd"),
        (None, "No module named 'pyslurm'.*site.yaml's pyslurm_python: see docs/pyslurm.md"),
    ],
    ids=["hangs", "waits", "fatal", "crash", "away", "odd", "none"],
)
def test_no_answer_is_none_and_the_next_question_finds_a_new_child(
    tmp_path: Path, body: str | None, says: str
) -> None:
    python = stand_in(tmp_path / "p", body)

    async def play() -> None:
        client = PyslurmClient(python, deadline_s=1, env=os.environ)
        with pytest.raises(AwayError, match=says):
            await client.version()
        stand_in(tmp_path / "p", VERSION)
        client.deadline_s = 20
        assert await client.version() == "24.11.0"
        assert client._child is not None
        child = client._child.pid
        assert await client.version() == "24.11.0" and client._child.pid == child
        os.kill(child, 9)
        while procfs.state(child) not in (None, "Z"):
            await asyncio.sleep(0.01)
        assert await client.version() == "24.11.0"
        again = client._child.pid
        client.close()
        while procfs.state(again) not in (None, "Z", "X"):
            await asyncio.sleep(0.01)

    asyncio.run(play())


@pytest.mark.lab
def test_doctor_reads_slurm_through_it(with_pyslurm: tuple[Lab, str]) -> None:
    there, python = with_pyslurm
    code = "import asyncio; from supervisor.doctor.cluster import reader; "
    code += f"print(asyncio.run(reader({python!r})).result.seen)"
    done = there.run("login", [sys.executable, "-c", code], env={"PYTHONPATH": str(REPO)})
    assert done.out.endswith("reads this Slurm (4 nodes)\n"), done


def test_doctor_says_where_pyslurm_is_not(tmp_path: Path) -> None:
    found = asyncio.run(reader(stand_in(tmp_path / "p", None)))
    assert found.status is Status.FAIL and "No module named 'pyslurm'" in found.result.seen


def test_the_site_chooses_it(tmp_path: Path) -> None:
    python = stand_in(tmp_path / "p", VERSION)
    (tmp_path / "job.yaml").write_text(
        "name: x\nnodes: 1\nslurm: {partition: main}\ntrainer: {script: t.py}\n"
    )
    for text, client in (
        ("state_dir: /srv\n", "Slurm"),
        (f"pyslurm_python: {python}\n", "PyslurmClient"),
    ):
        (tmp_path / "site.yaml").write_text(text)
        site = load_site({"SUPERV_SITE": str(tmp_path / "site.yaml")}, tmp_path / "none")
        launcher = launcher_of(load_job(tmp_path / "job.yaml"), site)
        assert type(launcher._slurm).__name__ == client  # type: ignore[attr-defined]
