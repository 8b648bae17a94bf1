"""Health checks of what NCCL needs of the node: modules, device files, limits, /dev/shm.

What the variables of a job say is judged elsewhere; here is what the node itself must give.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from healthchecks.frame.check import Blame, Findings, Result, Skip, Status, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import mounts, ports, topology
from healthchecks.sources.slurmd import limit, slurmd_pid
from supervisor.core.limits import MEMLOCK_FIX, memlock_problem
from supervisor.core.setting import About

_RDMA_MODULES = ("ib_core", "ib_uverbs", "mlx5_ib")
_GPU_MODULES = ("nvidia", "nvidia_uvm")
_UVM, _HELPER = "nvidia_uvm", "usr/bin/nvidia-modprobe"  # setuid: CUDA runs it where UVM is missing
_SLURMD, _THIS = "slurmd", "this process"  # whose limits are looked at, beside a step's


@check("nccl.devices", tags={"preflight"})
def nccl_devices(
    ctx: Ctx,
    *,
    modules: Annotated[
        tuple[str, ...], About(doc="Kernel modules that have to be loaded too, as gdrdrv.")
    ] = (),
) -> Result:
    """Kernel modules and device files that NCCL opens are there and may be opened.

    /dev/nvidia* for each GPU, nvidiactl and nvidia-uvm; /dev/infiniband/uverbs* for each RDMA
    device. nvidia_uvm may come with the first CUDA process, where nvidia-modprobe is there to load
    it. Without ib_uverbs NCCL falls back to sockets and says so at INFO only. Sources: NCCL
    User Guide (Troubleshooting), NVIDIA driver README (device files).
    """
    gpus, rdma = topology.hardware(ctx)
    found = Findings()
    nics = bool(rdma or ports.nic_functions(ctx))
    loaded = {line.split()[0] for line in ctx.text("proc/modules").splitlines() if line}
    loaded |= set(ctx.names("sys/module"))  # those that are built in
    wanted = [*(_RDMA_MODULES if nics else ()), *(_GPU_MODULES if gpus else ()), *modules]
    later = _UVM in wanted and _UVM not in loaded and ctx.path(_HELPER).exists()
    if later:
        wanted.remove(_UVM)
    for module in wanted:
        if module.replace("-", "_") not in loaded:
            found.fail(
                f"the kernel module {module} is not loaded",
                expected="loaded",
                fix=f"modprobe {module}; and name it in /etc/modules-load.d",
            )
    files = _gpu_files(ctx, found, gpus) + _rdma_files(ctx, found, rdma)
    if later:
        files = [file for file in files if "uvm" not in file]
    for file in files:
        if not ctx.path(file).exists():
            found.fail(f"/{file} is not there", expected="a device file", fix=_device_fix(file))
        elif not os.access(ctx.path(file), os.R_OK | os.W_OK):
            found.fail(
                f"/{file} may not be opened",
                expected="read and write for all users",
                fix="look at its mode, the udev rules, and the devices that the cgroup allows",
            )
    uvm = "; the first CUDA process loads nvidia_uvm" if later else ""
    return found.result(f"{len(wanted)} modules and {len(files)} device files{uvm}")


def _device_fix(file: str) -> str:
    if "nvidia" in file:
        return "nvidia-modprobe -c 0 -u; in a container, pass the devices on"
    return "systemctl restart systemd-udev-trigger; in a container, pass /dev/infiniband on"


def _gpu_files(ctx: Ctx, found: Findings, gpus: list[str]) -> list[str]:
    if not gpus:
        return []
    files = ["dev/nvidiactl", "dev/nvidia-uvm"]
    for index, bdf in enumerate(gpus):
        text = ctx.maybe(f"proc/driver/nvidia/gpus/{bdf}/information") or ""
        minor = re.search(r"Device Minor:\s*(\d+)", text)
        if minor:
            files.append(f"dev/nvidia{minor[1]}")
        else:
            found.unknown(
                f"/proc/driver/nvidia does not know {bdf}; see gpu.count", device=f"gpu{index}"
            )
    return files


def _rdma_files(ctx: Ctx, found: Findings, rdma: list[str]) -> list[str]:
    at = "sys/class/infiniband_verbs"
    of = {ctx.maybe(f"{at}/{name}/ibdev"): name for name in ctx.names(at)}
    files = []
    for device in rdma:
        if device in of:
            files.append(f"dev/infiniband/{of[device]}")
        else:
            found.fail(
                "no verbs device belongs to it",
                expected=f"an entry in /{at}",
                fix="modprobe ib_uverbs; and name it in /etc/modules-load.d",
                device=device,
            )
    return files


@check("nccl.limits", tags={"preflight"}, by_users=True)
def nccl_limits(
    ctx: Ctx,
    *,
    nofile: Annotated[int, About(doc="Open files, at least.", ge=0)] = 131072,
    nproc: Annotated[int, About(doc="Processes and threads of a user, at least.", ge=0)] = 65536,
    stack: Annotated[int, About(doc="Stack, at least.", unit="B", ge=0)] = 8 * 2**20,
) -> Result:
    """A rank may lock memory without limit, and have enough files, processes and stack.

    RDMA registers memory, which a limit on locked memory refuses (`ibv_reg_mr failed`). Looks at
    the Slurm step that the check runs in, else at slurmd, which gives its own limits to its steps
    (its locked memory is judged by slurm.memlock); else at this process, whose limits need not be
    those of a rank: then a WARN at most. A step has the limits of whoever submitted it, so they
    drain no node: slurm.memlock judges what slurmd may give. Sources: NCCL User Guide
    (Troubleshooting), Slurm FAQ (memlock); 131072 files as in NVIDIA's DGX OS.
    """
    _, rdma = topology.hardware(ctx)
    found = Findings()
    who, text = _limited(ctx)
    if who != _SLURMD:
        _locked_memory(found, who, limit(text, "Max locked memory"), bool(rdma))
    for title, least in (
        ("Max open files", nofile),
        ("Max processes", nproc),
        ("Max stack size", stack),
    ):
        hard = limit(text, title, hard=True)
        if hard is not None and hard < least:
            found.warn(
                f"{who}: {title.lower()} {hard:.0f} at most",
                expected=f"{title.lower()} {least}",
                fix="raise it in slurmd's unit (systemctl edit slurmd) and restart slurmd",
            )
    memory = "" if who == _SLURMD else "memory, "
    return found.result(f"{who} may have enough {memory}files, processes and stack")


def _locked_memory(found: Findings, who: str, soft: float | None, rdma: bool) -> None:
    if soft is None:
        found.unknown(f"/proc does not tell the locked memory of {who}")
    elif problem := memlock_problem(who, soft, rdma=rdma):
        status = Status.WARN if who == _THIS else Status.FAIL
        found.add(status, problem, expected="unlimited", fix=MEMLOCK_FIX)


def _limited(ctx: Ctx) -> tuple[str, str]:
    """Whose limits matter, and /proc/PID/limits of it."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"a step of job {job}", ctx.text("proc/self/limits")
    if pid := slurmd_pid(ctx):
        return _SLURMD, ctx.text(f"proc/{pid}/limits")
    return _THIS, ctx.text("proc/self/limits")


