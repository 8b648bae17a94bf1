"""Many nodes: which way to each, frames through a shared pipe, srun and ssh as they answer.

srun, sinfo and squeue are programs on a PATH of their own here; the real ones are in
tests/lab/test_preflight.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from pathlib import Path

import pytest

from healthchecks.frame.check import Status
from healthchecks.frame.frames import Collector, pieces
from healthchecks.many.remote import ANSWERS, NodeAnswer, Suite, examine
from healthchecks.many.slurm_nodes import Transport, transport_for
from healthchecks.many.srun import SrunStep, StepResult
from launchers.slurm_rows import SlurmNode
from supervisor.config import Site, Ssh
from supervisor.core.errors import UserError

SUITE = Suite(names=("fs.local",))


# --- frames ---


def test_reports_of_many_nodes_come_whole_out_of_a_mixed_pipe() -> None:
    texts = {f"n{i}": json.dumps({"node": i, "text": "x" * 1700 * i}) for i in range(1, 8)}
    lines = [line for node, text in texts.items() for line in pieces("m4rk", node, text)]
    assert max(map(len, lines)) < 1000, "slurmstepd cuts lines of 1024 bytes"
    lines += ["srun: error: something", "m4rk n9", "0ther n1 1/1 {}", "m4rk n9 0/0 "]
    random.Random(4).shuffle(lines)
    data = ("\n".join(lines) + "\n").encode()
    collector, found = Collector(nonce="m4rk"), []
    for start in range(0, len(data), 997):
        found += collector.feed(data[start : start + 997])
    assert dict(found) == texts and len(found) == 7
    assert collector.began == {*texts, "n9"}
    assert sorted(collector.said) == ["0ther n1 1/1 {}", "m4rk n9", "srun: error: something"]


def test_a_report_that_did_not_come_whole_is_none() -> None:
    first, *_ = pieces("m", "n1", "y" * 2000)
    assert Collector(nonce="m").feed(f"{first}\n".encode()) == []


# --- Slurm's word ---


def node(state: str, idle_cpus: int = 4, **more: str) -> SlurmNode:
    return SlurmNode(
        name="n1", state=state, partitions=("main",), gres="", idle_cpus=idle_cpus, **more
    )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("idle", Transport.SRUN),
        ("planned", Transport.SRUN),
        ("mixed", None),
        ("allocated", Transport.NONE),
        ("completing", Transport.NONE),
        ("draining", Transport.NONE),
        ("drained", Transport.SSH),
        ("drained*", Transport.SSH),
        ("down", Transport.SSH),
        ("down*", Transport.SSH),
        ("idle*", Transport.SSH),
        ("inval", Transport.SSH),
        ("maint", Transport.SSH),
        ("reserved", Transport.SSH),
        ("unknown*", Transport.SSH),
        ("idle~", Transport.NONE),
        ("idle#", Transport.NONE),
        ("drained@", Transport.NONE),
        ("powered_down", Transport.NONE),
    ],
)
def test_the_way_follows_from_slurms_word(state: str, expected: Transport | None) -> None:
    assert transport_for(node(state))[0] is expected


def test_a_mixed_node_without_a_free_core_is_busy() -> None:
    assert transport_for(node("mixed", idle_cpus=0)) == (
        Transport.NONE,
        "all of its cores are in use",
    )


def test_a_step_asks_for_whole_nodes_and_all_their_gpus() -> None:
    argv = SrunStep(nodes=("n1", "n2", "n4"), partition="main", gres="gpu:8", cpus=4).argv(
        "x", "/py", 60
    )
    assert "--cpus-per-task=4" in argv
    assert {"--nodelist=n[1-2,4]", "--exclusive", "--mem=0", "--gres=gpu:8", "--no-kill"} < {*argv}
    assert argv[-4:] == ["/py", "-I", "-m", "healthchecks"]
    mixed = SrunStep(nodes=("n1",), partition="main", whole=False, options=("--account=a",))
    assert "--exclusive" not in mixed.argv("x", "/py", 60)
    assert "--account=a" in mixed.argv("x", "/py", 60)


def test_what_srun_said_of_a_node() -> None:
    said = (
        "srun: error: Task launch for StepId=2.0 failed on node n1: Communication failure",
        "srun: error: n11: task 3: Exited with exit code 1",
        "ModuleNotFoundError: healthchecks",
    )
    ended = StepResult(rc=1, began=frozenset(), said=said)
    assert ended.failed_on("n1") and not ended.failed_on("n11")
    assert ended.about("n11") == said[1]
    assert ended.about("n5") == said[2]
    busy = "srun: error: Unable to allocate resources: Requested nodes are busy"
    assert StepResult(rc=1, began=frozenset(), said=(busy,)).refused
    assert not StepResult(rc=1, began=frozenset({"n1"}), said=(busy,)).refused


# --- examine, with Slurm's commands played by programs on PATH ---

SQUEUE = """#!/bin/sh
[ ! -e "{folder}/squeue" ] || sed "s/^MARK/${{SQUEUE_FORMAT%%|*}}/" "{folder}/squeue"
"""
SRUN = """
# Runs the command once for each node, as a step does, and says what slurmstepd and srun would.
import json, os, subprocess, sys
from supervisor.core.nodeset import expand
folder = {folder!r}
words = sys.argv[1:]
with open(folder + "/srun.log", "a") as log:
    log.write(json.dumps(words) + "\\n")
