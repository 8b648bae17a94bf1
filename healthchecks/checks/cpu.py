"""Health checks of CPUs, NUMA nodes and what the job may use of them."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Annotated

from healthchecks.accelerators import bus
from healthchecks.frame.check import Blame, Findings, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import pci, ports, topology
from healthchecks.sources.topology import Cpus, cpu_list_text, parse_cpu_list
from supervisor.core.setting import About

_PIN = "; 0: whatever the other nodes have"
_XML_FIX = (
    "correct the virtual machine's definition on the host (cores, threads and dies as they are, "
    "CPUs pinned to theirs) and boot it again"
)
_LARGE = 8  # GPUs and NICs: such a machine has more than one NUMA node
TOPO_FILE = "var/run/nvidia-topologyd/virtualTopology.xml"  # NCCL reads it by itself


@check("cpu.layout", tags={"preflight"}, cohort=Status.FAIL)
def cpu_layout(
    ctx: Ctx,
    *,
    cpus: Annotated[int, About(doc=f"CPUs{_PIN}.", ge=0)] = 0,
    sockets: Annotated[int, About(doc=f"Sockets{_PIN}.", ge=0)] = 0,
    numa_nodes: Annotated[int, About(doc=f"NUMA nodes{_PIN}.", ge=0)] = 0,
    threads: Annotated[int, About(doc=f"Threads of a core{_PIN}.", ge=0)] = 0,
    most_sockets: Annotated[int, About(doc="More are a wrong virtual machine.", ge=1)] = 8,
) -> Result:
    """CPUs, cores, sockets and NUMA nodes are arranged as on hardware, and as on the other nodes.

    A passthrough virtual machine shows what its definition says: threads of one core on two NUMA
    nodes (open-mpi/hwloc#712), a socket for each CPU, one NUMA node for two sockets. Ranks are then
    bound across sockets, and NCCL measures wrong distances (NVIDIA/nccl#1674).
    """
    seen = topology.cpus(ctx)
    found = Findings()
    node_of = seen.node_of()
    _siblings(found, seen, node_of)
    _whole(found, seen, node_of)
    if seen.sockets > most_sockets:
        found.fail(
            f"{seen.sockets} sockets for {len(seen.online)} CPUs",
            expected=f"at most {most_sockets} sockets",
            fix=_XML_FIX,
        )
    shared = [
        n for n, c in seen.nodes.items() if len({seen.packages[x] for x in c & seen.online}) > 1
    ]
    if shared and seen.sockets <= most_sockets:
        found.warn(
            f"NUMA node {shared[0]} holds CPUs of several sockets",
            expected="at least one NUMA node for each socket",
            fix=_XML_FIX,
        )
    counts = {
        "CPUs": (len(seen.online), cpus),
        "sockets": (seen.sockets, sockets),
        "NUMA nodes": (len(seen.nodes), numa_nodes),
        "threads a core": (max(seen.threads, default=0), threads),
    }
    for what, (number, pinned) in counts.items():
        if pinned and number != pinned:
            found.fail(f"{number} {what}", expected=f"{pinned} {what}", fix=_XML_FIX)
    text = ", ".join(f"{number} {what}" for what, (number, _) in counts.items())
    found.fact("model", topology.first_cpu(ctx).get("model name", ""))
    found.fact("layout", f"{text}; arranged as {_digest(seen):08x}")
    return found.result(text)


def _siblings(found: Findings, seen: Cpus, node_of: dict[int, int]) -> None:
    """Threads of one core belong to one core of one socket and NUMA node."""
    cores = set(seen.siblings.values())
    for what, home in (("NUMA nodes", node_of), ("sockets", dict(seen.packages))):
        split = sorted(
            (c for c in cores if len({home[cpu] for cpu in c if cpu in home}) > 1), key=min
        )
        if split:
            found.fail(
                f"{len(split)} cores have threads on several {what}, as CPUs "
                f"{cpu_list_text(split[0])}",
                expected="all threads of a core in one place",
                fix=_XML_FIX,
            )
    disagreeing = sorted(
        c for c, s in seen.siblings.items() if any(seen.siblings.get(x, s) != s for x in s)
    )
    if disagreeing:
        found.fail(
            f"CPUs {cpu_list_text(disagreeing)} disagree about who shares a core",
            expected="siblings that name each other",
            fix=_XML_FIX,
        )
    if len(seen.threads) > 1:
        found.warn(
            f"some cores have {seen.threads[0]} threads and some {seen.threads[-1]}",
            expected="the same everywhere",
            fix=_XML_FIX,
        )


def _whole(found: Findings, seen: Cpus, node_of: dict[int, int]) -> None:
    """All CPUs are in use, each on a NUMA node, the same number on each."""
    if seen.offline and not seen.smt_off:
        found.fail(
            f"{len(seen.offline)} CPUs are offline: {cpu_list_text(seen.offline)}",
            expected="all that are present online",
            fix="look into the kernel log for why; echo 1 > /sys/devices/system/cpu/cpuN/online",
        )
    homeless = seen.online - node_of.keys()
    if homeless:
        found.fail(
            f"CPUs {cpu_list_text(homeless)} are on no NUMA node", expected="one", fix=_XML_FIX
        )
    sizes = {n: len(c & seen.online) for n, c in seen.nodes.items() if c}  # some hold memory only
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"node {n}: {size}" for n, size in sizes.items())
        found.warn(f"NUMA nodes differ in CPUs ({text})", expected="the same", fix=_XML_FIX)


def _digest(seen: Cpus) -> int:
    """Of everything that binding depends on, which CPU is where; the same on equal machines."""
    node_of = seen.node_of()
    rows = [
        f"{c} {cpu_list_text(seen.siblings[c])} {seen.packages[c]} {node_of.get(c)}"
        for c in sorted(seen.online)
    ]
    return zlib.crc32("\n".join([*rows, cpu_list_text(seen.offline)]).encode())


@check("numa.devices", tags={"preflight"}, cohort=Status.FAIL)
def numa_devices(
    ctx: Ctx,
    *,
    topo_file: Annotated[
        str, About(doc=f"NCCL_TOPO_FILE of the job; else /{TOPO_FILE} where it is there.")
    ] = "",
) -> Result:
    """GPUs and their NICs are on the NUMA nodes where they are on the other nodes.

    A device without a NUMA node (-1) beside others with one, or pairs that moved, send traffic
    through the other socket.
    The PCI addresses of NCCL_TOPO_FILE have to be those of this node: NCCL only says so at INFO.
    Sources: Documentation/ABI/testing/sysfs-bus-pci, NCCL User Guide (NCCL_TOPO_FILE),
    Azure/azurehpc-health-checks.
    """
    gpus = bus.of_all_makers(ctx)
    if not gpus:
        raise Skip("no accelerator is on the PCI bus")
    found = Findings()
    cpus_of = topology.nodes(ctx)
    nics = _fabric(ctx, found)
    named = {bdf: f"gpu{index}" for index, bdf in enumerate(gpus)} | (nics or {})
    numa = {bdf: topology.numa_of(ctx, bdf) for bdf in named}
    virtual = "hypervisor" in topology.first_cpu(ctx).get("flags", "").split()
    _placed(found, named, numa, len(cpus_of), virtual=virtual)
    count = {
        kind: Counter(n for bdf, n in numa.items() if (bdf in gpus) == (kind == "gpu"))
        for kind in ("gpu", "nic")
    }
    if count["nic"] and len(gpus) == count["nic"].total() and count["gpu"] != count["nic"]:
        found.warn(
            f"GPUs by NUMA node {_by_node(count['gpu'])}, fabric NICs {_by_node(count['nic'])}",
            expected="as many NICs as GPUs on each",
            fix="compare with another node's `lspci -tv`; let the host attach the devices alike",
        )
    if nics is not None:
        found.fact("devices by NUMA node", _places(numa))
    _topo_file(ctx, found, topo_file, gpus)
    text = ", ".join(
        f"{count['gpu'][node]} GPUs and {count['nic'][node]} fabric NICs "
        + (f"on NUMA node {node}" if node >= 0 else "on none that the machine tells of")
        for node in sorted(set(numa.values()))
    )
    return found.result(text)


def _fabric(ctx: Ctx, found: Findings) -> dict[str, str] | None:
    """NICs that carry the job's traffic, by PCI address; None where that is not known."""
    try:
        return {p.bdf: p.device for p in ports.ports(ctx) if p.role == "fabric" and p.bdf}
    except Skip:
        return {}
    except (Unknown, OSError) as why:
        found.unknown(f"NICs: {why}")
        return None


def _places(numa: dict[str, int]) -> str:
    """As "0: 1b:00.0 29:00.0; 1: …"."""
    on: dict[int, list[str]] = {}
    for bdf in sorted(numa):
        on.setdefault(numa[bdf], []).append(bdf.removeprefix("0000:"))
    return "; ".join(f"{node}: {' '.join(on[node])}" for node in sorted(on))


def _placed(
    found: Findings,
    named: dict[str, str],
    numa: dict[str, int],
    nodes: int,
    *,
    virtual: bool,
) -> None:
    """Where no device says where it is the machine hides it from all alike: the cohort tells."""
    if all(node < 0 for node in numa.values()):
        if nodes == 1 and len(numa) >= _LARGE and virtual:
            found.warn(
                "one NUMA node, and no device says where it is: the host hides the layout",
                expected="the host's NUMA nodes, and each device on its own",
                fix=_XML_FIX,
            )
        return
    for bdf, node in numa.items():
        if node >= nodes:
            found.fail(
                f"{bdf} is on NUMA node {node}, and there are only {nodes}",
                expected="a NUMA node that is there",
                fix=_XML_FIX,
                device=named[bdf],
            )
        elif node < 0 and nodes > 1:
            found.fail(
                f"{bdf} has no NUMA node (-1)",
                expected=f"one of {nodes}",
                fix="let the host attach it below a PCI expander bus of its NUMA node (pxb-pcie)",
                device=named[bdf],
            )


def _by_node(count: Counter[int]) -> str:
    return "+".join(str(count[node]) for node in sorted(count))


def _topo_file(ctx: Ctx, found: Findings, given: str, gpus: list[str]) -> None:
    text = ctx.maybe(given or TOPO_FILE)
    if text is None:
        if given:
            found.fail(
                f"NCCL_TOPO_FILE {given} is not there",
                expected="the file",
                fix="install it, or unset NCCL_TOPO_FILE",
            )
        return
    import re

    name = given or f"/{TOPO_FILE}"
    listed = {m.lower() for m in re.findall(r'busid="([0-9A-Fa-f:.]+)"', text)}
    here = set(ctx.names(pci.PCI))
    if not listed:
        found.unknown(f"{name} names no PCI device")
        return
    # What it calls ffff:ff:… are bridges that a virtual machine does not show.
    strangers = sorted(b for b in listed - here if not b.startswith("ffff"))
    missing = sorted(set(gpus) - listed)
    for bad, what in ((strangers, "are not on this node"), (missing, "are GPUs that it lacks")):
        if bad:
            found.fail(
                f"{name}: {len(bad)} PCI addresses {what}, as {bad[0]}",
                expected="the PCI addresses of this node",
                fix="use the file made for this kind of machine, or none",
            )


@check("cpu.binding", tags={"preflight"}, blame=Blame.USER, drains=False, cohort=Status.WARN)
def cpu_binding(
    ctx: Ctx,
    *,
    ranks_per_node: Annotated[
        int, About(doc="Ranks of the job on a node; 0: one for each GPU.", ge=0)
    ] = 0,
    least_cpus: Annotated[int, About(doc="CPUs that a rank needs.", ge=1)] = 4,
) -> Result:
    """What may run here may use all CPUs, and each GPU's rank has CPUs beside its GPU.

    Looks at the affinity and the cgroup of the check itself, which in a Slurm step are the step's:
    `srun -c1` or `--cpu-bind` leaves a rank and its data loaders one core, or one of the wrong
    socket. A proposal: at least 4 CPUs for a rank (its main, autograd, NCCL proxy and loader
    threads). A machine that has no more, and one without GPUs, is warned of.
    """
    status = dict(
        line.split(":", 1) for line in ctx.text("proc/self/status").splitlines() if ":" in line
    )
    if "Cpus_allowed_list" not in status:
        raise Unknown("/proc/self/status does not say which CPUs are allowed")
    online = parse_cpu_list(ctx.text(f"{topology.CPU}/online"))
    mine = parse_cpu_list(status["Cpus_allowed_list"]) & online
    found = Findings()
    by = _who_binds(ctx, mine, online)
    if mine != online:
        found.warn(
            f"{len(mine)} of {len(online)} CPUs may be used ({cpu_list_text(mine)}), by {by}",
            expected="all of them",
            fix="ask for the whole node: --exclusive, -c with all CPUs, --cpu-bind=none",
        )
    _memory(ctx, found, status.get("Mems_allowed_list", ""))
    quota = _quota(ctx)
    if quota is not None and quota < len(mine):
        found.warn(
            f"the cgroup gives the time of {quota:g} CPUs, of {len(mine)}",
            expected="no cpu.max",
            fix="remove the quota of the container or the service",
        )
    share = _share(ctx, found, mine, ranks_per_node)
    if share is not None:
        found.metric("cpus_of_a_rank", share)
        found.fact("CPUs of a rank", f"{share:g}")
        if share < least_cpus:
            _too_few(ctx, found, share, least_cpus, by if mine != online else "")
    each = f", {share:g} for a rank" if share is not None else ""
    return found.result(f"all {len(online)} CPUs may be used{each}")


def _too_few(ctx: Ctx, found: Findings, share: float, least: int, by: str) -> None:
    """A failure where CPUs that are there are kept from GPUs' ranks; else a run is slow at worst.

    `by` binds; empty: nothing does, and the machine has no more.
    """
    text, expected = f"a rank gets {share:g} CPUs", f"at least {least}"
    if by:
        fix = "start one task a node with -c for all CPUs, or fewer ranks"
        wrong = found.fail if bus.of_all_makers(ctx) else found.warn
        wrong(f"{text}, by {by}", expected=expected, fix=fix)
    else:
        fix = "fewer ranks on a node, or a lower cpu.binding.least_cpus"
        found.warn(f"{text}: the node has no more", expected=expected, fix=fix)


def _who_binds(ctx: Ctx, mine: frozenset[int], online: frozenset[int]) -> str:
    """Whether the cgroup or the affinity keeps CPUs away."""
    group = _cgroup(ctx)
    cpuset = ctx.maybe(f"{group}/cpuset.cpus.effective") if group else None
    if cpuset and parse_cpu_list(cpuset) & online == mine:
        return f"the cgroup /{group}"
    return "the affinity that it was started with"


def _cgroup(ctx: Ctx) -> str:
    """This process' cgroup, of version 2; empty where there is none."""
    for line in (ctx.maybe("proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            return f"sys/fs/cgroup{line[3:].rstrip('/')}"
    return ""


def _quota(ctx: Ctx) -> float | None:
    group = _cgroup(ctx)
    text = ctx.maybe(f"{group}/cpu.max") if group else None
    if not text or text.startswith("max"):
        return None
    quota, _, period = text.partition(" ")
    return int(quota) / int(period or 100_000)


def _memory(ctx: Ctx, found: Findings, allowed: str) -> None:
    with_cpus = {n for n, cpus in topology.nodes(ctx).items() if cpus}  # others are of devices
    missing = with_cpus - parse_cpu_list(allowed)
    if allowed and missing:
        found.fail(
            f"memory of NUMA node {cpu_list_text(missing)} may not be used",
            expected="all NUMA nodes",
            fix="ask for the whole node; look at --mem-bind and at the cgroup's cpuset.mems",
        )


def _share(ctx: Ctx, found: Findings, mine: frozenset[int], ranks: int) -> float | None:
    """CPUs for the rank that gets the fewest; None where nothing says how many ranks."""
    gpus = bus.of_all_makers(ctx)
    if not gpus:
        return len(mine) / ranks if ranks else None
    local = {bdf: parse_cpu_list(ctx.text(f"{pci.PCI}/{bdf}/local_cpulist")) for bdf in gpus}
    beside = Counter(local.values())
    for index, bdf in enumerate(gpus):
        if not local[bdf] & mine:
            found.fail(
                f"none of its CPUs ({cpu_list_text(local[bdf])}) may be used",
                expected="CPUs on the GPU's NUMA node",
                fix="ask for the whole node: --exclusive, -c with all CPUs, --cpu-bind=none",
                device=f"gpu{index}",
            )
    per_gpu = max(1.0, ranks / len(gpus)) if ranks else 1.0
    return min(len(cpus & mine) / (count * per_gpu) for cpus, count in beside.items())
