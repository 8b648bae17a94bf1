"""More nodes that are healthy, but different: clouds, workstations, and what they have mounted."""

from __future__ import annotations

from checks import Change, both, wrote
from healthy import (
    BOTH_MANAGERS,
    HOPPER_FIELDS,
    IB,
    MANAGER,
    NET,
    PCI,
    UNFABRIC,
    HealthyNode,
    below,
    cpus,
    gpus,
    interface,
    logged,
    many,
    mount,
    mounts,
    no_gpus,
    no_lpf,
    no_nics,
    numa,
    nvswitch,
    port,
    route,
    says,
)

from tests.hardware import tree_nics
from tests.hardware.tree import Tree
from tests.hardware.tree_os import CPUS, TOTAL_KB

NO_NVLINK = (
    "nvmlDeviceGetNvLinkState * rc 3",
    "nvmlDeviceGetP2PStatus * rc 3",
    "nvmlDeviceGetRepairStatus * rc 3",
    "nvmlDeviceGetFieldValues/164 * rc 3",
)
ROOMY = {"fs.local": {"warn_percent": 0, "fail_percent": 0, "needed": []}}


def one_thread(tree: Tree) -> None:
    """SMT switched off in the BIOS."""
    for cpu in range(CPUS):
        at = f"sys/devices/system/cpu/cpu{cpu}/topology"
        tree.write(f"{at}/thread_siblings_list", str(cpu))
        tree.write(f"{at}/core_id", str(cpu))
    tree.write("sys/devices/system/cpu/smt/active", "0")
    tree.write("sys/devices/system/cpu/smt/control", "notsupported")


def stats_of(point: str) -> Change:
    """What the client counts of /shared, for another mount of that server."""

    def do(tree: Tree) -> None:
        text = tree.read("proc/self/mountstats")
        own = text[text.index("device 10.0.0.5") :].replace("/shared", point)
        tree.write("proc/self/mountstats", f"{text}\n{own}")

    return do


def _ib_guest(n: int) -> Change:
    """A virtual function of InfiniBand that a hypervisor gave to this guest: no physfn here."""
    return port(
        f"mlx5_{n}",
        f"{0x0101 + n:04x}:00:00.0",
        f"ib{n}",
        layer="InfiniBand",
        board="MT_0000001007",
        pci=("0x15b3", "0x101e"),
        firmware="28.38.1900",
        numa=n // 4,
    )