at = next(i for i, word in enumerate(words) if not word.startswith("--"))
nodes = expand(next(w for w in words if w.startswith("--nodelist=")).partition("=")[2])
order = sys.stdin.read()
told = json.load(open(folder + "/world.json"))
for node in nodes:
    what = told.get(node, "ok")
    if what == "spare" and "--cpus-per-task=2" in words:
        sys.exit(
            "srun: error: Unable to allocate resources: "
            "Requested node configuration is not available"
        )
    if what == "refuse":
        told[node] = "ok"
        json.dump(told, open(folder + "/world.json", "w"))
        sys.exit("srun: error: Unable to allocate resources: Requested nodes are busy")
for node in nodes:
    what = told.get(node, "ok")
    if what == "lost":
        sys.exit(f"srun: error: Task launch for StepId=1.0 failed on node {{node}}: gone")
    if what == "mute":
        sys.stderr.write(f"srun: error: {{node}}: task 0: Exited with exit code 1\\n")
        continue
    print("a line of somebody's .bashrc", flush=True)
    os.environ["SLURMD_NODENAME"] = node
    subprocess.run(words[at:], input=order, text=True)
"""


class SlurmAnswers:
    """Slurm's commands, as this test has them answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.env = {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(folder)}
        self.nodes: dict[str, str] = {}
        self.tell()
        script = folder / "srun.py"
        script.write_text(SRUN.format(folder=str(folder)))
        self.program("srun", f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        self.program("squeue", SQUEUE.format(folder=folder))
        self.program("sinfo", f'#!/bin/sh\ncat "{folder}/sinfo"\n')
        self.program("scancel", f'#!/bin/sh\necho "$@" >> "{folder}/scancel.log"\n')

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def tell(self, **nodes: str) -> None:
        """How each node's task goes: ok, refuse (once), spare (a core), lost, mute."""
        (self.folder / "world.json").write_text(json.dumps(nodes))

    def sinfo(self, **states: str) -> None:
        lines = [f"{node}|main*|{state}|0/2/0/2|(null)|none\n" for node, state in states.items()]
        (self.folder / "sinfo").write_text("".join(lines))

    def srun_calls(self) -> list[str]:
        """The nodes that each srun was asked for."""
        lines = (self.folder / "srun.log").read_text().splitlines()
        calls = [json.loads(line) for line in lines]
        return [w.partition("=")[2] for words in calls for w in words if "--nodelist" in w]

    def examine(self, *nodes: str, **more: object) -> dict[str, NodeAnswer]:
        site = Site(
            state_dir=self.folder,
            ssh=Ssh(port=more.pop("port", 22), connect_timeout_s=5),  # type: ignore[arg-type]
        )
        return asyncio.run(examine(nodes, SUITE, site, env=self.env, **more))  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> SlurmAnswers:
    return SlurmAnswers(tmp_path)


def statuses(answers: dict[str, NodeAnswer]) -> dict[str, Status | None]:
    return {
        node: None
        if a.report is None
        else next(f.status for f in a.report.findings if f.check == ANSWERS)
        for node, a in answers.items()
    }


def test_idle_nodes_answer_through_one_step_as_they_come(world: SlurmAnswers) -> None:
    world.sinfo(n1="idle", n2="idle", n3="allocated")
    told: list[tuple[str, list[str]]] = []
    answers = world.examine(
        *("n2", "n1", "n3"),
        on_answer=lambda a, left: told.append((a.node if a else "", list(left))),
    )
    assert statuses(answers) == {"n2": Status.OK, "n1": Status.OK, "n3": None}
    assert world.srun_calls() == ["n[1-2]"]
    assert [node for node, _ in told] == ["", "n3", "n1", "n2"]
    assert [len(left) for _, left in told] == [3, 2, 1, 0]
    report = answers["n1"].report
    assert report is not None and report.node == "n1"
    assert "fs.local" in {f.check for f in report.findings}


def test_a_node_lost_in_the_step_costs_the_others_nothing(world: SlurmAnswers) -> None:
    world.sinfo(n1="idle", n2="idle", n3="idle")
    world.tell(n2="lost")
    answers = world.examine("n1", "n2", "n3")
    assert statuses(answers) == {"n1": Status.OK, "n2": Status.FAIL, "n3": Status.OK}
    assert world.srun_calls() == ["n[1-3]", "n3"]


def test_a_step_that_is_not_granted_is_asked_for_again(world: SlurmAnswers) -> None:
    world.sinfo(n1="idle", n2="idle")
    world.tell(n2="refuse")
    assert set(statuses(world.examine("n1", "n2")).values()) == {Status.OK}
    assert world.srun_calls() == ["n[1-2]", "n[1-2]"]


def test_where_some_cores_are_not_for_jobs_it_asks_for_no_number_of_them(
    world: SlurmAnswers,
) -> None:
    world.sinfo(n1="idle")
    world.tell(n1="spare")
    assert statuses(world.examine("n1")) == {"n1": Status.OK}
    asked = (world.folder / "srun.log").read_text().splitlines()
    assert ["--cpus-per-task=2" in line for line in asked] == [True, False]


def test_a_task_that_ends_without_a_report_is_unknown(world: SlurmAnswers) -> None:
    world.sinfo(n1="idle", n2="idle")
    world.tell(n1="mute")
    answers = world.examine("n1", "n2")
    assert statuses(answers) == {"n1": Status.UNKNOWN, "n2": Status.OK}
    report = answers["n1"].report
    assert report is not None and "n1: task 0: Exited" in report.findings[0].result.seen


def test_who_holds_a_busy_node(world: SlurmAnswers) -> None:
    world.sinfo(n1="allocated", n2="allocated", n3="draining")
    me = os.getuid()
    (world.folder / "squeue").write_text(
        f"MARK|7|{me}|me|n1|superv-moe-100b-0a1b2c-1\n"
        f"MARK|8|9999|bob|n2|train\n9|{me}|me|n[1-3]|superv-moe-100b-0a1b2c-2\n\n"
    )
    answers = world.examine("n1", "n2", "n3")
    assert {node: (a.transport, a.why) for node, a in answers.items()} == {
        "n1": (Transport.NONE, "in run moe-100b of me (job 7): its agents watch it"),
        "n2": (Transport.NONE, "busy: job 8 of bob"),
        "n3": (Transport.NONE, "draining"),
    }


def test_nodes_and_partitions_that_slurm_does_not_know(world: SlurmAnswers) -> None:
    world.sinfo(n1="idle")
    with pytest.raises(UserError, match=r"n\[7-8\]: Slurm knows no such node"):
        world.examine("n1", "n7", "n8")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def test_a_drained_node_is_asked_through_ssh_and_refuses(world: SlurmAnswers) -> None:
    world.sinfo(localhost="drained")
    answer = world.examine("localhost", port=free_port())["localhost"]
    assert answer.transport is Transport.SSH and answer.report is not None
    (finding,) = answer.report.findings
    assert (finding.check, finding.status) == (ANSWERS, Status.UNKNOWN), "slurmd there answers"
    assert "Connection refused; Slurm says drained" in finding.result.seen


def test_a_down_node_that_refuses_does_not_answer(world: SlurmAnswers) -> None:
    world.sinfo(localhost="down*")
    assert statuses(world.examine("localhost", port=free_port())) == {"localhost": Status.FAIL}


def test_srun_alone_leaves_out_what_slurm_can_not_use(world: SlurmAnswers) -> None:
    world.sinfo(n1="drained")
    assert statuses(world.examine("n1", via=Transport.SRUN)) == {"n1": Status.UNKNOWN}


def test_a_port_that_says_nothing_is_no_answer(world: SlurmAnswers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        answers = world.examine(
            "127.0.0.1", port=mute.getsockname()[1], via=Transport.SSH, deadline_s=1.0
        )
    assert statuses(answers) == {"127.0.0.1": Status.FAIL}
