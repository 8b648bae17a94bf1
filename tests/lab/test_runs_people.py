"""What people do to runs on real Slurm: launch, watch, stop, cancel, and try to break in."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from runs import NODES, PER_NODE, SAVE_EVERY, Runs, runs, shared_lab, started, until  # noqa: F401

from supervisor.channel import wire
from supervisor.core import events as ev
from supervisor.run.folder import read_server_keys

pytestmark = pytest.mark.lab


def test_a_run_ends_when_its_ranks_end_well(runs: Runs) -> None:  # noqa: F811
    run = runs.launch(runs.ring("ring", f"--steps={2 * SAVE_EVERY}"))
    status = run.until_ended("done")
    assert (status["step"], status["last_checkpoint"]["step"]) == (20, 20)
    assert (status["allocations"][0]["raw"], status["incidents"]) == ("COMPLETED", [])
    assert (run.jobs(), run.marked()) == ([], [])
    assert runs.superv("attach", run.name).out.startswith("run ring is done")


def test_a_second_launch_attaches_and_another_file_of_the_name_is_not_taken(
    runs: Runs,  # noqa: F811
) -> None:
    run = runs.launch()
    run.until_step(3)
    ranks, kept = run.ranks(), run.dir.job_file.read_text()
    again = runs.superv("launch", "--detach", str(runs.home / "ring.yaml")).out
    assert "run ring is there already: attached" in again and "differs" not in again
    other = runs.home / "other.yaml"
    other.write_text((runs.home / "ring.yaml").read_text() + "launcher: sbatch\n")
    out = runs.superv("launch", "--detach", str(other)).out
    assert f"{other} differs from" in out and "it was launched with" in out
    assert (run.dir.job_file.read_text(), run.ranks()) == (kept, ranks)
    assert (len(run.jobs()), len(run.engines())) == (1, 1)


def test_a_dry_run_touches_nothing(runs: Runs) -> None:  # noqa: F811
    job = runs.write("ring", runs.ring())
    before = sorted(runs.home.rglob("*"))
    out = runs.superv("launch", "--dry-run", str(job)).out
    assert f"{NODES + 1} nodes: {NODES} that train, 1 spare" in out
    for words in ("sbatch --parsable", "-m supervisor.agent", "srun", "--resume-step="):
        assert words in out
    assert (sorted(runs.home.rglob("*")), runs.do("squeue", "--noheader").out) == (before, "")


# --- ends ---


def test_stop_gives_the_nodes_back(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(3)
    runs.superv("stop", run.name)
    status = run.until_ended("stopped")
    assert status["reason"] == "stopped by superv"
    assert (status["allocations"][0]["raw"], status["incidents"]) == ("COMPLETED", [])
    assert (run.jobs(), run.marked()) == ([], [])
    assert "has ended already" in runs.superv("stop", run.name).out


def test_stop_now_does_not_wait_for_the_grace(runs: Runs) -> None:  # noqa: F811
    job = runs.ring("ring", "--ignore-term", "--cling", policy={"stop_grace_s": 600})
    run = runs.launch(job)
    run.until_step(3)
    runs.superv("stop", run.name)
    run.until(lambda s: s["phase"] == "stopping", "SIGTERM, which the ranks ignore")
    assert len(run.ranks()) == NODES * PER_NODE
    runs.superv("stop", "--now", run.name)
    run.until_ended("stopped")
    assert (run.jobs(), run.marked()) == ([], [])


@pytest.mark.parametrize("state", ["running", "pending"])
def test_a_job_cancelled_by_hand_is_not_restarted(runs: Runs, state: str) -> None:  # noqa: F811
    if state == "pending":
        runs.do("sbatch", "--exclusive", "--nodes=4", "--output=/dev/null", "--wrap=sleep 600")
    run = runs.launch()
    if state == "pending":
        run.until(lambda s: s["allocations"] and s["allocations"][0]["raw"] == "PENDING", "a job")
    else:
        run.until_step(3)
    job_id = run.job
    runs.do("scancel", job_id)
    status = run.until_ended("stopped")
    assert status["reason"].startswith(f"job {job_id} was cancelled by a person")
    assert len(status["allocations"]) == 1
    assert (run.jobs(), run.marked()) == ([], [])


def test_what_slurm_says_of_a_job_that_waits_stands_where_people_look(runs: Runs) -> None:  # noqa: F811
    held = runs.do("sbatch", "--exclusive", "--nodes=4", "--output=/dev/null", "--wrap=sleep 600")
    run = runs.launch()
    told = run.until(
        lambda s: s["allocations"] and s["allocations"][0]["reason"] == "Resources", "its reason"
    )
    (job,) = told["allocations"]
    assert (job["raw"], job["do"]) == ("PENDING", "") and "too few nodes are free" in job["means"]
    said = " ".join(runs.superv("status", run.name).out.split())
    assert "Resources: too few nodes are free, and it is next" in said
    runs.superv("sweep", "--deadline=60")
    page = " ".join(runs.superv("report", "--run", run.name).out.split())
    assert "Can ring run? NO: ring is pending: job" in page and "(Resources: too few nodes" in page
    expected = run.until(lambda s: s["allocations"][0]["starts_at"], "an expected start")
    assert expected["allocations"][0]["starts_at"] > time.time()
    assert "Slurm expects to start it" in runs.superv("status", run.name).out.replace("\n", " ")
    runs.do("scontrol", "hold", run.job)
    told = run.until(lambda s: s["allocations"][0]["reason"] == "JobHeldUser", "the hold")
    (one,) = [one for one in told["attention"] if one["what"] == "queue"]
    assert one["fix"] == f"`scontrol release {run.job}`"
    runs.do("scontrol", "release", run.job)
    runs.do("scancel", held.out.split()[-1])
    run.until_step(3)


# --- letting a node back in ---


def test_one_command_lets_a_node_back_in_or_names_what_keeps_it_out(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(SAVE_EVERY + 2)
    on_n2 = [run.agent("n2"), *(pid for _, pid in run.marked("n2"))]
    for pid in on_n2:
        os.kill(pid, signal.SIGSTOP)
    after = run.until_recovered()
    assert [one["node"] for one in after["excluded"]] == ["n2"]
    for pid in reversed(on_n2):  # the agent last: it ends the ranks
        os.kill(pid, signal.SIGCONT)
    runs.superv("exclude", "n2", "--reason", "it was slow")
    drain = ["scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=ops: fan"]
    assert runs.lab.run("ctl", drain, user="root").rc == 0
    said = " ".join(runs.superv("include", "n2", "--force", rc=1).out.split())
    command = "scontrol update nodename=n2 state=resume"
    assert f"n2 stays out: drained in Slurm (ops: fan), not by superv: {command}" in said
    assert "n2: lifted: excluded by " in said and "it was slow" in said
    assert "n2: lifted: excluded by run ring: node-lost" in said
    assert runs.lab.run("ctl", command.split(), user="root").rc == 0
    run.until(lambda s: s["excluded"] == [] and s["spares"] == ["n2"], "n2 as a spare")
    assert runs.superv("include", "n2", "n3", rc=2).err.startswith("superv: n[2-3]: not excluded")


# --- watching ---


def test_logs_of_any_rank(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(3)
    for rank in (0, NODES * PER_NODE - 1):
        lines = runs.superv("logs", run.name, "--rank", str(rank)).out.splitlines()
        assert lines[:2] == ["Training starts at step 1", "step: 1 loss: 1.000000"]
    assert len(runs.superv("logs", run.name, "-n", "20").out) >= 20
    refused = runs.superv("logs", run.name, "--rank", "6", rc=2)
    assert refused.err == "superv: there is no rank 6; ranks are 0 to 5\n"


@pytest.mark.parametrize("fault", ["rank killed", "its node off"])
def test_logs_follow_a_rank_over_a_restart(runs: Runs, fault: str) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(SAVE_EVERY + 2)
    seen = runs.home / "followed"
    with started(runs.enter("logs", run.name, "--rank=3", "-f"), seen):
        until(lambda: "step: 1 loss" in seen.read_text(), "the log's beginning")
        if fault == "rank killed":
            run.rank(1).signal(signal.SIGKILL)
        else:
            runs.lab.poweroff(run.rank(3).node)
        after = run.until_recovered()
        first = after["incidents"][0]["resumed_from"] + 1
        until(
            lambda: f"\nstep: {first} " in seen.read_text().partition("--- attempt 2 ---\n")[2],
            "the log of attempt 2",
        )
    text = seen.read_text().partition("--- attempt 2 ---\n")[2]
    assert text.startswith(f"Training starts at step {first}\n")


def test_status_fits_a_terminal(runs: Runs) -> None:  # noqa: F811
    run = runs.launch(runs.ring("a-run-with-a-long-name"))
    run.until_step(SAVE_EVERY + 2)
    runs.lab.poweroff("n2")
    run.until_recovered()
    page = runs.superv("status", run.name).out
    every = runs.superv("status").out
    assert [line for line in (page + every).splitlines() if len(line) > 100] == []
    for words in ("running", "attempt 2", "n[1,3-4]", "lost     n2", "excluded n2", "node-lost"):
        assert words in page
    head, row = every.splitlines()
    assert head.split() == ["RUN", "STATE"] and row.startswith(run.name)
    status = run.status_printed()
    wanted = "name phase step attempt slots spares excluded allocations last_checkpoint incidents"
    assert set(wanted.split()) <= set(status)


@pytest.mark.parametrize("command", ["launch", "attach"])
def test_ctrl_c_detaches_and_the_job_lives(runs: Runs, command: str) -> None:  # noqa: F811
    job = runs.ring()
    if command == "attach":
        runs.launch(job)
        argv = runs.enter("attach", "ring")
    else:
        argv = runs.enter("launch", str(runs.write("ring", job)))
    seen = runs.home / "watched"
    with started(argv, seen) as child:
        until(lambda: "running" in seen.read_text(), f"what {command} shows")
        run = runs.found("ring")
        watcher = min(  # its child does the work
            process.pid
            for process in runs.lab.processes()
            if "supervisor.cli" in process.argv and command in process.argv and process.uid
        )
        run.kill(watcher, signal.SIGINT)
        assert child.wait(20) == 0
    assert "detached; the run goes on" in seen.read_text()
    run.until_step(run.status()["step"] + 3)
    assert (len(run.jobs()), len(run.engines())) == (1, 1)


# --- security ---

INTRUDER = """
import sys, zmq
endpoint, server, hello = sys.argv[1], sys.argv[2].encode(), bytes.fromhex(sys.argv[3])
context = zmq.Context()
for curve in (True, False):
    link = context.socket(zmq.DEALER)
    link.linger = 0
    if curve:
        link.curve_publickey, link.curve_secretkey = zmq.curve_keypair()
        link.curve_serverkey = server
    link.connect(endpoint)
    for _ in range(3):
        link.send(hello)
    print("answered" if link.poll(1500) else "nothing", flush=True)
