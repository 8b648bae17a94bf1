"""What an agent finds out about its node before it registers."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import socket
from collections.abc import Mapping
from pathlib import Path

from healthchecks.accelerators import bus
from healthchecks.accelerators.amd import Amd
from healthchecks.frame.context import Ctx, Memory
from supervisor.core.limits import MEMLOCK_FIX, memlock_problem

AMD_DRIVER = Amd.driver
MIN_MEMORY_SHARE = 0.9  # of what Slurm says it granted; less means a limit that is not meant


def problems(
    env: Mapping[str, str], root: Path = Path("/")
) -> tuple[tuple[str, ...], dict[str, str]]:
    """What keeps ranks from running here, one line each, and the facts looked at.

    Compared with what Slurm says it granted (SLURM_* in `env`): a step that got less than the node
    makes every rank slow or fail, and nothing else would say why.
    """
    found: list[str] = []
    facts: dict[str, str] = {}
    cpus = len(os.sched_getaffinity(0))
    facts["cpus"] = str(cpus)
    granted = _number(env.get("SLURM_CPUS_ON_NODE"))
    if granted is not None and cpus < granted:
        found.append(f"may use {cpus} CPUs, Slurm granted {granted}: the agent step is bound")
    limit = None
    try:
        limit = _memory_limit(root)
        facts["memory_limit_mb"] = "none" if limit is None else str(limit)
    except (OSError, ValueError) as error:
        facts["memory_limit_mb"] = f"unknown: {error}"
    memory = _number(env.get("SLURM_MEM_PER_NODE"))
    if limit is not None and memory is not None and limit < memory * MIN_MEMORY_SHARE:
        found.append(f"memory is limited to {limit} MB, Slurm granted {memory} MB")
    found += _devices(env, root, facts)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY
    facts["memlock"] = "unlimited" if unlimited else str(soft)
    rdma = (root / "dev/infiniband").is_dir()
    if problem := memlock_problem("a rank", math.inf if unlimited else soft, rdma=rdma):
        found.append(f"{problem}, InfiniBand needs it without limit: {MEMLOCK_FIX}")
    facts["nofile"] = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return tuple(found), facts


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _memory_limit(root: Path) -> int | None:
    """The tightest memory limit of this process's cgroup and its parents, in MB."""
    limits: list[int] = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        place = base / path.lstrip("/")
        while place.is_relative_to(base):
            try:
                text = (place / name).read_text().strip()
            except OSError:
                text = "max"
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text) >> 20)
            place = place.parent
    return min(limits, default=None)


def _devices(env: Mapping[str, str], root: Path, facts: dict[str, str]) -> list[str]:
    """GPUs that Slurm granted and this user can't have: NVIDIA's, and AMD's without a driver."""
    granted = _number(env.get("SLURM_GPUS_ON_NODE"))
    seen = sorted((root / "dev").glob("nvidia[0-9]*"))
    usable = [path for path in seen if os.access(path, os.R_OK | os.W_OK)]
    others = _instincts(root)
    bound = sum(driver == AMD_DRIVER for driver in others)
    facts["gpus"] = str(len(usable) + bound)
    if granted is None or len(usable) + bound >= granted:
        return []
    if bound < len(others):
        return [
            f"{len(others) - bound} of {len(others)} AMD Instinct on the PCI bus have no driver: "
            f"is the {AMD_DRIVER} module loaded?"
        ]
    if (root / "proc/driver/nvidia").exists():
        return [f"{len(usable)} GPUs can be used, Slurm granted {granted}"]
    if on_bus := _nvidia_on_bus(root):
        return [f"{on_bus} NVIDIA GPUs on the PCI bus, and no driver: is the nvidia module loaded?"]
    return []


def _instincts(root: Path) -> list[str]:
    """The driver of each AMD Instinct; empty where it has none."""
    ctx = Ctx(root=root, node="", now=0.0, boot_id="", memory=Memory({}, 0.0))
    try:
        there = bus.on_bus(ctx)
    except OSError:
        return []
    return [
        a.driver for a in there if a.vendor == bus.AMD and a.maker and a.driver not in bus.GIVEN
    ]


def _nvidia_on_bus(root: Path) -> int:
    """GPUs by PCI vendor 10de and class 03xx (display controller)."""
    count = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
            count += vendor.strip() == "0x10de" and kind.startswith("0x03")
    return count


def lock_memory() -> str:
    """Keep this process's pages in memory: its code may come from storage that hangs later.

    Returns what came of it. Pages are locked when they are first used (MCL_ONFAULT).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and os.geteuid() != 0:  # later allocations would fail
        return f"not locked: memlock is limited to {limit} bytes"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(0x1 | 0x2 | 0x4) != 0:  # MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT
        return f"not locked: {os.strerror(ctypes.get_errno())}"
    return "locked"


def address_towards(endpoint: str) -> str:
    """The address of this node on the way to the engine.

    Where agents share a machine, each has an address that only their launcher knows, and gives.
    """
    if given := os.environ.get("SUPERV_NODE_ADDRESS"):
        return given
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def free_port(first: int, last: int, address: str, avoid: int | None) -> int:
    """A port that nobody listens on, outside the ephemeral range so that no connection takes it.

    Raises OSError where the whole range is taken.
    """
    size = last - first + 1
    begin = int.from_bytes(os.urandom(4)) % size
    for offset in range(size):
        port = first + (begin + offset) % size
        if port == avoid:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port in {first}-{last}")
