"""Health checks of the host: memory, clock, processes, disks, services, Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checks import NOW, Case, Change, both, each_of, garbled, lost, nothing, run, wrote

from healthchecks.frame.check import Status
from healthchecks.frame.registry import registered
from tests import hardware
from tests.hardware.tree import Tree

DAY_S = 86_400.0


def changed(path: str, old: str, new: str) -> Change:
    return lambda tree: tree.change(path, old, new)


MEMORY = [
    Case(check="mem.size", name="healthy", status=Status.OK, seen="2016 GiB of memory"),
    Case(
        check="mem.size",
        name="less than it should be",
        change=changed("proc/meminfo", "2113461248", "2013461248"),
        options={"expected_gib": 2015},
        status=Status.FAIL,
        seen="1920 GiB of memory",
    ),
    Case(
        check="mem.size",
        name="a little less",
        change=changed("proc/meminfo", "2113461248", "2093461248"),
        options={"expected_gib": 2015},
        status=Status.OK,
    ),
    Case(
        check="mem.size",
        name="uneven",
        change=changed("sys/devices/system/node/node1/meminfo", "1056730624", "956730624"),
        status=Status.FAIL,
        seen="node1: 912 GiB, and 1008 on the largest",
    ),
    Case(
        check="mem.size",
        name="memory of a device",
        change=both(
            wrote("sys/devices/system/node/node2/cpulist", ""),
            wrote("sys/devices/system/node/node2/meminfo", "Node 2 MemTotal: 1000 kB"),
        ),
        status=Status.OK,
    ),
    Case(
        check="mem.size",
        name="little shared memory",
        change=changed("proc/self/mountinfo", "size=1056730624k", "size=65536k"),
        status=Status.FAIL,
        seen="shared memory is limited to 0.1 GiB",
    ),
    Case(
        check="mem.size",
        name="shared memory of the default size",
        change=changed("proc/self/mountinfo", ",size=1056730624k", ""),
        status=Status.OK,
    ),
    Case(
        check="mem.size",
        name="no shared memory",
        change=changed("proc/self/mountinfo", " /dev/shm ", " /dev/nothing "),
        status=Status.FAIL,
        seen="no /dev/shm",
    ),
    Case(check="mem.size", name="lost", change=lost("proc/meminfo"), status=Status.UNKNOWN),
    Case(
        check="mem.size",
        name="no total",
        change=wrote("proc/meminfo", "MemFree: 7 kB"),
        status=Status.UNKNOWN,
        seen="meminfo has no MemTotal",
    ),
    Case(check="mem.size", name="", status=Status.SKIP, none="every node has memory"),
]

BOOT = [
    Case(check="host.boot", name="healthy", status=Status.OK, seen="Linux 6.8.0-85-generic"),
    Case(check="host.boot", name="lost", change=lost("proc/cmdline"), status=Status.UNKNOWN),
    Case(check="host.boot", name="bad", status=Status.WARN, none="only the cohort can tell"),
    Case(check="host.boot", name="", status=Status.SKIP, none="every node has a kernel"),
]


def process(pid: int, name: str, state: str, switches: int = 7, started: int = 500) -> Change:
    numbers = ["0"] * 49
    numbers[18] = str(started)
    return both(
        wrote(f"proc/{pid}/stat", f"{pid} ({name}) {state} {' '.join(numbers)}"),
        wrote(f"proc/{pid}/status", f"Name:\t{name}\nvoluntary_ctxt_switches:\t{switches}"),
        wrote(f"proc/{pid}/wchan", "rpc_wait_bit_killable"),
    )


_STUCK = process(4242, "pt_data_worker (x)", "D")

DSTATE = [
    Case(check="dstate", name="healthy", status=Status.OK, seen="0 processes"),
    Case(check="dstate", name="just now", change=_STUCK, status=Status.OK, seen="1 processes"),
    Case(
        check="dstate",
        name="for minutes",
        earlier=[(301, _STUCK)],
        status=Status.WARN,
        seen="process 4242 (pt_data_worker (x)) has slept uninterruptibly for 301 s in rpc_wait",
    ),
    Case(
        check="dstate",
        name="it ran in between",
        earlier=[(301, _STUCK)],
        change=process(4242, "pt_data_worker (x)", "D", switches=8),
        status=Status.OK,
    ),
    Case(
        check="dstate",
        name="another process of that number",
        earlier=[(301, _STUCK)],
        change=process(4242, "pt_data_worker (x)", "D", started=501),
        status=Status.OK,
    ),
    Case(
        check="dstate",
        name="one that may",
        earlier=[(301, process(7, "khungd", "D"))],
        options={"ignore": ["khungd"]},
        status=Status.OK,
        seen="0 processes",
    ),
    Case(check="dstate", name="lost", change=lost("proc"), status=Status.UNKNOWN),
    Case(check="dstate", name="", status=Status.SKIP, none="every node has processes"),
]


def ticks(steal: int, idle: int) -> Change:
    return wrote("proc/stat", f"cpu  1000 0 1000 {idle} 0 0 0 {steal} 0 0\ncpu0 1 1 1 1 1 1 1 1 1")


STEAL = [
    Case(check="cpu.steal", name="healthy", status=Status.OK, seen="0.00 % of the CPU time since"),
    Case(
        check="cpu.steal",
        name="since boot",
        change=ticks(500, 10_000),
        status=Status.WARN,
        seen="the host took 4.0 % of the CPU time since boot",
    ),
    Case(
        check="cpu.steal",
        name="lately",
        earlier=[(60, ticks(10, 1_000_000))],
        change=ticks(210, 1_009_800),
        status=Status.WARN,
        seen="the host took 2.0 % of the CPU time since the last look",
    ),
    Case(
        check="cpu.steal",
        name="only before",
        earlier=[(60, ticks(5000, 10_000))],
        change=ticks(5001, 20_000),
        status=Status.OK,
    ),
    Case(check="cpu.steal", name="lost", change=lost("proc/stat"), status=Status.UNKNOWN),
    Case(
        check="cpu.steal", name="short", change=wrote("proc/stat", "cpu 1"), status=Status.UNKNOWN
    ),
    Case(check="cpu.steal", name="", status=Status.SKIP, none="without a host nothing is taken"),
]

_SOURCE = "sys/devices/system/clocksource/clocksource0/current_clocksource"

CLOCK = [
    Case(
        check="clock",
        name="slow source",
        change=wrote(_SOURCE, "hpet"),
        status=Status.WARN,
        seen="the clock source is hpet",
    ),
    Case(check="clock", name="lost", change=lost(_SOURCE), status=Status.UNKNOWN),
    Case(check="clock", name="", status=Status.OK, none="of this machine: test_the_clock"),
    Case(check="clock", name="none", status=Status.SKIP, none="every node has a clock"),
]

_POLICY = "sys/devices/system/cpu/cpufreq/policy{}/scaling_governor"

GOVERNOR = [
    Case(check="governor", name="virtual machine", status=Status.SKIP, seen="no cpufreq"),
    Case(
        check="governor",
        name="fast",
        change=both(*(wrote(_POLICY.format(n), "performance") for n in range(3))),
        status=Status.OK,
        seen="3 CPUs have the governor performance",
    ),
    Case(
        check="governor",
        name="slow",
        change=both(
            *(wrote(_POLICY.format(n), "performance") for n in range(3)),
            *(wrote(_POLICY.format(n), "powersave") for n in range(3, 5)),
        ),
        status=Status.WARN,
        seen="2 CPUs have the governor powersave",
    ),
    Case(
        check="governor",
        name="lost",
        change=garbled(_POLICY.format(0)),
        status=Status.UNKNOWN,
    ),
]

_SEL = """\
   1 | 11/20/2025 | 09:00:00 | Memory #0x53 | Correctable ECC | Asserted
   2 | Pre-Init   |0000000011| System Event #0x12 | OEM System boot event | Asserted
   3 | 11/24/2025 | 08:00:00 | Event Logging Disabled #0x51 | Log area reset/cleared | Asserted