"""


def test_the_servers_public_key_lets_nobody_in(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    before = run.until_step(3)
    ranks, joined = run.ranks(), len(run.events(ev.AgentJoined))
    [engine] = run.events(ev.EngineStarted)
    hello = wire.Hello(
        run_id=before["run_id"],
        node="n2",
        job_id=run.job,
        address="10.77.0.9",
        port=1,
        agent="intruder",
        version="0",
        epoch=99,
        problems=("a lie",),
    )
    script = runs.home / "intruder.py"
    script.write_text(INTRUDER)
    key = read_server_keys(run.dir).server_public
    done = runs.do(
        *(sys.executable, str(script), engine.endpoint, key, wire.pack(hello).hex()), node="n4"
    )
    assert done.out == "nothing\nnothing\n"
    assert "a client with a key that is not on the list was turned away" in run.log()
    status = run.until_step(run.status()["step"] + 5)
    assert len(run.events(ev.AgentJoined)) == joined
    assert (status["incidents"], status["unusable"], run.ranks()) == ([], [], ranks)
    assert Path(run.dir.keys).stat().st_mode & 0o077 == 0


def test_keys_lie_in_files_of_their_owner_only(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    run.until_step(3)
    secret = read_server_keys(run.dir).client_secret
    base = run.status()["allocations"][0]["folder"]
    assert Path(base).parent == Path("/var/tmp")
    for node in ("n1", "n4"):
        shown = runs.do("stat", "--format=%a %u", f"{base}/key", base, node=node).out
        assert shown.splitlines() == [f"600 {runs.uid}", f"700 {runs.uid}"]
    job = runs.do("scontrol", "show", "job", run.job).out
    script = runs.do("scontrol", "write", "batch_script", run.job, "-").out
    words = [word for process in runs.lab.processes() for word in process.argv]
    assert not [text for text in (job, script, *words) if secret in text]


ATTACKERS = Path(__file__).with_name("attackers.py")


def test_another_holder_of_the_keys_takes_no_node_and_gets_no_job(runs: Runs) -> None:  # noqa: F811
    run = runs.launch()
    before = run.until_step(3)
    ranks, joined = run.ranks(), len(run.events(ev.AgentJoined))
    [engine] = run.events(ev.EngineStarted)
    keys = read_server_keys(run.dir)
    script = runs.home / "attackers.py"
    script.write_text(ATTACKERS.read_text())
    nodes = ("n1", "n2", "n3", "n9", "", "../../etc", "\x1b[2J")
    for place in ("n4", "login"):
        done = runs.do(
            *(sys.executable, str(script), "holder", engine.endpoint, keys.server_public),
            *(keys.client_public, keys.client_secret, before["run_id"], run.job, *nodes),
            node=place,
        )
        assert done.out.splitlines() == [f"{node!r} 0 1" for node in nodes], place
    status = run.until_step(run.status()["step"] + 5)
    assert len(run.events(ev.AgentJoined)) == joined
    assert (status["incidents"], status["unusable"], run.ranks()) == ([], [], ranks)
    assert status["step"] < 10**9
    log = run.dir.log.read_text()
    assert "agent on n2 refused: it speaks from" in log  # n4's address, as names tell
    assert "agent on n2 refused: another agent has n2, and answers" in log  # nobody's
    assert len([line for line in log.splitlines() if "dropped" in line]) < 40
    assert all(line.isprintable() for line in log.splitlines())


def test_strangers_connections_end_neither_engine_nor_ranks(runs: Runs) -> None:  # noqa: F811
    """Another uid, without any key, on a compute node and on the login node."""
    run = runs.launch()
    run.until_step(3)
    ranks, engines = run.ranks(), run.engines()
    [engine] = run.events(ev.EngineStarted)
    host, _, port = engine.endpoint.removeprefix("tcp://").rpartition(":")
    stranger = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
    for node in ("n2", "login"):
        program = (sys.executable, "-I", "-c", ATTACKERS.read_text())
        words = (*stranger, *program, "crowd", host, port, "1500", "8")
        done = runs.lab.run(node, words, user="root")
        assert done.rc == 0 and int(done.out) == 1500, done.why()
    status = run.until_step(run.status()["step"] + 5)
    assert (run.engines(), run.ranks(), status["incidents"]) == (engines, ranks, [])
