"""What this machine has running: compared before and after every lab test.

Others may use the machine at the same time, other workers of this session among them. So pytest
moves into a cgroup of its own: whatever it starts stays in there, however it detaches, and
`cgroup.procs` names all of it and nothing else. It gets a mount namespace of its own, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from healthchecks.sources.mounts import parse_mountinfo
from lab import cgroups, faults
from lab.cluster import Lab, names
from lab.layout import BASE
from lab.node import boot_pids
from supervisor.core.errors import UserError
from supervisor.host import procfs

PREFIX = "superv-test-"
NAME = f"test-{os.getpid()}"  # labs of this test session are called so, with -WORD behind it
CLONE_NEWNS = 0x20000  # include/uapi/linux/sched.h; os.unshare came with Python 3.12
# What a lab without jobs consists of.
AT_REST = ("sleep", "munged", "slurmctld", "slurmscriptd", "slurmd")


def _own_cgroup() -> Path:
    """pytest's cgroup in the one hierarchy that has no controllers to upset (version 2)."""
    for mounted in parse_mountinfo(Path("/proc/self/mountinfo").read_text()):
        if mounted.fstype == "cgroup2":
            here = Path("/proc/self/cgroup").read_text().split("0::/")[1].split("\n")[0]
            return Path(mounted.point) / here
    raise RuntimeError("lab tests need a cgroup2 mount, to know what they left behind")


def _dead(pid: str) -> bool:
    return pid.isdigit() and not Path("/proc", pid).exists()


def sweep() -> None:
    """Remove the labs of test sessions that were killed."""
    for name in names():
        if name.startswith("test-") and _dead(name.split("-")[1]):
            with contextlib.suppress(UserError):  # another session sweeps it
                Lab(name).down()


def _sweep_fences(cgroup: Path) -> None:
    for folder in cgroup.glob(f"{PREFIX}*"):
        if _dead(folder.name.removeprefix(PREFIX)):
            with contextlib.suppress(OSError):  # still busy: the next session's turn
                _remove(folder)


def _remove(fence: Path) -> None:
    """With what killed agents left in it: empty cgroups. OSError: somebody is there."""
    for folder, _, _ in os.walk(fence, topdown=False):
        os.rmdir(folder)


