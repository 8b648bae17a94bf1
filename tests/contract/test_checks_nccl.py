"""Health checks of what NCCL needs of the node, and of the libraries that the job loads."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import Case, both, each_of, garbled, looks, lost, nothing, run, wrote

from healthchecks.checks.gdr import acs_control
from healthchecks.checks.interfaces import chosen_interfaces
from healthchecks.frame.check import Status, Unknown
from tests.hardware.tree import GPU_BDFS, GPUS, Tree

OK, WARN, FAIL, UNKNOWN, SKIP = (
    Status.OK,
    Status.WARN,
    Status.FAIL,
    Status.UNKNOWN,
    Status.SKIP,
)
PCI = "sys/bus/pci/devices"


def no_gpus(tree: Tree) -> None:
    for bus in GPUS:
        tree.remove(f"{PCI}/0000:{bus}:00.0")


def no_nics(tree: Tree) -> None:
    tree.remove("sys/class/infiniband")
    for name in sorted(p.name for p in tree.path(PCI).iterdir()):
        if tree.read(f"{PCI}/{name}/vendor") == "0x15b3":
            tree.remove(f"{PCI}/{name}")


NEITHER = both(no_nics, no_gpus)


def without(module: str):
    """Not loaded, and not built in."""

    def change(tree: Tree) -> None:
        rows = tree.read("proc/modules").splitlines()
        tree.write("proc/modules", "\n".join(r for r in rows if r.split()[0] != module))
        if tree.path(f"sys/module/{module}").exists():
            tree.remove(f"sys/module/{module}")

    return change


def limits(memlock="unlimited", nofile=1048576, nproc=127000, stack=8388608) -> str:
    rows = {
        "Max locked memory": (memlock, memlock, "bytes"),
        "Max open files": (1024, nofile, "files"),
        "Max processes": (nproc, nproc, "processes"),
        "Max stack size": (stack, "unlimited", "bytes"),
    }
    head = f"{'Limit':25} {'Soft Limit':20} {'Hard Limit':20} Units"
    return "\n".join([head, *(f"{n:25} {s:<20} {h:<20} {u}" for n, (s, h, u) in rows.items())])


def of_slurmd(**given):
    return both(
        wrote("run/slurmd.pid", "812"),
        wrote("proc/812/comm", "slurmd"),
        wrote("proc/812/limits", limits(**given)),
    )


STEP = {"SLURM_JOB_ID": "77"}

DEVICES = [
    Case(
        check="nccl.devices",
        name="healthy",
        status=OK,
        seen="5 modules and 24 device files",
    ),
    Case(
        check="nccl.devices",
        name="a module",
        change=without("ib_uverbs"),
        status=FAIL,
        seen="the kernel module ib_uverbs is not loaded",
    ),
    Case(
        check="nccl.devices",
        name="a module that the site asks for",
        options={"modules": ["gdrdrv"]},
        status=FAIL,
        seen="gdrdrv is not loaded",
    ),
    Case(
        check="nccl.devices",
        name="a GPU's file",
        change=lost("dev/nvidia5"),
        status=FAIL,
        seen="/dev/nvidia5 is not there",
    ),
    Case(
        check="nccl.devices",
        name="a verbs file",
        change=lost("dev/infiniband/uverbs3"),
        status=FAIL,
        seen="/dev/infiniband/uverbs3 is not there",
    ),
    Case(
        check="nccl.devices",
        name="no verbs device",
        change=lost("sys/class/infiniband_verbs/uverbs3"),
        status=FAIL,
        seen="mlx5_3: no verbs device belongs to it",
    ),
    Case(
        check="nccl.devices",
        name="a GPU that the driver does not know",
        change=lost(f"proc/driver/nvidia/gpus/{GPU_BDFS[6]}/information"),
        status=UNKNOWN,
        seen="gpu6: /proc/driver/nvidia does not know 0000:c1:00.0",
    ),
    Case(
        check="nccl.devices",
        name="modules can't be read",
        change=garbled("proc/modules"),
        status=UNKNOWN,
        seen="proc/modules",
    ),
    Case(
        check="nccl.devices",
        name="GPUs only",
        change=both(no_nics, without("ib_core")),
        status=OK,
        seen="2 modules and 10 device files",
    ),
    Case(check="nccl.devices", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]

LIMITS = [
    Case(
        check="nccl.limits", name="healthy", status=OK, seen="this process may have enough memory"
    ),
    Case(
        check="nccl.limits",
        name="locked memory of slurmd is for slurm.memlock to judge",
        change=of_slurmd(memlock=67108864),
        status=OK,
        seen="slurmd may have enough files",
    ),
    Case(
        check="nccl.limits",
        name="of a step",
        change=both(of_slurmd(), wrote("proc/self/limits", limits(memlock=8388608))),
        env=STEP,
        status=FAIL,
        seen="a step of job 77 may lock 8 MiB of memory",
    ),
    Case(
        check="nccl.limits",
        name="of a shell whose slurmd is well",
        change=both(of_slurmd(), wrote("proc/self/limits", limits(memlock=8388608))),
        status=OK,
        seen="slurmd may have enough files",
    ),
    Case(
        check="nccl.limits",
        name="of a shell",
        change=wrote("proc/self/limits", limits(memlock=8388608)),
        status=WARN,
        seen="this process may lock 8 MiB",
    ),
    Case(
        check="nccl.limits",
        name="without RDMA",
        change=both(no_nics, of_slurmd(memlock=8388608)),
        status=OK,
    ),
    Case(
        check="nccl.limits",
        name="few files and processes",
        change=of_slurmd(nofile=4096, nproc=1024),
        status=WARN,
        seen="slurmd: max open files 4096 at most; slurmd: max processes 1024 at most",
    ),
    Case(
        check="nccl.limits",
        name="it does not say",
        change=wrote("proc/self/limits", "Limit"),
        status=UNKNOWN,
        seen="does not tell the locked memory of this process",
    ),
    Case(
        check="nccl.limits", name="unreadable", change=garbled("proc/self/limits"), status=UNKNOWN
    ),
    Case(check="nccl.limits", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]


def left(tree: Tree) -> None:
    for n in range(3):
        tree.write(f"dev/shm/nccl-Ab{n}", "x" * 700_000)


SHM = [
    Case(check="nccl.shm", name="healthy", options={"least_gib": 0}, status=OK, seen="GiB of"),
    Case(
        check="nccl.shm",
        name="full",
        options={"least_gib": 1e9},
        status=FAIL,
        seen="are free",
    ),
    Case(
        check="nccl.shm",
        name="not mounted",
        change=wrote("proc/self/mountinfo", "29 1 252:1 / / rw - ext4 /dev/vda1 rw"),
        status=SKIP,
        seen="nothing is mounted on /dev/shm; mem.size",
    ),
    Case(
        check="nccl.shm",
        name="left behind",
        change=left,
        options={"least_gib": 0, "leftover_mib": 1},
        status=WARN,
        seen="3 files of earlier jobs hold 2 MiB, as nccl-Ab0",
    ),
    Case(
        check="nccl.shm",
        name="a little left behind",
        change=left,
        options={"least_gib": 0},
        status=OK,
    ),
    Case(check="nccl.shm", name="unreadable", change=garbled("dev/shm"), status=UNKNOWN),
    Case(check="nccl.shm", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]

ROUTE = "Iface\tDestination\tGateway\neth0\t0000000A\t00000000\neth0\t00000000\t0100000A"


def asked(spec: str) -> dict[str, str]:
    return {"socket_ifname": spec}


ADDRESSED = wrote("proc/net/route", ROUTE)
INTERFACES = [
    Case(
        check="nccl.interfaces",
        name="healthy",
        change=ADDRESSED,
        options=asked("=eth0"),
        status=OK,
        seen="eth0",
    ),
    Case(
        check="nccl.interfaces",
        name="another name",
        change=ADDRESSED,
        options=asked("=bond0"),
        status=FAIL,
        seen="NCCL_SOCKET_IFNAME==bond0 fits none of",
    ),
    Case(
        check="nccl.interfaces",
        name="down",
        change=both(ADDRESSED, wrote("sys/class/net/eth0/operstate", "down")),
        options=asked("eth"),
        status=FAIL,
        seen="eth0: is down",
    ),
    Case(
        check="nccl.interfaces",
        name="no address",
        change=wrote("proc/net/route", ROUTE.partition("\n")[0]),
        options=asked("eth0"),
        status=FAIL,
        seen="eth0: has no address",
    ),
    Case(
        check="nccl.interfaces",
        name="an address of the link only",
        change=both(
            wrote("proc/net/route", ROUTE.partition("\n")[0]),
            wrote("proc/net/if_inet6", "fe800000000000000000000000000001 02 40 20 80     eth0"),
        ),
        options=asked("eth0"),
        status=FAIL,
        seen="eth0: has no address",
    ),
    Case(
        check="nccl.interfaces",
        name="an address of IPv6",
        change=both(
            wrote("proc/net/route", ROUTE.partition("\n")[0]),
            wrote("proc/net/if_inet6", "fd000000000000000000000000000001 02 40 00 80     eth0"),
        ),
        options=asked("eth0"),
        status=OK,
    ),
    Case(
        check="nccl.interfaces",
        name="no routes",
        change=garbled("proc/net/route"),
        options=asked("eth0"),
        status=UNKNOWN,
        seen="proc/net/route",
    ),
    Case(
        check="nccl.interfaces",
        name="no interfaces",
        change=lost("sys/class/net"),
        options=asked("eth0"),
        status=UNKNOWN,
        seen="/sys/class/net shows no interface",
    ),
    Case(check="nccl.interfaces", name="not configured", status=SKIP, seen="NCCL_SOCKET_IFNAME"),
]


def hosts(text: str):
    return wrote("etc/hosts", f"127.0.0.1 localhost\n{text}")


NAME = [
    Case(
        check="host.name",
        name="healthy",
        change=hosts("10.0.0.17 node-017.cluster node-017  # by DHCP"),
        status=OK,
        seen="node-017: 10.0.0.17",
    ),
    Case(
        check="host.name",
        name="as Debian's installer leaves it",
        change=hosts("127.0.1.1 node-017"),
        status=WARN,
        seen="node-017 leads to 127.0.1.1",
    ),
    Case(
        check="host.name",
        name="unknown",
        change=hosts("10.0.0.18 node-018"),
        status=WARN,
        seen="node-017 has no address",
    ),
    Case(check="host.name", name="unreadable", change=garbled("etc/hosts"), status=UNKNOWN),
    Case(check="host.name", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]

CONF = [
    Case(check="nccl.conf", name="none", status=OK, seen="no /etc/nccl.conf"),
    Case(
        check="nccl.conf",
        name="some",
        change=wrote("etc/nccl.conf", "# site\nNCCL_IB_TIMEOUT=22\n\nNCCL_DEBUG=WARN"),
        status=OK,
        seen="2 variables",
    ),
    Case(check="nccl.conf", name="bad", status=FAIL, none="only other nodes' can show it"),
    Case(check="nccl.conf", name="unreadable", change=garbled("etc/nccl.conf"), status=UNKNOWN),
    Case(check="nccl.conf", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]


def driver(kind: str):
    return wrote(
        "proc/driver/nvidia/version", f"NVRM version: NVIDIA UNIX {kind}  580.95.05  Release Build"
    )


CLOSED = driver("x86_64 Kernel Module")
OLD = wrote("proc/sys/kernel/osrelease", "5.10.0-30-amd64")

GDR = [
    Case(check="gdr", name="healthy", status=OK, seen="by dma-buf and nvidia_peermem"),
    Case(
        check="gdr",
        name="open driver alone",
        change=without("nvidia_peermem"),
        status=OK,
        seen="by dma-buf",
    ),
    Case(
        check="gdr",
        name="closed driver with peermem",
        change=CLOSED,
        status=OK,
        seen="by nvidia_peermem",
    ),
    Case(
        check="gdr",
        name="closed driver alone",
        change=both(CLOSED, without("nvidia_peermem")),
        status=FAIL,
        seen="neither dma-buf",
    ),
    Case(
        check="gdr",
        name="old kernel",
        change=both(OLD, without("nvidia_peermem")),
        status=FAIL,
        seen="Linux 5.10.0-30-amd64",
    ),
    Case(check="gdr", name="no driver", change=lost("proc/driver/nvidia/version"), status=UNKNOWN),
    Case(
        check="gdr",
        name="odd kernel",
        change=wrote("proc/sys/kernel/osrelease", "next"),
        status=UNKNOWN,
        seen="'next' has no numbers",
    ),
    Case(check="gdr", name="no NIC", change=no_nics, status=SKIP, seen="not both here"),
    Case(check="gdr", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]

MAJORS = "Character devices:\n195 nvidia\n236 nvidia-caps-imex-channels"
IMEX = [
    Case(
        check="nccl.imex",
        name="healthy",
        change=both(
            wrote("proc/devices", MAJORS), wrote("dev/nvidia-caps-imex-channels/channel0", "")
        ),
        options={"wanted": True},
        status=OK,
        seen="1 IMEX channels",
    ),
    Case(
        check="nccl.imex",
        name="no channel on a GB200",
        change=both(
            wrote("proc/devices", MAJORS),
            wrote(f"proc/driver/nvidia/gpus/{GPU_BDFS[0]}/information", "Model: NVIDIA GB200"),
        ),
        status=FAIL,
        seen="no IMEX channel",
    ),
    Case(
        check="nccl.imex",
        name="unreadable",
        options={"wanted": True},
        change=garbled("proc/devices"),
        status=UNKNOWN,
    ),
    Case(check="nccl.imex", name="a B200", status=SKIP, seen="NVLink does not span nodes"),
    Case(check="nccl.imex", name="neither", change=NEITHER, status=SKIP, seen="neither"),
]


def config(control: int | None) -> bytes:
    """4096 bytes: an AER capability at 0x100, and ACS at 0x140."""
    data = bytearray(4096)
    struct.pack_into("<I", data, 0x100, 0x0001 | 1 << 16 | (0 if control is None else 0x140 << 20))
    if control is not None:
        struct.pack_into("<IHH", data, 0x140, 0x000D | 1 << 16, 0x5F, control)
    return bytes(data)


def bare(tree: Tree) -> None:
    """No virtual machine, and a bridge before the first GPU."""
    tree.change("proc/cpuinfo", " hypervisor", "")
    tree.write(f"{PCI}/0000:1a:00.0/class", "0x060400")
    tree.write(f"{PCI}/0000:1a:00.0/vendor", "0x1000")
    tree.write(f"{PCI}/0000:1a:00.0/config", "")
    tree.path(f"{PCI}/0000:1a:00.0/config").write_bytes(config(0))


def acs(control: int | None):
    return lambda tree: tree.path(f"{PCI}/0000:1a:00.0/config").write_bytes(config(control))


ACS = [
    Case(check="pci.acs", name="off", change=bare, status=OK, seen="off at all of 1 bridges"),
    Case(
        check="pci.acs",
        name="on",
        change=both(bare, acs(0x1D)),
        status=WARN,
        seen="ACS is on at 1 of 1 bridges, as 0000:1a:00.0",
    ),
    Case(
        check="pci.acs",
        name="the IOMMU translates",
        change=both(bare, wrote(f"{PCI}/{GPU_BDFS[0]}/iommu_group/type", "DMA-FQ")),
        status=WARN,
        seen="the IOMMU translates for 1 GPUs",
    ),
    Case(
        check="pci.acs",
        name="the IOMMU passes through",
        change=both(bare, wrote(f"{PCI}/{GPU_BDFS[0]}/iommu_group/type", "identity")),
        status=OK,
    ),
    Case(
        check="pci.acs",
        name="not root",
        change=both(
            bare, lambda t: t.path(f"{PCI}/0000:1a:00.0/config").write_bytes(config(0)[:64])
        ),
        status=UNKNOWN,
        seen="may not read PCI configuration space",
    ),
    Case(check="pci.acs", name="a virtual machine", status=SKIP, seen="a virtual machine"),
    Case(check="pci.acs", name="no GPU", change=no_gpus, status=SKIP, seen="no NVIDIA GPU"),
]

PYTHON = "/envs/titan/bin/python"
SITE = "envs/titan/lib/python3.12/site-packages"
LIBRARY = f"{SITE}/nvidia/nccl/lib/libnccl.so.2"
BUILT: dict[str, bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Libraries that say which NCCL they are."""
    folder = tmp_path_factory.mktemp("nccl")
    sources = {
        "2.28.3": "int ncclGetVersion(int *v) { *v = 22803; return 0; }",
        "other": "int other(void) { return 0; }",
        "mute": "int ncclGetVersion(int *v) { *v = 0; return 3; }",
    }
    for name, source in sources.items():
        into = folder / name
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", into],
            input=source.encode(),
            check=True,
        )
        BUILT[name] = into.read_bytes()
    yield
    BUILT.clear()


