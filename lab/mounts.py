"""Mounts that hang, go stale, slow down or turn read-only on one node, and recover."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import posixpath
import socket
import time
from pathlib import Path

from lab import faults, processes
from lab import node as nodes
from lab.layout import Layout
from supervisor import proc
from supervisor.core.errors import UserError

SCRIPT = Path(__file__).with_name("passthrough.py")
MODES = ("ok", "hung", "stale", "slow", "readonly", "off")


def _check(layout: Layout, node: str, path: str, mode: str) -> str:
    """The path in its plain form; UserError if this can't be done."""
    if mode not in MODES:
        raise UserError(f"mount-fault {mode!r}: valid are {', '.join(MODES)}")
    plain = posixpath.normpath(path)
    if not plain.startswith("/") or plain == "/":
        raise UserError(f"mount-fault {path}: name a folder of the node by its full path")
    if nodes.init_pid(layout, node) is None:
        raise UserError(f"node {node} of lab {layout.name} is off; superv lab poweron {node}")
    if importlib.util.find_spec("mfusepy") is None or not Path("/dev/fuse").exists():
        raise UserError(
            "mount-fault needs /dev/fuse, Debian's libfuse3-3 and the Python package mfusepy: "
            "apt-get install libfuse3-3; pip install mfusepy"
        )
    return plain


def fault(
    layout: Layout, node: str, path: str, mode: str, *, delay_s: float
) -> faults.InjectedFault:
    """Mount a folder of a node over itself, or change what such a mount does.

    Raises:
        UserError: no such mode, node or folder, or what FUSE needs is missing.
    """
    plain = _check(layout, node, path, mode)
    where = layout.node(node) / f"mount-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"
    argv = [str(SCRIPT), plain, str(where)]
    there = bool(processes.find(layout, node, argv))
    at = time.time()
    if mode == "off":
        if not there:
            raise UserError(f"mount-fault {path} off: nothing of the lab is mounted there")
        _end(layout, node, plain, where, argv)
    else:
        if not there:
            _start(layout, node, plain, where, argv)
        _wait(layout, node, plain, where, argv)
        at = at if there else time.time()
        _order(where, {"mode": mode, "delay_s": delay_s})
    detail = f"{plain} {mode}" + (f" {delay_s:g} s" if mode == "slow" else "")
    return faults.log(layout, at=at, fault="mount-fault", node=node, detail=detail)


def _on_node(layout: Layout, node: str, *argv: str) -> proc.Completed:
    pid = nodes.init_pid(layout, node)
    words = ["nsenter", "--target", str(pid), "--mount", "--pid", *argv]
    return proc.run_sync(words, deadline_s=5)


def _start(layout: Layout, node: str, path: str, where: Path, argv: list[str]) -> None:
    if _on_node(layout, node, "test", "-d", path).rc != 0:
        raise UserError(f"mount-fault {path}: no such folder on {node}")
    where.unlink(missing_ok=True)
    processes.start(layout, node, argv)


def _wait(layout: Layout, node: str, path: str, where: Path, argv: list[str]) -> None:
    """Until the mount takes orders, whoever has started it."""
    try:
        nodes.wait(where.exists, deadline_s=10, what="the mount")
    except TimeoutError as error:
        processes.end(layout, node, argv)
        raise UserError(f"mount-fault {path}: {error}; see {where.parent / 'console'}") from error


def _order(where: Path, order: dict[str, object]) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(5)
        caller.connect(str(where))
        caller.sendall(json.dumps(order).encode())
        if json.loads(caller.recv(4096)) != order:
            raise RuntimeError(f"the mount at {where} did not take {order}")


def _end(layout: Layout, node: str, path: str, where: Path, argv: list[str]) -> None:
    # First its process: whoever hangs gets an error, and umount has nothing to wait for.
    processes.end(layout, node, argv)
    done = _on_node(layout, node, "umount", "--lazy", "--no-canonicalize", path)
    if done.rc != 0:
        raise RuntimeError(f"mount-fault {path} off: {done.why()}")
    where.unlink(missing_ok=True)
