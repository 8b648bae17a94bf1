"""Releases that are known to hang or corrupt, and what newer ones offer."""

from __future__ import annotations

from collections.abc import Iterator

from ncclconf.catalogue import Version, written
from ncclconf.lint import Hit, Severity, Subject, example, rule

# first release that has the fault, first without it, what goes wrong, where it is told
FAULTS: tuple[tuple[Version, Version, str, str], ...] = (
    (
        (2, 28, 3),
        (2, 28, 7),
        "symmetric kernels corrupt data, and NCCL_CROSS_NIC=0 is slow",
        "release notes of 2.28.7",
    ),
    (
        (2, 28, 3),
        (2, 28, 9),
        "CUDA errors of nobody's with torch's static build, and proxies that wait for each other "
        "at scale",
        "release notes of 2.28.9; NVIDIA/nccl pull request 1864",
    ),
    ((2, 15, 1), (2, 16, 2), "wrong results with peer access off", "NVIDIA/nccl#1199"),
)


@rule(
    "release-with-fault",
    Severity.WARNING,
    why="this release of NCCL is known for it",
    fix="take a later one",
    source="release notes and issues of NVIDIA/nccl, named with each",
    wrong=[example({"nccl": (2, 28, 3)}), example({"nccl": (2, 15, 5)})],
    right=[example({"nccl": (2, 28, 9)}), example({"nccl": (2, 27, 7)}), example()],
)
def release_with_fault(s: Subject) -> Iterator[Hit]:
    for first, beyond, what, source in FAULTS:
        if s.between(first, beyond):
            fix = f"{written(beyond)} or later ({source})"
            yield Hit(names=(), seen=f"NCCL {written(s.facts.nccl or ())}: {what}", fix=fix)


@rule(
    "b200-channels",
    Severity.ADVICE,
    why="2.28 takes half the thread blocks of 2.27 on B200",
    fix="compare with NCCL_MIN_CTAS=32 and NCCL_MAX_CTAS=32",
    source="release notes of NCCL 2.28",
    wrong=[example({"nccl": (2, 28, 9), "gpus": "NVIDIA B200"})],
    right=[
        example({"nccl": (2, 28, 9), "gpus": "NVIDIA B200"}, NCCL_MIN_CTAS="32"),
        example({"nccl": (2, 28, 9), "gpus": "NVIDIA H100 80GB HBM3"}),
        example({"nccl": (2, 30, 7), "gpus": "NVIDIA B200"}),
    ],
)
def b200_channels(s: Subject) -> Iterator[Hit]:
    chosen = any("CTAS" in n or "NCHANNELS" in n for n in s.set_names())
    if s.between((2, 28), (2, 29)) and "B200" in (s.facts.gpus or "") and not chosen:
        yield Hit(names=("NCCL_MIN_CTAS",), seen="NCCL 2.28 on B200, NCCL_MIN_CTAS not set")


@rule(
    "ras-polled",
    Severity.ADVICE,
    why="clients that ask RAS again and again have crashed ranks of these releases",
    fix="ask on suspicion only, or take 2.28.3",
    source="NVIDIA/nccl#1669, #1718, #1762, #1996",
    wrong=[example({"nccl": (2, 27, 3)}), example({"nccl": (2, 26, 2)}, NCCL_RAS_ENABLE="1")],
    right=[
        example({"nccl": (2, 28, 3)}),
        example({"nccl": (2, 27, 3)}, NCCL_RAS_ENABLE="0"),
        example({"nccl": (2, 21, 5)}),
    ],
)
def ras_polled(s: Subject) -> Iterator[Hit]:
    if s.between((2, 26, 2), (2, 28)) and s.number("NCCL_RAS_ENABLE") != 0:
        yield Hit(names=("NCCL_RAS_ENABLE",), seen=f"RAS of {written(s.facts.nccl or ())}")