"""

IPMI = [
    Case(check="ipmi.sel", name="virtual machine", status=Status.SKIP, seen="no BMC"),
    Case(
        check="ipmi.sel",
        name="no program",
        change=wrote("dev/ipmi0", ""),
        status=Status.SKIP,
        seen="ipmitool is not installed",
    ),
    *(
        Case(
            check="ipmi.sel",
            name=name,
            change=wrote("dev/ipmi0", ""),
            programs={"ipmitool": program},
            options={"window_h": hours},
            status=status,
            seen=seen,
        )
        for name, program, hours, status, seen in (
            ("nothing lately", _SEL, 24, Status.OK, "1 events in 24 h"),
            ("correctable", _SEL, 168, Status.WARN, "Memory #0x53: Correctable ECC"),
            (
                "uncorrectable",
                _SEL.replace("Correctable", "Uncorrectable"),
                168,
                Status.FAIL,
                "Memory #0x53: Uncorrectable ECC",
            ),
            (
                "over again",
                _SEL.replace("Correctable ECC | Asserted", "Correctable ECC | Deasserted"),
                168,
                Status.OK,
                "1 events",
            ),
            (
                "a crash of Linux before what is old",
                "f0 | Linux kernel panic: Fatal excep\n1 | 01/05/2024 | 10:00:00 | System Boot "
                "Initiated #0x41 | Initiated by power up | Asserted",
                24,
                Status.OK,
                "0 events",
            ),
            ("no answer", "#!/bin/sh\necho no >&2\nexit 1", 24, Status.UNKNOWN, "ended with 1: no"),
        )
    ),
]

_NVME = "sys/class/nvme/nvme0"


def logged(line: str, at_s: int = 863_999) -> Change:
    """A line in the kernel's log, by default of the last second."""
    return lambda tree: tree.write(
        "dev/kmsg", f"{tree.read('dev/kmsg')}\n3,90,{at_s}000000,-;{line}"
    )


