"""A path of three network namespaces: node, router, server. The second leg has a smaller MTU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NODE, ROUTER, SERVER = "10.77.1.2", "10.77.1.1", "10.77.2.2"
SILENT = "10.77.2.99"


@dataclass(frozen=True)
class Wire:
    """Three namespaces in a row."""

    node: str
    router: str
    server: str

    def set_mtu(self, mtu: int) -> None:
        """Of the second leg."""
        ip("-n", self.router, "link", "set", "r1", "mtu", str(mtu))
        ip("-n", self.server, "link", "set", "s0", "mtu", str(mtu))

    def probe(self, *peers: str, root: str = "/", **options: Any) -> list[dict[str, Any]]:
        order = {
            "names": ["path.mtu"],
            "settings": {"path.mtu": {"peers": peers, **options}},
            "folder": f"/tmp/superv-{self.node}",
            "root": root,
        }
        try:
            done = subprocess.run(
                ["ip", "netns", "exec", self.node, sys.executable, "-m", "healthchecks"],
                input=json.dumps(order),
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            shutil.rmtree(order["folder"], ignore_errors=True)
        return json.loads(done.stdout)["results"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def inside(name: str, *argv: str, text: str = "") -> None:
    subprocess.run(["ip", "netns", "exec", name, *argv], input=text, text=True, check=True)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    made = Wire(*(f"sv{os.getpid()}{part}" for part in "nrs"))
    names = (made.node, made.router, made.server)
    try:
        for name in names:
            ip("netns", "add", name)
        for left, at, right, to in (
            (made.node, "n0", made.router, "r0"),
            (made.router, "r1", made.server, "s0"),
        ):
            ip("-n", left, "link", "add", at, "mtu", "9000", "type", "veth",
               "peer", "name", to, "mtu", "9000", "netns", right)  # fmt: skip
        for name, device, address in (
            (made.node, "n0", NODE),
            (made.router, "r0", ROUTER),
            (made.router, "r1", "10.77.2.1"),
            (made.server, "s0", SERVER),
        ):
            ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
        ip("-n", made.node, "route", "add", "default", "via", ROUTER)
        ip("-n", made.server, "route", "add", "default", "via", "10.77.2.1")
        inside(made.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        yield made
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def test_jumbo_packets_pass(wire: Wire) -> None:
    wire.set_mtu(9000)
    [result] = wire.probe(SERVER)
    assert result["status"] == "OK", result
    assert result["seen"] == f"9000 bytes pass to {SERVER} through n0"


def test_the_hop_with_the_smaller_mtu_is_named(wire: Wire) -> None:
    wire.set_mtu(1500)
    [near, far] = wire.probe(ROUTER, SERVER)
    assert near["status"] == "OK", near
    assert far["status"] == "FAIL", far
    assert f"1500 bytes pass to {SERVER}, n0 has MTU 9000" in far["seen"]
    assert f"{ROUTER} says fragmentation is needed: its MTU is 1500" in far["seen"]
    assert far["shared"] == f"hop {ROUTER}"
    assert far["metrics"]["mtu"] == {"value": 1500.0, "unit": "B"}


def test_a_black_hole_is_found_between_two_sizes(wire: Wire) -> None:
    wire.set_mtu(4321)
    mute = """
    table ip mute {
      chain out {
        type filter hook output priority 0;
        icmp type destination-unreachable drop;
      }
    }
    """
    inside(wire.router, "nft", "-f", "-", text=mute)
    try:
        [result] = wire.probe(SERVER)
    finally:
        inside(wire.router, "nft", "delete", "table", "ip", "mute")
    assert result["status"] == "FAIL", result
    assert "4321 bytes pass" in result["seen"]
    assert "a black hole: 4322 bytes vanish and no router says why" in result["seen"]


def test_a_smaller_packet_may_be_enough(wire: Wire) -> None:
    wire.set_mtu(4321)
    [result] = wire.probe(SERVER, least=4200)
    assert result["status"] == "OK", result


def test_a_peer_that_does_not_answer_is_unknown(wire: Wire) -> None:
    [result] = wire.probe(SILENT, timeout_s=0.05)
    assert result["status"] == "UNKNOWN", result
    assert "answers no ICMP echo" in result["seen"]


@pytest.mark.parametrize("proto, status", [("tcp", "WARN"), ("rdma", "FAIL")])
def test_an_nfs_server_that_takes_no_more_itself(
    wire: Wire, tmp_path: Path, proto: str, status: str
) -> None:
    """TCP keeps to the size that the server names; RDMA does not."""
    wire.set_mtu(1500)
    mounts = tmp_path / "proc" / "self" / "mountinfo"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(f"29 1 0:40 / /s rw - nfs4 nas:/s rw,proto={proto},addr={SERVER}\n")
    listen = (
        "import socket; s = socket.create_server(('', 2049)); print(1, flush=True); "
        "[s.accept() for _ in iter(int, 1)]"
    )
    argv = ["ip", "netns", "exec", wire.server, sys.executable, "-c", listen]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout and server.stdout.readline()
            [result] = wire.probe(SERVER, root=str(tmp_path))
        finally:
            server.kill()
    assert result["status"] == status, result
    if status == "WARN":
        assert "NFS over TCP keeps to that (segments of 14" in result["seen"]
        assert result["shared"] == f"nfs server nas ({SERVER})"
