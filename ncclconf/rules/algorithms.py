"""Algorithms, protocols, channels and buffers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclconf.facts import Hca
from ncclconf.lint import Hit, Severity, Subject, example, rule

ALGORITHMS = ("tree", "ring", "collnetdirect", "collnetchain", "collnet", "nvls", "nvlstree", "pat")
PROTOCOLS = ("ll", "ll128", "simple")
BUFFER = 4 * 2**20  # NCCL_BUFFSIZE's default
FABRIC = tuple(Hca(device=f"mlx5_{n}") for n in range(8))


def chosen(text: str) -> list[tuple[str, bool, list[str]]]:
    """A value of NCCL_ALGO or NCCL_PROTO: (function, whether the list excludes, names)."""
    found = []
    for part in text.split(";"):
        function, colon, names = part.rpartition(":")
        excludes = names.startswith("^")
        words = [name.strip().lower() for name in names.lstrip("^").split(",") if name.strip()]
        found.append((function.lower() if colon else "", excludes, words))
    return found


@rule(
    "algorithm-unknown",
    Severity.ERROR,
    why="from 2.24 on an unknown name ends the job; before, it is passed over",
    fix=f"write names of {', '.join(ALGORITHMS)}",
    source="NVIDIA/nccl src/graph/tuning.cc; NVIDIA/nccl#1304",
    wrong=[example(NCCL_ALGO="Rings"), example(NCCL_ALGO="allreduce:tree;broadcast:rung")],
    right=[example(NCCL_ALGO="^NVLS"), example(NCCL_ALGO="allreduce:tree,ring;allgather:pat")],
)
def algorithm_unknown(s: Subject) -> Iterator[Hit]:
    for _, _, names in chosen(s.text("NCCL_ALGO") or ""):
        for name in names:
            if name not in ALGORITHMS:
                yield Hit(names=("NCCL_ALGO",), seen=f"no algorithm {name}")


@rule(
    "protocol-unknown",
    Severity.ERROR,
    why="an unknown name is passed over or ends the job, by release",
    fix="write names of LL, LL128, Simple",
    source="NVIDIA/nccl src/graph/tuning.cc",
    wrong=[example(NCCL_PROTO="LL64")],
    right=[example(NCCL_PROTO="^LL128"), example(NCCL_PROTO="Simple")],
)
def protocol_unknown(s: Subject) -> Iterator[Hit]:
    for _, _, names in chosen(s.text("NCCL_PROTO") or ""):
        for name in names:
            if name not in PROTOCOLS:
                yield Hit(names=("NCCL_PROTO",), seen=f"no protocol {name}")


@rule(
    "no-ring",
    Severity.ERROR,
    why="broadcast and reduce know Ring only; from 2.24 on having no algorithm ends the job",
    fix="exclude by function: NCCL_ALGO=allreduce:tree",
    source="NVIDIA/nccl#317, #1304; src/graph/tuning.cc",
    wrong=[
        example(NCCL_ALGO="Tree"),
        example(NCCL_ALGO="^Ring"),
        example(NCCL_ALGO="broadcast:tree"),
        example({"nccl": (2, 28, 3)}, NCCL_ALGO="NVLS,Tree"),
    ],
    right=[
        example(NCCL_ALGO="Ring,Tree"),
        example(NCCL_ALGO="allreduce:tree"),
        example(NCCL_ALGO="^NVLS"),
    ],
)
def no_ring(s: Subject) -> Iterator[Hit]:
    for function, excludes, names in chosen(s.text("NCCL_ALGO") or ""):
        without = ("ring" in names) == excludes and bool(names)
        if without and function in ("", "broadcast", "reduce"):
            severity = Severity.WARNING if s.before((2, 24)) else None
            what = function or "broadcast and reduce"
            yield Hit(names=("NCCL_ALGO",), seen=f"no Ring for {what}", severity=severity)


@rule(
    "algorithm-fixed",
    Severity.WARNING,
    why="NCCL chooses by size, nodes and hardware; what is fixed is right for one size at most",
    fix="remove it, or exclude what fails: NCCL_ALGO=^NVLS",
    source="NCCL user guide, NCCL_ALGO and NCCL_PROTO; NVIDIA/nccl#790",
    wrong=[example(NCCL_ALGO="Ring"), example(NCCL_PROTO="Simple")],
    right=[example(NCCL_ALGO="^NVLS"), example(NCCL_PROTO="^LL128")],
)
def algorithm_fixed(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_ALGO", "NCCL_PROTO"):
        if any(names and not excludes for _, excludes, names in chosen(s.text(name) or "")):
            yield Hit(names=(name,), seen=f"{name}={s.text(name)}")


@rule(
    "ll128-forced",
    Severity.ERROR,
    why="LL128 relies on 128-byte stores that stay whole; where they don't it corrupts data, and "
    "nothing says so",
    fix="let NCCL choose; NCCL_PROTO=^LL excludes the others one by one",
    source="NCCL user guide, NCCL_PROTO; NVIDIA/nccl#740, #831",
    wrong=[example(NCCL_PROTO="LL128"), example(NCCL_PROTO="allreduce:LL128,Simple")],
    right=[example(NCCL_PROTO="^LL128"), example(NCCL_PROTO="LL,Simple")],
)
def ll128_forced(s: Subject) -> Iterator[Hit]:
    if any("ll128" in n and not out for _, out, n in chosen(s.text("NCCL_PROTO") or "")):
        yield Hit(names=("NCCL_PROTO",), seen=f"NCCL_PROTO={s.text('NCCL_PROTO')}")


@rule(
    "needs-simple",
    Severity.ERROR,
    why="NVLS, CollNet and PAT speak Simple only: there is no algorithm left",
    fix="allow Simple",
    source="NVIDIA/nccl src/graph/tuning.cc",
    wrong=[
        example(NCCL_ALGO="NVLS", NCCL_PROTO="LL"),
        example(NCCL_ALGO="PAT", NCCL_PROTO="^Simple"),
    ],
    right=[
        example(NCCL_ALGO="NVLS", NCCL_PROTO="Simple"),
        example(NCCL_ALGO="Ring,NVLS", NCCL_PROTO="LL"),
    ],
)
def needs_simple(s: Subject) -> Iterator[Hit]:
    protocols = chosen(s.text("NCCL_PROTO") or "")
    simple = all(("simple" in names) != out for function, out, names in protocols if names)
    if simple:
        return
    for function, out, names in chosen(s.text("NCCL_ALGO") or ""):
        if names and not out and not {*names} & {"ring", "tree"}:
            what = function or "every collective"
            seen = f"{what}: {', '.join(names)} without Simple"
            yield Hit(names=("NCCL_ALGO", "NCCL_PROTO"), seen=seen)


@rule(
    "nvlstree-on-one-node",
    Severity.ERROR,
    why="NVLSTree joins nodes: on one there is no algorithm left",
    fix="NVLS, or let NCCL choose",
    source="NVIDIA/nccl src/graph/tuning.cc",
    wrong=[example({"nodes": 1}, NCCL_ALGO="NVLSTree")],
    right=[example({"nodes": 2}, NCCL_ALGO="NVLSTree"), example(NCCL_ALGO="NVLSTree")],
)
def nvlstree_on_one_node(s: Subject) -> Iterator[Hit]:
    for _, out, names in chosen(s.text("NCCL_ALGO") or ""):
        if names == ["nvlstree"] and not out and s.facts.nodes == 1:
            yield Hit(names=("NCCL_ALGO",), seen="NVLSTree on one node")


@rule(
    "collnet-without-plugin",
    Severity.ERROR,
    why="CollNet needs a plugin with SHARP behind it: without, communicators fail or hang",
    fix="NCCL_NET_PLUGIN with the SHARP plugin, or NCCL_COLLNET_ENABLE=0",
    source="NVIDIA/nccl-tests#311; NVIDIA/nccl#1219",
    wrong=[
        example(NCCL_COLLNET_ENABLE="1", NCCL_NET_PLUGIN="none"),
        example(NCCL_COLLNET_ENABLE="1"),
    ],
    right=[example(NCCL_COLLNET_ENABLE="1", NCCL_NET_PLUGIN="hpcx"), example()],
)
def collnet_without_plugin(s: Subject) -> Iterator[Hit]:
    plugin = s.text("NCCL_NET_PLUGIN") or ""
    if s.number("NCCL_COLLNET_ENABLE") == 1 and plugin in ("", "none"):
        shown = f"NCCL_NET_PLUGIN={plugin}" if plugin else "no NCCL_NET_PLUGIN"
        severity = None if plugin else Severity.WARNING
        yield Hit(
            names=("NCCL_COLLNET_ENABLE",),
            seen=f"NCCL_COLLNET_ENABLE=1 and {shown}",
            severity=severity,
        )


@rule(
    "nvls-automatic",
    Severity.WARNING,
    why="in 2.27 and 2.28 ranks fall back from NVLS one by one, in silence: those that did and "
    "those that did not wait for each other",
    fix="NCCL_NVLS_ENABLE=1 makes it an error at the beginning, 0 does without",
    source="NCCL user guide, NCCL_NVLS_ENABLE; NVIDIA/nccl#2077",
    wrong=[
        example({"nccl": (2, 28, 3), "nvlink": True}, NCCL_NVLS_ENABLE="2"),
        example({"nccl": (2, 27, 7), "nvlink": True}, NCCL_NVLS_ENABLE="2"),
    ],
    right=[
        example({"nccl": (2, 28, 3), "nvlink": True}, NCCL_NVLS_ENABLE="1"),
        example({"nccl": (2, 29, 7), "nvlink": True}, NCCL_NVLS_ENABLE="2"),
    ],
)
def nvls_automatic(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_NVLS_ENABLE") == 2 and s.between((2, 27), (2, 29)):
        yield Hit(names=("NCCL_NVLS_ENABLE",), seen="NCCL_NVLS_ENABLE=2")


@rule(
    "nvls-without-manager",
    Severity.ERROR,
    why="NVLS asks the Fabric Manager for a multicast group: CUDA error 401 where it does not run",
    fix="start it (fabric.manager, fabric.state), or NCCL_NVLS_ENABLE=0",
    source="pytorch/pytorch#177472; NCCL user guide, NCCL_NVLS_ENABLE",
    wrong=[example({"fabric_manager": False}, NCCL_NVLS_ENABLE="1")],
    right=[
        example({"fabric_manager": True}, NCCL_NVLS_ENABLE="1"),
        example({"fabric_manager": False}, NCCL_NVLS_ENABLE="0"),
        example(NCCL_NVLS_ENABLE="1"),
    ],
)
def nvls_without_manager(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_NVLS_ENABLE") == 1 and s.facts.fabric_manager is False:
        seen = "NCCL_NVLS_ENABLE=1, and the Fabric Manager does not run"
        yield Hit(names=("NCCL_NVLS_ENABLE",), seen=seen)


@rule(
    "paths-disabled",
    Severity.WARNING,
    why="what was switched off to find a fault makes every step slow; NCCL 2.15 computed wrong "
    "results with some of it",
    fix="remove it",
    source="NCCL user guide (Debugging); NVIDIA/nccl#1199",
    wrong=[
        example(NCCL_P2P_DISABLE="1"),
        example(NCCL_SHM_DISABLE="1"),
        example(NCCL_PXN_DISABLE="1"),
        example({"nvlink": True}, NCCL_P2P_LEVEL="LOC"),
        example(NCCL_NET_GDR_LEVEL="LOC"),
    ],
    right=[
        example(NCCL_P2P_DISABLE="0"),
        example(NCCL_P2P_LEVEL="NVL"),
        example({"nvlink": False}, NCCL_P2P_DISABLE="1"),
    ],
)
def paths_disabled(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_PXN_DISABLE"):
        if s.number(name) == 1 and not (name == "NCCL_P2P_DISABLE" and s.facts.nvlink is False):
            yield Hit(names=(name,), seen=f"{name}=1")
    for name in ("NCCL_P2P_LEVEL", "NCCL_NET_GDR_LEVEL"):
        if s.text(name) in ("LOC", "0") and not (name[5:8] == "P2P" and s.facts.nvlink is False):
            yield Hit(names=(name,), seen=f"{name}={s.text(name)} allows no path at all")


@rule(
    "most-below-least",
    Severity.ERROR,
    why="the upper limit then counts for both",
    fix="NCCL_MIN_CTAS at most NCCL_MAX_CTAS",
    source="NVIDIA/nccl src/init.cc",
    wrong=[
        example(NCCL_MIN_CTAS="32", NCCL_MAX_CTAS="16"),
        example(NCCL_MIN_NCHANNELS="32", NCCL_MAX_CTAS="16"),
        example(NCCL_MIN_P2P_NCHANNELS="8", NCCL_MAX_P2P_NCHANNELS="4"),
    ],
    right=[example(NCCL_MIN_CTAS="16", NCCL_MAX_CTAS="32"), example(NCCL_MIN_CTAS="32")],
)
def most_below_least(s: Subject) -> Iterator[Hit]:
    pairs = [
        (f"NCCL_MIN_{low}", f"NCCL_MAX_{high}")
        for low in ("CTAS", "NCHANNELS")
        for high in ("CTAS", "NCHANNELS")
    ]
    for low, high in [*pairs, ("NCCL_MIN_P2P_NCHANNELS", "NCCL_MAX_P2P_NCHANNELS")]:
        least, most = s.number(low), s.number(high)
        if least is not None and most is not None and least > most:
            yield Hit(names=(low, high), seen=f"{low}={least} above {high}={most}")


@rule(
    "old-channel-names",
    Severity.ADVICE,
    why="NCHANNELS and NRINGS are older names of CTAS; set beside it, the stricter one counts",
    fix="NCCL_MIN_CTAS and NCCL_MAX_CTAS",
    source="NCCL user guide, NCCL_MAX_CTAS (2.17)",
    wrong=[example(NCCL_MAX_NCHANNELS="16"), example(NCCL_MIN_NRINGS="4")],
    right=[example(NCCL_MAX_CTAS="16"), example({"nccl": (2, 16, 5)}, NCCL_MAX_NCHANNELS="16")],
)
def old_channel_names(s: Subject) -> Iterator[Hit]:
    for name in s.set_names():
        if re.fullmatch(r"NCCL_(MIN|MAX)_(NCHANNELS|NRINGS)", name) and not s.before((2, 17)):
            yield Hit(names=(name,), seen=name)


@rule(
    "chunk-above-buffer",
    Severity.WARNING,
    why="a piece is cut to an eighth of NCCL_BUFFSIZE",
    fix="raise NCCL_BUFFSIZE with it",
    source="NVIDIA/nccl src/init.cc: computeBuffSizes",
    wrong=[
        example(NCCL_P2P_NET_CHUNKSIZE="1048576"),
        example(NCCL_P2P_NVL_CHUNKSIZE="524288", NCCL_BUFFSIZE="2097152"),
    ],
    right=[
        example(NCCL_P2P_NET_CHUNKSIZE="524288"),
        example(NCCL_P2P_NET_CHUNKSIZE="1048576", NCCL_BUFFSIZE="8388608"),
    ],
)
def chunk_above_buffer(s: Subject) -> Iterator[Hit]:
    limit = (s.number("NCCL_BUFFSIZE") or BUFFER) // 8
    for path in ("NET", "NVL", "PCI"):
        name = f"NCCL_P2P_{path}_CHUNKSIZE"
        if (s.number(name) or 0) > limit:
            seen = f"{name}={s.number(name)}, cut to {limit}"
            yield Hit(names=(name, "NCCL_BUFFSIZE"), seen=seen)


@rule(
    "buffer-not-power-of-two",
    Severity.WARNING,
    why="NCCL ignores it with a line that NCCL_DEBUG hides, or aligns badly",
    fix="a power of two",
    source="NVIDIA/nccl src/init.cc; NCCL user guide, NCCL_BUFFSIZE",
    wrong=[example(NCCL_BUFFSIZE="5000000"), example(NCCL_WORK_FIFO_BYTES="1000000")],
    right=[example(NCCL_BUFFSIZE="8388608"), example(NCCL_WORK_FIFO_BYTES="1048576")],
)
def buffer_not_power_of_two(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_BUFFSIZE", "NCCL_WORK_FIFO_BYTES", "NCCL_WORK_FIFO_DEPTH"):
        size = s.number(name)
        if size is not None and (size <= 0 or size & (size - 1)):
            yield Hit(names=(name,), seen=f"{name}={size}")


@rule(
    "nvlstree-chunk",
    Severity.WARNING,
    why="NVLSTree's piece is cut to NCCL_NVLS_CHUNKSIZE (131072 where unset)",
    fix="NCCL_NVLS_CHUNKSIZE at least as large",
    source="NVIDIA/nccl src/enqueue.cc",
    wrong=[
        example(NCCL_NVLSTREE_MAX_CHUNKSIZE="524288", NCCL_NVLS_CHUNKSIZE="131072"),
        example(NCCL_NVLSTREE_MAX_CHUNKSIZE="524288"),
    ],
    right=[
        example(NCCL_NVLSTREE_MAX_CHUNKSIZE="65536"),
        example(NCCL_NVLSTREE_MAX_CHUNKSIZE="262144", NCCL_NVLS_CHUNKSIZE="262144"),
    ],
)
def nvlstree_chunk(s: Subject) -> Iterator[Hit]:
    tree, chunk = s.number("NCCL_NVLSTREE_MAX_CHUNKSIZE"), s.number("NCCL_NVLS_CHUNKSIZE")
    if tree is not None and tree > (chunk or 131_072):
        names = ("NCCL_NVLSTREE_MAX_CHUNKSIZE", "NCCL_NVLS_CHUNKSIZE")
        yield Hit(names=names, seen=f"{tree}, cut to {chunk or 131_072}")


@rule(
    "threads-of-a-block",
    Severity.WARNING,
    why="other numbers are replaced, with a warning that NCCL_DEBUG hides",
    fix="a multiple of 32 from 64 to 512 (LL128: 160 to 640)",
    source="NVIDIA/nccl src/graph/tuning.cc",
    wrong=[example(NCCL_NTHREADS="100"), example(NCCL_LL128_NTHREADS="170")],
    right=[example(NCCL_NTHREADS="256"), example(NCCL_LL128_NTHREADS="640")],
)
def threads_of_a_block(s: Subject) -> Iterator[Hit]:
    for name in ("NCCL_NTHREADS", "NCCL_LL128_NTHREADS"):
        threads = s.number(name)
        if threads is not None and threads % 32:
            yield Hit(names=(name,), seen=f"{name}={threads}")


@rule(
    "too-many-sockets",
    Severity.WARNING,
    why="helper threads are cut to 16, threads times sockets to 64",
    fix="NCCL_SOCKET_NTHREADS x NCCL_NSOCKS_PERTHREAD at most 64",
    source="NCCL user guide, NCCL_SOCKET_NTHREADS",
    wrong=[example(NCCL_SOCKET_NTHREADS="16", NCCL_NSOCKS_PERTHREAD="8")],
    right=[example(NCCL_SOCKET_NTHREADS="4", NCCL_NSOCKS_PERTHREAD="4")],
)
def too_many_sockets(s: Subject) -> Iterator[Hit]:
    threads = s.number("NCCL_SOCKET_NTHREADS") or 1
    sockets = s.number("NCCL_NSOCKS_PERTHREAD") or 1
    if threads * sockets > 64:
        names = ("NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD")
        yield Hit(names=names, seen=f"{threads} x {sockets} = {threads * sockets}")


@rule(
    "cumem-off",
    Severity.WARNING,
    why="no multi-node NVLink, no symmetric memory, no registered buffers; send and receive hang "
    "in 2.26.2",
    fix="remove it; where a container denies what it needs, NCCL_CUMEM_HOST_ENABLE=0",
    source="NVIDIA/nccl#1721; NCCL user guide, NCCL_CUMEM_ENABLE",
    wrong=[example(NCCL_CUMEM_ENABLE="0")],
    right=[example(NCCL_CUMEM_ENABLE="1"), example()],
)
def cumem_off(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_CUMEM_ENABLE") == 0:
        severity = Severity.ERROR if s.between((2, 26, 2), (2, 26, 3)) else None
        yield Hit(names=("NCCL_CUMEM_ENABLE",), seen="NCCL_CUMEM_ENABLE=0", severity=severity)


@rule(
    "cumem-host",
    Severity.ADVICE,
    why="NUMA system calls are denied in containers without SYS_NICE, and odd NUMA layouts fail",
    fix="--cap-add SYS_NICE, or leave it unset",
    source="NVIDIA/nccl#2190, #2106",
    wrong=[example(NCCL_CUMEM_HOST_ENABLE="1")],
    right=[example(NCCL_CUMEM_HOST_ENABLE="0"), example()],
)
def cumem_host(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_CUMEM_HOST_ENABLE") == 1:
        yield Hit(names=("NCCL_CUMEM_HOST_ENABLE",), seen="NCCL_CUMEM_HOST_ENABLE=1")


@rule(
    "launch-mode-group",
    Severity.WARNING,
    why="GROUP is no longer kept up",
    fix="remove it",
    source="NCCL user guide, NCCL_LAUNCH_MODE",
    wrong=[example(NCCL_LAUNCH_MODE="GROUP")],
    right=[example(NCCL_LAUNCH_MODE="PARALLEL")],
)
def launch_mode_group(s: Subject) -> Iterator[Hit]:
    if (s.text("NCCL_LAUNCH_MODE") or "").upper() == "GROUP":
        yield Hit(names=("NCCL_LAUNCH_MODE",), seen="NCCL_LAUNCH_MODE=GROUP")


@rule(
    "legacy-register",
    Severity.WARNING,
    why="registering buffers of cudaMalloc may wait for kernels that wait for it",
    fix="remove it; NCCL's own allocator makes buffers that can be registered",
    source="NCCL user guide, NCCL_LEGACY_CUDA_REGISTER",
    wrong=[example(NCCL_LEGACY_CUDA_REGISTER="1")],
    right=[example(NCCL_LEGACY_CUDA_REGISTER="0")],
)
def legacy_register(s: Subject) -> Iterator[Hit]:
    if s.number("NCCL_LEGACY_CUDA_REGISTER") == 1:
        yield Hit(names=("NCCL_LEGACY_CUDA_REGISTER",), seen="NCCL_LEGACY_CUDA_REGISTER=1")