NVME = [
    Case(check="nvme", name="healthy", status=Status.OK, seen="1 NVMe disks are live"),
    Case(
        check="nvme",
        name="dead",
        change=wrote(f"{_NVME}/state", "dead"),
        status=Status.FAIL,
        seen="nvme0: its state is dead (SAMSUNG",
    ),
    Case(
        check="nvme",
        name="too few",
        options={"count": 8},
        status=Status.FAIL,
        seen="1 NVMe disks",
    ),
    Case(
        check="nvme",
        name="disabled",
        change=logged("nvme nvme0: Disabling device after reset failure: -19", at_s=1),
        status=Status.FAIL,
        seen="nvme0: the disk did not come back",
    ),
    *(
        Case(
            check="nvme",
            name=name,
            change=logged(line),
            status=Status.WARN,
            seen=seen,
        )
        for name, line, seen in (
            (
                "timeout",
                "nvme nvme0: I/O 12 QID 3 timeout, reset controller",
                "nvme0: the disk did not answer",
            ),
            (
                "timeout of newer kernels",
                "nvme nvme0: I/O tag 12 (100c) opcode 0x2 (I/O Cmd) QID 3 timeout, aborting req",
                "nvme0: the disk did not answer",
            ),
            (
                "error",
                "blk_update_request: I/O error, dev nvme0n1, sector 1234 op 0x0:(READ)",
                "nvme0n1: the disk could not be read",
            ),
        )
    ),
    Case(check="nvme", name="lost", change=lost(f"{_NVME}/state"), status=Status.UNKNOWN),
    Case(check="nvme", name="none", change=lost("sys/class/nvme"), status=Status.SKIP),
]

