"""The processes that nodes consist of: find them, start them, enter them, end them.

A node is a process 1 with network, mount, uts and pid namespaces of its own, and nothing else:
when that process is gone, the kernel takes the rest of the node away.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.layout import USER, Layout
from supervisor import proc
from supervisor.core.errors import UserError
from supervisor.host import procfs

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LISTEN = "0A"  # state column of /proc/net/tcp


@dataclass(frozen=True, slots=True, kw_only=True)
class LabProcess:
    """A process of a lab as the machine sees it."""

    pid: int
    node: str
    uid: int
    argv: tuple[str, ...]


def _tail(layout: Layout, node: str) -> tuple[str, ...]:
    return ("/bin/sh", str(layout.boot_script), node)


def boot_pids(layout: Layout) -> list[int]:
    """Every process of this machine that boots or holds a node of the lab, however it was left."""
    prefix = _tail(layout, "")[:2]
    return [pid for pid in procfs.pids() if procfs.argv(pid)[-3:-1] == prefix]


def init_pid(layout: Layout, node: str) -> int | None:
    """LabProcess 1 of a node, by the machine's count; None if the node is off."""
    try:
        pid = int((layout.node(node) / "pid").read_text())
    except FileNotFoundError:
        return None
    return pid if procfs.argv(pid) == _tail(layout, node) else None


def processes(layout: Layout, nodes: Sequence[str]) -> list[LabProcess]:
    """What runs on the nodes, their process 1 included."""
    spaces = {}
    for node in nodes:
        pid = init_pid(layout, node)
        if pid is not None:
            spaces[Path(f"/proc/{pid}/ns/pid").readlink()] = node
    found = []
    for pid in procfs.pids():
        try:
            node = spaces[Path(f"/proc/{pid}/ns/pid").readlink()]
            uid = Path(f"/proc/{pid}").stat().st_uid
        except (OSError, KeyError):  # gone meanwhile, another lab's, or hidden even from root
            continue
        found.append(LabProcess(pid=pid, node=node, uid=uid, argv=procfs.argv(pid)))
    return found


def listens(pid: int, port: int) -> bool:
    """Whether something listens on a TCP port in the network namespace of a process."""
    rows = []
    for table in ("tcp", "tcp6"):
        rows += Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    return any(
        fields[3] == _LISTEN and fields[1].endswith(f":{port:04X}")
        for fields in (row.split() for row in rows)
    )


async def boot(layout: Layout, node: str) -> None:
    """Start a node. It belongs to nobody: it outlives its starter, whatever happens to that."""
    argv = [
        *("setsid", "--fork", "env", "-i", "--default-signal", f"PATH={PATH}", "LANG=C.UTF-8"),
        *("unshare", "--net", *_tail(layout, node)),
    ]
    done = await proc.run(argv, deadline_s=10)
    if done.rc != 0:
        raise UserError(f"node {node} could not be started: {done.why()}")


async def until(reached: Callable[[], bool], *, deadline_s: float, what: str) -> None:
    """Wait for the world; raises TimeoutError that says for what."""
    end = time.monotonic() + deadline_s
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:g} s")
        await asyncio.sleep(0.02)


def wait(reached: Callable[[], bool], *, deadline_s: float, what: str) -> None:
    """The same for callers that are not asynchronous, and looks that start processes."""
    end = time.monotonic() + deadline_s
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:g} s")
        time.sleep(0.01)


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def enter(
    layout: Layout,
    node: str,
    argv: Sequence[str],
    *,
    uid: int,
    cwd: str,
    env: Mapping[str, str],
) -> list[str]:
    """The command line that runs `argv` inside a node, with an environment of the node's own."""
    pid = init_pid(layout, node)
    if pid is None:
        raise UserError(f"node {node} of lab {layout.name} is off; superv lab poweron {node}")
    name, home = ("root", "/root") if uid == 0 else (USER, str(layout.home))
    words = {
        "PATH": f"{sys.prefix}/bin:{PATH}",
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        **env,
    }
    return [
        *("nsenter", "--target", str(pid), "--net", "--mount", "--uts", "--pid"),
        *("--setuid", str(uid), "--setgid", str(uid), "--"),
        *("env", "-i", f"--chdir={cwd}", *(f"{k}={v}" for k, v in words.items())),
        *argv,
    ]
