"""What the machine must give."""

from __future__ import annotations

from collections.abc import Iterator

from ncclconf.facts import Hca
from ncclconf.lint import Hit, Severity, Subject, example, rule

FABRIC = tuple(Hca(device=f"mlx5_{n}") for n in range(8))
FILES = ("NCCL_TOPO_FILE", "NCCL_GRAPH_FILE", "NCCL_TUNER_CONFIG_FILE", "NCCL_CONF_FILE")
OPEN_FILES = 131_072  # as NVIDIA's DGX OS has it
SHM_GIB = 8.0  # nccl.shm's own limit


@rule(
    "no-gpudirect",
    Severity.WARNING,
    why="without nvidia_peermem or dma-buf every byte goes through host memory, ten times slower",
    fix="modprobe nvidia_peermem, or the open driver with NCCL_DMABUF_ENABLE=1 (check gdr)",
    source="NVIDIA/nccl#1676, #1537",
    wrong=[
        example({"hcas": FABRIC, "gpus": "NVIDIA B200", "gpudirect": False, "nodes": 2}),
    ],
    right=[
        example({"hcas": FABRIC, "gpus": "NVIDIA B200", "gpudirect": True, "nodes": 2}),
        example({"hcas": (), "gpus": "NVIDIA B200", "gpudirect": False, "nodes": 2}),
        example({"hcas": FABRIC, "gpus": "NVIDIA B200"}),
    ],
)
def no_gpudirect(s: Subject) -> Iterator[Hit]:
    if s.facts.gpudirect is False and s.facts.gpus and s.facts.fabric():
        yield Hit(names=(), seen="neither nvidia_peermem nor dma-buf")


@rule(
    "acs-on",
    Severity.WARNING,
    why="traffic between GPUs and NICs goes up to the processor, or is wrong",
    fix="switch ACS and the IOMMU's translation off (check pci.acs)",
    source="NCCL user guide, Troubleshooting; NVIDIA/nccl#606, #2079",
    wrong=[example({"acs": True, "virtual": False})],
    right=[example({"acs": False}), example({"acs": True, "virtual": True})],
)
def acs_on(s: Subject) -> Iterator[Hit]:
    if s.facts.acs and not s.facts.virtual:
        yield Hit(names=(), seen="PCI bridges redirect traffic between devices")


@rule(
    "file-missing",
    Severity.ERROR,
    why="a topology or settings file that is not there is passed over, with an INFO line at most",
    fix="put it on every node, or remove the variable",
    source="NVIDIA/nccl src/graph/xml.cc",
    wrong=[example({"files": frozenset()}, NCCL_TOPO_FILE="/etc/topo.xml")],
    right=[
        example({"files": frozenset(["/etc/topo.xml"])}, NCCL_TOPO_FILE="/etc/topo.xml"),
        example(NCCL_TOPO_FILE="/etc/topo.xml"),
    ],
)
def file_missing(s: Subject) -> Iterator[Hit]:
    for name in FILES:
        text = s.text(name)
        if text and s.facts.files is not None and text not in s.facts.files:
            yield Hit(names=(name,), seen=f"{name}={text} is not there")


@rule(
    "topology-on-bare-metal",
    Severity.WARNING,
    why="a machine that shows its PCI tree needs no file, and a wrong one makes paths slow",
    fix="remove it; a virtual machine that hides the tree needs one",
    source="NCCL user guide, NCCL_TOPO_FILE",
    wrong=[example({"virtual": False}, NCCL_TOPO_FILE="/etc/topo.xml")],
    right=[
        example({"virtual": True}, NCCL_TOPO_FILE="/etc/topo.xml"),
        example({"virtual": False}),
    ],
)
def topology_on_bare_metal(s: Subject) -> Iterator[Hit]:
    if s.facts.virtual is False and s.setting("NCCL_TOPO_FILE"):
        yield Hit(names=("NCCL_TOPO_FILE",), seen="NCCL_TOPO_FILE on bare metal")


