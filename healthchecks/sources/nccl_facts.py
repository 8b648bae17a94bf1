"""What NCCL's rules know of this node: its NICs, interfaces, GPUs and limits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from healthchecks.frame.check import Skip, Unknown
from healthchecks.frame.context import Ctx
from healthchecks.sources import nvml, ports, topology
from healthchecks.sources.slurmd import limit
from ncclconf.catalogue import Version
from ncclconf.facts import Facts, Hca, Interface

_LEADS_NOWHERE = re.compile(r"(docker|br-|veth|virbr|cni|flannel|cali|podman|lxc|kube)")
_V2 = "RoCE v2"


def facts(
    ctx: Ctx,
    *,
    nccl: Version | None = None,
    nodes: int | None = None,
    files: Iterable[str] = (),
    limits: str = "proc/self/limits",
) -> Facts:
    """What /sys and /proc below the root tell. What can't be told is None.

    `files` are looked for; `limits` is the file of limits of the process in question.
    """
    gpus = nvml.on_bus(ctx)
    limited = ctx.maybe(limits) or ""
    flags = topology.first_cpu(ctx).get("flags", "").split()
    modules = {line.split()[0] for line in (ctx.maybe("proc/modules") or "").splitlines() if line}
    return Facts(
        nccl=nccl,
        nodes=nodes,
        hcas=_hcas(ctx),
        interfaces=_interfaces(ctx),
        gpus=_names(ctx, gpus),
        virtual="hypervisor" in flags if flags else None,
        gpudirect=True if "nvidia_peermem" in modules else None,  # dma-buf: see the check gdr
        memlock_unlimited=_unlimited(limit(limited, "Max locked memory")),
        open_files=_whole(limit(limited, "Max open files")),
        shm_gib=_shm_gib(ctx),
        files=frozenset(file for file in files if file and ctx.path(file).exists()),
    )


def _unlimited(soft: float | None) -> bool | None:
    return None if soft is None else soft == float("inf")


def _whole(soft: float | None) -> int | None:
    return None if soft is None or soft == float("inf") else int(soft)


def _hcas(ctx: Ctx) -> tuple[Hca, ...] | None:
    """None where roles can't be told; empty where there is no RDMA device."""
    try:
        found = ports.ports(ctx)
    except Skip:
        return ()
    except Unknown:
        return None
    return tuple(
        Hca(
            device=port.device,
            port=port.number,
            link_layer=port.layer,
            active=ports.state(ctx, port) == ports.ACTIVE,
            rate_gb=ports.rate(ctx, port) or 0.0,
            role=port.role,
            gids=None if port.role == "lpf" else _gids(ctx, port),
        )
        for port in found
    )


def _gids(ctx: Ctx, port: ports.Port) -> tuple[int, ...] | None:
    """Indices of RoCE v2 GIDs that are not link-local; None where the port has no table."""
    found = []
    names = ctx.names(f"{port.at}/gid_attrs/types")
    for index in names:
        kind = (ctx.maybe(f"{port.at}/gid_attrs/types/{index}") or "").strip()
        gid = (ctx.maybe(f"{port.at}/gids/{index}") or "").strip()
        if kind == _V2 and gid and not gid.startswith("fe80:") and gid.strip("0:"):
            found.append(int(index))
    return tuple(found) if names else None


def _interfaces(ctx: Ctx) -> tuple[Interface, ...]:
    return tuple(
        Interface(
            name=name,
            up=(ctx.maybe(f"{ports.NET}/{name}/operstate") or "").strip() in ("up", "unknown"),
            routed=not _LEADS_NOWHERE.match(name),
        )
        for name in ctx.names(ports.NET)
        if name != "lo"
    )


def _names(ctx: Ctx, gpus: list[str]) -> str:
    """The model of the first GPU; empty where there is none."""
    for bdf in gpus:
        text = ctx.maybe(f"proc/driver/nvidia/gpus/{bdf}/information") or ""
        if found := re.search(r"^Model:\s*(.+)$", text, re.M):
            return found[1].strip()
    return "NVIDIA" if gpus else ""


def _shm_gib(ctx: Ctx) -> float | None:
    try:
        size = os.statvfs(ctx.path("dev/shm"))
    except OSError:
        return None
    return size.f_blocks * size.f_frsize / 2**30 if ctx.live else None
