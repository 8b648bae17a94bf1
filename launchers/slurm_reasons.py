"""Why Slurm lets a job wait: what each reason means, and what to do about it.

The words are those of Slurm 22.05 to 26.05 (src/common/job_state_reason.c and, before 23.11,
slurm_protocol_defs.c; "Job Reason Codes" in Slurm's documentation). squeue shows the description
that slurmctld has for the job in their place, where it has one: `ReqNodeNotAvail,
UnavailableNodes:n3`, or a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ASK = "`scontrol show job {job}` tells what Slurm knows of it"
_LIMITS = "`sacctmgr show assoc` and `show qos` list limits"
_OTHERS = "wait until other jobs end, or ask for a higher limit"
_LOWER = "ask for less (slurm: in job.yaml), or for a higher limit"
_OPS = "somebody of operations has to look"
_NODES = "`sinfo -R` shows what is drained or down, and why"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReason:
    """One of Slurm's reasons."""

    means: str  # empty: a word that is not known here
    do: str = ""  # empty: nothing, the queue does its work

    def for_job(self, job: str) -> WaitReason:
        return WaitReason(means=self.means, do=self.do.replace("{job}", job))


def _reason(means: str, do: str = "") -> WaitReason:
    return WaitReason(means=means, do=do)


# The first that fits the reason's first word counts.
_TABLE: tuple[tuple[str, WaitReason], ...] = (
    # --- the queue does its work ---
    (r"None|", _reason("Slurm has not looked at it yet")),
    (r"Priority", _reason("jobs of higher priority come first")),
    (r"Resources", _reason("too few nodes are free, and it is next")),
    (r"BeginTime", _reason("its earliest start has not come")),
    (r"Dependency", _reason("it waits for another job")),
    (r"Cleaning", _reason("its last start is still being cleaned up")),
    (r"Prolog", _reason("the nodes' Prolog runs")),
    (r"SchedDefer", _reason("Slurm defers jobs for its next round")),
    (r"FedJobLock", _reason("the clusters of the federation agree on who runs it")),
    (r"BurstBufferStageIn", _reason("its burst buffer is filled")),
    (r"JobArrayTaskLimit", _reason("its array runs as many tasks as it may")),
    (r"Licenses", _reason("a licence that it asks for is in use")),
    (r"MpiPortsBusy|NvidiaImexChannels", _reason("ports or IMEX channels of its nodes are in use")),
    (r"BurstBufferResources", _reason("the burst buffer has too little room")),
    (r"MaxPoweredUpNodes", _reason("as many nodes are powered up as may be")),
    # --- nodes ---
    (
        r"ReqNodeNotAvail",
        _reason("nodes that it needs are down, drained, or reserved", _NODES),
    ),
    (
        r"NodeDown|Nodes required for job are DOWN.*",
        _reason("nodes that it needs are down, drained, or kept for other jobs", _NODES),
    ),
    (r"FrontEndDown", _reason("no front end is up", _OPS)),
    (r"PowerNotAvail|PowerReserved", _reason("the cluster has too little power left", _OPS)),
    (
        r"Reservation",
        _reason(
            "its reservation has not begun, or has no room",
            "`scontrol show reservation` shows when it begins, and how large it is",
        ),
    ),
    (
        r"ReservationDeleted|ReservationInvalid",
        _reason(
            "its reservation is gone, or not for it",
            "`superv stop` the run; name another one (slurm: {reservation: …}), or none",
        ),
    ),
    (
        r"Constraints|BadConstraints",
        _reason(
            "no nodes have what it asks for",
            "compare `slurm:` in job.yaml (constraint, gres, mem) with `sinfo -N -o '%N %f %G %m'`",
        ),
    ),
    # --- the partition ---
    (
        r"PartitionNodeLimit",
        _reason(
            "it asks for more nodes than the partition gives one job, or some of them are down",
            "`scontrol show partition` shows MaxNodes; `sinfo -R` what is drained or down",
        ),
    ),
    (
        r"PartitionTimeLimit|TimeLimit",
        _reason(
            "it asks for more time than the partition allows",
            "lower `slurm: {time: …}` in job.yaml; `scontrol show partition` shows MaxTime",
        ),
    ),
    (
        r"PartitionDown|PartitionInactive",
        _reason("the partition takes no jobs at present", _OPS),
    ),
    (
        r"PartitionConfig|AccountNotAllowed|InvalidAccount|InvalidQOS|QOSNotAllowed",
        _reason(
            "account, QOS or partition do not go together",
            "`sacctmgr show assoc where user=$USER` shows what is yours; set `slurm:` in job.yaml",
        ),
    ),
    # --- people ---
    (
        r"JobHeldUser|job requeued in held state",
        _reason("it is held, by you or a coordinator", "`scontrol release {job}`"),
    ),
    (
        r"JobHeldAdmin",
        _reason("an administrator holds it", "ask operations; only they can release it"),
    ),
    (
        r"JobHoldMaxRequeue|JobLaunchFailure|launch failed requeued held",
        _reason(
            "it could not be started, and is held",
            "ask operations for slurmd's log of its first node; then `scontrol release {job}`",
        ),
    ),
    (
        r"DependencyNeverSatisfied|Dependency never satisfied",
        _reason(
            "the job that it waits for ended otherwise", "`superv stop` the run and launch it again"
        ),
    ),
    (r"DeadLine", _reason("it can't end before its deadline any more", "give it a later one")),
    # --- limits, by what they count ---
    (
        r"(Assoc|QOS)Grp\w*RunM(in|ins|inutes)\w*|Max\w+RunMinsPer\w+",
        _reason(
            "you, the account or its QOS have promised all their minutes to jobs that run", _OTHERS
        ),
    ),
    (
        r"(Assoc|QOS)Grp\w*M(in|ins|inutes)\w*|AssociationTimeLimit|QOSTimeLimit",
        _reason("account or QOS have used up their minutes", f"ask for more; {_LIMITS}"),
    ),
    (
        r"(Assoc|QOS)Grp\w+|Association(Job|Resource)Limit|QOS(Job|Resource)Limit",
        _reason("account or QOS have reached what their jobs may use together", _OTHERS),
    ),
    (
        r"(Assoc|QOS)Max\w*Per(Job|Node)\w*|MaxMemPerLimit",
        _reason("it asks for more than one job may have", f"{_LOWER}; {_LIMITS}"),
    ),
    (r"QOSMin\w+", _reason("it asks for less than its QOS wants", "ask for more, or another QOS")),
    (
        r"(Assoc|QOS)Max\w+|Max\w+Per(Account|User)|QOSUsageThreshold|AccountingPolicy",
        _reason("you, or the account, have as many jobs or nodes as may be", _OTHERS),
    ),
    (
        r"Job is at or exceeds .*",
        _reason("it would exceed a limit of account or QOS", f"{_OTHERS}; {_LIMITS}"),
    ),
    # --- jobs that have ended ---
    (
        r"NonZeroExitCode|RaisedSignal|OutOfMemory|InactiveLimit|SystemFailure"
        r"|BurstBufferOperation|Block\w+|Reservation .+, which this job was running under, .*",
        _reason("it has ended", ASK),
    ),
)


def explained(reason: str, job: str = "JOB") -> WaitReason:
    """What squeue's or sacct's reason means for a job that waits; a new word says where to look.

    >>> explained("(ReqNodeNotAvail, UnavailableNodes:n3)").means
    'nodes that it needs are down, drained, or reserved'
    >>> explained("Priority").do
    ''
    """
    text = reason.strip().strip("()")
    for shown in (text, text.partition(",")[0].strip()):
        for pattern, found in _TABLE:
            if re.fullmatch(pattern, shown, re.DOTALL):
                return found.for_job(job)
    return WaitReason(means="", do=ASK).for_job(job)
