"""What the kernel of the healthy node shows: CPUs, memory, mounts, modules, files of /etc."""

from __future__ import annotations

BOOT_ID = "6f3a3f0e-5c1b-4c0a-9d57-0c2f0f8b7a11"
CPUS = 120  # 2 sockets of 30 cores of 2 threads; a core's threads are neighbours
KERNEL = "6.8.0-85-generic"
NFS_SERVER = "10.0.0.5"
NFS_OPTIONS = (
    "rw,relatime,vers=4.1,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,nconnect=16,"
    "timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.17,local_lock=none,addr=10.0.0.5"
)
FOLDERS = ("dev/shm", "tmp", "shared", "proc/sys", "var/lib", "run", "home")
_MOUNTS = (  # id, device, mount point, type, source, options of the mount, of the file system
    (29, "252:1", "/", "ext4", "/dev/vda1", "rw,relatime", "rw,errors=remount-ro"),
    (30, "0:26", "/dev/shm", "tmpfs", "tmpfs", "rw,nosuid,nodev", "rw,size=1056730624k"),
    (31, "0:40", "/shared", "nfs4", f"{NFS_SERVER}:/export/shared", "rw,relatime", NFS_OPTIONS),
)
_MODULES = [
    "nvidia_uvm",
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia",
    "nvidia_peermem",
    "mlx5_ib",
    "mlx5_core",
    "ib_uverbs",
    "ib_umad",
    "ib_ipoib",
    "ib_core",
    "rdma_cm",
    "nfsv4",
    "nfs",
    "sunrpc",
]