_SMART = {
    "critical_warning": 0,
    "avail_spare": 100,
    "spare_thresh": 10,
    "percent_used": 3,
    "media_errors": 0,
}


def smart(**other: Any) -> Mapping[str, str]:
    return {"nvme": json.dumps({**_SMART, **other})}


SMART = [
    Case(check="nvme.smart", name="healthy", programs=smart(), status=Status.OK, seen="3 % of its"),
    Case(
        check="nvme.smart",
        name="warning",
        programs=smart(critical_warning={"value": 4, "available_spare": 0}),
        status=Status.FAIL,
        seen="critical warning 0x4",
    ),
    Case(
        check="nvme.smart",
        name="spare",
        programs=smart(avail_spare=9),
        status=Status.FAIL,
        seen="9 % of its spare",
    ),
    Case(
        check="nvme.smart",
        name="worn",
        programs=smart(percent_used=104),
        status=Status.WARN,
        seen="104 % of its life",
    ),
    Case(
        check="nvme.smart",
        name="media errors before the first look",
        programs=smart(media_errors=2),
        status=Status.UNKNOWN,
        seen="first look",
    ),
    Case(
        check="nvme.smart",
        name="old media errors",
        programs=smart(media_errors=2),
        memory={"boot": {"rise:media:S64HNE0R000001": [NOW - 60, 2]}},
        status=Status.OK,
    ),
    Case(
        check="nvme.smart",
        name="new media errors",
        programs=smart(media_errors=2),
        memory={"boot": {"rise:media:S64HNE0R000001": [NOW - 60, 0]}},
        status=Status.WARN,
        seen="2 new media errors",
    ),
    Case(
        check="nvme.smart",
        name="other output",
        programs={"nvme": "{}"},
        status=Status.UNKNOWN,
        seen="printed something else",
    ),
    Case(
        check="nvme.smart",
        name="fails",
        programs={"nvme": "#!/bin/sh\nexit 3"},
        status=Status.UNKNOWN,
        seen="nvme ended with 3",
    ),
    Case(check="nvme.smart", name="no program", status=Status.SKIP, seen="not installed"),
]


def arrays(*lines: str) -> Change:
    return wrote("proc/mdstat", "\n".join(["Personalities : [raid1] [raid0]", *lines]))


_RAID1 = "md0 : active raid1 nvme1n1p1[1] nvme0n1p1[0]"
_BLOCKS = "      937692352 blocks super 1.2 {}\n      bitmap: 1/7 pages [4KB], 65536KB chunk\n"

MD = [
    Case(check="md", name="none", status=Status.SKIP, seen="no software RAID array"),
    Case(
        check="md",
        name="complete",
        change=arrays(
            "md127 : active raid0 nvme2n1[1] nvme3n1[0]",
            "      7501211648 blocks super 1.2 512k chunks\n",
            _RAID1,
            _BLOCKS.format("[2/2] [UU]"),
            "unused devices: <none>",
        ),
        status=Status.OK,
        seen="2 arrays are complete",
    ),
    Case(
        check="md",
        name="degraded",
        change=arrays(
            "md0 : active raid1 nvme1n1p1[1](F) nvme0n1p1[0]", _BLOCKS.format("[2/1] [U_]")
        ),
        status=Status.WARN,
        seen="md0: 1 of 2 members, failed: nvme1n1p1",
    ),
    Case(
        check="md",
        name="stripe lost",
        change=arrays("md1 : active raid0 nvme1n1[1](F) nvme0n1[0]", "      7 blocks\n"),
        status=Status.FAIL,
        seen="md1: a member failed",
    ),
    Case(
        check="md",
        name="inactive",
        change=arrays("md2 : inactive nvme0n1[0](S)", "      7 blocks\n"),
        status=Status.FAIL,
        seen="md2: inactive",
    ),
    Case(check="md", name="garbled", change=garbled("proc/mdstat"), status=Status.UNKNOWN),
]