@rule(
    "port-failover",
    Severity.ADVICE,
    why="a NIC's second port takes over when the first dies, and the job goes on, slower; off by "
    "default. A failed-over port is degraded, not well",
    fix="weigh NCCL_IB_RESILIENCY_PORT_FAILOVER=1 where NICs have two ports",
    source="NCCL user guide (2.29.7); coming back (2.30.3) has an open fault, NVIDIA/nccl#2157",
    wrong=[example({"nccl": (2, 30, 7), "nodes": 8, "hcas": ()}, NCCL_IB_MERGE_NICS="1")],
    right=[
        example({"nccl": (2, 30, 7)}, NCCL_IB_RESILIENCY_PORT_FAILOVER="1"),
        example({"nccl": (2, 28, 3)}, NCCL_IB_MERGE_NICS="1"),
        example({"nccl": (2, 30, 7)}),
    ],
)
def port_failover(s: Subject) -> Iterator[Hit]:
    asked = s.setting("NCCL_IB_RESILIENCY_PORT_FAILOVER") is not None
    if s.since((2, 29, 7)) and s.number("NCCL_IB_MERGE_NICS") == 1 and not asked:
        seen = "NICs of two ports, and no NCCL_IB_RESILIENCY_PORT_FAILOVER"
        yield Hit(names=("NCCL_IB_MERGE_NICS",), seen=seen)


@rule(
    "port-recovery",
    Severity.WARNING,
    why="a port that comes back may end the job instead: an open fault",
    fix="NCCL_IB_RESILIENCY_PORT_RECOVERY=0 until it is fixed",
    source="NVIDIA/nccl#2157",
    wrong=[example({"nccl": (2, 30, 7)}, NCCL_IB_RESILIENCY_PORT_RECOVERY="1")],
    right=[example({"nccl": (2, 30, 7)}, NCCL_IB_RESILIENCY_PORT_RECOVERY="0")],
)
def port_recovery(s: Subject) -> Iterator[Hit]:
    name = "NCCL_IB_RESILIENCY_PORT_RECOVERY"
    if s.number(name) == 1:
        yield Hit(names=(name,), seen=f"{name}=1")


@rule(
    "ras-address-shared",
    Severity.ADVICE,
    why="two jobs on a node want one port: the second has no RAS",
    fix="NCCL_RAS_ADDR=localhost:PORT, another one for each job",
    source="NCCL user guide, NCCL_RAS_ADDR",
    wrong=[example(NCCL_RAS_ADDR="localhost:28028")],
    right=[example(NCCL_RAS_ADDR="localhost:28111"), example()],
)
def ras_address_shared(s: Subject) -> Iterator[Hit]:
    if (s.text("NCCL_RAS_ADDR") or "").endswith(":28028"):
        yield Hit(names=("NCCL_RAS_ADDR",), seen="NCCL_RAS_ADDR is the default port")


@rule(
    "expandable-segments",
    Severity.WARNING,
    why="torch's expandable segments are several pieces of memory, and NCCL registers such "
    "buffers since 2.29 only",
    fix="NCCL 2.29, or no registration (NCCL_LOCAL_REGISTER=0, NCCL_GRAPH_REGISTER=0)",
    source="NCCL user guide, user buffer registration; NCCL_MULTI_SEGMENT_REGISTER",
    wrong=[
        example(
            {"nccl": (2, 28, 3)},
            PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True",
            TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK="1",
        )
    ],
    right=[
        example({"nccl": (2, 28, 3)}, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True"),
        example(
            {"nccl": (2, 29, 7)},
            PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True",
            TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK="1",
        ),
    ],
)
def expandable_segments(s: Subject) -> Iterator[Hit]:
    segments = "expandable_segments:true" in (s.text("PYTORCH_CUDA_ALLOC_CONF") or "").lower()
    hooked = s.text("TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK") in ("1", "true")
    if segments and hooked and s.before((2, 29)):
        yield Hit(names=("PYTORCH_CUDA_ALLOC_CONF",), seen="expandable segments are registered")
