"""Health checks of CPUs, NUMA nodes and binding."""

from __future__ import annotations

from pathlib import Path

import pytest
from checks import Case, both, each_of, garbled, looks, lost, nothing, run, wrote

from healthchecks.frame.check import Status, Unknown
from healthchecks.sources import topology
from tests.hardware.tree import GPU_BDFS, GPUS, Tree

OK, WARN, FAIL, UNKNOWN, SKIP = (
    Status.OK,
    Status.WARN,
    Status.FAIL,
    Status.UNKNOWN,
    Status.SKIP,
)
CPU, NODE, PCI = topology.CPU, topology.NODE, topology.PCI


def siblings(*pairs: tuple[int, int]):
    def change(tree: Tree) -> None:
        for a, b in pairs:
            for cpu in (a, b):
                tree.write(f"{CPU}/cpu{cpu}/topology/thread_siblings_list", f"{a},{b}")

    return change


def sockets(of):
    """The socket of each CPU."""

    def change(tree: Tree) -> None:
        for cpu in range(120):
            tree.write(f"{CPU}/cpu{cpu}/topology/physical_package_id", str(of(cpu)))

    return change


def one_numa_node(tree: Tree) -> None:
    tree.write(f"{NODE}/online", "0")
    tree.write(f"{NODE}/node0/cpulist", "0-119")
    tree.remove(f"{NODE}/node1")


def no_gpus(tree: Tree) -> None:
    for bus in GPUS:
        tree.remove(f"{PCI}/0000:{bus}:00.0")


def no_nics(tree: Tree) -> None:
    tree.remove("sys/class/infiniband")
    for name in sorted(p.name for p in tree.path(PCI).iterdir()):
        if tree.read(f"{PCI}/{name}/vendor") == "0x15b3":
            tree.remove(f"{PCI}/{name}")


def numa(bdf: str, node: int):
    return wrote(f"{PCI}/{bdf}/numa_node", str(node))


def all_numa(node: int):
    def change(tree: Tree) -> None:
        for place in sorted(tree.path(PCI).iterdir()):
            tree.write(f"{PCI}/{place.name}/numa_node", str(node))

    return change


LAYOUT = [
    Case(
        check="cpu.layout",
        name="healthy",
        status=OK,
        seen="120 CPUs, 2 sockets, 2 NUMA nodes, 2 threads a core",
    ),
    Case(
        check="cpu.layout",
        name="siblings across NUMA nodes",
        change=siblings((0, 60), (1, 61)),
        status=FAIL,
        seen="2 cores have threads on several NUMA nodes, as CPUs 0,60",
    ),
    Case(
        check="cpu.layout",
        name="siblings across sockets of one node",
        change=both(one_numa_node, siblings((0, 60))),
        status=FAIL,
        seen="1 cores have threads on several sockets",
    ),
    Case(
        check="cpu.layout",
        name="siblings that disagree",
        change=wrote(f"{CPU}/cpu4/topology/thread_siblings_list", "4,8"),
        status=FAIL,
        seen="CPUs 4-5 disagree",
    ),
    Case(
        check="cpu.layout",
        name="a socket for each CPU",
        change=sockets(lambda cpu: cpu),
        status=FAIL,
        seen="120 sockets for 120 CPUs",
    ),
    Case(
        check="cpu.layout",
        name="one NUMA node for two sockets",
        change=one_numa_node,
        status=WARN,
        seen="NUMA node 0 holds CPUs of several sockets",
    ),
    Case(
        check="cpu.layout",
        name="offline",
        change=both(
            wrote(f"{CPU}/online", "0-117"),
            wrote(f"{NODE}/node1/cpulist", "60-117"),
        ),
        status=FAIL,
        seen="2 CPUs are offline: 118-119",
    ),
    Case(
        check="cpu.layout",
        name="one thread a core because somebody said so",
        change=both(
            wrote(f"{CPU}/online", ",".join(str(c) for c in range(0, 120, 2))),
            wrote(f"{CPU}/smt/control", "off"),
            lambda tree: [
                tree.write(f"{CPU}/cpu{c}/topology/thread_siblings_list", str(c))
                for c in range(0, 120, 2)
            ],
        ),
        status=OK,
        seen="60 CPUs, 2 sockets, 2 NUMA nodes, 1 threads a core",
    ),
    Case(
        check="cpu.layout",
        name="uneven",
        change=both(
            wrote(f"{NODE}/node0/cpulist", "0-61"), wrote(f"{NODE}/node1/cpulist", "62-119")
        ),
        status=WARN,
        seen="NUMA nodes differ in CPUs (node 0: 62, node 1: 58)",
    ),
    Case(
        check="cpu.layout",
        name="on no node",
        change=wrote(f"{NODE}/node1/cpulist", "60-118"),
        status=FAIL,
        seen="CPUs 119 are on no NUMA node",
    ),
    Case(
        check="cpu.layout",
        name="not as pinned",
        options={"cpus": 128, "sockets": 2},
        status=FAIL,
        seen="120 CPUs",
    ),
    Case(
        check="cpu.layout",
        name="unreadable",
        change=garbled(f"{CPU}/cpu7/topology/thread_siblings_list"),
        status=UNKNOWN,
        seen="cpu7/topology",
    ),
    Case(
        check="cpu.layout",
        name="no list",
        change=wrote(f"{CPU}/online", "all"),
        status=UNKNOWN,
        seen="'all' is no list of CPUs",
    ),
    Case(
        check="cpu.layout",
        name="no NUMA in the kernel",
        change=lost(f"{NODE}/online"),
        status=UNKNOWN,
    ),
    Case(check="cpu.layout", name="no CPU", status=SKIP, none="every node has CPUs"),
]

