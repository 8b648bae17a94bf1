"""Bad links: slow, lossy or late in both directions, from outside a node.

All of it lies at the node's two cable ends, and each kind can be had together with the others:

slow    tc's token bucket filter on what leaves either end
lossy   an nftables chain at either end that drops a share of the frames that come in, unseen by
        the sender (a drop on the way out would be an error to it)
delay   the cable ends in a bridge of its own, and two TAP interfaces with a process between them
        (relay.py) join that with the lab's: kernels without netem have nothing else
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from lab import faults, processes
from lab import node as nodes
from lab.layout import CONTROLLER, Layout
from supervisor import proc
from supervisor.core.errors import UserError

RELAY = Path(__file__).with_name("relay.py")
# tc(8), "RATES": bits, with decimal or binary prefixes
_RATE = re.compile(r"([1-9]\d*(?:\.\d+)?)([kmgt]?i?)bit")
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_FACTOR |= {f"{key}i": 2 ** (10 * i) for i, key in enumerate("kmgt", 1)}
_BURST_S = 0.01  # what may pass at once, beside the frame under way
_QUEUE_MS = 200  # a frame that would wait longer is dropped, as by a switch
_FRAME = 2000  # bytes; holds a frame of the usual size
_TABLE = "superv_lossy"


def _net(layout: Layout, name: str, *argv: str, stdin: bytes | None = None) -> proc.Completed:
    """Run a command in a node's network."""
    pid = nodes.init_pid(layout, name)
    if pid is None:
        raise UserError(f"node {name} of lab {layout.name} is off")
    words = ["nsenter", f"--net=/proc/{pid}/ns/net", *argv]
    return proc.run_sync(words, stdin=stdin, deadline_s=5)


def _must(layout: Layout, name: str, *argv: str, stdin: bytes | None = None) -> None:
    done = _net(layout, name, *argv, stdin=stdin)
    if done.rc != 0:
        raise RuntimeError(f"{' '.join(argv)} on {name}: {done.why()}")


def _ends(node: str) -> tuple[tuple[str, str], ...]:
    """(where, interface) of both ends of a node's cable."""
    return (node, "eth0"), (CONTROLLER, node)


# --- slow ---


def slow(layout: Layout, node: str, rate: str) -> faults.InjectedFault:
    """Let no more than `rate` (tc's words, e.g. 10mbit) pass, each way.

    Raises:
        UserError: not a rate.
    """
    match = _RATE.fullmatch(rate.lower())
    if match is None:
        raise UserError(f"rate {rate!r}: write bits a second as tc does, e.g. 500kbit or 10mbit")
    bits = float(match[1]) * _FACTOR[match[2]]
    burst = max(_FRAME, int(bits / 8 * _BURST_S))
    at = time.time()
    for where, interface in _ends(node):
        words = ("rate", f"{bits:.0f}bit", "burst", str(burst), "latency", f"{_QUEUE_MS}ms")
        _must(layout, where, "tc", "qdisc", "replace", "dev", interface, "root", "tbf", *words)
    return faults.log(layout, at=at, fault="slow", node=node, detail=rate)


def _not_slow(layout: Layout, node: str) -> None:
    for where, interface in _ends(node):
        shown = _net(layout, where, "tc", "qdisc", "show", "dev", interface, "root")
        if " tbf " in shown.out:
            _must(layout, where, "tc", "qdisc", "del", "dev", interface, "root")


# --- lossy ---