_SHM = "dev/shm"


@check("nccl.shm", tags={"preflight"}, blame=Blame.USER, drains=False)
def nccl_shm(
    ctx: Ctx,
    *,
    least_gib: Annotated[float, About(doc="Free space, at least.", unit="GiB", ge=0)] = 8.0,
    leftover_mib: Annotated[
        float, About(doc="What earlier jobs may leave behind.", unit="MiB", ge=0)
    ] = 64.0,
) -> Result:
    """There is room in /dev/shm for NCCL and data loaders, and earlier jobs left nothing in it.

    NCCL's ranks of one node exchange through files there (`failed to extend /dev/shm/nccl-`);
    a job that was killed leaves them. Source: NCCL User Guide (Troubleshooting, Docker); sizes are
    proposals.
    """
    topology.hardware(ctx)
    if mounts.table(ctx).top(f"/{_SHM}") is None:
        raise Skip("nothing is mounted on /dev/shm; mem.size says so, and what to do")
    found = Findings()
    stat = os.statvfs(ctx.path(_SHM))
    size, free = stat.f_blocks * stat.f_frsize / 2**30, stat.f_bavail * stat.f_frsize / 2**30
    found.metric("free", free * 2**30, "B")
    left, bytes_left = _leftovers(ctx)
    found.metric("leftovers", len(left))
    if bytes_left > leftover_mib * 2**20:
        found.warn(
            f"{len(left)} files of earlier jobs hold {bytes_left / 2**20:.0f} MiB, as {left[0]}",
            expected=f"at most {leftover_mib:g} MiB on an idle node",
            fix="where no job is on the node: rm /dev/shm/nccl-* /dev/shm/torch_*",
        )
    if free < least_gib:
        found.fail(
            f"{free:.2f} GiB of {size:.1f} are free",
            expected=f"at least {least_gib:g} GiB",
            fix="see what fills it (ls -laS /dev/shm); mount -o remount,size=50% /dev/shm",
        )
    return found.result(f"{free:.1f} GiB of {size:.1f} are free")


def _leftovers(ctx: Ctx) -> tuple[list[str], int]:
    """Files of NCCL and torch in /dev/shm, and their bytes. Raises OSError."""
    names, total = [], 0
    with os.scandir(ctx.path(_SHM)) as entries:
        for entry in entries:
            if entry.name.startswith(("nccl-", "torch_", "__KMP")):
                names.append(entry.name)
                total += entry.stat(follow_symlinks=False).st_size
    return sorted(names), total


@check("nccl.conf", tags={"preflight"}, cohort=Status.FAIL)
def nccl_conf(ctx: Ctx) -> Result:
    """/etc/nccl.conf says the same on all nodes.

    A variable that differs between ranks ends in hangs and `Message truncated` (NVIDIA/nccl#260,
    #626, #1328).
    """
    topology.hardware(ctx)
    text = ctx.maybe("etc/nccl.conf")
    lines = [li for li in (text or "").splitlines() if li.strip() and not li.startswith("#")]
    found = Findings()
    found.fact("variables", "; ".join(sorted(lines)) or "none")
    return found.result(f"{len(lines)} variables" if text is not None else "no /etc/nccl.conf")
