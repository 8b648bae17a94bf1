"""The files that a lab's Slurm reads."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import jinja2

from lab import cgroups
from lab.expose import Exposed
from lab.layout import (
    CONTROLLER,
    CTLD_PORT,
    PREFIX,
    SLURMD_PORT,
    Layout,
    addresses,
)
from lab.packages import UnpackedSlurm
from supervisor.core.errors import UserError

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # not HTML; words of the shell go through the sh filter
)
_templates.filters["sh"] = lambda value: shlex.quote(str(value))


def munge_socket(layout: Layout) -> Path:
    return layout.munge / "socket"


def default_settings(layout: Layout) -> dict[str, str]:
    """slurm.conf beside nodes and partition; every key can be overridden by name."""
    ctl = layout.node(CONTROLLER)
    spool = layout.dir / "nodes" / "%n"
    return {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={munge_socket(layout)}",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "SlurmctldPort": str(CTLD_PORT),
        "SlurmdPort": str(SLURMD_PORT),
        "StateSaveLocation": str(ctl / "state"),
        "SlurmctldPidFile": str(ctl / "slurmctld.pid"),
        "SlurmctldLogFile": str(ctl / "slurmctld.log"),
        "SlurmdSpoolDir": str(spool / "spool"),
        "SlurmdPidFile": str(spool / "slurmd.pid"),
        "SlurmdLogFile": str(spool / "slurmd.log"),
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory",
        "GresTypes": "gpu",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=5,bf_interval=5",
        # A node that was dark comes back by itself, one that an admin took out does not.
        "ReturnToService": "1",
        # Short, so that tests need not wait; Slurm's defaults are 300, 30, 10 and 60 s.
        "SlurmdTimeout": "10",
        "KillWait": "5",
        "MessageTimeout": "5",
        "UnkillableStepTimeout": "20",
    }


def strict_settings(layout: Layout) -> dict[str, str]:
    """What a strict lab has instead."""
    return {
        "ProctrackType": "proctrack/cgroup",
        "TaskPlugin": "task/cgroup,task/affinity",
        "PropagateResourceLimits": "NONE",
        "Epilog": str(layout.epilog),
    }


CGROUP_CONF = "CgroupPlugin=cgroup/v1\nConstrainCores=yes\n"
# Kills what a job's user left on its last node. Another job's steps on the node are left alone: no
# question to slurmctld, which an Epilog must not ask.
EPILOG = """#!/bin/sh
PATH=/usr/bin:/bin
if pgrep -af '^slurmstepd: \\[' | grep -vqF "[$SLURM_JOB_ID."; then exit 0; fi
pkill -KILL -u "$SLURM_JOB_UID"
exit 0
"""
# Limits of slurmd, and so of jobs, that sites have left as they were: the kernel's own for open
# files (include/uapi/linux/fs.h, INR_OPEN_MAX) and, until 5.16, for locked memory (64 KiB).
NOFILE, MEMLOCK = "1024:4096", "65536"


def _merged(defaults: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Overrides replace defaults; Slurm's keys know no case."""
    known = {key.lower(): key for key in defaults}
    merged = dict(defaults)
    for key, value in overrides.items():
        if not key.isalnum() or any(c in value for c in "\n#"):
            raise UserError(f"lab setting {key}={value!r}: not a slurm.conf key and one-line value")
        merged[known.get(key.lower(), key)] = value
    return merged


def slurm_conf(
    layout: Layout, *, nodes: int, gpus: int, settings: Mapping[str, str], strict: bool
) -> str:
    """slurm.conf; every node claims the whole machine, which Slurm does not check here."""
    usual = default_settings(layout) | (strict_settings(layout) if strict else {})
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _templates.get_template("slurm.conf.j2").render(
        name=layout.name,
        controller=addresses(nodes)[CONTROLLER],
        nodes=nodes,
        gpus=gpus,
        cpus=os.cpu_count(),
        memory_mib=pages // 2**20,
        settings=_merged(usual, settings),
    )


def gres_conf(layout: Layout, *, gpus: int) -> str:
    """gres.conf: slurmd takes a node for INVAL unless every GPU has a file that exists."""
    return f"Name=gpu File={layout.dir}/gpus/nvidia[0-{gpus - 1}]\n" if gpus else ""


def node_script(
    layout: Layout, *, exposed: Exposed, strict: bool, slurm: UnpackedSlurm | None = None
) -> str:
    return _templates.get_template("node.sh.j2").render(
        name=layout.name,
        dir=layout.dir,
        controller=addresses(0)[CONTROLLER],
        prefix=PREFIX,
        exposed=exposed,
        munge_socket=munge_socket(layout),
        strict=strict,
        slurm=slurm,
        controllers=cgroups.SLURMS,
        cgroup_prefix=cgroups.prefix(layout),
        nofile=NOFILE,
        memlock=MEMLOCK,
        python=sys.executable,
        no_ptrace=Path(__file__).with_name("no_ptrace.py"),
    )