FILE = "etc/nccl-topo.xml"


def topo(*bdfs: str) -> str:
    rows = "".join(f'<pci busid="{b}" class="0x030200"/>' for b in bdfs)
    return f'<system version="1"><cpu numaid="0">{rows}</cpu></system>'


DEVICES = [
    Case(
        check="numa.devices",
        name="healthy",
        status=OK,
        seen="4 GPUs and 4 fabric NICs on NUMA node 0, 4 GPUs and 4 fabric NICs on NUMA node 1",
    ),
    Case(
        check="numa.devices",
        name="GPU nowhere",
        change=numa(GPU_BDFS[2], -1),
        status=FAIL,
        seen="gpu2: 0000:45:00.0 has no NUMA node (-1)",
    ),
    Case(
        check="numa.devices",
        name="NIC nowhere",
        change=numa("0000:9a:00.0", -1),
        status=FAIL,
        seen="mlx5_4: 0000:9a:00.0 has no NUMA node",
    ),
    Case(
        check="numa.devices",
        name="a node that is not there",
        change=one_numa_node,
        status=FAIL,
        seen="gpu4: 0000:9d:00.0 is on NUMA node 1, and there are only 1",
    ),
    Case(
        check="numa.devices",
        name="a NIC that moved",
        change=numa("0000:9a:00.0", 0),
        status=WARN,
        seen="GPUs by NUMA node 4+4, fabric NICs 5+3",
    ),
    Case(
        check="numa.devices",
        name="nothing shown",
        change=both(one_numa_node, all_numa(-1)),
        status=WARN,
        seen="the host hides the layout",
    ),
    Case(
        check="numa.devices",
        name="the right topology file",
        change=wrote(FILE, topo(*GPU_BDFS, "ffff:ff:01.0")),
        options={"topo_file": f"/{FILE}"},
        status=OK,
    ),
    Case(
        check="numa.devices",
        name="another machine's topology file",
        change=wrote(FILE, topo("0000:0f:00.0", *GPU_BDFS[1:])),
        options={"topo_file": f"/{FILE}"},
        status=FAIL,
        seen="1 PCI addresses are not on this node, as 0000:0f:00.0; "
        "/etc/nccl-topo.xml: 1 PCI addresses are GPUs that it lacks, as 0000:1b:00.0",
    ),
    Case(
        check="numa.devices",
        name="NVIDIA's own topology file of another machine",
        change=wrote("var/run/nvidia-topologyd/virtualTopology.xml", topo(*GPU_BDFS[1:])),
        status=FAIL,
        seen="1 PCI addresses are GPUs that it lacks",
    ),
    Case(
        check="numa.devices",
        name="no topology file",
        options={"topo_file": f"/{FILE}"},
        status=FAIL,
        seen="NCCL_TOPO_FILE /etc/nccl-topo.xml is not there",
    ),
    Case(
        check="numa.devices",
        name="an empty topology file",
        change=wrote(FILE, "<system/>"),
        options={"topo_file": f"/{FILE}"},
        status=UNKNOWN,
        seen="names no PCI device",
    ),
    Case(
        check="numa.devices",
        name="unreadable",
        change=garbled(f"{PCI}/{GPU_BDFS[0]}/numa_node"),
        status=UNKNOWN,
    ),
    Case(
        check="numa.devices",
        name="no driver for the NICs",
        change=lost("sys/class/infiniband"),
        status=UNKNOWN,
        seen="NICs: 14 ConnectX functions on PCI",
    ),
    Case(
        check="numa.devices",
        name="no NICs",
        change=no_nics,
        status=OK,
        seen="4 GPUs and 0 fabric NICs",
    ),
    Case(check="numa.devices", name="no GPU", change=no_gpus, status=SKIP, seen="no accelerator"),
]


def bound(cpus: str = "0-119", mems: str = "0-1"):
    return wrote(
        "proc/self/status", f"Name:\tsuperv\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}"
    )


def cgroup(name: str, text: str):
    at = "system.slice/slurmstepd.scope/job_7"
    return both(wrote("proc/self/cgroup", f"0::/{at}"), wrote(f"sys/fs/cgroup/{at}/{name}", text))