def lossy(layout: Layout, node: str, percent: float) -> faults.InjectedFault:
    """Lose a share of the frames at random, each way.

    Raises:
        UserError: not a share, or nft is missing.
    """
    if not 0 < percent <= 100:
        raise UserError(f"{percent:g} percent: more than 0, at most 100; superv lab fast {node}")
    if shutil.which("nft", path=nodes.PATH) is None:
        raise UserError("lossy needs nft; on Debian: apt-get install nftables")
    at = time.time()
    share = f"numgen random mod 10000 < {round(percent * 100)}"
    for where, interface in _ends(node):
        table = f"netdev {_TABLE}_{interface}"
        rules = (
            f"table {table}\ndelete table {table}\ntable {table} {{ chain in {{ "
            f'type filter hook ingress device "{interface}" priority 0; {share} drop; }}; }}\n'
        )
        _must(layout, where, "nft", "--file", "-", stdin=rules.encode())
    return faults.log(layout, at=at, fault="lossy", node=node, detail=f"{percent:g}%")


def _not_lossy(layout: Layout, node: str) -> None:
    for where, interface in _ends(node):
        table = f"netdev {_TABLE}_{interface}"
        if table in _net(layout, where, "nft", "list", "tables").out:
            _must(layout, where, "nft", "delete", "table", *table.split())


# --- delay ---


def _names(node: str) -> tuple[str, str, str]:
    """The node's own bridge, and the TAPs in that and in the lab's."""
    return f"span-{node}", f"near-{node}", f"far-{node}"


def delay(layout: Layout, node: str, ms: float) -> faults.InjectedFault:
    """Let every frame arrive so much later, each way: a round trip takes twice that longer.

    Raises:
        UserError: not a delay, or this kernel has no TAP.
    """
    if not 0 < ms <= 10000:
        raise UserError(f"{ms:g} ms: more than 0, at most 10000; superv lab fast {node}")
    if not Path("/dev/net/tun").exists():
        raise UserError("delay needs /dev/net/tun, which this machine has not")
    _not_delayed(layout, node)
    span, near, far = _names(node)
    at = time.time()
    for tap in (near, far):
        _must(layout, CONTROLLER, "ip", "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr")
    processes.start(layout, CONTROLLER, [str(RELAY), f"{ms:g}", near, far])
    _must(layout, CONTROLLER, "ip", "link", "add", span, "up", "type", "bridge")
    for port, bridge in ((near, span), (far, "br0"), (node, span)):
        _must(layout, CONTROLLER, "ip", "link", "set", port, "master", bridge)
    for tap in (near, far):
        _must(layout, CONTROLLER, "ip", "link", "set", tap, "up")
    nodes.wait(lambda: _carried(layout, (near, far)), deadline_s=10, what="the relay")
    return faults.log(layout, at=at, fault="delay", node=node, detail=f"{ms:g} ms")


def _links(layout: Layout) -> dict[str, list[str]]:
    done = _net(layout, CONTROLLER, "ip", "-json", "link", "show")
    if done.rc != 0:
        raise RuntimeError(f"interfaces of lab {layout.name}: {done.why()}")
    return {link["ifname"]: link["flags"] for link in json.loads(done.out)}


def _carried(layout: Layout, taps: Sequence[str]) -> bool:
    """Whether the relay holds both TAPs."""
    links = _links(layout)
    return all("LOWER_UP" in links[tap] for tap in taps)


def _not_delayed(layout: Layout, node: str) -> None:
    span, near, far = _names(node)
    links = _links(layout)
    if node in links and span in links:
        _must(layout, CONTROLLER, "ip", "link", "set", node, "master", "br0")
    processes.end(layout, CONTROLLER, [near, far])
    for name in {span, near, far} & set(links):
        _must(layout, CONTROLLER, "ip", "link", "del", name)


# --- all of them ---


def clear(layout: Layout, node: str) -> None:
    """Undo what is there of all that, also of a node that is off."""
    _not_delayed(layout, node)
    if nodes.init_pid(layout, node) is None:
        _net(layout, CONTROLLER, "nft", "delete", "table", "netdev", f"{_TABLE}_{node}")
        return
    _not_slow(layout, node)
    _not_lossy(layout, node)


def fast(layout: Layout, node: str) -> faults.InjectedFault:
    """Make a node's link as good as ever."""
    clear(layout, node)
    return faults.log(layout, at=time.time(), fault="fast", node=node)