def cpus() -> dict[str, str]:
    """sys/devices/system/{cpu,node}."""
    every, half = f"0-{CPUS - 1}", CPUS // 2
    found = {f"sys/devices/system/cpu/{name}": every for name in ("online", "present", "possible")}
    found["sys/devices/system/cpu/offline"] = ""
    found["sys/devices/system/cpu/isolated"] = ""
    found["sys/devices/system/cpu/smt/active"] = "1"
    found["sys/devices/system/cpu/smt/control"] = "on"
    for cpu in range(CPUS):
        node, first = cpu // half, cpu // 2 * 2
        at = f"sys/devices/system/cpu/cpu{cpu}/topology"
        found[f"{at}/thread_siblings_list"] = f"{first}-{first + 1}"
        found[f"{at}/core_id"] = str(cpu % half // 2)
        found[f"{at}/physical_package_id"] = str(node)
        found[f"{at}/core_siblings_list"] = f"{node * half}-{node * half + half - 1}"
    for node in (0, 1):
        at = f"sys/devices/system/node/node{node}"
        total = TOTAL_KB // 2
        found[f"{at}/cpulist"] = f"{node * half}-{node * half + half - 1}"
        found[f"{at}/distance"] = "10 21" if node == 0 else "21 10"
        found[f"{at}/meminfo"] = "\n".join(
            f"Node {node} {name + ':':15} {value:>8} kB"
            for name, value in (
                ("MemTotal", total),
                ("MemFree", total - 2**24),
                ("HugePages_Total", 0),
            )
        )
        found[f"{at}/numastat"] = "numa_hit 1000\nnuma_miss 0\nnuma_foreign 0\nlocal_node 1000"
    for name in ("online", "possible", "has_cpu", "has_memory"):
        found[f"sys/devices/system/node/{name}"] = "0-1"
    clock = "sys/devices/system/clocksource/clocksource0"
    found[f"{clock}/current_clocksource"] = "tsc"
    found[f"{clock}/available_clocksource"] = "tsc kvm-clock hpet acpi_pm"
    return found


TOTAL_KB = 2_113_461_248


def files() -> dict[str, str]:
    """proc, etc, dev and the rest of sys."""
    return {
        **_proc(),
        "etc/fstab": (
            "# <file system> <mount point> <type> <options> <dump> <pass>\n"
            "/dev/vda1 / ext4 defaults 0 1\n"
            f"{NFS_SERVER}:/export/shared /shared nfs4 rw,hard,vers=4.1,nconnect=16,_netdev 0 0"
        ),
        "etc/os-release": 'ID=ubuntu\nVERSION_ID="24.04"',
        "etc/hostname": "node-017",
        "etc/hosts": "127.0.0.1 localhost\n10.0.0.17 node-017",
        "dev/kmsg": "\n".join(
            f"{priority},{number},{at},-;{text}"
            for number, (priority, at, text) in enumerate(_KMSG)
        ),
        "sys/fs/ext4/vda1/errors_count": "0",
        "sys/fs/ext4/vda1/warning_count": "0",
        "sys/class/nvme/nvme0/state": "live",
        "sys/class/nvme/nvme0/model": "SAMSUNG MZQL23T8HCLS-00A07",
        "sys/class/nvme/nvme0/serial": "S64HNE0R000001",
        "sys/class/dmi/id/sys_vendor": "QEMU",
        "sys/class/dmi/id/product_name": "Standard PC (Q35 + ICH9, 2009)",
        "sys/hypervisor/type": "kvm",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        **{f"sys/module/{name}/initstate": "live" for name in _MODULES if "nvidia" in name},
        "sys/module/nvidia_peermem/version": "580.95.05",
    }


_KMSG = (
    (5, 0, f"Linux version {KERNEL} (buildd@lcy02-amd64-001) #85-Ubuntu SMP"),
    (6, 4_100_000, "mlx5_core 0000:18:00.0: firmware version: 28.43.2026"),
    (6, 4_200_000, "mlx5_core 0000:18:00.0: 504.112 Gb/s available PCIe bandwidth"),
    (5, 9_000_000, "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05"),
    (6, 12_000_000, "EXT4-fs (vda1): mounted filesystem with ordered data mode"),
)


def _proc() -> dict[str, str]:
    mountinfo, mounts = [], []
    for number, device, point, kind, source, options, inner in _MOUNTS:
        parent = 1 if point == "/" else 29
        mountinfo.append(
            f"{number} {parent} {device} / {point} {options} shared:1 - {kind} {source} {inner}"
        )
        mounts.append(f"{source} {point} {kind} {inner} 0 0")
    return {
        "proc/self/mountinfo": "\n".join(mountinfo),
        "proc/mounts": "\n".join(mounts),
        "proc/self/mounts": "\n".join(mounts),
        "proc/self/mountstats": mountstats(),
        "proc/self/limits": (
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max locked memory         unlimited            unlimited            bytes     \n"
            "Max open files            1048576              1048576              files     "
        ),
        "proc/self/status": (
            f"Name:\tpython3\nState:\tR (running)\nCpus_allowed_list:\t0-{CPUS - 1}\n"
            "Mems_allowed_list:\t0-1"
        ),
        "proc/meminfo": _meminfo(),
        "proc/cpuinfo": _cpuinfo(),
        "proc/stat": stat(steal=0),
        "proc/vmstat": "nr_free_pages 500000000\npgpgout 1000\noom_kill 0\nnuma_miss 0",
        "proc/uptime": "864000.00 103000000.00",
        "proc/loadavg": "0.10 0.12 0.10 1/1500 4242",
        "proc/modules": "\n".join(
            f"{name} 100000 0 - Live 0x0000000000000000" for name in _MODULES
        ),
        "proc/mdstat": "Personalities : [raid0]\nunused devices: <none>",
        "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro iommu=pt",
        "proc/version": f"Linux version {KERNEL} (buildd@lcy02-amd64-001)",
        "proc/net/dev": "Inter-|   Receive\n face |bytes\n  eth0: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0",
        "proc/sys/kernel/random/boot_id": BOOT_ID,
        "proc/sys/kernel/osrelease": KERNEL,
        "proc/sys/kernel/hostname": "node-017",
        "proc/sys/kernel/tainted": "12288",
        "proc/sys/kernel/numa_balancing": "0",
        "proc/sys/kernel/hung_task_timeout_secs": "120",
        "proc/sys/vm/overcommit_memory": "0",
        "proc/sys/vm/max_map_count": "1048576",
        "proc/sys/sunrpc/tcp_slot_table_entries": "2",
        "proc/sys/sunrpc/tcp_max_slot_table_entries": "65536",
        **_process(1, "systemd", "S", "ep_poll"),
        **_process(812, "slurmd", "S", "do_sys_poll"),
        "proc/812/limits": (
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max locked memory         unlimited            unlimited            bytes     \n"
            "Max open files            131072               131072               files     \n"
            "Max processes             unlimited            unlimited            processes \n"
            "Max stack size            unlimited            unlimited            bytes     "
        ),
    }


def _process(pid: int, name: str, state: str, wchan: str) -> dict[str, str]:
    """`stat` has 52 fields; 22 is when it started, in ticks after boot."""
    numbers = ["0"] * 49
    numbers[0] = "1" if pid != 1 else "0"
    numbers[18] = "500"
    return {
        f"proc/{pid}/stat": f"{pid} ({name}) {state} {' '.join(numbers)}",
        f"proc/{pid}/comm": name,
        f"proc/{pid}/wchan": wchan,
        f"proc/{pid}/cmdline": f"/usr/sbin/{name}\0",
        f"proc/{pid}/status": f"Name:\t{name}\nState:\t{state}\nPid:\t{pid}\nUid:\t0\t0\t0\t0",
    }


def stat(*, steal: int) -> str:
    """/proc/stat, with some ticks of steal in all."""
    lines = [f"cpu  100000 0 50000 90000000 1000 0 500 {steal} 0 0"]
    lines += [f"cpu{n} 833 0 416 750000 8 0 4 {steal // CPUS} 0 0" for n in range(CPUS)]
    lines += ["intr 1000 0", "ctxt 1000", "btime 1763800000", "processes 4242"]
    return "\n".join([*lines, "procs_running 1", "procs_blocked 0"])


def mountstats(*, write: str = "1000 1000 0 1073741824 136000 2000 90000 93000 0") -> str:
    """/proc/self/mountstats with one NFS mount. `write`: operations, transmissions, major timeouts,
    bytes sent, bytes received, ms queued, ms of round trips, ms in all, errors."""
    return (
        "device /dev/vda1 mounted on / with fstype ext4\n"
        f"device {NFS_SERVER}:/export/shared mounted on /shared with fstype nfs4 statvers=1.1\n"
        f"\topts:\t{NFS_OPTIONS}\n"
        "\tage:\t864000\n"
        "\tcaps:\tcaps=0xfffbffff,wtmult=512,dtsize=1048576,bsize=0,namlen=255\n"
        "\tsec:\tflavor=1,pseudoflavor=1\n"
        "\tevents:\t" + " ".join(["0"] * 27) + "\n"
        "\tbytes:\t0 1073741824 0 0 0 1073741824 0 262144\n"
        "\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)\n"
        "\txprt:\ttcp 0 0 16 0 0 5000 5000 0 5000 0 64 0 0\n"
        "\tper-op statistics\n"
        "\t        NULL: 1 1 0 44 24 0 0 0 0\n"
        "\t        READ: 1000 1000 0 136000 1073741824 1000 50000 52000 0\n"
        f"\t       WRITE: {write}\n"
        "\t     GETATTR: 3000 3000 0 600000 700000 100 1500 1700 0\n"
    )


def _meminfo() -> str:
    rows = {
        "MemTotal": TOTAL_KB,
        "MemFree": TOTAL_KB - 2**25,
        "MemAvailable": TOTAL_KB - 2**24,
        "Buffers": 2**20,
        "Cached": 2**23,
        "Dirty": 0,
        "Writeback": 0,
        "Shmem": 2**20,
        "HardwareCorrupted": 0,
        "CommitLimit": TOTAL_KB // 2,
        "Committed_AS": 2**24,
        "Hugepagesize": 2048,
    }
    return "\n".join(f"{name + ':':15} {value:>8} kB" for name, value in rows.items())


def _cpuinfo() -> str:
    return "\n\n".join(
        f"processor\t: {cpu}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\n"
        "model name\t: INTEL(R) XEON(R) PLATINUM 8580\nmicrocode\t: 0x21000283\n"
        f"cpu MHz\t\t: 2000.000\nphysical id\t: {cpu // 60}\nsiblings\t: 60\n"
        f"core id\t\t: {cpu % 60 // 2}\ncpu cores\t: 30\n"
        "flags\t\t: fpu vme constant_tsc nonstop_tsc hypervisor avx512f amx_tile"
        for cpu in range(CPUS)
    )