def nccl(what: str, env: str = "titan"):
    """An environment with that library. A process loads a path only once: each has its own."""
    site = SITE.replace("titan", env)

    def change(tree: Tree) -> None:
        tree.write(f"{site}/nvidia/cu13/lib/libcudart.so.13", "x")
        tree.write(f"{site}/nvidia/nccl/lib/libnccl.so.2", "")
        place = tree.path(f"{site}/nvidia/nccl/lib/libnccl.so.2")
        place.write_bytes(BUILT.get(what, what.encode()))

    return change


HERE = {"python": PYTHON}
LIBS = [
    Case(
        check="cuda.libs",
        name="healthy",
        change=nccl("2.28.3"),
        options=HERE,
        status=OK,
        seen="NCCL 2.28.3, /envs/titan/lib",
    ),
    Case(
        check="cuda.libs",
        name="as pinned",
        change=nccl("2.28.3"),
        options={"nccl": f"/{LIBRARY}", "version": "2.28.3"},
        status=OK,
    ),
    Case(
        check="cuda.libs",
        name="not as pinned",
        change=nccl("2.28.3"),
        options={**HERE, "version": "2.28.9"},
        status=FAIL,
        seen="NCCL 2.28.3",
    ),
    Case(
        check="cuda.libs",
        name="empty",
        change=nccl(""),
        options=HERE,
        status=FAIL,
        seen="1 of 2 libraries are empty",
    ),
    Case(
        check="cuda.libs",
        name="another library empty",
        change=both(
            nccl("2.28.3"),
            lambda t: t.path(f"{SITE}/nvidia/cu13/lib/libcudart.so.13").write_bytes(b""),
        ),
        options=HERE,
        status=FAIL,
        seen="libcudart.so.13",
    ),
    Case(
        check="cuda.libs",
        name="cut off",
        change=nccl("\x7fELF", "cut"),
        options={"python": "/envs/cut/bin/python"},
        status=FAIL,
        seen="can't be loaded",
    ),
    Case(
        check="cuda.libs",
        name="not NCCL",
        change=nccl("other", "other"),
        options={"python": "/envs/other/bin/python"},
        status=FAIL,
        seen="ncclGetVersion",
    ),
    Case(
        check="cuda.libs",
        name="not there",
        options={"nccl": "/opt/nccl/libnccl.so.2"},
        status=FAIL,
        seen="/opt/nccl/libnccl.so.2 is not there",
    ),
    Case(
        check="cuda.libs",
        name="no environment",
        options=HERE,
        status=FAIL,
        seen="/envs/titan/bin/python has no site-packages",
    ),
    Case(
        check="cuda.libs",
        name="does not say",
        change=nccl("mute", "mute"),
        options={"python": "/envs/mute/bin/python"},
        status=UNKNOWN,
        seen="ncclGetVersion returned 3",
    ),
    Case(
        check="cuda.libs",
        name="torch with its own",
        change=wrote(f"{SITE}/torch/version.py", ""),
        options=HERE,
        status=SKIP,
        seen="no nvidia/nccl in",
    ),
    Case(check="cuda.libs", name="not configured", status=SKIP, seen="no NCCL library"),
]

