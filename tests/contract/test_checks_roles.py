"""What RDMA ports are for, as ib.missing counts them: by board, by what they were, by their use."""

from __future__ import annotations

from pathlib import Path

from checks import Case, Change, both, each_of, run, wrote
from healthy import IB, many, no_nics, port

from healthchecks.frame.check import Status


def roce(n: int) -> Change:
    return port(f"mlx5_{n}", f"0000:{0x20 + n:02x}:00.0", f"ens{n}np0", numa=n // 4)


def second(n: int, rate: str) -> Change:
    """One of another board with the same chip."""
    return port(
        f"mlx5_{8 + n}", f"0000:3{n}:00.0", f"ens2{n}np0", rate=rate, board="MT_0000000834", numa=n
    )


def down(*devices: str) -> Change:
    at = [f"{IB}/{device}/ports/1" for device in devices]
    return both(
        *(wrote(f"{place}/state", "1: DOWN") for place in at),
        *(wrote(f"{place}/rate", "10 Gb/sec (4X SDR)") for place in at),
    )


def routes(*rows: tuple[str, str, str]) -> Change:
    """Interface, target and mask of routes, as /proc writes them."""
    head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
    texts = [f"{dev}\t{to}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0" for dev, to, mask in rows]
    return wrote("proc/net/route", "\n".join([head, *texts]))


FAST, SLOW = "400 Gb/sec (4X NDR)", "200 Gb/sec (4X HDR)"
RAILS = both(no_nics, many(roce, range(8)))
TWO_NETWORKS = both(RAILS, many(lambda n: second(n, SLOW), range(2)))
ALIKE = both(RAILS, many(lambda n: second(n, FAST), range(2)))
# 10.0.0.5 of the node's NFS mount, and networks that it is in or not
TO_NFS, ELSEWHERE, DEFAULT = ("0000000A", "00FFFFFF"), ("0001010A", "00FFFFFF"), ("00000000",) * 2


def roles(name: str, seen: str, change: Change, status: Status = Status.OK) -> Case:
    return Case(check="ib.missing", name=name, change=change, status=status, seen=seen)


CASES = [
    roles("a slower board is storage", "8 fabric, 2 storage ports", TWO_NETWORKS),
    roles("boards of one chip and rate", "10 fabric ports", ALIKE),
    roles(
        "one of them reaches the NFS server",
        "8 fabric, 2 storage ports",
        both(ALIKE, routes(("ens20np0", *TO_NFS), ("ens0np0", *ELSEWHERE))),
    ),
    roles(
        "the most reach it: one network for all",
        "8 fabric, 2 storage ports",
        both(TWO_NETWORKS, routes(("ens0np0", *TO_NFS))),
    ),
    roles(
        "it is reached by the default route alone",
        "10 fabric ports",
        both(ALIKE, routes(("ens20np0", *DEFAULT))),
    ),
    roles(
        "routes that can't be read",
        "10 fabric ports",
        both(ALIKE, wrote("proc/net/route", "Iface\nens20np0\tnonsense")),
    ),
    Case(
        check="ib.missing",
        name="the fabric whose cables are pulled stays the fabric",
        earlier=[(60.0, TWO_NETWORKS)],
        change=down(*(f"mlx5_{n}" for n in range(7))),
        status=Status.OK,
        seen="8 fabric, 2 storage ports",
    ),
    Case(
        check="ib.missing",
        name="and after a boot",
        earlier=[(60.0, TWO_NETWORKS)],
        change=both(
            down(*(f"mlx5_{n}" for n in range(8))), down("mlx5_8"), wrote("proc/uptime", "90 1")
        ),
        status=Status.OK,
        seen="8 fabric, 2 storage ports",
    ),
]


@each_of(CASES)
def test_roles(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)
