"""Slurm's reasons in words: all that its versions have, and what slurmctld says in their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launchers.slurm_reasons import ASK, explained

LIST = Path(__file__).parents[1] / "data/slurm/reasons.txt"
NAMES = [line.split()[0] for line in LIST.read_text().splitlines() if not line.startswith("#")]
NO_REASON = {"InvalidReason", "InvaildReason"}  # Slurm's own word for none, as 24.11 spells it
# Nothing is to be done: it starts by itself.
QUEUE = (
    "BeginTime BurstBufferResources BurstBufferStageIn Cleaning Dependency FedJobLock Licenses "
    "JobArrayTaskLimit MaxPoweredUpNodes MpiPortsBusy None NvidiaImexChannels Priority Prolog "
    "Resources SchedDefer"
)


def test_every_reason_of_every_version_is_known() -> None:
    assert len(NAMES) > 210
    assert {name for name in NAMES if not explained(name).means} == NO_REASON
    assert {name for name in NAMES if not explained(name).do} == {*QUEUE.split()}


@pytest.mark.parametrize(
    ("reason", "means", "do"),
    [
        ("(Priority)", "jobs of higher priority come first", ""),
        ("", "Slurm has not looked at it yet", ""),
        ("(ReqNodeNotAvail, UnavailableNodes:n[3-4])", "nodes that it needs are down", "sinfo -R"),
        ("ReqNodeNotAvail, May be reserved for other job", "nodes that it needs", "sinfo -R"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
            "nodes that it needs are down",
            "sinfo -R",
        ),
        ("PartitionNodeLimit", "more nodes than the partition", "scontrol show partition"),
        ("PartitionTimeLimit", "more time than the partition", "slurm: {time: …}"),
        ("AssocGrpNodeLimit", "may use together", "wait until other jobs end"),
        ("AssocGrpCPUMinutesLimit", "used up their minutes", "ask for more"),
        ("QOSGrpCPURunMinutesLimit", "promised all", "wait until other jobs end"),
        ("MaxNodeRunMinsPerAccount", "promised all", "wait until other jobs end"),
        ("QOSMaxNodePerUserLimit", "as many jobs or nodes as may be", "wait until"),
        ("AssocMaxNodePerJobLimit", "more than one job may have", "ask for less"),
        ("QOSMaxWallDurationPerJobLimit", "more than one job may have", "ask for less"),
        ("QOSMinNode", "less than its QOS wants", "ask for more"),
        ("JobHeldUser", "you or a coordinator", "`scontrol release 12`"),
        ("JobHeldAdmin", "an administrator", "ask operations"),
        ("launch failed requeued held", "could not be started", "scontrol release 12"),
        ("Reservation", "its reservation has not begun", "scontrol show reservation"),
        ("DependencyNeverSatisfied", "ended otherwise", "superv stop"),
        ("Licenses", "a licence", ""),
        ("Job is at or exceeds QOS q's group wall limit of 5 with 6", "exceed a limit", "sacctmgr"),
        ("HibernationOfMoons", "", "`scontrol show job 12`"),
    ],
)
def test_what_a_reason_means_and_what_helps(reason: str, means: str, do: str) -> None:
    found = explained(reason, "12")
    assert means in found.means and do in found.do
    assert bool(found.means) is bool(means) and bool(found.do) is bool(do)


def test_each_is_a_short_line_and_names_the_job() -> None:
    for name in NAMES:
        found = explained(name, "12")
        assert len(found.means) <= 90 and len(found.do) <= 110 and "{job}" not in found.do
    assert re.search("scontrol show job JOB", explained("Moon").do) and "{job}" in ASK