_ROOM = {"warn_percent": 101, "fail_percent": 101}  # of the machine that the tests run on
_EXT4 = "- ext4 /dev/vda1 rw,errors=remount-ro"

FS = [
    Case(check="fs.local", name="healthy", options=_ROOM, status=Status.OK, seen="GiB free of"),
    Case(
        check="fs.local",
        name="full",
        options={"warn_percent": 0, "fail_percent": 0},
        status=Status.FAIL,
        seen="% of its space is used",
    ),
    Case(
        check="fs.local",
        name="nearly full",
        options={"warn_percent": 0, "fail_percent": 101},
        status=Status.WARN,
    ),
    Case(
        check="fs.local",
        name="read-only",
        options=_ROOM,
        on="/",
        change=changed("proc/self/mountinfo", _EXT4, "- ext4 /dev/vda1 ro,errors=remount-ro"),
        status=Status.FAIL,
        seen="the kernel made it read-only",
    ),
    Case(
        check="fs.local",
        name="read-only in newer kernels",
        options=_ROOM,
        on="/",
        change=changed("proc/self/mountinfo", _EXT4, "- ext4 /dev/vda1 rw,emergency_ro"),
        status=Status.FAIL,
        seen="the kernel made it read-only",
    ),
    Case(
        check="fs.local",
        name="read-only against fstab",
        options=_ROOM,
        on="/",
        change=changed(
            "proc/self/mountinfo", f"rw,relatime shared:1 {_EXT4}", "ro shared:1 - ext4 /dev/x ro"
        ),
        status=Status.FAIL,
        seen="the kernel made it read-only",
    ),
    Case(
        check="fs.local",
        name="read-only as it should be",
        options=_ROOM,
        on="/",
        change=both(
            changed(
                "proc/self/mountinfo",
                f"rw,relatime shared:1 {_EXT4}",
                "ro shared:1 - ext4 /dev/x ro",
            ),
            changed("etc/fstab", "/ ext4 defaults", "/ ext4 defaults,ro"),
        ),
        status=Status.OK,
    ),
    Case(
        check="fs.local",
        name="errors of the past",
        options=_ROOM,
        on="/",
        change=wrote("sys/fs/ext4/vda1/errors_count", "4"),
        status=Status.WARN,
        seen="4 errors since its last fsck",
    ),
    Case(
        check="fs.local",
        name="new errors",
        options=_ROOM,
        on="/",
        earlier=[(7200, nothing), (3600, wrote("sys/fs/ext4/vda1/errors_count", "4"))],
        status=Status.FAIL,
        seen="4 errors since its last fsck, 4 of them new",
    ),
    Case(check="fs.local", name="lost", change=lost("proc/self/mountinfo"), status=Status.UNKNOWN),
    Case(
        check="fs.local",
        name="nothing local",
        change=wrote("proc/self/mountinfo", "31 29 0:40 / /shared rw - nfs4 10.0.0.5:/x rw"),
        status=Status.SKIP,
    ),
]

_UNITS = {"units": ["slurmd", "chronyd.service"]}
_SLICE = "sys/fs/cgroup/system.slice"


def unit(name: str, populated: int) -> Change:
    return wrote(f"{_SLICE}/{name}/cgroup.events", f"populated {populated}\nfrozen 0")


def _systemd(tree: Tree) -> None:
    tree.write("run/systemd/system/x", "")