def cpuset(cpus: str):
    return both(bound(cpus), cgroup("cpuset.cpus.effective", cpus))


BINDING = [
    Case(
        check="cpu.binding",
        name="free",
        change=bound(),
        status=OK,
        seen="all 120 CPUs may be used, 15 for a rank",
    ),
    Case(
        check="cpu.binding",
        name="one core",
        change=cpuset("0-1"),
        status=FAIL,
        seen="gpu4: none of its CPUs (60-119) may be used",
    ),
    Case(
        check="cpu.binding",
        name="too few for eight ranks",
        change=bound("0-9,60-69"),
        status=FAIL,
        seen="a rank gets 2.5 CPUs, by the affinity that it was started with",
    ),
    Case(
        check="cpu.binding",
        name="half of the CPUs by the cgroup",
        change=cpuset("0-29,60-89"),
        status=WARN,
        seen="60 of 120 CPUs may be used (0-29,60-89), by the cgroup /sys/fs/cgroup/system.slice",
    ),
    Case(
        check="cpu.binding",
        name="more ranks than GPUs",
        change=bound(),
        options={"ranks_per_node": 64},
        status=WARN,
        seen="a rank gets 1.875 CPUs: the node has no more",
    ),
    Case(
        check="cpu.binding",
        name="more ranks than CPUs on a node without GPUs",
        change=both(bound(), no_gpus),
        options={"ranks_per_node": 64},
        status=WARN,
        seen="a rank gets 1.875 CPUs: the node has no more",
    ),
    Case(
        check="cpu.binding",
        name="bound on a node without GPUs",
        change=both(bound("0-9"), no_gpus),
        options={"ranks_per_node": 8},
        status=WARN,
        seen="a rank gets 1.25 CPUs, by the affinity",
    ),
    Case(
        check="cpu.binding",
        name="memory of one node",
        change=bound(mems="0"),
        status=FAIL,
        seen="memory of NUMA node 1 may not be used",
    ),
    Case(
        check="cpu.binding",
        name="a quota",
        change=both(bound(), cgroup("cpu.max", "800000 100000")),
        status=WARN,
        seen="the cgroup gives the time of 8 CPUs, of 120",
    ),
    Case(
        check="cpu.binding",
        name="no quota",
        change=both(bound(), cgroup("cpu.max", "max 100000")),
        status=OK,
    ),
    Case(
        check="cpu.binding",
        name="ranks without GPUs",
        change=both(bound(), no_gpus),
        options={"ranks_per_node": 8},
        status=OK,
        seen="15 for a rank",
    ),
    Case(
        check="cpu.binding",
        name="neither ranks nor GPUs",
        change=both(bound(), no_gpus),
        status=OK,
        seen="all 120 CPUs may be used",
    ),
    Case(
        check="cpu.binding",
        name="it does not say",
        change=wrote("proc/self/status", "Name:\tsuperv"),
        status=UNKNOWN,
        seen="does not say which CPUs",
    ),
    Case(
        check="cpu.binding",
        name="unreadable",
        change=both(bound(), garbled(f"{PCI}/{GPU_BDFS[0]}/local_cpulist")),
        status=UNKNOWN,
    ),
    Case(check="cpu.binding", name="no CPUs", status=SKIP, none="every process runs somewhere"),
]

CASES = [*LAYOUT, *DEVICES, *BINDING]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def fact(check: str, name: str, change, tmp_path: Path) -> str:
    case = Case(check=check, name="fact", change=change, status=OK)
    return str(looks(case, tmp_path)[-1].facts[name])


def test_equal_machines_tell_the_same_and_others_do_not(tmp_path: Path) -> None:
    """What no rule calls wrong shows beside the other nodes."""
    before = fact("cpu.layout", "layout", nothing, tmp_path)
    assert before.startswith("120 CPUs, 2 sockets, 2 NUMA nodes, 2 threads a core; arranged as ")
    assert fact("cpu.layout", "layout", nothing, tmp_path) == before
    other = siblings(*((c, c + 30) for c in (*range(30), *range(60, 90))))
    assert fact("cpu.layout", "layout", other, tmp_path) != before
    swapped = both(numa(GPU_BDFS[0], 1), numa(GPU_BDFS[4], 0))
    place = "devices by NUMA node"
    assert fact("numa.devices", place, nothing, tmp_path).startswith("0: 18:00.0 1b:00.0 29:00.0")
    assert fact("numa.devices", place, swapped, tmp_path) != fact(
        "numa.devices", place, nothing, tmp_path
    )


@pytest.mark.parametrize("text", ["", "0", "0-3", "0-3,8", "1,3,5", "0-119"])
def test_lists_of_cpus(text: str) -> None:
    assert topology.cpu_list_text(topology.parse_cpu_list(text)) == text


@pytest.mark.parametrize("text", ["a", "1-", "3-x", "0-3;5"])
def test_no_lists_of_cpus(text: str) -> None:
    with pytest.raises(Unknown):
        topology.parse_cpu_list(text)
