"""CPUs, NUMA nodes and where PCI devices hang on them, as /sys shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from healthchecks.frame.check import Skip, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources import nvml, ports
from healthchecks.sources.pci import PCI

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's "0-3,8" as numbers. Raises Unknown for anything else."""
    found: set[int] = set()
    try:
        for part in filter(None, text.strip().split(",")):
            first, dash, last = part.partition("-")
            found.update(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        raise Unknown(f"{text[:40]!r} is no list of CPUs") from None
    return frozenset(found)


def cpu_list_text(cpus: Iterable[int]) -> str:
    """Numbers as "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpus:
    """How the kernel arranges the CPUs that are online."""

    online: frozenset[int]
    offline: frozenset[int]  # there, and not in use
    siblings: Mapping[int, frozenset[int]]  # the threads of a CPU's core, itself among them
    packages: Mapping[int, int]  # its socket
    nodes: Mapping[int, frozenset[int]]  # by NUMA node
    smt_off: bool  # the kernel was told to use one thread of each core

    @property
    def sockets(self) -> int:
        return len(set(self.packages.values()))

    @property
    def threads(self) -> tuple[int, ...]:
        """Threads of a core: one number where all cores are alike."""
        return tuple(sorted({len(s) for s in self.siblings.values()}))

    def node_of(self) -> dict[int, int]:
        return {cpu: node for node, cpus in self.nodes.items() for cpu in cpus}


def cpus(ctx: Ctx) -> Cpus:
    """Raises OSError, Unknown."""
    online = parse_cpu_list(ctx.text(f"{CPU}/online"))
    at = {cpu: f"{CPU}/cpu{cpu}/topology" for cpu in online}
    siblings = {c: parse_cpu_list(ctx.text(f"{at[c]}/thread_siblings_list")) for c in online}
    packages = {c: ctx.number(f"{at[c]}/physical_package_id") for c in online}
    control = ctx.maybe(f"{CPU}/smt/control") or ""
    return Cpus(
        online=online,
        offline=parse_cpu_list(ctx.text(f"{CPU}/present")) - online,
        siblings=siblings,
        packages=packages,
        nodes=nodes(ctx),
        smt_off=control in ("off", "forceoff"),
    )


def first_cpu(ctx: Ctx) -> dict[str, str]:
    """What /proc/cpuinfo says of the first CPU: "model name", "flags" … Raises OSError.

    Not more: the kernel computes that file, and asks every CPU for its frequency.
    """
    with open(ctx.path("proc/cpuinfo"), errors="replace") as file:
        text = file.read(4096).partition("\n\n")[0]
    rows = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def nodes(ctx: Ctx) -> dict[int, frozenset[int]]:
    """CPUs by NUMA node. Raises OSError, and Unknown for a kernel that shows none."""
    online = parse_cpu_list(ctx.text(f"{NODE}/online"))
    if not online:
        raise Unknown(f"/{NODE}/online is empty")
    return {node: parse_cpu_list(ctx.text(f"{NODE}/node{node}/cpulist")) for node in sorted(online)}


def numa_of(ctx: Ctx, bdf: str) -> int:
    """The NUMA node of a PCI device; -1 where the firmware does not say. Raises OSError."""
    return ctx.number(f"{PCI}/{bdf}/numa_node")


def hardware(ctx: Ctx) -> tuple[list[str], list[str]]:
    """GPUs by PCI address, RDMA devices by name. Raises Skip where there is neither."""
    gpus, rdma = nvml.on_bus(ctx), ctx.names(ports.SYS)
    if not gpus and not rdma and not ports.nic_functions(ctx):
        raise Skip("neither an NVIDIA GPU nor an RDMA device is here")
    return gpus, rdma