SERVICES = [
    Case(check="services", name="none required", status=Status.SKIP, seen="no unit is required"),
    Case(
        check="services",
        name="no systemd",
        options=_UNITS,
        status=Status.SKIP,
        seen="systemd does not run",
    ),
    Case(
        check="services",
        name="active",
        options=_UNITS,
        change=both(_systemd, unit("slurmd.service", 1), unit("chronyd.service", 1)),
        status=Status.OK,
        seen="2 units are active",
    ),
    Case(
        check="services",
        name="failed",
        options=_UNITS,
        change=both(_systemd, unit("slurmd.service", 1)),
        programs={"systemctl": "#!/bin/sh\necho failed\nexit 3"},
        status=Status.FAIL,
        seen="chronyd.service is failed",
    ),
    Case(
        check="services",
        name="one that has ended well",
        options=_UNITS,
        change=both(_systemd, unit("slurmd.service", 1), unit("chronyd.service", 0)),
        programs={"systemctl": "active"},
        status=Status.OK,
    ),
    Case(
        check="services",
        name="no answer",
        options=_UNITS,
        change=_systemd,
        programs={"systemctl": "#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1"},
        status=Status.UNKNOWN,
        seen="Failed to connect to bus",
    ),
]


def locked(limit: str) -> Change:
    return both(
        wrote("run/slurmd.pid", "812"),
        wrote(
            "proc/812/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            f"Max locked memory         8388608              {limit:20} bytes     ",
        ),
    )


MEMLOCK = [
    Case(check="slurm.memlock", name="healthy", change=locked("unlimited"), status=Status.OK),
    Case(
        check="slurm.memlock",
        name="limited",
        change=locked("8388608"),
        status=Status.FAIL,
        seen="slurmd may lock 8 MiB",
    ),
    Case(
        check="slurm.memlock",
        name="found by its control group",
        change=both(
            locked("8388608"),
            lost("run/slurmd.pid"),
            wrote(f"{_SLICE}/slurmd.service/cgroup.procs", "1\n812"),
        ),
        status=Status.FAIL,
    ),
    Case(
        check="slurm.memlock",
        name="found among all processes",
        change=both(locked("8388608"), lost("run/slurmd.pid")),
        programs={"slurmd": ""},
        status=Status.FAIL,
    ),
    Case(
        check="slurm.memlock",
        name="lost",
        change=both(wrote("run/slurmd.pid", "812"), lost("proc/812/limits")),
        status=Status.UNKNOWN,
    ),
    Case(
        check="slurm.memlock",
        name="another format",
        change=both(wrote("run/slurmd.pid", "812"), wrote("proc/812/limits", "no")),
        status=Status.UNKNOWN,
    ),
    Case(
        check="slurm.memlock",
        name="no RDMA",
        change=both(locked("8388608"), lost("sys/class/infiniband")),
        status=Status.SKIP,
        seen="no RDMA device",
    ),
    Case(check="slurm.memlock", name="no slurmd", status=Status.SKIP, seen="does not run here"),
]

_REAL = (
    "NodeName=node-017 CPUs=120 Boards=1 SocketsPerBoard=2 CoresPerSocket=30 ThreadsPerCore=2 "
    "RealMemory=2063926\nUpTime=10-00:00:00"
)
_TOLD = (
    "NodeName=node-017 Arch=x86_64 CoresPerSocket=30 CPUAlloc=0 CPUEfctv=120 CPUTot=120 "
    "CPULoad=0.10 Gres=gpu:b200:8(S:0-1) NodeAddr=node-017 OS=Linux 6.8.0 #85-Ubuntu SMP "
    "RealMemory=2000000 AllocMem=0 FreeMem=2000000 Sockets=2 Boards=1 State=IDLE ThreadsPerCore=2 "
    "TmpDisk=0 Partitions=main"
)


def slurm(told: str = _TOLD, real: str = _REAL) -> Mapping[str, str]:
    return {"slurmd": real, "scontrol": told}


