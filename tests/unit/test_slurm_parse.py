"""Slurm's answers, as recorded from 22.05.8 (squeue, sinfo, sbatch) and as documented (sacct)."""

from __future__ import annotations

import pytest

from launchers.slurm import client_env
from launchers.slurm_rows import (
    SlurmNode,
    lines,
    marked_rows,
    parse_jobs,
    parse_nodes,
    parse_partitions,
    state_of,
)
from supervisor.core.errors import TransientError
from supervisor.core.ports import JobState

# squeue(1) and sacct(1), JOB STATE CODES.
STATES = {
    JobState.PENDING: (
        "PENDING EXPEDITING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD"
    ),
    JobState.RUNNING: "RUNNING CONFIGURING COMPLETING RESIZING SUSPENDED STOPPED SIGNALING"
    " STAGE_OUT",
    JobState.CANCELLED: "CANCELLED",
    JobState.ENDED: "COMPLETED FAILED TIMEOUT NODE_FAIL OUT_OF_MEMORY PREEMPTED BOOT_FAIL DEADLINE"
    " LAUNCH_FAILED RECONFIG_FAIL REVOKED",
}


@pytest.mark.parametrize(
    ("raw", "state"), [(raw, state) for state, words in STATES.items() for raw in words.split()]
)
def test_every_documented_state(raw: str, state: JobState) -> None:
    assert state_of(raw) is state
    assert state_of(f"{raw}+") is state


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        ("CANCELLED by 1000", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("", JobState.UNKNOWN),
        ("HIBERNATING", JobState.UNKNOWN),
        ("RUN", JobState.UNKNOWN),
    ],
)
def test_first_word_decides(raw: str, state: JobState) -> None:
    assert state_of(raw) is state


def test_jobs() -> None:
    running, pending, ended = parse_jobs(
        lines(
            "10|RUNNING|None|n[1-2,4]|sv-moe-0\n"
            "11|PENDING|PartitionNodeLimit||sv-moe-1\n"
            "9|CANCELLED by 4242|None|n3|odd|name\n"
        )
    )
    assert (running.job_id, running.nodes, running.reason) == ("10", ("n1", "n2", "n4"), "")
    assert (pending.state, pending.nodes) == (JobState.PENDING, ())
    assert pending.reason == "PartitionNodeLimit"
    assert (ended.raw, ended.job_name) == ("CANCELLED by 4242", "odd|name")
    assert parse_jobs(lines("")) == []


def test_a_line_that_is_none() -> None:
    with pytest.raises(TransientError, match="can't be read"):
        parse_jobs(["10|RUNNING"])
    with pytest.raises(TransientError, match="can't be read"):
        marked_rows("10|RUNNING|None|n1|x\n", "5eed")


def test_nodes_that_are_none() -> None:
    """A half-written or new form of a list is no answer, and ends no engine."""
    with pytest.raises(TransientError, match="can't be read"):
        parse_jobs(["10|RUNNING|None|n[1-|x"])
    with pytest.raises(TransientError, match="can't be read"):
        parse_partitions("main*|n[1-2\n")


def test_a_jobs_name_makes_no_rows() -> None:
    """As squeue printed such names (22.05.8): line ends of all kinds, and another job's row."""
    forged = "7|RUNNING|None|n[1-2]|superv-x-0a1b2c-1"
    text = f"5eed|1|RUNNING|None|n1|evil\n{forged}\n5eed|2|RUNNING|None|n2|u\u2028v\x0bw\r|x\n"
    one, two = parse_jobs(marked_rows(text, "5eed"))
    assert (one.job_id, one.nodes, one.job_name) == ("1", ("n1",), f"evil\n{forged}")
    assert (two.job_id, two.nodes, two.job_name) == ("2", ("n2",), "u\u2028v\x0bw\r|x")
    assert marked_rows("", "5eed") == []


def test_partitions() -> None:
    main, small = parse_partitions("main*|n[1-2]\nmain*|n4\nsmall|n1\n")
    assert (main.name, main.default, main.nodes) == ("main", True, {"n1", "n2", "n4"})
    assert (small.name, small.default, small.nodes) == ("small", False, {"n1"})


@pytest.mark.parametrize(
    ("states", "down"),
    [
        ("allocated drained mixed$ idle~ draining mixed- idle planned completing", False),
        ("allocated* down* down drained* unknown* idle* down$", True),
    ],
)
def test_down_is_down_or_silent_and_not_drained(states: str, down: bool) -> None:
    for state in states.split():
        assert SlurmNode(name="n1", state=state).down is down, state


@pytest.mark.parametrize(
    ("state", "complete", "silent", "down"),
    [
        ("drained", "down+drain", False, True),  # it was silent, and is back
        ("drained", "down+drain+not_responding", True, True),
        ("drained*", "", True, True),
        ("drained", "idle+drain", False, False),
        ("down", "", False, True),
    ],
)
def test_a_drained_node_that_is_back_is_not_silent(
    state: str, complete: str, silent: bool, down: bool
) -> None:
    node = SlurmNode(name="n1", state=state, complete=frozenset(complete.split("+")))
    assert (node.silent, node.down) == (silent, down)


def test_the_environment_is_an_allow_list() -> None:
    env = client_env(
        {
            **{"PATH": "/opt/slurm/bin", "HOME": "/home/a", "SLURM_CONF": "/etc/x"},
            **{"SBATCH_PARTITION": "p", "SQUEUE_FORMAT": "%i", "SLURM_JOB_ID": "1", "TOKEN": "x"},
        }
    )
    assert set(env) == {"PATH", "HOME", "SLURM_CONF", "LC_ALL", "TZ"}


def test_nodes_with_states_and_reasons() -> None:
    found = parse_nodes(
        "n1|test|idle|0/8/0/8|gpu:b200:8(S:0-1)|none\n"
        "n1|main*|IDLE|0/8/0/8|gpu:b200:8(S:0-1)|none\n"
        "n2|main*|drained*|0/0/8/8|(null)|superv: fs.local: a | b\n"
        "n3||mixed~|2/6/0/8||(null)\n"
    )
    one, two, three = found.values()
    assert (one.name, one.partitions, one.gres, one.idle_cpus) == (
        *("n1", ("main", "test"), "gpu:b200:8"),
        8,
    )
    assert (one.state, one.answers, one.reason, one.drains) == ("idle", True, "", False)
    assert (two.state, two.word, two.answers, two.drains) == ("drained*", "drained", False, True)
    assert (two.gres, two.reason) == ("", "superv: fs.local: a | b")
    assert (three.word, three.idle_cpus, three.gres, three.reason) == ("mixed", 6, "", "")


@pytest.mark.parametrize(
    "line",
    ["slurm is away", "n1|idle|none", "n1|main*|idle|n/a|gpu:8|none", "|main*|idle|0/1/0/1||"],
)
def test_a_line_about_a_node_that_is_none(line: str) -> None:
    with pytest.raises(TransientError, match="can't be read"):
        parse_nodes(f"{line}\n")