CASES = [*DEVICES, *LIMITS, *SHM, *INTERFACES, *NAME, *CONF, *GDR, *IMEX, *ACS, *LIBS]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    run(case, tmp_path)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth", []),
        ("=eth1,ib0", ["eth1", "ib0"]),
        ("eth1,ib", ["eth1", "ib0"]),
        ("^eth,docker", ["ib0"]),
        ("^=eth0", ["docker0", "eth1", "ib0"]),
    ],
)
def test_how_interfaces_are_chosen(spec: str, found: list[str]) -> None:
    assert chosen_interfaces(spec, ["docker0", "eth0", "eth1", "ib0", "lo"]) == found


@pytest.mark.parametrize(("data", "control"), [(config(None), 0), (config(0x1D), 0x1D)])
def test_the_acs_register(data: bytes, control: int) -> None:
    assert acs_control(data) == control
    with pytest.raises(Unknown):
        acs_control(data[:64])


def test_capabilities_that_lead_in_circles_end() -> None:
    data = bytearray(4096)
    struct.pack_into("<I", data, 0x100, 0x0001 | 0x100 << 20)
    assert acs_control(bytes(data)) == 0


def test_what_other_nodes_are_compared_with(tmp_path: Path) -> None:
    change = wrote("etc/nccl.conf", "NCCL_B=2\nNCCL_A=1")
    for check, given, fact, value in (
        ("nccl.conf", change, "variables", "NCCL_A=1; NCCL_B=2"),
        ("nccl.conf", nothing, "variables", "none"),
        ("gdr", nothing, "ways", "dma-buf and nvidia_peermem"),
        ("cuda.libs", nccl("2.28.3"), "nccl", "2.28.3"),
    ):
        options = HERE if check == "cuda.libs" else {}
        case = Case(check=check, name="fact", change=given, status=OK, options=options)
        assert looks(case, tmp_path)[-1].facts[fact] == value
