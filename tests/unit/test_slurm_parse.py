"""Slurm's answers, as recorded from 22.05.8 (squeue, sinfo, sbatch) and as documented (sacct)."""

from __future__ import annotations

import pytest

from launchers.slurm import (
    client_env,
    parse_down,
    parse_jobs,
    parse_nodes,
    parse_partitions,
    refusal,
    state_of,
)
from supervisor.core.errors import TransientError
from supervisor.core.ports import JobState

# squeue(1) and sacct(1), JOB STATE CODES.
STATES = {
    JobState.PENDING: "PENDING REQUEUED REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT RESV_DEL_HOLD",
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
        "10|RUNNING|None|n[1-2,4]|sv-moe-0\n"
        "11|PENDING|PartitionNodeLimit||sv-moe-1\n"
        "9|CANCELLED by 4242|None|n3|odd|name\n"
    )
    assert (running.job_id, running.nodes, running.reason) == ("10", ("n1", "n2", "n4"), "")
    assert (pending.state, pending.nodes) == (JobState.PENDING, ())
    assert pending.reason == "PartitionNodeLimit"
    assert (ended.raw, ended.job_name) == ("CANCELLED by 4242", "odd|name")
    assert parse_jobs("") == []


def test_a_line_that_is_none() -> None:
    with pytest.raises(TransientError, match="can't be read"):
        parse_jobs("10|RUNNING\n")


def test_partitions() -> None:
    main, small = parse_partitions("main*|n[1-2]\nmain*|n4\nsmall|n1\n")
    assert (main.name, main.default, main.nodes) == ("main", True, {"n1", "n2", "n4"})
    assert (small.name, small.default, small.nodes) == ("small", False, {"n1"})


def test_down_is_down_or_silent_and_not_drained() -> None:
    text = (
        "n1|allocated\nn1|allocated\nn2|allocated*\nn3|down*\nn4|down\nn5|drained\nn6|drained*\n"
        "n7|mixed$\nn8|idle~\nn9|draining\nm1|unknown*\nm2|mixed-\n"
    )
    assert parse_down(text) == {"n2", "n3", "n4", "n6", "m1"}


@pytest.mark.parametrize(
    ("message", "argv", "says"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid node name specified",
            ["sbatch", "--nodelist=n77", "--exclude=n1"],
            "slurm: nodelist or exclude: Slurm refused the job: Invalid node name specified"
            " (given: --nodelist=n77 --exclude=n1)",
        ),
        (
            "sbatch: error: Invalid --time specification",
            ["sbatch", "--time=bogus"],
            "slurm: time: Slurm refused the job: Invalid --time specification"
            " (given: --time=bogus)",
        ),
        (
            "sbatch: error: Invalid generic resource (gres) specification",
            ["sbatch", "--gres=foo:2"],
            "slurm: gres: ",
        ),
        ("Batch job submission failed: Invalid feature specification", [], "slurm: constraint: "),
        ("Batch job submission failed: Invalid qos specification", [], "slurm: qos: "),
        (
            "sbatch: unrecognized option '--bogus=2'\nTry \"sbatch --help\" for more information",
            [],
            "slurm: Slurm refused the job: unrecognized option '--bogus=2'; mend it",
        ),
    ],
)
def test_refusals_name_the_option(message: str, argv: list[str], says: str) -> None:
    assert str(refusal(message, argv)).startswith(says)


def test_the_environment_is_an_allow_list() -> None:
    env = client_env(
        {
            **{"PATH": "/opt/slurm/bin", "HOME": "/home/a", "SLURM_CONF": "/etc/x"},
            **{"SBATCH_PARTITION": "p", "SQUEUE_FORMAT": "%i", "SLURM_JOB_ID": "1", "TOKEN": "x"},
        }
    )
    assert set(env) == {"PATH", "HOME", "SLURM_CONF", "LC_ALL", "TZ"}


def test_nodes_with_states_and_reasons() -> None:
    text = "n1|idle|none\nn1|idle|none\nn2|drained*|superv: fs.local: a | b\nn3|mixed~|none\n"
    found = parse_nodes(text)
    assert list(found) == ["n1", "n2", "n3"]
    assert (found["n1"].state, found["n1"].answers, found["n1"].reason) == ("idle", True, "")
    assert (found["n2"].state, found["n2"].answers) == ("drained", False)
    assert found["n2"].reason == "superv: fs.local: a | b"
    assert found["n2"].drains and not found["n1"].drains
    assert found["n3"].state == "mixed"
