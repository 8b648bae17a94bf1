"""The journal's proof: an engine killed around every kind of action, and the next one goes on.

Each time the world is compared with the journal: one job, the ranks of one attempt and no others,
slots as journaled, and nothing left at the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from home import REPO, RunHome, until

from supervisor.core import actions
from supervisor.host import procfs
from supervisor.run.journal import read

WHENS = ("before", "after")


def environ(pid: int, name: str) -> str:
    return (procfs.environ(pid) or {}).get(name, "")


def dying(home: RunHome, how: str, what: Path, kind: str, when: str) -> subprocess.Popen[bytes]:
    """An engine that will be killed around this kind of action."""
    argv = [sys.executable, str(REPO / "tests/local/dying_engine.py"), how, str(what), kind, when]
    with (home.path / "dying.log").open("ab") as log:
        return subprocess.Popen(argv, env=home.env, stdout=log, stderr=log, start_new_session=True)


def died(home: RunHome, engine: subprocess.Popen[bytes]) -> None:
    told = home.path / "dying.log"
    code = engine.wait(timeout=90)
    assert code == -signal.SIGKILL, f"it ended with {code}: {told.read_text()[-3000:]}"


def swap_engine(home: RunHome, kind: str, when: str) -> subprocess.Popen[bytes]:
    """A dying engine in place of the healthy one."""
    home.kill_engine()
    engine = dying(home, "attach", home.run_dir, kind, when)
    until(lambda: home.status()["engine"], "the dying engine's answer")
    return engine


def world_is_as_journaled(home: RunHome) -> None:
    status = home.status()
    ended = "an end of ranks that are ending: these have no environment any more"
    until(lambda: all(environ(p, "RANK") for p in home.processes(words="ring.py")), ended)
    ranks = home.processes(words="ring.py")
    (job,) = [a["job_id"] for a in status["allocations"] if a["state"] != "ended"]
    everything = home.processes()
    jobs = {environ(pid, "SLURM_JOB_ID") for pid in everything} - {""}
    assert jobs == {job}, "one job, the one that the journal names"
    assert {environ(pid, "SUPERV_ATTEMPT") for pid in ranks} == {str(status["attempt"])}
    by_rank = sorted((int(environ(p, "RANK")), environ(p, "SLURMD_NODENAME")) for p in ranks)
    slots = [slot["node"] for slot in status["slots"]]
    assert by_rank == [(2 * i + j, node) for i, node in enumerate(slots) for j in (0, 1)]
    submits = [
        action
        for record in read(home.run_dir / "journal.jsonl")
        for action in record.actions
        if isinstance(action, actions.Submit)
    ]
    assert {s.key for s in submits} == {"submit/1"}


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("kind", ["Submit", "SendKeys", "Prepare", "Start"])
def test_killed_while_the_run_starts(home: RunHome, kind: str, when: str) -> None:
    job = home.job()
    died(home, dying(home, "launch", job, kind, when))
    home.superv("launch", "--detach", str(job))
    home.at_step(5)
    world_is_as_journaled(home)


def kill_rank(home: RunHome) -> None:
    os.kill(min(home.processes("local-2", "ring.py")), signal.SIGKILL)


def freeze_node(home: RunHome) -> None:
    home.signal("local-2", signal.SIGSTOP)


def kill_agent_for_good(home: RunHome) -> None:
    """The agent and the loop that would start another; the ranks go on."""
    pids = home.processes("local-2")
    ranks = home.processes("local-2", "ring.py")
    for pid in pids.keys() - ranks.keys():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize(
    ("kind", "fault", "same_attempt"),
    [
        ("Collect", kill_rank, False),
        ("Stop", kill_rank, False),
        ("Scan", kill_rank, False),
        ("Prepare", kill_rank, False),
        ("Start", kill_rank, False),
        pytest.param("Poll", freeze_node, False, marks=pytest.mark.soak),
        ("Probe", freeze_node, False),
        pytest.param("StartAgent", kill_agent_for_good, True, marks=pytest.mark.soak),
    ],
)
def test_killed_while_it_recovers(
    home: RunHome, kind: str, fault: Callable[[RunHome], None], same_attempt: bool, when: str
) -> None:
    home.launched("--step-s", "0.2") if same_attempt else home.launched()
    home.at_step(12)
    engine = swap_engine(home, kind, when)
    before = home.status()["attempt"]
    fault(home)
    died(home, engine)
    home.superv("launch", "--detach", str(home.path / "job.yaml"))
    after = home.reached(
        lambda s: (
            s["phase"] == "running"
            and s["attempt"] >= (before if same_attempt else before + 1)
            and (s["step"] or 0) >= 12
            and (not same_attempt or not s["unusable"])
        ),
        "a running attempt",
    )
    if fault is freeze_node:
        assert [slot["node"] for slot in after["slots"]] == ["local-1", "local-3"]
        for pid in home.processes("local-2"):  # what a node that is off would not have
            os.kill(pid, signal.SIGKILL)
    world_is_as_journaled(home)


@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize(
    "kind", ["Stop", "Scan", "Leave", pytest.param("Cancel", marks=pytest.mark.soak)]
)
def test_killed_while_the_run_ends(home: RunHome, kind: str, when: str) -> None:
    home.launched()
    engine = swap_engine(home, kind, when)
    if kind == "Cancel":  # a node that does not answer keeps the job from ending by itself
        home.signal("local-3", signal.SIGSTOP)
    subprocess.run(home.argv("stop", "ring"), env=home.env, capture_output=True, timeout=60)
    died(home, engine)
    subprocess.run(home.argv("attach", "ring"), env=home.env, capture_output=True, timeout=90)
    until(lambda: not home.processes(), "the end of all processes")
    status = home.status()
    assert status["phase"] == "stopped"
    assert {a["state"] for a in status["allocations"]} == {"ended"}