DRIFT = [
    Case(
        check="slurm.drift",
        name="healthy",
        programs=slurm(),
        status=Status.OK,
        seen="as slurm.conf: 2000000 MiB, Gres gpu:b200:8",
    ),
    *(
        Case(
            check="slurm.drift",
            name=name,
            programs=slurm(_TOLD.replace(old, new)),
            status=status,
            seen=seen,
        )
        for name, old, new, status, seen in (
            ("threads", "ThreadsPerCore=2", "ThreadsPerCore=1", Status.FAIL, "ThreadsPerCore is 1"),
            ("sockets", "Sockets=2", "Sockets=120", Status.FAIL, "Sockets is 120 in slurm.conf"),
            ("memory", "y=2000000 A", "y=2063927 A", Status.FAIL, "which has 2063926"),
            ("little memory", "y=2000000 A", "y=1500000 A", Status.WARN, "has 1500000 MiB"),
            ("more GPUs", "b200:8", "b200:4", Status.WARN, "Gres has 4 GPUs and the driver 8"),
            ("no GPUs", "gpu:b200:8(S:0-1)", "(null)", Status.WARN, "Gres has 0 GPUs"),
            ("other words", "CoresPerSocket", "Cores", Status.UNKNOWN, "printed something else"),
        )
    ),
    Case(
        check="slurm.drift",
        name="a GPU less",
        programs=slurm(),
        change=lost("proc/driver/nvidia/gpus/0000:4e:00.0"),
        status=Status.FAIL,
        seen="Gres has 8 GPUs and the driver 7",
    ),
    Case(
        check="slurm.drift",
        name="no controller",
        programs={"slurmd": _REAL, "scontrol": "#!/bin/sh\necho 'Unable to contact' >&2\nexit 1"},
        status=Status.UNKNOWN,
        seen="Unable to contact",
    ),
    Case(
        check="slurm.drift",
        name="no slurm.conf",
        programs={
            "slurmd": _REAL,
            "scontrol": "#!/bin/sh\n"
            "echo 'scontrol: error: fetch_config: DNS SRV lookup failed' >&2\n"
            "echo 'scontrol: fatal: Could not establish a configuration source' >&2\nexit 1",
        },
        status=Status.SKIP,
        seen="no slurm.conf here",
    ),
    Case(
        check="slurm.drift",
        name="overridden",
        programs=slurm(
            _TOLD.replace("Sockets=2", "Sockets=1") + " SlurmdParameters=config_overrides"
        ),
        status=Status.SKIP,
        seen="slurm.conf overrides",
    ),
    Case(check="slurm.drift", name="no Slurm", status=Status.SKIP, seen="not installed"),
    Case(
        check="slurm.drift",
        name="no slurmd",
        programs=slurm(),
        change=lost("proc/812"),
        status=Status.SKIP,
        seen="slurmd does not run here",
    ),
]

CASES: list[Case] = [
    *MEMORY,
    *BOOT,
    *DSTATE,
    *STEAL,
    *CLOCK,
    *GOVERNOR,
    *IPMI,
    *NVME,
    *SMART,
    *MD,
    *FS,
    *SERVICES,
    *MEMLOCK,
    *DRIFT,
]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def test_facts_for_the_cohort(tmp_path: Path) -> None:
    def facts(check: str, change: Change = nothing) -> Mapping[str, str]:
        return run(Case(check=check, name="", status=Status.OK, change=change), tmp_path).facts

    assert facts("host.boot") == {
        "kernel": "6.8.0-85-generic",
        "boot_parameters": "iommu=pt",
        "transparent_hugepage": "madvise",
        "id": "ubuntu",
        "version_id": "24.04",
    }
    tuning = (
        "amd_iommu cgroup_no_v1 clocksource default_hugepagesz hugepages hugepagesz idle "
        "intel_idle.max_cstate intel_iommu intel_pstate iommu isolcpus mitigations nohz_full nosmt "
        "numa_balancing pci pcie_aspm processor.max_cstate rcu_nocbs "
        "systemd.unified_cgroup_hierarchy transparent_hugepage tsc"
    )
    booted = facts("host.boot", wrote("proc/cmdline", f"root=/dev/vda1 quiet {tuning} ro"))
    assert booted["boot_parameters"] == tuning
    usual = facts("mem.size")["memory"]
    assert usual == "2016 GiB"
    assert facts("mem.size", changed("proc/meminfo", "2113461248", "2113999999"))["memory"] == usual
    assert facts("mem.size", changed("proc/meminfo", "2113461248", "2046352384"))["memory"] != usual
    assert registered()["mem.size"].cohort is Status.FAIL