@rule(
    "graph-file",
    Severity.WARNING,
    why="written for another machine or release it ends in errors or slow rings",
    fix="remove it, unless it was made by this NCCL on these nodes",
    source="NCCL user guide, NCCL_GRAPH_FILE",
    wrong=[example(NCCL_GRAPH_FILE="/etc/graph.xml")],
    right=[example(NCCL_GRAPH_DUMP_FILE="/local/graph.xml")],
)
def graph_file(s: Subject) -> Iterator[Hit]:
    if s.setting("NCCL_GRAPH_FILE"):
        yield Hit(names=("NCCL_GRAPH_FILE",), seen=f"NCCL_GRAPH_FILE={s.text('NCCL_GRAPH_FILE')}")


@rule(
    "locked-memory",
    Severity.ERROR,
    why="RDMA registers memory, which a limit on locked memory refuses (ibv_reg_mr failed)",
    fix="unlimited memlock in slurmd's unit (check slurm.memlock)",
    source="NCCL user guide, Troubleshooting",
    wrong=[example({"memlock_unlimited": False, "hcas": FABRIC})],
    right=[
        example({"memlock_unlimited": True, "hcas": FABRIC}),
        example({"memlock_unlimited": False, "hcas": ()}),
    ],
)
def locked_memory(s: Subject) -> Iterator[Hit]:
    if s.facts.memlock_unlimited is False and s.facts.fabric():
        yield Hit(names=(), seen="locked memory is limited")


@rule(
    "open-files",
    Severity.WARNING,
    why="every peer and helper takes descriptors; large jobs run out",
    fix=f"a limit of {OPEN_FILES} open files (check nccl.limits)",
    source="NVIDIA DGX OS; NCCL user guide, Troubleshooting",
    wrong=[example({"open_files": 1024, "nodes": 60})],
    right=[example({"open_files": 131072, "nodes": 60}), example({"open_files": 1024, "nodes": 1})],
)
def open_files(s: Subject) -> Iterator[Hit]:
    files = s.facts.open_files
    if files is not None and files < OPEN_FILES and (s.facts.nodes or 1) > 1:
        yield Hit(names=(), seen=f"{files} open files at most")


@rule(
    "small-shm",
    Severity.ERROR,
    why="ranks of a node exchange through /dev/shm: failed to extend /dev/shm/nccl-…",
    fix="a larger /dev/shm; in a container --shm-size or --ipc=host (check nccl.shm)",
    source="NCCL user guide, Troubleshooting (shared memory)",
    wrong=[example({"shm_gib": 0.0625})],
    right=[example({"shm_gib": 64.0}), example({"shm_gib": 0.0625}, NCCL_SHM_DISABLE="1")],
)
def small_shm(s: Subject) -> Iterator[Hit]:
    size = s.facts.shm_gib
    if size is not None and size < SHM_GIB and s.number("NCCL_SHM_DISABLE") != 1:
        severity = Severity.WARNING if size >= 1 else None
        yield Hit(names=(), seen=f"{size:.2g} GiB of shared memory", severity=severity)


@rule(
    "relaxed-ordering-in-vm",
    Severity.ADVICE,
    why="in a virtual machine the NICs' writes are slow without PCIe relaxed ordering",
    fix="NCCL_IB_PCI_RELAXED_ORDERING=1 where the host allows it; measure",
    source="NCCL user guide, NCCL_IB_PCI_RELAXED_ORDERING",
    wrong=[example({"virtual": True, "hcas": FABRIC}, NCCL_IB_PCI_RELAXED_ORDERING="0")],
    right=[example({"virtual": True, "hcas": FABRIC}), example(NCCL_IB_PCI_RELAXED_ORDERING="0")],
)
def relaxed_ordering_in_vm(s: Subject) -> Iterator[Hit]:
    name = "NCCL_IB_PCI_RELAXED_ORDERING"
    if s.facts.virtual and s.facts.fabric() and s.number(name) == 0:
        yield Hit(names=(name,), seen=f"{name}=0 in a virtual machine")