def _own_mounts() -> None:
    """Mounts from now on are this process's and its children's, and nobody else's are seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


@contextlib.contextmanager
def fenced() -> Iterator[Path]:
    """Move this process into a cgroup of its own, which it yields, and away from others' mounts."""
    _own_mounts()
    before = _own_cgroup()
    sweep()
    _sweep_fences(before)
    fence = before / f"{PREFIX}{os.getpid()}"
    fence.mkdir()
    (fence / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield fence
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(1000):  # a cgroup stays busy for a moment after its last process
            with contextlib.suppress(OSError):
                _remove(fence)
                break
            time.sleep(0.02)
        else:
            raise RuntimeError(f"{fence} still holds {_processes(fence)}")


def _processes(fence: Path) -> set[int]:
    """The pids in it and in every cgroup below it."""
    pids = set[int]()
    for folder, _, _ in os.walk(fence):
        with contextlib.suppress(FileNotFoundError):
            pids.update(int(pid) for pid in Path(folder, "cgroup.procs").read_text().split())
    return pids


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSnapshot:
    """One look at the machine; every field is a set of lines that a person can read."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    labs: frozenset[str]
    machine: frozenset[str]

    def more_than(self, before: MachineSnapshot) -> list[str]:
        """What is here that was not; for the machine's own things also what is gone."""
        new = []
        for field in fields(self):
            now, then = getattr(self, field.name), getattr(before, field.name)
            differ = now ^ then if field.name == "machine" else now - then
            new += [f"{field.name}: {item}" for item in sorted(differ)]
        return new


def _process(pid: int) -> tuple[str, str]:
    """(line, network namespace)."""
    root = Path("/proc") / str(pid)
    line = f"{pid} since {procfs.start_time(pid)}: {' '.join(procfs.argv(pid))}"
    return line, str((root / "ns/net").readlink())


def _at_rest(lab: Lab | None) -> set[int]:
    """The processes of a lab without jobs: not a leak, and others after a power-off."""
    if lab is None:
        return set()
    inside = {
        process.pid
        for process in lab.processes()
        if process.uid == 0 and process.argv and _program(process.argv) in AT_REST
    }
    return inside | set(boot_pids(lab.layout))


def _program(argv: tuple[str, ...]) -> str:
    return argv[0].removeprefix(": ").rpartition("/")[2]


def _is_ours(cgroup: str, lab: Lab | None) -> bool:
    """Whether it is a lab's of this session, or Slurm's outside of any lab.

    A strict lab that stays keeps two levels in each hierarchy: its nodes', and slurmd's below.
    """
    name = cgroup.rpartition("superv-lab.")[2]
    if name == cgroup:
        return "slurm" in cgroup
    at_rest = lab is not None and re.fullmatch(rf"{lab.name}\.n\d+(/slurm_n\d+)?", name)
    slurms = any(f"/{controller}/" in cgroup for controller in cgroups.SLURMS)
    return name.startswith(f"{NAME}-") and not (at_rest and slurms)


def look(fence: Path, lab: Lab | None = None) -> MachineSnapshot:
    """The world now; `lab` is one that stays, in whatever incarnation of its nodes."""
    seen = []
    for pid in sorted(_processes(fence) - _at_rest(lab) - {os.getpid()}):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            seen.append(_process(pid))
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split(" ", 4)[4] for line in table]
    return MachineSnapshot(
        processes=frozenset(line for line, _ in seen),
        namespaces=frozenset(net for _, net in seen),
        # Named network namespaces of others come and go; the lab's have no name.
        mounts=frozenset(line for line in mounts if not line.startswith("/run/netns")),
        cgroups=frozenset(
            folder for folder, _, _ in os.walk("/sys/fs/cgroup") if _is_ours(folder, lab)
        ),
        labs=frozenset(path.name for path in BASE.glob(f"{NAME}-*")),
        machine=frozenset(
            [f"interface {name}" for name in os.listdir("/sys/class/net")]
            + [f"/etc/slurm/{name}" for name in os.listdir("/etc/slurm")]
        ),
    )


def settled(
    fence: Path, before: MachineSnapshot, lab: Lab | None = None, within_s: float = 10
) -> list[str]:
    """What is left over once things had time to end."""
    end = time.monotonic() + within_s
    while left := look(fence, lab).more_than(before):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    return left


def undo(lab: Lab) -> None:
    """Undo the faults of links, limits, mounts and kernel logs that the log says are in force."""
    links, limits, logs = set[str](), set[str](), set[str]()
    mounts = set[tuple[str, str]]()
    for fault in faults.read(lab.layout):
        at = fault.node
        match fault.fault:
            case "slow" | "lossy" | "delay":
                links.add(at)
            case "steal" | "memory":
                limits.add(at)
            case "mount-fault":
                path, mode = fault.detail.split()[:2]
                mounts.add((at, path)) if mode != "off" else mounts.discard((at, path))
            case "kmsg":
                logs.add(at)
            case "fast":
                links.discard(at)
            case "relieve":
                limits.discard(at)
            case "poweroff":
                links.discard(at)
                limits.discard(at)
                mounts = {mount for mount in mounts if mount[0] != at}
    for node, path in mounts:
        lab.mount_fault(node, path, "off")
    for node in links:
        lab.fast(node)
    for node in limits:
        lab.relieve(node)
    for node in logs:
        (lab.layout.node(node) / "kmsg").write_text("")


def heal(lab: Lab) -> None:
    """Undo every fault, cancel every job, wait until all nodes are idle."""
    undo(lab)
    if lab.controller() == "paused":
        lab.resume_controller()
    for node in lab.status().nodes:
        if node.power == "off":
            lab.poweron(node.name)
        elif node.cable == "cut":
            lab.mend(node.name)
            # slurmctld asks a node that it took for down again after 50 s; slurmd reports at once.
            lab.run(node.name, ["pkill", "-HUP", "-x", "slurmd"], user="root")
    done = lab.run("ctl", ["scancel", "--user=superv"], user="root", deadline_s=30)
    assert done.rc == 0, done.why()
    lab.wait_idle(deadline_s=90)