MORE = [
    HealthyNode(
        name="two H200 NVL in a VM",
        source="NVIDIA H200 NVL product brief; KVM without NUMA or RDMA: a guest of two cards "
        "without a bridge",
        change=both(
            no_nics,
            numa("-1"),
            gpus("NVIDIA H200 NVL", 2, UNFABRIC, *HOPPER_FIELDS, *NO_NVLINK),
        ),
    ),
    HealthyNode(
        name="virtual functions of InfiniBand in a guest",
        source="Azure ND H100 v5: eight ConnectX-7 VFs by PCI domain, NVSwitches passed through",
        change=both(no_nics, MANAGER, nvswitch("0000:07:00.0"), many(_ib_guest, range(8))),
    ),
    HealthyNode(
        name="RoCE alone, two functions a card",
        source="OCI BM.GPU.B200.8: sixteen 200G RoCE functions on eight cards, no InfiniBand",
        change=both(
            no_nics,
            BOTH_MANAGERS,
            *(
                port(
                    f"mlx5_{n}",
                    f"0000:{0x20 + n // 2:02x}:00.{n % 2}",
                    f"rdma{n}",
                    rate="200 Gb/sec (2X NDR)",
                    address=f"10.4.{n}.17",
                    numa=n // 8,
                )
                for n in range(16)
            ),
        ),
    ),
    HealthyNode(
        name="ConnectX-8 at 800 Gb/s",
        source="Linux 6.12, drivers/infiniband/core/sysfs.c: `800 Gb/sec (4X XDR)`",
        change=both(
            no_nics,
            BOTH_MANAGERS,
            *(
                port(
                    f"mlx5_{n}",
                    f"0000:{0x20 + n:02x}:00.0",
                    f"ib{n}",
                    layer="InfiniBand",
                    rate="800 Gb/sec (4X XDR)",
                    board="MT_0000001222",
                    pci=("0x15b3", "0x1023"),
                    firmware="40.45.1200",
                    numa=n // 4,
                )
                for n in range(8)
            ),
        ),
    ),
    HealthyNode(
        name="four L40S",
        source="NVIDIA L40S datasheet: PCIe 4.0, no NVLink, ECC on GDDR6",
        change=both(
            no_nics,
            gpus(
                "NVIDIA L40S",
                4,
                UNFABRIC,
                *HOPPER_FIELDS,
                *NO_NVLINK,
                "nvmlDeviceGetMaxPcieLinkGeneration * value 4",
                "nvmlDeviceGetCurrPcieLinkGeneration * value 4",
            ),
        ),
    ),
    HealthyNode(
        name="eight RTX PRO 6000",
        source="NVIDIA RTX PRO Server: Blackwell on PCIe, no NVLink, ConnectX-7 for RoCE",
        change=both(
            no_nics,
            gpus(
                "NVIDIA RTX PRO 6000 Blackwell Server Edition",
                8,
                UNFABRIC,
                *HOPPER_FIELDS,
                *NO_NVLINK,
            ),
            many(
                lambda n: port(
                    f"mlx5_{n}", f"0000:{0x20 + n:02x}:00.0", f"ens{n}np0", address=f"10.1.{n}.17"
                ),
                range(4),
            ),
        ),
    ),
    HealthyNode(
        name="SMT switched off",
        source="BIOS setting of many HPC sites: smt/control says notsupported",
        change=both(BOTH_MANAGERS, one_thread),
    ),
    HealthyNode(
        name="an arm64 server without GPU or RDMA",
        source="AWS Graviton 3: 64 cores, one NUMA node, arch_sys_counter, no cpufreq",
        change=both(
            no_nics,
            no_gpus,
            cpus(64),
            wrote("proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve"),
            wrote(
                "sys/devices/system/clocksource/clocksource0/current_clocksource",
                "arch_sys_counter",
            ),
            wrote("proc/self/status", "Cpus_allowed_list:\t0-63\nMems_allowed_list:\t0"),
        ),
    ),
    HealthyNode(
        name="a bond of two storage ports with a VLAN",
        source="Linux bonding, LACP, over mlx5: VLAN above bond above ports; RoCE's own device is "
        "mlx5_bond_0",
        change=both(
            BOTH_MANAGERS,
            lambda t: [
                (
                    t.remove(f"{IB}/{n.device}"),
                    t.remove(f"{PCI}/{n.bdf}"),
                    t.remove(f"{NET}/{n.netdev}"),
                )
                for n in tree_nics.nics()
                if n.role == "storage"
            ],
            port(
                "mlx5_bond_0",
                "0000:41:00.0",
                "ens40f0np0",
                rate="200 Gb/sec (4X HDR)",
                board="MT_0000000834",
                pci=("0x15b3", "0x101d"),
                firmware="22.43.2026",
                address="10.0.0.17",
            ),
            interface("ens40f1np1"),
            interface("bond0"),
            interface("bond0.40"),
            below("ens40f0np0", "bond0", slave=True),
            below("ens40f1np1", "bond0", slave=True),
            below("bond0", "bond0.40"),
            lambda t: [
                t.write(f"{IB}/mlx5_bond_0/ports/1/gid_attrs/ndevs/{n}", dev)
                for n, dev in enumerate(("bond0", "bond0", "bond0.40", "bond0.40"))
            ],
        ),
    ),
    HealthyNode(
        name="memory of GPUs as NUMA nodes",
        source="Grace Hopper and GB200: the driver adds HBM as NUMA nodes without CPUs, after boot",
        before=BOTH_MANAGERS,
        change=both(
            wrote("sys/devices/system/node/node2/meminfo", f"Node 2 MemTotal: {TOTAL_KB // 8} kB"),
            wrote("sys/devices/system/node/node2/cpulist", ""),
            wrote("sys/devices/system/node/has_cpu", "0-1"),
            wrote("sys/devices/system/node/online", "0-2"),
        ),
    ),
    HealthyNode(
        name="automounter",
        source="autofs(5), mountinfo: triggers that nothing has been mounted on yet, and one that "
        "has its NFS",
        change=both(
            BOTH_MANAGERS,
            mounts(
                "60 29 0:70 / /net rw,relatime shared:30 - autofs /etc/auto.net "
                "rw,fd=6,pgrp=1,timeout=300,minproto=5,maxproto=5,indirect,pipe_ino=1",
                "61 29 0:71 / /proc/sys/fs/binfmt_misc rw,relatime shared:31 - autofs systemd-1 "
                "rw,fd=29,pgrp=1,timeout=0,minproto=5,maxproto=5,direct,pipe_ino=2",
                "62 29 0:72 / /home rw,relatime shared:32 - autofs /etc/auto.home "
                "rw,fd=12,pgrp=1,timeout=300,minproto=5,maxproto=5,indirect,pipe_ino=3",
                "63 62 0:73 / /home/kim rw,relatime shared:33 - nfs4 10.0.0.5:/export/home/kim "
                "rw,vers=4.1,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,nconnect=16,"
                "timeo=600,retrans=2,sec=sys,clientaddr=10.0.0.17,local_lock=none,addr=10.0.0.5",
            ),
            stats_of("/home/kim"),
        ),
    ),
    HealthyNode(
        name="snaps",
        source="snapd: a squashfs for each snap, full by nature; snapfuse in containers",
        change=both(
            BOTH_MANAGERS,
            *(
                mount(70 + n, f"7:{n}", f"/snap/core{n}/1380", "squashfs", f"/dev/loop{n}", "ro")
                for n in range(6)
            ),
            mounts(
                "77 29 0:80 / /snap/lxd/1 ro,nodev,relatime shared:40 - fuse.snapfuse snapfuse "
                "ro,user_id=0,group_id=0,allow_other",
                "78 29 0:81 / /run/snapd/ns rw,nosuid shared:41 - tmpfs tmpfs rw,size=1024k",
            ),
        ),
    ),
    HealthyNode(
        name="file systems of users in user space",
        source="mountinfo of sshfs, gvfs, the document portal, rclone: one user's own",
        change=both(
            BOTH_MANAGERS,
            mounts(
                "80 29 0:90 / /home/kim/remote rw,nosuid,nodev shared:50 - fuse.sshfs "
                "kim@far:/data rw,user_id=1000,group_id=1000",
                "81 29 0:91 / /run/user/1000/gvfs rw,nosuid,nodev shared:51 - fuse.gvfsd-fuse "
                "gvfsd-fuse rw,user_id=1000,group_id=1000",
                "82 29 0:92 / /run/user/1000/doc rw,nosuid,nodev shared:52 - fuse.portal portal "
                "rw,user_id=1000,group_id=1000",
                "83 29 0:93 / /home/kim/cloud rw,nosuid,nodev shared:53 - fuse.rclone far: "
                "rw,user_id=1000,group_id=1000",
                "84 29 0:94 / /var/lib/lxcfs rw,nosuid,nodev shared:54 - fuse.lxcfs lxcfs "
                "rw,user_id=0,group_id=0,allow_other",
                "85 29 0:95 / /sys/fs/fuse/connections rw shared:55 - fusectl fusectl rw",
            ),
        ),
    ),
    HealthyNode(
        name="object stores in user space",
        source="mountinfo of JuiceFS, gcsfuse, s3fs, goofys: root's, for all",
        change=both(
            BOTH_MANAGERS,
            *(
                mounts(
                    f"{86 + n} 29 0:{96 + n} / /mnt/{kind} rw,nosuid,nodev,relatime shared:{60 + n}"
                    f" - fuse.{kind} {kind}:data rw,user_id=0,group_id=0,default_permissions,"
                    "allow_other"
                )
                for n, kind in enumerate(("juicefs", "gcsfuse", "s3fs", "goofys"))
            ),
        ),
    ),
    HealthyNode(
        name="volumes of pods on NFS",
        source="kubelet, subPath: the same NFS bind-mounted once for each container",
        change=both(
            BOTH_MANAGERS,
            lambda t: mounts(
                *(
                    row.replace("/shared ", f"/var/lib/kubelet/pods/{n}/volume-subpaths/data/c/0 ")
                    for n in range(12)
                    for row in t.read("proc/self/mountinfo").splitlines()
                    if "nfs4" in row
                )
            )(t),
        ),
        options=ROOMY,
    ),
    HealthyNode(
        name="a root of ostree",
        source="Fedora CoreOS: / is a read-only composefs overlay by design, /usr and /sysroot ro",
        change=both(
            BOTH_MANAGERS,
            mounts(
                "90 29 0:120 / /usr ro,relatime shared:70 - overlay composefs "
                "ro,seclabel,lowerdir+=/run/ostree/.private/cfsroot-lower",
                "91 29 252:4 / /sysroot ro,relatime shared:71 - xfs /dev/vda4 rw,seclabel,inode64",
                "92 29 252:3 / /boot ro,nosuid,nodev,relatime shared:72 - ext4 /dev/vda3 "
                "rw,seclabel",
            ),
        ),
        options=ROOMY,
    ),
    HealthyNode(
        name="ZFS and Btrfs",
        source="mountinfo: a mount for each dataset or subvolume, of one device or of devices of "
        "their own",
        change=both(
            BOTH_MANAGERS,
            mount(93, "0:130", "/var/lib/zfs", "zfs", "rpool/var", "rw,xattr,posixacl"),
            mount(94, "0:131", "/data", "zfs", "tank/data set", "rw,xattr,noacl"),
            mount(95, "0:132", "/mnt/pool", "btrfs", "/dev/nvme1n1", "rw,subvolid=5,subvol=/"),
            mount(96, "0:132", "/mnt/pool2", "btrfs", "/dev/nvme1n1", "rw,subvolid=256,subvol=/b"),
        ),
        options=ROOMY,
    ),
    HealthyNode(
        name="mounts of every shape",
        source="proc(5): no optional fields, many, octal blanks, an empty source, roots in a "
        "subtree, virtiofs, 9p, erofs, ISO images",
        change=both(
            BOTH_MANAGERS,
            mounts(
                r"100 29 252:9 / /mnt/my\040disk rw,relatime - ext4 /dev/disk/by-label/a\040b rw",
                "101 29 0:140 /a/b /mnt/sub rw shared:1 master:2 propagate_from:3 - tmpfs tmpfs "
                "rw,size=1024k,huge=within_size",
                "102 29 0:141 / /mnt/guest rw,relatime unbindable - virtiofs share rw",
                "103 29 0:142 / /mnt/nine rw,relatime shared:5 - 9p hostshare rw,trans=virtio",
                "104 29 7:9 / /mnt/image ro,relatime shared:6 - erofs /dev/loop9 ro,user_xattr",
                "105 29 11:0 / /media/cd ro,nosuid,nodev shared:7 - iso9660 /dev/sr0 ro",
                "106 29 0:143 / /dev/hugepages rw,relatime shared:8 - hugetlbfs hugetlbfs "
                "rw,pagesize=2M",
                "107 29 0:4 net:[4026532281] /run/netns/pod rw shared:9 - nsfs nsfs rw",
                "108 29 0:144 / /sys/fs/bpf rw,nosuid shared:10 - bpf bpf rw,mode=700",
                "109 29 0:145 / /mnt/none rw,relatime shared:11 - tmpfs  rw,size=4k",
            ),
        ),
        options=ROOMY,
    ),
    HealthyNode(
        name="a disk for jobs that comes and goes",
        source="Slurm job_container/tmpfs and systemd PrivateTmp: /tmp and /dev/shm of a job's own",
        change=both(
            BOTH_MANAGERS,
            mounts(
                "110 29 252:1 /var/spool/jobs/77/.77/_tmp /tmp rw,relatime - ext4 /dev/vda1 rw",
                "111 29 0:150 / /dev/shm rw,nosuid,nodev - tmpfs tmpfs rw,size=1056730624k,inode64",
            ),
        ),
        options=ROOMY,
    ),
    HealthyNode(
        name="a control group of version 1 and one that freezes",
        source="cgroups(7): hybrid hierarchies of RHEL 8",
        change=both(
            BOTH_MANAGERS,
            mounts(
                "112 29 0:160 / /sys/fs/cgroup ro,nosuid shared:80 - tmpfs tmpfs ro,mode=755",
                "113 112 0:161 / /sys/fs/cgroup/memory rw shared:81 - cgroup cgroup rw,memory",
                "114 112 0:162 / /sys/fs/cgroup/freezer rw shared:82 - cgroup cgroup rw,freezer",
            ),
        ),
    ),
    HealthyNode(
        name="a default route over a bridge",
        source="libvirt hosts, Kubernetes with a CNI bridge: br0 above the interface of a port",
        change=both(
            BOTH_MANAGERS,
            interface("eno1"),
            interface("br0"),
            below("eno1", "br0"),
            route("br0"),
        ),
    ),
    HealthyNode(
        name="GPUs that throttle as their owner wishes",
        source="NVML: software power cap and application clocks set by nvidia-smi -ac and -pl",
        change=both(
            BOTH_MANAGERS,
            no_lpf,
            says("nvmlDeviceGetCurrentClocksEventReasons * value 4"),
        ),
    ),
    HealthyNode(
        name="a kernel that was told much",
        source="Linux 6.8: what loads and unloads beside a job",
        change=both(
            BOTH_MANAGERS,
            logged(
                "docker0: port 1(veth0) entered blocking state",
                "IPv6: ADDRCONF(NETDEV_CHANGE): veth0: link becomes ready",
                "cgroup: cgroup: disabling cgroup2 socket matching due to net_prio activation",
                "TCP: request_sock_TCP: Possible SYN flooding on port 0.0.0.0:29500. Sending "
                "cookies.",
                "nf_conntrack: nf_conntrack: table full, dropping packet",
                "python3[4242]: segfault at 0 ip 000055d4c0de sp 00007ffd error 4 in "
                "libcuda.so[7f0+1]",
                "nvidia-uvm: Unregistered UVM test API",
                "usb 1-1: reset high-speed USB device number 2 using xhci_hcd",
            ),
        ),
    ),
]
