"""Faults: what can be done to a lab, and the log that says when it was done.

A timeline takes a fault's time from this log, so the clock is read right before the fault takes
effect; the line is written after it did.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lab import node as nodes
from lab.layout import CONTROLLER, Layout
from supervisor import proc
from supervisor.core.errors import UserError
from supervisor.host import procfs


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectedFault:
    """One line of the log: `at` in seconds since 1970, by the machine's wall clock."""

    at: float
    fault: str
    node: str
    detail: str = ""  # how much, or where; for people


def read(layout: Layout) -> list[InjectedFault]:
    """All faults so far, oldest first."""
    try:
        lines = layout.faults.read_text().splitlines()
    except FileNotFoundError:
        return []
    return [InjectedFault(**json.loads(line)) for line in lines]


def log(layout: Layout, *, at: float, fault: str, node: str, detail: str = "") -> InjectedFault:
    """Write a line for a fault that took effect."""
    entry = InjectedFault(at=at, fault=fault, node=node, detail=detail)
    line = json.dumps(asdict(entry)) + "\n"
    fd = os.open(layout.faults, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
    return entry


def _in_ctl_net(layout: Layout, *argv: str) -> proc.Completed:
    """Run a command in the network namespace where the nodes' cables end."""
    ctl = nodes.init_pid(layout, CONTROLLER)
    if ctl is None:
        raise UserError(f"lab {layout.name} has no controller; superv lab up --name {layout.name}")
    return proc.run_sync(["nsenter", f"--net=/proc/{ctl}/ns/net", *argv], deadline_s=5)


def _cable(layout: Layout, node: str, state: str) -> None:
    done = _in_ctl_net(layout, "ip", "link", "set", node, state)
    if done.rc != 0:
        raise RuntimeError(f"cable of {node}: {done.why()}")


def cables(layout: Layout) -> dict[str, bool]:
    """Which nodes have a cable, and whether it is up."""
    done = _in_ctl_net(layout, "ip", "-json", "link", "show", "type", "veth")
    if done.rc != 0:
        raise RuntimeError(f"cables of lab {layout.name}: {done.why()}")
    return {link["ifname"]: "UP" in link["flags"] for link in json.loads(done.out)}


def poweroff(layout: Layout, node: str) -> InjectedFault:
    """Power a node off: its cable goes dark first, so no peer sees a FIN or RST; then it dies."""
    pid = nodes.init_pid(layout, node)
    if pid is None:
        raise UserError(f"node {node} of lab {layout.name} is off already")
    at = time.time()
    _cable(layout, node, "down")
    nodes.kill([pid])
    entry = log(layout, at=at, fault="poweroff", node=node)
    # The kernel takes the pair away with the namespace, but later; its name must be free now.
    _in_ctl_net(layout, "ip", "link", "del", node)
    return entry


def kmsg(layout: Layout, node: str, lines: Sequence[str], *, priority: int = 4) -> InjectedFault:
    """Append lines to a node's kernel log, in the form that /dev/kmsg is read in.

    `priority` is syslog's level, 0 to 7; the record is in the kernel's format
    (Documentation/ABI/testing/dev-kmsg): priority, number, microseconds since boot, flag, text.

    Raises:
        UserError: no line, or a priority that does not exist.
    """
    if not lines or not 0 <= priority <= 7:
        raise UserError("kmsg: give one line or more, and a priority of 0 (emergency) to 7 (debug)")
    at = time.time()
    with (layout.node(node) / "kmsg").open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        number = file.read().count(b"\n")
        for i, line in enumerate(lines, start=number):
            text = "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in line)
            now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            file.write(f"{priority},{i},{now_us},-;{text}\n".encode())
    return log(layout, at=at, fault="kmsg", node=node, detail=lines[0][:80])


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def cut(layout: Layout, node: str) -> InjectedFault:
    """Pull a node's cable; everything on it goes on running."""
    at = time.time()
    _cable(layout, node, "down")
    return log(layout, at=at, fault="cut", node=node)


def mend(layout: Layout, node: str) -> InjectedFault:
    """Put the cable back."""
    _cable(layout, node, "up")
    return log(layout, at=time.time(), fault="mend", node=node)


def poweron(layout: Layout, node: str) -> InjectedFault:
    """Log that a node was switched on; the lab boots it."""
    return log(layout, at=time.time(), fault="poweron", node=node)


def slurmctld(layout: Layout) -> int | None:
    """The controller daemon's pid by the machine's count."""
    for process in nodes.processes(layout, [CONTROLLER]):
        if process.argv and process.argv[0].endswith("slurmctld"):
            return process.pid
    return None


def controller_state(layout: Layout) -> str:
    """slurmctld: running, paused or dead."""
    pid = slurmctld(layout)
    if pid is None:
        return "dead"
    return {None: "dead", "T": "paused"}.get(procfs.state(pid), "running")


def signal_controller(layout: Layout, *, pause: bool) -> InjectedFault:
    """Stop or continue slurmctld: its port accepts, nothing answers."""
    pid = slurmctld(layout)
    if pid is None:
        raise UserError(f"slurmctld of lab {layout.name} does not run; superv lab status")
    at = time.time()
    os.kill(pid, signal.SIGSTOP if pause else signal.SIGCONT)
    wanted = "paused" if pause else "running"
    nodes.wait(lambda: controller_state(layout) == wanted, deadline_s=5, what=f"slurmctld {wanted}")
    fault = "pause-controller" if pause else "resume-controller"
    return log(layout, at=at, fault=fault, node=CONTROLLER)