_LOOK = """
import sys
from pathlib import Path
from healthchecks.frame.context import Ctx, Memory
from healthchecks.frame.lane import CheckCall, run_probe
from healthchecks.frame.registry import registered
ctx = Ctx(root=Path(sys.argv[1]), node="n", now=0.0, boot_id="b", memory=Memory({}, 0.0))
result = run_probe(CheckCall(check=registered()["clock"], on="", options={}), ctx)
print(result.status, result.seen)
"""


@pytest.fixture(scope="module")
def adjtimex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C library whose adjtimex says what the environment has."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    place = tmp_path_factory.mktemp("adjtimex")
    library = place / "adjtimex.so"
    source = Path(hardware.__file__).with_name("adjtimex.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    root = place / "root" / Path(_SOURCE).parent
    root.mkdir(parents=True)
    (root / "current_clocksource").write_text("tsc\n")
    return library


@pytest.mark.parametrize(
    ("offset", "error_us", "status", "seen"),
    [
        (1500, 300, 0x0001, "OK tsc, 1500 µs off"),
        (1500, 300, 0x2001, "OK tsc, 2 µs off"),  # STA_NANO: the offset is in ns
        (1500, 16_000_000, 0x0040, "WARN nothing disciplines the clock"),
        (-150_000, 300, 0x0001, "WARN the clock is 150 ms off"),
        (0, 2_000_000, 0x0001, "FAIL the clock is 2000 ms off"),
    ],
)
def test_the_clock(adjtimex: Path, offset: int, error_us: int, status: int, seen: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, adjtimex.parent / "root"],
        env={
            **os.environ,
            "LD_PRELOAD": str(adjtimex),
            "OFFSET": str(offset),
            "ESTERROR": str(error_us),
            "STATUS": str(status),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(seen), done.stdout


def test_a_mount_whose_folder_is_gone_is_none(tmp_path: Path) -> None:
    """As it stays in a mount namespace that was made while it was there."""
    from healthchecks.checks.fs import local_mounts
    from healthchecks.frame.context import Ctx, Memory
    from tests.hardware.tree import empty

    tree = empty(tmp_path)
    lines = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw", "99 22 0:50 / /srv/x//deleted rw - tmpfs x rw"]
    tree.write("proc/self/mountinfo", "\n".join(lines))
    ctx = Ctx(root=tree.root, node="n", now=0.0, boot_id="b", memory=Memory({}, 0.0))
    assert local_mounts(ctx) == ["/"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_mount_where_the_user_may_not_go_is_left_out() -> None:
    """An agent is an ordinary user; containers mount below folders of mode 0700."""
    from healthchecks.checks.fs import fs_local
    from healthchecks.frame.check import Skip
    from healthchecks.frame.context import Ctx, Memory

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "proc/self").mkdir(parents=True)
        line = "22 1 8:1 / /closed/in rw - tmpfs x rw"
        (root / "proc/self/mountinfo").write_text(line)
        ctx = Ctx(root=root, node="n", now=0.0, boot_id="b", memory=Memory({}, 0.0))
        with pytest.raises(Skip, match="is hidden by a mount over it"):
            fs_local(ctx, "/closed/in")
        (root / "closed/in").mkdir(parents=True)
        (root / "closed").chmod(0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(Skip, match="lies where this user may not go"):
                fs_local(ctx, "/closed/in")
        finally:
            os.seteuid(0)
