"""Sick, in other words: files of /proc, /sys and /etc."""

from __future__ import annotations

from checks import Case, both, lost, nothing, wrote
from healthy import NET, PCI, gpus
from sick_rows import (
    FAIL,
    ROUTES,
    WARN,
    asleep,
    lasts,
    mounted,
    rows,
)

from tests.hardware.tree import GPU_BDFS, Tree
from tests.hardware.tree_os import mountstats, stat


def _stat(tree: Tree, steal: int) -> None:

    tree.write("proc/stat", stat(steal=steal))


TREE = [
    *rows(
        "cpu.layout",
        (
            FAIL,
            "threads on several NUMA nodes",
            "QEMU without -smp threads (hwloc#712)",
            both(
                wrote("sys/devices/system/node/node0/cpulist", "0-58"),
                wrote("sys/devices/system/node/node1/cpulist", "59-119"),
            ),
        ),
        (
            FAIL,
            "offline",
            "a CPU that the kernel took away",
            both(wrote("sys/devices/system/cpu/online", "0-118")),
        ),
        (
            FAIL,
            "120 sockets",
            "a socket for each CPU (QEMU's default)",
            lambda t: [
                t.write(f"sys/devices/system/cpu/cpu{n}/topology/physical_package_id", str(n))
                for n in range(120)
            ],
        ),
    ),
    *rows(
        "numa.devices",
        (
            FAIL,
            "has no NUMA node",
            "one device whose firmware forgot it",
            wrote(f"{PCI}/{GPU_BDFS[2]}/numa_node", "-1"),
        ),
        (
            FAIL,
            "is on NUMA node 5",
            "firmware that names a sixth node",
            wrote(f"{PCI}/{GPU_BDFS[2]}/numa_node", "5"),
        ),
        (
            FAIL,
            "are not on this node",
            "a topology file of another machine",
            wrote("var/run/nvidia-topologyd/virtualTopology.xml", '<pci busid="0000:f1:00.0"/>'),
        ),
    ),
    *rows(
        "cpu.binding",
        (FAIL, "CPUs", "srun -c1", lambda t: t.change("proc/self/status", "0-119", "0")),
        (
            FAIL,
            "gpu4: none of its CPUs",
            "a cpuset of one socket",
            lambda t: t.change("proc/self/status", "0-119", "0-59"),
        ),
        (
            FAIL,
            "memory of NUMA node 1",
            "mems of one node",
            lambda t: t.change(
                "proc/self/status", "Mems_allowed_list:\t0-1", "Mems_allowed_list:\t0"
            ),
        ),
    ),
    *lasts(
        "nvme",
        (
            FAIL,
            "its state is dead",
            "Linux, nvme_sysfs_show_state",
            wrote("sys/class/nvme/nvme0/state", "dead"),
        ),
        (
            FAIL,
            "its state is resetting",
            "resets for ever",
            wrote("sys/class/nvme/nvme0/state", "resetting"),
        ),
        (
            FAIL,
            "its state is deleting (no IO)",
            "Linux 5.9, being taken away",
            wrote("sys/class/nvme/nvme0/state", "deleting (no IO)"),
        ),
    ),
    *rows(
        "md",
        (
            WARN,
            "1 of 2 members",
            "Linux raid1",
            wrote(
                "proc/mdstat",
                "Personalities : [raid1]\nmd0 : active raid1 nvme0n1p2[0](F) nvme1n1p2[1]\n"
                "      524224 blocks super 1.2 [2/1] [_U]\n      \nunused devices: <none>",
            ),
        ),
        (
            WARN,
            "3 of 4 members",
            "Linux raid6, a disk gone",
            wrote(
                "proc/mdstat",
                "Personalities : [raid6]\nmd7 : active raid6 sdb1[0] sde1[3] sdd1[2]\n      "
                "7813735424 "
                "blocks super 1.2 level 6, 512k chunk, algorithm 2 [4/3] [U_UU]\nunused devices: "
                "<none>",
            ),
        ),
        (
            FAIL,
            "inactive",
            "an array that did not start",
            wrote(
                "proc/mdstat",
                "Personalities :\nmd0 : inactive sdb1[1](S)\n      1000 blocks super "
                "1.2\nunused: <none>",
            ),
        ),
        (
            WARN,
            "1 of 2 members",
            "Intel VROC: the array of a container",
            wrote(
                "proc/mdstat",
                "Personalities : [raid1]\nmd126 : active raid1 sdb[1]\n      39068 blocks super "
                "external:/md127/0 [2/1] [U_]\n      \nmd127 : inactive sdb[1](S)\n      7932 "
                "blocks super "
                "external:imsm\nunused devices: <none>",
            ),
        ),
        (
            FAIL,
            "failed: sdc1",
            "Linux raid0, a member failed",
            wrote(
                "proc/mdstat",
                "Personalities : [raid0]\nmd1 : active raid0 sdb1[0] sdc1[1](F)\n      100 "
                "blocks\n",
            ),
        ),
    ),
    *(
        Case(
            check="fs.local",
            name=source,
            on="/",
            options={"warn_percent": 101, "fail_percent": 101},
            change=change,
            status=status,
            seen=seen,
        )
        for status, seen, source, change in (
            (
                FAIL,
                "read-only",
                "ext4, errors=remount-ro",
                mounted("ext4 /dev/vda1 rw,", "ext4 /dev/vda1 ro,"),
            ),
            (
                FAIL,
                "read-only",
                "ext4 since Linux 6.15",
                mounted("ext4 /dev/vda1 rw,", "ext4 /dev/vda1 rw,emergency_ro,"),
            ),
            (
                FAIL,
                "read-only",
                "ext4 that was shut down",
                mounted("ext4 /dev/vda1 rw,", "ext4 /dev/vda1 rw,shutdown,"),
            ),
            (
                FAIL,
                "read-only",
                "overlayfs with an upper layer",
                mounted("ext4 /dev/vda1 rw,", "overlay overlay ro,lowerdir=/a,upperdir=/b,"),
            ),
            (
                WARN,
                "errors since its last fsck",
                "ext4's own count",
                wrote("sys/fs/ext4/vda1/errors_count", "4"),
            ),
        )
    ),
    *rows(
        "gdr",
        (
            FAIL,
            "neither",
            "the closed driver",
            both(
                wrote(
                    "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module"
                ),
                lambda t: t.change("proc/modules", "nvidia_peermem", "other"),
            ),
        ),
        (
            FAIL,
            "neither",
            "a kernel before dma-buf",
            both(
                wrote("proc/sys/kernel/osrelease", "5.4.0-190-generic"),
                lambda t: t.change("proc/modules", "nvidia_peermem", "other"),
            ),
        ),
        (
            FAIL,
            "neither",
            "RHEL 8",
            both(
                wrote("proc/sys/kernel/osrelease", "4.18.0-553.el8_10.x86_64"),
                lambda t: t.change("proc/modules", "nvidia_peermem", "other"),
            ),
        ),
    ),
    *(
        Case(
            check="nccl.imex",
            name=source,
            change=both(gpus("NVIDIA GB200", 4), wrote("proc/devices", text)),
            status=FAIL,
            seen="no IMEX channel",
        )
        for source, text in (
            ("no channel, the driver knows them", "234 nvidia-caps-imex-channels"),
            ("no channel, a driver without them", "195 nvidia"),
            ("no channel, other caps", "234 nvidia-caps"),
        )
    ),
    *rows(
        "nccl.devices",
        (
            FAIL,
            "ib_uverbs is not loaded",
            "verbs",
            both(
                lambda t: t.change("proc/modules", "ib_uverbs", "other"),
                lost("sys/module/ib_uverbs"),
            ),
        ),
        (FAIL, "/dev/nvidia3 is not there", "a device file that udev forgot", lost("dev/nvidia3")),
        (
            FAIL,
            "no verbs device",
            "a NIC without verbs",
            lost("sys/class/infiniband_verbs/uverbs3"),
        ),
        (
            FAIL,
            "nvidia_uvm is not loaded",
            "nobody can load UVM",
            both(
                lambda t: t.change("proc/modules", "nvidia_uvm", "other"),
                lost("sys/module/nvidia_uvm"),
            ),
        ),
    ),
    *rows(
        "nccl.limits",
        (
            WARN,
            "may lock",
            "64 KiB, the kernel's default",
            wrote(
                "proc/self/limits",
                "Max locked memory         65536                65536  bytes",
            ),
        ),
        (
            WARN,
            "may lock",
            "8 MiB, systemd's default",
            wrote(
                "proc/self/limits",
                "Max locked memory         8388608              8388608  bytes",
            ),
        ),
        (
            WARN,
            "max open files 1024",
            "the old default of files",
            wrote(
                "proc/self/limits",
                "Max locked memory         unlimited            unlimited            bytes\n"
                "Max open files            1024                 1024                 files",
            ),
        ),
    ),
    *(
        Case(
            check="nccl.shm",
            name=source,
            options={"least_gib": gib, "leftover_mib": mib},
            change=change,
            status=status,
            seen=seen,
        )
        for status, seen, source, gib, mib, change in (
            (FAIL, "are free", "NCCL: failed to extend /dev/shm", 1e6, 64, nothing),
            (WARN, "files of earlier jobs", "NCCL's", 0, 0, wrote("dev/shm/nccl-a1", "x")),
            (WARN, "files of earlier jobs", "torch's", 0, 0, wrote("dev/shm/torch_1_2", "x")),
        )
    ),
    *(
        Case(
            check="nccl.interfaces",
            name=source,
            options={"socket_ifname": spec},
            change=both(wrote("proc/net/route", ROUTES), change),
            status=FAIL,
            seen=seen,
        )
        for source, spec, seen, change in (
            ("none of that name", "=bond7", "fits none", nothing),
            ("it is down", "eth0", "is down", wrote(f"{NET}/eth0/operstate", "down")),
            (
                "its lower layer is down",
                "eth0",
                "lowerlayerdown",
                wrote(f"{NET}/eth0/operstate", "lowerlayerdown"),
            ),
            ("it has no address", "eth0", "no address", wrote("proc/net/route", "Iface\tDest")),
        )
    ),
    *rows(
        "mem.size",
        (
            FAIL,
            "on the largest",
            "Linux NUMA meminfo: a module that is not seen",
            lambda t: t.change(
                "sys/devices/system/node/node1/meminfo",
                "MemTotal:       1056730624",
                "MemTotal:       990000000",
            ),
        ),
        (FAIL, "no /dev/shm", "a container without", mounted("/dev/shm", "/dev/other")),
        (
            FAIL,
            "shared memory is limited",
            "Docker's 64 MiB",
            mounted("size=1056730624k", "size=65536k"),
        ),
        (
            FAIL,
            "shared memory is limited",
            "a size in bytes",
            mounted("size=1056730624k", "size=67108864"),
        ),
    ),
    *(
        Case(
            check="dstate",
            name=source,
            earlier=[(600.0, asleep(name))],
            change=asleep(name),
            status=WARN,
            seen=f"({name}) has slept",
        )
        for source, name in (
            ("a rank in the driver", "python3"),
            ("umount of a dead server", "umount.nfs"),
            ("a name with blanks and brackets", "a b) c"),
        )
    ),
    *rows(
        "cpu.steal",
        (WARN, "took", "a VM that shares its CPUs", lambda t: _stat(t, 9_000_000)),
        (WARN, "took", "a little", lambda t: _stat(t, 2_000_000)),
        (WARN, "took", "much", lambda t: _stat(t, 90_000_000)),
    ),
    *(
        Case(
            check="governor",
            name=f"cpufreq governor {word}",
            change=wrote("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", word),
            status=WARN,
            seen=word,
        )
        for word in ("powersave", "schedutil", "ondemand")
    ),
    *rows(
        "gpu.driver_uptime",
        *(
            (WARN, "up for", f"{days} days", wrote("proc/uptime", f"{days * 86400}.00 1.0"))
            for days in (60, 66, 365)
        ),
    ),
    *(
        Case(
            check="slurm.memlock",
            name=source,
            status=FAIL,
            seen="slurmd may lock",
            programs={"slurmd": ""},
            change=wrote("proc/812/limits", f"Max locked memory         {text} bytes"),
        )
        for source, text in (
            ("the kernel's 64 KiB", "65536                65536               "),
            ("systemd's 8 MiB", "8388608              8388608             "),
            ("an eighth of all memory", "274877906944         274877906944        "),
        )
    ),
    *rows(
        "nfs.mounted",
        (
            FAIL,
            "not mounted",
            "it is gone",
            lambda t: t.write(
                "proc/self/mountinfo",
                "\n".join(
                    row for row in t.read("proc/self/mountinfo").splitlines() if "nfs4" not in row
                ),
            ),
        ),
        (
            FAIL,
            "read-only",
            "the server exports it ro",
            mounted("nfs4 10.0.0.5:/export/shared rw,", "nfs4 10.0.0.5:/export/shared ro,"),
        ),
        (FAIL, "is mounted", "another export", mounted("10.0.0.5:/export/shared", "10.0.0.6:/old")),
    ),
    *rows(
        "nfs.options",
        (WARN, "soft mount", "nfs(5)", mounted(",hard,", ",soft,")),
        (WARN, "soft mount", "nfs(5), softerr", mounted(",hard,", ",softerr,")),
        (WARN, "over UDP", "nfs(5), transport", mounted("proto=tcp", "proto=udp")),
    ),
    *(
        Case(
            check="nfs.passive",
            name=source,
            earlier=[(60.0, wrote("proc/self/mountstats", mountstats()))],
            change=wrote(
                "proc/self/mountstats",
                mountstats(write=text).replace("age:\t864000", "age:\t864060"),
            ),
            status=WARN,
            seen=seen,
        )
        for source, text, seen in (
            ("mountstats: major timeouts", "1003 1009 3 1 1 2000 180000 183000 0", "3 timeouts"),
            (
                "mountstats: sent again",
                "2000 2090 0 1073741824 136000 2000 90000 93000 0",
                "sent again",
            ),
            (
                "mountstats: the client's queue",
                "2000 2000 0 1073741824 136000 9312000 690000 10003000 0",
                "own queue",
            ),
        )
    ),
]
