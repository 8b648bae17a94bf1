"""Small processes of the lab's own that make a fault, inside the node that they belong to.

They live in that node's pid namespace: a power-off, `down`, or a creator that was killed at any
moment leaves none behind. There is no list of them; a command line is what finds them again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lab import node as nodes
from lab.layout import Layout
from supervisor import proc
from supervisor.core.errors import UserError

_TO_CONSOLE = 'console=$1; shift; exec "$@" </dev/null >>"$console" 2>&1'


def start(layout: Layout, node: str, argv: Sequence[str]) -> None:
    """Run a Python script with arguments on a node, as root, for as long as the node is on."""
    pid = nodes.init_pid(layout, node)
    if pid is None:
        raise UserError(f"node {node} of lab {layout.name} is off; superv lab poweron {node}")
    words = [
        *("setsid", "--fork", "nsenter", "--target", str(pid)),
        *("--net", "--mount", "--uts", "--pid", "--"),
        *("env", "-i", "--chdir=/", f"PATH={nodes.PATH}", "LANG=C.UTF-8"),
        *("sh", "-c", _TO_CONSOLE, "sh", str(layout.node(node) / "console")),
        *(sys.executable, "-I", *argv),
    ]
    done = proc.run_sync(words, deadline_s=10)
    if done.rc != 0:
        raise RuntimeError(f"{argv[0]} on {node}: {done.why()}")


def find(layout: Layout, node: str, argv: Sequence[str]) -> list[int]:
    """Pids, by the machine's count, of those whose command line ends so."""
    end = tuple(argv)
    return [p.pid for p in nodes.processes(layout, [node]) if p.argv[-len(end) :] == end]


def end(layout: Layout, node: str, argv: Sequence[str]) -> None:
    """Kill them and wait until they are gone."""
    if not (pids := find(layout, node, argv)):
        return
    nodes.kill(pids)
    nodes.wait(
        lambda: not find(layout, node, argv), deadline_s=5, what=f"the end of {argv[0]} on {node}"
    )
