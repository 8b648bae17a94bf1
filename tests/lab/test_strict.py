"""A strict lab is as strict as docs/lab-faults.md says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import cgroups
from lab.cluster import Lab

pytestmark = [pytest.mark.lab, pytest.mark.only("strict")]
PYTHON = "/usr/bin/python3"


def job(lab: Lab, *argv: str, rc: int = 0) -> str:
    """What one task of the user's says."""
    done = lab.run("login", ["srun", "-N1", "--nodelist=n1", *argv])
    assert done.rc == rc, f"{done.out}{done.err}"
    return done.out


def processes(lab: Lab, word: str) -> list[int]:
    return [process.pid for process in lab.processes() if word in process.argv]


def until(reached: Callable[[], object], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.05)


def test_slurm_tracks_jobs_in_cgroups_of_their_node(lab: Lab) -> None:
    rows = job(lab, "cat", "/proc/self/cgroup").splitlines()
    for controller in cgroups.SLURMS:
        [row] = [row for row in rows if f":{controller}:" in row]
        assert "/slurm_n1/uid_" in row and "/step_0" in row and "superv-lab" not in row
    here = cgroups.group(lab.layout, "freezer", "n1")
    assert (here / "slurm_n1").is_dir()


def test_a_task_is_bound_to_the_cores_it_asked_for(lab: Lab) -> None:
    show = "import os; print(len(os.sched_getaffinity(0)))"
    assert job(lab, "-c1", PYTHON, "-c", show) == "1\n"
    widen = "import os; os.sched_setaffinity(0, range(os.cpu_count())); " + show
    assert job(lab, "-c1", PYTHON, "-c", widen) == "1\n"


def test_a_step_leaves_nothing_behind(lab: Lab) -> None:
    job(lab, "sh", "-c", "setsid sleep 611 >/dev/null 2>&1 & exit 0")
    assert processes(lab, "611") == []


def test_the_epilog_kills_what_the_user_left_on_the_node(lab: Lab) -> None:
    leave = ["sh", "-c", "setsid sleep 612 >/dev/null 2>&1 & exit 0"]
    lab.run("n1", leave)
    lab.run("n1", leave, user="root")
    lab.run("n2", leave)
    until(lambda: len(processes(lab, "612")) == 3)  # sh may not have become sleep yet
    job(lab, "true")
    until(lambda: len(processes(lab, "612")) == 2)
    for node in ("n1", "n2"):
        lab.run(node, ["pkill", "-KILL", "-f", "sleep 612"], user="root")


def test_the_epilog_spares_another_job_on_the_node(lab: Lab) -> None:
    submit = ["sbatch", "--parsable", "-n1", "-c1", "--mem=100", "--nodelist=n1", "--wrap"]
    assert lab.run("login", [*submit, "sleep 613"]).rc == 0
    until(lambda: processes(lab, "613"))
    there = processes(lab, "613")
    job(lab, "-n1", "-c1", "--mem=100", "true")
    # Completing jobs are listed as well: the one that is left is the other.
    until(lambda: len(lab.run("login", ["squeue", "--noheader"]).out.splitlines()) == 1)
    assert processes(lab, "613") == there


TRACE = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
child = subprocess.Popen(["sleep", "60"])
PTRACE_SEIZE = 0x4206
seized = libc.ptrace(PTRACE_SEIZE, child.pid, 0, 0), os.strerror(ctypes.get_errno())
buffer = (ctypes.c_char * 8)(); iov = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
read = libc.process_vm_readv(child.pid, iov, 1, iov, 1, 0), os.strerror(ctypes.get_errno())
child.kill()
print(seized, read)
"""


def test_a_job_may_not_trace_its_own_processes(lab: Lab) -> None:
    refused = (-1, "Operation not permitted")
    assert job(lab, PYTHON, "-c", TRACE) == f"{refused} {refused}\n"


def test_the_user_reads_no_kernel_log(lab: Lab) -> None:
    lab.kmsg("n1", "secret")
    for argv in (["cat", "/dev/kmsg"], ["cat", str(lab.layout.node("n1") / "kmsg")]):
        done = lab.run("n1", argv)
        assert done.rc == 1 and "Permission denied" in done.err
    assert "secret" in lab.run("n1", ["cat", "/dev/kmsg"], user="root").out


def test_limits_are_slurmds_and_not_the_users(lab: Lab) -> None:
    # slurmd raises its own soft limit of files to the hard one.
    assert job(lab, "bash", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Hl") == "4096\n4096\n64\n"


def test_cgroups_go_with_their_node_and_come_back(lab: Lab) -> None:
    here = [cgroups.group(lab.layout, controller, "n1") for controller in cgroups.SLURMS]
    assert all(path.is_dir() for path in here)
    lab.poweroff("n1")
    assert not any(path.exists() for path in here)
    lab.poweron("n1")
    lab.wait_idle()
    assert "/slurm_n1/" in job(lab, "cat", "/proc/self/cgroup")
    assert Path(here[0], "slurm_n1").is_dir()
